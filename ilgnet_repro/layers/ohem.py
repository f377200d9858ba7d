"""Online hard example mining of R-FCN: SoftmaxWithLossOHEM, SmoothL1LossOHEM and BoxAnnotatorOHEM.

The two losses have a top with the loss of each region; BoxAnnotatorOHEM keeps the labels of the regions that cost most.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .loss import Loss, SoftmaxWithLoss, floored_log_softmax, softmax_loss
from .support.base import (
    Layer,
    LayerPlan,
    OnnxGraph,
    Shape,
    SourceCode,
    exact,
    integers,
    numbers,
    uses,
)
from .support.labels import label_rows, normalization, normalized_sum, normalized_sum_onnx
from .support.registry import register_layer
from .support.shapes import AXES, legacy_shape, onnx_with_four_axes, shape_of

# ---------------------------------------------------------------------- torch, also for written source


def label_losses(x: Tensor, labels: Tensor, axis: int, ignore_label: int | None, floor: float) -> Tensor:
    """Return the negative log probability of each label, 0 where it is ignored; no gradient passes."""
    rows, classes, counts = label_rows(x.detach(), labels, axis, ignore_label)
    losses = -floored_log_softmax(rows, floor).gather(1, classes[:, None])[:, 0]
    return torch.where(counts, losses, 0).reshape(labels.shape)


def smooth_l1_loss_ohem(
    x: Tensor, target: Tensor, inside: Tensor | None, shape: list[int], mode: str | float
) -> tuple[Tensor, Tensor]:
    """Return the smooth L1 loss over regions, normalized, and the sum over channels of each region.

    As in the fork the gradient is that of the weighted difference: it is not multiplied by the weight again.
    """
    difference = x.reshape(shape) - target.reshape(shape)
    if inside is not None:
        weighted = (inside.reshape(shape) * difference).detach()
        difference = weighted + (difference - difference.detach())
    size = difference.abs()
    losses = torch.where(size < 1, 0.5 * size**2, size - 0.5).sum(1, keepdim=True)
    return normalized_sum(losses, torch.ones_like(losses, dtype=torch.bool), mode, shape[0]), losses.detach()


def hard_regions(losses: Tensor, images: Tensor, regions: int) -> Tensor:
    """Return which entries are among the ``regions`` largest losses of their image; of equal ones the first."""
    order = losses.argsort(descending=True, stable=True)
    order = order[images[order].argsort(stable=True)]
    of_image = images[order]
    first = torch.searchsorted(of_image, of_image)
    rank = torch.arange(len(order), device=order.device) - first
    return torch.zeros_like(order, dtype=torch.bool).scatter(0, order, rank < regions)


def box_annotator_ohem(
    rois: Tensor, losses: Tensor, labels: Tensor, weights: Tensor, shape: list[int], regions: int, ignore: int
) -> tuple[Tensor, Tensor]:
    """Return labels and box weights of the regions that cost most in their image; others get ``ignore`` and 0.

    ``shape`` is that of the weights, with four axes; the image of a region is the first of its five values.
    """
    n, _, h, w = shape
    images = rois.reshape(n, 5, h, w)[:, 0].reshape(-1).long()
    kept = hard_regions(losses.reshape(-1), images, regions).reshape(n, 1, h, w)
    labels = torch.where(kept, labels.reshape(n, 1, h, w), ignore)
    return labels.detach(), torch.where(kept, weights.reshape(shape), 0).detach()


uses(label_losses, label_rows, floored_log_softmax)
uses(smooth_l1_loss_ohem, normalized_sum)
uses(box_annotator_ohem, hard_regions)

# ---------------------------------------------------------------------- layers


@register_layer("SoftmaxWithLossOHEM")
class SoftmaxWithLossOHEM(SoftmaxWithLoss):
    """SoftmaxWithLoss whose optional third top is the loss of each label, in the labels' shape.

    Source: daijifeng001/caffe-rfcn, softmax_loss_ohem_layer.cu.
    """

    top_count = (1, 3)
    weighs_classes = False

    def plan(self, x: Shape, labels: Shape, *others: Shape) -> LayerPlan:
        plan = super().plan(x, labels)
        return LayerPlan([*plan.tops, labels][: max(len(self.node.tops), 1)])

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        tops = super().forward(x, labels)
        if len(self.node.tops) < 3:
            return tops
        return (*tops, label_losses(x, labels, self.dim, self.ignore, self.floor))

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        tops = super().onnx(graph, x, labels)
        if len(self.node.tops) < 3:
            return tops
        log_p, classes, counts = self._log_rows_onnx(graph, x, labels)
        losses = graph.node("Neg", [graph.node("GatherElements", [log_p, classes], axis=1)])
        losses = graph.node("Where", [counts, losses, graph.constant(numbers(0))])
        return [*tops, graph.node("Reshape", [losses, shape_of(graph, labels)])]

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        tops = self._tops_source(x, self._call(code.helper(softmax_loss), x, labels))
        if len(self.node.tops) < 3:
            return tops
        arguments = f"{x}, {labels}, {self.dim}, {exact(self.ignore)}, {exact(self.floor)}"
        return [*tops, f"{code.helper(label_losses)}({arguments})"]


@register_layer("SmoothL1LossOHEM")
class SmoothL1LossOHEM(Loss):
    """SmoothL1Loss with sigma 1, over the divisor of `loss_param`; the optional second top is the loss per region.

    A third bottom weights the differences.  VALID, the default, and FULL divide by the number of regions; the second top
    is the sum over channels, N x 1 x H x W.  Source: daijifeng001/caffe-rfcn, smooth_L1_loss_ohem_layer.cu.
    """

    other_messages = ("loss_param",)
    bottom_count = (2, 3)
    top_count = (1, 2)

    def setup(self, *ranks: int) -> None:
        self.mode = normalization(self, "VALID")

    def plan(self, x: Shape, *others: Shape) -> LayerPlan:
        for other in others:
            self._check_first_axis(x, other)
            if max(len(x), len(other)) > AXES or legacy_shape(other) != legacy_shape(x):
                raise self.error(
                    f"bottoms {list(x)} and {list(other)} differ; they take 1 to {AXES} axes, equally long"
                )
        n, _, h, w = legacy_shape(x)
        return LayerPlan([(), (n, 1, h, w)][: max(len(self.node.tops), 1)])

    @property
    def _divisor(self) -> str | float:
        return "FULL" if self.mode == "VALID" else self.mode  # no region is ignored

    def forward(self, x: Tensor, target: Tensor, inside: Tensor | None = None) -> tuple[Tensor, ...]:
        shape = list(legacy_shape(tuple(x.shape)))
        return smooth_l1_loss_ohem(x, target, inside, shape, self._divisor)[: max(len(self.node.tops), 1)]

    def onnx(self, graph: OnnxGraph, x: str, *others: str) -> list[str]:
        difference = graph.node("Sub", [x, self._like(graph, others[0], x)])
        if len(others) > 1:
            difference = graph.node("Mul", [difference, self._like(graph, others[1], x)])
        size = graph.node("Abs", [difference])
        half, one = graph.constant(numbers(0.5)), graph.constant(numbers(1))
        square = graph.node("Mul", [graph.node("Mul", [size, size]), half])
        losses = graph.node(
            "Where", [graph.node("Less", [size, one]), square, graph.node("Sub", [size, half])]
        )
        rank = len(graph.shape(x))
        axis = graph.constant(integers(1))
        per_region = graph.node("ReduceSum", [losses, axis], keepdims=1) if rank > 1 else losses
        everything = graph.node("Equal", [per_region, per_region])
        tops = [normalized_sum_onnx(graph, per_region, everything, self._divisor, (x, 1))]
        if len(self.node.tops) > 1:
            per_region = onnx_with_four_axes(graph, per_region, rank)
            tops.append(per_region)
        return tops

    @staticmethod
    def _like(graph: OnnxGraph, value: str, first: str) -> str:
        if len(graph.shape(value)) == len(graph.shape(first)):
            return value
        return graph.node("Reshape", [value, shape_of(graph, first)])

    def source(self, code: SourceCode, x: str, target: str, inside: str = "None") -> list[str]:
        shape = f"[*{x}.shape{', 1' * (AXES - len(code.shape(0)))}]"
        call = f"{code.helper(smooth_l1_loss_ohem)}({x}, {target}, {inside}, {shape}, {exact(self._divisor)})"
        return [f"{call}[{top}]" for top in range(max(len(self.node.tops), 1))]


@register_layer("BoxAnnotatorOHEM")
class BoxAnnotatorOHEM(Layer):
    """Keep the labels and box weights of the ``roi_per_img`` regions of each image that cost most.

    Bottoms: regions N x 5 (their image first), the loss of each, labels, box weights; each may have rows and columns.
    Others get ``ignore_label`` and weights 0.  No gradient passes.  Of equal losses the first is kept; the fork's sort
    leaves their order open.  Source: daijifeng001/caffe-rfcn, box_annotator_ohem_layer.cu.
    """

    message = "box_annotator_ohem_param"
    fields = ("roi_per_img", "ignore_label")
    bottom_count = (4, 4)
    top_count = (2, 2)
    has_gradient = False

    def setup(self, *ranks: int) -> None:
        if self.param.roi_per_img < 1:
            raise self.error("roi_per_img must be stated and over 0, as in roi_per_img: 128")
        self.regions: int = self.param.roi_per_img
        self.ignore: int = self.param.ignore_label

    def plan(self, *bottoms: Shape) -> LayerPlan:
        for bottom in bottoms:
            if not 1 <= len(bottom) <= AXES:
                raise self.error(f"bottom {list(bottom)} has {len(bottom)} axes; it takes 1 to {AXES}")
        rois, losses, labels, weights = (legacy_shape(bottom) for bottom in bottoms)
        n, columns, h, w = rois
        if columns != 5:
            raise self.error(
                f"regions {list(bottoms[0])} must have five values each: their image and corners"
            )
        for what, shape, given in (("losses", losses, 1), ("labels", labels, 2), ("weights", weights, 3)):
            if shape != (n, shape[1] if what == "weights" else 1, h, w):
                raise self.error(f"{what} {list(bottoms[given])} do not fit the regions {list(bottoms[0])}")
        return LayerPlan([(n, 1, h, w), weights])

    def forward(self, rois: Tensor, losses: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        shape = list(legacy_shape(tuple(weights.shape)))
        return box_annotator_ohem(rois, losses, labels, weights, shape, self.regions, self.ignore)

    def onnx(self, graph: OnnxGraph, rois: str, losses: str, labels: str, weights: str) -> list[str]:
        from onnx import TensorProto

        node, constant = graph.node, graph.constant
        row, column = constant(integers(1, -1)), constant(integers(-1, 1))
        rois, losses, labels, weights = (
            onnx_with_four_axes(graph, value, len(graph.shape(value)))
            for value in (rois, losses, labels, weights)
        )
        images = node("Gather", [rois, constant(integers(0))], axis=1)
        images = node("Cast", [images], to=TensorProto.INT64)
        count = node("Size", [losses])
        places = node("Range", [constant(np.array(0)), count, constant(np.array(1))])

        def pairs(op: str, value: str) -> str:
            """Compare each other value (a column) with a region's own (in a row)."""
            return node(op, [node("Reshape", [value, column]), node("Reshape", [value, row])])

        first = node("And", [pairs("Equal", losses), pairs("Less", places)])
        costlier = node("Or", [pairs("Greater", losses), first])
        before = node("Cast", [node("And", [costlier, pairs("Equal", images)])], to=TensorProto.INT64)
        rank = node("ReduceSum", [before, constant(integers(0))], keepdims=0)
        kept = node("Less", [rank, constant(np.array(self.regions))])
        kept = node("Reshape", [kept, node("Shape", [losses])])
        ignored, zero = constant(numbers(self.ignore)), constant(numbers(0))
        return [node("Where", [kept, labels, ignored]), node("Where", [kept, weights, zero])]

    def source(self, code: SourceCode, rois: str, losses: str, labels: str, weights: str) -> list[str]:
        shape = f"[*{weights}.shape{', 1' * (AXES - len(code.shape(3)))}]"
        call = code.helper(box_annotator_ohem)
        given = f"{rois}, {losses}, {labels}, {weights}, {shape}, {self.regions}, {self.ignore}"
        return [f"{call}({given})[{top}]" for top in range(2)]
