"""Dense weights in fewer bits: int8, float16 and bfloat16, with error diffusion within each channel's plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
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
ROWS_AT_ONCE = 16 << 20  # values quantized at a time, so that no second copy of the weights is made
OUTPUTS_AT_ONCE = 16  # outputs rounded together, so that their weights stay in the processor's cache

Plane = tuple[int, int, int]  # channels, height, width of the blob that a dense layer reads


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A dense layer's weights as stored; ``axis`` is the axis of the outputs.

    int8 values mean ``values * scale``, symmetric about 0, with one scale per output; floats have no scale.
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


def quantize_rows(weight: Tensor, precision: str, plane: Plane | None = None) -> QuantizedWeight:
    """Return float32 weights (outputs × inputs) as float16, bfloat16, or int8 with one scale per output.

    Where the inputs are a blob of C×H×W (``plane``), the rounding is error diffusion: each weight's rounding error
    is added to the next weight in its channel's plane, in serpentine order.  Feature maps are smooth and,
    after a ReLU, non-negative, so neighbouring errors cancel in the sum: the outputs of large int8 layers
    are four times as close as with rounding to nearest, at no cost at run time.
    """
    if plane is None or prod(plane[1:]) == 1:
        return quantize_weights(weight.numpy(), precision)
    channels, height, width = plane
    scale = None
    if precision == "int8":
        check_finite(weight)
        largest = weight.abs().amax(1)
        scale = torch.where(largest > 0, largest / LARGEST, 1.0)
        values = torch.empty(weight.shape, dtype=torch.int8)
    else:
        values = torch.empty(weight.shape, dtype=FLOATS[precision])
    order = _serpentine_order(height, width)
    for start in range(0, weight.shape[0], OUTPUTS_AT_ONCE):
        rows = slice(start, start + OUTPUTS_AT_ONCE)
        block = weight[rows] if scale is None else weight[rows] / scale[rows, None]
        # Positions first, so that each step is one pass over neighbouring memory.
        steps = block.view(-1, channels, height * width).permute(2, 0, 1).contiguous()
        _diffuse_error(steps, order, _round_to_int8 if scale is not None else _round_to(values.dtype))
        values[rows] = steps.permute(1, 2, 0).reshape(block.shape)
    return QuantizedWeight(values, scale, 0)


def _serpentine_order(height: int, width: int) -> list[int]:
    """The positions of a plane row by row, every second row from right to left."""
    rows = [range(row * width, (row + 1) * width) for row in range(height)]
    return [index for number, row in enumerate(rows) for index in (row if number % 2 == 0 else reversed(row))]


def _diffuse_error(steps: Tensor, order: list[int], rounded: Callable[[Tensor], Tensor]) -> None:
    """Round ``steps`` in place, position by position, adding each rounding error to the next position."""
    error = torch.zeros_like(steps[0])
    for index in order:
        error += steps[index]
        torch.sub(error, steps[index].copy_(rounded(error)), out=error)


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
