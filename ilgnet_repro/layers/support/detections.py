"""ONNX nodes shared by the layers whose top is a list of detections."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .base import Attribute, OnnxGraph, integers, numbers


def node_writer(graph: OnnxGraph) -> Callable[..., str]:
    """Return a function that adds a node with one output; arrays among its inputs become constants."""

    def node(op: str, *inputs: str | np.ndarray, **attributes: Attribute) -> str:
        names = [graph.constant(x) if isinstance(x, np.ndarray) else x for x in inputs]
        return graph.node(op, names, **attributes)

    return node


def rows_or_blank(graph: OnnxGraph, found: str, images: str) -> str:
    """Add the detections (R×7) as 1×1×R×7; where there are none, a row of -1 for each image of a blob instead."""
    from onnx import TensorProto

    node = node_writer(graph)
    batch = node("Shape", images, start=0, end=1)
    numbered = node("Range", np.array(0), node("Squeeze", batch), np.array(1))
    first = node("Unsqueeze", node("Cast", numbered, to=TensorProto.FLOAT), integers(1))
    blank = node("Expand", numbers([-1] * 6)[None], node("Concat", batch, integers(6), axis=0))
    everything = node("Concat", found, node("Concat", first, blank, axis=1), axis=0)
    # By the classes, which blank rows have below 0: onnxslim 0.1.98 takes no length for 0 and would drop the choice.
    classes = node("Gather", everything, integers(1), axis=1)
    is_blank = node("Less", node("ReduceMax", classes, integers(0), keepdims=0), numbers([0]))
    length = node("Where", is_blank, batch, node("Shape", found, start=0, end=1))
    return node("Reshape", node("Slice", everything, integers(0), length, integers(0)), integers(1, 1, -1, 7))
