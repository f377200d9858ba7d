"""`SharedView`: a blob in memory that Caffe shares, read after a layer in place wrote it under another name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode
from .shapes import Kept, reshape_onnx


class _ValuesOf(torch.autograd.Function):
    """Returns the first tensor's values; the gradient goes to the second."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, through: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def values_of(values: Tensor, through: Tensor) -> Tensor:
    """Return ``values`` with their gradient going to ``through``, as Caffe's backward pass ignores the overwriting."""
    if torch.is_grad_enabled() and (values.requires_grad or through.requires_grad):
        apply: Callable[[Tensor, Tensor], Tensor] = _ValuesOf.apply
        return apply(values.detach(), through)
    return values


class SharedView(Layer):
    """A blob whose memory was written in place under another name: those values in the blob's own shape.

    The graph adds these nodes (caffe/shared_memory.py); a prototxt cannot name one.
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
