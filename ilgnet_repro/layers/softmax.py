"""Softmax over one axis."""

from __future__ import annotations

import torch
from torch import Tensor

from .support.base import Layer, OnnxGraph, SourceCode
from .support.registry import register_layer


@register_layer("Softmax")
class Softmax(Layer):
    """exp(x) over its sum along `axis` (the channels unless told otherwise)."""

    message = "softmax_param"
    in_place = True
    fields = ("axis",)

    def setup(self, rank: int) -> None:
        self.dim = self.axis(self.param.axis, rank)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.softmax(x, self.dim),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Softmax", [x], axis=self.dim)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"F.softmax({x}, dim={self.dim})"]
