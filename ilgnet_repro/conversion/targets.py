"""The formats that `--to` names: one writer each, from a job to the files it wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..atomic import atomic_file
from ..errors import IlgnetError
from ..formats.caffemodel import open_caffemodel, write_caffemodel
from ..formats.prototxt import format_message
from ..net import CaffeNet
from ..weights import take_weights
from .drawn import SEED
from .job import MEAN_TENSOR, PENDING, Job, Options
from .load import load
from .precision import PRECISIONS
from .safetensors_file import write_safetensors
from .verify import Verification, compare, seeded_inputs

Writer = Callable[[Job], list[Path]]
Runner = Callable[[list[Path], Mapping[str, torch.Tensor], Job], Mapping[str, Any]]


def to_safetensors(job: Job) -> list[Path]:
    """``STEM.safetensors``: every blob, the net's text and the preprocessing; `ir.load` reads it."""
    path = job.folder / f"{job.stem}.safetensors"
    tensors = job.stored_tensors()
    if job.preprocessing is not None and job.preprocessing.mean_image is not None:
        tensors[MEAN_TENSOR] = job.preprocessing.mean_image
    write_safetensors(
        path, tensors, job.metadata(PENDING), late_metadata=job.metadata, progress=job.progress
    )  # fmt: skip
    return [path]


def to_caffemodel(job: Job) -> list[Path]:
    """``STEM.caffemodel``: as Caffe 1.0 writes it, whatever generation was read."""
    path = job.folder / f"{job.stem}.caffemodel"
    write_caffemodel(path, job.net_text, job.arrays)
    if not job.options.fold:
        return [path]
    text = job.folder / f"{job.stem}.prototxt"  # a folded net is another one than its prototxt says
    with atomic_file(text, "w") as file:
        file.write(format_message(job.net_text))
    return [path, text]


# Those below import what only they need (onnx takes a third of a second), and only when they are used.


def to_onnx(job: Job) -> list[Path]:
    """``STEM.onnx`` (export_onnx.py)."""
    from . import export_onnx

    return export_onnx.to_onnx(job)


def to_pt2(job: Job) -> list[Path]:
    """``STEM.pt2`` (export_pt2.py)."""
    from . import export_pt2

    return export_pt2.to_pt2(job)


def to_python(job: Job) -> list[Path]:
    """``STEM.py`` and ``STEM.weights.safetensors`` (export_python.py)."""
    from . import export_python

    return export_python.to_python(job)


TARGETS: dict[str, Writer] = {
    "safetensors": to_safetensors,
    "onnx": to_onnx,
    "pt2": to_pt2,
    "python": to_python,
    "caffemodel": to_caffemodel,
}

# Which formats can do what an option asks; those not listed refuse it.
_CAPABLE: dict[str, tuple[str, ...]] = {
    "--with-preprocessing": ("onnx",),
    "--fast-lrn": ("onnx",),
    "--dynamic-size": ("onnx", "pt2"),
    "--precision": ("safetensors", "onnx"),
}


def check_options(to: Sequence[str], options: Options) -> None:
    """Raise IlgnetError where a format is unknown or cannot do what the options ask of it."""
    unknown = [name for name in to if name not in TARGETS]
    if unknown:
        raise IlgnetError(f"format {unknown[0]!r} is unknown; use {', '.join(TARGETS)}")
    if options.precision not in PRECISIONS:
        raise IlgnetError(f"--precision {options.precision}: choose one of {', '.join(PRECISIONS)}")
    asked = {
        "--with-preprocessing": options.with_preprocessing,
        "--fast-lrn": options.fast_lrn,
        "--dynamic-size": options.dynamic_size,
        "--precision": options.precision != "float32",
    }
    for option, capable in _CAPABLE.items():
        unable = [name for name in to if name not in capable]
        if asked[option] and unable:
            raise IlgnetError(
                f"{option} is for {' and '.join(capable)} files, not {unable[0]}; convert that apart"
            )
    if options.with_preprocessing and options.dynamic_size:
        raise IlgnetError(
            "--dynamic-size: the preprocessing makes every picture one size; leave one of the two out"
        )


def check_written(name: str, job: Job, paths: list[Path]) -> Verification:
    """Run a written file and the original arrays on the same seeded inputs.

    Reduced weights are held against themselves, run by this package: how far they are from the original
    is a measurement (`measure_deviation`), not a check.
    """
    reference = job.stored_net if job.reduced else job.original
    inputs = given = seeded_inputs(reference)
    if job.options.with_preprocessing:
        from .export_onnx import prepared_inputs

        given, inputs = prepared_inputs(job, inputs)
    with torch.inference_mode():
        expected = reference(inputs)
        found = RUNNERS[name](paths, given, job)
    shown = ", ".join(f"{key} {'x'.join(map(str, value.shape))}" for key, value in given.items())
    return compare(paths[0], expected, found, f"seed {SEED}: {shown}")


def _run_safetensors(
    paths: list[Path], inputs: Mapping[str, torch.Tensor], job: Job
) -> Mapping[str, torch.Tensor]:
    return load(paths[0])(inputs)


def _run_caffemodel(
    paths: list[Path], inputs: Mapping[str, torch.Tensor], job: Job
) -> Mapping[str, torch.Tensor]:
    layers, plan = open_caffemodel(paths[0]).layers, job.plan
    arrays = take_weights(plan.blobs, layers, source=paths[0].name, owners=plan.owners)
    return CaffeNet(plan, arrays)(inputs)


def _run_onnx(paths: list[Path], inputs: Mapping[str, torch.Tensor], job: Job) -> Mapping[str, Any]:
    from .export_onnx import run_onnx

    return run_onnx(paths, inputs, job)


def _run_pt2(paths: list[Path], inputs: Mapping[str, torch.Tensor], job: Job) -> Mapping[str, Any]:
    from .export_pt2 import run_pt2

    return run_pt2(paths, inputs, job)


def _run_python(paths: list[Path], inputs: Mapping[str, torch.Tensor], job: Job) -> Mapping[str, Any]:
    from .export_python import run_python

    return run_python(paths, inputs, job)


# How a file of each format is run again, to be compared with the arrays it came from.
RUNNERS: dict[str, Runner] = {
    "safetensors": _run_safetensors,
    "onnx": _run_onnx,
    "pt2": _run_pt2,
    "python": _run_python,
    "caffemodel": _run_caffemodel,
}
