"""GradientScaler: the identity whose gradient is reversed and scaled (domain adaptation, Ganin and Lempitsky, 2015)."""

from __future__ import annotations

import math

from torch import Tensor

from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode
from .support.iteration import CountsPasses
from .support.registry import register_layer
from .support.shared import values_of

_FIELDS = ("lower_bound", "upper_bound", "alpha", "max_iter")


@register_layer("GradientScaler")
class GradientScaler(CountsPasses):
    """y = x, with the gradient -k dy.

    In training k = 2 h / (1 + exp(-alpha p)) - h + lower_bound, h = upper_bound - lower_bound, where p goes from 0
    to 1 in `max_iter` iterations; k is 1 where no solver runs.  A pass is taken as an iteration.
    Source: ddtm/caffe, src/caffe/layers/gradient_scaler_layer.cpp.
    """

    message = "gradient_scaler_param"
    fields = _FIELDS
    no_source = ""

    def setup(self, rank: int) -> None:
        self.start_counting()
        absent = [name for name in _FIELDS if not self.param.HasField(name)]
        if self.is_train and absent:
            raise self.error(
                f"{' and '.join(absent)} must be stated in phase TRAIN; defaults differ between builds"
            )
        param = self.param
        if self.is_train and not (
            param.lower_bound <= param.upper_bound and param.max_iter >= 1 and param.alpha >= 0
        ):
            raise self.error(
                f"lower_bound {param.lower_bound:g} must be at most upper_bound {param.upper_bound:g}, max_iter "
                f"{param.max_iter:g} at least 1 and alpha {param.alpha:g} at least 0"
            )
        self.is_scaling = self.is_train
        if self.is_train:
            self.no_source = "its gradient changes with the iteration"

    def plan(self, x: Shape) -> LayerPlan:
        return LayerPlan([x])

    def is_identity(self) -> bool:
        return not self.is_train

    def factor(self, passes: int) -> float:
        """Return k for the iteration after a number of others."""
        param = self.param
        height = param.upper_bound - param.lower_bound
        progress = min(1.0, passes / param.max_iter)
        return float(2 * height / (1 + math.exp(-param.alpha * progress)) - height + param.lower_bound)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        factor = self.factor(self.take_pass()) if self.carry_state and self.is_scaling else 1.0
        return (values_of(x, x * -factor),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Identity", [x])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [x]
