"""The formats that `--to` names: one writer each, from a job to the files it wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..formats.caffemodel import open_caffemodel, write_caffemodel
from ..net import CaffeNet
from ..weights import take_weights
from .job import MEAN_TENSOR, PENDING, Job
from .load import load
from .safetensors_file import write_safetensors
from .verify import SEED, Verification, compare, seeded_inputs

Writer = Callable[[Job], list[Path]]


def to_safetensors(job: Job) -> list[Path]:
    """``STEM.safetensors``: every blob, the net's text and the preprocessing; `ir.load` reads it."""
    path = job.folder / f"{job.stem}.safetensors"
    arrays = job.named_arrays()
    if job.preprocessing is not None and job.preprocessing.mean_image is not None:
        arrays[MEAN_TENSOR] = job.preprocessing.mean_image
    write_safetensors(
        path, arrays, job.metadata(PENDING), late_metadata=job.metadata, progress=job.progress
    )  # fmt: skip
    return [path]


def to_caffemodel(job: Job) -> list[Path]:
    """``STEM.caffemodel``: as Caffe 1.0 writes it, whatever generation was read."""
    path = job.folder / f"{job.stem}.caffemodel"
    write_caffemodel(path, job.net_text, job.arrays)
    return [path]


TARGETS: dict[str, Writer] = {
    "safetensors": to_safetensors,
    "caffemodel": to_caffemodel,
}


def check_written(name: str, job: Job, paths: list[Path]) -> Verification:
    """Run a written file and the original arrays on the same seeded inputs."""
    inputs = seeded_inputs(job.net)
    with torch.inference_mode():
        expected = job.net(inputs)
        found = RUNNERS[name](paths, inputs, job)
    shown = ", ".join(f"{key} {'x'.join(map(str, value.shape))}" for key, value in inputs.items())
    return compare(paths[0], expected, found, f"seed {SEED}: {shown}")


def _run_safetensors(
    paths: list[Path], inputs: Mapping[str, torch.Tensor], job: Job
) -> Mapping[str, torch.Tensor]:
    return load(paths[0])(inputs)


def _run_caffemodel(
    paths: list[Path], inputs: Mapping[str, torch.Tensor], job: Job
) -> Mapping[str, torch.Tensor]:
    arrays = take_weights(job.specs, open_caffemodel(paths[0]).layers, source=paths[0].name)
    return CaffeNet(job.graph, arrays, input_shapes=job.input_shapes)(inputs)


# How a file of each format is run again, to be compared with the arrays it came from.
RUNNERS: dict[str, Callable[[list[Path], Mapping[str, torch.Tensor], Job], Mapping[str, torch.Tensor]]] = {
    "safetensors": _run_safetensors,
    "caffemodel": _run_caffemodel,
}
