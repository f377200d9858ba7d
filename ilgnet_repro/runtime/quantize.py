"""Dense weights in fewer bits, the rounding errors carried on from each weight to the next in its plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import precisions
from ..errors import IlgnetError
from ..layers.support.base import Layer
from .plan import NetPlan

Plane = tuple[int, int, int]  # channels, height, width of the blob that a dense layer reads
OUTPUTS_AT_ONCE = 16  # outputs rounded together, so that their weights stay in the processor's cache


def quantize_rows(weight: Tensor, precision: str, plane: Plane | None = None) -> QuantizedWeight:
    """Return float32 weights (outputs × inputs) as bfloat16 or as int8 with one scale an output.

    Where the inputs are a blob of C×H×W, the error of each rounding is carried to the next weight along
    the plane of its channel, in lines that run to and fro, and rounded with it.  Feature maps are smooth
    and, behind a ReLU, of one sign, so neighbouring errors cancel in the sum: large int8 dense layers come out
    four times as exact as rounded to nearest, at no cost when they run.
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
    rows = [range(row * width, (row + 1) * width) for row in range(height)]
    return [index for number, row in enumerate(rows) for index in (row if number % 2 == 0 else reversed(row))]


def _diffuse_error(steps: Tensor, order: list[int], rounded: Callable[[Tensor], Tensor]) -> None:
    """Round ``steps`` in place, position by position; what each rounding leaves goes to the next."""
    left = torch.zeros_like(steps[0])
    for index in order:
        left += steps[index]
        torch.sub(left, steps[index].copy_(rounded(left)), out=left)


def _round_to_int8(values: Tensor) -> Tensor:
    return values.round().clamp_(-LARGEST, LARGEST)


def _round_to(kind: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda values: values.to(kind).to(torch.float32)


FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = (*FLOATS.values(), torch.int8)
DENSE = "InnerProduct"
WEIGHT = "weight"
SCALE_SUFFIX = "_scale"
LARGEST = 127
ROWS_AT_ONCE = 16 << 20  # values, so that no second copy of the weights is ever made


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A dense layer's weights as they are stored; ``axis`` is that of the outputs.

    int8 values stand for ``values * scale``, symmetric about 0, with one scale an output; the floats
    stand for themselves and have no scale.
    """

    values: Tensor
    scale: Tensor | None
    axis: int

    def dequantize(self) -> Tensor:
        """The weights as float32."""
        return dequantize(self.values, self.scale, self.axis)


def dequantize(values: Tensor, scale: Tensor | None, axis: int) -> Tensor:
    """Return stored values as float32."""
    wide = values.to(torch.float32)
    if scale is None:
        return wide
    factor = scale[:, None] if axis == 0 else scale
    # A traced graph holds only operators that give new values; elsewhere a second copy is spared.
    return wide * factor if torch.compiler.is_compiling() else wide.mul_(factor)


def quantize_weights(array: np.ndarray, precision: str, axis: int = 0) -> QuantizedWeight:
    """Return float32 weights (two axes) in ``precision``, a piece at a time.

    Raises IlgnetError for a precision that is none, for float16 where a weight is past its range, and for int8
    where one is not finite.
    """
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
    if precision != "int8":
        raise IlgnetError(
            f"precision={precision!r}: choose one of {', '.join(precisions.WEIGHTS)}", option="precision"
        )
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
    """Refuse what no whole number stands for: it would become any number."""
    if not bool(weights.isfinite().all()):
        raise IlgnetError(
            "precision='int8': a weight is not finite; use another precision, or sound weights",
            option="precision",
        )


def quantize_dense(
    plan: NetPlan, arrays: Mapping[str, list[np.ndarray]], precision: str
) -> dict[str, QuantizedWeight]:
    """Reduce the weights of every InnerProduct layer; those that layers share stay float32."""
    if precision == "float32":
        return {}
    shared = {key[0] for key in plan.owners} | {owner.layer for owner in plan.owners.values()}
    return {
        node.name: quantize_weights(arrays[node.name][0], precision, output_axis(node.layer))
        for node in plan.graph
        if node.type == DENSE and node.name in arrays and node.name not in shared
    }


def output_axis(layer: object) -> int:
    """The axis of an InnerProduct's weights that counts its outputs."""
    return int(layer.inner_product_param.transpose)  # type: ignore[attr-defined]


def attach_quantized(layer: Layer, reduced: QuantizedWeight) -> None:
    """Have a dense layer keep its weights reduced; each pass widens them, and no float32 copy stays."""
    delattr(layer, WEIGHT)
    layer.register_buffer(WEIGHT, reduced.values)
    parametrize.register_parametrization(layer, WEIGHT, _Dequantize(reduced.scale, reduced.axis), unsafe=True)
    layer.train(layer.training)


def quantized_blob(layer: Layer, name: str) -> QuantizedWeight | None:
    """The stored form of a layer's blob, or None where it is float32 (after `float()` float16 weights are, too)."""
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
    """From stored values to the net's type, whenever the weights are read."""

    scale: Tensor | None
    like: Tensor

    def __init__(self, scale: Tensor | None, axis: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        # Its type is that of the net: `half()` and `double()` convert it with everything else.
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.axis = axis

    def forward(self, values: Tensor) -> Tensor:
        return dequantize(values, self.scale, self.axis).to(self.like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Dequantize:
        """Move the scales, but keep them float32: in half precision small ones would vanish."""
        scale = self.scale
        super()._apply(fn, recurse)
        if scale is not None and self.scale is not None and self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self
