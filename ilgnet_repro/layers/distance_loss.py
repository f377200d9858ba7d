"""Losses over the distances of each row to every class: GeneralContrastiveLoss and GeneralTripletLoss (NormFace)."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .loss import Loss
from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers, uses
from .support.detections import node_writer
from .support.labels import check_labels
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def own_class(distances: Tensor, labels: Tensor) -> Tensor:
    """Return whether each distance is the one to the row's own class."""
    return F.one_hot(labels.detach().reshape(-1).long(), distances.shape[1]) == 1


def mean_loss(losses: Tensor, slopes: Tensor, distances: Tensor) -> Tensor:
    """Return the sum of absolute losses over the number of rows, with these slopes as its gradient."""
    linear = (slopes.detach() * distances).sum()
    return (losses.detach().abs().sum() + linear - linear.detach()) / distances.shape[0]


def mean_distances(own: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Return the mean of values at the own class and that at the others."""
    rows, classes = own.shape
    sums = torch.stack([torch.where(own, near, 0).sum(), torch.where(own, 0, far).sum() / (classes - 1)])
    return sums.detach() / rows


def general_contrastive_loss(
    distances: Tensor, labels: Tensor, margins: tuple[float, float], weights: tuple[float, float],
    most: float, bound: float | None, hardest: bool, exponential: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the loss, and the mean excess of own distances and shortfall of others."""
    x = distances.detach().flatten(1)
    own = own_class(x, labels)
    excess, shortfall = (x - margins[0]).clamp(0, most), F.relu(margins[1] - x)
    other = torch.where(x < margins[1], (-x).exp(), 0) if exponential else shortfall
    losses = torch.where(own, excess * weights[0], other * weights[1])
    slope = -(-x).exp() * weights[1] if exponential else torch.full_like(x, -weights[1])
    slopes = torch.where(x < margins[1], slope, 0)
    counts = torch.ones_like(own)
    if hardest:  # the fork starts from column 0, even where that is the own class
        rivals = torch.where(own & (torch.arange(x.shape[1], device=x.device) > 0), -torch.inf, losses)
        counts = F.one_hot(rivals.argmax(1), x.shape[1]) == 1
    near = torch.where((x > margins[0]) & (x < most), weights[0], 0.0)
    if bound is not None:
        far = torch.where(own, x, 0).sum(1, keepdim=True) > bound
        counts, near = counts & ~far, torch.where(far, weights[0], near)
    losses, slopes = (torch.where(own | counts, values, 0) for values in (losses, slopes))
    loss = mean_loss(losses, torch.where(own, near, slopes), distances.flatten(1))
    return loss, mean_distances(own, excess, shortfall)


def general_triplet_loss(
    distances: Tensor, labels: Tensor, margin: float, weights: tuple[float, float],
    bound: float | None, hardest: bool, always: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the loss, and the mean distances to the own class and to others."""
    x = distances.detach().flatten(1)
    own = own_class(x, labels)
    same = torch.where(own, x, 0).sum(1, keepdim=True)
    losses = torch.where(own, 0, F.relu(same + margin - x) * weights[1])
    counts = ~own & (same + margin > x)
    if hardest:
        counts = counts & (losses > 0) & (F.one_hot(losses.argmax(1), x.shape[1]) == 1)
        losses = torch.where(counts, losses, 0)
    pulls = counts.any(1, keepdim=True) | always
    slopes = torch.where(counts, -weights[1], 0.0)
    if hardest:  # the fork leaves the loss itself where the distance is 0
        slopes = torch.where(counts & (x == 0), losses, slopes)
        pulls = (counts & (x != 0)).any(1, keepdim=True) | always
    if bound is not None:
        far = same > bound
        losses, slopes, pulls = torch.where(far, 0, losses), torch.where(far, 0, slopes), pulls | far
    loss = mean_loss(losses, torch.where(own & pulls, weights[0], slopes), distances.flatten(1))
    return loss, mean_distances(own, x, x)


uses(general_contrastive_loss, own_class, mean_loss, mean_distances)
uses(general_triplet_loss, own_class, mean_loss, mean_distances)

# ---------------------------------------------------------------------- layers


class _DistanceLoss(Loss):
    """Bottoms: distances N×classes and labels; tops: the loss, and two mean distances, which have no gradient."""

    index_bottoms = (1,)
    top_count = (1, 2)

    def setup(self, *ranks: int) -> None:
        self.weights: tuple[float, float] = (self.param.positive_weight, self.param.negative_weight)
        if min(self.weights) < 0:
            raise self.error(
                f"positive_weight {self.weights[0]:g} and negative_weight {self.weights[1]:g} must be 0 or over"
            )
        self.bound: float | None = self.param.positive_upper_bound if self.param.positive_first else None

    def plan(self, distances: Shape, labels: Shape) -> LayerPlan:
        if len(distances) < 2 or prod(distances[1:]) < 2:
            raise self.error(f"distances {list(distances)} must be N×classes, of 2 classes or more")
        if prod(labels) != distances[0]:
            raise self.error(
                f"has {prod(labels)} labels {list(labels)} for {distances[0]} rows; give one per row"
            )
        return LayerPlan([(), (2,)][: max(len(self.node.tops), 1)])

    def _source_of(self, call: str) -> list[str]:
        return [f"{call}[0]", f"{call}[1]"][: max(len(self.node.tops), 1)]

    def _rows_onnx(self, graph: OnnxGraph, distances: str, labels: str) -> tuple[str, str, str]:
        """Add the distances as rows, whether each is the own class's, and that distance."""
        from onnx import TensorProto

        node = node_writer(graph)
        x = node("Flatten", distances, axis=1)
        column = node("Cast", node("Reshape", labels, integers(-1, 1)), to=TensorProto.INT64)
        own = node("Equal", column, integers(*range(prod(self._classes(graph, distances)))))
        same = node("ReduceSum", node("Where", own, x, numbers(0.0)), integers(1), keepdims=1)
        return x, own, same

    @staticmethod
    def _classes(graph: OnnxGraph, distances: str) -> list[int]:
        return [graph.size(distances, axis) for axis in range(1, len(graph.shape(distances)))]

    def _tops_onnx(
        self, graph: OnnxGraph, losses: str, own: str, near: str, far: str, classes: int
    ) -> list[str]:
        node = node_writer(graph)

        def mean(values: str, count: int = 1) -> str:
            total = node("ReduceSum", values, integers(1), keepdims=0)
            return node("Div", node("ReduceMean", total, integers(0), keepdims=0), numbers(float(count)))

        tops = [mean(losses)]
        if len(self.node.tops) == 2:
            zero = numbers(0.0)
            means = [mean(node("Where", own, near, zero)), mean(node("Where", own, zero, far), classes - 1)]
            tops.append(node("Concat", *(node("Reshape", value, integers(1)) for value in means), axis=0))
        return tops


@register_layer("GeneralContrastiveLoss")
class GeneralContrastiveLoss(_DistanceLoss):
    """Distances to the own class beyond ``positive_margin`` and to others short of ``negative_margin``, weighted.

    The former are limited to ``positive_outlier_thresh``, and have no gradient from there.  ``exp_negative_weight``: exp(-x)
    in place of the shortfall; ``max_negative_only``: of the others the one that is nearest; ``positive_first``: none of
    the others for a row whose own distance is over ``positive_upper_bound``.
    Source: happynear/caffe-windows, branch ms, general_contrastive_loss_layer.cpp, the last of three versions.
    """

    message = "general_contrastive_loss_param"
    fields = (
        *(
            "positive_margin",
            "negative_margin",
            "positive_weight",
            "negative_weight",
            "positive_outlier_thresh",
        ),
        *("max_negative_only", "positive_first", "positive_upper_bound", "exp_negative_weight"),
        *("square", "max_positive_only", "add_intra_mae", "max_negative_margin"),
    )

    def setup(self, *ranks: int) -> None:
        super().setup(*ranks)
        for name in ("square", "max_positive_only", "add_intra_mae"):
            if getattr(self.param, name):
                raise self.error(f"{name}: true is not supported; use false")
        self.margins: tuple[float, float] = (self.param.positive_margin, self.param.negative_margin)
        if len(self.node.tops) < 2 and not {field.name for field, _ in self.param.ListFields()} - {
            "positive_margin",
            "negative_margin",
        }:
            raise self.error(
                "two versions of happynear's layer fit this text: the first divides by all distances, the last by the "
                "rows; state negative_weight: 1 for the last"
            )
        self.note = "happynear's last version, which limits own distances to positive_outlier_thresh"

    def forward(self, distances: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        check_labels(self, labels, prod(distances.shape[1:]), None)
        param = self.param
        tops = general_contrastive_loss(
            distances, labels, self.margins, self.weights, param.positive_outlier_thresh, self.bound,
            param.max_negative_only, param.exp_negative_weight,
        )  # fmt: skip
        return tops[: max(len(self.node.tops), 1)]

    def onnx(self, graph: OnnxGraph, distances: str, labels: str) -> list[str]:
        node = node_writer(graph)
        x, own, same = self._rows_onnx(graph, distances, labels)
        classes, zero = prod(self._classes(graph, distances)), numbers(0.0)
        most = numbers(float(self.param.positive_outlier_thresh))
        excess = node("Clip", node("Sub", x, numbers(self.margins[0])), zero, most)
        shortfall = node("Relu", node("Sub", numbers(self.margins[1]), x))
        other = shortfall
        if self.param.exp_negative_weight:
            other = node(
                "Where", node("Less", x, numbers(self.margins[1])), node("Exp", node("Neg", x)), zero
            )
        weighed = [
            node("Mul", values, numbers(weight))
            for values, weight in zip((excess, other), self.weights, strict=True)
        ]
        losses = node("Where", own, *weighed)
        if self.param.max_negative_only:
            later = node("And", own, np.arange(classes) > 0)
            rivals = node("Where", later, numbers(float("-inf")), losses)
            best = node("ArgMax", rivals, axis=1, keepdims=1)
            hardest = node("Equal", best, integers(*range(classes)))
            losses = node("Where", node("Or", own, hardest), losses, zero)
        if self.bound is not None:
            far = node("And", node("Greater", same, numbers(self.bound)), node("Not", own))
            losses = node("Where", far, zero, losses)
        return self._tops_onnx(graph, losses, own, excess, shortfall, classes)

    def source(self, code: SourceCode, distances: str, labels: str) -> list[str]:
        bound = None if self.bound is None else literal(self.bound)
        hardest, exponential = self.param.max_negative_only, self.param.exp_negative_weight
        values = (
            f"{_pair(self.margins)}, {_pair(self.weights)}, {literal(self.param.positive_outlier_thresh)}, "
        )
        values += f"{bound}, {hardest}, {exponential}"
        return self._source_of(f"{code.helper(general_contrastive_loss)}({distances}, {labels}, {values})")


@register_layer("GeneralTripletLoss")
class GeneralTripletLoss(_DistanceLoss):
    """How far each other class is nearer than the own one plus ``margin``, weighted, over the number of rows.

    ``hardest_only``: of the others the nearest alone; ``positive_first``: none for a row whose own distance is over
    ``positive_upper_bound``.  The own distance's gradient is ``positive_weight``, once, where any other counts, and with
    ``add_center_loss`` everywhere.
    Source: happynear/caffe-windows, branch ms, general_triplet_loss_layer.cpp.
    """

    message = "general_triplet_loss_param"
    fields = (
        *("margin", "add_center_loss", "hardest_only", "positive_first", "positive_upper_bound"),
        *("positive_weight", "negative_weight"),
    )

    def forward(self, distances: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        check_labels(self, labels, prod(distances.shape[1:]), None)
        hardest, always = self.param.hardest_only, self.param.add_center_loss
        tops = general_triplet_loss(
            distances, labels, self.param.margin, self.weights, self.bound, hardest, always
        )
        return tops[: max(len(self.node.tops), 1)]

    def onnx(self, graph: OnnxGraph, distances: str, labels: str) -> list[str]:
        node = node_writer(graph)
        x, own, same = self._rows_onnx(graph, distances, labels)
        classes, zero = prod(self._classes(graph, distances)), numbers(0.0)
        short = node("Relu", node("Sub", node("Add", same, numbers(self.param.margin)), x))
        losses = node("Where", own, zero, node("Mul", short, numbers(self.weights[1])))
        if self.param.hardest_only:
            best = node("ArgMax", losses, axis=1, keepdims=1)
            losses = node("Where", node("Equal", best, integers(*range(classes))), losses, zero)
        if self.bound is not None:
            losses = node("Where", node("Greater", same, numbers(self.bound)), zero, losses)
        return self._tops_onnx(graph, losses, own, x, x, classes)

    def source(self, code: SourceCode, distances: str, labels: str) -> list[str]:
        bound = None if self.bound is None else literal(self.bound)
        values = f"{literal(self.param.margin)}, {_pair(self.weights)}, {bound}, "
        values += f"{self.param.hardest_only}, {self.param.add_center_loss}"
        return self._source_of(f"{code.helper(general_triplet_loss)}({distances}, {labels}, {values})")


def _pair(values: tuple[float, float]) -> str:
    return f"({literal(values[0])}, {literal(values[1])})"
