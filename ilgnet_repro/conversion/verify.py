"""Is the written file the net that was read?  Both run on the same seeded inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import IlgnetError
from ..layers.base import Shape
from ..net import CaffeNet

SEED = 7
BATCH = 2


@dataclass(frozen=True)
class Verification:
    """The largest difference between a written file's outputs and those of the original arrays."""

    file: str
    blob: str
    largest: float
    scale: float  # the largest absolute value of that output
    inputs: str

    @property
    def is_equal(self) -> bool:
        """Whether the difference is within what float32 sums in another order may give."""
        return self.largest <= 1e-5 + 1e-4 * self.scale


def seeded_inputs(net: CaffeNet, batch: int = BATCH) -> dict[str, torch.Tensor]:
    """Return pixel-like inputs for the net, drawn from a seed; labels are zeros.

    A net stated for one sample gets ``batch`` of them, unless it takes just one.
    """
    generator = torch.Generator().manual_seed(SEED)
    inputs = {}
    for name, shape in _batched(net, batch).items():
        if len(shape) == 4:
            inputs[name] = torch.empty(shape).uniform_(-120, 135, generator=generator)
        elif len(shape) >= 2:
            inputs[name] = torch.empty(shape).normal_(generator=generator)
        else:
            inputs[name] = torch.zeros(shape)
    return inputs


def _batched(net: CaffeNet, batch: int) -> dict[str, Shape]:
    own = {name: net.shapes[name] for name in net.inputs_for(net.outputs)}
    if any(shape[:1] != (1,) for shape in own.values()):
        return own
    more = {name: (batch, *shape[1:]) for name, shape in own.items()}
    try:
        net.blob_shapes(more)
    except IlgnetError:
        return own
    return more


def compare(
    file: Path,
    expected: Mapping[str, torch.Tensor],
    found: Mapping[str, np.ndarray | torch.Tensor],
    inputs: str,
) -> Verification:
    """Return the output that differs most."""
    worst = Verification(file.name, "", -1.0, 0.0, inputs)
    for blob, tensor in expected.items():
        wanted = tensor.detach().double().numpy()
        given = np.asarray(found[blob], dtype=np.float64)
        if given.shape != wanted.shape:
            return Verification(file.name, blob, float("inf"), 0.0, inputs)
        difference = float(np.abs(given - wanted).max(initial=0.0))
        if not np.isfinite(given).all() and np.isfinite(wanted).all():
            difference = float("inf")
        if difference > worst.largest:
            worst = Verification(file.name, blob, difference, float(np.abs(wanted).max(initial=0.0)), inputs)
    return worst
