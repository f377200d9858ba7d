"""Shapes of tops: four axes as Caffe's older layers give them, and lengths copied or inferred when the net runs.

Caffe's older accessors (`num()`, `channels()`, ...) treat a blob of fewer axes as if it had trailing axes of
length 1; a layer that shapes its top with them gives it four axes, num x channels x height x width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .base import Layer, OnnxGraph, Shape, integers

AXES = 4


def legacy_shape(shape: Shape) -> Shape:
    """Return num x channels x height x width for a blob of up to four axes."""
    return (*shape, *[1] * (AXES - len(shape)))


def with_four_axes(x: Tensor) -> Tensor:
    """Return ``x`` with trailing axes of length 1, four axes in all."""
    return x.reshape(legacy_shape(tuple(x.shape)))


def shape_of(graph: OnnxGraph, x: str) -> str:
    """Return a bottom's shape for a Reshape: stated where at most one length is open, as OpenCV 4 needs it."""
    lengths = graph.shape(x)
    if lengths.count(None) > 1 or 0 in lengths:
        return graph.node("Shape", [x])
    return graph.constant(integers(*(-1 if length is None else length for length in lengths)))


def onnx_with_four_axes(graph: OnnxGraph, value: str, rank: int) -> str:
    """Add the node for `with_four_axes` where ``rank`` is less than four."""
    if rank == AXES:
        return value
    return graph.node("Unsqueeze", [value, graph.constant(integers(*range(rank, AXES)))])


def four_axes_index(rank: int) -> str:
    """Return the Python index for `with_four_axes`: "[..., None, None]" for two axes, nothing for four."""
    return f"[..., {', '.join(['None'] * (AXES - rank))}]" if rank < AXES else ""


def shape_field(layer: Layer, field: str, count: int, default: int | None, *, least: int = 0) -> Shape:
    """Return a field of type BlobShape with one length per spatial axis, as NdConvolution and NdPooling have."""
    if not layer.param.HasField(field):
        if default is None:
            raise layer.error(f"{field} is missing; state one length per spatial axis")
        return (default,) * count
    lengths = tuple(getattr(layer.param, field).dim)
    if len(lengths) != count:
        raise layer.error(f"{field} {list(lengths)} has {len(lengths)} lengths for {count} spatial axes")
    if min(lengths) < least:
        raise layer.error(f"{field} {list(lengths)} must be at least {least}")
    return lengths


@dataclass(frozen=True)
class Kept:
    """A length copied from an axis of the bottom when the net runs."""

    axis: int


Length = int | Kept


def reshape_onnx(graph: OnnxGraph, value: str, lengths: Sequence[Length], like: str) -> str:
    """Add a Reshape of ``value``; copied lengths are those of ``like``, and -1 is inferred, as in ONNX."""
    known = graph.shape(like)
    stated: list[int] = []
    open_at: list[int] = []
    for position, length in enumerate(lengths):
        if not isinstance(length, Kept):
            stated.append(length)
        elif (fixed := known[length.axis]) is not None:
            stated.append(fixed)
        elif value == like and length.axis == position:
            stated.append(0)  # ONNX copies a length from the same axis
        else:
            stated.append(-1)
            open_at.append(position)
    if stated.count(-1) <= 1:
        return graph.node("Reshape", [value, graph.constant(integers(*stated))])
    parts = []
    for position, length in enumerate(lengths):
        if isinstance(length, Kept) and position in open_at:
            parts.append(graph.node("Shape", [like], start=length.axis, end=length.axis + 1))
        else:
            parts.append(graph.constant(integers(stated[position])))
    return graph.node("Reshape", [value, graph.node("Concat", parts, axis=0)])
