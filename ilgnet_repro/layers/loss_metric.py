"""Losses of metric learning: CenterLoss and TripletLoss."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss import Loss
from .support.base import BlobSpec, LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers
from .support.labels import check_labels, labels_onnx, normalized_sum_onnx
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def center_loss(x: Tensor, centers: Tensor, labels: Tensor, absolute: bool, summed: bool) -> Tensor:
    """Return half the mean of squared distances to the labels' centers, or the mean of absolute differences.

    The centers' gradient is their mean distance, -sum(x - c) / (n + 1) for a class with n rows, whatever the weight of
    the loss; with ``summed`` it is n times as large.
    """
    labels = labels.reshape(-1).long()
    if centers.requires_grad:
        apart = x.detach() - centers.detach()[labels]
        apart = apart.sign() if absolute else apart
        count = torch.zeros_like(centers[:, :1]).index_add(0, labels, torch.ones_like(apart[:, :1]))
        move = torch.zeros_like(centers).index_add(0, labels, -apart) / (count + 1)
        move = move * count if summed else move
        centers = centers.view_as(centers)
        centers.register_hook(lambda gradient: move)
    difference = x - centers[labels]
    if absolute:
        return difference.abs().sum() / x.shape[0]
    return difference.square().sum() / (2 * x.shape[0])


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Return half the mean of max(margin + |a - p|² - |a - n|², 0)."""
    near = (anchor - positive).flatten(1).square().sum(1)
    far = (anchor - negative).flatten(1).square().sum(1)
    return F.relu(margin + near - far).sum() / (2 * anchor.shape[0])


# ---------------------------------------------------------------------- layers


@register_layer("CenterLoss")
class CenterLoss(Loss):
    """Half the mean squared distance to a learned center of each row's class (Wen et al., 2016).

    ``distance_type`` is happynear's: L1 is the mean of absolute differences, and where it is stated each row of a
    class adds the class's gradient of the center again.
    Source: ydwen/caffe-face and happynear/caffe-windows, center_loss_layer.cpp.
    """

    message = "center_loss_param"
    fields = ("num_output", "center_filler", "axis", "distance_type")
    index_bottoms = (1,)

    def setup(self, rank: int, labels: int) -> None:
        self.start = self.axis(self.param.axis, rank)
        self.outputs: int = self.param.num_output
        if not self.outputs:
            raise self.error("num_output is 0 or absent; state the number of classes")
        if self.param.distance_type not in ("L1", "L2"):
            raise self.error(f"distance_type {self.param.distance_type!r} must be L1 or L2")
        if self.start != 1:
            raise self.error(f"axis {self.param.axis} is not supported; one center per image needs axis 1")
        if not self.node.layer.loss_weight:
            self.note = "CenterLoss has no default loss weight: state loss_weight to learn from it"
        self.is_absolute: bool = self.param.distance_type == "L1"
        self.is_summed: bool = self.param.HasField("distance_type")

    def default_loss_weights(self) -> tuple[float, ...]:
        return ()  # its set-up does not call that of losses

    def plan(self, x: Shape, labels: Shape) -> LayerPlan:
        if prod(labels) != x[0]:
            raise self.error(
                f"has {prod(labels)} labels {list(labels)} for {x[0]} images; give one per image"
            )
        spec = BlobSpec("center", (self.outputs, prod(x[1:])), self.param.center_filler)
        return LayerPlan([()], [spec])

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
        check_labels(self, labels, self.outputs, None)
        return (center_loss(x.flatten(1), self.blob("center"), labels, self.is_absolute, self.is_summed),)

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        classes, counts = labels_onnx(graph, labels, None)
        own = graph.node("GatherND", [graph.parameter("center"), classes])
        difference = graph.node("Sub", [graph.node("Flatten", [x], axis=1), own])
        one = graph.constant(integers(1))
        if self.is_absolute:
            losses = graph.node("ReduceL1", [difference, one], keepdims=1)
        else:
            squared = graph.node("ReduceSumSquare", [difference, one], keepdims=1)
            losses = graph.node("Mul", [squared, graph.constant(numbers(0.5))])
        return [normalized_sum_onnx(graph, losses, counts, "FULL")]

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        flat = x if len(code.shape(0)) == 2 else f"{x}.flatten(1)"
        center = code.parameter("center", self.blob("center"))
        call = code.helper(center_loss)
        return [f"{call}({flat}, {center}, {labels}, {self.is_absolute}, {self.is_summed})"]


@register_layer("TripletLoss")
class TripletLoss(Loss):
    """Half the mean of max(margin + |a - p|² - |a - n|², 0) over anchors, positives and negatives (FaceNet).

    Source: happynear/caffe-windows, triplet_loss_layer.cpp.
    """

    message = "triplet_loss_param"
    fields = ("margin",)
    bottom_count = (3, 3)

    def plan(self, anchor: Shape, positive: Shape, negative: Shape) -> LayerPlan:
        shapes = [anchor, positive, negative]
        if len({(shape[0], prod(shape[1:])) for shape in shapes if shape}) != 1 or prod(anchor[2:]) != 1:
            listed = ", ".join(str(list(shape)) for shape in shapes)
            raise self.error(f"needs three blobs N×C of one shape, not {listed}")
        return LayerPlan([()])

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor]:
        return (triplet_loss(anchor, positive, negative, self.param.margin),)

    def onnx(self, graph: OnnxGraph, anchor: str, positive: str, negative: str) -> list[str]:
        anchor, *others = (graph.node("Flatten", [blob], axis=1) for blob in (anchor, positive, negative))
        near, far = (
            graph.node(
                "ReduceSumSquare",
                [graph.node("Sub", [anchor, other]), graph.constant(integers(1))],
                keepdims=0,
            )
            for other in others
        )
        apart = graph.node("Sub", [near, far])
        losses = graph.node("Relu", [graph.node("Add", [apart, graph.constant(numbers(self.param.margin))])])
        half = graph.node("Mul", [losses, graph.constant(numbers(0.5))])
        return [normalized_sum_onnx(graph, half, graph.node("Equal", [half, half]), "FULL")]

    def source(self, code: SourceCode, anchor: str, positive: str, negative: str) -> list[str]:
        margin = literal(self.param.margin)
        return [f"{code.helper(triplet_loss)}({anchor}, {positive}, {negative}, {margin})"]
