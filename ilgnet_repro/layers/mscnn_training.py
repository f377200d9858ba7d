"""What trains MS-CNN's proposals (Cai et al., ECCV 2016): the loss and accuracy of a map of boxes.

A cell of the labels N × 6 × H × W has the class (0: background), the true box's centre and size in pixels, and its
overlap with the cell's field.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from .box_group import CORNERS, Regression
from .box_output import sized_overlaps
from .loss import FLT_MIN, floored_log_softmax
from .multibox_loss import location_costs
from .support.base import LayerPlan, Shape
from .support.labels import ignored_label, out_of_range
from .support.registry import register_layer

LABELS = CORNERS + 2
LEAST_SIDE = 2  # of a true box
SAMPLED = "negatives are drawn at random, or by the order of their scores"
KEYWORD = "lambda"  # of Python, so no field of the schema
YOLO = ("side", "num_class", "num_object", "object_scale", "noobject_scale", "class_scale", "coord_scale")


def best_first(values: Tensor) -> Tensor:
    """Return the order of values by descending size; of equal ones the last comes first (a sort of pairs)."""
    order: Tensor = values.flip(-1).argsort(dim=-1, descending=True, stable=True)
    return values.shape[-1] - 1 - order


class _BoxMap(Regression):
    """Bottoms: a map N × classes + 4 × H × W, the scores before the offsets, and labels N × 6 × H × W."""

    other_messages: ClassVar[tuple[str, ...]] = ("loss_param",)
    bottom_count = (2, 2)
    index_bottoms = (1,)

    def setup(self, *ranks: int) -> None:
        param = self.param
        self.ignore = ignored_label(self.node.layer.loss_param)
        if param.coord_num != CORNERS:
            raise self.error(f"coord_num {param.coord_num} must be {CORNERS}")
        for name in ("cls_num", "field_w", "field_h", "downsample_rate"):
            if not getattr(param, name):
                raise self.error(f"{name} is 0 or absent; state it")
        if param.cls_num < 2:
            raise self.error(f"cls_num {param.cls_num} must be at least 2, with the background")
        if param.objectness and param.cls_num != 2:
            raise self.error(f"objectness takes cls_num 2, not {param.cls_num}")
        if param.field_whr < 1 or param.field_xyr <= 0:
            raise self.error(
                f"field_whr {param.field_whr:g} must be at least 1 and field_xyr {param.field_xyr:g} over 0"
            )

    def _check(self, values: Shape, labels: Shape) -> None:
        wanted = self.param.cls_num + CORNERS
        sound = len(values) == 4 and values[1] == wanted and labels == (values[0], LABELS, *values[2:])
        if not sound:
            raise self.error(
                f"bottoms {list(values)} and {list(labels)} must be N×{wanted}×H×W and N×{LABELS}×H×W"
            )

    def _centres(self, values: Tensor) -> Tensor:
        """Return the cells' centres, 2×H×W."""
        height, width = values.shape[2:]
        column, row = torch.meshgrid(
            torch.arange(width, device=values.device),
            torch.arange(height, device=values.device),
            indexing="xy",
        )
        rate: int = self.param.downsample_rate
        return (torch.stack([column, row]) + 0.5) * rate

    def _fields(self, values: Tensor) -> Tensor:
        return values.new_tensor([self.param.field_w, self.param.field_h])[:, None, None]

    def _limits(self, values: Tensor) -> Tensor:
        """Return the greatest offset, 4×1×1: that of the centre and of the size."""
        reach, grow = 1 / self.param.field_xyr, math.log(self.param.field_whr)
        return values.new_tensor([reach, reach, grow, grow])[:, None, None]

    def _classes(self, raw: Tensor) -> Tensor:
        return raw.clamp(max=1) if self.param.objectness else raw


