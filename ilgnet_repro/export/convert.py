"""`convert`: load, write every format, verify on request; all files are written or none, and it is reported."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Unpack

from ..about import About
from ..errors import IlgnetError
from ..files import bytes_of, real_path, staged_results
from ..known import ScoreAt
from ..layers.support.base import Shape
from ..reading.preprocessing import Preprocessing
from ..runtime.find import stem_of
from ..runtime.load import LoadOptions, is_model_file, load_caffe, load_model_file
from ..runtime.model import Model
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from ..runtime.weights import count_parameters
from ..signatures import shows_options
from .consumers import check_verifier
from .formats import Format, check_options, find_format, read_options
from .model_convert import convert_model
from .publish import check_replacing, create_folder, is_same_file, publish
from .quantization_deviation import Deviation, measure_deviation
from .report import ConversionReport, Written
from .saving import Options, Progress, SaveOptions, Saving, make_saving
from .verify import Verification, verify_files, verify_in_consumer

PathLike = str | os.PathLike[str]


@shows_options(SaveOptions, Options)
def convert(
    weights: PathLike,
    prototxt: PathLike | None = None,
    to: str | Sequence[str] = ("safetensors",),
    out: PathLike | None = None,
    *,
    verify: bool | str = False,
    phase: str | None = None,
    level: int = 0,
    stages: Iterable[str] = (),
    input_shapes: Mapping[str, Shape] | None = None,
    ignore_fields: Iterable[str] = (),
    allow_missing: Collection[str] = (),
    crop: str | None = None,
    sha256: bool = False,
    preprocessing: Preprocessing | Callable[[CaffeNet | Model], Preprocessing | None] | None = None,
    labels: Sequence[str] = (),
    score: str = "",
    pictures: Sequence[PathLike] = (),
    progress: Progress = None,
    **options: Unpack[SaveOptions],
) -> ConversionReport:
    """Convert a weights file (`load`) to the formats ``to`` in the folder ``out`` (default: the weights' own).

    Files get their names only when all are written (and, with ``verify``, return the net's own outputs;
    ``verify="openvino"`` or another of `consumers.VERIFIERS`, several by commas, lets these run the ONNX file too).
    ``preprocessing`` (a value, or a function of the net) replaces the known one, as do ``labels``, the classes of an
    output, and ``score``, the output that is the score ("blob", or "blob:index" of one with several values).  The
    deviation of quantized weights (``precision``) is measured on ``pictures``, by default on seeded inputs.  The other
    options are those of `load` and `save`.  A file of a `Model` is converted to the formats that `save` has for it.
    Raises IlgnetError for anything wrong with the input.
    """
    images = pictures  # the keyword keeps its name
    source = Path(weights)
    chosen = read_options(options)
    if len(images) and chosen.precision in (None, "float32"):
        raise IlgnetError(
            "precision=: is not given, and the images only measure what it rounds; give it, or leave the images out",
            option="precision",
        )
    formats = [find_format(name) for name in dict.fromkeys([to] if isinstance(to, str) else to)]
    is_model = is_model_file(source)
    if not is_model:
        check_options(formats, chosen)
    consumers = _consumers(verify, formats)
    loading: LoadOptions = {
        "prototxt": prototxt, "phase": phase, "level": level, "stages": stages, "input_shapes": input_shapes,
        "ignore_fields": ignore_fields, "allow_missing": allow_missing, "crop": crop, "sha256": sha256,
    }  # fmt: skip
    net: CaffeNet | Model
    net = load_model_file(source, **loading) if is_model else load_caffe(source, **loading)
    if callable(preprocessing) and not isinstance(preprocessing, Preprocessing):
        preprocessing = preprocessing(net)
    if preprocessing is not None:
        net.about = net.about.stating(preprocessing)
    if labels or score:
        net.about = replace(net.about, **_stated(net, tuple(labels), score))
    folder = Path(out) if out is not None else source.parent
    stem = stem_of(source)
    _check_names(source, [format_.path(folder, stem) for format_ in formats])
    if isinstance(net, Model):
        return convert_model(
            net, source, formats, chosen, folder, stem, verify=bool(verify), consumers=consumers, progress=progress
        )  # fmt: skip
    saving = make_saving(net, chosen, progress)
    results = "+".join([stem, *sorted(one.name for one in formats)])  # other formats may be written meanwhile
    with create_folder(folder), staged_results(folder, results, option="out") as stage:
        written, checks, files = _write(formats, saving, bool(verify), consumers, stage, folder, stem)
        deviations: tuple[Deviation, ...] = ()
        if chosen.precision is not None:
            deviations = _deviations(formats, saving, chosen.precision, images)
        text = prototxt or net.about.prototxt or None
        # The prototxt that was read is kept if its content is the same (`publish`).
        replacing = [
            path for path in files if text is None or not is_same_file(folder / path.name, Path(text))
        ]
        check_replacing(replacing, folder, [source, text, *images])
        publish(files, folder)
    extra_notes = dict.fromkeys(note for format_ in formats for note in format_.notes(saving))
    return _report(net, replace(saving, notes=(*saving.notes, *extra_notes)), written, checks, deviations)


def _stated(net: CaffeNet | Model, labels: tuple[str, ...], score: str) -> dict[str, Any]:
    """What is known of a net by the caller's labels and score.  Raises IlgnetError where no output has such values."""
    counts = {name: prod(length or 1 for length in net.shapes[name][1:]) for name in net.outputs}
    shown = ", ".join(f"{name} of {count}" for name, count in counts.items())
    stated: dict[str, Any] = {}
    if labels:
        if len(labels) not in counts.values():
            raise IlgnetError(
                f"labels: are {len(labels)}, and the outputs are {shown}; give one per value", option="labels"
            )
        stated["labels"] = labels
    if score:
        name, _, index = score.rpartition(":")
        if score in counts:
            name, index = score, "0"
        if name not in counts or not index.isdecimal() or int(index) >= counts[name]:
            raise IlgnetError(
                f"score={score!r}: no output has this value; give BLOB or BLOB:INDEX, the index from 0, of {shown}",
                option="score",
            )
        stated["score"] = ScoreAt(name, int(index), "score")
    return stated


def _deviations(
    formats: Sequence[Format], saving: Saving, precision: str, images: Sequence[PathLike]
) -> tuple[Deviation, ...]:
    """Measure what reduced weights cost, in the format that rounds most of them."""
    nets = [format_.reference(saving) for format_ in formats]
    if all(net is saving.original for net in nets):
        return ()
    # A caffemodel also rounds biases, and weights that keep float32 elsewhere.
    worst = next((net for net in nets if net not in (saving.net, saving.original)), saving.net)
    return measure_deviation(replace(saving, net=worst), precision, images)


def _consumers(verify: bool | str, formats: Sequence[Format]) -> list[str]:
    """Return the consumers that ``verify`` names.  Raises IlgnetError where one cannot run here, or no ONNX file."""
    names = list(dict.fromkeys(verify.split(","))) if isinstance(verify, str) else []
    for name in names:
        check_verifier(name)
    if names and "onnx" not in [format_.name for format_ in formats]:
        raise IlgnetError(
            f"verify={verify!r}: runs ONNX files, and none is written; add onnx to the formats",
            option="verify",
        )
    return names


def _check_names(source: Path, targets: Sequence[Path]) -> None:
    for target in targets:
        if real_path(target) == real_path(source):
            raise IlgnetError(
                f"{source}: would be written over itself; give another folder as out=", option="out"
            )


def _write(
    formats: Sequence[Format],
    saving: Saving,
    verify: bool,
    consumers: Sequence[str],
    stage: Path,
    folder: Path,
    stem: str,
) -> tuple[list[Written], list[Verification], list[Path]]:
    written: list[Written] = []
    checks: list[Verification] = []
    files: list[Path] = []
    for format_ in formats:
        started = time.perf_counter()
        with as_loaded(saving.net):
            paths = format_.write(saving, format_.path(stage, stem))
        seconds = time.perf_counter() - started
        written += [Written(format_.name, str(folder / path.name), bytes_of(path), seconds) for path in paths]
        files += [path for path in paths if path not in files]
        if verify:
            checks.append(verify_files(format_, saving, paths))
            if checks[-1].differs:
                raise IlgnetError(
                    f"{paths[0].name}: output {checks[-1].blob!r} differs from the original's "
                    f"{checks[-1].how}; nothing was written; internal error; please report it"
                )
        if format_.name == "onnx":
            checks += [verify_in_consumer(name, format_, saving, paths[0]) for name in consumers]
    return written, checks, files


def _report(
    net: CaffeNet, saving: Saving, written: Sequence[Written], checks: Sequence[Verification],
    deviations: tuple[Deviation, ...],
) -> ConversionReport:  # fmt: skip
    about: About = net.about
    graph, plan = saving.graph, saving.net.plan
    return ConversionReport(
        source=about.source, net=graph.name, prototxt=about.prototxt, phase=graph.phase, layers=len(graph.layers),
        parameters=count_parameters(plan.blobs), outputs=graph.outputs, extra_layers=about.extra_layers,
        notes=(*about.notes, *about.random_notes, *saving.notes), written=tuple(written), verified=tuple(checks),
        preprocessing=about.preprocessing.to_json() if about.preprocessing else None, deviations=deviations,
    )  # fmt: skip
