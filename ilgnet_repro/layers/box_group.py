"""The proposals of Cascade R-CNN (Cai and Vasconcelos, CVPR 2018): BoxGroupOutput, and DecodeBBox between its stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..caffe.graph import Node
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, exact, integers, numbers, uses
from .support.detections import node_writer
from .support.registry import register_layer

CORNERS = 4


def suppress(boxes: Tensor, threshold: float, mode: str) -> list[int]:
    """Return the boxes (best first) that overlap no better one by more than the threshold.

    Corners are pixels of the box.  As in the fork, boxes whose common rows are one float do not overlap, and
    an overlap is over the union (IOU), the smaller box (IOMU) or the better one (IOFU).
    """
    x1, y1, x2, y2 = boxes[:, :CORNERS].unbind(1)
    valid = (x2 >= x1) & (y2 >= y1)
    areas = torch.where(valid, (x2 - x1 + 1) * (y2 - y1 + 1), 0)
    left = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    kept = []
    for best in range(len(boxes)):
        if not left[best]:
            continue
        kept.append(best)
        low_x, low_y = torch.maximum(x1, x1[best]), torch.maximum(y1, y1[best])
        high_x, high_y = torch.minimum(x2, x2[best]), torch.minimum(y2, y2[best])
        apart = (low_x > high_x) | (low_y >= high_y) | ~valid | ~valid[best]
        common = torch.where(apart, 0, (high_x - low_x + 1) * (high_y - low_y + 1))
        if mode == "IOMU":
            whole = torch.minimum(areas, areas[best])
        else:
            whole = areas[best] if mode == "IOFU" else areas + areas[best] - common
        left &= ~(torch.where(whole > 0, common / whole, 0) > threshold)
    return kept


class Regression(Layer):
    """Boxes as offsets, which `bbox_reg_param` scales by a mean and a deviation per coordinate."""

    has_gradient = False

    def regression_statistics(self) -> tuple[list[float], list[float]]:
        param = self.node.layer.bbox_reg_param
        means, deviations = list(param.bbox_mean), list(param.bbox_std)
        if not means or not deviations:
            return [0.0] * CORNERS, [1.0] * CORNERS
        if len(means) != CORNERS or len(deviations) != CORNERS or min(deviations) <= 0:
            raise self.error(
                f"bbox_mean {len(means)} and bbox_std {len(deviations)} must have 4 values each, those of bbox_std over 0"
            )
        return means, deviations


class FieldBoxes(Regression):
    """Proposals of maps, offsets from fields of stated sizes: R×5×1×1 (image, corners), and R×6×1×1 with the score."""

    other_messages = ("bbox_reg_param",)
    top_count = (1, 2)
    sized_by_values = True
    no_onnx = "its suppression has rules that NonMaxSuppression lacks"
    no_source = "its suppression has rules of its own"

    def check_reach(self) -> None:
        param = self.param
        if param.field_whr < 1 or param.field_xyr <= 0:
            raise self.error(
                f"field_whr {param.field_whr:g} must be at least 1 and field_xyr {param.field_xyr:g} over 0"
            )

    def plan_rows(self, images: int, boxes: int) -> LayerPlan:
        """Return the plan for at most ``boxes`` of each image."""
        for limit in (self.param.max_nms_num, self.param.max_post_nms_num):
            boxes = min(boxes, limit) if limit else boxes
        rows = max(images * boxes, 1)
        return LayerPlan([(rows, 5, 1, 1), (rows, 6, 1, 1)][: len(self.node.tops)])

    def moved_fields(
        self, offsets: Tensor, fields: Tensor, stride: int, statistics: tuple[list[float], list[float]]
    ) -> tuple[Tensor, Tensor]:
        """Return the low corners and the sizes, each ...×2×H×W, of fields ...×2×1×1 moved by offsets ...×4×H×W."""
        height, width = offsets.shape[-2:]
        reach, grow = 1 / self.param.field_xyr, math.log(self.param.field_whr)
        means, deviations = (offsets.new_tensor(v)[:, None, None] for v in statistics)
        moved = offsets * deviations + means
        column, row = torch.meshgrid(
            torch.arange(width, device=offsets.device),
            torch.arange(height, device=offsets.device),
            indexing="xy",
        )
        cells = (torch.stack([column, row]) + 0.5) * stride
        size = fields * moved[..., 2:, :, :].clamp(-grow, grow).exp()
        return moved[..., :2, :, :].clamp(-reach, reach) * fields + cells - size / 2, size

    def tops_of(self, images: list[Tensor]) -> tuple[Tensor, ...]:
        """Return the tops of each image's corners and score; without any a box of image 0 from 1 to 10, as in the forks."""
        rows = [
            torch.cat([boxes.new_full((len(boxes), 1), image), boxes], 1)
            for image, boxes in enumerate(images)
        ]
        found = torch.cat(rows)
        plain, scored = found[:, :5], found
        if not len(found):
            plain, scored = found.new_tensor([[0, 1, 1, 10, 10]]), found.new_zeros((1, 6))
        return (plain[..., None, None], scored[..., None, None])[: len(self.node.tops)]


