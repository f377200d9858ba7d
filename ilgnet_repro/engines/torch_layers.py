"""Modules of the fast path: convolutions on packed weights, dense and affine layers, bias and ReLU fused."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.dense import InnerProduct, is_large_product, large_product
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
    """A convolution of a channels-last blob with an optional fused ReLU.

    The order in which oneDNN reads weights depends on the bottom's size, the batch included, and on the threads; weights in
    another order are reordered in each call, some by a slow loop (half of ResNet-50's time at batch 8).  So they
    are packed again for a bottom of another size, which takes no longer than one reordering.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Any, bottom: Shape, relu: bool) -> None:
        super().__init__()
        self.geometry = (list(layer.pad), list(layer.stride), list(layer.dilation), layer.groups(bottom[1]))
        self.attribute = "relu" if relu else "none"
        weight = layer.blob("weight").detach().clone(memory_format=torch.channels_last)
        bias = layer.blob("bias").detach().clone() if layer.param.bias_term else None
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        # The size of a bottom and the weights for it: one attribute, so that a call in another thread reads both.
        self._packed: tuple[Shape, Tensor] | None = None

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        packed = self._packed
        if packed is None or packed[0] != x.shape:
            # Where the weights already have that order, oneDNN keeps the address of `weight`.
            reordered = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, *self.geometry, list(x.shape)
            )
            packed = self._packed = (x.shape, reordered)
        y = torch.ops.mkldnn._convolution_pointwise(
            x, packed[1], self.bias, *self.geometry, self.attribute, [], ""
        )
        return (y,)


