"""Resampling of rows and columns: each value of the result is a weighted sum of a few values of the bottom, its taps."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .base import OnnxGraph, numbers

# Positions in the bottom and their weights, each result × tap.
Taps = tuple[Tensor, Tensor]


def apply_taps(x: Tensor, axis: int, taps: tuple[Tensor, Tensor]) -> Tensor:
    """Return the weighted sums along one axis."""
    index, weight = taps[0].to(x.device), taps[1].to(x)
    shape = [-1, *[1] * (x.dim() - axis - 1)]
    total = x.index_select(axis, index[:, 0]) * weight[:, 0].reshape(shape)
    for k in range(1, index.shape[1]):
        total.addcmul_(x.index_select(axis, index[:, k]), weight[:, k].reshape(shape))
    return total


def taps_onnx(graph: OnnxGraph, x: str, axis: int, rank: int, taps: Taps) -> str:
    """Add `apply_taps` to a graph; taps whose weights are all 0 are left out."""
    index, weight = taps[0].numpy(), numbers(taps[1])
    total = ""
    for k in range(index.shape[1]):
        if not weight[:, k].any():
            continue
        part = graph.node("Gather", [x, graph.constant(np.ascontiguousarray(index[:, k]))], axis=axis)
        if (weight[:, k] != 1).any():
            shaped = np.ascontiguousarray(weight[:, k]).reshape(-1, *[1] * (rank - axis - 1))
            part = graph.node("Mul", [part, graph.constant(shaped)])
        total = graph.node("Add", [total, part]) if total else part
    return total
