"""Dense weights in fewer bits: int8, float16 and bfloat16, with error diffusion within each channel's plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import IlgnetError
from ..layers.support.base import Layer
from ..precisions import check_weights_precision
from ..schema import caffe_pb2 as pb
from .plan import NetPlan

FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = (*FLOATS.values(), torch.int8)
DENSE = "InnerProduct"
WEIGHT = "weight"
SCALE_SUFFIX = "_scale"
LARGEST = 127
LARGEST_ERROR = 1.0  # of a rounding to int8 that is diffused, in steps
ROWS_AT_ONCE = 16 << 20  # values quantized at a time, so that no second copy of the weights is made
OUTPUTS_AT_ONCE = 16  # outputs rounded together, so that their weights stay in the processor's cache

Plane = tuple[int, int, int]  # channels, height, width of the blob that a dense layer reads


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A dense layer's weights as stored; ``axis`` is the axis of the outputs.

    int8 values mean ``values * scale``, symmetric about 0, with one scale per output or, where the scales have two axes,
    per output and group of consecutive inputs; floats have no scale.
    """

    values: Tensor
    scale: Tensor | None
    axis: int

    def dequantize(self) -> Tensor:
        """Return the weights as float32."""
        return dequantize(self.values, self.scale, self.axis)


def dequantize(values: Tensor, scale: Tensor | None, axis: int) -> Tensor:
    """Return stored values as float32."""
    weights = values.to(torch.float32)
    if scale is None:
        return weights
    if scale.dim() == 2:
        return (weights.view(*scale.shape, -1) * scale[..., None]).view(values.shape)
    factor = scale[:, None] if axis == 0 else scale
    # A traced graph may hold no in-place operator; elsewhere working in place saves a second copy.
    return weights * factor if torch.compiler.is_compiling() else weights.mul_(factor)


