"""Losses between two blobs: EuclideanLoss, SigmoidCrossEntropyLoss, ContrastiveLoss."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .loss import Loss
from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers, uses
from .support.labels import ignored_label, normalization, normalized_sum, normalized_sum_onnx
from .support.registry import register_layer
from .support.shapes import AXES, legacy_shape, shape_of

BALANCE = "loss_param.balance"

# ---------------------------------------------------------------------- torch, also for written source


def sigmoid_cross_entropy_loss(
    x: Tensor, target: Tensor, mode: str | float, ignore_label: int | None
) -> Tensor:
    """Return the cross-entropy of sigmoid(x) and probabilities, without targets that truncate to ignore_label."""
    target = target.detach().reshape(x.shape)
    losses = F.binary_cross_entropy_with_logits(x, target, reduction="none")
    counts = torch.ones_like(x, dtype=torch.bool)
    if ignore_label is not None:
        counts = target.long() != ignore_label
    return normalized_sum(losses, counts, mode, x.shape[0])


def balanced_cross_entropy_loss(x: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy per image, where each class counts by the other's share of the image's targets 0 and 1.

    The fork passes the gradient of other targets, sigmoid(x) - target, though they are not in the loss.
    """
    x = x.flatten(1)
    target = target.detach().reshape(x.shape)
    positive, negative = (target == 1).to(x.dtype), (target == 0).to(x.dtype)
    positives, negatives = positive.sum(1, keepdim=True), negative.sum(1, keepdim=True)
    weights = (positive * negatives + negative * positives) / (positives + negatives)
    losses = F.binary_cross_entropy_with_logits(x, target, reduction="none")
    other = (1 - positive - negative) * (losses - losses.detach())
    return (weights * losses + other).sum() / x.shape[0]


