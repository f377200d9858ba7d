"""Convolutions with their weights packed once for oneDNN, bias and ReLU in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.support.base import Layer, Shape
from .quantize import WEIGHT, Plane, output_axis, quantize_rows, quantized_blob


def can_pack(layer: Layer) -> bool:
    """Whether a layer is a convolution of N×C×H×W that oneDNN can run as it is."""
    if layer.node.type not in ("Convolution", "DepthwiseConvolution") or len(layer.node.bottoms) != 1:
        return False
    convolution: Any = layer
    is_plane = convolution.channel_axis == 1 and len(convolution.kernel) == 2
    return is_plane and torch.backends.mkldnn.is_available()


class Conv(nn.Module):
    """A convolution of a channels-last blob, and the ReLU that follows it."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Any, bottom: Shape, relu: bool) -> None:
        super().__init__()
        self.geometry = (list(layer.pad), list(layer.stride), list(layer.dilation), layer.groups(bottom[1]))
        self.attribute = "relu" if relu else "none"
        weight = layer.blob("weight").detach().contiguous(memory_format=torch.channels_last)
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        weight, self.held = pack(weight, lambda own: reorder(own, *self.geometry, list(bottom)))
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
    """Return a layer with copies of its blobs, views of other layers' included, no gradients, in `eval()`."""
    copies: dict[int, object] = {
        id(blob): nn.Parameter(blob.detach().clone(), requires_grad=False) for blob in layer.parameters()
    }
    for value in vars(layer).values():
        if isinstance(value, Tensor):
            copies[id(value)] = value.detach().clone()
    return layer.fresh(copies).eval()


