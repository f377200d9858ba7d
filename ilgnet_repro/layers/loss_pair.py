"""Losses between two blobs: EuclideanLoss, SigmoidCrossEntropyLoss, ContrastiveLoss, SmoothL1Loss."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .loss import Loss
from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers, uses
from .support.labels import ignored_label, normalization, normalized_sum, normalized_sum_onnx
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def sigmoid_cross_entropy_loss(x: Tensor, target: Tensor, mode: str, ignore_label: int | None) -> Tensor:
    """Return the cross-entropy of sigmoid(x) and probabilities, without targets that truncate to ignore_label."""
    target = target.detach().reshape(x.shape)
    losses = F.binary_cross_entropy_with_logits(x, target, reduction="none")
    counts = torch.ones_like(x, dtype=torch.bool)
    if ignore_label is not None:
        counts = target.long() != ignore_label
    return normalized_sum(losses, counts, mode, x.shape[0])


def contrastive_loss(a: Tensor, b: Tensor, similar: Tensor, margin: float, legacy: bool) -> Tensor:
    """Return half the mean of d² for similar pairs, max(margin - d, 0)² for others (legacy: max(margin - d², 0))."""
    squared = (a - b).flatten(1).square().sum(1)
    if legacy:
        apart = F.relu(margin - squared)
    else:
        distance = squared.detach().sqrt()
        short = F.relu(margin - distance)
        # Caffe's gradient divides by the distance plus 1e-4, so that it is finite for equal pairs.
        apart = short.square() - short / (distance + 1e-4) * (squared - squared.detach())
    return torch.where(similar.reshape(-1).long() != 0, squared, apart).sum() / (2 * a.shape[0])


def smooth_l1_loss(
    x: Tensor,
    target: Tensor,
    sigma: float,
    divisor: int,
    inside: Tensor | float = 1,
    outside: Tensor | float = 1,
) -> Tensor:
    """Return squares up to 1/sigma² and absolute values beyond, summed, over ``divisor``: the number of images or 1."""
    difference = inside * (x - target)
    size = difference.abs()
    squared = sigma**2
    losses = torch.where(size < 1 / squared, 0.5 * squared * size**2, size - 0.5 / squared)
    return (outside * losses).sum() / divisor


uses(sigmoid_cross_entropy_loss, normalized_sum)

# ---------------------------------------------------------------------- layers


class _EqualLoss(Loss):
    """Losses whose bottoms have equally many values per image."""

    def plan(self, x: Shape, *others: Shape) -> LayerPlan:
        self._check_first_axis(x, others[0])
        for other in others:
            if prod(other) != prod(x):
                raise self.error(f"bottoms {list(x)} and {list(other)} differ in their number of values")
        return LayerPlan([()])

    @staticmethod
    def _like(graph: OnnxGraph, value: str, first: str) -> str:
        shape = graph.shape(value)
        # The numbers of values are equal, so with all other lengths equal a single unknown one is too.
        if shape == graph.shape(first) and shape.count(None) <= 1:
            return value
        return graph.node("Reshape", [value, graph.node("Shape", [first])])

    @staticmethod
    def _per_image(graph: OnnxGraph, losses: str, like: str) -> str:
        """Add the sum of all losses over the number of images."""
        everything = graph.node("Equal", [like, like])
        return normalized_sum_onnx(graph, losses, everything, "BATCH_SIZE", (like, 1))


@register_layer("EuclideanLoss")
class EuclideanLoss(_EqualLoss):
    """Half the sum of squared differences over the number of images; both bottoms get gradients."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor]:
        return ((a - b.reshape(a.shape)).square().sum() / (2 * a.shape[0]),)

    def onnx(self, graph: OnnxGraph, a: str, b: str) -> list[str]:
        difference = graph.node("Sub", [a, self._like(graph, b, a)])
        half = graph.node("Mul", [difference, graph.constant(numbers(0.5))])
        return [self._per_image(graph, graph.node("Mul", [half, difference]), a)]

    def source(self, code: SourceCode, a: str, b: str) -> list[str]:
        like = b if code.shape(0) == code.shape(1) else f"{b}.reshape({a}.shape)"
        return [f"({a} - {like}).square().sum() / (2 * {a}.shape[0])"]


@register_layer("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(_EqualLoss):
    """Cross-entropy of the sigmoid against targets in [0, 1], per image unless `loss_param` states otherwise."""

    other_messages = ("loss_param",)

    def setup(self, *ranks: int) -> None:
        self.mode = normalization(self, "BATCH_SIZE")
        self.ignore = ignored_label(self.node.layer.loss_param)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor]:
        return (sigmoid_cross_entropy_loss(x, target, self.mode, self.ignore),)

    def onnx(self, graph: OnnxGraph, x: str, target: str) -> list[str]:
        from onnx import TensorProto

        target = self._like(graph, target, x)
        # max(x, 0) - x t + log(1 + exp(-|x|)), which cannot overflow.
        curve = graph.node("Softplus", [graph.node("Neg", [graph.node("Abs", [x])])])
        line = graph.node("Sub", [graph.node("Relu", [x]), graph.node("Mul", [x, target])])
        ignored = np.asarray(np.iinfo(np.int64).min if self.ignore is None else self.ignore, np.int64)
        integral = graph.node("Cast", [target], to=TensorProto.INT64)
        counts = graph.node("Not", [graph.node("Equal", [integral, graph.constant(ignored)])])
        return [normalized_sum_onnx(graph, graph.node("Add", [line, curve]), counts, self.mode, (x, 1))]

    def source(self, code: SourceCode, x: str, target: str) -> list[str]:
        return [f"{code.helper(sigmoid_cross_entropy_loss)}({x}, {target}, {self.mode!r}, {self.ignore})"]


