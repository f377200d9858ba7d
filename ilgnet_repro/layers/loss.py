"""The base of all losses, and those with a softmax inside: SoftmaxWithLoss and InfogainLoss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Layer, OnnxGraph, Shape, SourceCode, exact, integers, numbers
from .labels import (
    check_label_count,
    check_labels,
    ignored_label,
    label_rows,
    label_rows_onnx,
    normalization,
    normalized_sum,
    normalized_sum_onnx,
)
from .registry import register

# Caffe takes no logarithm of anything smaller: FLT_MIN in SoftmaxWithLoss, kLOG_THRESHOLD elsewhere.
FLT_MIN = 2.0**-126
LOG_THRESHOLD = 1e-20

# ---------------------------------------------------------------------- torch, also for written source


def floored_log_softmax(rows, floor):
    """Log of the softmax, at least `floor`; as in Caffe the gradient flows on below it."""
    log_p = F.log_softmax(rows, -1)
    return torch.where(log_p < floor, floor + (log_p - log_p.detach()), log_p)


def softmax_loss(x, labels, axis, *, mode, ignore_label, floor):
    """Minus the log of the label's probability, summed and normalized as Caffe does."""
    rows, labels, counts = label_rows(x, labels, axis, ignore_label)
    losses = -floored_log_softmax(rows, floor).gather(1, labels[:, None])[:, 0]
    return normalized_sum(losses, counts, mode, math.prod(x.shape[:axis]))


def infogain_loss(x, labels, matrix, axis, *, mode, ignore_label, floor):
    """Minus the log probabilities of all classes, weighed by the label's row of the matrix."""
    rows, labels, counts = label_rows(x, labels, axis, ignore_label)
    weights = matrix.detach().reshape(rows.shape[1], -1)[labels]
    losses = -(weights * floored_log_softmax(rows, floor)).sum(1)
    return normalized_sum(losses, counts, mode, math.prod(x.shape[:axis]))


softmax_loss.uses = (label_rows, floored_log_softmax, normalized_sum)  # type: ignore[attr-defined]
infogain_loss.uses = (label_rows, floored_log_softmax, normalized_sum)  # type: ignore[attr-defined]

# ---------------------------------------------------------------------- layers


class Loss(Layer):
    """A scalar top with weight 1; bottoms agree in their number of pictures (Caffe's LossLayer)."""

    bottom_count = (2, 2)
    is_loss = True

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        x, labels = bottoms[:2]
        if x[:1] != labels[:1] or not x:
            raise self.error(f"bottoms {list(x)} and {list(labels)} differ in their first axis")
        return [()]


