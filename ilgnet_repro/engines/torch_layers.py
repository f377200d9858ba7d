"""Convolution and dense modules of the fast path: weights packed once for oneDNN, bias and ReLU fused."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.dense import InnerProduct
from ..layers.support.base import Layer, Shape
from ..runtime.quantize import WEIGHT, Plane, output_axis, quantize_rows, quantized_blob


def can_pack(layer: Layer) -> bool:
    """Return whether a layer is a 2-D convolution of N×C×H×W that oneDNN can run."""
    if layer.node.type not in ("Convolution", "DepthwiseConvolution") or len(layer.node.bottoms) != 1:
        return False
    convolution: Any = layer
    is_plane = convolution.channel_axis == 1 and len(convolution.kernel) == 2
    # A dilated one runs as in the exact net: see `plain_order` of layers/conv.py.
    return is_plane and not convolution.is_dilated and torch.backends.mkldnn.is_available()


class Conv(nn.Module):
    """A convolution of a channels-last blob with an optional fused ReLU."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Any, bottom: Shape, relu: bool) -> None:
        super().__init__()
        self.geometry = (list(layer.pad), list(layer.stride), list(layer.dilation), layer.groups(bottom[1]))
        self.attribute = "relu" if relu else "none"
        weight = layer.blob("weight").detach().contiguous(memory_format=torch.channels_last)
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        weight, self.kept_alive = pack(weight, lambda own: reorder(own, *self.geometry, list(bottom)))
        bias = layer.blob("bias").detach().clone() if layer.param.bias_term else None
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.geometry, self.attribute, [], ""
        )
        return (y,)


def own_copy(layer: Layer) -> Layer:
    """Return a layer in `eval()` with copies of its blobs (shared ones included) that need no gradient."""
    copies: dict[int, Tensor] = {
        id(blob): nn.Parameter(blob.detach().clone(), requires_grad=False) for blob in layer.parameters()
    }
    for value in vars(layer).values():
        if isinstance(value, Tensor):
            copies[id(value)] = value.detach().clone()
    return layer.fresh(copies).eval()