@register_layer("BoxGroupOutput")
class BoxGroupOutput(FieldBoxes):
    """Proposals R×5×1×1 (image, corners) of one or more maps, each with a pair of bottoms: scores N·A × classes × H × W, the
    first the background's, and offsets N·A × 4 × H × W; a second top R×6×1×1 has the score after the corners.

    A box has the centre ((i + 0.5) stride + x field_w, ...) and the size field_w exp(w), with x and y within 1 / `field_xyr`
    and w and h within log(`field_whr`) of 0.  Those of a score 1 - background of at least `fg_thr` are clipped to the map
    times the stride and, from `min_size` pixels on, compete: the `max_nms_num` best, suppressed by `iou_thr`, of which
    `max_post_nms_num` stay (0: all).  Without any the top is one box of image 0 from 1 to 10.  Equal scores are in the
    order of the maps, anchors and cells; the fork's sort leaves it open.  The number of images is the first axis over the
    anchors.  Source: zhaoweicai/cascade-rcnn, src/caffe/layers/box_group_output_layer.cpp and src/caffe/util/bbox_util.cpp.
    """

    message = "box_group_output_param"
    fields = (
        *("fg_thr", "iou_thr", "nms_type", "box_group_param", "field_whr", "field_xyr"),
        *("max_nms_num", "max_post_nms_num", "min_size"),
    )
    bottom_count = (2, None)

    def setup(self, *ranks: int) -> None:
        param = self.param
        self.statistics = self.regression_statistics()
        self.groups = [
            (list(zip(group.field_w, group.field_h, strict=False)), group.stride)
            for group in param.box_group_param
        ]
        if len(ranks) != 2 * len(self.groups):
            raise self.error(
                f"has {len(ranks)} bottoms for {len(self.groups)} box_group_param; each map has scores and offsets"
            )
        for group in param.box_group_param:
            if len(group.field_w) != len(group.field_h) or not group.field_w or not group.stride:
                raise self.error("box_group_param must state as many field_w as field_h, and a stride over 0")
        if param.nms_type not in ("IOU", "IOMU", "IOFU"):
            raise self.error(f"nms_type {param.nms_type!r} is not supported; use IOU, IOMU or IOFU")
        self.check_reach()

    def plan(self, *bottoms: Shape) -> LayerPlan:
        images = bottoms[0][0] // len(self.groups[0][0]) if bottoms[0] else 0
        boxes = 0
        for (anchors, _), scores, offsets in zip(self.groups, bottoms[::2], bottoms[1::2], strict=True):
            count = images * len(anchors)
            if (
                len(scores) != 4
                or scores[0] != count
                or not count
                or offsets != (count, CORNERS, *scores[2:])
            ):
                raise self.error(
                    f"scores {list(scores)} and offsets {list(offsets)} must be N·{len(anchors)} × classes × H × W and "
                    f"N·{len(anchors)} × 4 × H × W, N the same for all maps"
                )
            boxes += len(anchors) * prod(scores[2:])
        return self.plan_rows(images, boxes)

    def _boxes(self, scores: Tensor, offsets: Tensor, group: tuple[list[tuple[int, int]], int]) -> Tensor:
        """Return N × boxes × 5 of one map: corners and score, in the order anchor, cell."""
        anchors, stride = group
        height, width = scores.shape[2:]
        fields = offsets.new_tensor(anchors)[:, :, None, None]
        low, size = self.moved_fields(
            offsets.unflatten(0, (-1, len(anchors))), fields, stride, self.statistics
        )
        high = low + size - 1
        low = low.clamp(min=0)
        edge = offsets.new_tensor([width * stride, height * stride])[:, None, None]
        corners = torch.cat([low, torch.minimum(high, edge)], 2)
        foreground = (1 - scores[:, :1]).unflatten(0, (-1, len(anchors)))
        return torch.cat([corners, foreground], 2).permute(0, 1, 3, 4, 2).flatten(1, 3)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        param = self.param
        values = [bottom.detach() for bottom in bottoms]
        maps = [
            self._boxes(scores, offsets, group)
            for scores, offsets, group in zip(values[::2], values[1::2], self.groups, strict=True)
        ]
        found = []
        for boxes in torch.cat(maps, 1):
            sides = boxes[:, 2:4] - boxes[:, :2] + 1
            boxes = boxes[(boxes[:, 4] >= param.fg_thr) & (sides >= param.min_size).all(1)]
            order = boxes[:, 4].sort(descending=True, stable=True).indices
            boxes = boxes[order[: param.max_nms_num or None]]
            found.append(
                boxes[suppress(boxes, param.iou_thr, param.nms_type)[: param.max_post_nms_num or None]]
            )
        return self.tops_of(found)