def pack(weight: Tensor, reorder: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return weights in oneDNN's order, and what keeps their memory where they are no copy.

    Where the weights have that order already oneDNN takes their address and no more: it must be that of a copy,
    and somebody has to hold it.
    """
    packed = reorder(weight)
    if torch.ops.mkldnn.data_ptr(packed) != weight.data_ptr():
        return packed, None
    own = weight.clone()
    return reorder(own), own


LARGEST_KEPT_FLOAT = 1 << 20  # weights; a layer of as many or fewer costs no time worth an error
IMAGES_PER_CALL = 4  # that int8 weights are multiplied with: the kernel does no more in one pass
FLOAT16_TOP = 15  # the power of two below which every float16 lies, with room for rounding up
PACKED_FOR = 16  # the batch that packing is told of; the packed weights serve every other


class Dense(nn.Module):
    """W·x + b, and a ReLU where one follows, for one InnerProduct layer; here in float32.

    Weights are packed for oneDNN where torch has it; behind an image they stand channels-last, as it does.
    """

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None

    def __init__(self, layer: Layer, bottom: Shape, relu: bool) -> None:
        super().__init__()
        self.start: int = layer.start  # type: ignore[assignment]
        self.relu = relu
        is_image = self.start == 1 and len(bottom) == 4 and prod(bottom[2:]) > 1
        self.plane: Plane | None = (bottom[1], bottom[2], bottom[3]) if is_image else None
        bias = layer.blob("bias").detach().clone() if layer.param.bias_term else None
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("packed", None, persistent=False)
        self.pack_weights(layer)

    def pack_weights(self, layer: Layer) -> None:
        """Take the weights from a layer."""
        self._pack(_rows(layer), torch.backends.mkldnn.is_available())

    def _pack(self, weight: Tensor, can_pack: bool) -> None:
        weight = self.in_channels_last(weight)
        if can_pack:
            reorder = torch.ops.mkldnn._reorder_linear_weight
            self.packed, self.held = pack(weight, lambda own: reorder(own, PACKED_FOR))
        else:
            self.register_buffer("weight", weight.clone(), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        lead = x.shape[: self.start]
        y = self.multiply(x, prod(lead))
        if self.bias is not None:
            y += self.bias
        return ((y.relu_() if self.relu else y).reshape(*lead, -1),)

    def multiply(self, x: Tensor, count: int) -> Tensor:
        """Return W·x, a row for each of ``count`` samples."""
        rows = self.channels_last_rows(x, count)
        return F.linear(rows, self.weight) if self.packed is None else _packed_product(rows, self.packed)

    def channels_last_rows(self, x: Tensor, count: int) -> Tensor:
        """A row a sample with the channels innermost, which takes no copy of a channels-last blob."""
        return (x if self.plane is None else x.permute(0, 2, 3, 1)).reshape(count, -1)

    def in_channels_last(self, weight: Tensor) -> Tensor:
        """Weights in the order of `channels_last_rows`."""
        if self.plane is None:
            return weight
        channels, height, width = self.plane
        return weight.view(-1, channels, height * width).transpose(1, 2).reshape(weight.shape)


class Bfloat16Dense(Dense):
    """Weights, activations and each product's sum rounded to bfloat16; the sums themselves are float32."""

    def pack_weights(self, layer: Layer) -> None:
        weight = quantize_rows(_rows(layer), "bfloat16", self.plane).values
        self._pack(weight, torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def multiply(self, x: Tensor, count: int) -> Tensor:
        return super().multiply(x.bfloat16(), count).float()


class Float16Dense(Dense):
    """Weights in float16; activations, products and sums in float32, so that nothing else loses bits.

    The weights are scaled by a power of two that puts the largest near the top of float16's range, where the
    small ones keep all their bits.
    """

    def pack_weights(self, layer: Layer) -> None:
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
        return torch.ops.quantized.linear_dynamic_fp16(rows, self.product).mul_(self.unit)


class Int8Dense(Dense):
    """int8 weights, with activations and sums rounded to bfloat16.

    A file's own int8 weights are taken as they are.
    """

    scale: Tensor

    def pack_weights(self, layer: Layer) -> None:
        stored = quantized_blob(layer, WEIGHT)
        if stored is None or stored.scale is None or stored.axis != 0:
            stored = quantize_rows(_rows(layer), "int8", self.plane)
        assert stored.scale is not None
        weight = self.in_channels_last(stored.values).clone()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", stored.scale.clone(), persistent=False)
        self.register_buffer("ones", torch.ones(len(weight), dtype=torch.bfloat16), persistent=False)
        # The kernel walks whole vectors of weights.
        self.is_aligned = weight.shape[1] % 64 == 0 and weight.shape[0] % 16 == 0

    def multiply(self, x: Tensor, count: int) -> Tensor:
        rows = self.channels_last_rows(x, count)
        if self.is_aligned:
            parts = rows.bfloat16().split(IMAGES_PER_CALL)
            sums = [torch.ops.aten._weight_int8pack_mm(part, self.weight, self.ones) for part in parts]
            return torch.cat(sums).float().mul_(self.scale)
        return F.linear(rows, self.weight.float()).mul_(self.scale)


_KINDS = {"float32": Dense, "float16": Float16Dense, "bfloat16": Bfloat16Dense, "int8": Int8Dense}


def fast_dense(layer: Layer, bottom: Shape, precision: str, relu: bool) -> Dense:
    """Return a dense layer's fast form; only a large layer's weights lose bits."""
    is_large = layer.blob(WEIGHT).numel() > LARGEST_KEPT_FLOAT
    return _KINDS[precision if is_large else "float32"](layer, bottom, relu)


def _rows(layer: Layer) -> Tensor:
    """The weights with a row an output; not copied where they stand so."""
    weight = layer.blob(WEIGHT).detach()
    return weight.t().contiguous() if output_axis(layer.node.layer) == 1 else weight


def _packed_product(rows: Tensor, packed: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")


class LRN(nn.Module):
    """Each value divided by (k + alpha / size · sum of squares over neighbouring channels)^beta."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        param = layer.param
        self.arguments = (
            int(param.local_size),
            param.alpha / param.local_size,
            float(param.beta),
            float(param.k),
        )

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (lrn_in_place(x, *self.arguments),)


class CompiledLRN(nn.Module):
    """The same in two passes over a channels-last blob: its copy with room for the window's ends, and all else.

    The copy is made outside what is compiled: torch.compile would join it in, and ask at every channel
    whether it lies within the blob.
    """

    def __init__(self, lrn: LRN) -> None:
        super().__init__()
        self.size, *self.rest = lrn.arguments
        self.divided: Any = torch.compile(divided_by_window)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = x.permute(0, 2, 3, 1)
        padded = F.pad(x, (self.size // 2, self.size // 2))
        return (self.divided(padded, self.size, *self.rest).permute(0, 3, 1, 2),)


def lrn_in_place(x: Tensor, size: int, factor: float, beta: float, k: float) -> Tensor:
    """LRN whose passes reuse two buffers, each channel's window cut off at the first and last channel."""
    squares = x.square()
    total = squares.mul(factor).add_(k)
    channels = x.shape[1]
    for shift in range(1, min(size // 2, channels - 1) + 1):
        total[:, shift:].add_(squares[:, :-shift], alpha=factor)
        total[:, :-shift].add_(squares[:, shift:], alpha=factor)
    if beta == 0.75:
        root = torch.rsqrt(total, out=total)
        torch.sqrt(root, out=squares)
        return squares.mul_(root).mul_(x)
    return total.pow_(-beta).mul_(x)


def divided_by_window(padded: Tensor, size: int, factor: float, beta: float, k: float) -> Tensor:
    """LRN over the last axis of a blob that has ``size // 2`` zeros in front of it and behind."""
    channels = padded.shape[-1] - size + 1
    windows = [padded[..., shift : shift + channels] for shift in range(size)]
    total = k + factor * reduce(torch.add, [window.square() for window in windows])
    middle = windows[size // 2]
    if beta == 0.75:
        root = total.rsqrt()
        return middle * root * root.sqrt()
    return middle * total.pow(-beta)
