"""LRN nodes written out: ONNX Runtime's own kernel takes half of ILGNet's time, a banded convolution a tenth.

The sum of squares over neighbouring channels, times alpha / size, plus the bias, is a 1×1 convolution of the
squares whose weights are a band about the diagonal; what is left for AlexNet's beta of 0.75 is two roots.
"""

from __future__ import annotations

import numpy as np
import onnx

from .onnx_writer import OnnxWriter


def write_out_lrn(writer: OnnxWriter) -> None:
    """Replace every LRN node of a finished walk by a convolution and its neighbours, same output name."""
    nodes, writer.graph_nodes = writer.graph_nodes, []
    for node in nodes:
        if node.op_type != "LRN":
            writer.graph_nodes.append(node)
            continue
        values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        result = _written_out(writer, node.input[0], **values)
        for added in writer.graph_nodes:
            if result in added.output:
                added.output[0] = node.output[0]


def _written_out(writer: OnnxWriter, x: str, *, size: int, alpha: float, beta: float, bias: float) -> str:
    channels = writer.size(x, 1)
    squares = writer.node("Mul", [x, x])
    scale = writer.node("Conv", [squares, *(writer.constant(a) for a in _band(channels, size, alpha, bias))])
    if beta != 0.75:
        power = writer.constant(np.float32(-beta))
        return writer.node("Mul", [x, writer.node("Pow", [scale, power])])
    root = writer.node("Sqrt", [scale])
    return writer.node("Div", [x, writer.node("Mul", [root, writer.node("Sqrt", [root])])])


def _band(channels: int, size: int, alpha: float, bias: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights that sum ``size`` neighbouring channels, each times alpha / size, and the bias."""
    distance = np.abs(np.subtract.outer(np.arange(channels), np.arange(channels)))
    weights = np.where(distance <= size // 2, alpha / size, 0.0).astype(np.float32)
    return weights[:, :, None, None], np.full(channels, bias, np.float32)
