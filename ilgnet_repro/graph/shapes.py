"""Shapes of every blob for given inputs; the rule of each layer type comes from the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from ..errors import LayerError
from .node import Graph, Node

Shape = tuple[int, ...]
ShapeRule = Callable[[Node, list[Shape]], Sequence[Shape]]

# Caffe counts a blob's elements in a signed 32-bit integer and refuses more.
LARGEST_BLOB = 2**31 - 1


def infer_shapes(graph: Graph, rule: ShapeRule) -> dict[str, Shape]:
    """Return the shape of every value of ``graph``; ``rule`` gives a node's tops for its bottoms' shapes.

    Raises LayerError where a layer's rule yields an empty dimension or a blob over Caffe's size limit.
    """
    shapes: dict[str, Shape] = {}
    for node in graph:
        tops = rule(node, [shapes[bottom] for bottom in node.bottoms])
        for value, shape in zip(node.tops, tops, strict=False):
            if any(size < 0 for size in shape):
                raise LayerError(node.name, node.type, f"top {value!r} would have shape {list(shape)}")
            if prod(shape) > LARGEST_BLOB:
                raise LayerError(
                    node.name,
                    node.type,
                    f"top {value!r} would hold {prod(shape):,} values, more than Caffe's limit of {LARGEST_BLOB:,}",
                )
            shapes[value] = tuple(shape)
    return shapes
