"""Margins on the label's cosine: LabelSpecificAdd, CosinAddm, AdaCosAddmScale, CombinedMargin; Arccos and Cosine.

The first bottom holds cosines, one row per label (AMSoftmax, CosFace, ArcFace, AdaCos); all but the first axis are classes.
"""

from __future__ import annotations

import math
from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .support.base import (
    Layer,
    LayerPlan,
    OnnxGraph,
    Shape,
    SourceCode,
    exact,
    integers,
    literal,
    numbers,
    uses,
)
from .support.iteration import CountsPasses, constant_top
from .support.labels import check_labels, labels_onnx
from .support.registry import register_layer
from .support.shapes import shape_of

# ---------------------------------------------------------------------- torch, also for written source


def own_class(x: Tensor, labels: Tensor) -> Tensor:
    """Return where the values of the labels' classes are; a negative label has none."""
    rows = x.flatten(1)
    classes = torch.arange(rows.shape[1], device=x.device)
    return (labels.reshape(-1, 1).long() == classes).reshape(x.shape)


def add_to_label(x: Tensor, labels: Tensor, bias: float) -> Tensor:
    """Add the bias to each label's value that is above -bias."""
    return torch.where(own_class(x, labels) & (x > -bias), x + bias, x)


def rescale_label(x: Tensor, labels: Tensor, own: float, others: float) -> Tensor:
    """Multiply each label's value by one factor, and the others by another."""
    return x * torch.where(own_class(x, labels), own, others).to(x.dtype)


def add_angle(cos: Tensor, angle: float) -> Tensor:
    """Return cos(theta + angle), and cos(theta) - angle · sin(angle) where theta + angle passes pi.

    The gradient is the fork's: 1 where sin(theta) is 0 (cosines over 1 count as 1).
    """
    fixed = cos.detach().clamp(max=1)
    sine = (1 - fixed.square()).clamp(min=0).sqrt()
    inside = fixed > math.cos(math.pi - angle)
    turned = fixed * math.cos(angle) - sine * math.sin(angle)
    slope = math.cos(angle) + math.sin(angle) * fixed / sine
    slope = torch.where(inside & (sine > 0), slope, 1)
    return torch.where(inside, turned, fixed - angle * math.sin(angle)) + slope * (cos - cos.detach())


def add_angle_to_label(x: Tensor, labels: Tensor, angle: float) -> Tensor:
    """Add the angle to the angle of each label's class."""
    return torch.where(own_class(x, labels), add_angle(x, angle), x)


def adaptive_scale(x: Tensor, labels: Tensor, scale: Tensor | float) -> Tensor:
    """Return AdaCos's next scale: log(mean sum of exp(scale · cos)) / cos(mean angle, at most pi / 4).

    The label's own class counts as exp(0), as in the fork.
    """
    x = x.detach()
    angle = torch.acos(x).mean().clamp(max=math.pi / 4)
    others = torch.where(own_class(x, labels), 0, x)
    return torch.log((scale * others).exp().sum() / x.shape[0]) / torch.cos(angle)


def combined_margin(x: Tensor, labels: Tensor, factor: float, angle: float, offset: float) -> Tensor:
    """Return cos(factor · theta + angle) - offset for each label's class."""
    own = own_class(x, labels)
    angles = torch.acos(torch.where(own, x, 0))  # the others' gradient is infinite at 1
    return torch.where(own, torch.cos(factor * angles + angle) - offset, x)


def arc_cosine(x: Tensor) -> Tensor:
    """Return the arc cosine; the fork's gradient limits x to 0.99."""
    fixed = x.detach()
    slope = -torch.rsqrt(1 - fixed.clamp(max=0.99).square())
    return torch.acos(fixed) + slope.nan_to_num() * (x - fixed)


