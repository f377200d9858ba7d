"""Connectionist temporal classification: the losses WarpCTCLoss, CtcLoss and CTCLoss of the text recognizers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss import Loss
from .support.base import LayerPlan, Shape, SourceCode, uses
from .support.labels import out_of_range, to_indices
from .support.registry import register_layer
from .support.tracing import refuse_tracing

# ---------------------------------------------------------------------- torch, also for written source


def ctc_costs(x: Tensor, labels: list[list[int]], steps: list[int], blank: int, merge: bool = True) -> Tensor:
    """Return -log p of each label sequence for scores T×N×C, of which the first ``steps`` count; inf if it cannot fit.

    Without ``merge`` equal labels that follow each other need no blank between them, and a label lasts one step.
    """
    log_p = F.log_softmax(x.to(torch.promote_types(x.dtype, torch.float32)), 2)
    lengths = [len(label) for label in labels]
    if merge:
        flat = torch.tensor([value for label in labels for value in label], dtype=torch.long, device=x.device)
        counts, sizes = torch.tensor([max(count, 1) for count in steps]), torch.tensor(lengths)
        costs = F.ctc_loss(log_p, flat, counts, sizes, blank, reduction="none", zero_infinity=True)
        # Equal labels that follow each other need the blank label between them.
        repeated = [sum(row[i] == row[i + 1] for i in range(len(row) - 1)) for row in labels]
        needed = [length + count for length, count in zip(lengths, repeated, strict=True)]
        fits = [need <= count for need, count in zip(needed, steps, strict=True)]
        costs = torch.where(torch.tensor(fits, device=x.device), costs, torch.inf)
        return torch.where(
            torch.tensor(steps, device=x.device) > 0, costs, 0
        )  # an item without steps is skipped
    nothing = -1e30  # its sums stay finite, and so do their gradients
    made = []
    for item, (label, count) in enumerate(zip(labels, steps, strict=True)):
        path = torch.full((2 * len(label) + 1,), blank, device=x.device)
        path[1::2] = torch.tensor(label, dtype=torch.long, device=x.device)
        is_blank = path == blank
        scores = log_p[:count, item][:, path].double()
        alpha = torch.where(torch.arange(len(path), device=x.device) < 2, scores[0], nothing)
        for score in scores[1:]:
            stay = torch.where(is_blank, alpha, nothing)
            one, two = F.pad(alpha, (1, 0), value=nothing)[:-1], F.pad(alpha, (2, 0), value=nothing)[:-2]
            reached = torch.logaddexp(torch.logaddexp(stay, one), torch.where(is_blank, nothing, two))
            alpha = (reached + score).clamp(min=nothing)
        cost = -torch.logsumexp(alpha[-2:], 0)
        made.append(torch.where(cost > -nothing / 2, torch.inf, cost).to(log_p))
    return torch.stack(made)


def drop_blank(labels: Tensor, blank: int) -> list[list[int]]:
    """Return the labels N×L of each item, without the blank label."""
    refuse_tracing()
    return [[value for value in row if value != blank] for row in labels.flatten(1).long().tolist()]


def until_negative(labels: Tensor) -> list[list[int]]:
    """Return the labels T×N of each item, rounded, up to the first negative one."""
    refuse_tracing()
    rows = labels.reshape(labels.shape[:2]).T.tolist()
    ends = [next((step for step, value in enumerate(row) if value < 0), len(row)) for row in rows]
    return [[int(value + 0.5) for value in row[:end]] for row, end in zip(rows, ends, strict=True)]


def steps_of(indicators: Tensor) -> list[int]:
    """Return the number of steps of each item: indicators T×N are 0 where another sequence starts."""
    refuse_tracing()
    rows = indicators.reshape(indicators.shape[:2]).T.tolist()
    return [
        next((step for step, value in enumerate(row) if step and int(value + 0.5) == 0), len(row))
        for row in rows
    ]


for _function in (drop_blank, until_negative, steps_of):
    uses(_function, refuse_tracing)


def mean_cost(costs: Tensor) -> Tensor:
    """Return the mean of the costs; a sequence that cannot fit costs nothing."""
    return torch.where(costs.isinf(), 0, costs).sum() / len(costs)


# ---------------------------------------------------------------------- layers


class _SumGradient(torch.autograd.Function):
    """Returns the mean; its gradient is that of the sum, times the gradient of the top or, without `weighted`, once."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, total: Tensor, weighted: bool) -> Tensor:
        ctx.weighted = weighted
        return mean.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        gradient = gradients[0]
        # Without a weight the layer is no loss, and Caffe runs no backward pass for it.
        return None, gradient if ctx.weighted else (gradient != 0).to(gradient), None


