"""Layers on regions of feature maps: ROIAlign of Cascade R-CNN, and MaskPooling of the multi-task cascades."""

from __future__ import annotations

import torch
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers, uses
from .support.detections import node_writer
from .support.registry import register_layer
from .vision import RegionPooling, widened, widened_onnx

# ---------------------------------------------------------------------- torch, also for written source


def roi_align(x: Tensor, rois: Tensor, pooled: tuple[int, int], scale: float, pad_ratio: float) -> Tensor:
    """Return x at (h + 1) × (w + 1) points spread evenly over each region, from corner to corner, bilinearly.

    A point more than half a pixel outside the feature map, and every point of an empty region, is 0.
    """
    corners = widened(rois, pad_ratio)[:, 1:] * scale - 0.5
    inside, near, far, weight = [], [], [], []
    valid = torch.ones(len(rois), dtype=torch.bool, device=x.device)
    for axis in (0, 1):  # rows, columns
        first, last, extent = corners[:, 1 - axis, None], corners[:, 3 - axis, None], x.shape[2 + axis]
        size = last - first
        valid = valid & (size[:, 0] > 0)
        places = first + torch.arange(pooled[axis] + 1, device=x.device) * (size / pooled[axis])
        inside.append((places >= -0.5) & (places <= extent - 0.5))
        low = places.floor().long()
        near.append(low.clamp(0, extent - 1))
        far.append((low + 1).clamp(0, extent - 1))
        weight.append((places.clamp(0, extent - 1) - near[-1]).to(x.dtype))
    image = rois[:, 0].long()[:, None, None]
    maps = x.permute(0, 2, 3, 1)
    rows, columns = [weight[0][:, :, None, None], weight[1][:, None, :, None]]
    parts = []
    for row, part in ((near[0], 1 - rows), (far[0], rows)):
        for column, share in ((near[1], 1 - columns), (far[1], columns)):
            parts.append(maps[image, row[:, :, None], column[:, None]] * (part * share))
    kept = inside[0][:, :, None] & inside[1][:, None] & valid[:, None, None]
    return torch.where(kept[..., None], torch.stack(parts).sum(0), 0).permute(0, 3, 1, 2)


uses(roi_align, widened)

# ---------------------------------------------------------------------- layers


