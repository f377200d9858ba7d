"""Layers that draw random numbers in training: Dropout, SpatialDropout (ENet's too), SeLuDropout, Insanity."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .python_layer import PythonLayer, register_python_layer
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, literal, numbers
from .support.registry import register_layer

DRAWS_IN_TEST = "sample_weights_test draws random numbers in each pass"


class _Dropout(Layer):
    """Values are zeroed at random; uses torch's default generator: seed it with `torch.manual_seed`."""

    in_place = True

    def _check_ratio(self, ratio: float) -> float:
        if not 0 <= ratio < 1:
            raise self.error(f"dropout_ratio {ratio:g} must be at least 0 and below 1")
        return ratio


@register_layer("Dropout")
class Dropout(_Dropout):
    """In training, values are zeroed at random and the rest scaled by 1 / (1 − ratio); else they pass unchanged.

    Fields of forks: with ``scale_train: false`` the kept values are not scaled in training, and all are multiplied by
    1 − ratio otherwise (CTPN); with ``sample_weights_test`` phase TEST draws as TRAIN does (SegNet).
    """

    message = "dropout_param"
    fields = ("dropout_ratio", "scale_train", "sample_weights_test")
    no_float16 = ""

    def setup(self, rank: int) -> None:
        self.ratio = self._check_ratio(self.param.dropout_ratio)
        self.scales_train: bool = self.param.scale_train
        self.always_draws: bool = self.param.sample_weights_test
        if self.is_train:
            self.no_onnx = "it draws random numbers in each pass in phase TRAIN"
        elif self.always_draws:
            self.no_onnx = DRAWS_IN_TEST

    def is_identity(self) -> bool:
        return self.scales_train and not self.always_draws and not self.is_train

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if self.training or self.always_draws:
            kept = F.dropout(x, self.ratio, training=True)
            return (kept if self.scales_train else kept * (1 - self.ratio),)
        return (x if self.scales_train else x * (1 - self.ratio),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        if self.scales_train:
            return [x]
        return [graph.node("Mul", [x, graph.constant(numbers(1 - self.ratio))])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        ratio = literal(self.ratio)
        if self.always_draws:
            top = f"F.dropout({x}, {ratio})"
        else:
            drop = code.module(f"nn.Dropout({ratio})")
            top = f"{drop}({x})"
        return [top if self.scales_train else f"{top} * (1 - {ratio})"]


def alpha_dropout(x: Tensor, ratio: float, alpha: float, scale: float, shift: float) -> Tensor:
    """Return scale · x + shift, with x replaced by alpha at random."""
    dropped = torch.rand_like(x) < ratio
    return scale * torch.where(dropped, alpha, x) + shift


@register_layer("SeLuDropout")
class SeLuDropout(_Dropout):
    """In training, values are replaced by alpha at random, and the result keeps the mean and variance of 0 and 1.

    With the ratio r it is a · x + b: a = ((1 − r)(1 + r · alpha²))^−½, b = −a · r · alpha (Klambauer et al., 2017).
    Source: HolmesShuan/SNNs-Self-Normalizing-Neural-Networks-Caffe-Reimplementation, selu_dropout_layer.cpp.
    """

    message = "selu_dropout_param"
    fields = ("dropout_ratio", "alpha")

    def setup(self, rank: int) -> None:
        self.ratio = self._check_ratio(self.param.dropout_ratio)
        self.alpha: float = self.param.alpha
        self.scale = ((1 - self.ratio) * (1 + self.ratio * self.alpha**2)) ** -0.5
        self.shift = -self.scale * self.ratio * self.alpha
        if self.is_train:
            self.no_onnx = "it draws random numbers in each pass in phase TRAIN"

    def is_identity(self) -> bool:
        return not self.is_train

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (alpha_dropout(x, self.ratio, self.alpha, self.scale, self.shift) if self.training else x,)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [x]

    def source(self, code: SourceCode, x: str) -> list[str]:
        if not self.is_train:
            return [x]
        values = ", ".join(map(literal, (self.ratio, self.alpha, self.scale, self.shift)))
        return [f"{code.helper(alpha_dropout)}({x}, {values}) if self.training else {x}"]


def drop_channels(x: Tensor, ratio: float, training: bool = True) -> Tensor:
    """In training, zero whole channels at random and scale the others by 1 / (1 - ratio)."""
    return x * F.dropout(x.new_ones(x.shape[0], x.shape[1], *[1] * (x.dim() - 2)), ratio, training)


@register_layer("SpatialDropout")
class SpatialDropout(_Dropout):
    """In training, whole channels are zeroed at random and the others scaled by 1 / (1 − ratio).

    The ratio is that of ``dropout_param`` or, in some versions, ``spatial_dropout_param``.
    Source: intel/caffe, spatial_dropout_layer.cpp; Tompson et al., 2015.
    """

    message = "dropout_param"
    other_messages = ("spatial_dropout_param",)
    fields = ("dropout_ratio",)

    def setup(self, rank: int) -> None:
        text = self.node.layer
        if text.HasField("dropout_param") and text.HasField("spatial_dropout_param"):
            raise self.error("states both dropout_param and spatial_dropout_param; keep one")
        stated = text.spatial_dropout_param if text.HasField("spatial_dropout_param") else self.param
        self.ratio = self._check_ratio(stated.dropout_ratio)
        if self.is_train:
            self.no_onnx = "it draws random numbers in each pass in phase TRAIN"

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) < 2:
            raise self.error(f"bottom {list(x)} has no channel axis; it takes 2 axes or more")
        return LayerPlan([x])

    def is_identity(self) -> bool:
        return not self.is_train

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (drop_channels(x, self.ratio) if self.training else x,)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [x]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{code.helper(drop_channels)}({x}, {literal(self.ratio)}, self.training)"]


@register_python_layer("spatial_dropout", "SpatialDropoutLayer")
class SpatialDropoutOfENet(PythonLayer):
    """With ``'phase': 'TRAIN'`` in its `param_str`, channels are zeroed at random with the probability `p`.

    The others, and all with another ``phase``, are divided by 1 - p, in either phase of the net.  The fork's backward
    pass uses the last image's draws for every image; here each image has its own. Source: TimoSaemann/caffe-enet,
    python/spatial_dropout.py.
    """

    bottom_count = (1, 1)
    top_count = (1, 1)
    no_onnx = no_source = ""

    def setup(self) -> None:
        settings = self.settings
        for name in ("phase", "p"):
            if name not in settings:
                raise self.error("param_str must have phase and p, as in {'phase': 'TRAIN', 'p': '0.1'}")
        try:
            self.ratio = float(settings["p"])
        except (TypeError, ValueError):
            raise self.error(f"param_str: p {settings['p']!r} is not a number") from None
        if not 0 < self.ratio < 1:
            raise self.error(f"param_str: p {self.ratio:g} must be between 0 and 1")
        self.draws: bool = settings["phase"] == "TRAIN"
        if self.draws:
            self.no_onnx = "phase TRAIN in its param_str draws random numbers in each pass"

    def reshape(self, bottoms: list[Shape]) -> list[Shape]:
        if len(bottoms[0]) != 4:
            raise self.error(f"bottom {list(bottoms[0])} must have four axes, N×C×H×W")
        return bottoms

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (drop_channels(x, self.ratio) if self.draws else x / (1 - self.ratio),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Div", [x, graph.constant(numbers(1 - self.ratio))])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        ratio = literal(self.ratio)
        return [f"{code.helper(drop_channels)}({x}, {ratio})" if self.draws else f"{x} / (1 - {ratio})"]


def random_leaky_relu(x: Tensor, least: float, greatest: float) -> Tensor:
    """Divide each negative value by a number of its own, drawn between the two."""
    return torch.where(x > 0, x, x / torch.empty_like(x).uniform_(least, greatest))


@register_layer("Insanity")
class Insanity(Layer):
    """Randomized leaky ReLU: in training each negative value is divided by a number drawn from [lb, ub].

    Otherwise all are divided by the logarithmic mean (ub − lb) / (log|ub| − log|lb|).
    Source: happynear/caffe-windows, insanity_layer.cpp; Xu et al., 2015.
    """

    message = "insanity_param"
    in_place = True
    fields = ("lb", "ub")

    def setup(self, rank: int) -> None:
        self.least: float = self.param.lb
        self.greatest: float = self.param.ub
        if not self.least < self.greatest or 0 in (self.least, self.greatest):
            raise self.error(f"lb {self.least:g} must be below ub {self.greatest:g}, and neither 0")
        logarithms = math.log(abs(self.greatest)), math.log(abs(self.least))
        if logarithms[0] == logarithms[1]:
            raise self.error(f"lb {self.least:g} and ub {self.greatest:g} have no logarithmic mean")
        self.slope = (logarithms[0] - logarithms[1]) / (self.greatest - self.least)
        if self.is_train:
            self.no_onnx = "it draws random numbers in each pass in phase TRAIN"

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) < 2:
            raise self.error(f"bottom {list(x)} has {len(x)} axes; it takes 2 or more")
        return LayerPlan([x])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if self.training:
            return (random_leaky_relu(x, self.least, self.greatest),)
        return (F.leaky_relu(x, self.slope),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("LeakyRelu", [x], alpha=self.slope)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        if self.is_train:
            limits = f"{literal(self.least)}, {literal(self.greatest)}"
            return [f"{code.helper(random_leaky_relu)}({x}, {limits})"]
        return [f"F.leaky_relu({x}, {self.slope!r})"]
