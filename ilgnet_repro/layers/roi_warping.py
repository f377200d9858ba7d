"""The layers of the multi-task network cascades (Dai et al., CVPR 2016): ROIWarping, MaskResize and three in Python."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .proposal import ProposalLayer
from .python_layer import PythonLayer, register_python_layer
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers, uses
from .support.detections import node_writer
from .support.registry import register_layer
from .support.sampling import sample_bilinear
from .support.shared import values_of
from .vision import RegionPooling, c_round

MOST_POINTS = 10_000  # of a bin along one side; more are pixels of no feature map

# ---------------------------------------------------------------------- torch, also for written source


def spread(bins: int, size: float) -> np.ndarray:
    """Return the points that each bin reads, bins × points, in bins from the start of a region of ``size`` pixels.

    They are added up in float32, which decides whether the end of a bin is read; NaN fills up a row.
    """
    count = math.ceil(size / bins)
    step = np.float32(1 / count) if count else np.float32(np.inf)
    place = np.arange(bins, dtype=np.float32)
    ends = place + np.float32(1)
    points = []
    while (inside := place <= ends).any():
        points.append(np.where(inside, place, np.float32(np.nan)))
        place = place + step
    return np.stack(points, 1)


def resizing(count: int, extent: int, *, backward: bool = False) -> Tensor:
    """Return count × extent: how much of each of ``extent`` values each result is; row i reads i · extent / count.

    ``backward``: the part that caffe-mnc's backward pass finds again, by two results per value.
    """
    ratio = np.float32(extent) / np.float32(count)
    place = np.arange(count, dtype=np.float32) * ratio
    row = np.flatnonzero(place <= extent - 0.5)
    low = np.minimum(place[row].astype(np.int64), extent - 1)
    share = np.where(low < extent - 1, place[row].astype(np.float64) - low, 0)
    matrix = np.zeros((count, extent), np.float32)
    matrix[row, low] = 1 - share
    matrix[row, np.minimum(low + 1, extent - 1)] += share
    if backward:
        first = np.floor(np.arange(extent, dtype=np.float32) / ratio)
        rows = np.arange(count)[:, None]
        matrix[(rows != first) & (rows != first + 1)] = 0
    return torch.from_numpy(matrix)


# ---------------------------------------------------------------------- layers


@register_layer("ROIWarping")
class ROIWarping(RegionPooling):
    """Per bin of a region the largest of x at points about a pixel apart, interpolated bilinearly.

    Corners are rounded after `spatial_scale`; the region's size is their difference, and a bin reads ceil(size / bins) + 1
    points a side, both ends included.  A point more than half a pixel outside x is left out; a bin without points is 0.
    Phase TRAIN is refused: its backward pass, which also moves the regions, is not implemented.
    Source: daijifeng001/caffe-mnc, src/caffe/layers/roi_warping_layer.cu.
    """

    message = "roi_warping_param"
    fields: ClassVar[tuple[str, ...]] = ("pooled_h", "pooled_w", "spatial_scale")
    has_gradient = False
    no_onnx = "how many points it reads depends on the size of the region"
    no_source = "how many points it reads depends on the size of the region"

    def setup(self, x: int, rois: int) -> None:
        if self.is_train:
            raise self.error(
                "its backward pass, which also moves the regions, is not implemented; use phase TEST"
            )
        self.pooled = (self.param.pooled_h, self.param.pooled_w)
        if not all(self.pooled):
            raise self.error(f"pooled_h {self.pooled[0]} and pooled_w {self.pooled[1]} must be over 0")

    def plan(self, x: Shape, rois: Shape) -> LayerPlan:
        self._check(x, rois)
        return LayerPlan([(rois[0], x[1], *self.pooled)])

    def forward(self, x: Tensor, rois: Tensor) -> tuple[Tensor]:
        regions = self._regions(x, rois)
        corners = c_round(regions[:, 1:] * self.param.spatial_scale)
        tops = [
            self._warp(x[int(image)].detach(), corner)
            for image, corner in zip(regions[:, 0].tolist(), corners, strict=True)
        ]
        return (torch.stack(tops) if tops else x.new_zeros((0, x.shape[1], *self.pooled)),)

    def _warp(self, x: Tensor, corner: Tensor) -> Tensor:
        """Return C × bins × bins for one region of one image."""
        places, valid = [], []
        for axis in (0, 1):
            start, end = float(corner[1 - axis]), float(corner[3 - axis])
            size, extent = max(end - start, 0.0), x.shape[1 + axis]
            if not size / self.pooled[axis] <= MOST_POINTS:
                raise self.error(
                    f"a region of {size:g} pixels gives each of {self.pooled[axis]} bins over {MOST_POINTS:,} points"
                )
            table = torch.from_numpy(spread(self.pooled[axis], size)).to(corner)
            place = start + table * (size / self.pooled[axis])
            inside = (place >= -0.5) & (place <= extent - 0.5)  # False for the NaN that fill up a row
            # Of each bin the points inside come first; a region far larger than x has few of them.
            most = max(int(inside.sum(1).max()), 1)
            order = inside.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
            valid.append(inside.gather(1, order))
            places.append(place.gather(1, order).nan_to_num(0).clamp(0, extent - 1))
        (rows, columns), (kept_rows, kept_columns) = places, valid
        grid = (*rows.shape, *columns.shape)
        row = rows[:, :, None, None].expand(grid)
        column = columns.expand(grid)
        values = sample_bilinear(x[None], row.reshape(1, -1), column.reshape(1, -1))[0].unflatten(1, grid)
        kept = kept_rows[:, :, None, None] & kept_columns
        best = torch.where(kept, values, -math.inf).amax((2, 4))
        return torch.where(best == -math.inf, 0, best)


@register_layer("MaskResize")
class MaskResize(Layer):
    """Masks N×C×H×W resized bilinearly; pixel i reads i · H / output_height, and 0 more than half a pixel past the end.

    Source: daijifeng001/caffe-mnc, src/caffe/layers/mask_resize_layer.cu, whose backward pass adds two results per
    value and axis: in an enlargement others are missing.
    """

    message = "mask_resize_param"
    fields = ("output_height", "output_width")

    def setup(self, rank: int) -> None:
        self.size: tuple[int, int] = (self.param.output_height, self.param.output_width)
        if not all(self.size):
            raise self.error(f"output_height {self.size[0]} and output_width {self.size[1]} must be over 0")

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) != 4:
            raise self.error(f"bottom {list(x)} must be N×C×H×W")
        return LayerPlan([(*x[:2], *self.size)])

    def _matrices(self, height: int, width: int, *, backward: bool = False) -> list[Tensor]:
        sides = zip(self.size, (height, width), strict=True)
        return [resizing(count, extent, backward=backward) for count, extent in sides]

    def forward(self, x: Tensor) -> tuple[Tensor]:
        rows, columns = (m.to(x) for m in self._matrices(x.shape[2], x.shape[3]))
        top = rows @ x @ columns.t()
        if any(count > extent for count, extent in zip(self.size, x.shape[2:], strict=True)):
            rows, columns = (m.to(x) for m in self._matrices(x.shape[2], x.shape[3], backward=True))
            top = values_of(top, rows @ x @ columns.t())
        return (top,)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        rows, columns = self._matrices(graph.size(x, 2), graph.size(x, 3))
        node = node_writer(graph)
        return [node("MatMul", node("MatMul", numbers(rows), x), numbers(columns.t().contiguous()))]

    def source(self, code: SourceCode, x: str) -> list[str]:
        rows, columns = self._matrices(*code.shape(0)[2:])
        return [f"{code.buffer('rows', rows)} @ {x} @ {code.buffer('columns', columns)}.t()"]


# ---------------------------------------------------------------------- its Python layers, in phase TEST


class _TestOnly(PythonLayer):
    """A layer of which phase TRAIN, where it samples targets, is not implemented."""

    no_onnx = no_source = ""

    def _refuse_training(self) -> None:
        if self.is_train:
            raise self.error(
                "phase TRAIN, where it samples targets for masks, is not implemented; use phase TEST"
            )


@register_python_layer("pylayer.proposal_layer", "ProposalLayer")
class MNCProposalLayer(ProposalLayer):
    """MNC's: Faster R-CNN's, whose other settings only its backward pass reads.

    Source: daijifeng001/MNC, lib/pylayer/proposal_layer.py and lib/mnc_config.py.
    """

    known: ClassVar[dict[str, Any]] = {
        "feat_stride": 16, "scales": [8, 16, 32], "ratios": [0.5, 1, 2],
        "gradient_scale": 1, "use_clip": 0, "clip_base": 256,
    }  # fmt: skip

    def setup(self) -> None:
        if self.is_train:
            raise self.error(
                "phase TRAIN, where its second top is an index, is not implemented; use phase TEST"
            )
        for name in ("scales", "ratios"):  # MNC's anchors are always these
            if name in self.settings:
                raise self.error(f"param_str: {name} is not read by MNC's layer; remove it")
        super().setup()


@register_python_layer("pylayer.mask_layer", "MaskLayer")
class MaskLayer(_TestOnly):
    """Masks R×(S·S) as R×1×S×S, S = 21.

    Source: daijifeng001/MNC, lib/pylayer/mask_layer.py.
    """

    side = 21

    def setup(self) -> None:
        self._refuse_training()

    def reshape(self, bottoms: list[Shape]) -> list[Shape]:
        masks = bottoms[0]
        if math.prod(masks[1:]) != self.side**2:
            raise self.error(f"masks {list(masks)} must have {self.side}² = {self.side**2} values each")
        return [(masks[0], 1, self.side, self.side)]

    def forward(self, masks: Tensor) -> tuple[Tensor]:
        return (masks.reshape(-1, 1, self.side, self.side),)

    def onnx(self, graph: OnnxGraph, masks: str) -> list[str]:
        return [graph.node("Reshape", [masks, graph.constant(integers(-1, 1, self.side, self.side))])]

    def source(self, code: SourceCode, masks: str) -> list[str]:
        return [f"{masks}.reshape(-1, 1, {self.side}, {self.side})"]


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
class StageBridgeLayer(_TestOnly):
    """Regions R×5 for the next stage: moved by the box of their best class, and clipped to the image.

    Bottoms: regions, deltas R×4·classes, scores R×classes, im_info.  Source: daijifeng001/MNC,
    lib/pylayer/stage_bridge_layer.py.
    """

    bottom_count: ClassVar[tuple[int, int]] = (4, 4)

    def setup(self) -> None:
        self._refuse_training()

    def reshape(self, bottoms: list[Shape]) -> list[Shape]:
        rois, deltas, scores = bottoms[:3]
        if len(scores) != 2 or math.prod(deltas[1:]) != 4 * scores[1] or math.prod(rois[1:]) != 5:
            raise self.error(
                f"needs regions R×5, deltas R×4·classes and scores R×classes, not {list(rois)}, {list(deltas)} and "
                f"{list(scores)}"
            )
        return [(rois[0], 5)]

    def forward(self, rois: Tensor, deltas: Tensor, scores: Tensor, info: Tensor) -> tuple[Tensor]:
        return (bridge_regions(rois.flatten(1), deltas.flatten(1), scores, info),)

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