def weighted_cross_entropy_loss(x: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the cross-entropy of sigmoid(x), weighted, over the sum of the weights; 0 where that is not over 0."""
    target, weights = (blob.detach().reshape(x.shape) for blob in (target, weights))
    losses = F.binary_cross_entropy_with_logits(x, target, reduction="none")
    total = weights.sum()
    return torch.where(total > 0, (losses * weights).sum() / torch.where(total > 0, total, 1), 0)


def contrastive_loss(a: Tensor, b: Tensor, similar: Tensor, margin: float, legacy: bool) -> Tensor:
    """Return half the mean of d² for similar pairs, max(margin - d, 0)² for others (legacy: max(margin - d², 0))."""
    squared = (a - b.reshape(a.shape)).reshape(a.shape[0], -1).square().sum(1)
    if legacy:
        apart = F.relu(margin - squared)
    else:
        distance = squared.detach().sqrt()
        short = F.relu(margin - distance)
        # Caffe's gradient divides by the distance plus 1e-4, so that it is finite for equal pairs.
        apart = short.square() - short / (distance + 1e-4) * (squared - squared.detach())
    return torch.where(similar.flatten()[: a.shape[0]].long() != 0, squared, apart).sum() / (2 * a.shape[0])


uses(sigmoid_cross_entropy_loss, normalized_sum)

# ---------------------------------------------------------------------- layers


class EqualLoss(Loss):
    """Losses whose bottoms have equally many values per image."""

    def plan(self, x: Shape, *others: Shape) -> LayerPlan:
        self._check_first_axis(x, others[0])
        for other in others:
            if prod(other) != prod(x):
                raise self.error(f"bottoms {list(x)} and {list(other)} differ in their number of values")
        return LayerPlan([()])

    @staticmethod
    def like(graph: OnnxGraph, value: str, first: str) -> str:
        shape = graph.shape(value)
        # The numbers of values are equal, so with all other lengths equal a single unknown one is too.
        if shape == graph.shape(first) and shape.count(None) <= 1:
            return value
        return graph.node("Reshape", [value, shape_of(graph, first)])

    @staticmethod
    def per_image(graph: OnnxGraph, losses: str, like: str) -> str:
        """Add the sum of all losses over the number of images."""
        everything = graph.node("Equal", [like, like])
        return normalized_sum_onnx(graph, losses, everything, "BATCH_SIZE", (like, 1))


@register_layer("EuclideanLoss")
class EuclideanLoss(EqualLoss):
    """Half the sum of squared differences over the number of images; both bottoms get gradients."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor]:
        return ((a - b.reshape(a.shape)).square().sum() / (2 * a.shape[0]),)

    def onnx(self, graph: OnnxGraph, a: str, b: str) -> list[str]:
        difference = graph.node("Sub", [a, self.like(graph, b, a)])
        half = graph.node("Mul", [difference, graph.constant(numbers(0.5))])
        return [self.per_image(graph, graph.node("Mul", [half, difference]), a)]

    def source(self, code: SourceCode, a: str, b: str) -> list[str]:
        like = b if code.shape(0) == code.shape(1) else f"{b}.reshape({a}.shape)"
        return [f"({a} - {like}).square().sum() / (2 * {a}.shape[0])"]


@register_layer("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(EqualLoss):
    """Cross-entropy of the sigmoid against targets in [0, 1], per image unless `loss_param` states otherwise.

    HED's layer has the same name and text, but weighs the targets 1 of an image by its share of targets 0 and the
    reverse, and ignores any other target.  Nothing but documentation shows it: ``loss_param { balance: HED }`` states it.
    Source: s9xie/hed, sigmoid_cross_entropy_loss_layer.cpp.

    A third bottom, of the multi-task network cascades, has a weight per value: the loss is divided by their sum, and is
    0 where that is not over 0.  Source: daijifeng001/caffe-mnc, sigmoid_cross_entropy_loss_layer.cpp.
    """

    other_messages = ("loss_param",)
    bottom_count = (2, 3)
    fork_fields = (BALANCE,)

    def setup(self, *ranks: int) -> None:
        balance = self.fork_field(BALANCE)
        if balance not in (None, "HED"):
            raise self.error(f"{BALANCE} {balance} must be HED; remove it for Caffe's own layer")
        self.is_balanced = balance == "HED"
        loss_param = self.node.layer.loss_param
        if len(ranks) == 3 and (self.is_balanced or loss_param.ListFields()):
            raise self.error(
                "a third bottom of weights goes with no field of loss_param; MNC's layer reads none"
            )
        if self.is_balanced and loss_param.ListFields():
            raise self.error(f"{BALANCE}: HED goes with no other field of loss_param; HED's layer reads none")
        if self.is_balanced:
            self.note = "SigmoidCrossEntropyLoss of HED's Caffe, by loss_param.balance"
        elif not loss_param.ListFields() and len(ranks) == 2:  # HED's layer reads no loss_param
            self.note = "Caffe's own; HED's balances the classes: state loss_param { balance: HED } for a net of HED's"
        self.mode = normalization(self, "BATCH_SIZE")
        self.ignore = ignored_label(loss_param)

    def forward(self, x: Tensor, target: Tensor, *weights: Tensor) -> tuple[Tensor]:
        if weights:
            return (weighted_cross_entropy_loss(x, target, *weights),)
        if self.is_balanced:
            return (balanced_cross_entropy_loss(x, target),)
        return (sigmoid_cross_entropy_loss(x, target, self.mode, self.ignore),)

    def onnx(self, graph: OnnxGraph, x: str, target: str, *weights: str) -> list[str]:
        from onnx import TensorProto

        target = self.like(graph, target, x)
        # max(x, 0) - x t + log(1 + exp(-|x|)), which cannot overflow.
        curve = graph.node("Softplus", [graph.node("Neg", [graph.node("Abs", [x])])])
        line = graph.node("Sub", [graph.node("Relu", [x]), graph.node("Mul", [x, target])])
        if weights:
            weight = self.like(graph, weights[0], x)
            losses = graph.node("Mul", [graph.node("Add", [line, curve]), weight])
            loss, total = (graph.node("ReduceSum", [values], keepdims=0) for values in (losses, weight))
            zero, one = (graph.constant(numbers(value)) for value in (0.0, 1.0))
            over = graph.node("Greater", [total, zero])
            share = graph.node("Div", [loss, graph.node("Where", [over, total, one])])
            return [graph.node("Where", [over, share, zero])]
        if self.is_balanced:
            return [self._balanced_onnx(graph, graph.node("Add", [line, curve]), target, x)]
        ignored = np.asarray(np.iinfo(np.int64).min if self.ignore is None else self.ignore, np.int64)
        integral = graph.node("Cast", [target], to=TensorProto.INT64)
        counts = graph.node("Not", [graph.node("Equal", [integral, graph.constant(ignored)])])
        return [normalized_sum_onnx(graph, graph.node("Add", [line, curve]), counts, self.mode, (x, 1))]

    def _balanced_onnx(self, graph: OnnxGraph, losses: str, target: str, x: str) -> str:
        from onnx import TensorProto

        one = graph.constant(integers(1))

        def of_class(value: float) -> tuple[str, str]:
            """Add where the targets are the value, and how many there are per image."""
            found = graph.node("Equal", [target, graph.constant(numbers(value))])
            members = graph.node("Flatten", [graph.node("Cast", [found], to=TensorProto.FLOAT)], axis=1)
            return members, graph.node("ReduceSum", [members, one], keepdims=1)

        (positive, positives), (negative, negatives) = of_class(1), of_class(0)
        weights = graph.node(
            "Add", [graph.node("Mul", [positive, negatives]), graph.node("Mul", [negative, positives])]
        )
        weights = graph.node("Div", [weights, graph.node("Add", [positives, negatives])])
        flat = graph.node("Flatten", [losses], axis=1)
        return self.per_image(graph, graph.node("Mul", [weights, flat]), flat)

    def source(self, code: SourceCode, x: str, target: str, *weights: str) -> list[str]:
        if weights:
            return [f"{code.helper(weighted_cross_entropy_loss)}({x}, {target}, {weights[0]})"]
        if self.is_balanced:
            return [f"{code.helper(balanced_cross_entropy_loss)}({x}, {target})"]
        return [f"{code.helper(sigmoid_cross_entropy_loss)}({x}, {target}, {self.mode!r}, {self.ignore})"]


@register_layer("ContrastiveLoss")
class ContrastiveLoss(Loss):
    """Pulls pairs labelled similar (not 0) together and others a margin apart (Hadsell et al., 2006)."""

    message = "contrastive_loss_param"
    fields = ("margin", "legacy_version")
    bottom_count = (3, 3)

    def plan(self, a: Shape, b: Shape, similar: Shape) -> LayerPlan:
        self._check_first_axis(a, b)
        wide = [legacy_shape(shape) for shape in (a, b) if len(shape) <= AXES]
        if len(wide) < 2 or wide[0] != wide[1] or prod(a[2:]) != 1:
            raise self.error(f"needs two blobs N×C of one shape, not {list(a)} and {list(b)}")
        # Caffe takes the first labels, and reads out of bounds where there are fewer.
        held = f"{prod(similar)} labels {list(similar)} for {a[0]} pairs; give one per pair"
        if prod(similar) < a[0]:
            raise self.error(f"label index {prod(similar)} is out of range; there are {held}")
        if prod(similar[1:]) != 1:
            raise self.error(f"has {held}")
        return LayerPlan([()])

    def forward(self, a: Tensor, b: Tensor, similar: Tensor) -> tuple[Tensor]:
        return (contrastive_loss(a, b, similar, self.param.margin, self.param.legacy_version),)

    def onnx(self, graph: OnnxGraph, a: str, b: str, similar: str) -> list[str]:
        from onnx import TensorProto

        if None in graph.shape(a)[:1] or graph.shape(a)[:1] != graph.shape(similar)[:1]:
            ends = [graph.constant(integers(0)), graph.node("Shape", [a], start=0, end=1)]
            similar = graph.node("Slice", [similar, *ends])
        flat_a, flat_b = (graph.node("Flatten", [x], axis=1) for x in (a, b))
        difference = graph.node("Sub", [flat_a, flat_b])
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
