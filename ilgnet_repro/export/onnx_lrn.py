"""LRN nodes written out: ONNX Runtime's own kernel takes half of GoogLeNet's time, a banded convolution a tenth.

The sum of squares over neighbouring channels, times alpha / size, plus the bias, is a 1×1 convolution of the
squares whose weights are a band about the diagonal; what is left for AlexNet's beta of 0.75 is two roots.
"""

from __future__ import annotations

import numpy as np

from ..layers.support.base import OnnxGraph, numbers


def write_out_lrn(graph: OnnxGraph, x: str, *, size: int, alpha: float, beta: float, bias: float) -> str:
    """Add the nodes that give an LRN node's result: a convolution and its neighbours."""
    channels = graph.size(x, 1)
    squares = graph.node("Mul", [x, x])
    scale = graph.node("Conv", [squares, *(graph.constant(a) for a in _band(channels, size, alpha, bias))])
    if beta != 0.75:
        power = graph.constant(numbers(-beta))
        return graph.node("Mul", [x, graph.node("Pow", [scale, power])])
    root = graph.node("Sqrt", [scale])
    return graph.node("Div", [x, graph.node("Mul", [root, graph.node("Sqrt", [root])])])


def _band(channels: int, size: int, alpha: float, bias: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights that sum ``size`` neighbouring channels, each times alpha / size, and the bias."""
    distance = np.abs(np.subtract.outer(np.arange(channels), np.arange(channels)))
    weights = np.where(distance <= size // 2, alpha / size, 0.0).astype(np.float32)
    return weights[:, :, None, None], np.full(channels, bias, np.float32)
