"""The base of all losses, and those that include a softmax: SoftmaxWithLoss and InfogainLoss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .math import shortest
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, exact, integers, numbers, uses
from .support.labels import (
    check_label_count,
    check_labels,
    ignored_label,
    label_rows,
    label_rows_onnx,
    normalization,
    normalized_sum,
    normalized_sum_onnx,
)
from .support.registry import register_layer

# Caffe takes no logarithm of anything smaller: FLT_MIN in SoftmaxWithLoss, kLOG_THRESHOLD elsewhere.
FLT_MIN = 2.0**-126
LOG_THRESHOLD = 1e-20

# ---------------------------------------------------------------------- torch, also for written source


def floored_log_softmax(rows: Tensor, floor: float) -> Tensor:
    """Return the log of the softmax, at least `floor`; as in Caffe the gradient is not cut off below it."""
    log_p = F.log_softmax(rows, -1)
    return torch.where(log_p < floor, floor + (log_p - log_p.detach()), log_p)


def softmax_loss(
    x: Tensor,
    labels: Tensor,
    axis: int,
    *,
    mode: str | float,
    ignore_label: int | None,
    floor: float,
    weights: list[float] | None = None,
) -> Tensor:
    """Return the negative log probabilities of the labels, weighted by class, summed and normalized as Caffe does."""
    rows, labels, counts = label_rows(x, labels, axis, ignore_label)
    losses = -floored_log_softmax(rows, floor).gather(1, labels[:, None])[:, 0]
    if weights:
        losses = losses * losses.new_tensor(weights)[labels]
    return normalized_sum(losses, counts, mode, math.prod(x.shape[:axis]))


def infogain_loss(
    x: Tensor,
    labels: Tensor,
    matrix: Tensor,
    axis: int,
    *,
    mode: str | float,
    ignore_label: int | None,
    floor: float,
) -> Tensor:
    """Return the negative log probabilities of all classes, weighted by the label's row of the matrix."""
    rows, labels, counts = label_rows(x, labels, axis, ignore_label)
    weights = matrix.detach().reshape(rows.shape[1], -1)[labels]
    losses = -(weights * floored_log_softmax(rows, floor)).sum(1)
    return normalized_sum(losses, counts, mode, math.prod(x.shape[:axis]))


uses(softmax_loss, label_rows, floored_log_softmax, normalized_sum)
uses(infogain_loss, label_rows, floored_log_softmax, normalized_sum)

# ---------------------------------------------------------------------- layers


class Loss(Layer):
    """A scalar top with weight 1; the bottoms have equally many images (Caffe's LossLayer)."""

    bottom_count = (2, 2)
    is_loss = True
    # Whether it reads loss_param.class_weighting.
    weighs_classes = False

    def _check_first_axis(self, x: Shape, labels: Shape) -> None:
        if x[:1] != labels[:1] or not x:
            raise self.error(f"bottoms {list(x)} and {list(labels)} differ in their first axis")