@register_layer("DetectionLoss")
class DetectionLoss(_BoxMap):
    """(softmax loss + lambda · location loss, lambda · location loss), 1×1×1×2, of a map of boxes.

    The softmax loss is the mean over the cells with a true class and the background's cells that are taken, of those
    whose overlap is under `bg_threshold`: by `sample_mode` ``bootstrap`` per image and class the `bg_multiple` times
    as many with the greatest score for it (at least 4), by ``random`` draws, by ``mixture`` half of each, by any other
    all. `iou_weighted` weighs a true class by its overlap; `pos_neg_weighted` gives all true ones the weight of one
    and the background `bg_multiple`.  The location loss is the mean of the smooth L1 (`bb_smooth`) or half the square
    of the offsets of true classes, cut off at log(`field_whr`) and 1 / `field_xyr`, which the gradient is not.  Only
    the first value has a gradient.  Without `normalize`, which older versions had. Source: zhaoweicai/mscnn,
    src/caffe/layers/detection_loss_layer.cpp.
    """

    message = "detection_loss_param"
    other_messages = ("loss_param", "bbox_reg_param")
    fields = (
        *(
            "cls_num",
            "coord_num",
            "lambda",
            "field_h",
            "field_w",
            "downsample_rate",
            "bb_smooth",
            "field_whr",
        ),
        *("field_xyr", "bg_threshold", "bg_multiple", "sample_mode", "objectness", "iou_weighted"),
        "pos_neg_weighted",
    )
    fork_fields = tuple(f"detection_loss_param.{name}" for name in (KEYWORD, *YOLO))
    is_loss = True
    has_gradient = True
    no_onnx = SAMPLED
    no_source = SAMPLED

    def setup(self, *ranks: int) -> None:
        stated = [name for name in YOLO if self.fork_field(f"detection_loss_param.{name}") is not None]
        if stated:
            raise self.error(
                f"detection_loss_param.{stated[0]} is that of YOLO 1's loss (yeahkun/caffe-yolo), which is not "
                "implemented; this type is MS-CNN's"
            )
        super().setup(*ranks)
        self.statistics = self.regression_statistics()
        text = self.fork_field("detection_loss_param.lambda") or "1"
        try:
            self.location_weight = float(text)
        except ValueError:
            raise self.error(f"detection_loss_param.lambda {text!r} is not a number") from None
        self._generator = torch.Generator().manual_seed(0)
        if self.param.sample_mode in ("random", "mixture"):
            self.note = "negatives are drawn at random in each pass"

    def plan(self, values: Shape, labels: Shape) -> LayerPlan:
        self._check(values, labels)
        return LayerPlan([(1, 1, 1, 2)])

    def _taken(self, scores: Tensor, raw: Tensor, overlap: Tensor) -> Tensor:
        """Return which cells of the background of one image count; scores are classes × cells."""
        param, mode = self.param, self.param.sample_mode
        free: Tensor = (raw == 0) & (overlap < param.bg_threshold)
        if mode not in ("random", "mixture", "bootstrap"):
            return free
        share = 0.5 if mode == "mixture" else 1.0
        classes = self._classes(raw)
        taken = torch.zeros_like(free)
        if mode != "bootstrap":
            count = max(int((classes != 0).sum()) * param.bg_multiple * share, 4 * (param.cls_num - 1))
            drawn = torch.randint(len(raw), (int(count),), generator=self._generator)
            taken[drawn.to(raw.device)] = True
        if mode != "random":
            cells = free.nonzero()[:, 0]
            for label in range(1, param.cls_num):
                count = max(int(int((classes == label).sum()) * param.bg_multiple * share), 4)
                taken[cells[best_first(scores[label, cells])[:count]]] = True
        return taken & free

    def _weights(self, raw: Tensor, overlap: Tensor, taken: Tensor) -> Tensor:
        """Return the weight of each cell, N×H×W."""
        param, true = self.param, raw != 0
        weights = torch.where(true, overlap, 1) if param.iou_weighted else torch.ones_like(overlap)
        if not param.pos_neg_weighted:
            return weights
        sums = [(weights * of).sum() for of in (true, taken)]
        count, share = true.sum() + taken.sum(), 1 / (1 + param.bg_multiple)
        factor = torch.where(true, share * count / sums[0], (1 - share) * count / sums[1])
        return weights * factor if sums[0] != 0 else weights

    def forward(self, values: Tensor, labels: Tensor) -> tuple[Tensor]:
        classes = self.param.cls_num
        labels = labels.detach()
        raw, overlap = labels[:, 0].trunc().long(), labels[:, -1]
        index = self._classes(raw)
        if bool(((index < 0) | (index >= classes)).any()):
            wrong = int(raw[(index < 0) | (index >= classes)][0])
            raise self.error(out_of_range("label", wrong, classes))
        scores = values[:, :classes].flatten(2)
        taken = torch.stack(
            [
                self._taken(*image)
                for image in zip(scores.detach(), raw.flatten(1), overlap.flatten(1), strict=True)
            ]
        ).view_as(raw)
        counted = (raw != 0) | taken
        true = raw != 0
        if self.ignore is not None:
            counted, true = counted & (index != self.ignore), true & (raw != self.ignore)
        log_p = floored_log_softmax(values[:, :classes].movedim(1, -1), math.log(FLT_MIN))
        costs = -log_p.gather(-1, index[..., None])[..., 0] * self._weights(raw, overlap, taken)
        loss = torch.where(counted, costs, 0).sum() / counted.sum().clamp(min=1)
        location = self._location_loss(values[:, classes:], labels[:, 1:-1], true) * self.location_weight
        return (torch.stack([loss + location, location.detach()]).reshape(1, 1, 1, 2),)

    def _location_loss(self, offsets: Tensor, boxes: Tensor, true: Tensor) -> Tensor:
        fields = self._fields(offsets)
        wanted = torch.cat(
            [
                (boxes[:, :2] - self._centres(offsets)) / fields,
                (boxes[:, 2:].clamp(min=LEAST_SIDE) / fields).log(),
            ],
            1,
        )
        # A coordinate is normalized by its own mean and deviation, its limit by those of both axes.
        means, deviations = (offsets.new_tensor(v)[:, None, None] for v in self.statistics)
        middle = means.unflatten(0, (2, 2)).mean(1).repeat_interleave(2, 0)
        spread = deviations.unflatten(0, (2, 2)).prod(1).sqrt().repeat_interleave(2, 0)
        limit = self._limits(offsets)
        cut = torch.minimum(
            torch.maximum(offsets.detach(), (-limit - middle) / spread), (limit - middle) / spread
        )
        difference = offsets + (cut - offsets.detach()) - (wanted - means) / deviations
        costs = location_costs(difference, self.param.bb_smooth)
        counted = true[:, None].expand_as(costs)
        return torch.where(counted, costs, 0).sum() / counted.sum().clamp(min=1)


