"""The Python layers of the multi-task network cascades (Dai et al., CVPR 2016) between their stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .mnc_targets import (
    INFO,
    SIDE,
    check_truth,
    common_part,
    matched,
    resized_mask,
    sampled_shapes,
    sampled_tops,
)
from .proposal import ProposalLayer, Settings
from .python_layer import PythonLayer, register_python_layer
from .rpn_training import ROI_OVERLAP, all_anchors, anchor_maps
from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers, uses
from .support.boxes import greedy_nms
from .support.detections import node_writer
from .support.gradients import with_gradient
from .support.labels import to_indices

TRAINS = "it computes training targets in phase TRAIN"
CLASSES = 21  # of StageBridgeLayer's targets
MASK_OVERLAP = 0.5  # from which a mask has the label of its true one


def moved_boxes(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Return the corners of boxes N×4 moved by dx, dy, dw, dh, as MNC's `bbox_transform_inv`."""
    low = boxes[:, :2]
    size = boxes[:, 2:] - low + 1
    centre, half = deltas[:, :2] * size + low + 0.5 * size, 0.5 * deltas[:, 2:].exp() * size
    return torch.cat([centre - half, centre + half], 1)


def clipped(boxes: Tensor, info: Tensor) -> tuple[Tensor, Tensor]:
    """Return boxes N×4 clipped to the image of im_info, and which lay inside it."""
    edge = info.flatten()[:2].flip(0).to(boxes).repeat(2) - 1
    return torch.minimum(boxes, edge).clamp(min=0), ((boxes >= 0) & (boxes <= edge)).all(1)


def _check_counts(layer: PythonLayer, wanted: tuple[int, int]) -> None:
    """Raise LayerError for other numbers of bottoms and tops than those of the layer's phase."""
    bottoms, tops = len(layer.node.bottoms), len(layer.node.tops)
    if (bottoms, tops) != wanted:
        raise layer.error(
            f"has {bottoms} bottoms and {tops} tops; in phase {layer.node.phase} give it {wanted[0]} and {wanted[1]}"
        )


def clip_limit(layer: PythonLayer, base: float) -> float:
    """Return what `use_clip` limits a gradient to either way, 1 / `clip_base`; infinite without it."""
    stated = layer.settings.get("clip_base", base)
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not stated > 0:
        raise layer.error(f"param_str: clip_base must be a number over 0, not {stated}")
    return 1 / stated if layer.settings.get("use_clip", 0) else math.inf


@register_python_layer("pylayer.proposal_layer", "ProposalLayer")
class MNCProposalLayer(ProposalLayer):
    """MNC's: Faster R-CNN's, which in phase TRAIN has 300 regions, their anchors as a second top 1×R, and a gradient.

    That is what the fork passes to the offsets from the regions' gradient, of centre, width and height: in cells of
    the map, limited where `use_clip` is set, and 0 where the region or its anchor is not inside the image.
    Source: daijifeng001/MNC, lib/pylayer/proposal_layer.py, lib/mnc_config.py and experiments/cfgs/VGG16/mnc_5stage.yml.
    """

    known: ClassVar[dict[str, Any]] = {
        "feat_stride": 16, "scales": [8, 16, 32], "ratios": [0.5, 1, 2],
        "gradient_scale": 1, "use_clip": 0, "clip_base": 256,
    }  # fmt: skip
    has_gradient = True

    def setup(self) -> None:
        tops = 2 if self.is_train else 1
        if len(self.node.tops) != tops:
            raise self.error(f"has {len(self.node.tops)} tops; in phase {self.node.phase} give it {tops}")
        for name in ("scales", "ratios"):  # MNC's anchors are always these
            if name in self.settings:
                raise self.error(f"param_str: {name} is not read by MNC's layer; remove it")
        super().setup()
        self.limit = clip_limit(self, 256)
        if self.is_train:
            self.no_onnx = self.no_source = TRAINS

    def _settings(self, anchors: tuple[tuple[float, ...], ...], stride: int) -> Settings:
        return Settings(anchors, stride, (12000, 300) if self.is_train else (6000, 300))

    def plan(self, scores: Shape, deltas: Shape, info: Shape) -> LayerPlan:
        made = super().plan(scores, deltas, info)
        rows = made.tops[0][0]
        return LayerPlan([(rows, 5), (1, rows)]) if self.is_train else made

    def forward(self, scores: Tensor, deltas: Tensor, info: Tensor) -> tuple[Tensor, ...]:
        if len(self.node.tops) == 1:
            return super().forward(scores, deltas, info)
        settings, (height, width) = self.proposal_settings, scores.shape[2:]
        given, offsets, image = (blob.detach().float().cpu() for blob in (scores, deltas, info))
        own = torch.tensor(settings.anchors)
        anchors = all_anchors(own, height, width, settings.feat_stride)
        rows = offsets[0].permute(1, 2, 0).reshape(-1, 4)
        boxes, inside = clipped(moved_boxes(anchors, rows), image)
        inside &= clipped(anchors, image)[1]
        least = settings.min_size * image.flatten()[2]
        index = (boxes[:, 2:] - boxes[:, :2] + 1 >= least).all(1).nonzero()[:, 0]
        score = given[0, len(own) :].permute(1, 2, 0).reshape(-1)[index]
        index = index[score.sort(descending=True, stable=True).indices[: settings.top_n[0]]]
        index = index[greedy_nms(boxes[index], settings.nms_threshold, pixel=1.0, limit=settings.top_n[1])]

        def backward(gradient: Tensor) -> tuple[None, Tensor, None]:
            anchor, moved = own[index % len(own)], gradient.detach().float().cpu()
            size = (anchor[:, 2:] - anchor[:, :2]) / settings.feat_stride
            grown = rows[index, 2:].exp() * size
            values = torch.cat([moved[:, 1:3] * size, moved[:, 3:] * grown], 1) * inside[index, None]
            found = torch.zeros_like(rows)
            found[index] = values.clamp(-self.limit, self.limit)
            return None, anchor_maps(found, height, width).to(deltas), None

        regions = torch.cat([torch.zeros(len(index), 1), boxes[index]], 1)
        return with_gradient(regions.to(scores), backward, scores, deltas, info), index.to(scores)[None]