@register_layer("ROIAlign")
class ROIAlign(RegionPooling):
    """Cascade R-CNN's: x at (`pooled_h` + 1) × (`pooled_w` + 1) points of each region, interpolated bilinearly.

    At least five forks give the name to different layers; this one alone reads `roi_pooling_param`.
    Source: cascade-rcnn, src/caffe/layers/roi_align_layer.cpp.
    """

    note = "ROIAlign of cascade-rcnn, known by roi_pooling_param: one row and column more than pooled_h and pooled_w"

    def _check_fork_fields(self) -> None:
        if any(field.path.split(".")[0] == "roi_align_param" for field in self.node.layer.fork_field):
            raise self.error(
                "roi_align_param belongs to several forks whose layers differ (samples per bin, rounding, borders); "
                "only cascade-rcnn's ROIAlign, which reads roi_pooling_param, is supported"
            )
        super()._check_fork_fields()

    def plan(self, x: Shape, rois: Shape) -> LayerPlan:
        self._check(x, rois)
        return LayerPlan([(rois[0], x[1], self.pooled[0] + 1, self.pooled[1] + 1)])

    def forward(self, x: Tensor, rois: Tensor) -> tuple[Tensor]:
        return (roi_align(x, self._regions(x, rois), self.pooled, self.param.spatial_scale, self.pad_ratio),)

    def source(self, code: SourceCode, x: str, rois: str) -> list[str]:
        rest = f"{self.pooled}, {literal(self.param.spatial_scale)}, {literal(self.pad_ratio)}"
        return [f"{code.helper(roi_align)}({x}, {rois}.flatten(1), {rest})"]

    def onnx(self, graph: OnnxGraph, x: str, rois: str) -> list[str]:
        from onnx import TensorProto

        node = node_writer(graph)
        columns = graph.nodes("Split", [widened_onnx(graph, rois, self.pad_ratio)], 5, axis=1, num_outputs=5)
        image = node("Cast", columns[0], to=TensorProto.INT64)
        scaled = [
            node("Sub", node("Mul", column, numbers(self.param.spatial_scale)), numbers(0.5))
            for column in columns[1:]
        ]
        zero = numbers(0)
        near, far, weight, kept = [], [], [], []
        for axis in (0, 1):
            first, last = scaled[1 - axis], scaled[3 - axis]
            size = node("Sub", last, first)
            steps = numbers(list(range(self.pooled[axis] + 1)))
            places = node("Add", first, node("Mul", node("Div", size, numbers(self.pooled[axis])), steps))
            extent = node(
                "Cast", node("Squeeze", node("Shape", x, start=2 + axis, end=3 + axis)), to=TensorProto.FLOAT
            )
            end = node("Sub", extent, numbers(1))
            within = node(
                "And",
                node("GreaterOrEqual", places, numbers(-0.5)),
                node("LessOrEqual", places, node("Sub", extent, numbers(0.5))),
            )
            kept.append(node("And", within, node("Greater", size, zero)))
            low = node("Floor", places)
            start = node("Clip", low, zero, end)
            near.append(node("Cast", start, to=TensorProto.INT64))
            far.append(
                node("Cast", node("Clip", node("Add", low, numbers(1)), zero, end), to=TensorProto.INT64)
            )
            weight.append(node("Sub", node("Clip", places, zero, end), start))
        # Every tensor is R × rows × columns; the values read have a channel axis after these.
        row_axes, column_axes = integers(2), integers(1)
        maps = node("Transpose", x, perm=[0, 2, 3, 1])
        image = node("Unsqueeze", image, integers(2))
        top = ""
        for row, far_row in ((near[0], False), (far[0], True)):
            for column, far_column in ((near[1], False), (far[1], True)):
                spots = [image, node("Unsqueeze", row, row_axes), node("Unsqueeze", column, column_axes)]
                shape = node("Shape", node("Add", spots[1], spots[2]))
                index = [node("Unsqueeze", node("Expand", spot, shape), integers(3)) for spot in spots]
                read = node("GatherND", maps, node("Concat", *index, axis=3))
                shares = []
                for value, is_far, axes in (
                    (weight[0], far_row, integers(2, 3)),
                    (weight[1], far_column, integers(1, 3)),
                ):
                    share = value if is_far else node("Sub", numbers(1), value)
                    shares.append(node("Unsqueeze", share, axes))
                part = node("Mul", read, node("Mul", *shares))
                top = node("Add", top, part) if top else part
        both = node(
            "And", node("Unsqueeze", kept[0], integers(2, 3)), node("Unsqueeze", kept[1], integers(1, 3))
        )
        return [node("Transpose", node("Where", both, top, zero), perm=[0, 3, 1, 2])]


@register_layer("MaskPooling")
class MaskPooling(Layer):
    """The feature maps N×C×H×W times a mask N×1×H×W (Dai et al., CVPR 2016).

    Source: caffe-mnc, src/caffe/layers/mask_pooling_layer.cu.
    """

    bottom_count = (2, 2)

    def plan(self, x: Shape, mask: Shape) -> LayerPlan:
        if len(x) != 4 or mask != (x[0], 1, *x[2:]):
            raise self.error(f"needs feature maps N×C×H×W and masks N×1×H×W, not {list(x)} and {list(mask)}")
        return LayerPlan([x])

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor]:
        return (x * mask,)

    def onnx(self, graph: OnnxGraph, x: str, mask: str) -> list[str]:
        return [graph.node("Mul", [x, mask])]

    def source(self, code: SourceCode, x: str, mask: str) -> list[str]:
        return [f"{x} * {mask}"]
