"""Lengths of a reshaped blob: stated, inferred, or those of another blob's axes when the net runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .base import OnnxGraph, integers


@dataclass(frozen=True)
class Kept:
    """A length that is copied from an axis of the bottom when the net runs."""

    axis: int


Length = int | Kept


def reshape_onnx(graph: OnnxGraph, value: str, lengths: Sequence[Length], like: str) -> str:
    """Add a Reshape of ``value``; kept lengths are those of ``like``, and -1 is inferred, as in ONNX."""
    known = graph.shape(like)
    stated: list[int] = []
    open_at: list[int] = []
    for position, length in enumerate(lengths):
        if not isinstance(length, Kept):
            stated.append(length)
        elif (fixed := known[length.axis]) is not None:
            stated.append(fixed)
        elif value == like and length.axis == position:
            stated.append(0)  # ONNX copies a length where the axis keeps its place
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