class SoftmaxLoss(Loss):
    """Losses that include a softmax, which is the optional second top."""

    other_messages = ("loss_param",)
    index_bottoms = (1,)
    top_count = (1, 2)
    floor: float

    def setup(self, x: int, *others: int) -> None:
        self.mode = normalization(self, "VALID")
        self.ignore = ignored_label(self.node.layer.loss_param)
        self.dim = self.axis(self._class_axis(), x)

    def _class_axis(self) -> int:
        return int(self.param.axis)

    def plan(self, x: Shape, labels: Shape, *others: Shape) -> LayerPlan:
        self._check_first_axis(x, labels)
        check_label_count(self, x, labels, self.dim)
        return LayerPlan([(), x][: max(len(self.node.tops), 1)])

    def _tops(self, loss: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        # Caffe's backward pass starts from the loss only, whatever reads the probabilities.
        return (loss, F.softmax(x.detach(), self.dim))[: max(len(self.node.tops), 1)]

    def _log_rows_onnx(self, graph: OnnxGraph, x: str, labels: str) -> tuple[str, str, str]:
        rows, labels, counts = label_rows_onnx(graph, x, labels, self.dim, self.ignore)
        log_p = graph.node("LogSoftmax", [rows], axis=-1)
        return graph.node("Max", [log_p, graph.constant(numbers(self.floor))]), labels, counts

    def _tops_onnx(self, graph: OnnxGraph, x: str, losses: str, counts: str) -> list[str]:
        mean = normalized_sum_onnx(graph, losses, counts, self.mode, (x, self.dim))
        if len(self.node.tops) < 2:
            return [mean]
        return [mean, graph.node("Softmax", [x], axis=self.dim)]

    def _options(self) -> dict[str, Any]:
        return {"mode": self.mode, "ignore_label": self.ignore, "floor": self.floor}

    def _call(self, name: str, *arguments: str) -> str:
        options = [f"{key}={exact(value)}" for key, value in self._options().items()]
        return f"{name}({', '.join([*arguments, str(self.dim), *options])})"

    def _tops_source(self, x: str, loss: str) -> list[str]:
        return [loss, f"F.softmax({x}, dim={self.dim})"][: max(len(self.node.tops), 1)]


@register_layer("SoftmaxWithLoss")
class SoftmaxWithLoss(SoftmaxLoss):
    """Softmax and multinomial logistic loss in one; the optional second top is the softmax.

    SegNet's Caffe: ``weight_by_label_freqs`` multiplies each loss by the ``class_weighting`` of its label; the divisor
    counts labels, not weights.  Without the flag the weights are not read.  Of happynear's ``normalize_type`` the
    default, Softmax, is Caffe's.
    """

    message = "softmax_param"
    fields = ("axis",)
    fork_fields = ("softmax_param.normalize_type",)
    floor = math.log(FLT_MIN)
    weighs_classes = True

    def setup(self, x: int, *others: int) -> None:
        super().setup(x)
        kind = (self.fork_field("softmax_param.normalize_type") or "Softmax").strip("\"'")
        if kind != "Softmax":
            raise self.error(f"softmax_param.normalize_type {kind!r} is not supported; use Softmax")
        stated = self.node.layer.loss_param
        self.weights = [shortest(weight) for weight in stated.class_weighting]
        if not stated.weight_by_label_freqs:
            if self.weights:
                self.note = "class_weighting is not read without weight_by_label_freqs: true"
            self.weights = []
        elif not self.weights:
            raise self.error(
                "weight_by_label_freqs has no class_weighting; state one weight per class, or remove the flag"
            )

    def plan(self, x: Shape, labels: Shape, *others: Shape) -> LayerPlan:
        if self.weights and len(self.weights) != x[self.dim]:
            raise self.error(
                f"class_weighting is stated {len(self.weights)} times for {x[self.dim]} classes; state one per class"
            )
        return super().plan(x, labels)

    def _options(self) -> dict[str, Any]:
        options = super()._options()
        return {**options, "weights": self.weights} if self.weights else options

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        check_labels(self, labels, x.shape[self.dim], self.ignore)
        return self._tops(softmax_loss(x, labels, self.dim, **self._options()), x)

    def onnx(self, graph: OnnxGraph, x: str, labels: str) -> list[str]:
        log_p, labels, counts = self._log_rows_onnx(graph, x, labels)
        losses = graph.node("Neg", [graph.node("GatherElements", [log_p, labels], axis=1)])
        if self.weights:
            weights = graph.node("Gather", [graph.constant(numbers(self.weights)), labels], axis=0)
            losses = graph.node("Mul", [losses, weights])
        return self._tops_onnx(graph, x, losses, counts)

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        return self._tops_source(x, self._call(code.helper(softmax_loss), x, labels))


@register_layer("InfogainLoss")
class InfogainLoss(SoftmaxLoss):
    """Softmax loss with a weight for each pair of label and class: H[label, class].

    The matrix is the third bottom or, without one, that of `source`, a binaryproto.  Layers read no files:
    `load_net` reads it and calls `set_matrix`, as must any other caller of `CaffeNet`.
    """

    message = "infogain_loss_param"
    fields = ("axis", "source")
    bottom_count = (2, 3)
    floor = math.log(LOG_THRESHOLD)
    matrix: Tensor | None

    def setup(self, x: int, *others: int) -> None:
        super().setup(x)
        if self.node.layer.loss_param.HasField("normalize"):
            raise self.error("loss_param.normalize is deprecated and Caffe refuses it; write normalization")
        if len(self.node.bottoms) < 3 and not self.param.source:
            raise self.error("has no matrix; give it as third bottom or as infogain_loss_param.source")
        self.register_buffer("matrix", None, persistent=False)

    def plan(self, x: Shape, labels: Shape, *matrix: Shape) -> LayerPlan:
        plan = super().plan(x, labels)
        for shape in matrix:
            self._check_matrix(shape, x[self.dim])
        return plan

    def _check_matrix(self, shape: Sequence[int], classes: int) -> None:
        if math.prod(shape) != classes**2:
            raise self.error(
                f"matrix {list(shape)} has {math.prod(shape)} values; {classes} classes need {classes**2}"
            )

    @property
    def matrix_file(self) -> str:
        """The path of the matrix that still has to be read; empty where there is none."""
        return self.param.source if len(self.node.bottoms) < 3 and self.matrix is None else ""

    def set_matrix(self, values: np.ndarray, scores: Shape) -> None:
        """Set the matrix, in any shape, for scores of this shape; raises LayerError unless it has classes² values."""
        classes = scores[self.dim]
        self._check_matrix(values.shape, classes)
        self.matrix = torch.from_numpy(np.array(values, np.float32).reshape(classes, classes))

    def _matrix(self) -> Tensor:
        if self.matrix is None:
            raise self.error(
                f"matrix {self.param.source} was not read; use load_net, or "
                "set_matrix(read_blob(path), net.shapes[bottom])"
            )
        return self.matrix

    def forward(self, x: Tensor, labels: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        check_labels(self, labels, x.shape[self.dim], self.ignore)
        matrix = given[0] if given else self._matrix()
        return self._tops(infogain_loss(x, labels, matrix, self.dim, **self._options()), x)

    def onnx(self, graph: OnnxGraph, x: str, labels: str, *given: str) -> list[str]:
        log_p, labels, counts = self._log_rows_onnx(graph, x, labels)
        if given:
            square = integers(*[graph.size(x, self.dim)] * 2)
            matrix = graph.node("Reshape", [*given, graph.constant(square)])
        else:
            matrix = graph.constant(numbers(self._matrix()))
        weights = graph.node("GatherND", [matrix, labels])
        total = graph.node(
            "ReduceSum", [graph.node("Mul", [weights, log_p]), graph.constant(integers(1))], keepdims=1
        )
        return self._tops_onnx(graph, x, graph.node("Neg", [total]), counts)

    def source(self, code: SourceCode, x: str, labels: str, *given: str) -> list[str]:
        matrix = given[0] if given else code.buffer("matrix", self._matrix())
        return self._tops_source(x, self._call(code.helper(infogain_loss), x, labels, matrix))
