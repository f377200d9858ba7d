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
from .support.shapes import AXES

# ---------------------------------------------------------------------- torch, also for written source


def multinomial_logistic_loss(probabilities: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return the mean negative log probability of the labels; below the threshold the gradient is that at it."""
    rows = probabilities.reshape(probabilities.shape[0], -1)
    p = rows.gather(1, labels.flatten()[: rows.shape[0], None].long())
    p = torch.where(p < threshold, threshold + (p - p.detach()), p)
    return -p.log().sum() / probabilities.shape[0]


def hinge_loss(x: Tensor, labels: Tensor, norm: str) -> Tensor:
    """Return the sum of hinge losses (of their squares for L2) over images: margin 1, one class against all others."""
    rows = x.reshape(x.shape[0], -1)
    sign = 1 - 2 * F.one_hot(labels.flatten()[: rows.shape[0]].long(), rows.shape[1]).to(x.dtype)
    margins = F.relu(1 + sign * rows)
    return (margins if norm == "L1" else margins.square()).sum() / x.shape[0]


# ---------------------------------------------------------------------- layers


class _ImageLoss(Loss):
    """Losses with one label per image; all values of an image are scores.

    Labels beyond the number of images are not read, as in Caffe, which takes the first ones.
    """

    index_bottoms = (1,)

    def plan(self, x: Shape, labels: Shape) -> LayerPlan:
        self._check_first_axis(x, labels)
        for bottom in (x, labels):
            if len(bottom) > AXES:
                raise self.error(f"bottom {list(bottom)} has {len(bottom)} axes; it takes 1 to {AXES}")
        self._check_labels_shape(x, labels)
        return LayerPlan([()])

    def _check_labels_shape(self, x: Shape, labels: Shape) -> None:
        pass

    def _labels(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the labels that are read, after a check of their values."""
        labels = labels.flatten()[: x.shape[0]]
        check_labels(self, labels, prod(x.shape[1:]), None)
        return labels

    def _rows_onnx(self, graph: OnnxGraph, x: str, labels: str) -> tuple[str, str, str]:
        if any(length != 1 for length in graph.shape(labels)[1:]):
            ends = [graph.constant(integers(0)), graph.node("Shape", [x], start=0, end=1)]
            labels = graph.node(
                "Slice", [graph.node("Reshape", [labels, graph.constant(integers(-1))]), *ends]
            )
        # All but the first axis are classes.
        return graph.node("Flatten", [x], axis=1), *labels_onnx(graph, labels, None)


@register_layer("MultinomialLogisticLoss")
class MultinomialLogisticLoss(_ImageLoss):
    """The mean negative log of the labels' probabilities."""

    def _check_labels_shape(self, x: Shape, labels: Shape) -> None:
        if prod(labels) != x[0]:
            raise self.error(f"needs one label per image, not {list(labels)} for {list(x)}")

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
        return (multinomial_logistic_loss(x, self._labels(x, labels), LOG_THRESHOLD),)

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
        return (hinge_loss(x, self._labels(x, labels), self.norm),)

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