@register_python_layer("pylayer.mask_layer", "MaskLayer")
class MaskLayer(PythonLayer):
    """Masks R×(S·S) as R×1×S×S, S = 21.

    In phase TRAIN two more bottoms, the true masks G×H×W and gt_masks_info R×12, give a second top, the labels R×1: that
    of the true box where the mask, resized to its region, overlaps the true one by a half, else 0.  Masks of label 0
    pass no gradient.  Source: daijifeng001/MNC, lib/pylayer/mask_layer.py.
    """

    bottom_count: ClassVar[tuple[int, int | None]] = (1, 3)
    top_count: ClassVar[tuple[int, int | None]] = (1, 2)
    index_bottoms = (2,)
    no_onnx: str = ""
    no_source: str = ""

    def setup(self) -> None:
        _check_counts(self, (3, 2) if self.is_train else (1, 1))
        if self.is_train:
            self.no_onnx = self.no_source = TRAINS

    def reshape(self, bottoms: list[Shape]) -> list[Shape]:
        masks = bottoms[0]
        if math.prod(masks[1:]) != SIDE**2:
            raise self.error(f"masks {list(masks)} must have {SIDE}² = {SIDE**2} values each")
        tops: list[Shape] = [(masks[0], 1, SIDE, SIDE)]
        if self.is_train:
            truth, info = bottoms[1:]
            if len(truth) != 3 or info != (masks[0], INFO):
                raise self.error(
                    f"needs true masks G×H×W and a row of {INFO} for each of {masks[0]} masks, not {list(truth)} and "
                    f"{list(info)}"
                )
            tops.append((masks[0], 1))
        return tops

    def forward(self, masks: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        top = masks.reshape(-1, 1, SIDE, SIDE)
        if not others:
            return (top,)
        given, truth, info = (blob.detach().float().cpu() for blob in (top, *others))
        found = [self._label(mask[0], truth, row) for mask, row in zip(given, info, strict=True)]
        labels = torch.tensor(found).reshape(-1, 1).to(masks)
        return torch.where(labels[..., None, None] > 0, top, top.detach()), labels

    def _label(self, mask: Tensor, truth: Tensor, row: Tensor) -> float:
        """Return the label of one mask by its row of gt_masks_info."""
        if row[0] == -1:
            return 0.0
        which, height, width = (int(value) for value in row[:3])
        to_indices(self, row[:1], len(truth), "a true mask's number")
        box, own = (row[start : start + 4].round().long().tolist() for start in (4, 8))
        sides = box[3] - box[1] + 1, box[2] - box[0] + 1
        if min(sides) < 1:
            raise self.error(f"region {box} of a mask has no pixels; correct gt_masks_info")
        ours, true = resized_mask(mask, *sides), truth[which, :height, :width]
        common = common_part(self, box, own, true)
        if common is None:
            return 0.0
        both = float((ours[common[0]] & (common[1] != 0)).sum())
        either = float(ours.sum() + true.sum()) - both
        return float(row[3]) if either >= 1 and both / either >= MASK_OVERLAP else 0.0

    def onnx(self, graph: OnnxGraph, masks: str) -> list[str]:
        return [graph.node("Reshape", [masks, graph.constant(integers(-1, 1, SIDE, SIDE))])]

    def source(self, code: SourceCode, masks: str) -> list[str]:
        return [f"{masks}.reshape(-1, 1, {SIDE}, {SIDE})"]


def bridge_regions(rois: Tensor, deltas: Tensor, scores: Tensor, info: Tensor) -> Tensor:
    """Return the regions R×5 moved by the deltas of each one's best class and clipped to the image."""
    low, high = rois[:, 1:3], rois[:, 3:5]
    size = high - low + 1
    best = scores.argmax(1)
    own = deltas.reshape(len(rois), -1, 4)[torch.arange(len(rois), device=rois.device), best]
    centre = low + 0.5 * size + own[:, :2] * size
    half = 0.5 * own[:, 2:].exp() * size
    edge = info.flatten()[:2].flip(0) - 1
    corners = [torch.minimum(corner, edge).clamp(min=0) for corner in (centre - half, centre + half)]
    return torch.cat([torch.zeros_like(rois[:, :1]), *corners], 1)


uses(bridge_regions)


@register_python_layer("pylayer.stage_bridge_layer", "StageBridgeLayer")
class StageBridgeLayer(PythonLayer):
    """Regions R×5 for the next stage: moved by the box of their best class, and clipped to the image.

    Bottoms: regions, deltas R×4·classes, scores R×classes, im_info.  In phase TRAIN they are regions, deltas, scores,
    true boxes G×5, their masks G×H×W, im_info and the masks' sizes G×2.  The best class is then one of the objects', the
    true boxes are added, all regions are kept, those of an overlap from 0.5 first, and further tops have the labels,
    masks, weights, gt_masks_info R×12 and offsets of 21 classes.

    The gradients are the fork's, which take the first corner's row as the width and the difference of columns as the
    height of a region; `use_clip` and `clip_base` (64) limit that of the deltas.
    Source: daijifeng001/MNC, lib/pylayer/stage_bridge_layer.py.
    """

    bottom_count: ClassVar[tuple[int, int | None]] = (4, 7)
    top_count: ClassVar[tuple[int, int | None]] = (1, 8)
    no_onnx: str = ""
    no_source: str = ""
    order = (
        *("labels", "mask_targets", "mask_weight", "gt_masks_info"),
        *("bbox_targets", "bbox_inside_weights", "bbox_outside_weights"),
    )

    def setup(self) -> None:
        _check_counts(self, (7, 8) if self.is_train else (4, 1))
        if not self.is_train:
            return
        self.no_onnx = self.no_source = TRAINS
        settings = self.settings
        known = ("feat_stride", "use_clip", "clip_base")
        for name in settings:
            if name not in known:
                raise self.error(f"param_str: {name} is unknown; known are {', '.join(known)}")
        stride = settings.get("feat_stride")
        if not isinstance(stride, int) or stride < 1:
            raise self.error("param_str: feat_stride must be an integer over 0, as in 'feat_stride': 16")
        self.stride: int = stride
        if "use_clip" not in settings:
            raise self.error("param_str: use_clip is missing; state 0 or 1")
        self.limit = clip_limit(self, 64)

    def reshape(self, bottoms: list[Shape]) -> list[Shape]:
        rois, deltas, scores = bottoms[:3]
        if len(scores) != 2 or math.prod(deltas[1:]) != 4 * scores[1] or math.prod(rois[1:]) != 5:
            raise self.error(
                f"needs regions R×5, deltas R×4·classes and scores R×classes, not {list(rois)}, {list(deltas)} and "
                f"{list(scores)}"
            )
        if not self.is_train:
            return [(rois[0], 5)]
        truth, masks, _, sizes = bottoms[3:]
        check_truth(self, truth, masks, sizes)
        tops = sampled_shapes(rois[0] + truth[0], CLASSES)
        return [tops[name] for name in ("rois", *self.order)]

    def forward(self, rois: Tensor, deltas: Tensor, scores: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        if len(others) > 1:
            return self._train(rois, deltas, scores, *others)
        return (bridge_regions(rois.flatten(1), deltas.flatten(1), scores, others[0]),)

    def _train(
        self,
        rois: Tensor,
        deltas: Tensor,
        scores: Tensor,
        truth: Tensor,
        masks: Tensor,
        info: Tensor,
        sizes: Tensor,
    ) -> tuple[Tensor, ...]:
        given, offsets, score, true, masks, image, sizes = (
            blob.detach().float().cpu() for blob in (rois, deltas, scores, truth, masks, info, sizes)
        )
        count = len(given)
        given = given.reshape(count, 5)
        row = torch.arange(count)
        label = score[:, 1:].argmax(1) + 1
        own = offsets.reshape(count, -1, 4)[row, label].double()
        corners = torch.cat([moved_boxes(given[:, 1:].double(), own), true[:, :4].double()])
        boxes, inside = clipped(corners, image)
        regions = torch.cat([torch.zeros(len(boxes), 1).to(boxes), boxes], 1)
        most, best = matched(self, regions, true)
        is_true = most >= ROI_OVERLAP
        kept = (is_true.nonzero()[:, 0], (~is_true).nonzero()[:, 0])
        scale = float(image.flatten()[2])
        tops = sampled_tops(self, kept, regions, true, best, (masks, sizes), scale, CLASSES)
        order = torch.cat(kept)

        def backward(gradient: Tensor) -> Sequence[Tensor | None]:
            moved = torch.zeros(len(order), 4).double()
            moved[order] = gradient.detach().cpu()[:, 1:].double()
            moved = moved[:count]
            grown = own[:, 2:].exp()
            of_rois = torch.cat([torch.zeros(count, 1), moved[:, :2], moved[:, 2:] * (own[:, :2] + grown)], 1)
            # The fork's columns: of a region's number, x1, y1, x2, y2 it subtracts the first two from the third and fourth.
            size = (given[:, 2:4] - given[:, :2]).double() / self.stride
            values = torch.cat([moved[:, :2] * size, moved[:, 2:] * grown * size], 1) * inside[:count, None]
            of_deltas = torch.zeros_like(offsets).reshape(count, -1, 4)
            of_deltas[row, label] = values.clamp(-self.limit, self.limit).float()
            return of_rois.to(rois).reshape(rois.shape), of_deltas.to(deltas).reshape(deltas.shape)

        moved = with_gradient(tops["rois"].to(rois), backward, rois, deltas)
        return (moved, *(tops[name].to(rois) for name in self.order))

    def onnx(self, graph: OnnxGraph, rois: str, deltas: str, scores: str, info: str) -> list[str]:
        node = node_writer(graph)
        rois = node("Reshape", rois, integers(-1, 5))
        first, low, high = graph.nodes("Split", [rois, graph.constant(integers(1, 2, 2))], 3, axis=1)
        size = node("Add", node("Sub", high, low), numbers(1))
        best = node("ArgMax", scores, axis=1, keepdims=1)
        classes = node("Reshape", deltas, integers(-1, graph.size(scores, 1), 4))
        own = node("GatherND", classes, best, batch_dims=1)
        move, grow = graph.nodes("Split", [own, graph.constant(integers(2, 2))], 2, axis=1)
        centre = node("Add", node("Add", low, node("Mul", size, numbers(0.5))), node("Mul", move, size))
        half = node("Mul", node("Mul", node("Exp", grow), numbers(0.5)), size)
        edge = node("Sub", node("Gather", node("Reshape", info, integers(-1)), integers(1, 0)), numbers(1))
        corners = [
            node("Max", node("Min", node(op, centre, half), edge), numbers(0)) for op in ("Sub", "Add")
        ]
        return [node("Concat", node("Mul", first, numbers(0)), *corners, axis=1)]

    def source(self, code: SourceCode, rois: str, deltas: str, scores: str, info: str) -> list[str]:
        return [f"{code.helper(bridge_regions)}({rois}.flatten(1), {deltas}.flatten(1), {scores}, {info})"]
