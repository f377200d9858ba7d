"""Accuracy: the fraction of labels among the highest scores."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers, uses
from .support.labels import check_label_count, check_labels, label_rows, label_rows_onnx
from .support.registry import register_layer


def accuracy(scores: Tensor, labels: Tensor, axis: int, top_k: int, ignore_label: int | None) -> Tensor:
    """Return the fraction of labels with fewer than top_k other classes of at least their score: ties count against them."""
    rows, labels, counts = label_rows(scores, labels, axis, ignore_label)
    rivals = (rows >= rows.gather(1, labels[:, None])).sum(1) - 1
    right = (rivals < top_k) & counts
    return right.sum().to(scores.dtype) / counts.sum().clamp(min=1)


def class_accuracy(scores: Tensor, labels: Tensor, axis: int, top_k: int, ignore_label: int | None) -> Tensor:
    """Return the accuracy of each class; 0 for a class without labels."""
    rows, labels, counts = label_rows(scores, labels, axis, ignore_label)
    rivals = (rows >= rows.gather(1, labels[:, None])).sum(1) - 1
    classes = F.one_hot(labels, rows.shape[1]) * counts[:, None]
    right = (classes * (rivals < top_k)[:, None]).sum(0)
    return right.to(scores.dtype) / classes.sum(0).clamp(min=1)


uses(accuracy, label_rows)
uses(class_accuracy, label_rows)


@register_layer("Accuracy")
class Accuracy(Layer):
    """The fraction of labels whose class is among the `top_k` best; the optional second top is the accuracy per class."""

    index_bottoms = (1,)
    message = "accuracy_param"
    fields = ("top_k", "axis", "ignore_label")
    bottom_count = (2, 2)
    top_count = (1, 2)
    has_gradient = False

    def setup(self, scores: int, labels: int) -> None:
        ignored = self.param.ignore_label
        if len(ignored) > 1:
            raise self.error(f"ignore_label is given {len(ignored)} times; keep one")
        self.ignore: int | None = ignored[0] if ignored else None
        self.dim = self.axis(self.param.axis, scores)
        self.functions = (accuracy, class_accuracy)[: len(self.node.tops)]

    def plan(self, scores: Shape, labels: Shape) -> LayerPlan:
        check_label_count(self, scores, labels, self.dim)
        classes = scores[self.dim]
        if not 1 <= self.param.top_k <= classes:
            raise self.error(f"top_k {self.param.top_k} must be from 1 to the {classes} classes")
        return LayerPlan([(), (classes,)][: len(self.node.tops)])

    def forward(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        scores, labels = scores.detach(), labels.detach()
        check_labels(self, labels, scores.shape[self.dim], self.ignore)
        return tuple(f(scores, labels, self.dim, self.param.top_k, self.ignore) for f in self.functions)

    def onnx(self, graph: OnnxGraph, scores: str, labels: str) -> list[str]:
        from onnx import TensorProto

        rows, labels, counts = label_rows_onnx(graph, scores, labels, self.dim, self.ignore)
        own = graph.node("GatherElements", [rows, labels], axis=1)
        as_high = graph.node("Cast", [graph.node("GreaterOrEqual", [rows, own])], to=TensorProto.FLOAT)
        # The label's own score is included, hence at most top_k.
        found = graph.node("ReduceSum", [as_high, graph.constant(integers(1))], keepdims=1)
        limit = graph.constant(numbers(self.param.top_k))
        right = graph.node("Cast", [graph.node("LessOrEqual", [found, limit])], to=TensorProto.FLOAT)
        valid = graph.node("Cast", [counts], to=TensorProto.FLOAT)

        def fraction(members: str, axes: list[str]) -> str:
            """Add the fraction of the labels in ``members`` (1 or 0) that are right."""
            hits = graph.node("ReduceSum", [graph.node("Mul", [members, right]), *axes], keepdims=0)
            total = graph.node("ReduceSum", [members, *axes], keepdims=0)
            return graph.node("Div", [hits, graph.node("Max", [total, graph.constant(numbers(1))])])

        tops = [fraction(valid, [])]
        if len(self.node.tops) > 1:
            flat = graph.node("Reshape", [labels, graph.constant(integers(-1))])
            depth = graph.constant(integers(graph.size(scores, self.dim)))
            classes = graph.node("OneHot", [flat, depth, graph.constant(numbers([0, 1]))])
            tops.append(fraction(graph.node("Mul", [classes, valid]), [graph.constant(integers(0))]))
        return tops

    def source(self, code: SourceCode, scores: str, labels: str) -> list[str]:
        rest = f"{scores}, {labels}, {self.dim}, {self.param.top_k}, {self.ignore}"
        return [f"{code.helper(f)}({rest})" for f in self.functions]