def quantize_weights(array: np.ndarray, precision: str, axis: int = 0) -> QuantizedWeight:
    """Return float32 weights (two axes) rounded to nearest in ``precision``, a piece at a time.

    Raises IlgnetError for an unknown precision, for float16 where a weight is past its range, and for int8
    where one is not finite.
    """
    check_weights_precision(precision)
    weights = torch.from_numpy(np.asarray(array, dtype=np.float32))
    pieces = range(0, weights.shape[0], max(1, ROWS_AT_ONCE // max(weights.shape[1], 1)))
    step = pieces.step
    if precision in FLOATS:
        kind = FLOATS[precision]
        values = torch.empty(weights.shape, dtype=kind)
        for start in pieces:
            piece = weights[start : start + step]
            if piece.abs().max() > torch.finfo(kind).max:
                raise IlgnetError(
                    f"precision={precision!r}: a weight of {piece.abs().max():.3g} is past its range",
                    option="precision",
                )
            values[start : start + step] = piece
        return QuantizedWeight(values, None, axis)
    assert precision == "int8", "float32 weights are not quantized"
    largest = torch.zeros(weights.shape[axis])
    for start in pieces:
        check_finite(weights[start : start + step])
        piece = weights[start : start + step].abs().amax(1 - axis)
        part = slice(start, start + step) if axis == 0 else slice(None)
        largest[part] = torch.maximum(largest[part], piece)
    scale = torch.where(largest > 0, largest / LARGEST, 1.0)
    values = torch.empty(weights.shape, dtype=torch.int8)
    for start in pieces:
        rows = slice(start, start + step)
        values[rows] = (weights[rows] / (scale[rows, None] if axis == 0 else scale)).round_()
    return QuantizedWeight(values, scale, axis)


def check_finite(weights: Tensor) -> None:
    """Refuse NaN and infinity, which no int8 value represents."""
    if not bool(weights.isfinite().all()):
        raise IlgnetError(
            "precision='int8': a weight is not finite; use another precision, or finite weights",
            option="precision",
        )


def quantize_dense(
    plan: NetPlan, arrays: Mapping[str, list[np.ndarray]], precision: str
) -> dict[str, QuantizedWeight]:
    """Quantize the weights of every InnerProduct layer; shared weights stay float32."""
    if precision == "float32":
        return {}
    shared = {key[0] for key in plan.owners} | {owner.layer for owner in plan.owners.values()}
    return {
        node.name: quantize_weights(arrays[node.name][0], precision, output_axis(node.layer))
        for node in plan.graph
        if node.type == DENSE and node.name in arrays and node.name not in shared
    }


def output_axis(layer: pb.LayerParameter) -> int:
    """Return the axis of an InnerProduct's weights that is the outputs'."""
    return int(layer.inner_product_param.transpose)


# ---------------------------------------------------------------------- error diffusion


def quantize_rows(
    weight: Tensor, precision: str, plane: Plane | None = None, *, by_channel: bool = False
) -> QuantizedWeight:
    """Return float32 weights (outputs × inputs) as float16, bfloat16, or int8 with one scale per output.

    Where the inputs are a blob of C×H×W (``plane``), the rounding is error diffusion within each channel's plane: each
    weight's rounding error is added to the next weights of its row and of its column.  Feature maps are smooth and,
    after a ReLU, non-negative, so neighbouring errors cancel in the sum: the outputs of large int8 layers
    are three to five times as close as with rounding to nearest, at no cost at run time.  ``by_channel`` gives int8 one
    scale per output and channel there, which halves the difference once more.
    """
    if plane is None or prod(plane[1:]) == 1:
        return quantize_weights(weight.numpy(), precision)
    channels, height, width = plane
    scale = None
    if precision == "int8":
        check_finite(weight)
        largest = (
            weight.view(-1, channels, height * width).abs().amax(2) if by_channel else weight.abs().amax(1)
        )
        scale = torch.where(largest > 0, largest / LARGEST, 1.0)
        values = torch.empty(weight.shape, dtype=torch.int8)
    else:
        values = torch.empty(weight.shape, dtype=FLOATS[precision])
    for start in range(0, weight.shape[0], OUTPUTS_AT_ONCE):
        rows = slice(start, start + OUTPUTS_AT_ONCE)
        block = weight[rows].view(-1, channels, height * width)
        if scale is not None:
            block = block / scale[rows].view(len(block), -1, 1)
        # Positions first, so that each step is one pass over neighbouring memory.
        steps = block.permute(2, 0, 1).contiguous()
        if scale is not None:
            _diffuse_error(steps, width, _round_to_int8, LARGEST_ERROR)
        else:
            _diffuse_error(steps, width, _round_to(values.dtype), inf)
        values[rows] = steps.permute(1, 2, 0).reshape(values[rows].shape)
    return QuantizedWeight(values, scale, 0)


def _diffuse_error(steps: Tensor, width: int, rounded: Callable[[Tensor], Tensor], most: float) -> None:
    """Round ``steps`` in place, position by position, adding errors to the neighbours on the right and below.

    The sum of the errors of a row, and that of a column, stay within one rounding: the neighbour diagonally below
    gets the error with the other sign.  ``most`` limits the error of a value past the largest that can be stored.
    """
    none = torch.zeros_like(steps[0])
    above = [none] * width
    for start in range(0, len(steps), width):
        left = corner = none
        for column in range(width):
            value = steps[start + column] + left
            value += above[column]
            value -= corner
            left = value - steps[start + column].copy_(rounded(value))
            if most < inf:
                left.clamp_(-most, most)
            corner, above[column] = above[column], left


def _round_to_int8(values: Tensor) -> Tensor:
    return values.round().clamp_(-LARGEST, LARGEST)


def _round_to(kind: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda values: values.to(kind).to(torch.float32)


# ---------------------------------------------------------------------- in a layer


def attach_quantized(layer: Layer, weight: QuantizedWeight) -> None:
    """Make a dense layer store its weights quantized; each pass dequantizes them, and no float32 copy is kept."""
    delattr(layer, WEIGHT)
    layer.register_buffer(WEIGHT, weight.values)
    parametrize.register_parametrization(layer, WEIGHT, _Dequantize(weight.scale, weight.axis), unsafe=True)
    layer.train(layer.training)


def quantized_blob(layer: Layer, name: str) -> QuantizedWeight | None:
    """Return a layer's blob as stored, or None where it is float32 (as float16 weights are after `float()`)."""
    if not parametrize.is_parametrized(layer, name):
        return None
    held: Any = layer.parametrizations
    stored = held[name]
    if not isinstance(stored[0], _Dequantize):  # a blob shared in another shape
        return None
    if stored.original.dtype not in STORED:
        return None
    return QuantizedWeight(stored.original, stored[0].scale, stored[0].axis)


class _Dequantize(nn.Module):
    """The parametrization that dequantizes stored values to the net's type whenever the weights are read."""

    scale: Tensor | None
    like: Tensor

    def __init__(self, scale: Tensor | None, axis: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        # Tracks the net's type: `half()` and `double()` convert it with everything else.
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.axis = axis

    def forward(self, values: Tensor) -> Tensor:
        return dequantize(values, self.scale, self.axis).to(self.like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Dequantize:
        """Move the scales but keep them float32: small ones would underflow in half precision."""
        scale = self.scale
        nn.Module._apply(self, fn, recurse)
        if scale is not None and self.scale is not None and self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self
