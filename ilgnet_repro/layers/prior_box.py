"""PriorBox: SSD's default boxes for each position of a feature map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, exact, numbers, uses
from .support.registry import register_layer


@dataclass(frozen=True)
class Boxes:
    """The arguments of `prior_boxes` that do not depend on bottoms: the boxes and the grid of positions."""

    sizes: tuple[tuple[float, float], ...]  # width and height in pixels, in Caffe's order
    variance: tuple[float, ...]
    image: tuple[float, float] | None  # height and width; None: those of the net's input
    step: tuple[float, float] | None  # pixels between positions; None: evenly over the image
    offset: tuple[tuple[float, float], ...]  # of each position's centres in its cell, rows and columns
    clip: bool


def prior_boxes(
    feature: tuple[int, ...],
    image: tuple[float, ...],
    *,
    sizes: tuple[tuple[float, float], ...],
    variance: tuple[float, ...],
    step: tuple[float, float] | None,
    offset: tuple[tuple[float, float], ...],
    clip: bool,
) -> Tensor:
    """Return boxes around each position of a feature map (height, width), relative to the image, and their variances."""
    centres = []
    for axis in (0, 1):
        distance = step[axis] if step else image[axis] / feature[axis]
        cells = torch.arange(feature[axis], dtype=torch.float64)[:, None]
        shifts = torch.tensor([pair[axis] for pair in offset], dtype=torch.float64)
        centres.append((cells + shifts) * distance / image[axis])
    y, x = centres[0][:, None, None], centres[1][:, None]
    half = torch.tensor(sizes, dtype=torch.float64)[:, None] / 2
    half_x, half_y = half[..., 0] / image[1], half[..., 1] / image[0]
    sides = torch.broadcast_tensors(x - half_x, y - half_y, x + half_x, y + half_y)
    boxes = torch.stack(sides, -1).float()
    boxes = boxes.clamp(0, 1) if clip else boxes
    variances = torch.tensor(variance).expand_as(boxes)
    return torch.stack([boxes.flatten(), variances.flatten()])[None]


def shifted_boxes(
    feature: tuple[int, ...],
    image: tuple[float, ...],
    *,
    groups: tuple[tuple[float, float, tuple[tuple[float, float], ...]], ...],
    variance: tuple[float, ...],
    step: tuple[float, float] | None,
    offset: tuple[tuple[float, float], ...],
    clip: bool,
) -> Tensor:
    """Return boxes of several sizes, each at its own shifts from a position; width, height and shifts (y, x) in pixels."""
    steps = step or (image[0] / feature[0], image[1] / feature[1])
    made = []
    for width, height, shifts in groups:
        # A box away from the centre is one with another offset.
        moved = tuple(
            (y + row / steps[0], x + column / steps[1]) for y, x in offset for row, column in shifts
        )
        boxes = prior_boxes(
            feature, image, sizes=((width, height),), variance=variance, step=steps, offset=moved, clip=clip
        )
        made.append(boxes.reshape(2, -1, len(moved), 4))
    corners, variances = torch.cat(made, 2)
    return torch.stack([corners.flatten(), variances.flatten()])[None]


def density_boxes(
    feature: tuple[int, ...],
    image: tuple[float, ...],
    *,
    fixed: tuple[tuple[float, float, int], ...],
    by_step: bool,
    variance: tuple[float, ...],
    step: tuple[float, float] | None,
    offset: tuple[tuple[float, float], ...],
    clip: bool,
) -> Tensor:
    """Return density² boxes of each fixed size, ratio and density, spread over the step or over the size of a box.

    Their corners are always cut off at the image's edges.
    """
    steps = step or (image[0] / feature[0], image[1] / feature[1])
    average = int((steps[0] + steps[1]) * 0.5)
    groups = []
    for size, ratio, density in fixed:
        span = average if by_step else int(size)
        shift = average // density if by_step else int(size / density)
        width, height = (
            (size * math.sqrt(ratio), size / math.sqrt(ratio)) if by_step else (int(size), int(size))
        )
        shifts = [shift * index + (shift - span) / 2 for index in range(density)]
        groups.append((width, height, tuple((row, column) for row in shifts for column in shifts)))
    corners, variances = shifted_boxes(
        feature, image, groups=tuple(groups), variance=variance, step=steps, offset=offset, clip=clip
    )[0]
    low, high = corners.reshape(-1, 4).split(2, -1)
    corners = torch.cat([low.clamp(min=0), high.clamp(max=1)], -1)
    return torch.stack([corners.flatten(), variances])[None]


uses(shifted_boxes, prior_boxes)
uses(density_boxes, shifted_boxes)


class _Priors(Layer):
    """Default boxes, 1×2×4P: corners relative to the image, then their variances.

    Bottoms: the feature map and the net's input, of which only height and width are used.
    """

    message = "prior_box_param"
    bottom_count = (2, 2)
    has_gradient = False

    def setup(self, feature: int, data: int) -> None:
        variance = tuple(self.param.variance) or (0.1,)
        if len(variance) not in (1, 4) or min(variance) <= 0:
            raise self.error(f"variance {list(variance)} must be one number over 0 or four")
        self.boxes = Boxes(
            sizes=self._sizes(),
            variance=variance,
            image=self._pair("img_size", "img_h", "img_w"),
            step=self._pair("step", "step_h", "step_w"),
            offset=self._offsets(),
            clip=self.param.clip,
        )

    def _pair(self, both: str, height: str, width: str) -> tuple[float, float] | None:
        """Return a height and a width from one field for both, or one per axis; None where neither is stated."""
        has = self.param.HasField
        if not (has(both) or has(height) or has(width)):
            return None
        if has(both) and (has(height) or has(width)):
            raise self.error(f"states both {both} and {height}/{width}; state one kind")
        one = getattr(self.param, both)
        pair = (one, one) if has(both) else (getattr(self.param, height), getattr(self.param, width))
        if min(pair) <= 0:
            raise self.error(f"{both} (or {height} and {width}) must be over 0, not {list(pair)}")
        return pair

    def _offsets(self) -> tuple[tuple[float, float], ...]:
        rows, columns = list(self.param.offset_h), list(self.param.offset_w)
        if not rows and not columns:
            return ((self.param.offset,) * 2,)
        if len(rows) != len(columns) or self.param.HasField("offset"):
            raise self.error(
                f"offset_h {rows} and offset_w {columns} must be stated equally often, and without offset"
            )
        return tuple(zip(rows, columns, strict=True))

    def _stated_sizes(self) -> tuple[tuple[float, float], ...]:
        widths, heights = list(self.param.width), list(self.param.height)
        if not widths or len(widths) != len(heights) or min(widths + heights) <= 0:
            raise self.error(f"width {widths} and height {heights} must be over 0 and stated equally often")
        return tuple(zip(widths, heights, strict=True))

    def _sizes(self) -> tuple[tuple[float, float], ...]:
        raise NotImplementedError

    def _function(self) -> Callable[..., Tensor]:
        """Return the function that makes the boxes from `_keywords`."""
        return prior_boxes

    def plan(self, feature: Shape, data: Shape) -> LayerPlan:
        for bottom in (feature, data):
            if len(bottom) != 4:
                raise self.error(f"bottom {list(bottom)} must be N×C×H×W")
        height, width = feature[2:]
        return LayerPlan([(1, 2, 4 * height * width * self._count() * len(self.boxes.offset))])

    def _count(self) -> int:
        """Return the number of boxes of each centre."""
        return len(self.boxes.sizes)

    def _keywords(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self.boxes).items() if name != "image"}

    def forward(self, feature: Tensor, data: Tensor) -> tuple[Tensor]:
        image = self.boxes.image or data.shape[2:]
        boxes = self._function()(feature.shape[2:], image, **self._keywords())
        # bfloat16 is too coarse for corners; layers that read them compute in float32.
        return (boxes.to(feature.device, torch.promote_types(feature.dtype, torch.float32)),)

    def onnx(self, graph: OnnxGraph, feature: str, data: str) -> list[str]:
        def sides(bottom: str) -> tuple[int, int]:
            return graph.size(bottom, 2), graph.size(bottom, 3)

        image = self.boxes.image or sides(data)
        boxes = self._function()(sides(feature), image, **self._keywords())
        return [graph.constant(numbers(boxes))]

    def source(self, code: SourceCode, feature: str, data: str) -> list[str]:
        image = exact(self.boxes.image) if self.boxes.image else f"{data}.shape[2:]"
        rest = ", ".join(f"{name}={exact(_rounded(value))}" for name, value in self._keywords().items())
        return [f"{code.helper(self._function())}({feature}.shape[2:], {image}, {rest}).to({feature})"]


Group = tuple[float, float, tuple[tuple[float, float], ...]]
VARIANT, FACEBOXES = "prior_box_param.variant", "FACEBOXES"
FACEBOXES_OF_THREE = 21  # boxes of a position where three sizes are stated
NOT_IN_FACEBOXES = ("offset_h", "offset_w", "fixed_size", "fixed_ratio", "density", "width", "height")


def _shows_faceboxes(layer: pb.LayerParameter, net: pb.NetParameter) -> bool:
    """Whether a PriorBox layer of three sizes goes with the offsets of FaceBoxes' 21 boxes, not of SSD's 3."""
    param = layer.prior_box_param
    if layer.type != "PriorBox" or len(param.min_size) != 3 or param.max_size or param.aspect_ratio:
        return False
    channels = {
        other.convolution_param.num_output
        for other in net.layer
        if other.type == "Convolution" and list(other.bottom) == list(layer.bottom[:1])
    }
    return 4 * FACEBOXES_OF_THREE in channels and 4 * 3 not in channels


@register_layer("PriorBox")
class PriorBox(_Priors):
    """Default boxes of squares and ratios (Liu et al., ECCV 2016).

    Forks: `offset_h` and `offset_w` give each box several centres in a cell; `width` and `height` state the boxes;
    `fixed_size`, `fixed_ratio` and `density` spread boxes of one size over a cell.  FaceBoxes' layer has SSD's text:
    `prior_box_param { variant: FACEBOXES }` selects it (`SSD` does not), or a net where a layer of three sizes reads
    what a Convolution of 84 channels reads, the offsets of its 21 boxes.  There size 32 is at 16 shifts and 64 at 4,
    and every box of a `min_size` is one pixel smaller.
    Source: SSD, src/caffe/layers/prior_box_layer.cpp; OpenCV's and Anakin's ports for the forks' fields;
    sfzhang15/FaceBoxes, src/caffe/layers/prior_box_layer.cpp.
    """

    fields = (
        *("min_size", "max_size", "aspect_ratio", "flip", "clip", "variance"),
        *("img_size", "img_h", "img_w", "step", "step_h", "step_w", "offset", "offset_h", "offset_w"),
        *("width", "height", "fixed_size", "fixed_ratio", "density"),
    )
    fork_fields = (VARIANT,)

    @classmethod
    def resolve_by_net(cls, text: pb.LayerParameter, net: pb.NetParameter) -> None:
        is_stated = any(field.path == VARIANT for field in text.fork_field)
        if not is_stated and any(_shows_faceboxes(layer, net) for layer in net.layer):
            text.fork_field.add(path=VARIANT, text=FACEBOXES)

    def setup(self, feature: int, data: int) -> None:
        variant = self.fork_field(VARIANT) or "SSD"
        if variant not in ("SSD", FACEBOXES):
            raise self.error(f"{VARIANT} {variant} must be SSD or {FACEBOXES}")
        self.fixed = self._fixed()
        self.groups = self._faceboxes() if variant == FACEBOXES else ()
        self.note = "PriorBox of FaceBoxes' Caffe: sizes 32 and 64 at several shifts" if self.groups else ""
        super().setup(feature, data)

    def _faceboxes(self) -> tuple[Group, ...]:
        """Return the boxes of a position in FaceBoxes' order: their width, height and shifts (y, x)."""
        others = [field.name for field, _ in self.param.ListFields() if field.name in NOT_IN_FACEBOXES]
        if others:
            raise self.error(f"{VARIANT} {FACEBOXES} has no {others[0]}; remove it")
        least, most, ratios = self._min_max_ratios()
        centre = ((0.0, 0.0),)
        groups: list[Group] = []
        for index, stated in enumerate(least):
            side = int(stated)
            distance, steps = {32: (8.0, range(-2, 2)), 64: (16.0, range(-1, 1))}.get(side, (0.0, range(1)))
            shifts = tuple((distance * row, distance * column) for row in steps for column in steps)
            groups.append((side - 1, side - 1, shifts))
            if most:
                groups.append((sqrt(side * int(most[index])),) * 2 + (centre,))
            groups += [(side * sqrt(r), side / sqrt(r), centre) for r in ratios]
        made = sum(len(shifts) for _, _, shifts in groups)
        reserved = FACEBOXES_OF_THREE if len(least) == 3 else (1 + len(ratios)) * len(least)
        if made != reserved + len(most):
            raise self.error(
                f"min_size {least} makes {made} boxes where FaceBoxes' Caffe has room for {reserved + len(most)}; "
                "state 32, 64 and one more, or sizes other than these, without aspect_ratio"
            )
        return tuple(groups)

    def _fixed(self) -> tuple[tuple[float, float, int], ...]:
        """Return size, ratio and density of each group of boxes of fixed sizes."""
        sizes, ratios, density = (
            list(getattr(self.param, name)) for name in ("fixed_size", "fixed_ratio", "density")
        )
        if not sizes:
            if ratios or density:
                raise self.error("fixed_ratio and density go with fixed_size; state it too")
            return ()
        if len(density) != len(sizes) or min(density) < 1 or min(sizes + ratios) <= 0:
            raise self.error(
                f"fixed_size {sizes} and fixed_ratio {ratios} must be over 0, with a density over 0 per size, not {density}"
            )
        if self.param.aspect_ratio or self.param.min_size:
            raise self.error("fixed_size goes without min_size and aspect_ratio; use fixed_ratio")
        return tuple(
            (size, ratio, count)
            for size, count in zip(sizes, density, strict=True)
            for ratio in ratios or [1]
        )

    def _count(self) -> int:
        shifted = sum(len(shifts) for _, _, shifts in self.groups)
        return shifted or sum(density**2 for _, _, density in self.fixed) or super()._count()

    def _sizes(self) -> tuple[tuple[float, float], ...]:
        if self.fixed or self.groups:
            return ()
        if self.param.width or self.param.height:
            return self._stated_sizes()
        least, most, ratios = self._min_max_ratios()
        sizes: list[tuple[float, float]] = []
        for index, stated in enumerate(least):
            side = int(stated)  # the SSD fork stores sizes as int here: 35.84 is 35
            sizes.append((side, side))
            if most:
                sizes.append((sqrt(side * int(most[index])),) * 2)
            sizes += [(side * sqrt(r), side / sqrt(r)) for r in ratios]
        return tuple(sizes)

    def _min_max_ratios(self) -> tuple[list[float], list[float], list[float]]:
        """Return the sizes, the greater sizes, and the ratios of boxes that are not square."""
        least, most = list(self.param.min_size), list(self.param.max_size)
        if not least or min(least) <= 0:
            raise self.error(f"min_size {least} must be stated and over 0")
        if most and (len(most) != len(least) or any(b <= a for a, b in zip(least, most, strict=True))):
            raise self.error(f"max_size {most} must be one for each min_size {least}, and greater")
        ratios: list[float] = [1.0]
        for ratio in self.param.aspect_ratio:
            if ratio <= 0:
                raise self.error(f"aspect_ratio {ratio} must be over 0")
            if all(abs(ratio - known) >= 1e-6 for known in ratios):
                ratios += [ratio, 1 / ratio] if self.param.flip else [ratio]
        return least, most, [ratio for ratio in ratios if abs(ratio - 1) >= 1e-6]

    def _function(self) -> Callable[..., Tensor]:
        return shifted_boxes if self.groups else density_boxes if self.fixed else super()._function()

    def _keywords(self) -> dict[str, Any]:
        keywords = super()._keywords()
        if self.groups or self.fixed:
            del keywords["sizes"]
        if self.groups:
            keywords["groups"] = self.groups
        elif self.fixed:
            keywords |= {"fixed": self.fixed, "by_step": bool(self.param.fixed_ratio)}
        return keywords


@register_layer("PriorBoxClustered")
class PriorBoxClustered(_Priors):
    """Default boxes of the stated widths and heights in pixels (Intel's forks; clusters of the true boxes).

    Source: the description of OpenVINO's operation PriorBoxClustered, which its Caffe fork's layer became.
    """

    fields = (
        *("width", "height", "clip", "variance", "img_size", "img_h", "img_w"),
        *("step", "step_h", "step_w", "offset", "offset_h", "offset_w"),
    )
    ignored_fields = ("flip",)  # of aspect ratios, which it has none of

    def _sizes(self) -> tuple[tuple[float, float], ...]:
        return self._stated_sizes()


def _rounded(value: Any) -> Any:
    """Return float32 fields as their shortest decimals: 0.1, not 0.10000000149011612."""
    if isinstance(value, tuple):
        return tuple(_rounded(entry) for entry in value)
    return float(str(np.float32(value))) if isinstance(value, float) else value