def fork_cosine(x: Tensor) -> Tensor:
    """Return the cosine; the fork's backward pass gives -sin(x) whatever gradient it gets."""
    if x.requires_grad:
        x = x.view_as(x)
        slope = -torch.sin(x.detach())
        x.register_hook(lambda gradient: slope)
    return x.detach().cos() + (x - x.detach())


uses(add_to_label, own_class)
uses(rescale_label, own_class)
uses(add_angle_to_label, own_class, add_angle)
uses(adaptive_scale, own_class)
uses(combined_margin, own_class)

# ---------------------------------------------------------------------- layers


class _LabelMargin(Layer):
    """A layer that changes the value of each label's class."""

    bottom_count = (2, 2)
    index_bottoms = (1,)
    skips_negative_labels = True

    def plan(self, x: Shape, labels: Shape) -> LayerPlan:
        if len(x) < 2 or prod(labels) != x[0]:
            raise self.error(f"needs scores N×C and one label per image, not {list(x)} and {list(labels)}")
        return LayerPlan([x, (1,)][: len(self.node.tops)])

    def _check_labels(self, x: Tensor, labels: Tensor) -> None:
        checked = labels.clamp(min=0) if self.skips_negative_labels else labels
        check_labels(self, checked, prod(x.shape[1:]), None)

    def _own_onnx(self, graph: OnnxGraph, x: str, labels: str) -> str:
        """Add `own_class` to a graph."""
        classes = prod(graph.size(x, axis) for axis in range(1, len(graph.shape(x))))
        numbers_of_classes, _ = labels_onnx(graph, labels, None)
        every = graph.constant(np.arange(classes, dtype=np.int64))
        own = graph.node("Equal", [numbers_of_classes, every])
        if len(graph.shape(x)) == 2:
            return own
        return graph.node("Reshape", [own, shape_of(graph, x)])


def _scalar(graph: OnnxGraph, value: float) -> str:
    return graph.constant(numbers(value))


@register_layer("LabelSpecificAdd")
class LabelSpecificAdd(_LabelMargin, CountsPasses):
    """In training ``bias`` is added to the label's value where that is above -bias; otherwise values pass unchanged.

    Where ``bias_base`` is stated the bias is bias_base + (1 + bias_gamma iteration)^bias_power - 1, limited to bias_min
    and bias_max.  The second top is the bias (0 where nothing is added).  ``transform_test`` changes nothing: the fork
    reads it in phase TRAIN only.
    Source: happynear/caffe-windows, label_specific_add.cpp (AMSoftmax; Wang et al., 2018).
    """

    message = "label_specific_add_param"
    in_place = True
    fields = (
        *("bias", "transform_test", "iteration"),
        *("bias_base", "bias_gamma", "bias_power", "bias_min", "bias_max"),
    )
    top_count = (1, 2)
    skips_negative_labels = False

    def setup(self, *ranks: int) -> None:
        self.start_counting()
        self.anneals: bool = self.param.HasField("bias_base")
        self.has_state = self.anneals
        if self.anneals and self.param.bias_gamma < 0:
            raise self.error(f"bias_gamma {self.param.bias_gamma:g} must be at least 0")

    def _bias(self, passes: int) -> float:
        p = self.param
        if not self.anneals:
            return float(p.bias)
        bias = p.bias_base + (1 + p.bias_gamma * (p.iteration + passes)) ** p.bias_power - 1
        return float(min(max(bias, p.bias_min), p.bias_max))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        bias = 0.0
        if self.training:
            self._check_labels(x, labels)
            bias = self._bias(self.take_pass())
            top = add_to_label(x, labels, bias)
        else:
            top = x
        return (top, constant_top(bias, x))[: len(self.node.tops)]

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        top, bias = x, 0.0
        if self.is_train:
            bias = self._bias(0)
            above = graph.node("Greater", [x, _scalar(graph, -bias)])
            moved = graph.node("And", [self._own_onnx(graph, x, labels), above])
            top = graph.node("Where", [moved, graph.node("Add", [x, _scalar(graph, bias)]), x])
        return [top, graph.node("Identity", [graph.constant(numbers([bias]))])][: len(self.node.tops)]

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        top, bias = x, "0.0"
        if self.is_train:
            bias = literal(self._bias(0))
            top = f"{code.helper(add_to_label)}({x}, {labels}, {bias})"
        return [top, f"{x}.new_tensor([{bias}])"][: len(self.node.tops)]


