"""ProposalTarget: the regions that train the second part of MS-CNN and Cascade R-CNN, and their targets."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .box_group import CORNERS, Regression
from .box_output import sized_overlaps
from .support.base import LayerPlan, Shape
from .support.labels import out_of_range, to_indices
from .support.registry import register_layer

RANDOM = "its regions are drawn at random in each pass"
LEAST_SIDE = 32  # of a region that is drawn where none is left
TRIES = 1000


@register_layer("ProposalTarget")
class ProposalTarget(Regression):
    """Sampled regions R×5 (image, corners), with their labels R×1, targets, and inside and outside weights R × 4 classes.

    Then the matched true boxes R×6 (label, corners, overlap); an optional seventh top R×1 has weights of the samples;
    all end in ×1×1.  Bottoms: regions R×5 and true boxes G×7 (image, corners, label, ignored; an image of -1 is left
    out), which join the regions (`append_gtbox`).  A region of an overlap from `fg_thr` on has the label of its true
    box, unless that is ignored, one from `bg_thr_lw` to `bg_thr_hg` is background.  Of `batch_size` regions at most
    `fg_fraction` are drawn from the first; other regions fill up the background (`pickup_discard`).  With
    `batch_size: -1` all are taken.  Targets of an overlap outside `bbox_thr_lw` to `bbox_thr_hg` weigh 0.
    `cls_aware: false` has two classes of targets.  The draws are others than the fork's.  Source:
    zhaoweicai/cascade-rcnn and the last version in zhaoweicai/mscnn, src/caffe/layers/proposal_target_layer.cpp.
    """

    message = "proposal_target_param"
    other_messages = ("bbox_reg_param",)
    fields = (
        *("cls_num", "batch_size", "fg_fraction", "num_img_per_batch", "fg_thr", "bg_thr_hg", "bg_thr_lw"),
        *("img_width", "img_height", "iou_weighted", "bbox_thr_lw", "bbox_thr_hg", "pickup_discard"),
        "append_gtbox",
    )
    bottom_count = (2, 2)
    top_count = (6, 7)
    index_bottoms = (0, 1)
    sized_by_values = True
    note = RANDOM
    no_onnx = RANDOM
    no_source = RANDOM

    def setup(self, *ranks: int) -> None:
        param = self.param
        self.statistics = self.regression_statistics()
        if param.cls_num < 2:
            raise self.error(f"cls_num {param.cls_num} must be at least 2, with the background")
        if param.batch_size < 1 and param.batch_size != -1:
            raise self.error(f"batch_size {param.batch_size} must be over 0, or -1 for all regions")
        if param.fg_thr < param.bg_thr_hg:
            raise self.error(f"fg_thr {param.fg_thr:g} must not be under bg_thr_hg {param.bg_thr_hg:g}")
        if not 0 <= param.fg_fraction <= 1:
            raise self.error(f"fg_fraction {param.fg_fraction:g} must be 0 to 1")
        if min(param.img_width, param.img_height) <= LEAST_SIDE or not param.num_img_per_batch:
            raise self.error(
                f"img_width {param.img_width} and img_height {param.img_height} must be over {LEAST_SIDE}, and "
                f"num_img_per_batch {param.num_img_per_batch} over 0"
            )
        self.by_class: bool = self.node.layer.bbox_reg_param.cls_aware
        self._generator = torch.Generator().manual_seed(0)

    def plan(self, regions: Shape, truth: Shape) -> LayerPlan:
        for what, shape, least in (("regions", regions, 5), ("true boxes", truth, 7)):
            if len(shape) < 2 or prod(shape[2:]) != 1 or shape[1] < least:
                raise self.error(f"{what} {list(shape)} must be R×{least}")
        if regions[1] != 5:
            raise self.error(f"regions {list(regions)} must be R×5")
        rows = self.param.batch_size
        if rows == -1:
            rows = max(regions[0] + (truth[0] if self.param.append_gtbox else 0), 1)
        wide = CORNERS * (self.param.cls_num if self.by_class else 2)
        return LayerPlan([(rows, n, 1, 1) for n in (5, 1, wide, wide, wide, 6, 1)][: len(self.node.tops)])

    def _draw(self, rows: Tensor, count: int) -> Tensor:
        """Return ``count`` of the rows at most, drawn if there are more."""
        if len(rows) <= count:
            return rows
        return rows[torch.randperm(len(rows), generator=self._generator)[:count].to(rows.device)]

    def _matches(self, boxes: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each box (image, x, y, w, h) its true box of the same image, or -1, and their overlap."""
        if not len(true):
            return torch.full((len(boxes),), -1, device=boxes.device), boxes.new_zeros(len(boxes))
        table = sized_overlaps(boxes[:, None, 1:], true[None, :, 1:])
        overlap, index = torch.where(boxes[:, None, 0] == true[None, :, 0], table, -1).max(1)
        return torch.where(overlap < 0, -1, index), overlap.clamp(min=0)

    def _random_box(self, true: Tensor) -> Tensor:
        """Return one box of the background, for a batch without any."""
        param = self.param

        def below(limit: int) -> int:
            return int(torch.randint(limit, (1,), generator=self._generator))

        for _ in range(TRIES):
            image = below(param.num_img_per_batch)
            x, y = below(param.img_width - LEAST_SIDE), below(param.img_height - LEAST_SIDE)
            w, h = (max(below(n), LEAST_SIDE) for n in (param.img_width - x, param.img_height - y))
            box = true.new_tensor([[image, x, y, w, h]])
            if float(self._matches(box, true)[1]) < param.fg_thr:
                return box
        raise self.error(f"no region is left, and {TRIES} random ones overlap true boxes")

    def forward(self, regions: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
        param = self.param
        regions, truth = regions.detach().flatten(1), truth.detach().flatten(1)
        truth = truth[truth[:, 0].trunc() != -1]
        boxes, true = (
            torch.cat([rows[:, :3], rows[:, 3:5] - rows[:, 1:3] + 1], 1) for rows in (regions, truth)
        )
        for rows in (boxes, true):
            to_indices(self, rows[:, 0].floor(), param.num_img_per_batch, "an image's number")
        labels = truth[:, 5].trunc().long()
        wrong = labels[(labels < 1) | (labels >= param.cls_num)]
        if len(wrong):
            raise self.error(out_of_range("a true box's label", int(wrong[0]), param.cls_num, 1))
        if param.append_gtbox:
            boxes = torch.cat([boxes, true])
        index, overlap = self._matches(boxes, true)
        # With fg_thr 0 a region of an image without true boxes would match none, which the fork reads out of bounds.
        is_true = (overlap >= param.fg_thr) & (index >= 0)
        ignored = is_true & (truth[index.clamp(min=0), 6] != 0) if len(truth) else is_true
        is_background = (overlap >= param.bg_thr_lw) & (overlap < param.bg_thr_hg) & ~is_true
        foreground, background = ((is_true & ~ignored).nonzero()[:, 0], is_background.nonzero()[:, 0])
        rest = (~is_true & ~is_background).nonzero()[:, 0]
        if param.batch_size == -1:
            most, wanted = len(foreground), len(foreground) + len(background)
        else:
            most, wanted = int(param.fg_fraction * param.batch_size + 0.5), param.batch_size
        foreground = self._draw(foreground, most)
        free = wanted - len(foreground)
        if len(background) <= free and param.pickup_discard:
            background = torch.cat([background, rest[: free - len(background)]])
        kept = torch.cat([foreground, self._draw(background, free)])
        if not len(kept):
            boxes = torch.cat([boxes, self._random_box(true)])
            index, overlap = (
                torch.cat([index, index.new_tensor([-1])]),
                torch.cat([overlap, overlap.new_zeros(1)]),
            )
            kept = kept.new_tensor([len(boxes) - 1])
        return self._tops(boxes[kept], index[kept], overlap[kept], len(foreground), true, labels)

    def _tops(
        self, boxes: Tensor, index: Tensor, overlap: Tensor, positive: int, true: Tensor, true_labels: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the tops of the sampled boxes, whose first ``positive`` have a label."""
        param, count = self.param, len(boxes)
        labels = torch.zeros(count, dtype=torch.long, device=boxes.device)
        own = true[index[:positive]]
        labels[:positive] = true_labels[index[:positive]]
        first = boxes[:positive]
        middle = [rows[:, 1:3] + 0.5 * rows[:, 3:] for rows in (first, own)]
        moved = torch.cat([(middle[1] - middle[0]) / first[:, 3:], (own[:, 3:] / first[:, 3:]).log()], 1)
        means, deviations = (boxes.new_tensor(v) for v in self.statistics)
        moved = (moved - means) / deviations
        classes = param.cls_num if self.by_class else 2
        column = labels if self.by_class else labels.clamp(max=1)
        targets, weights = boxes.new_zeros((2, count, classes, CORNERS))
        row = torch.arange(positive, device=boxes.device)
        targets[row, column[:positive]] = moved
        within = (overlap >= param.bbox_thr_lw) & (overlap <= param.bbox_thr_hg)
        weights[row, column[:positive]] = within[:positive, None].to(weights.dtype).expand(-1, CORNERS)
        matched = boxes.new_zeros((count, 6))
        matched[:positive] = torch.cat([labels[:positive, None], _corners(own), overlap[:positive, None]], 1)
        tops = [
            torch.cat([boxes[:, :1], _corners(boxes)], 1),
            labels.to(boxes.dtype)[:, None],
            targets.flatten(1),
            weights.flatten(1),
            weights.flatten(1).clone(),
            matched,
            self._sample_weights(labels, overlap)[:, None],
        ]
        return tuple(top[..., None, None] for top in tops[: len(self.node.tops)])

    def _sample_weights(self, labels: Tensor, overlap: Tensor) -> Tensor:
        """Return weights by which the regions with a label count `fg_fraction`, and the others the rest."""
        param, true = self.param, labels > 0
        weights = torch.where(true, overlap, 1) if param.iou_weighted else torch.ones_like(overlap)
        sums = [(weights * of).sum() for of in (true, ~true)]
        if sums[0] == 0:
            return weights
        share = len(labels) * param.fg_fraction
        return weights * torch.where(true, share / sums[0], (len(labels) - share) / sums[1])


def _corners(boxes: Tensor) -> Tensor:
    """Return the corners of boxes (image, x, y, w, h)."""
    return torch.cat([boxes[:, 1:3], boxes[:, 1:3] + boxes[:, 3:5] - 1], 1)