class ChannelAffine(nn.Module):
    """Layers that each multiply and add one value per channel, as one, with an optional ReLU."""

    factor: Tensor
    shift: Tensor

    def __init__(self, affines: Sequence[tuple[Tensor, Tensor]], relu: bool) -> None:
        super().__init__()
        factor, shift = affines[0]
        for more, further in affines[1:]:
            factor, shift = factor * more, torch.addcmul(further, shift, more)
        self.relu = relu
        self.register_buffer("factor", factor.detach().clone()[:, None, None], persistent=False)
        self.register_buffer("shift", shift.detach().clone()[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        y = torch.addcmul(self.shift, x, self.factor)
        return (y.relu_() if self.relu else y,)


class ThenReLU(nn.Module):
    """A layer whose only top, a new tensor, is then overwritten by max(x, 0)."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *bottoms: Tensor) -> tuple[Tensor]:
        (top,) = self.layer(*bottoms)
        return (top.relu_(),)


def own_copy(layer: Layer) -> Layer:
    """Return a layer in `eval()` with copies of its blobs (shared ones included) that need no gradient."""
    copies: dict[int, Tensor] = {
        id(blob): nn.Parameter(blob.detach().clone(), requires_grad=False) for blob in layer.parameters()
    }
    for value in vars(layer).values():
        if isinstance(value, Tensor):
            copies[id(value)] = value.detach().clone()
    return layer.fresh(copies).eval()


LARGEST_UNQUANTIZED = 1 << 20  # weights; smaller layers take too little time to be worth a rounding error
IMAGES_PER_CALL = 4  # per int8 product: the kernel processes no more in one pass
FLOAT16_TOP = 15  # weights are scaled below this power of two, with room for rounding up in float16
PACKED_FOR = 16  # the batch size given to packing in bfloat16; the packed weights work for any other


class Dense(nn.Module):
    """An InnerProduct layer in float32 with an optional fused ReLU.

    ``channels_last``: where the bottom is N×C×H×W, its channels are innermost in memory, and in the weights.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: InnerProduct, bottom: Shape, relu: bool, channels_last: bool) -> None:
        super().__init__()
        self.start = layer.start
        self.relu = relu
        self.plane = self.plane_of(layer, bottom)
        self.is_reordered = channels_last and self.plane is not None
        bias = layer.blob("bias").detach().clone() if layer.param.bias_term else None
        self.register_buffer("bias", bias, persistent=False)
        self.pack_weights(layer)

    @staticmethod
    def plane_of(layer: InnerProduct, bottom: Shape) -> Plane | None:
        """Return channels, height and width of the images that a layer reads, or None where it reads none."""
        is_image = layer.start == 1 and len(bottom) == 4 and prod(bottom[2:]) > 1
        return (bottom[1], bottom[2], bottom[3]) if is_image else None

    def pack_weights(self, layer: InnerProduct) -> None:
        """Copy and pack the layer's weights."""
        self.register_buffer("weight", self.in_order(_rows(layer)).clone(), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        lead = x.shape[: self.start]
        y = self.multiply(x, prod(lead))
        if self.bias is not None:
            y += self.bias
        return ((y.relu_() if self.relu else y).reshape(*lead, y.shape[-1]),)

    def multiply(self, x: Tensor, count: int) -> Tensor:
        """Return W·x with one row for each of ``count`` samples.

        oneDNN's order for large batches would make one image 1.5 to 1.8 times as slow; it takes the plain one too.
        """
        rows = self.rows(x, count)
        if is_large_product(count, self.weight.numel()):
            return large_product(rows, self.weight, None)
        return F.linear(rows, self.weight)

    def rows(self, x: Tensor, count: int) -> Tensor:
        """Return one row per sample, in the order of the weights; copies nothing of a channels-last blob."""
        width = prod(x.shape[self.start :])  # stated: -1 is ambiguous for an empty batch
        return (x.permute(0, 2, 3, 1) if self.is_reordered else x).reshape(count, width)

    def in_order(self, weight: Tensor) -> Tensor:
        """Return weights in the order of `rows`."""
        if self.plane is None or not self.is_reordered:
            return weight
        channels, height, width = self.plane
        return weight.view(-1, channels, height * width).transpose(1, 2).reshape(weight.shape)


class Bfloat16Dense(Dense):
    """Weights, activations and each product's sum rounded to bfloat16; the sums themselves are float32."""

    def pack_weights(self, layer: InnerProduct) -> None:
        weight = self.in_order(quantize_rows(_rows(layer), "bfloat16", self.plane).values)
        self.is_packed = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        if self.is_packed:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)
            # Where the weights already have oneDNN's order, it keeps only their address.
            is_view = torch.ops.mkldnn.data_ptr(packed) == weight.data_ptr()
            self.kept_alive, weight = weight if is_view else None, packed
        self.register_buffer("weight", weight, persistent=False)

    def multiply(self, x: Tensor, count: int) -> Tensor:
        rows = self.rows(x.bfloat16(), count)
        product = large_product(rows, self.weight, None) if self.is_packed else F.linear(rows, self.weight)
        return product.float()


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
        values = self.in_order(values)
        self.product: Any = None
        has_kernel = hasattr(torch.ops.quantized, "linear_prepack_fp16")
        if has_kernel and torch.backends.quantized.engine in ("fbgemm", "x86"):
            self.product = torch.ops.quantized.linear_prepack_fp16(values.float(), None)
        else:
            self.register_buffer("weight", values, persistent=False)

    def multiply(self, x: Tensor, count: int) -> Tensor:
        rows = self.rows(x, count)
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
        weight = self.in_order(stored.values).clone()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", stored.scale.clone(), persistent=False)
        self.register_buffer("ones", torch.ones(len(weight), dtype=torch.bfloat16), persistent=False)
        # The kernel needs whole vectors of weights.
        self.is_aligned = weight.shape[1] % 64 == 0 and weight.shape[0] % 16 == 0

    def multiply(self, x: Tensor, count: int) -> Tensor:
        rows = self.rows(x, count)
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


def fast_dense(layer: InnerProduct, bottom: Shape, precision: str, relu: bool, channels_last: bool) -> Dense:
    """Return the fast module of a dense layer; only large layers are quantized."""
    return _KINDS[precision if is_large_dense(layer) else "float32"](layer, bottom, relu, channels_last)


def _rows(layer: InnerProduct) -> Tensor:
    """Return the weights with one row per output; no copy where they already have that form."""
    weight = layer.blob(WEIGHT).detach()
    return weight.t().contiguous() if output_axis(layer.node.layer) == 1 else weight
