"""The Python layers that feed multi-task network cascades and draw their training targets (daijifeng001/MNC).

Their constants are those of `lib/mnc_config.py` and `experiments/cfgs/VGG16/mnc_5stage.yml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .python_layer import PythonLayer, register_python_layer
from .rpn_training import (
    IMAGE,
    ROI_OVERLAP,
    AnchorTargetLayer,
    RoIDataLayer,
    Sampler,
    pixel_overlaps,
    placed_targets,
)
from .support.base import LayerPlan, Shape
from .support.gradients import with_gradient
from .support.labels import to_indices

SIDE = 21  # of a mask
BINARY = 0.4  # from which a resized mask covers a pixel
INFO = 12  # values of a row of gt_masks_info: true box, height and width of its mask, label, two boxes
INPUT_SIDE = 14  # of CFM's masks
SAMPLES, FOREGROUND = 64, round(0.3 * 64)
BACKGROUND = ((0.1, 0.5, 0.85), (0.0, 0.1, 0.15))  # least and greatest overlap, share of what is left


def resized_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels a mask H×W covers after bilinear resizing."""
    size = (height, width)
    return F.interpolate(mask[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0] >= BINARY


def common_part(
    layer: PythonLayer, box: Sequence[int], own: Sequence[int], mask: Tensor
) -> tuple[tuple[slice, slice], Tensor] | None:
    """Return where a box meets the true box ``own``, as slices of the first, and the mask there; None where it does not.

    Corners are pixels.  Raises LayerError for a mask that ends before its box.
    """
    low = [max(box[axis], own[axis]) for axis in (0, 1)]
    high = [min(box[2 + axis], own[2 + axis]) for axis in (0, 1)]
    if low[0] > high[0] or low[1] > high[1]:
        return None
    inside, part = (
        tuple(slice(low[axis] - corners[axis], high[axis] - corners[axis] + 1) for axis in (1, 0))
        for corners in (box, own)
    )
    found = mask[part]
    if found.shape != (high[1] - low[1] + 1, high[0] - low[0] + 1):
        raise layer.error(
            f"a mask of {mask.shape[0]}×{mask.shape[1]} pixels does not cover its true box of "
            f"{own[3] - own[1] + 1}×{own[2] - own[0] + 1}; correct gt_masks, mask_info or gt_boxes"
        )
    return (inside[0], inside[1]), found


def check_truth(layer: PythonLayer, truth: Shape, masks: Shape, sizes: Shape) -> None:
    """Raise LayerError for shapes that are not true boxes G×5, masks G×H×W and their sizes G×2."""
    if len(truth) != 2 or truth[1] != 5 or len(masks) != 3 or len(sizes) != 2 or sizes[1] < 2:
        raise layer.error(
            f"needs true boxes G×5, masks G×H×W and their sizes G×2, not {list(truth)}, {list(masks)} and {list(sizes)}"
        )


def matched(layer: PythonLayer, regions: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Return the greatest overlap of each region R×5 with a true box G×5, and the row of that box."""
    if not len(true):
        raise layer.error("has no true boxes; give each image at least one")
    return pixel_overlaps(regions[:, 1:].double(), true.double()).nan_to_num(0).max(1)


def sampled_tops(
    layer: PythonLayer,
    kept: tuple[Tensor, Tensor],
    regions: Tensor,
    true: Tensor,
    best: Tensor,
    truth: tuple[Tensor, Tensor],
    scale: float,
    classes: int,
) -> dict[str, Tensor]:
    """Return labels, targets and masks of the regions R×5 that are foreground and background (``kept``: their rows).

    ``best`` is each region's row in the true boxes, ``truth`` their masks and sizes, ``scale`` the image's.
    """
    (masks, sizes), rows, positive = truth, torch.cat(kept), len(kept[0])
    boxes, own = regions[rows], true[best[rows]]
    labels = own[:, 4].clone()
    labels[positive:] = 0
    to_indices(layer, labels, classes, "a true box's label")
    targets, inner = placed_targets(boxes[:, 1:], own.to(boxes), labels, labels, classes)
    covered = torch.zeros(len(rows), 1, SIDE, SIDE)
    weights = torch.zeros_like(covered)
    weights[:positive] = 1
    info = torch.full((len(rows), INFO), -1.0)
    corners = [(part / scale).round().long().tolist() for part in (boxes[:positive, 1:], own[:positive, :4])]
    for row, (box, own_box) in enumerate(zip(*corners, strict=True)):
        which = int(best[rows[row]])
        height, width = (int(side) for side in sizes[which, :2])
        found = common_part(layer, box, own_box, masks[which, :height, :width])
        if found:
            whole = torch.zeros(box[3] - box[1] + 1, box[2] - box[0] + 1)
            whole[found[0]] = found[1]
            covered[row, 0] = resized_mask(whole, SIDE, SIDE)
        info[row] = torch.tensor([which, height, width, float(labels[row]), *box, *own_box])
    return {
        "rois": boxes, "labels": labels, "bbox_targets": targets, "bbox_inside_weights": inner,
        "bbox_outside_weights": inner.clone(), "mask_targets": covered, "mask_weight": weights, "gt_masks_info": info,
    }  # fmt: skip


def sampled_shapes(rows: int, classes: int) -> dict[str, Shape]:
    """Return the shapes of `sampled_tops`."""
    offsets, masks = (rows, 4 * classes), (rows, 1, SIDE, SIDE)
    return {
        "rois": (rows, 5), "labels": (rows,), "bbox_targets": offsets, "bbox_inside_weights": offsets,
        "bbox_outside_weights": offsets, "mask_targets": masks, "mask_weight": masks, "gt_masks_info": (rows, INFO),
    }  # fmt: skip


@register_python_layer("pylayer.proposal_target_layer", "ProposalTargetLayer")
class MNCProposalTargetLayer(Sampler):
    """A sample of 64 regions at most: 19 of an overlap from 0.5, of the others 85 % from 0.1 and 15 % below.

    Bottoms: regions R×5, true boxes G×5, im_info, masks G×H×W and their sizes G×2 in pixels of the original image, and
    the number of each region's anchor 1×R.  Tops: regions, labels, offsets R×4·num_classes and their weights, masks
    R×1×21×21 and their weights, gt_masks_info R×12, and the anchors of the foreground and of the background.  The
    gradient of the regions goes to where they come from; with `bp_all: 0` that of the foreground only.
    Source: daijifeng001/MNC, lib/pylayer/proposal_target_layer.py.
    """

    bottom_count = (6, 6)
    top_count = (10, 10)
    has_gradient = True
    sized_by_values = True
    index_bottoms = (5,)

    def setup(self) -> None:
        super().setup()
        self.classes: int = self._setting("num_classes", ("num_classes", "bp_all"))
        self.moves_all = bool(self.settings.get("bp_all", True))

    def reshape(self, bottoms: list[Shape]) -> list[Shape]:
        rois, truth, _, masks, sizes, index = bottoms
        check_truth(self, truth, masks, sizes)
        if len(rois) != 2 or rois[1] != 5 or len(index) != 2 or index[1] != rois[0]:
            raise self.error(f"needs regions R×5 and their anchors 1×R, not {list(rois)} and {list(index)}")
        tops = sampled_shapes(min(rois[0] + truth[0], SAMPLES), self.classes)
        return [*tops.values(), (min(rois[0], FOREGROUND),), (min(rois[0], SAMPLES),)]

    def _sample(self, overlaps: Tensor, least: float, greatest: float, count: int) -> Tensor:
        return self._draw(((overlaps >= least) & (overlaps <= greatest)).nonzero()[:, 0], count)

    def forward(
        self, rois: Tensor, truth: Tensor, info: Tensor, masks: Tensor, sizes: Tensor, index: Tensor
    ) -> tuple[Tensor, ...]:
        given, true, image, masks, sizes, index = (
            blob.detach().float().cpu() for blob in (rois, truth, info, masks, sizes, index)
        )
        regions = torch.cat([given, torch.cat([torch.zeros(len(true), 1), true[:, :4]], 1)])
        if bool((regions[:, 0] != 0).any()):
            raise self.error("a region is of another image than 0; give one image at a time")
        most, best = matched(self, regions, true)
        foreground = self._sample(most, ROI_OVERLAP, 1, FOREGROUND).sort().values
        left = SAMPLES - len(foreground)
        drawn = [
            self._sample(most, least, greatest, round(left * share)) for least, greatest, share in BACKGROUND
        ]
        background = torch.cat(drawn).unique()
        scale = float(image.flatten()[2])
        tops = sampled_tops(
            self, (foreground, background), regions, true, best, (masks, sizes), scale, self.classes
        )
        positive = len(foreground)

        def backward(gradient: Tensor) -> tuple[Tensor]:
            found = torch.zeros_like(rois)
            parts = [(foreground, gradient[:positive])]
            if self.moves_all:
                parts.append((background, gradient[positive:]))
            for rows, part in parts:
                own = (rows < len(rois)).nonzero()[:, 0]
                found[rows[own].to(rois.device)] = part[own.to(rois.device)]
            return (found,)

        moved = with_gradient(tops.pop("rois").to(rois), backward, rois)
        own = foreground[foreground < len(rois)]
        to_indices(self, background, len(rois), "a background region's number")
        anchors = [index.flatten()[rows] for rows in (own, background)]
        return (moved, *(top.to(rois) for top in (*tops.values(), *anchors)))


@register_python_layer("pylayer.anchor_target_layer", "AnchorTargetLayer")
class MNCAnchorTargetLayer(AnchorTargetLayer):
    """Faster R-CNN's, and the anchors of the sampled regions have their labels: bottoms four and five.

    Source: daijifeng001/MNC, lib/pylayer/anchor_target_layer.py.
    """

    bottom_count: ClassVar[tuple[int, int | None]] = (5, 5)
    known: ClassVar[Mapping[str, Any]] = {"feat_stride": 16, "allowed_border": 0}
    index_bottoms = (3, 4)

    def _check_others(self, scores: Shape, others: tuple[Shape, ...]) -> None:
        for shape in others:
            if len(shape) != 1:
                raise self.error(f"bottom {list(shape)} must be a list of anchors")

    def _hardness(self, *others: Tensor) -> None:
        return None

    def _stated_labels(self, *others: Tensor) -> Sequence[tuple[int, Tensor]]:
        foreground, background = (other.detach().cpu().long() for other in others)
        return (0, background), (1, foreground)


@register_python_layer("pylayer.mnc_data_layer", "MNCDataLayer")
class MNCDataLayer(RoIDataLayer):
    """An image, im_info, true boxes G×5, their masks G×H×W and the masks' sizes G×2; the caller feeds the tops.

    Source: daijifeng001/MNC, lib/pylayer/mnc_data_layer.py.
    """

    top_count = (5, 5)
    note = "a data layer of MNC: its tops are inputs"

    def setup(self) -> None:
        self.shapes: list[Shape] = [IMAGE, (1, 3), (1, 5), (1, SIDE, SIDE), (1, 2)]

    def plan(self) -> LayerPlan:
        return LayerPlan(self.shapes)


@register_python_layer("pylayer.cfm_data_layer", "CFMDataLayer")
class CFMDataLayer(MNCDataLayer):
    """The inputs of convolutional feature masking: an image, regions, masks, labels, targets and their weights.

    Source: daijifeng001/MNC, lib/pylayer/cfm_data_layer.py.
    """

    top_count = (10, 10)

    def setup(self) -> None:
        classes = self.settings.get("num_classes", 1)
        columns, masks = (1, 4 * (classes if isinstance(classes, int) else 1)), (1, 1, SIDE, SIDE)
        self.shapes = [
            *(IMAGE, (1, 5), (1, 1, INPUT_SIDE, INPUT_SIDE), (1, 1), (1, 1)),
            *(columns, masks, columns, columns, masks),
        ]