class _CtcLoss(Loss):
    """Bottoms: scores T×N×C before their softmax, then the labels.  The gradient is not divided by N."""

    message = "ctc_loss_param"
    no_onnx = "ONNX has no operator for CTC"
    weighted = False  # whether the gradient is times loss_weight

    def _check_scores(self, x: Shape) -> None:
        if len(x) < 3 or prod(x[3:]) != 1:
            raise self.error(f"scores {list(x)} must be time × stream × class")

    def _pair(self, what: str, shape: Shape, wanted: Shape) -> None:
        if shape[:2] != wanted or prod(shape[2:]) != 1:
            raise self.error(f"{what} {list(shape)} must be {'×'.join(map(str, wanted))}")

    def _top(self, costs: Tensor) -> tuple[Tensor]:
        finite = torch.where(costs.isinf(), 0, costs)
        apply: Any = _SumGradient.apply
        return (apply(mean_cost(costs.detach()), finite.sum(), self.weighted),)


@register_layer("WarpCTCLoss")
class WarpCTCLoss(_CtcLoss):
    """The mean of -log p of label sequences, by warp-ctc; loss_weight does not reach the gradient.

    Bottoms after the scores: labels N×L, in which the blank label does not count; or indicators T×N and labels T×N
    that end with a negative one; or the numbers of steps and of labels, N each, and labels L×N.  The blank is 0 by default.
    Source: caffe_ocr and ChWick/caffe, src/caffe/layers/warp_ctc_loss_layer.cpp.
    """

    fields = ("blank_index",)
    bottom_count = (2, 4)
    index_bottoms = (1, 2, 3)

    def setup(self, *ranks: int) -> None:
        self.blank: int = self.param.blank_index
        if self.blank < 0:
            raise self.error(f"blank_index {self.blank} must be a class")
        if len(ranks) == 3 and self.blank == 0:
            raise self.error(
                "blank_index 0 with indicators has two meanings: caffe_ocr adds 1 to each label, ChWick's fork does not; "
                "use another blank_index, or labels N×L"
            )
        if len(ranks) > 2:
            self.no_source = "the lengths of its sequences are checked when it runs"

    def plan(self, x: Shape, *others: Shape) -> LayerPlan:
        self._check_scores(x)
        steps, items = x[:2]
        if self.blank >= x[2]:
            raise self.error(f"blank_index {self.blank} is not one of the {x[2]} classes")
        if len(others) == 1 and (len(others[0]) < 1 or others[0][0] != items):
            raise self.error(f"labels {list(others[0])} must hold a row for each of {items} streams")
        if len(others) == 2:
            self._pair("indicators", others[0], (steps, items))
            self._pair("labels", others[1], (steps, items))
        if len(others) == 3:
            for what, shape in zip(("numbers of steps", "numbers of labels"), others, strict=False):
                if prod(shape) != items:
                    raise self.error(f"{what} {list(shape)} must be one per stream, {items}")
            if len(others[2]) < 2 or others[2][1] != items or prod(others[2][2:]) != 1:
                raise self.error(f"labels {list(others[2])} must be L×{items}")
        return LayerPlan([()])

    def _sequences(self, x: Tensor, others: Sequence[Tensor]) -> tuple[list[list[int]], list[int]]:
        steps, items, classes = x.shape[:3]
        if len(others) == 1:
            to_indices(self, others[0], classes, "label")
            return drop_blank(others[0], self.blank), [int(steps)] * int(items)
        if len(others) == 2:
            labels, counts = until_negative(others[1]), steps_of(others[0])
            counts = [count if label else 0 for label, count in zip(labels, counts, strict=True)]
        else:
            sizes = to_indices(self, others[1].flatten(), others[2].shape[0] + 1, "a number of labels")
            counts = to_indices(self, others[0].flatten(), steps + 1, "a number of steps").tolist()
            table = others[2].reshape(others[2].shape[:2]).long().T.tolist()
            labels = [row[:size] for row, size in zip(table, sizes.tolist(), strict=True)]
        for label, count in zip(labels, counts, strict=True):
            for value in label:
                if not 0 <= value < classes:
                    raise self.error(out_of_range("label", value, classes))
            if len(others) == 2 and len(label) > count:
                raise self.error(f"{len(label)} labels are more than the {count} steps of their sequence")
        return labels, counts

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor]:
        labels, counts = self._sequences(x, [other.detach() for other in others])
        return self._top(ctc_costs(x.flatten(2), labels, counts, self.blank))

    def source(self, code: SourceCode, x: str, *others: str) -> list[str]:
        call = (
            f"{code.helper(ctc_costs)}({x}.flatten(2), {code.helper(drop_blank)}({others[0]}, {self.blank}), "
        )
        return [f"{code.helper(mean_cost)}({call}[{x}.shape[0]] * {x}.shape[1], {self.blank}))"]


