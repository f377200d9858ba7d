"""PriorBox: SSD's default boxes for each position of a feature map."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, exact, numbers
from .support.registry import register_layer


@dataclass(frozen=True)
class Boxes:
    """The arguments of `prior_boxes` that do not depend on bottoms: the boxes and the grid of positions."""

    sizes: tuple[tuple[float, float], ...]  # width and height in pixels, in Caffe's order
    variance: tuple[float, ...]
    image: tuple[float, float] | None  # height and width; None: those of the net's input
    step: tuple[float, float] | None  # pixels between positions; None: evenly over the image
    offset: float
    clip: bool


def prior_boxes(
    feature: tuple[int, ...],
    image: tuple[float, ...],
    *,
    sizes: tuple[tuple[float, float], ...],
    variance: tuple[float, ...],
    step: tuple[float, float] | None,
    offset: float,
    clip: bool,
) -> Tensor:
    """Return boxes around each position of a feature map (height, width), relative to the image, and their variances."""
    centres = []
    for axis in (0, 1):
        distance = step[axis] if step else image[axis] / feature[axis]
        cells = torch.arange(feature[axis], dtype=torch.float64)
        centres.append((cells + offset) * distance / image[axis])
    y, x = torch.meshgrid(*centres, indexing="ij")
    half = torch.tensor(sizes, dtype=torch.float64) / 2
    half_x, half_y = half[:, 0] / image[1], half[:, 1] / image[0]
    x, y = x[..., None], y[..., None]
    boxes = torch.stack([x - half_x, y - half_y, x + half_x, y + half_y], -1).float()
    boxes = boxes.clamp(0, 1) if clip else boxes
    variances = torch.tensor(variance).expand_as(boxes)
    return torch.stack([boxes.flatten(), variances.flatten()])[None]


@register_layer("PriorBox")
class PriorBox(Layer):
    """Default boxes (Liu et al., ECCV 2016), 1×2×4P: corners relative to the image, then their variances.

    Bottoms: the feature map and the net's input, of which only height and width are used.
    """

    message = "prior_box_param"
    fields = (
        *("min_size", "max_size", "aspect_ratio", "flip", "clip", "variance"),
        *("img_size", "img_h", "img_w", "step", "step_h", "step_w", "offset"),
    )
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
            offset=self.param.offset,
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

    def _sizes(self) -> tuple[tuple[float, float], ...]:
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
        sizes: list[tuple[float, float]] = []
        for index, stated in enumerate(least):
            side = int(stated)  # the SSD fork stores sizes as int here: 35.84 is 35
            sizes.append((side, side))
            if most:
                sizes.append((sqrt(side * int(most[index])),) * 2)
            sizes += [(side * sqrt(r), side / sqrt(r)) for r in ratios if abs(r - 1) >= 1e-6]
        return tuple(sizes)

    def plan(self, feature: Shape, data: Shape) -> LayerPlan:
        for bottom in (feature, data):
            if len(bottom) != 4:
                raise self.error(f"bottom {list(bottom)} must be N×C×H×W")
        height, width = feature[2:]
        return LayerPlan([(1, 2, 4 * height * width * len(self.boxes.sizes))])

    def _keywords(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self.boxes).items() if name != "image"}

    def forward(self, feature: Tensor, data: Tensor) -> tuple[Tensor]:
        image = self.boxes.image or data.shape[2:]
        boxes = prior_boxes(feature.shape[2:], image, **self._keywords())
        # bfloat16 is too coarse for corners; layers that read them compute in float32.
        return (boxes.to(feature.device, torch.promote_types(feature.dtype, torch.float32)),)

    def onnx(self, graph: OnnxGraph, feature: str, data: str) -> list[str]:
        def sides(bottom: str) -> tuple[int, int]:
            return graph.size(bottom, 2), graph.size(bottom, 3)

        image = self.boxes.image or sides(data)
        boxes = prior_boxes(sides(feature), image, **self._keywords())
        return [graph.constant(numbers(boxes))]

    def source(self, code: SourceCode, feature: str, data: str) -> list[str]:
        image = exact(self.boxes.image) if self.boxes.image else f"{data}.shape[2:]"
        rest = ", ".join(f"{name}={exact(_rounded(value))}" for name, value in self._keywords().items())
        return [f"{code.helper(prior_boxes)}({feature}.shape[2:], {image}, {rest}).to({feature})"]


def _rounded(value: Any) -> Any:
    """Return float32 fields as their shortest decimals: 0.1, not 0.10000000149011612."""
    if isinstance(value, tuple):
        return tuple(_rounded(entry) for entry in value)
    return float(str(np.float32(value))) if isinstance(value, float) else value
