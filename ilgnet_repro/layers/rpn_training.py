"""The Python layers that train Faster R-CNN (py-faster-rcnn): its data layer, and those that draw training targets.

Their constants are those of its configuration, `lib/fast_rcnn/config.py` and `faster_rcnn_end2end.yml`.  The targets
are a random sample, as in the fork; the draws are others than numpy's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .proposal import make_anchors
from .python_layer import PythonLayer, register_python_layer
from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode
from .support.labels import out_of_range
from .support.shapes import legacy_shape, with_four_axes

RPN_SAMPLES, RPN_POSITIVE, RPN_NEGATIVE = 256, 0.7, 0.3  # at most half of the samples are positive
ROI_SAMPLES, ROI_FOREGROUND, ROI_OVERLAP = 128, 32, 0.5
STATED = (0.1, 0.1, 0.2, 0.2)  # standard deviations that offsets are divided by
IMAGE = (1, 3, 600, 1000)  # what the data layer declares: the shorter and the longest side
RANDOM = "its training targets are drawn at random in each pass"


def pixel_overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of each pair of boxes whose corners are pixels."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    size = (torch.minimum(boxes[:, None, 2:4], others[None, :, 2:4]) - low + 1).clamp(min=0)
    areas = [(corners[:, 2:4] - corners[:, :2] + 1).prod(1) for corners in (boxes, others)]
    both = size.prod(2)
    return both / (areas[0][:, None] + areas[1] - both)


def offsets_to(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return dx, dy, dw, dh from boxes to targets, as `bbox_transform`."""
    size, wanted = (corners[:, 2:4] - corners[:, :2] + 1 for corners in (boxes, targets))
    centre = targets[:, :2] + 0.5 * wanted - boxes[:, :2] - 0.5 * size
    return torch.cat([centre / size, (wanted / size).log()], 1)


