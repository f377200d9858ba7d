"""MultiBoxLoss: SSD's loss, which matches default boxes to the true ones and mines hard negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .loss import FLT_MIN, Loss, floored_log_softmax
from .support.base import LayerPlan, Shape
from .support.boxes import decode_boxes, default_box_count, greedy_nms
from .support.labels import foreground_labels, normalization
from .support.matching import UNMATCHED, box_areas, encode_boxes, match
from .support.registry import register_layer

LEAST_AREA = 1e-5  # suppression drops smaller boxes


@dataclass(frozen=True)
class Truth:
    """The true boxes of one image: corners G×4 and labels."""

    boxes: Tensor
    labels: list[int]


@dataclass(frozen=True)
class _Image:
    """What the loss reads of one image: offsets P×columns×4, scores P×classes, default boxes and true ones."""

    offsets: Tensor
    scores: Tensor
    priors: Tensor
    variances: Tensor
    true: Truth


def location_costs(difference: Tensor, smooth: bool) -> Tensor:
    """Return the cost of each coordinate: smooth L1, or half the square."""
    square = 0.5 * difference**2
    return torch.where(difference.abs() < 1, square, difference.abs() - 0.5) if smooth else square


@register_layer("MultiBoxLoss")
class MultiBoxLoss(Loss):
    """(loc_weight · location loss + confidence loss) / normalizer (Liu et al., ECCV 2016).

    Bottoms: offsets N×4P (or N×4P·classes), scores N×P·classes, default boxes 1×2×4P and true boxes 1×1×G×8 (image,
    label, instance, corners, difficult).  The normalizer is the number of matches (VALID), N·P (FULL), N
    (BATCH_SIZE) or 1 (NONE), and at least 1.  Mining: MAX_NEGATIVE takes `neg_pos_ratio` unmatched boxes of overlap
    under `neg_overlap` per match, those of the greatest confidence loss; HARD_EXAMPLE the `sample_size` boxes of the
    greatest loss, after suppression with `nms_param`, and drops other matches; NONE takes all boxes.
    Source: SSD, src/caffe/layers/multibox_loss_layer.cpp and src/caffe/util/bbox_util.cpp.
    """

    message = "multibox_loss_param"
    other_messages = ("loss_param",)
    fields = (
        *("loc_loss_type", "conf_loss_type", "loc_weight", "num_classes", "share_location", "match_type"),
        *(
            "overlap_threshold",
            "use_prior_for_matching",
            "background_label_id",
            "use_difficult_gt",
            "do_neg_mining",
        ),
        *("neg_pos_ratio", "neg_overlap", "code_type", "encode_variance_in_target", "map_object_to_agnostic"),
        *(
            "ignore_cross_boundary_bbox",
            "bp_inside",
            "mining_type",
            "nms_param",
            "sample_size",
            "use_prior_for_nms",
        ),
    )
    bottom_count = (4, 4)
    index_bottoms = (3,)
    no_onnx = "boxes are matched and mined in the order of their overlaps and losses"
    no_source = "boxes are matched and mined in the order of their overlaps and losses"

    def setup(self, *ranks: int) -> None:
        param = self.param
        self.classes: int = param.num_classes
        self.background: int = param.background_label_id
        self.shared: bool = param.share_location
        self.mining = pb.MultiBoxLossParameter.MiningType.Name(param.mining_type)
        self.code_type = pb.PriorBoxParameter.CodeType.Name(param.code_type)
        self.is_softmax = param.conf_loss_type == pb.MultiBoxLossParameter.SOFTMAX
        self.is_smooth = param.loc_loss_type == pb.MultiBoxLossParameter.SMOOTH_L1
        mode = normalization(self, "VALID")
        if isinstance(mode, float):
            raise self.error("normalization PRE_FIXED is not supported; use VALID, FULL, BATCH_SIZE or NONE")
        self.mode: str = mode
        self.foreground = foreground_labels(self)
        if param.HasField("do_neg_mining") and param.do_neg_mining != (self.mining != "NONE"):
            raise self.error(
                f"do_neg_mining {str(param.do_neg_mining).lower()} contradicts mining_type {self.mining}"
            )
        if self.mining != "NONE" and not self.shared:
            raise self.error(
                "mining needs share_location: true; set mining_type: NONE or share_location: true"
            )
        if self.is_softmax and self.background >= self.classes:
            raise self.error(
                f"background_label_id {self.background} is not one of the {self.classes} classes"
            )
        if param.map_object_to_agnostic and self.classes != 2:
            raise self.error(f"map_object_to_agnostic takes num_classes 2, not {self.classes}")
        if self.mining == "HARD_EXAMPLE" and param.sample_size < 1:
            raise self.error(f"sample_size {param.sample_size} must be over 0")
        # Caffe's layer adds these where the text states none; a loss part without gradient counts 0.
        self.parts = tuple(self.node.layer.propagate_down[:2]) or (True, True)

    def plan(self, loc: Shape, conf: Shape, boxes: Shape, truth: Shape) -> LayerPlan:
        default_box_count(self, loc, conf, boxes, self.classes, self.shared)
        if len(truth) != 4 or truth[:2] != (1, 1) or truth[3] != 8:
            raise self.error(
                f"true boxes {list(truth)} must be 1×1×G×8: image, label, instance, corners, difficult"
            )
        return LayerPlan([()])

    # ------------------------------------------------------------------ forward

    def forward(self, loc: Tensor, conf: Tensor, priors: Tensor, truth: Tensor) -> tuple[Tensor]:
        compute = torch.promote_types(loc.dtype, torch.float32)
        boxes, variances = priors.detach().to(compute).reshape(2, -1, 4)
        offsets = loc.to(compute).reshape(len(loc), len(boxes), -1, 4)
        scores = conf.to(compute).reshape(len(conf), len(boxes), self.classes)
        location, confidence, matches = offsets[:0].sum(), scores[:0].sum(), 0  # 0, with a gradient
        for image, true in enumerate(self._truth(truth.detach().reshape(-1, 8).to(compute), len(loc))):
            own = _Image(offsets[image], scores[image], boxes, variances, true)
            found = self._matches(own) if true.labels else {}
            negative = self._mine(own, found)
            for column, (index, _) in found.items():
                positive = (index > UNMATCHED).nonzero()[:, 0]
                matches += len(positive)
                location = location + self._location(own, column, index).sum()
            confidence = confidence + self._confidence(own, found, negative).sum()
        divisor = {"VALID": matches, "FULL": len(loc) * len(boxes), "BATCH_SIZE": len(loc)}.get(self.mode, 1)
        total = self.param.loc_weight * location * self.parts[0] + confidence * self.parts[1]
        return (total / max(divisor, 1),)

    def _truth(self, rows: Tensor, images: int) -> list[Truth]:
        """Return the true boxes of each image; rows of image -1 fill up the blob."""
        kept = rows[:, 0].long() != -1
        if not self.param.use_difficult_gt:
            kept &= rows[:, 7] == 0
        found = []
        for image in range(images):
            own = rows[kept & (rows[:, 0].long() == image)]
            labels = [int(label) for label in own[:, 1].tolist()]
            for label in labels:
                if label == self.background or not 0 <= label < (
                    math.inf if self._is_agnostic else self.classes
                ):
                    raise self.error(
                        f"a true box of image {image} has label {label}; it must be one of the {self.classes} classes "
                        f"and not background_label_id {self.background}"
                    )
            if self.code_type != "CORNER" and (own[:, 5:7] <= own[:, 3:5]).any():
                raise self.error(f"a true box of image {image} has no width or height")
            found.append(Truth(own[:, 3:7], labels))
        return found

    @property
    def _is_agnostic(self) -> bool:
        return bool(self.param.map_object_to_agnostic) and self.mining == "NONE"

    def _columns(self) -> list[int]:
        """Return the columns of the offsets that predict boxes: one, or that of each class but the background."""
        return [0] if self.shared else self.foreground

    def _decoded(self, own: _Image, column: int) -> Tensor:
        variances = torch.ones_like(own.variances) if self.param.encode_variance_in_target else own.variances
        return decode_boxes(own.offsets[:, column].detach(), own.priors, variances, self.code_type)

    def _matches(self, own: _Image) -> dict[int, tuple[Tensor, Tensor]]:
        """Return by column of the offsets the true box of each default box, and its greatest overlap."""
        param = self.param
        each = (
            param.overlap_threshold if param.match_type == pb.MultiBoxLossParameter.PER_PREDICTION else None
        )
        rules: dict[str, Any] = {"each": each, "ignore_outside": param.ignore_cross_boundary_bbox}
        labels = torch.tensor(own.true.labels, device=own.priors.device)
        if param.use_prior_for_matching:
            index, most = match(own.priors, own.true.boxes, **rules)
            if self.shared:
                return {0: (index, most)}
            label = torch.where(index > UNMATCHED, labels[index.clamp(min=0)], UNMATCHED)
            return {
                column: (torch.where(label == column, index, UNMATCHED), most) for column in self._columns()
            }
        found = {}
        for column in self._columns():
            own_truth = torch.arange(len(labels)) if self.shared else (labels == column).nonzero()[:, 0].cpu()
            index, most = match(
                self._decoded(own, column), own.true.boxes[own_truth.to(labels.device)], **rules
            )
            if len(own_truth):
                index = torch.where(index > UNMATCHED, own_truth.to(index)[index.clamp(min=0)], index)
            found[column] = (index, most)
        return found

    def _location(self, own: _Image, column: int, index: Tensor) -> Tensor:
        """Return the location cost of each matched box."""
        positive = (index > UNMATCHED).nonzero()[:, 0]
        priors, variances = own.priors[positive], own.variances[positive]
        target = encode_boxes(own.true.boxes[index[positive]], priors, self.code_type)
        predicted = own.offsets[positive, column]
        encoded = self.param.encode_variance_in_target
        difference = (predicted - target) / variances if encoded else predicted - target / variances
        if self.param.bp_inside:
            edges = priors if self.param.use_prior_for_matching else self._decoded(own, column)[positive]
            difference = torch.where((edges < 0) | (edges > 1), 0, difference)
        return location_costs(difference, self.is_smooth).sum(1)

    def _costs(self, scores: Tensor, labels: Tensor, fill: float) -> Tensor:
        """Return the confidence cost of rows for their labels; ``fill`` is the logistic target of other classes."""
        if self.is_softmax:
            return -floored_log_softmax(scores, math.log(FLT_MIN)).gather(1, labels[:, None])[:, 0]
        targets = torch.full_like(scores, fill)
        known = (labels >= 0) & (labels < self.classes)
        targets[known.nonzero()[:, 0], labels[known]] = 1
        return (F.softplus(scores) - scores * targets).sum(1)

    def _labels(self, own: _Image, found: dict[int, tuple[Tensor, Tensor]], unmatched: int) -> Tensor:
        labels = torch.full((len(own.priors),), unmatched, device=own.priors.device)
        true = torch.tensor(own.true.labels, device=labels.device)
        if self._is_agnostic:
            true = torch.full_like(true, self.background + 1)
        for index, _ in found.values():
            labels = torch.where(index > UNMATCHED, true[index.clamp(min=0)], labels)
        return labels

    def _confidence(self, own: _Image, found: dict[int, tuple[Tensor, Tensor]], negative: Tensor) -> Tensor:
        """Return the confidence cost of the boxes that take part."""
        if self.mining == "NONE":
            # Without mining an unmatched box has no logistic target of its own.
            labels = self._labels(own, found, self.background if self.is_softmax else UNMATCHED)
            return self._costs(own.scores, labels, float(self.background))
        labels = self._labels(own, found, self.background)
        positive = [(index > UNMATCHED).nonzero()[:, 0] for index, _ in found.values()]
        rows = torch.cat([*positive, negative])
        return self._costs(own.scores[rows], labels[rows], float(self.background))

    def _mine(self, own: _Image, found: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        """Return the negative boxes; HARD_EXAMPLE also drops matches that are not chosen from ``found``."""
        nothing = torch.zeros(0, dtype=torch.long, device=own.priors.device)
        if self.mining == "NONE" or not found:
            return nothing
        index, most = found[0]
        losses = self._costs(own.scores.detach(), self._labels(own, found, self.background), 0)
        if self.mining == "MAX_NEGATIVE":
            eligible = ((index == UNMATCHED) & (most < self.param.neg_overlap)).nonzero()[:, 0]
            count = int(np.float32(int((index > UNMATCHED).sum())) * np.float32(self.param.neg_pos_ratio))
        else:
            eligible, count = torch.arange(len(index), device=index.device), self.param.sample_size
            losses[index > UNMATCHED] += self._location(own, 0, index).detach()
        order = eligible[losses[eligible].argsort(descending=True, stable=True)]
        if self.param.HasField("nms_param") and self.param.nms_param.nms_threshold > 0:
            order = self._suppressed(own, order)
        chosen = torch.zeros_like(index, dtype=torch.bool)
        chosen[order[:count]] = True
        negative = (index == UNMATCHED) & chosen
        if self.mining == "HARD_EXAMPLE":
            found[0] = (torch.where((index > UNMATCHED) & ~chosen, UNMATCHED, index), most)
        return negative.nonzero()[:, 0]

    def _suppressed(self, own: _Image, order: Tensor) -> Tensor:
        """Return the boxes that suppression leaves, best first; an absent top_k is 0 and leaves none, as in the fork."""
        param = self.param.nms_param
        boxes = (own.priors if self.param.use_prior_for_nms else self._decoded(own, 0))[order]
        limit = param.top_k if param.top_k > -1 else None
        order, boxes = order[:limit], boxes[:limit]
        large = box_areas(boxes) >= LEAST_AREA
        order, boxes = order[large], boxes[large]
        return order[greedy_nms(boxes.cpu(), param.nms_threshold, limit=limit).to(order.device)]
