"""What reduced weights cost: the outputs of both nets on the same pictures, laid side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import IlgnetError
from ..layers.base import Shape
from .job import Job
from .verify import SEED, seeded_inputs

SEEDED_BATCH = 8


@dataclass(frozen=True)
class Deviation:
    """How far an output of the reduced net is from the float32 net's.

    ``changed`` counts the rows whose largest value stands elsewhere: another class is the answer.
    """

    precision: str
    blob: str
    largest: float
    mean: float
    scale: float  # the largest absolute value of the float32 net's output
    rows: int
    changed: int
    inputs: str


def measure_deviation(job: Job, pictures: Sequence[str | os.PathLike[str]] = ()) -> tuple[Deviation, ...]:
    """Run the net with its original and with its reduced weights, and compare every output.

    ``pictures`` go through the net's preprocessing one at a time; without any the inputs are seeded.
    Raises IlgnetError where pictures are given and no preprocessing is known.
    """
    batches, shown = _inputs(job, pictures)
    wanted: dict[str, list[np.ndarray]] = {}
    found: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode():
        for inputs in batches:
            for net, results in ((job.original, wanted), (job.stored_net, found)):
                for blob, value in net(inputs).items():
                    results.setdefault(blob, []).append(value.numpy())
    return tuple(
        _deviation(job.options.precision, blob, np.concatenate(rows), np.concatenate(found[blob]), shown)
        for blob, rows in wanted.items()
    )


def _inputs(
    job: Job, pictures: Sequence[str | os.PathLike[str]]
) -> tuple[list[dict[str, torch.Tensor]], str]:
    net = job.original
    if not pictures:
        inputs = seeded_inputs(net, SEEDED_BATCH)
        return [inputs], f"seed {SEED}, not pictures"
    if job.preprocessing is None:
        raise IlgnetError(
            f"net {net.graph.name!r}: pictures cannot be prepared, its preprocessing is unknown; "
            "state it with --mean-value and the like"
        )
    shapes: dict[str, Shape] = {name: net.shapes[name] for name in net.inputs_for(net.outputs)}
    wanted = (3, *job.preprocessing.size)
    if [shape[1:] for shape in shapes.values()] != [wanted]:
        raise IlgnetError(
            f"net {net.graph.name!r}: takes more than a picture of {wanted}; leave --pictures out"
        )
    (blob,) = shapes
    batches = [{blob: torch.from_numpy(job.preprocessing(picture)[None].copy())} for picture in pictures]
    return batches, f"{len(pictures)} picture{'s' if len(pictures) != 1 else ''}"


def _deviation(precision: str, blob: str, wanted: np.ndarray, found: np.ndarray, shown: str) -> Deviation:
    difference = np.abs(found.astype(np.float64) - wanted)
    rows = wanted.reshape(len(wanted), -1) if wanted.ndim else wanted.reshape(1, 1)
    others = found.reshape(rows.shape)
    return Deviation(
        precision=precision,
        blob=blob,
        largest=float(difference.max(initial=0.0)),
        mean=float(difference.mean()) if difference.size else 0.0,
        scale=float(np.abs(wanted).max(initial=0.0)),
        rows=len(rows),
        changed=int((rows.argmax(1) != others.argmax(1)).sum()) if rows.shape[1] > 1 else 0,
        inputs=shown,
    )
