"""Fillers: the initial values of a blob when no weights are given (Caffe's filler.hpp)."""

from __future__ import annotations

import os
from math import ceil, prod, sqrt
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from ...errors import ARITHMETIC, IlgnetError, reason_of
from ...schema import caffe_pb2 as pb
from .base import BlobSpec, Shape


class Error(Protocol):
    """What makes an error of a message, such as `Layer.error`."""

    def __call__(self, message: str, *, option: str = "") -> IlgnetError:
        """Return the error; ``option`` is the keyword that the message is about."""


def fill(spec: BlobSpec, generator: Generator, error: Error) -> Tensor:
    """Return a float32 tensor filled by ``spec``'s filler; no filler means zeros, as in Caffe.

    Raises ``error(message)`` for an unknown filler or one that does not apply to the shape.
    """
    if spec.values is not None:
        return torch.from_numpy(np.array(spec.values, np.float32))
    filler = spec.filler if spec.filler is not None else pb.FillerParameter()
    if spec.foreign:
        raise error(
            f"{spec.name} filler: field {spec.foreign} is unknown to Caffe and to this package; give weights, or ignore "
            f"it with ignore_fields=['{spec.foreign}'] if the initial values may differ",
            option="ignore_fields",
        )
    if filler.type not in _FILLERS:
        raise error(
            f"{spec.name} filler {filler.type!r} is unknown; use one of {', '.join(sorted(_FILLERS))}"
        )
    if filler.sparse != -1 and filler.type != "gaussian":
        raise error(f"{spec.name} filler: sparse goes with type gaussian only, not {filler.type}")
    # What Caffe checks before it draws; it also refuses std 0, which gives the mean.
    for is_right, what in (
        (filler.type != "uniform" or filler.min <= filler.max, f"min {filler.min:g} and max {filler.max:g}"),
        (filler.type != "gaussian" or filler.std >= 0, f"std {filler.std:g}"),
        (filler.sparse >= -1, f"sparse {filler.sparse}"),
    ):
        if not is_right:
            raise error(
                f"{spec.name} filler {filler.type}: {what} cannot be drawn from; correct the prototxt"
            )
    try:
        return _FILLERS[filler.type](filler, spec.shape, generator, error)
    except ARITHMETIC as fault:
        shape = f"a blob of shape {list(spec.shape)}"
        raise error(f"{spec.name} filler {filler.type} cannot fill {shape} ({reason_of(fault)})") from fault


def _constant(filler: pb.FillerParameter, shape: Shape, generator: Generator, error: Error) -> Tensor:
    return torch.full(shape, filler.value, dtype=torch.float32)


def _uniform(filler: pb.FillerParameter, shape: Shape, generator: Generator, error: Error) -> Tensor:
    return torch.empty(shape).uniform_(filler.min, filler.max, generator=generator)


def _gaussian(filler: pb.FillerParameter, shape: Shape, generator: Generator, error: Error) -> Tensor:
    values = torch.empty(shape).normal_(filler.mean, filler.std, generator=generator)
    if filler.sparse == -1:
        return values
    # Caffe keeps each value with probability sparse / (number of outputs): `sparse` non-zero inputs
    # for each output on average.
    keep = torch.empty(shape).bernoulli_(min(filler.sparse / shape[0], 1.0), generator=generator)
    return values * keep


def _fan(filler: pb.FillerParameter, shape: Shape) -> float:
    """Return the divisor of the variance; Caffe's fan_out is count / shape[1] for every type of layer."""
    count = prod(shape)
    fan_in = count / (shape[0] if shape else 1)
    fan_out = count / shape[1] if len(shape) > 1 else count
    if filler.variance_norm == pb.FillerParameter.AVERAGE:
        return (fan_in + fan_out) / 2
    return fan_out if filler.variance_norm == pb.FillerParameter.FAN_OUT else fan_in


def _xavier(filler: pb.FillerParameter, shape: Shape, generator: Generator, error: Error) -> Tensor:
    bound = sqrt(3 / _fan(filler, shape))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _msra(filler: pb.FillerParameter, shape: Shape, generator: Generator, error: Error) -> Tensor:
    return torch.empty(shape).normal_(0, sqrt(2 / _fan(filler, shape)), generator=generator)


def _positive_unitball(
    filler: pb.FillerParameter, shape: Shape, generator: Generator, error: Error
) -> Tensor:
    values = torch.empty(shape).uniform_(0, 1, generator=generator).reshape(shape[0] if shape else 1, -1)
    return (values / values.sum(dim=1, keepdim=True)).reshape(shape)


def _gaussian_unitball(
    filler: pb.FillerParameter, shape: Shape, generator: Generator, error: Error
) -> Tensor:
    """Rows of length 1, of any direction (happynear's fork)."""
    rows = torch.empty(shape).normal_(generator=generator).reshape(shape[0] if shape else 1, -1)
    return (rows / rows.square().sum(dim=1, keepdim=True).sqrt()).reshape(shape)


def _bilinear(filler: pb.FillerParameter, shape: Shape, generator: Generator, error: Error) -> Tensor:
    if len(shape) != 4 or shape[2] != shape[3]:
        raise error(f"bilinear filler needs a blob of 4 axes with a square window, not {list(shape)}")
    factor = ceil(shape[3] / 2)
    centre = (2 * factor - 1 - factor % 2) / (2 * factor)
    line = 1 - (torch.arange(shape[3], dtype=torch.float64) / factor - centre).abs()
    return (line[:, None] * line[None, :]).to(torch.float32).expand(shape).clone()


def draws(spec: BlobSpec) -> bool:
    """Whether ``spec``'s filler draws random numbers, or is unknown; no filler means zeros."""
    return spec.filler is not None and (
        spec.filler.type not in ("constant", "bilinear") or bool(spec.foreign)
    )


def machine_memory() -> int | None:
    """Return the bytes of the machine's memory, or None where the system does not report it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


_FILLERS = {
    "bilinear": _bilinear,
    "constant": _constant,
    "gaussian": _gaussian,
    "gaussian_unitball": _gaussian_unitball,
    "msra": _msra,
    "positive_unitball": _positive_unitball,
    "uniform": _uniform,
    "xavier": _xavier,
}