@register_layer("CtcLoss")
class CtcLoss(_CtcLoss):
    """The mean of -log p of label sequences N×L, without their blank labels, over the first `time_step` steps.

    The gradient is that of the sum over the batch, times loss_weight.
    Source: yalecyu/crnn.caffe and xmfbit/warpctc-caffe, src/caffe/layers/ctc_loss_layer.cpp.
    """

    fields = ("alphabet_size", "time_step", "blank_label")
    index_bottoms = (1,)
    weighted = True

    def setup(self, *ranks: int) -> None:
        self.blank: int = self.param.blank_label
        self.classes: int = self.param.alphabet_size
        self.steps: int = self.param.time_step
        if self.classes < 1 or self.steps < 1:
            raise self.error("alphabet_size and time_step must be stated and over 0")
        if not 0 <= self.blank < self.classes:
            raise self.error(
                f"blank_label {self.blank} is not one of the {self.classes} classes of alphabet_size"
            )

    def plan(self, x: Shape, labels: Shape) -> LayerPlan:
        self._check_scores(x)
        if x[2] != self.classes:
            raise self.error(f"scores {list(x)} have {x[2]} classes; alphabet_size states {self.classes}")
        if x[0] < self.steps:
            raise self.error(f"time_step {self.steps} is out of range; scores {list(x)} have {x[0]} steps")
        if len(labels) < 2 or labels[0] != x[1]:
            raise self.error(f"labels {list(labels)} must be N×L with a row for each of {x[1]} streams")
        return LayerPlan([()])

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
        to_indices(self, labels.detach(), self.classes, "label")
        rows = drop_blank(labels.detach(), self.blank)
        if not any(rows):
            raise self.error("all labels of the batch are the blank label; give one other label at least")
        return self._top(ctc_costs(x.flatten(2), rows, [self.steps] * x.shape[1], self.blank))

    def source(self, code: SourceCode, x: str, labels: str) -> list[str]:
        call = f"{code.helper(ctc_costs)}({x}.flatten(2), {code.helper(drop_blank)}({labels}, {self.blank}), "
        return [f"{code.helper(mean_cost)}({call}[{self.steps}] * {x}.shape[1], {self.blank}))"]


@register_layer("CTCLoss")
class CTCLoss(_CtcLoss):
    """The mean of -log p of label sequences that fit; loss_weight does not reach the gradient.

    Bottoms: scores T×N×C, indicators T×N (0 where the next sequence starts) and labels T×N that end with a negative
    one, or with the blank label.  That is the last class by default.  `preprocess_collapse_repeated` merges equal
    labels, `ctc_merge_repeated: false` needs no blank between them, `output_delay` skips first steps.
    Source: ChWick/caffe (branch ctc), src/caffe/layers/ctc_loss_layer.cpp, after TensorFlow's.
    """

    fields = ("blank_index", "ctc_merge_repeated", "preprocess_collapse_repeated", "output_delay")
    ignored_fields = ("loss_calculation_t",)  # the layer sets it to 0
    bottom_count = (3, 3)
    index_bottoms = (1, 2)
    no_source = "the lengths of its sequences are checked when it runs"

    def setup(self, *ranks: int) -> None:
        if self.param.output_delay < 0:
            raise self.error(f"output_delay {self.param.output_delay} must be at least 0")

    def _blank(self, classes: int) -> int:
        stated = self.param.HasField("blank_index") and self.param.blank_index >= 0
        blank: int = self.param.blank_index if stated else classes - 1
        return blank

    def plan(self, x: Shape, indicators: Shape, labels: Shape) -> LayerPlan:
        self._check_scores(x)
        self._pair("indicators", indicators, x[:2])
        self._pair("labels", labels, x[:2])
        if self._blank(x[2]) >= x[2]:
            raise self.error(f"blank_index {self.param.blank_index} is not one of the {x[2]} classes")
        return LayerPlan([()])

    def _labels(self, stated: list[int], classes: int) -> list[int]:
        """Return the labels of one sequence; the blank label ends it."""
        blank = self._blank(classes)
        if self.param.preprocess_collapse_repeated:
            stated = [value for index, value in enumerate(stated) if not index or value != stated[index - 1]]
        for value in stated:
            if value >= classes:
                raise self.error(out_of_range("label", value, classes))
        end = stated.index(blank) if blank in stated else len(stated)
        if any(value != blank for value in stated[end:]):
            raise self.error(f"labels {stated} continue after the blank label {blank}, which ends them")
        if not end:
            raise self.error(f"labels {stated} of a sequence hold none but the blank label {blank}")
        return stated[:end]

    def forward(self, x: Tensor, indicators: Tensor, labels: Tensor) -> tuple[Tensor]:
        delay = self.param.output_delay
        counts, stated = steps_of(indicators.detach()), until_negative(labels.detach())
        for row, count in zip(stated, counts, strict=True):
            if len(row) > count - delay:
                raise self.error(
                    f"{len(row)} labels are more than the {count - delay} steps left by output_delay {delay}"
                )
        rows = [self._labels(row, x.shape[2]) for row in stated]
        scores = x.flatten(2)[delay:]
        steps = [count - delay for count in counts]
        costs = ctc_costs(scores, rows, steps, self._blank(x.shape[2]), self.param.ctc_merge_repeated)
        # Where no path fits the cost is infinite, and the gradient is the softmax alone.
        alone = torch.stack([scores[:count, item].logsumexp(1).sum() for item, count in enumerate(steps)])
        total = torch.where(costs.isinf(), alone.to(costs), costs).sum()
        apply: Any = _SumGradient.apply
        return (apply(costs.detach().mean(), total, False),)
