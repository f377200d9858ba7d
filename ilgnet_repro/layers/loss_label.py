"""Losses with one label per image: MultinomialLogisticLoss and HingeLoss."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .loss import LOG_THRESHOLD, Loss
from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers
from .support.labels import check_labels, labels_onnx, normalized_sum_onnx
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def multinomial_logistic_loss(probabilities: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return the mean negative log probability of the labels; below the threshold the gradient is that at it."""
    p = probabilities.flatten(1).gather(1, labels.reshape(-1, 1).long())
    p = torch.where(p < threshold, threshold + (p - p.detach()), p)
    return -p.log().sum() / probabilities.shape[0]


def hinge_loss(x: Tensor, labels: Tensor, norm: str) -> Tensor:
    """Return the sum of hinge losses (of their squares for L2) over images: margin 1, one class against all others."""
    rows = x.flatten(1)
    sign = 1 - 2 * F.one_hot(labels.reshape(-1).long(), rows.shape[1]).to(x.dtype)
    margins = F.relu(1 + sign * rows)
    return (margins if norm == "L1" else margins.square()).sum() / x.shape[0]


# ---------------------------------------------------------------------- layers


class _ImageLoss(Loss):
    """Losses with one label per image; all values of an image are scores."""

    index_bottoms = (1,)

    def plan(self, x: Shape, labels: Shape) -> LayerPlan:
        self._check_first_axis(x, labels)
        if len(x) < 2 or prod(labels) != x[0]:
            raise self.error(f"needs scores N×C and one label per image, not {list(x)} and {list(labels)}")
        return LayerPlan([()])

    def _rows_onnx(self, graph: OnnxGraph, x: str, labels: str) -> tuple[str, str, str]:
        # All but the first axis are classes.
        return graph.node("Flatten", [x], axis=1), *labels_onnx(graph, labels, None)


@register_layer("MultinomialLogisticLoss")
class MultinomialLogisticLoss(_ImageLoss):
    """The mean negative log of the labels' probabilities."""

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
        check_labels(self, labels, prod(x.shape[1:]), None)
        return (multinomial_logistic_loss(x, labels, LOG_THRESHOLD),)

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        rows, labels, counts = self._rows_onnx(graph, x, labels)
        p = graph.node("GatherElements", [rows, labels], axis=1)
        p = graph.node("Max", [p, graph.constant(numbers(LOG_THRESHOLD))])
        losses = graph.node("Neg", [graph.node("Log", [p])])
        return [normalized_sum_onnx(graph, losses, counts, "FULL")]

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        return [f"{code.helper(multinomial_logistic_loss)}({x}, {labels}, {LOG_THRESHOLD!r})"]


@register_layer("HingeLoss")
class HingeLoss(_ImageLoss):
    """One-versus-all hinge loss, L1 or L2, mean over images."""

    message = "hinge_loss_param"
    fields = ("norm",)

    def setup(self, *ranks: int) -> None:
        self.norm = pb.HingeLossParameter.Norm.Name(self.param.norm)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
        check_labels(self, labels, prod(x.shape[1:]), None)
        return (hinge_loss(x, labels, self.norm),)

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        classes = prod(graph.size(x, axis) for axis in range(1, len(graph.shape(x))))
        rows, labels, counts = self._rows_onnx(graph, x, labels)
        flat = graph.node("Reshape", [labels, graph.constant(integers(-1))])
        signs = graph.constant(numbers([1, -1]))
        sign = graph.node("OneHot", [flat, graph.constant(integers(classes)), signs])
        margins = graph.node("Mul", [sign, rows])
        margins = graph.node("Relu", [graph.node("Add", [margins, graph.constant(numbers(1))])])
        if self.norm == "L2":
            margins = graph.node("Mul", [margins, margins])
        losses = graph.node("ReduceSum", [margins, graph.constant(integers(1))], keepdims=1)
        return [normalized_sum_onnx(graph, losses, counts, "FULL")]

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        return [f"{code.helper(hinge_loss)}({x}, {labels}, {self.norm!r})"]