def all_anchors(anchors: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Return the corners of the anchors around each cell of a map, cell by cell."""
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    return (anchors + torch.stack([x, y, x, y], -1)[:, :, None]).reshape(-1, 4)


def anchor_maps(values: Tensor, height: int, width: int) -> Tensor:
    """Return values of all anchors, cell by cell, as a map 1×C×H×W."""
    return values.reshape(1, height, width, -1).permute(0, 3, 1, 2)


def placed_targets(
    boxes: Tensor, true: Tensor, labels: Tensor, columns: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Return offsets R×4·classes from boxes to true ones in the columns of their class, and weights 1 there.

    Boxes of label 0 have none.
    """
    offsets = offsets_to(boxes, true) / boxes.new_tensor(STATED)
    placed = offsets.new_zeros(len(boxes), classes, 4)
    weights = torch.zeros_like(placed)
    rows = (labels > 0).nonzero()[:, 0]
    placed[rows, columns[rows].long()] = offsets[rows]
    weights[rows, columns[rows].long()] = 1
    return placed.flatten(1), weights.flatten(1)


class Sampler(PythonLayer):
    """A layer whose tops are drawn at random."""

    has_gradient = False
    note = RANDOM
    no_onnx = RANDOM
    no_source = RANDOM

    def setup(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def _draw(self, candidates: Tensor, count: int) -> Tensor:
        """Return ``count`` of the candidates at most."""
        if len(candidates) <= count:
            return candidates
        return candidates[torch.randperm(len(candidates), generator=self._generator)[:count]]

    def _setting(self, name: str, known: tuple[str, ...]) -> Any:
        settings = self.settings
        for other in settings:
            if other not in known:
                raise self.error(f"param_str: {other} is unknown; known are {', '.join(known)}")
        value = settings.get(name)
        if not isinstance(value, int) or value < 1:
            raise self.error(f"param_str: {name} must be an integer over 0, as in '{name}': 16")
        return value


@register_python_layer("rpn.anchor_target_layer", "AnchorTargetLayer")
class AnchorTargetLayer(Sampler):
    """Labels and offsets of the anchors: bottoms are the scores, the true boxes G×5, the image's size, the image.

    Tops: labels 1×1×A·H×W (1, 0, or -1: not counted), offsets 1×4A×H×W, and their inside and outside weights.
    Source: py-faster-rcnn, lib/rpn/anchor_target_layer.py.
    """

    bottom_count: ClassVar[tuple[int, int | None]] = (4, 4)
    top_count = (4, 4)
    # What param_str may state beside the stride, with the defaults.
    known: ClassVar[Mapping[str, Any]] = {"feat_stride": 16, "scales": [8, 16, 32], "allowed_border": 0}
    overlaps: ClassVar[tuple[float, float]] = (RPN_NEGATIVE, RPN_POSITIVE)
    positives = RPN_SAMPLES // 2
    marks_best = True  # whether each true box's best anchors are positive whatever their overlap
    may_lie_outside = False  # whether all anchors count where none lies inside the image

    def setup(self) -> None:
        super().setup()
        names = tuple(self.known)
        self.stride: int = self._setting("feat_stride", names)
        stated = {
            "scales": [8, 16, 32],
            "ratios": [0.5, 1, 2],
            "base_size": 16,
            **self.known,
            **self.settings,
        }
        self.border = stated["allowed_border"]
        for name in ("scales", "ratios"):
            values = stated[name]
            if not isinstance(values, list | tuple) or not all(
                isinstance(v, int | float) and v > 0 for v in values
            ):
                raise self.error(f"param_str: {name} must be a list of numbers over 0, not {values}")
        size = stated["base_size"]
        if not isinstance(size, int) or size < 1:
            raise self.error("param_str: base_size must be an integer over 0, as in 'base_size': 16")
        self.anchors = torch.tensor(make_anchors(size, stated["ratios"], stated["scales"]))
        self.positive_overlap = stated.get("positive_overlap", self.overlaps[1])
        for name, value in (("allowed_border", self.border), ("positive_overlap", self.positive_overlap)):
            if not isinstance(value, int | float):
                raise self.error(f"param_str: {name} must be a number, not {value}")

    def plan(self, scores: Shape, truth: Shape, info: Shape, *others: Shape) -> LayerPlan:
        if len(scores) != 4 or scores[0] != 1:
            raise self.error(f"scores {list(scores)} must be 1×C×H×W: one image at a time")
        if len(truth) < 2 or truth[1] != 5:
            raise self.error(f"true boxes {list(truth)} must be G×5: corners and label")
        if len(info) != 2 or info[1] < 2:
            raise self.error(f"the third bottom {list(info)} must hold an image's height and width")
        count, (height, width) = len(self.anchors), scores[2:]
        self._check_others(scores, others)
        offsets = (1, 4 * count, height, width)
        return LayerPlan([(1, 1, count * height, width), offsets, offsets, offsets])

    def _check_others(self, scores: Shape, others: tuple[Shape, ...]) -> None:
        """Check the bottoms after the image's size."""
        count = len(self.anchors)
        for shape in others[1:]:
            if shape != (1, 2 * count, *scores[2:]):
                raise self.error(
                    f"the fifth bottom {list(shape)} must hold two scores for each of {count} anchors"
                )

    def _hardness(self, *others: Tensor) -> Tensor | None:
        """Return the score of each anchor by which samples are selected; None where they are drawn."""
        if len(others) < 2:
            return None
        return others[1].detach().float().cpu()[0, len(self.anchors) :].permute(1, 2, 0).reshape(-1)

    def _stated_labels(self, *others: Tensor) -> Sequence[tuple[int, Tensor]]:
        """Return labels that other bottoms state, each with its anchors, for those of them inside the image."""
        return ()

    def forward(self, scores: Tensor, truth: Tensor, info: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        height, width = scores.shape[2:]
        true, sides = truth.detach().float().cpu().reshape(len(truth), -1), info.detach().flatten().cpu()
        boxes = all_anchors(self.anchors, height, width, self.stride)
        limits = torch.stack([sides[1], sides[0]]) + self.border
        inside = ((boxes[:, :2] >= -self.border) & (boxes[:, 2:] < limits)).all(1).nonzero()[:, 0]
        if self.may_lie_outside and not len(inside):
            inside = torch.arange(len(boxes))
        hard = self._hardness(*others)
        labels, offsets = boxes.new_full((len(boxes),), -1), boxes.new_zeros(len(boxes), 4)
        weights = boxes.new_zeros(2, len(boxes), 4)
        if len(inside) and len(true):
            table = pixel_overlaps(boxes[inside], true)
            most, best = table.max(1)
            own = most.new_full((len(inside),), -1)
            own[most < self.overlaps[0]] = 0
            if self.marks_best:
                own[(table == table.amax(0)).any(1)] = 1
            own[most >= self.positive_overlap] = 1
            for label in (1, 0):
                chosen = (own == label).nonzero()[:, 0]
                count = self.positives if label else RPN_SAMPLES - int((own == 1).sum())
                if hard is None:
                    kept = self._draw(chosen, count)
                else:  # those whose score is furthest from the label
                    order = hard[inside[chosen]].argsort(descending=not label, stable=True)
                    kept = chosen[order[:count]]
                own[chosen] = -1
                own[kept] = label
            labels[inside] = own
            for label, index in self._stated_labels(*others):
                labels[index[torch.isin(index, inside)]] = label
            offsets[inside] = offsets_to(boxes[inside], true[best])
            weights[0][labels == 1] = 1
            weights[1][labels >= 0] = 1 / max(int((labels >= 0).sum()), 1)

        marks, *maps = (
            anchor_maps(values, height, width).to(scores) for values in (labels, offsets, *weights)
        )
        return (marks.reshape(1, 1, -1, width), *maps)


@register_python_layer("SSH.layers.anchor_target_layer", "AnchorTargetLayer")
class SSHAnchorTargetLayer(AnchorTargetLayer):
    """SSH's: positive from an overlap of 0.5, 64 of 256 at most; a fifth bottom, the scores, selects the hardest.

    Without the fifth bottom they are drawn.  Its constants are those of `default_config.yml`.
    Source: mahyarnajibi/SSH, SSH/layers/anchor_target_layer.py.
    """

    bottom_count: ClassVar[tuple[int, int | None]] = (4, 5)
    known: ClassVar[Mapping[str, Any]] = {
        **AnchorTargetLayer.known,
        "ratios": [0.5, 1, 2],
        "base_size": 16,
        "positive_overlap": 0.5,
    }
    overlaps: ClassVar[tuple[float, float]] = (0.3, 0.5)
    positives = RPN_SAMPLES // 4
    marks_best = False
    may_lie_outside = True


@register_python_layer("rpn.proposal_target_layer", "ProposalTargetLayer")
class ProposalTargetLayer(Sampler):
    """A sample of 128 regions at most, a quarter of them with an object: bottoms are regions R×5 and true boxes G×5.

    Tops: regions, labels, offsets R×4·num_classes in the columns of the label, and their inside and outside weights.
    R-FCN's layer, in a net with PSROIPooling or BoxAnnotatorOHEM, gives them four axes; with two classes all objects
    have the columns of class 1; and in a net that mines hard regions (BoxAnnotatorOHEM) every region is taken.  Source:
    py-faster-rcnn and YuwenXiong/py-R-FCN, lib/rpn/proposal_target_layer.py.
    """

    bottom_count = (2, 2)
    top_count = (5, 5)
    sized_by_values = True

    def setup(self) -> None:
        super().setup()
        self.classes: int = self._setting("num_classes", ("num_classes",))
        self.is_rfcn: bool = self.param.of_rfcn
        self.limits = (sys.maxsize, sys.maxsize) if self.param.mines else (ROI_SAMPLES, ROI_FOREGROUND)

    @classmethod
    def resolve_by_net(cls, text: pb.LayerParameter, net: pb.NetParameter) -> None:
        types = {layer.type for layer in net.layer}
        mines = "BoxAnnotatorOHEM" in types
        if mines or "PSROIPooling" in types:  # layers of R-FCN's Caffe, which has its own Python layers
            text.python_param.of_rfcn = True
            text.python_param.mines = mines

    def plan(self, rois: Shape, truth: Shape) -> LayerPlan:
        for what, shape in (("regions", rois), ("true boxes", truth)):
            if len(shape) < 2 or shape[1] != 5:
                raise self.error(f"{what} {list(shape)} must have five values each")
        count = min(rois[0] + truth[0], self.limits[0])
        offsets = (count, 4 * self.classes)
        if self.is_rfcn:
            return LayerPlan([legacy_shape(top) for top in ((count, 5), (count,), *[offsets] * 3)])
        return LayerPlan([(count, 5), (count,), offsets, offsets, offsets])

    def forward(self, rois: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
        true = truth.detach().float().cpu().reshape(len(truth), -1)
        given = rois.detach().float().cpu().reshape(len(rois), -1)
        regions = torch.cat([given, torch.cat([true[:, :1] * 0, true[:, :4]], 1)])
        most, best = pixel_overlaps(regions[:, 1:], true).max(1)
        foreground = self._draw((most >= ROI_OVERLAP).nonzero()[:, 0], self.limits[1])
        background = self._draw((most < ROI_OVERLAP).nonzero()[:, 0], self.limits[0] - len(foreground))
        kept = torch.cat([foreground, background])
        labels = true[best[kept], 4]
        labels[len(foreground) :] = 0
        columns = labels.clamp(max=1) if self.is_rfcn and self.classes == 2 else labels
        if len(labels) and not 0 <= int(columns.max()) < self.classes:
            wrong = columns[(columns < 0) | (columns >= self.classes)]
            raise self.error(out_of_range("label", int(wrong[0]), self.classes) + ": correct num_classes")
        placed, weights = placed_targets(regions[kept, 1:], true[best[kept]], labels, columns, self.classes)
        tops: tuple[Tensor, ...] = (regions[kept], labels, placed, weights, weights)
        if self.is_rfcn:
            tops = tuple(with_four_axes(top) for top in tops)
        return tuple(top.to(rois) for top in tops)


@register_python_layer("roi_data_layer.layer", "RoIDataLayer")
class RoIDataLayer(PythonLayer):
    """Images and their true boxes; the caller feeds the tops, whose declared sizes are those of the configuration.

    Source: py-faster-rcnn, lib/roi_data_layer/layer.py.
    """

    bottom_count = (0, 0)
    top_count: ClassVar[tuple[int, int | None]] = (1, None)
    is_input = True
    has_gradient = False
    note = "the data layer of py-faster-rcnn: its tops are inputs"
    no_onnx = ""
    no_source = ""

    def setup(self) -> None:
        classes = self.settings.get("num_classes", 1)
        columns = 4 * (classes if isinstance(classes, int) else 1)
        self.declared: Mapping[str, Shape] = {
            "data": IMAGE, "im_info": (1, 3), "gt_boxes": (1, 5), "rois": (1, 5), "labels": (1,),
            "bbox_targets": (1, columns), "bbox_inside_weights": (1, columns), "bbox_outside_weights": (1, columns),
        }  # fmt: skip

    def plan(self) -> LayerPlan:
        for name in self.node.top_names:
            if name not in self.declared:
                raise self.error(
                    f"top {name!r} is not one of {', '.join(self.declared)}; give its shape "
                    f"(input_shapes={{{name!r}: (N, C, H, W)}})",
                    option="input_shapes",
                )
        return LayerPlan([self.declared[name] for name in self.node.top_names])

    def onnx(self, graph: OnnxGraph) -> list[str]:
        return list(self.node.top_names)

    def source(self, code: SourceCode) -> list[str]:
        return list(self.node.top_names)
