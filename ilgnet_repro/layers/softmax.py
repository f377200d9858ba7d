"""Softmax over one axis."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .base import Layer, OnnxGraph, Shape, SourceCode
from .registry import register


@register("Softmax")
class Softmax(Layer):
    """exp(x) over its sum along `axis` (the channels unless told otherwise)."""

    message = "softmax_param"
    fields = ("axis",)

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        self.dim = self.axis(self.param.axis, len(bottoms[0]))
        return list(bottoms)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (F.softmax(bottoms[0], self.dim),)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        return [graph.node("Softmax", bottoms, axis=self.dim)]

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        return [f"F.softmax({bottoms[0]}, dim={self.dim})"]
