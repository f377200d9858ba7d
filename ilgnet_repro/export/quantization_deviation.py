"""What quantized weights cost: the outputs of both nets on the same images, compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import IlgnetError
from ..layers.support.base import Shape
from ..runtime.difference import Difference, differ
from ..runtime.seeded_inputs import SEED
from .saving import Saving
from .verify import seeded_inputs

SEEDED_BATCH = 8


@dataclass(frozen=True)
class Deviation:
    """The difference of an output of the quantized net from that of the float32 net.

    ``changed`` counts the rows whose argmax changed.  ``largest`` and
    ``mean`` are None where nothing could be compared; ``not_compared`` gives the reason, or which values were not.
    """

    precision: str
    blob: str
    largest: float | None
    mean: float | None
    scale: float  # the largest absolute value of the float32 net's output
    rows: int
    changed: int
    inputs: str
    not_compared: str = ""


def measure_deviation(
    saving: Saving, precision: str, images: Sequence[str | os.PathLike[str]] = ()
) -> tuple[Deviation, ...]:
    """Run the net with its original and with its quantized weights, and compare every output.

    ``images`` are prepared by the net's preprocessing, one at a time; the default is seeded inputs.
    Raises IlgnetError where images are given and no preprocessing is known.
    """
    batches, shown = _inputs(saving, images)
    tallies: dict[str, _Tally] = {}
    with torch.inference_mode():
        for inputs in batches:
            wanted, found = saving.original(inputs), saving.net(inputs)
            for blob, value in wanted.items():
                tallies.setdefault(blob, _Tally()).add(value.numpy(), found[blob].numpy())
    return tuple(tally.deviation(precision, blob, shown) for blob, tally in tallies.items())


def _inputs(
    saving: Saving, images: Sequence[str | os.PathLike[str]]
) -> tuple[list[dict[str, torch.Tensor]], str]:
    net, how = saving.original, saving.about.preprocessing
    if not images:
        inputs = seeded_inputs(net, SEEDED_BATCH)
        return [inputs], f"seed {SEED}, not images"
    if how is None:
        raise IlgnetError(
            f"net {net.graph.name!r}: images cannot be prepared, its preprocessing is unknown; "
            "state it as preprocessing=",
            option="preprocessing",
        )
    shapes: dict[str, Shape] = {name: net.shapes[name] for name in net.inputs_for(net.outputs)}
    wanted = (3, *how.size)
    if [shape[1:] for shape in shapes.values()] != [wanted]:
        raise IlgnetError(
            f"net {net.graph.name!r}: takes more than an image of {wanted}; leave images= out",
            option="images",
        )
    (blob,) = shapes
    batches = [{blob: torch.from_numpy(how(image)[None].copy())} for image in images]
    return batches, f"{len(images)} image{'s' if len(images) != 1 else ''}"


class _Tally:
    """Accumulates the differences of one output over batches."""

    def __init__(self) -> None:
        self._differences: list[Difference] = []
        self._rows = self._changed = 0

    def add(self, wanted: np.ndarray, found: np.ndarray) -> None:
        """Add a batch; its number of rows may depend on values, and so on the weights."""
        self._differences.append(differ(wanted, found))
        per_row = (len(wanted), -1) if wanted.ndim and wanted.size else (wanted.size, 1)
        rows = wanted.reshape(per_row)
        self._rows += len(rows)
        if wanted.shape != found.shape:
            self._changed += len(rows)
        elif rows.shape[1] > 1:
            self._changed += int((rows.argmax(1) != found.reshape(rows.shape).argmax(1)).sum())

    def deviation(self, precision: str, blob: str, inputs: str) -> Deviation:
        values, compared = (
            sum(getattr(one, name) for one in self._differences) for name in ("values", "compared")
        )
        largest = max(one.largest for one in self._differences)
        apart = sum(one.mean * one.compared for one in self._differences if one.compared)
        mean = np.inf if np.isinf(largest) else apart / max(compared, 1)
        whole = Difference(largest, mean, max(one.scale for one in self._differences), values, compared)
        return Deviation(
            precision=precision, blob=blob, largest=largest if whole.is_compared else None,
            mean=mean if whole.is_compared else None, scale=whole.scale, rows=self._rows, changed=self._changed,
            inputs=inputs, not_compared=whole.left_out,
        )  # fmt: skip
