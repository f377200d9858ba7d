"""Preprocessing inside FlowNet's nets: Mean and DataAugmentation, as phase TEST runs it."""

from __future__ import annotations

import torch
from torch import Tensor

from .norm import constant_filler
from .support.base import BlobSpec, Layer, LayerPlan, OnnxGraph, Shape, SourceCode, literal, numbers, uses
from .support.registry import register_layer
from .support.taps import apply_taps, taps_onnx


@register_layer("Mean")
class Mean(Layer):
    """output_scale · (input_scale · x ± mean_scale · `value`), one value per channel in turn; no gradient.

    Source: lmb-freiburg/flownet2, mean_layer.cpp.
    """

    message = "mean_param"
    fields = ("operation", "value", "mean_scale", "input_scale", "output_scale")
    bottom_count = top_count = (1, None)
    has_gradient = False

    def setup(self, *ranks: int) -> None:
        if len(self.node.bottoms) != len(self.node.tops):
            raise self.error(
                f"has {len(self.node.bottoms)} bottoms and {len(self.node.tops)} tops; the numbers must be equal"
            )
        if not self.param.HasField("operation"):
            raise self.error("operation is missing; state ADD or SUBTRACT")
        values = list(self.param.value)
        if not values:
            raise self.error("value is missing; state one per channel")
        sign = -1 if self.param.operation == self.param.SUBTRACT else 1
        scale, mean = self.param.output_scale, self.param.mean_scale
        self.factor: float = scale * self.param.input_scale
        self.shifts = [sign * scale * mean * value for value in values]

    def _shift(self, channels: int) -> Tensor:
        return torch.tensor(self.shifts).repeat(channels // len(self.shifts))[:, None, None]

    def plan(self, *bottoms: Shape) -> LayerPlan:
        for x in bottoms:
            if len(x) != 4:
                raise self.error(f"bottom {list(x)} must be N×C×H×W")
            if x[1] % len(self.shifts):
                raise self.error(f"{x[1]} channels are not a multiple of the {len(self.shifts)} values")
        return LayerPlan(bottoms)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.detach() * self.factor + self._shift(x.shape[1]).to(x) for x in bottoms)

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        factor = graph.constant(numbers(self.factor))
        return [
            graph.node(
                "Add",
                [graph.node("Mul", [x, factor]), graph.constant(numbers(self._shift(graph.size(x, 1))))],
            )
            for x in bottoms
        ]

    def source(self, code: SourceCode, *bottoms: str) -> list[str]:
        tops = []
        for index, x in enumerate(bottoms):
            shift = code.buffer(f"shift{index}", self._shift(code.shape(index)[1]))
            tops.append(f"{x} * {literal(self.factor)} + {shift}")
        return tops


def crop_taps(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the taps of FlowNet's crop from the middle, which keeps 1.05 values away from the end."""
    place = (torch.arange(count) - 0.5 * count + 0.5 * size).clamp(0, size - 1.05)
    low = place.floor()
    index = torch.stack([low, low + 1], 1).clamp(0, size - 1).long()
    return index, torch.stack([1 - (place - low), place - low], 1)


def crop_middle(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop the middle of an image with bilinear weights."""
    for axis in (0, 1):
        x = apply_taps(x, 2 + axis, crop_taps(x.shape[2 + axis], size[axis]))
    return x


uses(crop_middle, apply_taps, crop_taps)


@register_layer("DataAugmentation")
class DataAugmentation(Layer):
    """Crops the middle to `crop_height`×`crop_width`, where both are stated, and subtracts a mean; no gradient.

    The mean is the stored one (blobs: number of passes, mean of each pixel, mean of each channel) with
    `recompute_mean`, of pixels or, with `mean_per_pixel: false`, of channels; otherwise three values of `mean`, with
    `mean_per_pixel: false`.  Without a crop `augment_during_test` changes nothing.
    Source: lmb-freiburg/flownet2, data_augmentation_layer.cu.
    """

    message = "augmentation_param"
    fields = (
        *("crop_width", "crop_height", "recompute_mean", "mean_per_pixel", "mean"),
        "augment_during_test",
    )
    # Limits of the random transformations, and files that training writes.
    ignored_fields = ("max_multiplier",)
    has_gradient = False
    passes: Tensor

    def setup(self, rank: int) -> None:
        if self.is_train:
            raise self.error(
                "is not supported in phase TRAIN (random transformations); load the net in phase TEST"
            )
        crops = [self.param.HasField(field) for field in ("crop_height", "crop_width")]
        self.size = (self.param.crop_height, self.param.crop_width) if all(crops) else None
        if self.size and self.param.augment_during_test:  # the fork transforms only where it crops
            raise self.error(
                "augment_during_test is not supported with a crop (random transformations); remove it"
            )
        if self.size and min(self.size) < 1:
            raise self.error(f"crop_height {self.size[0]} and crop_width {self.size[1]} must be over 0")
        self.recomputes: int = self.param.recompute_mean
        # The fork reads `mean` only where there are three values, one per channel.
        values = list(self.param.mean)
        self.values = (
            values if len(values) == 3 and not self.param.mean_per_pixel and not self.recomputes else None
        )
        self.mean_name = "pixel_mean" if self.param.mean_per_pixel else "channel_mean"

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) != 4:
            raise self.error(f"bottom {list(x)} must be N×C×H×W")
        size = self.size or (x[2], x[3])
        if any(crop > side for crop, side in zip(size, x[2:], strict=True)):
            raise self.error(f"crop {list(size)} is greater than bottom {list(x)}")
        if self.size and min(x[2:]) < 2:
            raise self.error(f"bottom {list(x)} is too small to crop; its sides must be at least 2")
        if self.values and x[1] != 3:
            raise self.error(f"three values of mean need 3 channels; the bottom has {x[1]}")
        blobs = [BlobSpec("passes", (1, 1, 1, 1), constant_filler(0), learned=False)]
        if self.recomputes:
            blobs.append(BlobSpec("pixel_mean", (1, x[1], *size), constant_filler(0), learned=False))
            blobs.append(BlobSpec("channel_mean", (1, x[1], 1, 1), constant_filler(0), learned=False))
        return LayerPlan([(*x[:2], *size)], blobs)

    def _mean(self) -> Tensor | None:
        if self.values:
            return torch.tensor(self.values)[:, None, None]
        if not self.recomputes:
            return None
        if not torch.compiler.is_compiling() and int(self.passes) + 1 <= self.recomputes:
            raise self.error(
                f"its mean is of {int(self.passes)} passes and is recomputed in the first {self.recomputes}; "
                "load weights that were trained longer, or state recompute_mean: 0"
            )
        return self.blob(self.mean_name)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = x.detach()
        if self.size:
            x = crop_middle(x, self.size)
        mean = self._mean()
        return (x if mean is None else x - mean.to(x),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        if self.size:
            taps = [crop_taps(graph.size(x, 2 + axis), self.size[axis]) for axis in (0, 1)]
            for axis in (0, 1):
                x = taps_onnx(graph, x, 2 + axis, 4, taps[axis])
        mean = self._mean()
        return [
            graph.node("Identity", [x])
            if mean is None
            else graph.node("Sub", [x, graph.constant(numbers(mean))])
        ]

    def source(self, code: SourceCode, x: str) -> list[str]:
        if self.size:
            x = f"{code.helper(crop_middle)}({x}, {self.size})"
        mean = self._mean()
        return [x if mean is None else f"{x} - {code.buffer('mean', mean)}"]