@register_layer("LabelSpecificRescale")
class LabelSpecificRescale(_LabelMargin):
    """In training the label's value times ``positive_weight`` and the others times ``negative_weight``.

    In phase TEST only with ``rescale_test``.  Later versions of the layer have further fields, which are refused by name.
    Source: happynear/caffe-windows, label_specific_rescale_layer.cpp.
    """

    message = "label_specific_rescale_param"
    in_place = True
    fields = ("positive_weight", "negative_weight", "rescale_test")
    skips_negative_labels = False

    @property
    def _rescales(self) -> bool:
        return self.is_train or self.param.rescale_test

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
        if not (self.training or self.param.rescale_test):
            return (x,)
        self._check_labels(x, labels)
        return (rescale_label(x, labels, self.param.positive_weight, self.param.negative_weight),)

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        if not self._rescales:
            return [graph.node("Identity", [x])]
        factors = [_scalar(graph, self.param.positive_weight), _scalar(graph, self.param.negative_weight)]
        return [graph.node("Mul", [x, graph.node("Where", [self._own_onnx(graph, x, labels), *factors])])]

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        if not self._rescales:
            return [x]
        factors = f"{literal(self.param.positive_weight)}, {literal(self.param.negative_weight)}"
        return [f"{code.helper(rescale_label)}({x}, {labels}, {factors})"]


@register_layer("CosinAddm")
class CosinAddm(_LabelMargin):
    """cos(theta + m) for the label's class, and cos(theta) - m sin(m) where theta + m passes pi, in both phases.

    Rows with a negative label pass unchanged; ``transform_test`` changes nothing on the CPU.
    Source: xialuxi/arcface-caffe, cosin_add_m_layer.cpp (ArcFace; Deng et al., 2018).
    """

    message: ClassVar[str] = "cosin_add_m_param"
    in_place: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("m", "transform_test")

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        self._check_labels(x, labels)
        return (add_angle_to_label(x, labels, self.param.m),)

    def _turned_onnx(self, graph: OnnxGraph, x: str, labels: str) -> str:
        angle = self.param.m
        cos = graph.node("Min", [x, _scalar(graph, 1)])
        square = graph.node("Mul", [cos, cos])
        rest = graph.node("Max", [graph.node("Sub", [_scalar(graph, 1), square]), _scalar(graph, 0)])
        along = graph.node("Mul", [cos, _scalar(graph, math.cos(angle))])
        across = graph.node("Mul", [graph.node("Sqrt", [rest]), _scalar(graph, math.sin(angle))])
        inside = graph.node("Greater", [cos, _scalar(graph, math.cos(math.pi - angle))])
        outside = graph.node("Sub", [cos, _scalar(graph, angle * math.sin(angle))])
        turned = graph.node("Where", [inside, graph.node("Sub", [along, across]), outside])
        return graph.node("Where", [self._own_onnx(graph, x, labels), turned, x])

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        return [self._turned_onnx(graph, x, labels)]

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        return [f"{code.helper(add_angle_to_label)}({x}, {labels}, {literal(self.param.m)})"]


