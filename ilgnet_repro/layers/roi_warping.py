"""ROIWarping and MaskResize, layers of the multi-task network cascades (Dai et al., CVPR 2016)."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, numbers
from .support.detections import node_writer
from .support.gradients import with_gradient
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
    Source: daijifeng001/caffe-mnc, src/caffe/layers/roi_warping_layer.cu.

    The gradients are the fork's.  That of x leaves out bins that another size of the region, one pixel more, excludes.
    That of the regions is of centre, width and height, not of corners, in pixels of x.  It is 0 where the point read has
    no pixel below or right of it, and where a bin has no points, for which the fork reads out of bounds.
    """

    message = "roi_warping_param"
    fields: ClassVar[tuple[str, ...]] = ("pooled_h", "pooled_w", "spatial_scale")
    no_onnx = "how many points it reads depends on the size of the region"
    no_source = "how many points it reads depends on the size of the region"

    def setup(self, x: int, rois: int) -> None:
        self.pooled = (self.param.pooled_h, self.param.pooled_w)
        if not all(self.pooled):
            raise self.error(f"pooled_h {self.pooled[0]} and pooled_w {self.pooled[1]} must be over 0")

    def plan(self, x: Shape, rois: Shape) -> LayerPlan:
        self._check(x, rois)
        return LayerPlan([(rois[0], x[1], *self.pooled)])

    def forward(self, x: Tensor, rois: Tensor) -> tuple[Tensor]:
        regions, maps = self._regions(x, rois), x.detach()
        corners = c_round(regions[:, 1:] * self.param.spatial_scale)
        images = regions[:, 0].long()
        found = [
            self._warp(maps[image], corner) for image, corner in zip(images.tolist(), corners, strict=True)
        ]
        if not found:
            return (x.new_zeros((0, x.shape[1], *self.pooled)),)
        top, *places = (torch.stack(part) for part in zip(*found, strict=True))

        def backward(gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
            return (
                self._map_gradient(maps, images, corners, places, gradient) if x.requires_grad else None,
                self._region_gradient(maps, images, corners, places, gradient).reshape(rois.shape),
            )

        return (with_gradient(top, backward, x, rois),)

    def _warp(self, x: Tensor, corner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return C × bins × bins for one region of one image: values, and the rows and columns where they are read.

        The places of a bin without points are -1.
        """
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
        best, index = torch.where(kept, values, -math.inf).transpose(2, 3).flatten(3).max(3)
        empty = best == -math.inf
        bins = [torch.arange(count, device=x.device) for count in self.pooled]
        row = rows[bins[0][:, None], index // columns.shape[1]]
        column = columns[bins[1], index % columns.shape[1]]
        return torch.where(empty, 0, best), torch.where(empty, -1, row), torch.where(empty, -1, column)

    def _sizes(self, corners: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return start and end of the regions along an axis, and their bins' size in the backward pass, R×1×1×1."""
        start, end = (corners[:, edge - axis, None, None, None] for edge in (1, 3))
        return start, end, (end - start + 1).clamp(min=1) / self.pooled[axis]

    def _shares(self, corners: Tensor, place: Tensor, axis: int, extent: int) -> list[tuple[Tensor, Tensor]]:
        """Return the two pixels along an axis that each place reads, with the shares that get its gradient."""
        start, end, size = self._sizes(corners, axis)
        bins = torch.arange(self.pooled[axis], device=place.device)
        bins = bins[:, None] if axis == 0 else bins
        low = place.trunc()
        shares = []
        for pixel, share in ((low, 1 - (place - low)), (low + 1, place - low)):
            first = ((pixel - start - 1) / size - 1).floor()
            last = ((pixel - start + 1) / size).ceil()
            counts = (place >= 0) & (pixel >= start) & (pixel <= end) & (bins >= first) & (bins < last)
            shares.append((pixel.clamp(0, extent - 1).long(), torch.where(counts, share, 0)))
        return shares

    def _map_gradient(
        self, x: Tensor, images: Tensor, corners: Tensor, places: list[Tensor], gradient: Tensor
    ) -> Tensor:
        height, width = x.shape[2:]
        found = torch.zeros_like(x).flatten()
        channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
        plane = (images[:, None, None, None] * x.shape[1] + channel) * height
        for row, row_share in self._shares(corners, places[0], 0, height):
            for column, column_share in self._shares(corners, places[1], 1, width):
                index = (plane + row) * width + column
                found.index_add_(0, index.flatten(), (gradient * row_share * column_share).flatten())
        return found.view(x.shape)

    def _region_gradient(
        self, x: Tensor, images: Tensor, corners: Tensor, places: list[Tensor], gradient: Tensor
    ) -> Tensor:
        """Return R×5: 0, and the gradients of the centre's column and row, of width and height."""
        height, width = x.shape[2:]
        low = [place.long() for place in places]
        counts = (places[0] >= 0) & (low[0] < height - 1) & (low[1] < width - 1)
        rows, columns = (torch.where(counts, index, 0) for index in low)
        image = images[:, None, None, None]
        channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
        far_rows, far_columns = (rows + 1).clamp(max=height - 1), (columns + 1).clamp(max=width - 1)
        values = [
            [x[image, channel, row, column] for column in (columns, far_columns)] for row in (rows, far_rows)
        ]
        down, across = (place - index for place, index in zip(places, low, strict=True))
        by_column = (1 - down) * (values[0][1] - values[0][0]) + down * (values[1][1] - values[1][0])
        by_row = (1 - across) * (values[1][0] - values[0][0]) + across * (values[1][1] - values[0][1])
        parts = [torch.zeros_like(gradient), by_column, by_row]
        for axis, derivative in ((1, by_column), (0, by_row)):
            start, _, size = self._sizes(corners, axis)
            parts.append(((places[axis] - start) / size / self.pooled[axis] - 0.5) * derivative)
        weighted = torch.where(counts, gradient, 0)
        return torch.stack([(part * weighted).sum((1, 2, 3)) for part in parts], 1)


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
