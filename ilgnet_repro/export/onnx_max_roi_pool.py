"""MaxRoiPool in other operators, for opsets in which ONNX Runtime has none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from ..layers.support.base import Attribute, OnnxGraph, integers


def max_roi_pool_onnx(
    graph: OnnxGraph, x: str, rois: str, *, pooled_shape: Sequence[int], spatial_scale: float
) -> str:
    """Add what a MaxRoiPool node computes, one region at a time.

    A bin is a mask of rows and a mask of columns, and its maximum that of the unmasked values.
    """

    def node(op: str, *inputs: str, **attributes: Attribute) -> str:
        return graph.node(op, list(inputs), **attributes)

    def number(value: float) -> str:
        return graph.constant(np.array(value, np.float32))

    def axes(*values: int) -> str:
        return graph.constant(integers(*values))

    def corner(column: int) -> str:
        value = node("Mul", node("Gather", rois, axes(column), axis=1), number(spatial_scale))
        return node("Mul", node("Sign", value), node("Floor", node("Add", node("Abs", value), number(0.5))))

    masks = []
    for axis, count in enumerate(pooled_shape):  # rows, columns
        first, last = corner(2 - axis), corner(4 - axis)
        extent = node("Max", node("Add", node("Sub", last, first), number(1)), number(1))
        size = node("Div", extent, number(count))
        bins = np.arange(count, dtype=np.float32)
        start = node("Add", node("Floor", node("Mul", graph.constant(bins), size)), first)
        end = node("Add", node("Ceil", node("Mul", graph.constant(bins + 1), size)), first)
        length = node("Squeeze", node("Shape", x, start=2 + axis, end=3 + axis), axes(0))
        zero, one = graph.constant(np.array(0)), graph.constant(np.array(1))
        places = node("Cast", node("Range", zero, length, one), to=TensorProto.FLOAT)
        inside = [
            node("Not", node("Less", places, node("Unsqueeze", start, axes(2)))),
            node("Less", places, node("Unsqueeze", end, axes(2))),
        ]
        masks.append(node("Cast", node("And", *inside), to=TensorProto.FLOAT))  # regions, bins, places

    def step(image: str, rows: str, columns: str) -> list[str]:
        value = node("Gather", x, node("Cast", image, to=TensorProto.INT64))
        for axis, mask in ((1, rows), (2, columns)):  # C, H, W to C, bins, W to C, bins, bins
            spread = node("Unsqueeze", value, axes(axis))
            chosen = node(
                "Cast", node("Unsqueeze", mask, axes(2)) if axis == 1 else mask, to=TensorProto.BOOL
            )
            value = node("Where", chosen, spread, number(-np.inf))
            value = node("ReduceMax", value, axes(1 + axis), keepdims=0)
        return [node("Where", node("Equal", value, number(-np.inf)), number(0), value)]

    image = node("Squeeze", node("Gather", rois, axes(0), axis=1), axes(1))
    return graph.scan([], [image, *masks], step)[0]