class _SoftmaxLoss(Loss):
    """Losses with a softmax inside, which a second top gives out."""

    other_messages = ("loss_param",)
    index_bottoms = (1,)
    top_count = (1, 2)
    floor: float

    def setup(self) -> None:
        self.mode = normalization(self, "VALID")
        self.ignore = ignored_label(self.node.layer.loss_param)

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        super().top_shapes(bottoms)
        self.dim = self.axis(self.param.axis, len(bottoms[0]))
        check_label_count(self, bottoms[0], bottoms[1], self.dim)
        return [(), bottoms[0]][: max(len(self.node.tops), 1)]

    def _tops(self, loss: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        # Caffe's backward pass starts from the loss alone, whatever reads the probabilities.
        return (loss, F.softmax(x.detach(), self.dim))[: max(len(self.node.tops), 1)]

    def _log_rows_onnx(self, graph: OnnxGraph, bottoms: list[str]) -> tuple[str, str, str]:
        rows, labels, counts = label_rows_onnx(graph, bottoms[0], bottoms[1], self.dim, self.ignore)
        log_p = graph.node("LogSoftmax", [rows], axis=-1)
        return graph.node("Max", [log_p, graph.constant(numbers(self.floor))]), labels, counts

    def _tops_onnx(self, graph: OnnxGraph, bottoms: list[str], losses: str, counts: str) -> list[str]:
        mean = normalized_sum_onnx(graph, losses, counts, self.mode, (bottoms[0], self.dim))
        if len(self.node.tops) < 2:
            return [mean]
        return [mean, graph.node("Softmax", [bottoms[0]], axis=self.dim)]

    def _rules(self) -> dict[str, Any]:
        return {"mode": self.mode, "ignore_label": self.ignore, "floor": self.floor}

    def _call(self, name: str, *arguments: str) -> str:
        rules = [f"{key}={exact(value)}" for key, value in self._rules().items()]
        return f"{name}({', '.join([*arguments, str(self.dim), *rules])})"

    def _tops_source(self, x: str, loss: str) -> list[str]:
        return [loss, f"F.softmax({x}, dim={self.dim})"][: max(len(self.node.tops), 1)]


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(_SoftmaxLoss):
    """Softmax and multinomial logistic loss in one; the optional second top is the softmax."""

    message = "softmax_param"
    fields = ("axis",)
    floor = math.log(FLT_MIN)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        x, labels = bottoms
        check_labels(self, labels, x.shape[self.dim], self.ignore)
        return self._tops(softmax_loss(x, labels, self.dim, **self._rules()), x)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        log_p, labels, counts = self._log_rows_onnx(graph, bottoms)
        losses = graph.node("Neg", [graph.node("GatherElements", [log_p, labels], axis=1)])
        return self._tops_onnx(graph, bottoms, losses, counts)

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        x, labels = bottoms
        return self._tops_source(x, self._call(code.helper(softmax_loss), x, labels))


@register("InfogainLoss")
class InfogainLoss(_SoftmaxLoss):
    """Softmax loss with a weight for each pair of label and class: H[label, class].

    The matrix is the third bottom or, without one, that of `source`, a binaryproto: layers read no files,
    so `load_net` reads it and calls `set_matrix`; who builds a `CaffeNet` otherwise does the same.
    """

    message = "infogain_loss_param"
    fields = ("axis", "source")
    bottom_count = (2, 3)
    floor = math.log(LOG_THRESHOLD)
    matrix: Tensor | None

    def setup(self) -> None:
        super().setup()
        if self.node.layer.loss_param.HasField("normalize"):
            raise self.error("loss_param.normalize is deprecated and Caffe refuses it; write normalization")
        if len(self.node.bottoms) < 3 and not self.param.source:
            raise self.error("has no matrix; give it as third bottom or as infogain_loss_param.source")
        self.register_buffer("matrix", None, persistent=False)

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        tops = super().top_shapes(bottoms)
        self.classes = bottoms[0][self.dim]
        if len(bottoms) > 2:
            self._check_matrix(bottoms[2])
        return tops

    def _check_matrix(self, shape: Shape) -> None:
        if math.prod(shape) != self.classes**2:
            raise self.error(
                f"matrix {list(shape)} holds {math.prod(shape)} values; "
                f"{self.classes} classes take {self.classes**2}"
            )

    @property
    def matrix_file(self) -> str:
        """The path of the matrix still to be read; empty where none is wanted."""
        return self.param.source if len(self.node.bottoms) < 3 and self.matrix is None else ""

    def set_matrix(self, values: np.ndarray) -> None:
        """Take the matrix, any shape of classes × classes values; raises LayerError on another count."""
        self._check_matrix(values.shape)
        self.matrix = torch.from_numpy(np.array(values, np.float32).reshape(self.classes, self.classes))

    def _matrix(self) -> Tensor:
        if self.matrix is None:
            raise self.error(
                f"matrix {self.param.source} was not read; use load_net, or set_matrix(read_blob(path))"
            )
        return self.matrix

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        x, labels, *given = bottoms
        check_labels(self, labels, x.shape[self.dim], self.ignore)
        matrix = given[0] if given else self._matrix()
        return self._tops(infogain_loss(x, labels, matrix, self.dim, **self._rules()), x)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        log_p, labels, counts = self._log_rows_onnx(graph, bottoms)
        if len(bottoms) > 2:
            square = graph.constant(integers(self.classes, self.classes))
            matrix = graph.node("Reshape", [bottoms[2], square])
        else:
            matrix = graph.constant(numbers(self._matrix()))
        weights = graph.node("GatherND", [matrix, labels])
        total = graph.node(
            "ReduceSum", [graph.node("Mul", [weights, log_p]), graph.constant(integers(1))], keepdims=1
        )
        return self._tops_onnx(graph, bottoms, graph.node("Neg", [total]), counts)

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        x, labels, *given = bottoms
        matrix = given[0] if given else code.parameter("matrix", self._matrix())
        return self._tops_source(x, self._call(code.helper(infogain_loss), x, labels, matrix))