@register_layer("ContrastiveLoss")
class ContrastiveLoss(Loss):
    """Pulls pairs labelled similar (not 0) together and others a margin apart (Hadsell et al., 2006)."""

    message = "contrastive_loss_param"
    fields = ("margin", "legacy_version")
    bottom_count = (3, 3)

    def plan(self, a: Shape, b: Shape, similar: Shape) -> LayerPlan:
        self._check_first_axis(a, b)
        if a != b or len(a) < 2 or prod(a[2:]) != 1:
            raise self.error(f"needs two blobs N×C of one shape, not {list(a)} and {list(b)}")
        if prod(similar) != a[0]:
            raise self.error(
                f"has {prod(similar)} labels {list(similar)} for {a[0]} pairs; give one per pair"
            )
        return LayerPlan([()])

    def forward(self, a: Tensor, b: Tensor, similar: Tensor) -> tuple[Tensor]:
        return (contrastive_loss(a, b, similar, self.param.margin, self.param.legacy_version),)

    def onnx(self, graph: OnnxGraph, a: str, b: str, similar: str) -> list[str]:
        from onnx import TensorProto

        difference = graph.node("Flatten", [graph.node("Sub", [a, b])], axis=1)
        squared = graph.node("ReduceSumSquare", [difference, graph.constant(integers(1))], keepdims=0)
        distance = squared if self.param.legacy_version else graph.node("Sqrt", [squared])
        margin = graph.constant(numbers(self.param.margin))
        apart = graph.node("Relu", [graph.node("Sub", [margin, distance])])
        if not self.param.legacy_version:
            apart = graph.node("Mul", [apart, apart])
        flat = graph.node("Reshape", [similar, graph.constant(integers(-1))])
        whole = graph.node("Cast", [flat], to=TensorProto.INT64)
        losses = graph.node("Where", [graph.node("Cast", [whole], to=TensorProto.BOOL), squared, apart])
        half = graph.node("Mul", [losses, graph.constant(numbers(0.5))])
        return [normalized_sum_onnx(graph, half, graph.node("Equal", [whole, whole]), "FULL")]

    def source(self, code: SourceCode, a: str, b: str, similar: str) -> list[str]:
        rest = f"{literal(self.param.margin)}, {self.param.legacy_version}"
        return [f"{code.helper(contrastive_loss)}({a}, {b}, {similar}, {rest})"]


@register_layer("SmoothL1Loss")
class SmoothL1Loss(_EqualLoss):
    """Huber's loss of weighted box offsets (Girshick, ICCV 2015).

    A third bottom weights the differences, a fourth the losses.  The layer of Fast R-CNN, which its message or a fourth
    bottom shows, sets no default weight for its loss: it is 0 unless ``loss_weight`` is stated.  SSD's is 1.
    """

    message = "smooth_l1_loss_param"
    other_messages = ("loss_param",)
    fields = ("sigma",)
    bottom_count = (2, 4)

    def setup(self, *ranks: int) -> None:
        if self.param.sigma <= 0:
            raise self.error(f"sigma {self.param.sigma} must be over 0")
        text = self.node.layer
        self.is_fast_rcnn = text.HasField("smooth_l1_loss_param") or len(self.node.bottoms) == 4
        if self.is_fast_rcnn and not text.loss_weight:
            self.note = "Fast R-CNN's layer has no default loss weight: state loss_weight to learn from it"
        # Only Intel's layer reads loss_param; the others always divide by the number of images.
        stated = text.loss_param
        self.divides_by_one = (
            stated.HasField("normalization") and stated.normalization == pb.LossParameter.NONE
        )
        if not self.divides_by_one and (stated.HasField("normalization") or stated.HasField("normalize")):
            raise self.error(
                "loss_param is read by one fork's layer only; state normalization: NONE, which divides by 1, or remove it"
            )

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor]:
        target, *weights = [other.reshape(x.shape) for other in others]
        divisor = 1 if self.divides_by_one else x.shape[0]
        return (smooth_l1_loss(x, target, self.param.sigma, divisor, *weights),)

    def default_loss_weights(self) -> tuple[float, ...]:
        return () if self.is_fast_rcnn else super().default_loss_weights()

    def onnx(self, graph: OnnxGraph, x: str, *others: str) -> list[str]:
        target, *weights = [self._like(graph, other, x) for other in others]
        squared = self.param.sigma**2
        difference = graph.node("Sub", [x, target])
        if weights:
            difference = graph.node("Mul", [difference, weights[0]])
        size = graph.node("Abs", [difference])

        def scalar(value: float) -> str:
            return graph.constant(numbers(value))

        quadratic = graph.node("Mul", [graph.node("Mul", [size, size]), scalar(0.5 * squared)])
        linear = graph.node("Sub", [size, scalar(0.5 / squared)])
        losses = graph.node("Where", [graph.node("Less", [size, scalar(1 / squared)]), quadratic, linear])
        if len(weights) > 1:
            losses = graph.node("Mul", [losses, weights[1]])
        if self.divides_by_one:
            return [graph.node("ReduceSum", [losses], keepdims=0)]
        return [self._per_image(graph, losses, x)]

    def source(self, code: SourceCode, x: str, *others: str) -> list[str]:
        reshaped = [
            other if code.shape(index) == code.shape(0) else f"{other}.reshape({x}.shape)"
            for index, other in enumerate(others, 1)
        ]
        call = code.helper(smooth_l1_loss)
        divisor = "1" if self.divides_by_one else f"{x}.shape[0]"
        return [f"{call}({', '.join([x, reshaped[0], literal(self.param.sigma), divisor, *reshaped[1:]])})"]