def pack(weight: Tensor, reorder: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return weights in oneDNN's order, and the tensor that owns their memory where oneDNN made no copy.

    Where the weights already have that order oneDNN only keeps their address: it must be the address of a copy,
    and the caller must keep that copy alive.
    """
    packed = reorder(weight)
    if torch.ops.mkldnn.data_ptr(packed) != weight.data_ptr():
        return packed, None
    own = weight.clone()
    return reorder(own), own


LARGEST_UNQUANTIZED = 1 << 20  # weights; smaller layers take too little time to be worth a rounding error
IMAGES_PER_CALL = 4  # per int8 product: the kernel processes no more in one pass
FLOAT16_TOP = 15  # weights are scaled below this power of two, with room for rounding up in float16
PACKED_FOR = 16  # the batch size given to packing; the packed weights work for any other


class Dense(nn.Module):
    """An InnerProduct layer in float32 with an optional fused ReLU.

    Weights are packed for oneDNN where torch has it, and channels-last where the bottom is N×C×H×W.
    """

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None

    def __init__(self, layer: InnerProduct, bottom: Shape, relu: bool) -> None:
        super().__init__()
        self.start = layer.start
        self.relu = relu
        self.plane = self.plane_of(layer, bottom)
        bias = layer.blob("bias").detach().clone() if layer.param.bias_term else None
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("packed", None, persistent=False)
        self.pack_weights(layer)

    @staticmethod
    def plane_of(layer: InnerProduct, bottom: Shape) -> Plane | None:
        """Return channels, height and width of the images that a layer reads, or None where it reads none."""
        is_image = layer.start == 1 and len(bottom) == 4 and prod(bottom[2:]) > 1
        return (bottom[1], bottom[2], bottom[3]) if is_image else None

    def pack_weights(self, layer: InnerProduct) -> None:
        """Copy and pack the layer's weights."""
        self._pack(_rows(layer), torch.backends.mkldnn.is_available())

    def _pack(self, weight: Tensor, can_pack: bool) -> None:
        weight = self.in_channels_last(weight)
        if can_pack:
            reorder = torch.ops.mkldnn._reorder_linear_weight
            self.packed, self.kept_alive = pack(weight, lambda own: reorder(own, PACKED_FOR))
        else:
            self.register_buffer("weight", weight.clone(), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        lead = x.shape[: self.start]
        y = self.multiply(x, prod(lead))
        if self.bias is not None:
            y += self.bias
        return ((y.relu_() if self.relu else y).reshape(*lead, y.shape[-1]),)

    def multiply(self, x: Tensor, count: int) -> Tensor:
        """Return W·x with one row for each of ``count`` samples."""
        rows = self.channels_last_rows(x, count)
        return F.linear(rows, self.weight) if self.packed is None else _packed_product(rows, self.packed)

    def channels_last_rows(self, x: Tensor, count: int) -> Tensor:
        """Return one row per sample with the channels innermost; copies nothing of a channels-last blob."""
        width = prod(x.shape[self.start :])  # stated: -1 is ambiguous for an empty batch
        return (x if self.plane is None else x.permute(0, 2, 3, 1)).reshape(count, width)

    def in_channels_last(self, weight: Tensor) -> Tensor:
        """Return weights in the order of `channels_last_rows`."""
        if self.plane is None:
            return weight
        channels, height, width = self.plane
        return weight.view(-1, channels, height * width).transpose(1, 2).reshape(weight.shape)


class Bfloat16Dense(Dense):
    """Weights, activations and each product's sum rounded to bfloat16; the sums themselves are float32."""

    def pack_weights(self, layer: InnerProduct) -> None:
        weight = quantize_rows(_rows(layer), "bfloat16", self.plane).values
        self._pack(weight, torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def multiply(self, x: Tensor, count: int) -> Tensor:
        return super().multiply(x.bfloat16(), count).float()


class Float16Dense(Dense):
    """Weights in float16; activations, products and sums in float32.

    The weights are scaled by a power of two that puts the largest near the top of float16's range, so that the
    small ones are not subnormal.
    """

    def pack_weights(self, layer: InnerProduct) -> None:
        weight = _rows(layer)
        largest = weight.abs().max()
        exponent = FLOAT16_TOP - int(torch.frexp(largest).exponent) if torch.isfinite(largest) else 0
        self.unit = 2.0**-exponent
        values = quantize_rows(weight * 2.0**exponent, "float16", self.plane).values
        values = self.in_channels_last(values)
        self.product: Any = None
        has_kernel = hasattr(torch.ops.quantized, "linear_prepack_fp16")
        if has_kernel and torch.backends.quantized.engine in ("fbgemm", "x86"):
            self.product = torch.ops.quantized.linear_prepack_fp16(values.float(), None)
        else:
            self.register_buffer("weight", values, persistent=False)

    def multiply(self, x: Tensor, count: int) -> Tensor:
        rows = self.channels_last_rows(x, count)
        if self.product is None:
            return F.linear(rows, self.weight.float()).mul_(self.unit)
        found: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows, self.product)
        return found.mul_(self.unit)


class Int8Dense(Dense):
    """int8 weights, with activations and sums rounded to bfloat16.

    Weights that the net already stores as int8 are used unchanged.
    """

    scale: Tensor

    def pack_weights(self, layer: InnerProduct) -> None:
        stored = quantized_blob(layer, WEIGHT)
        if stored is None or stored.scale is None or stored.axis != 0:
            stored = quantize_rows(_rows(layer), "int8", self.plane)
        assert stored.scale is not None
        weight = self.in_channels_last(stored.values).clone()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", stored.scale.clone(), persistent=False)
        self.register_buffer("ones", torch.ones(len(weight), dtype=torch.bfloat16), persistent=False)
        # The kernel needs whole vectors of weights.
        self.is_aligned = weight.shape[1] % 64 == 0 and weight.shape[0] % 16 == 0

    def multiply(self, x: Tensor, count: int) -> Tensor:
        rows = self.channels_last_rows(x, count)
        if self.is_aligned:
            parts = rows.bfloat16().split(IMAGES_PER_CALL)
            sums = [torch.ops.aten._weight_int8pack_mm(part, self.weight, self.ones) for part in parts]
            return torch.cat(sums).float().mul_(self.scale)
        return F.linear(rows, self.weight.float()).mul_(self.scale)


_KINDS = {"float32": Dense, "float16": Float16Dense, "bfloat16": Bfloat16Dense, "int8": Int8Dense}


def is_large_dense(layer: Layer) -> bool:
    """Return whether a layer is dense, with enough weights that fewer bits save time."""
    if not (isinstance(layer, InnerProduct) and layer.is_plain):
        return False
    return layer.blob(WEIGHT).numel() > LARGEST_UNQUANTIZED


def fast_dense(layer: InnerProduct, bottom: Shape, precision: str, relu: bool) -> Dense:
    """Return the fast module of a dense layer; only large layers are quantized."""
    return _KINDS[precision if is_large_dense(layer) else "float32"](layer, bottom, relu)


def _rows(layer: InnerProduct) -> Tensor:
    """Return the weights with one row per output; no copy where they already have that form."""
    weight = layer.blob(WEIGHT).detach()
    return weight.t().contiguous() if output_axis(layer.node.layer) == 1 else weight


def _packed_product(rows: Tensor, packed: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
    return found
