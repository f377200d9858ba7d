"""Four axes for tops that layers shape num x channels x height x width, whatever their bottom has.

Caffe's old accessors (`num()`, `channels()`, ...) read a blob of fewer axes as one with ones at the end, and a
layer that shapes its top by them gives it four axes.
"""

from __future__ import annotations

from torch import Tensor

from .base import OnnxGraph, Shape, integers

AXES = 4


def legacy_shape(shape: Shape) -> Shape:
    """Return num x channels x height x width of a blob of up to four axes."""
    return (*shape, *[1] * (AXES - len(shape)))


def with_four_axes(x: Tensor) -> Tensor:
    """Add axes of length 1 at the end."""
    return x.reshape(legacy_shape(tuple(x.shape)))


def onnx_with_four_axes(graph: OnnxGraph, value: str, rank: int) -> str:
    """Add the node that does so, where ``rank`` is less than four."""
    if rank == AXES:
        return value
    return graph.node("Unsqueeze", [value, graph.constant(integers(*range(rank, AXES)))])


def four_axes_index(rank: int) -> str:
    """Return the Python index that does so: "[..., None, None]" for two axes, nothing for four."""
    return f"[..., {', '.join(['None'] * (AXES - rank))}]" if rank < AXES else ""