@register_layer("DetectionAccuracy")
class DetectionAccuracy(_BoxMap):
    """The accuracy of a map of boxes, 1×1×1×2: that of all cells, and of those with a true class.

    The optional second top is the mean overlap of the boxes of true classes, 1×1×1×1.  A mean over no cell is -1.  A
    cell counts if its label is among the `top_k` greatest scores, the later of equal ones first; the background's
    cells of an overlap from `bg_threshold` on do not.  Source: zhaoweicai/mscnn,
    src/caffe/layers/detection_accuracy_layer.cpp.
    """

    message = "detection_accuracy_param"
    fields = (
        *("cls_num", "coord_num", "field_h", "field_w", "downsample_rate", "top_k", "field_whr", "field_xyr"),
        *("bg_threshold", "objectness"),
    )
    top_count = (1, 2)
    no_onnx = "it evaluates a training net"
    no_source = "it evaluates a training net"

    def setup(self, *ranks: int) -> None:
        super().setup(*ranks)
        if not 1 <= self.param.top_k <= self.param.cls_num:
            raise self.error(f"top_k {self.param.top_k} must be 1 to cls_num, {self.param.cls_num}")

    def plan(self, values: Shape, labels: Shape) -> LayerPlan:
        self._check(values, labels)
        return LayerPlan([(1, 1, 1, 2), (1, 1, 1, 1)][: len(self.node.tops)])

    def forward(self, values: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        param = self.param
        values, labels = values.detach(), labels.detach()
        raw, overlap = labels[:, 0].trunc().long(), labels[:, -1]
        index = self._classes(raw)
        best = best_first(values[:, : param.cls_num].movedim(1, -1))[..., : param.top_k]
        right = (best == index[..., None]).any(-1)
        counted = (index != 0) | (overlap < param.bg_threshold)
        true = raw != 0
        if self.ignore is not None:
            counted, true = counted & (index != self.ignore), true & (raw != self.ignore)
        accuracy = [mean_or_minus_one(right, of) for of in (counted, counted & (index != 0))]
        limit, fields = self._limits(values), self._fields(values)
        offsets = torch.minimum(torch.maximum(values[:, param.cls_num :], -limit), limit)
        size = fields * offsets[:, 2:].exp()
        found = torch.cat([offsets[:, :2] * fields + self._centres(values) - size / 2, size], 1)
        boxes = torch.cat([labels[:, 1:3] - labels[:, 3:5] / 2, labels[:, 3:5]], 1)
        shared = sized_overlaps(found.movedim(1, -1), boxes.movedim(1, -1))
        tops = torch.stack(accuracy).reshape(1, 1, 1, 2), mean_or_minus_one(shared, true).reshape(1, 1, 1, 1)
        return tops[: len(self.node.tops)]


def mean_or_minus_one(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of those counted; -1 without any."""
    values = torch.where(counted, values, 0).float()
    return values.sum() / counted.sum() if counted.any() else values.new_tensor(-1.0)


@register_layer("BboxAccuracy")
class BboxAccuracy(Regression):
    """The mean overlap of regions with their true boxes, 1×1×1×1, after the regression.

    The optional second top has it before.  Bottoms: offsets R × 4 classes, regions R×5 (image, corners) and true boxes
    R×6 (label, corners, overlap), as `ProposalTarget` gives them.  Regions that overlap their box by more than 0.975
    do not count; without any: -1. Source: zhaoweicai/mscnn, src/caffe/layers/bbox_accuracy_layer.cpp.
    """

    message = "bbox_reg_param"
    fields = ("bbox_mean", "bbox_std")
    bottom_count = (3, 3)
    top_count = (1, 2)
    index_bottoms = (1, 2)
    no_onnx = "it evaluates a training net"
    no_source = "it evaluates a training net"
    exact_overlap = 0.975

    def setup(self, *ranks: int) -> None:
        self.statistics = self.regression_statistics()

    def plan(self, offsets: Shape, regions: Shape, truth: Shape) -> LayerPlan:
        for what, shape, wanted in (("regions", regions, 5), ("true boxes", truth, 6)):
            if len(shape) < 2 or shape[:2] != (offsets[0], wanted) or math.prod(shape[2:]) != 1:
                raise self.error(f"{what} {list(shape)} must be R×{wanted}, R as of offsets {list(offsets)}")
        if len(offsets) < 2 or math.prod(offsets[2:]) != 1 or offsets[1] % CORNERS:
            raise self.error(f"offsets {list(offsets)} must be R × 4 classes")
        return LayerPlan([(1, 1, 1, 1)] * len(self.node.tops))

    def forward(self, offsets: Tensor, regions: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
        offsets, regions, truth = (blob.detach().flatten(1) for blob in (offsets, regions, truth))
        labels, classes = truth[:, 0].trunc().long(), offsets.shape[1] // CORNERS
        if bool((labels >= classes).any()):
            raise self.error(out_of_range("label", int(labels.max()), classes))
        counted = (labels > 0) & (truth[:, -1] <= self.exact_overlap)
        means, deviations = (offsets.new_tensor(v) for v in self.statistics)
        own = offsets.unflatten(1, (classes, CORNERS))[torch.arange(len(labels)), labels.clamp(min=0)]
        own = own * deviations + means
        boxes, true = (
            torch.cat([corners[:, :2], corners[:, 2:4] - corners[:, :2] + 1], 1)
            for corners in (regions[:, 1:], truth[:, 1:5])
        )
        size = boxes[:, 2:] * own[:, 2:].exp()
        low = own[:, :2] * boxes[:, 2:] + boxes[:, :2] + 0.5 * boxes[:, 2:] - size / 2
        after = mean_or_minus_one(sized_overlaps(torch.cat([low, size], 1), true), counted)
        before = mean_or_minus_one(sized_overlaps(boxes, true), counted)
        return tuple(top.reshape(1, 1, 1, 1) for top in (after, before)[: len(self.node.tops)])
