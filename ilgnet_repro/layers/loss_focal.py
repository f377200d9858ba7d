"""FocalLoss: softmax loss in which labels that are predicted well count less (Lin et al., 2017)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .loss import FLT_MIN, SoftmaxLoss, floored_log_softmax
from .support.base import OnnxGraph, SourceCode, literal, numbers, uses
from .support.labels import check_labels, label_rows, normalized_sum
from .support.registry import register_layer


def focal_loss(
    x: Tensor,
    labels: Tensor,
    axis: int,
    *,
    gamma: float,
    alpha: float,
    base: float,
    sign: int,
    mode: str | float,
    ignore_label: int | None,
    floor: float,
) -> Tensor:
    """Return alpha · (base + sign · p)^gamma · -log p of the labels' probabilities p, summed and normalized.

    As in the forks the gradient divides by 1 + sign · p, also where the base is not 1.
    """
    rows, labels, counts = label_rows(x, labels, axis, ignore_label)
    path = floored_log_softmax(rows, floor).gather(1, labels[:, None])[:, 0]
    log_p = path.detach()
    p = log_p.exp()
    power = alpha * (base + sign * p).clamp(min=0) ** gamma
    slope = power + sign * gamma * power / (1 + sign * p).clamp(min=1e-10) * log_p * p
    losses = -power * log_p - slope * (path - log_p)
    return normalized_sum(losses, counts, mode, math.prod(x.shape[:axis]))


uses(focal_loss, label_rows, floored_log_softmax, normalized_sum)

PAPER = "FocalLoss as in the paper: alpha (1 - p)^gamma"
ADDED = "FocalLoss of happynear's Caffe, by "


@register_layer("FocalLoss")
class FocalLoss(SoftmaxLoss):
    """-alpha (1 − p)^gamma log p of each label's probability p; the optional second top is the softmax.

    alpha is 0.25 by default.  happynear's layer, for face verification, has it in place of the 1: an alpha over 1, which
    would make no sense as a factor, shows (alpha − p)^gamma, and ``type: ONEADDP`` is (alpha + p)^gamma, alpha 1 by
    default.
    Source: troyliu0105/caffe and happynear/caffe-windows, focal_loss_layer.cpp.
    """

    message = "focal_loss_param"
    fields = ("type", "gamma", "alpha", "beta", "axis", "activate")
    floor = math.log(FLT_MIN)

    def setup(self, x: int, *others: int) -> None:
        super().setup(x)
        p = self.param
        if p.type == p.LINEAR:
            raise self.error("type LINEAR is not supported; use ORIGIN or ONEADDP")
        if p.activate != p.SOFTMAX:
            name = p.ActivateType.Name(p.activate)
            raise self.error(f"activate {name} is not supported; use SOFTMAX")
        if p.gamma < 0 or (p.HasField("alpha") and not p.alpha > 0):
            raise self.error(f"gamma {p.gamma:g} must be at least 0 and alpha {p.alpha:g} over 0")
        self.gamma: float = p.gamma
        self.alpha, self.base, self.sign = p.alpha if p.HasField("alpha") else 0.25, 1.0, -1
        self.note = PAPER
        if p.type == p.ONEADDP:
            self.alpha, self.base, self.sign = 1.0, p.alpha if p.HasField("alpha") else 1.0, 1
            self.note = ADDED + "type: ONEADDP: (alpha + p)^gamma"
        elif self.alpha > 1:
            self.alpha, self.base = 1.0, self.alpha
            self.note = ADDED + "an alpha over 1: (alpha - p)^gamma"

    def _class_axis(self) -> int:
        return int(self.param.axis if self.param.HasField("axis") else self.node.layer.softmax_param.axis)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        check_labels(self, labels, x.shape[self.dim], self.ignore)
        factors: dict[str, Any] = {
            "gamma": self.gamma,
            "alpha": self.alpha,
            "base": self.base,
            "sign": self.sign,
        }
        return self._tops(focal_loss(x, labels, self.dim, **factors, **self._options()), x)

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        rows, labels, counts = self._log_rows_onnx(graph, x, labels)
        log_p = graph.node("GatherElements", [rows, labels], axis=1)
        p = graph.node("Mul", [graph.node("Exp", [log_p]), graph.constant(numbers(self.sign))])
        factor = graph.node("Relu", [graph.node("Add", [p, graph.constant(numbers(self.base))])])
        factor = graph.node("Pow", [factor, graph.constant(numbers(self.gamma))])
        weight = graph.node("Mul", [factor, graph.constant(numbers(-self.alpha))])
        return self._tops_onnx(graph, x, graph.node("Mul", [weight, log_p]), counts)

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        values = {"gamma": self.gamma, "alpha": self.alpha, "base": self.base}
        factors = [f"{name}={literal(value)}" for name, value in values.items()]
        call = self._call(code.helper(focal_loss), x, labels)
        return self._tops_source(x, f"{call[:-1]}, {', '.join(factors)}, sign={self.sign})")
