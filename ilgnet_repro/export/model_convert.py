"""`convert` of models that are no Caffe nets: the same files, checks and report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import IlgnetError
from ..files import staged_results
from ..runtime.load import load
from ..runtime.model import Model
from ..runtime.modes import as_loaded
from ..runtime.seeded_inputs import SEED
from .formats import Format
from .model_formats import Writer, find_writer
from .onnx_preprocess import IMAGE_INPUT
from .publish import check_replacing, create_folder, publish
from .report import ConversionReport, Written
from .saving import Options, Progress
from .verify import BATCH, Verification, compare, compare_in_consumer, show_inputs


def convert_model(
    model: Model, source: Path, formats: Sequence[Format], options: Options, folder: Path, stem: str, *,
    verify: bool, consumers: Sequence[str], progress: Progress = None,
) -> ConversionReport:  # fmt: skip
    """Write a model in every format, all files or none; see `convert`."""
    writers = [(format_, find_writer(model, format_.name, options)) for format_ in formats]
    results = "+".join([stem, *sorted(one.name for one in formats)])
    with create_folder(folder), staged_results(folder, results, option="out") as stage, as_loaded(model):
        written: list[Written] = []
        checks: list[Verification] = []
        files: list[Path] = []
        for format_, write in writers:
            paths, one = _write(format_, write, stage, folder, stem, progress)
            written += one
            files += paths
            if verify:
                checks += _verify(model, options, format_, paths[0], consumers)
        check_replacing(files, folder, [source])
        publish(files, folder)
    about = model.about
    layers = [one for one in model.modules() if not any(True for _ in one.children())]
    return ConversionReport(
        source=about.source, net=model.name, prototxt="", phase="TEST", layers=len(layers),
        parameters=sum(one.numel() for one in model.parameters()), outputs=model.outputs, extra_layers=(),
        notes=(*about.notes, *about.random_notes), written=tuple(written), verified=tuple(checks),
        preprocessing=about.preprocessing.to_json() if about.preprocessing else None,
    )  # fmt: skip


def _write(
    format_: Format, write: Writer, stage: Path, folder: Path, stem: str, progress: Progress
) -> tuple[list[Path], list[Written]]:
    started = time.perf_counter()
    paths = write(format_.path(stage, stem), progress)
    seconds = time.perf_counter() - started
    return paths, [
        Written(format_.name, str(folder / path.name), path.stat().st_size, seconds) for path in paths
    ]


def _verify(
    model: Model, options: Options, format_: Format, path: Path, consumers: Sequence[str]
) -> list[Verification]:
    """Run the written file, and in ONNX's case the consumers, on the same seeded inputs as the model."""
    given, inputs = _seeded(model, options, format_.name)
    with torch.inference_mode():
        expected = model(inputs)
        found = load(path)(given)
    checks = [compare(path, expected, found, f"seed {SEED}: {show_inputs(given)}")]
    if checks[0].differs:
        raise IlgnetError(
            f"{path.name}: output {checks[0].blob!r} differs from the original's {checks[0].how}; nothing was written; "
            "internal error; please report it"
        )
    if format_.name == "onnx":
        checks += [compare_in_consumer(name, path, given, expected) for name in consumers]
    return checks


def _seeded(model: Model, options: Options, format_: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return seeded inputs of the file, and the same inputs as the model takes them."""
    random, rows = np.random.default_rng(SEED), options.batch or BATCH
    how = model.about.preprocessing
    if options.with_preprocessing and format_ == "onnx" and how is not None:
        images = random.integers(0, 256, (rows, *how.size, 3), dtype=np.uint8)
        ordered = images if options.input_order == "BGR" else images[..., ::-1]
        made = np.stack([how(np.ascontiguousarray(image)) for image in ordered])
        return {IMAGE_INPUT: torch.from_numpy(images)}, {model.input_name: torch.from_numpy(made)}
    values = torch.from_numpy(random.standard_normal((rows, *model.row), np.float32))
    return {model.input_name: values}, {model.input_name: values}
