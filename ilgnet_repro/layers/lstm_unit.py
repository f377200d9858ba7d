"""LSTMUnit: one step of an LSTM from gates that another layer computed, as unrolled nets state it."""

from __future__ import annotations

import torch
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers
from .support.detections import node_writer
from .support.registry import register_layer


def lstm_unit(cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """Return c = f c' + i g and h = o tanh(c), where f = cont · sigmoid; its gradient is by f (1 - f), as in Caffe."""
    raw_i, raw_f, raw_o, raw_g = gates.chunk(4, -1)
    f = (cont[..., None] * torch.sigmoid(raw_f)).detach()
    f = f + f * (1 - f) * (raw_f - raw_f.detach())
    cell = f * cell + torch.sigmoid(raw_i) * torch.tanh(raw_g)
    return cell, torch.sigmoid(raw_o) * torch.tanh(cell)


@register_layer("LSTMUnit")
class LSTMUnit(Layer):
    """Bottoms: the last cell 1×N×D, the gates i, f, o, g 1×N×4D before their functions, markers 1×N; tops: cell and hidden.

    Source: BVLC Caffe, src/caffe/layers/lstm_unit_layer.cpp.
    """

    bottom_count = (3, 3)
    top_count = (2, 2)

    def plan(self, cell: Shape, gates: Shape, cont: Shape) -> LayerPlan:
        if len(cell) != 3 or cell[0] != 1 or gates != (*cell[:2], 4 * cell[2]) or cont != cell[:2]:
            raise self.error(
                f"needs a cell 1×N×D, gates 1×N×4D and markers 1×N, not {list(cell)}, {list(gates)} and {list(cont)}"
            )
        return LayerPlan([cell, cell])

    def forward(self, cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        return lstm_unit(cell, gates, cont.detach())

    def source(self, code: SourceCode, cell: str, gates: str, cont: str) -> list[str]:
        call = f"{code.helper(lstm_unit)}({cell}, {gates}, {cont})"
        return [f"{call}[0]", f"{call}[1]"]

    def onnx(self, graph: OnnxGraph, cell: str, gates: str, cont: str) -> list[str]:
        node = node_writer(graph)
        parts = graph.nodes("Split", [gates], 4, axis=2, num_outputs=4)
        i, f, o = (node("Sigmoid", part) for part in parts[:3])
        f = node("Mul", f, node("Unsqueeze", cont, integers(2)))
        new = node("Add", node("Mul", f, cell), node("Mul", i, node("Tanh", parts[3])))
        return [new, node("Mul", o, node("Tanh", new))]
