"""Losses of absolute differences: SmoothL1Loss and L1Loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .loss_pair import EqualLoss
from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


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


def flow_l1_loss(difference: Tensor, per_entry: bool, plateau: float) -> Tensor:
    """Return the sum of absolute differences over the number of images or of entries that are not NaN, per channel.

    Differences below the plateau count as 0, and 0 has the gradient -1, as in FlowNet's Caffe.
    """
    counted = ~difference.isnan()
    divisor = counted.sum() / difference.shape[1] if per_entry else difference.shape[0]
    if plateau:
        counted = counted & (difference.abs() >= plateau)
    difference = torch.where(counted, difference, 0)
    sign = torch.where(difference > 0, 1, -1)
    return (sign * torch.where(counted, difference, difference.detach())).sum() / divisor


def flow_l2_loss(
    difference: Tensor, per_entry: bool, plateau: float, epsilon: float, prescaled: bool
) -> Tensor:
    """Return the sum over locations of the root of epsilon plus the sum of squares over channels, divided likewise.

    ``prescaled`` takes the mean over channels; locations below the plateau count as 0.
    """
    counted = ~difference.isnan()
    divisor = counted.sum() / difference.shape[1] if per_entry else difference.shape[0]
    squares = torch.where(counted, difference, 0).square()
    total = squares.mean(1) if prescaled else squares.sum(1)
    if plateau:
        total = torch.where(total.abs() < plateau**2, 0, total)
    return (total + epsilon).sqrt().sum() / divisor


# ---------------------------------------------------------------------- layers


@register_layer("SmoothL1Loss")
class SmoothL1Loss(EqualLoss):
    """Huber's loss of weighted box offsets (Girshick, ICCV 2015).

    A third bottom weights the differences, a fourth the losses.  The layer of Fast R-CNN and Intel, which its message or
    a fourth bottom shows, sets no default weight for its loss: it is 0 unless ``loss_weight`` is stated.  SSD's is 1.
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
        target, *weights = [self.like(graph, other, x) for other in others]
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
        return [self.per_image(graph, losses, x)]

    def source(self, code: SourceCode, x: str, *others: str) -> list[str]:
        reshaped = [
            other if code.shape(index) == code.shape(0) else f"{other}.reshape({x}.shape)"
            for index, other in enumerate(others, 1)
        ]
        call = code.helper(smooth_l1_loss)
        divisor = "1" if self.divides_by_one else f"{x}.shape[0]"
        return [f"{call}({', '.join([x, reshaped[0], literal(self.param.sigma), divisor, *reshaped[1:]])})"]


@register_layer("L1Loss")
class L1Loss(EqualLoss):
    """The sum of absolute differences over the number of images.

    FlowNet's layer, which `l1_loss_param` or a single bottom (the difference) shows, skips NaN; it can take the length
    over channels at each location (``l2_per_location``), or divide by the number of entries.
    Source: troyliu0105/caffe, l1_loss_layer.cpp; lmb-freiburg/flownet2, l1loss_layer.cu.
    """

    message = "l1_loss_param"
    fields = (
        *("l2_per_location", "l2_prescale_by_channels", "normalize_by_num_entries"),
        *("epsilon", "plateau"),
    )
    bottom_count = (1, 2)

    def setup(self, *ranks: int) -> None:
        self.is_flownet = len(ranks) == 1 or self.node.layer.HasField("l1_loss_param")
        self.is_length: bool = self.param.l2_per_location
        if self.param.plateau < 0 or self.param.epsilon < 0:
            raise self.error(
                f"plateau {self.param.plateau:g} and epsilon {self.param.epsilon:g} must be at least 0"
            )
        self.note = (
            "L1Loss of FlowNet's Caffe, by l1_loss_param or its single bottom: NaN is skipped"
            if self.is_flownet
            else "L1Loss of troyliu0105's Caffe; l1_loss_param would show FlowNet's"
        )

    def plan(self, x: Shape, *others: Shape) -> LayerPlan:
        if self.is_flownet and len(x) < 2:
            raise self.error(f"bottom {list(x)} has no channel axis; it takes 2 axes or more")
        return super().plan(x, *others) if others else LayerPlan([()])

    @property
    def _arguments(self) -> tuple[Any, ...]:
        p = self.param
        shared = (p.normalize_by_num_entries, p.plateau)
        return (*shared, p.epsilon, p.l2_prescale_by_channels) if self.is_length else shared

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor]:
        difference = x - others[0].reshape(x.shape) if others else x
        if not self.is_flownet:
            return (difference.abs().sum() / x.shape[0],)
        function = flow_l2_loss if self.is_length else flow_l1_loss
        return (function(difference, *self._arguments),)

    def onnx(self, graph: OnnxGraph, x: str, *others: str) -> list[str]:
        from onnx import TensorProto

        def scalar(value: float) -> str:
            return graph.constant(numbers(value))

        difference = graph.node("Sub", [x, self.like(graph, others[0], x)]) if others else x
        if not self.is_flownet:
            return [self.per_image(graph, graph.node("Abs", [difference]), x)]
        p, channels = self.param, graph.constant(integers(1))
        counted = graph.node("Not", [graph.node("IsNaN", [difference])])
        if p.normalize_by_num_entries:
            count = graph.node("ReduceSum", [graph.node("Cast", [counted], to=TensorProto.FLOAT)], keepdims=0)
            divisor = graph.node("Div", [count, scalar(graph.size(x, 1))])
        else:
            images = graph.node(
                "Squeeze", [graph.node("Shape", [x], start=0, end=1), graph.constant(integers(0))]
            )
            divisor = graph.node("Cast", [images], to=TensorProto.FLOAT)
        values = graph.node("Where", [counted, difference, scalar(0)])
        if self.is_length:
            reduce = "ReduceMean" if p.l2_prescale_by_channels else "ReduceSum"
            values = graph.node(reduce, [graph.node("Mul", [values, values]), channels], keepdims=0)
        else:
            values = graph.node("Abs", [values])
        if p.plateau:
            limit = scalar(p.plateau**2 if self.is_length else p.plateau)
            values = graph.node("Where", [graph.node("Less", [values, limit]), scalar(0), values])
        if self.is_length:
            values = graph.node("Sqrt", [graph.node("Add", [values, scalar(p.epsilon)])])
        return [graph.node("Div", [graph.node("ReduceSum", [values], keepdims=0), divisor])]

    def source(self, code: SourceCode, x: str, *others: str) -> list[str]:
        difference = x
        if others:
            like = others[0] if code.shape(0) == code.shape(1) else f"{others[0]}.reshape({x}.shape)"
            difference = f"{x} - {like}"
        if not self.is_flownet:
            return [f"({difference}).abs().sum() / {x}.shape[0]"]
        rest = ", ".join(
            str(value) if isinstance(value, bool) else literal(value) for value in self._arguments
        )
        return [f"{code.helper(flow_l2_loss if self.is_length else flow_l1_loss)}({difference}, {rest})"]
