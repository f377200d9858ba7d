"""Values in memory that Caffe's layers share: what a layer in place wrote, read under another name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode
from .lengths import Kept, reshape_onnx


class _ValuesOf(torch.autograd.Function):
    """The first tensor's values with the second's place in the graph."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, through: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, Tensor]:
        return None, slopes[0]


def values_of(values: Tensor, through: Tensor) -> Tensor:
    """Return ``values``, whose gradient goes to ``through``: Caffe's backward pass knows nothing of the overwriting."""
    if torch.is_grad_enabled() and (values.requires_grad or through.requires_grad):
        return _ValuesOf.apply(values.detach(), through)
    return values


class SharedView(Layer):
    """A blob whose memory was written in place under another name: those values in the blob's own shape.

    The graph makes such nodes (graph/memory.py); no prototxt can name one.
    """

    bottom_count = (2, 2)

    def plan(self, written: Shape, blob: Shape) -> LayerPlan:
        return LayerPlan([blob])

    def forward(self, written: Tensor, blob: Tensor) -> tuple[Tensor]:
        return (values_of(written.reshape(blob.shape), blob),)

    def onnx(self, graph: OnnxGraph, written: str, blob: str) -> list[str]:
        return [reshape_onnx(graph, written, [*map(Kept, range(len(graph.shape(blob))))], blob)]

    def source(self, code: SourceCode, written: str, blob: str) -> list[str]:
        return [f"{written}.reshape({blob}.shape)"]
