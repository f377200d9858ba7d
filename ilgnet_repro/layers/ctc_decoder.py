"""CTCGreedyDecoder: the label sequence of the best class per step, and its accuracy."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from .ctc import until_negative
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers, uses
from .support.detections import node_writer
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def greedy_decode(x: Tensor, counted: Tensor | None, blank: int, merge: bool) -> tuple[Tensor, Tensor]:
    """Return the labels N×T of scores T×N×C, filled up with -1, and minus the sum of the best scores of each item.

    ``counted`` T×N says which steps count.  The blank label is left out, and with ``merge`` a repeated label.
    """
    best, label = x.max(2)
    kept = label != blank
    if merge:
        kept[1:] &= label[1:] != label[:-1]
    if counted is not None:
        kept, best = kept & counted, torch.where(counted, best, 0)
    place = torch.where(kept, kept.cumsum(0) - 1, len(x))
    rows = x.new_full((len(x) + 1, x.shape[1]), -1).scatter(0, place, label.to(x.dtype))
    return rows[:-1].T, -best.sum(0)


def first_sequence(indicators: Tensor) -> Tensor:
    """Return the steps of T×N indicators up to the first 0 after step 0."""
    ended = (indicators.flatten(1) == 0).cumsum(0)
    return ended - (indicators.flatten(1)[:1] == 0).to(ended) == 0


def edit_distance(found: list[int], wanted: list[int]) -> int:
    """Return the least number of insertions, deletions and replacements from one list to the other.

    A row of the usual table is two integers, with a bit for each element of ``wanted``: where the row rises by one
    from the element before, and where it falls (Myers, 1999, in the form of Hyyrö, 2003).
    """
    if not wanted:
        return len(found)
    places: dict[int, int] = {}
    for index, value in enumerate(wanted):
        places[value] = places.get(value, 0) | 1 << index
    every, last = (1 << len(wanted)) - 1, 1 << len(wanted) - 1
    rises, falls, distance = every, 0, len(wanted)
    for value in found:
        equal = places.get(value, 0)
        level = (((equal & rises) + rises) ^ rises) | equal | falls
        up, down = falls | every & ~(level | rises), rises & level
        distance += bool(up & last) - bool(down & last)
        up, down = up << 1 | 1, down << 1
        rises = every & (down | ~(equal | falls | up))
        falls = every & up & (equal | falls)
    return distance


def sequence_accuracy(rows: Tensor, targets: list[list[int]]) -> tuple[float, float]:
    """Return 1 - the mean edit distance, each over the longer length, and the share of items without an error."""
    errors = 0.0
    exact = 0
    for row, wanted in zip(rows.tolist(), targets, strict=True):
        found = [int(value) for value in row if value >= 0]
        if found or wanted:
            distance = edit_distance(found, wanted)
            errors += distance / max(len(found), len(wanted))
            exact += not distance
    return 1 - errors / len(targets), exact / len(targets)


def labels_of(labels: Tensor, blank: int) -> list[list[int]]:
    """Return the labels N×L of each item up to the first negative one, without the blank label."""
    return [[value for value in row if value != blank] for row in until_negative(labels.flatten(1).T)]


def ctc_tops(
    x: Tensor,
    counted: Tensor | None,
    targets: list[list[int]],
    blank: int,
    merge: bool,
    wanted: tuple[str, ...],
) -> tuple[Tensor, ...]:
    """Return the wanted tops of a CTC decoder, in their order."""
    rows, score = greedy_decode(x.flatten(2), counted, blank, merge)
    made = {"labels": rows[:, :, None, None], "score": score[:, None, None, None]}
    if targets:
        both = x.new_tensor(sequence_accuracy(rows, targets))
        made["accuracies"], made["accuracy"] = both.reshape(1, 2, 1, 1), both[:1].reshape(1, 1, 1, 1)
    return tuple(made[name] for name in wanted)


uses(labels_of, until_negative)
uses(sequence_accuracy, edit_distance)
uses(ctc_tops, greedy_decode, sequence_accuracy)

# ---------------------------------------------------------------------- layer

MOST_PAIRS = 10**10  # of a step and a label, for the accuracy of a batch: five seconds


@register_layer("CTCGreedyDecoder")
class CTCGreedyDecoder(Layer):
    """The labels of the best class per step, N×T×1×1, without blank labels and, with `ctc_merge_repeated`, repetitions.

    caffe_ocr: one bottom, scores T×N×C; with labels N×L the top is the accuracy, 1×2×1×1 (by edit distance, and of
    whole sequences).  ChWick's fork: the second bottom T×N is 0 where the next sequence starts, the third holds
    targets T×N; tops are the labels, minus the sum of the best scores (N×1×1×1) and the accuracy, 1×1×1×1.
    `blank_index` is 0 by default in caffe_ocr, the last class in ChWick's fork, and if negative the last class.
    Source: caffe_ocr and ChWick/caffe (branch ctc), src/caffe/layers/ctc_decoder_layer.cpp.
    """

    message = "ctc_decoder_param"
    fields = ("blank_index", "ctc_merge_repeated")
    bottom_count = (1, 3)
    top_count = (1, 3)
    has_gradient = False
    index_bottoms = (1, 2)

    def setup(self, *ranks: int) -> None:
        bottoms, tops = len(self.node.bottoms), len(self.node.tops)
        if tops > (1, 2, 3)[bottoms - 1]:
            raise self.error(
                f"has {tops} tops for {bottoms} bottoms; it takes {('1', '1 or 2', '1 to 3')[bottoms - 1]}"
            )
        self.merge: bool = self.param.ctc_merge_repeated
        # With three bottoms and two tops the second is the accuracy.
        self.wanted = (
            ("labels", "accuracy") if (bottoms, tops) == (3, 2) else ("labels", "score", "accuracy")[:tops]
        )
        if "accuracy" in self.wanted:
            self.no_onnx = "the accuracy is an edit distance"

    def plan(self, x: Shape, *others: Shape) -> LayerPlan:
        if len(x) < 3 or prod(x[3:]) != 1:
            raise self.error(f"scores {list(x)} must be time × stream × class")
        steps, items, classes = x[:3]
        if self.param.blank_index >= classes:
            raise self.error(f"blank_index {self.param.blank_index} is not one of the {classes} classes")
        for shape in others[1:]:
            self._check_pair("targets", shape, (steps, items))
        if self._has_labels(x, others):
            self._check_pairs(items, steps, prod(others[0][1:]))
            return LayerPlan([(1, 2, 1, 1)])
        if "accuracy" in self.wanted:
            self._check_pairs(items, steps, steps)
        if others:
            self._check_pair("indicators", others[0], (steps, items))
        shapes = {"labels": (items, steps, 1, 1), "score": (items, 1, 1, 1), "accuracy": (1, 1, 1, 1)}
        return LayerPlan([shapes[name] for name in self.wanted])

    def _check_pair(self, what: str, shape: Shape, wanted: Shape) -> None:
        if shape[:2] != wanted or prod(shape[2:]) != 1:
            raise self.error(f"{what} {list(shape)} must be {wanted[0]}×{wanted[1]}")

    def _check_pairs(self, items: int, steps: int, labels: int) -> None:
        if items * steps * labels > MOST_PAIRS:
            raise self.error(
                f"the accuracy compares {steps:,} steps with {labels:,} labels in each of {items:,} items; at most "
                f"{MOST_PAIRS:,} pairs are supported"
            )

    def _has_labels(self, x: Shape, others: tuple[Shape, ...]) -> bool:
        """Whether the second bottom holds caffe_ocr's labels N×L; ChWick's indicators are T×N."""
        if len(others) != 1 or len(self.node.tops) != 1:
            return False
        shape = others[0]
        if len(shape) < 2 or shape[0] != x[1]:
            return False
        if shape[:2] == x[:2]:
            raise self.error(
                f"the second bottom {list(shape)} may be caffe_ocr's labels N×L or ChWick's indicators T×N; "
                f"use another batch size than the {x[0]} steps"
            )
        return True

    def _blank(self, classes: int, own: bool) -> int:
        """Return the blank label; ``own``: the fork is ChWick's."""
        if self.param.HasField("blank_index"):
            blank: int = self.param.blank_index
            return blank if blank >= 0 else classes - 1
        return classes - 1 if own else 0

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        x, others = x.detach(), tuple(other.detach() for other in others)
        labelled = self._has_labels(tuple(x.shape), tuple(tuple(other.shape) for other in others))
        blank = self._blank(x.shape[2], bool(others) and not labelled)
        if labelled:
            return ctc_tops(x, None, labels_of(others[0], blank), blank, self.merge, ("accuracies",))
        counted = first_sequence(others[0]) if others else None
        targets = until_negative(others[1]) if "accuracy" in self.wanted else []
        return ctc_tops(x, counted, targets, blank, self.merge, self.wanted)

    def source(self, code: SourceCode, x: str, *others: str) -> list[str]:
        shapes = [code.shape(index) for index in range(len(others) + 1)]
        labelled = self._has_labels(shapes[0], tuple(shapes[1:]))
        blank = self._blank(shapes[0][2], bool(others) and not labelled)
        counted, targets, wanted = "None", "[]", self.wanted
        if labelled:
            targets, wanted = f"{code.helper(labels_of)}({others[0]}, {blank})", ("accuracies",)
        elif others:
            counted = f"{code.helper(first_sequence)}({others[0]})"
        if "accuracy" in self.wanted:
            targets = f"{code.helper(until_negative)}({others[1]})"
        call = f"{code.helper(ctc_tops)}({x}, {counted}, {targets}, {blank}, {self.merge}, {wanted})"
        return [call if len(wanted) > 1 else f"{call}[0]"]

    def onnx(self, graph: OnnxGraph, x: str, *others: str) -> list[str]:
        from onnx import TensorProto

        if len(others) == 1 and len(self.wanted) == 1 and graph.shape(others[0])[:2] != graph.shape(x)[:2]:
            raise self.error("cannot be written as ONNX: the accuracy is an edit distance")
        node = node_writer(graph)
        if len(graph.shape(x)) > 3:
            x = node("Squeeze", x, integers(*range(3, len(graph.shape(x)))))
        blank = np.array(self._blank(graph.size(x, 2), bool(others)))
        label = node("ArgMax", x, axis=2, keepdims=0)
        best = node("ReduceMax", x, integers(2), keepdims=0)
        kept = node("Not", node("Equal", label, blank))
        if self.merge:
            padded = node("Pad", label, integers(1, 0, 0, 0), np.array(-1))
            before = node("Slice", padded, integers(0), integers(-1), integers(0))
            kept = node("And", kept, node("Not", node("Equal", label, before)))
        if others:
            marks = (
                node("Reshape", others[0], integers(0, 0)) if len(graph.shape(others[0])) == 2 else others[0]
            )
            later = node("Slice", marks, integers(1), integers(2**62), integers(0))
            ended = node(
                "CumSum", node("Cast", node("Equal", later, numbers(0)), to=TensorProto.INT64), np.array(0)
            )
            counted = node("Cast", node("Equal", ended, np.array(0)), to=TensorProto.INT64)
            counted = node("Pad", counted, integers(1, 0, 0, 0), np.array(1))  # the first step always counts
            counted = node("Cast", counted, to=TensorProto.BOOL)
            kept, best = node("And", kept, counted), node("Where", counted, best, numbers(0))
        ones = node("Cast", kept, to=TensorProto.INT64)
        steps = node("Squeeze", node("Shape", x, start=0, end=1))
        place = node("Where", kept, node("Sub", node("CumSum", ones, np.array(0)), np.array(1)), steps)
        size = node("Add", node("Shape", x, start=0, end=2), integers(1, 0))
        values = node("Cast", label, to=TensorProto.FLOAT)
        rows = node("ScatterElements", node("Expand", numbers([-1])[None], size), place, values, axis=0)
        rows = node("Transpose", node("Slice", rows, integers(0), integers(-1), integers(0)), perm=[1, 0])
        score = node("Neg", node("ReduceSum", best, integers(0), keepdims=0))
        made = {
            "labels": node("Unsqueeze", rows, integers(2, 3)),
            "score": node("Unsqueeze", score, integers(1, 2, 3)),
        }
        return [made[name] for name in self.wanted]
