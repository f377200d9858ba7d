"""The proposals of MS-CNN (Cai et al., ECCV 2016): boxes of several maps, each with fields of one size."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .box_group import CORNERS, FieldBoxes
from .support.base import LayerPlan, Shape
from .support.registry import register_layer

MODES = ("IOU", "IOMU", "IOFU")


def sized_overlaps(boxes: Tensor, others: Tensor, mode: str = "IOU") -> Tensor:
    """Return how much each box overlaps its counterpart; boxes are corner and size, x, y, w and h.

    As in the fork a box ends at x + w - 1, so that two which share less than a pixel do not overlap; the overlap is over
    the union (IOU), the smaller box (IOMU) or the first one (IOFU).
    """
    low = torch.maximum(boxes[..., :2], others[..., :2])
    sizes = boxes[..., 2:4], others[..., 2:4]
    high = torch.minimum(boxes[..., :2] + sizes[0] - 1, others[..., :2] + sizes[1] - 1)
    areas = [size.prod(-1) for size in sizes]
    apart = (low > high).any(-1)
    common = torch.where(apart, 0, (high - low + 1).prod(-1))
    if mode == "IOMU":
        whole = torch.minimum(*areas)
    else:
        whole = areas[0] if mode == "IOFU" else areas[0] + areas[1] - common
    sound = (sizes[0] > 0).all(-1) & (sizes[1] > 0).all(-1)
    return torch.where(sound, common / whole, 0)


def suppress_sized(boxes: Tensor, threshold: float, mode: str) -> list[int]:
    """Return the boxes (best first) that overlap no better one by more than the threshold."""
    left = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    kept = []
    for best in range(len(boxes)):
        if left[best]:
            kept.append(best)
            left &= ~(sized_overlaps(boxes[best], boxes, mode) > threshold)
    return kept


@register_layer("BoxOutput")
class BoxOutput(FieldBoxes):
    """Proposals R×5×1×1 (image, corners) of one or more maps N × classes + 4 × H × W: scores, the first the background's,
    and offsets; a second top R×6×1×1 has the score after the corners.

    A map has a `field_w`, `field_h` and `downsample_rate`.  A box has the centre ((i + 0.5) rate + x field_w, ...) and the
    size field_w exp(w), with x and y within 1 / `field_xyr` and w and h within log(`field_whr`) of 0.  Its score is the
    greatest of the classes less the background's; those of at least `fg_thr` are clipped to the map times the rate and,
    from `min_size` on, compete: the `max_nms_num` best, suppressed by `iou_thr`, of which `max_post_nms_num` stay
    (0: all).  Of equal scores the later map and cell is the better.  Without any the top is one box of image 0 from 1
    to 10.  Source: zhaoweicai/mscnn, src/caffe/layers/box_output_layer.cpp.
    """

    message = "box_output_param"
    fields = (
        *("fg_thr", "iou_thr", "nms_type", "field_h", "field_w", "downsample_rate", "field_whr", "field_xyr"),
        *("max_nms_num", "max_post_nms_num", "min_size"),
    )
    bottom_count = (1, None)

    def setup(self, *ranks: int) -> None:
        param = self.param
        self.statistics = self.regression_statistics()
        stated = {name: list(getattr(param, name)) for name in ("field_w", "field_h", "downsample_rate")}
        for name, values in stated.items():
            if len(values) != len(ranks) or not all(values):
                raise self.error(
                    f"states {len(values)} {name} for {len(ranks)} bottoms; state one for each, over 0"
                )
        self.maps = list(zip(*stated.values(), strict=True))
        if param.nms_type not in MODES:
            raise self.error(f"nms_type {param.nms_type!r} is not supported; use {', '.join(MODES)}")
        self.check_reach()

    def plan(self, *bottoms: Shape) -> LayerPlan:
        first, boxes = bottoms[0], 0
        for shape in bottoms:
            if len(shape) != 4 or shape[:2] != first[:2] or shape[1] < CORNERS + 2:
                raise self.error(
                    f"bottoms {[list(s) for s in bottoms]} must be N × classes + 4 × H × W, of at least 2 classes"
                )
            boxes += prod(shape[2:])
        return self.plan_rows(first[0], boxes)

    def _boxes(self, values: Tensor, field: tuple[int, ...]) -> Tensor:
        """Return N × cells × 5 of one map: x, y, w, h and score."""
        scores, offsets = values[:, :-CORNERS], values[:, -CORNERS:]
        height, width = values.shape[2:]
        rate = field[2]
        sides = offsets.new_tensor(field[:2])[:, None, None]
        low, size = self.moved_fields(offsets, sides, rate, self.statistics)
        low = low.clamp(min=0)
        edge = offsets.new_tensor([width * rate, height * rate])[:, None, None]
        foreground = scores[:, 1:].amax(1, keepdim=True) - scores[:, :1]
        return torch.cat([low, torch.minimum(size, edge - low), foreground], 1).flatten(2).transpose(1, 2)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        param = self.param
        maps = [self._boxes(bottom.detach(), field) for bottom, field in zip(bottoms, self.maps, strict=True)]
        found = []
        for boxes in torch.cat(maps, 1):
            boxes = boxes[(boxes[:, 4] >= param.fg_thr) & (boxes[:, 2:4] >= param.min_size).all(1)].flip(0)
            order = boxes[:, 4].sort(descending=True, stable=True).indices
            boxes = boxes[order[: param.max_nms_num or None]]
            kept = boxes[
                suppress_sized(boxes, param.iou_thr, param.nms_type)[: param.max_post_nms_num or None]
            ]
            found.append(torch.cat([kept[:, :2], kept[:, :2] + kept[:, 2:4], kept[:, 4:]], 1))
        return self.tops_of(found)