@register_layer("AdaCosAddmScale")
class AdaCosAddmScale(CosinAddm):
    """CosinAddm, then a scale that follows the cosines (AdaCos; Zhang et al., 2019).

    The scale is log(mean over rows of the sum of exp(s cos), where the label's class counts as exp(0)) over cos(mean
    angle, at most pi / 4); s is the scale of the pass before, at first sqrt(2) log(num_classes - 1).  It gets no gradient.
    In Python each pass is the first one unless the net was loaded with ``carry_state=True``.
    Source: xialuxi/arcface-caffe, AdaCos/adacos_add_m_scale_layer.cpp.
    """

    message = "adacos_add_m_scale_param"
    in_place = False
    fields = ("m", "num_classes", "transform_test")
    carry_state = False  # set by the net
    initial_state = "the first scale"
    last_scale: Tensor | None

    def setup(self, *ranks: int) -> None:
        if self.param.num_classes <= 2:
            raise self.error(f"num_classes {self.param.num_classes:g} must be over 2")
        self.first_scale = math.sqrt(2) * math.log(self.param.num_classes - 1)
        self.has_state = True
        self.register_buffer("last_scale", None, persistent=False)

    def reset_state(self) -> None:
        """Start the next pass from the first scale."""
        self.last_scale = None

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        (turned,) = super().forward(x, labels)
        before = self.first_scale if self.last_scale is None else self.last_scale
        scale = adaptive_scale(x, labels, before)
        if self.carry_state:
            self.last_scale = scale
        return (scale * turned,)

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        from onnx import TensorProto

        turned = self._turned_onnx(graph, x, labels)
        angle = graph.node("ReduceMean", [graph.node("Acos", [x])], keepdims=0)
        angle = graph.node("Min", [angle, _scalar(graph, math.pi / 4)])
        others = graph.node("Where", [self._own_onnx(graph, x, labels), _scalar(graph, 0), x])
        powers = graph.node("Exp", [graph.node("Mul", [others, _scalar(graph, self.first_scale)])])
        total = graph.node("ReduceSum", [powers], keepdims=0)
        rows = graph.node("Squeeze", [graph.node("Shape", [x], start=0, end=1), graph.constant(integers(0))])
        mean = graph.node("Div", [total, graph.node("Cast", [rows], to=TensorProto.FLOAT)])
        scale = graph.node("Div", [graph.node("Log", [mean]), graph.node("Cos", [angle])])
        return [graph.node("Mul", [scale, turned])]

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        scale = f"{code.helper(adaptive_scale)}({x}, {labels}, {exact(self.first_scale)})"
        (turned,) = super().source(code, x, labels)
        return [f"{scale} * {turned}"]


@register_layer("CombinedMargin")
class CombinedMargin(_LabelMargin):
    """cos(m1 theta + m2) - m3 for the label's class, in both phases: SphereFace, ArcFace and CosFace in one.

    Rows with a negative label pass unchanged; ``transform_test`` changes nothing on the CPU.
    Source: xialuxi/arcface-caffe, combined_margin_layer.cpp.
    """

    message = "combined_margin_param"
    fields = ("m1", "m2", "m3", "transform_test")

    def setup(self, *ranks: int) -> None:
        self.margins: tuple[float, float, float] = (self.param.m1, self.param.m2, self.param.m3)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
        self._check_labels(x, labels)
        return (combined_margin(x, labels, *self.margins),)

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        factor, angle, offset = (_scalar(graph, margin) for margin in self.margins)
        theta = graph.node("Add", [graph.node("Mul", [graph.node("Acos", [x]), factor]), angle])
        turned = graph.node("Sub", [graph.node("Cos", [theta]), offset])
        return [graph.node("Where", [self._own_onnx(graph, x, labels), turned, x])]

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        return [f"{code.helper(combined_margin)}({x}, {labels}, {', '.join(map(literal, self.margins))})"]


@register_layer("Arccos")
class Arccos(Layer):
    """The arc cosine (source: happynear/caffe-windows, arccos_layer.cpp)."""

    in_place = True

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (arc_cosine(x),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Acos", [x])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{code.helper(arc_cosine)}({x})"]


@register_layer("Cosine")
class Cosine(Layer):
    """The cosine (source: happynear/caffe-windows, cosine_layer.cpp); written source has the exact gradient."""

    in_place = True

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (fork_cosine(x),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Cos", [x])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"torch.cos({x})"]
