"""`convert`: a caffemodel in, files out; all of them, or none."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..data.manifest import file_sha256, known_release, releases
from ..data.preprocess import Preprocessing, ilgnet_preprocessing
from ..errors import IlgnetError
from ..formats.caffemodel import open_caffemodel
from ..formats.upgrade import upgrade_net
from ..graph.build import build_graph
from ..graph.crops import place_crops
from ..graph.feeds import DUMMY_NOTE, feed_dummies
from ..graph.fork_fields import drop_fields
from ..layers.base import Shape
from ..loading import read_matrices
from ..net import CaffeNet
from ..plan import plan_net
from ..weights import DRAW_SEED, count_parameters, fit_weights, take_weights
from .deviation import measure_deviation
from .find import Found, find_net
from .fold import fold
from .job import Job, Options, Source
from .replacing import check_replacing
from .report import ConversionReport, Written
from .targets import TARGETS, check_options, check_written
from .verify import Verification

PathLike = str | os.PathLike[str]
NAME_KEPT = 200  # characters of the name that the weights file gives its net


def convert(
    weights: PathLike,
    prototxt: PathLike | None = None,
    to: Sequence[str] = ("safetensors",),
    out: PathLike | None = None,
    *,
    phase: str = "TEST",
    verify: bool = False,
    preprocessing: Preprocessing | None = None,
    input_shapes: Mapping[str, Shape] | None = None,
    ignore_fields: Iterable[str] = (),
    crop: str | None = None,
    options: Options | None = None,
    pictures: Sequence[PathLike] = (),
    progress: Callable[[int], None] | None = None,
    allow_missing: Collection[str] = (),
) -> ConversionReport:
    """Convert a caffemodel to the formats ``to`` in the folder ``out`` (default: the weights' own).

    The prototxt is found as `find_net` says.  Files appear under their names only when all are written
    (and, with ``verify``, equal).  ``pictures`` are what reduced weights (``options.precision``) are measured
    on; without any, seeded inputs.  ``crop`` is as in `load_graph`; the offsets
    found are written into the net's text.  ``allow_missing`` is as in `load_net`.
    Raises IlgnetError, in one line, for anything wrong with the input.
    """
    source = Path(weights)
    check_options(to, options or Options())
    with ThreadPoolExecutor(1) as pool:
        # The digest takes as long as the writing, from the same pages: it starts first and is waited for last.
        digest = pool.submit(file_sha256, source)
        return _convert(
            source, prototxt, to, Path(out) if out is not None else source.parent, digest, phase=phase, verify=verify,
            preprocessing=preprocessing, input_shapes=dict(input_shapes or {}), ignore_fields=ignore_fields, crop=crop,
            options=options or Options(), pictures=pictures, progress=progress,
            allow_missing=allow_missing,
        )  # fmt: skip


def _convert(
    source: Path, prototxt: PathLike | None, to: Sequence[str], folder: Path, digest: Future[str], *, phase: str,
    verify: bool, preprocessing: Preprocessing | None, input_shapes: dict[str, Shape], ignore_fields: Iterable[str],
    crop: str | None, options: Options, pictures: Sequence[PathLike], progress: Callable[[int], None] | None,
    allow_missing: Collection[str],
) -> ConversionReport:  # fmt: skip
    model = open_caffemodel(source)
    notes: list[str] = []
    found = find_net(model, prototxt)
    net_text = drop_fields(upgrade_net(found.net, notes), ignore_fields)
    net_text = feed_dummies(
        place_crops(net_text, phase, crop=crop, notes=notes), input_shapes, phase, notes=notes
    )
    graph = build_graph(net_text, phase)
    plan = plan_net(graph, input_shapes)
    arrays = take_weights(
        plan.blobs,
        model.layers,
        source=str(source),
        owners=plan.owners,
        allow_missing=allow_missing,
        seed=DRAW_SEED,
    )
    _check_folder(folder, source, to)
    fit = fit_weights(plan.blobs, model.layers, plan.owners)
    notes += fit.notes
    for layer in plan.layers.values():
        if layer.idle_note:
            notes.append(f"{layer.node.name} ({layer.node.type}): {layer.idle_note}")
        if layer.has_state:
            notes.append(
                f"{layer.node.name} ({layer.node.type}): Caffe carries its state from pass to pass; what is written "
                "starts each pass from zeros (a safetensors file can be loaded with carry_state=True)"
            )
    for node in graph:
        if node.type == "DummyData":
            notes.append(f"{node.name} (DummyData): {DUMMY_NOTE}")
    unfolded = None
    if options.fold:
        unfolded = read_matrices(CaffeNet(plan, arrays))
        folded = fold(unfolded, net_text, arrays)
        net_text, graph, arrays = folded.net_text, folded.graph, folded.arrays
        plan = plan_net(graph, input_shapes)
        notes.append(
            f"{len(folded.folded)} layers folded into those before them, {len(folded.dropped)} dropped"
        )

    def known_source() -> Source:
        sha256 = digest.result()
        return Source(
            source.name, source.stat().st_size, sha256, known_release(sha256), model.name[:NAME_KEPT]
        )

    with _staging(folder, source.stem) as stage:
        job = Job(
            net_text=net_text, plan=plan, arrays=arrays,
            source=known_source,
            preprocessing=preprocessing or _known_preprocessing(found, source.stat().st_size, known_source),
            input_shapes=input_shapes, folder=stage, stem=source.stem, options=options, progress=progress,
            unfolded=unfolded,
        )  # fmt: skip
        written, checks = _write(job, to, verify, folder)
        if options.precision != "float32" and not job.reduced:
            notes.append(f"no dense weights to keep in {options.precision}: every blob is float32")
        deviations = measure_deviation(job, pictures) if job.reduced else ()
        check_replacing(sorted(stage.iterdir()), folder, [source, prototxt or found.origin, *pictures])
        for path in sorted(stage.iterdir()):
            os.replace(path, folder / path.name)
    return ConversionReport(
        source=known_source(), net=graph.name, prototxt=found.origin, phase=phase, layers=len(graph.layers),
        parameters=count_parameters(plan.blobs), outputs=graph.outputs,
        extra_layers=fit.extra, notes=tuple(notes), written=tuple(written),
        verified=tuple(checks), preprocessing=job.preprocessing.to_json() if job.preprocessing else None,
        deviations=deviations,
    )  # fmt: skip


def _check_folder(folder: Path, source: Path, to: Sequence[str]) -> None:
    if not folder.is_dir():
        raise IlgnetError(f"{folder}: is no folder; make it first, or give another with --out")
    if "caffemodel" in to and (folder / f"{source.stem}.caffemodel").resolve() == source.resolve():
        raise IlgnetError(f"{source}: would be written over itself; give another folder with --out")


def _write(
    job: Job, to: Sequence[str], verify: bool, folder: Path
) -> tuple[list[Written], list[Verification]]:
    written, checks = [], []
    for name in dict.fromkeys(to):
        started = time.perf_counter()
        paths = TARGETS[name](job)
        seconds = time.perf_counter() - started
        written += [Written(name, str(folder / path.name), path.stat().st_size, seconds) for path in paths]
        if verify:
            checks.append(check_written(name, job, paths))
            if checks[-1].differs:
                raise IlgnetError(
                    f"{paths[0].name}: output {checks[-1].blob!r} differs from the original's "
                    f"{checks[-1].how}; nothing was written; internal error; please report it"
                )
    return written, checks


def _known_preprocessing(found: Found, size: int, source: Callable[[], Source]) -> Preprocessing | None:
    """What is known of ILGNet; of other nets the prototxt says nothing, and nothing is assumed."""
    if found.built_in != "ilgnet":
        return None
    # Only a file of a released size can be a release: others need not wait for their digest.
    release = source().release if size in {r.size for r in releases()} else None
    return ilgnet_preprocessing(release.trained_on if release else None)


class _staging:
    """A hidden folder beside the results, gone when the block ends, however it ends."""

    def __init__(self, folder: Path, stem: str) -> None:
        try:
            self._path = Path(tempfile.mkdtemp(prefix=f".{stem}.", dir=folder))
        except OSError as error:
            raise IlgnetError(
                f"{folder}: cannot be written ({error.strerror}); give another with --out"
            ) from error

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