def decode_bbox(offsets: Tensor, boxes: Tensor, means: list[float], deviations: list[float]) -> Tensor:
    """Return the boxes R×5 (image, corners) moved by the second four of their offsets."""
    move = offsets[:, 4:8] * offsets.new_tensor(deviations) + offsets.new_tensor(means)
    low, high = boxes[:, 1:3], boxes[:, 3:5]
    size = high - low + 1
    centre, new = 0.5 * (low + high) + move[:, :2] * size, size * move[:, 2:].exp()
    corner = centre - (new - 1) / 2
    return torch.cat([boxes[:, :1], corner, corner + new - 1], 1)


uses(decode_bbox)


@register_layer("DecodeBBox")
class DecodeBBox(Regression):
    """Boxes for the next stage: those of the second bottom, R×5, moved by offsets R×8, of which the second four count.

    In phase TRAIN boxes turned inside out are left out, and so are those whose last value of the third bottom, the
    overlap with the true box, is at least `gt_iou_thr`.
    Source: zhaoweicai/cascade-rcnn, src/caffe/layers/decode_bbox_layer.cpp.
    """

    message = "decode_bbox_param"
    other_messages = ("bbox_reg_param",)
    fields = ("gt_iou_thr",)
    bottom_count = (2, 3)

    def setup(self, *ranks: int) -> None:
        self.statistics = self.regression_statistics()
        if len(ranks) == 3 and not self.is_train:
            raise self.error("a third bottom is for phase TRAIN; remove it or use phase TRAIN")

    def __new__(cls, node: Node | None = None, ranks: Sequence[int] | None = ()) -> DecodeBBox:
        """Return the layer of the node's phase."""
        in_training = cls is DecodeBBox and node is not None and node.phase == "TRAIN"
        return super().__new__(DecodeBBoxInTraining if in_training else cls)

    def plan(self, offsets: Shape, boxes: Shape, *true: Shape) -> LayerPlan:
        if len(offsets) < 2 or len(boxes) < 2 or (prod(offsets[1:]), prod(boxes[1:])) != (8, 5):
            raise self.error(f"needs offsets R×8 and boxes R×5, not {list(offsets)} and {list(boxes)}")
        if any(shape[:1] != boxes[:1] for shape in (offsets, *true)):
            raise self.error(
                f"bottoms {[list(s) for s in (offsets, boxes, *true)]} differ in their number of boxes"
            )
        return LayerPlan([boxes])

    def forward(self, offsets: Tensor, boxes: Tensor, *true: Tensor) -> tuple[Tensor]:
        top = decode_bbox(offsets.detach().flatten(1), boxes.detach().flatten(1), *self.statistics)
        return (top.reshape(boxes.shape),)

    def source(self, code: SourceCode, offsets: str, boxes: str) -> list[str]:
        call = f"{code.helper(decode_bbox)}({offsets}.flatten(1), {boxes}.flatten(1), {self._stated()})"
        return [f"{call}.reshape({boxes}.shape)"]

    def _stated(self) -> str:
        means, deviations = self.statistics
        return f"{exact(means)}, {exact(deviations)}"

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        node = node_writer(graph)
        flat: Sequence[str] = [
            node("Reshape", bottom, integers(-1, length))
            for bottom, length in zip(bottoms, (8, 5), strict=True)
        ]
        means, deviations = self.statistics
        move = node("Slice", flat[0], integers(4), integers(8), integers(1))
        move = node("Add", node("Mul", move, numbers(deviations)), numbers(means))
        shift, grow = graph.nodes("Split", [move, graph.constant(integers(2, 2))], 2, axis=1)
        image, low, high = graph.nodes("Split", [flat[1], graph.constant(integers(1, 2, 2))], 3, axis=1)
        size = node("Add", node("Sub", high, low), numbers(1))
        centre = node("Add", node("Mul", node("Add", low, high), numbers(0.5)), node("Mul", shift, size))
        reach = node("Sub", node("Mul", size, node("Exp", grow)), numbers(1))
        corner = node("Sub", centre, node("Mul", reach, numbers(0.5)))
        top = node("Concat", image, corner, node("Add", corner, reach), axis=1)
        return [node("Reshape", top, node("Shape", bottoms[1]))]


class DecodeBBoxInTraining(DecodeBBox):
    """`DecodeBBox` in phase TRAIN, which leaves out boxes."""

    sized_by_values = True
    no_onnx = "it leaves out boxes in phase TRAIN"
    no_source = "it leaves out boxes in phase TRAIN"

    def plan(self, offsets: Shape, boxes: Shape, *true: Shape) -> LayerPlan:
        super().plan(offsets, boxes, *true)
        return LayerPlan([(boxes[0], 5, 1, 1)])

    def forward(self, offsets: Tensor, boxes: Tensor, *true: Tensor) -> tuple[Tensor]:
        (top,) = super().forward(offsets, boxes)
        top = top.flatten(1)
        kept = (top[:, 1:3] <= top[:, 3:5]).all(1)
        for overlap in true:
            kept &= overlap.flatten(1)[:, -1] < self.param.gt_iou_thr
        if not kept.any():
            raise self.error("no box is left")
        return (top[kept][..., None, None],)
