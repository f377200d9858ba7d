"""Accuracy: the fraction of labels among the highest scores."""

from __future__ import annotations

import numpy as np
import torch
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


def later_first_accuracy(
    scores: Tensor, labels: Tensor, axis: int, top_k: int, ignored: list[int], tops: int
) -> tuple[Tensor, ...]:
    """Return the accuracy, that of each class and the F1 of class 1, without labels that are in ``ignored``.

    As in CTPN's Caffe: of equal scores the class with the higher number is first.
    """
    rows, labels, counts = label_rows(scores, labels, axis, None)
    for label in ignored:
        counts = counts & (labels != label)
    labels = torch.where(counts, labels, 0)
    own = rows.gather(1, labels[:, None])
    later = torch.arange(rows.shape[1], device=rows.device) > labels[:, None]
    right = (((rows > own) | ((rows == own) & later)).sum(1) < top_k) & counts
    members = F.one_hot(labels, rows.shape[1]) * counts[:, None]
    hits = (members * right[:, None]).sum(0).to(scores.dtype)
    found = members.sum(0)
    best = rows.shape[1] - 1 - rows.flip(1).argmax(1)
    # 2 precision recall / (precision + recall) is 2 hits / (predicted + labelled).
    both = ((best == 1) & counts).sum() + found[1:2].sum()
    every = (
        right.sum().to(scores.dtype) / counts.sum().clamp(min=1),
        hits / found.clamp(min=1),
        2 * hits[1:2].sum() / both.clamp(min=1),
    )
    return every[:tops]


uses(accuracy, label_rows)
uses(class_accuracy, label_rows)
uses(later_first_accuracy, label_rows)


@register_layer("Accuracy")
class Accuracy(Layer):
    """The fraction of labels whose class is among the `top_k` best; the optional second top is the accuracy per class.

    CTPN's layer, which several ignore_label or a third top show, has the F1 of class 1 as third top.  With
    ``min_is_better`` (happynear's Caffe) the bottom holds distances, of which the least is the best.
    """

    index_bottoms = (1,)
    message = "accuracy_param"
    fields = ("top_k", "axis", "ignore_label", "min_is_better")
    bottom_count = (2, 2)
    top_count = (1, 3)
    has_gradient = False

    def setup(self, scores: int, labels: int) -> None:
        self.ignored = list(self.param.ignore_label)
        self.ignore: int | None = self.ignored[0] if self.ignored else None
        self.dim = self.axis(self.param.axis, scores)
        self.is_ctpn = len(self.ignored) > 1 or len(self.node.tops) == 3
        if self.is_ctpn and self.param.min_is_better:
            raise self.error("min_is_better goes with one ignore_label and two tops at most; remove it")
        if self.is_ctpn:
            self.note = "Accuracy of CTPN's Caffe, by several ignore_label or a third top (F1 of class 1)"
        self.functions = (accuracy, class_accuracy)[: len(self.node.tops)]

    def plan(self, scores: Shape, labels: Shape) -> LayerPlan:
        check_label_count(self, scores, labels, self.dim)
        classes = scores[self.dim]
        if not 1 <= self.param.top_k <= classes:
            raise self.error(f"top_k {self.param.top_k} must be from 1 to the {classes} classes")
        if len(self.node.tops) == 3 and classes < 2:
            raise self.error("the third top, the F1 of class 1, needs 2 classes or more")
        return LayerPlan([(), (classes,), ()][: len(self.node.tops)])

    def forward(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        scores, labels = scores.detach(), labels.detach()
        if self.param.min_is_better:
            scores = -scores
        top_k = self.param.top_k
        if self.is_ctpn:
            checked = labels.long()
            for label in self.ignored:
                checked = torch.where(checked == label, 0, checked)
            check_labels(self, checked, scores.shape[self.dim], None)
            return later_first_accuracy(scores, labels, self.dim, top_k, self.ignored, len(self.node.tops))
        check_labels(self, labels, scores.shape[self.dim], self.ignore)
        return tuple(f(scores, labels, self.dim, top_k, self.ignore) for f in self.functions)

    def onnx(self, graph: OnnxGraph, scores: str, labels: str) -> list[str]:
        from onnx import TensorProto

        def number(value: str) -> str:
            return graph.node("Cast", [value], to=TensorProto.FLOAT)

        rows, labels, counts = label_rows_onnx(graph, scores, labels, self.dim, self.ignore)
        if self.param.min_is_better:
            rows = graph.node("Neg", [rows])
        for label in self.ignored[1:]:
            kept = graph.node("Not", [graph.node("Equal", [labels, graph.constant(np.asarray(label))])])
            counts = graph.node("And", [counts, kept])
        if self.is_ctpn:
            labels = graph.node("Where", [counts, labels, graph.constant(np.asarray(0))])
        own = graph.node("GatherElements", [rows, labels], axis=1)
        as_high = graph.node("GreaterOrEqual", [rows, own])
        if self.is_ctpn:
            every = graph.constant(np.arange(graph.size(scores, self.dim), dtype=np.int64))
            earlier = graph.node("Less", [every, labels])
            before = graph.node("And", [graph.node("Equal", [rows, own]), earlier])
            as_high = graph.node("And", [as_high, graph.node("Not", [before])])
        # The label's own score is included, hence at most top_k.
        found = graph.node("ReduceSum", [number(as_high), graph.constant(integers(1))], keepdims=1)
        limit = graph.constant(numbers(self.param.top_k))
        right = number(graph.node("LessOrEqual", [found, limit]))
        valid = number(counts)

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
        if len(self.node.tops) > 2:
            best = graph.node("ArgMax", [rows], axis=1, select_last_index=1)
            predicted, labelled = (
                graph.node(
                    "Mul", [number(graph.node("Equal", [value, graph.constant(np.asarray(1))])), valid]
                )
                for value in (best, labels)
            )
            hits = graph.node("ReduceSum", [graph.node("Mul", [labelled, right])], keepdims=0)
            total = graph.node("ReduceSum", [graph.node("Add", [predicted, labelled])], keepdims=0)
            least = graph.node("Max", [total, graph.constant(numbers(1))])
            tops.append(graph.node("Div", [graph.node("Mul", [hits, graph.constant(numbers(2))]), least]))
        return tops

    def source(self, code: SourceCode, scores: str, labels: str) -> list[str]:
        if self.is_ctpn:
            count = len(self.node.tops)
            rest = f"{scores}, {labels}, {self.dim}, {self.param.top_k}, {self.ignored}, {count}"
            call = f"{code.helper(later_first_accuracy)}({rest})"
            return [f"{call}[{index}]" for index in range(count)]
        scores = f"-{scores}" if self.param.min_is_better else scores
        rest = f"{scores}, {labels}, {self.dim}, {self.param.top_k}, {self.ignore}"
        return [f"{code.helper(f)}({rest})" for f in self.functions]
