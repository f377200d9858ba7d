"""A net's layers as steps on a GPU: in float16 or bfloat16 where they may be, a ReLU in the convolution before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..caffe.graph import Value
from ..layers.conv import ConvolutionBase
from ..layers.support.base import CHANNELS_LAST, CONTIGUOUS, Layer
from ..runtime.inference import in_layout
from ..runtime.net import CaffeNet
from .torch_layers import own_copy
from .torch_steps import Identity, Step, following_relu


def device_steps(
    net: CaffeNet,
    wanted: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    *,
    channels_last: bool,
    fused: bool,
) -> list[Step]:
    """Return the steps that compute some blobs of a net on the device where its parameters are.

    With a ``dtype`` other than float32, layers compute in it except those that state a reason against (`no_float16`).
    ``channels_last`` is the order in memory of what convolutions read and write; ``fused`` lets cuDNN apply a ReLU.
    """
    alias: dict[Value, Value] = {}
    joined: set[str] = set()
    steps = []
    targets = {net.graph.value(name) for name in wanted}
    for node, layer in net.steps(wanted):
        if layer.is_input or node.name in joined:
            continue
        bottoms = tuple(alias.get(value, value) for value in node.bottoms)
        if layer.is_identity():
            alias.update((top, bottoms[0]) for top in node.tops)
            continue
        relu = following_relu(net, node, targets) if fused and _is_plane_convolution(layer) else None
        if relu is not None:
            joined.add(relu.name)
        module = DeviceLayer(
            own_copy(layer), device, dtype, channels_last=channels_last, relu=relu is not None
        )
        steps.append(Step(module, bottoms, node.tops if relu is None else relu.tops))
    copied = [value for value in map(net.graph.value, wanted) if value in alias]
    return [*steps, *(Step(Identity(), (alias[value],), (value,)) for value in copied)]


def _is_plane_convolution(layer: Layer) -> bool:
    """Whether cuDNN computes a layer as one 2-D convolution."""
    if not isinstance(layer, ConvolutionBase) or type(layer).forward is not ConvolutionBase.forward:
        return False
    is_plane = layer.channel_axis == 1 and len(layer.kernel) == 2 and not layer.transposed
    return is_plane and len(layer.node.bottoms) == 1 and not layer.node.feeds_mask


class DeviceLayer(nn.Module):
    """A layer of a net on a device, given bottoms of the type and the order in memory that it takes."""

    def __init__(
        self,
        layer: Layer,
        device: torch.device,
        dtype: torch.dtype,
        *,
        channels_last: bool = False,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.device, self.relu = device, relu
        self.may_round = dtype != torch.float32 and not layer.no_float16
        # Without weights there is no product to speed up: such a layer computes in the type of its bottoms.
        self.has_weights = bool(layer.blob_names)
        self.dtype = dtype if self.may_round else torch.float32
        self.layout = layer.layout if channels_last else CONTIGUOUS
        if self.may_round and self.has_weights:
            layer.to(dtype)
        if channels_last and layer.layout == CHANNELS_LAST:
            for blob in layer.parameters():
                blob.data = in_layout(blob.data, CHANNELS_LAST)
        self.layer = layer
        self.is_one_kernel = relu and isinstance(layer, ConvolutionBase) and layer.is_ungrouped

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        layer: Any = self.layer
        dtype = self._dtype_for(bottoms)
        given = [
            in_layout(value, self.layout)
            if index in layer.index_bottoms or not value.is_floating_point()
            else in_layout(value.to(dtype), self.layout)
            for index, value in enumerate(bottoms)
        ]
        if self.relu:
            return (self._convolve_with_relu(*given),)
        tops: tuple[Tensor, ...] = layer.forward(*given)
        return tops if given else tuple(top.to(self.device) for top in tops)

    def _dtype_for(self, bottoms: tuple[Tensor, ...]) -> torch.dtype:
        """Return the type to compute in: of a layer without weights that of its bottoms, where they share one."""
        if self.has_weights or not self.may_round:
            return self.dtype
        is_rounded = all(value.dtype == self.dtype for value in bottoms)
        return self.dtype if is_rounded else torch.float32

    def _convolve_with_relu(self, x: Tensor) -> Tensor:
        """Return max(y, 0) of a convolution: in one kernel where cuDNN has one; its kernels for groups are slow."""
        layer: Any = self.layer
        if self.is_one_kernel and x.device.type == "cuda" and not any(layer._missing(x.shape)):
            bias = layer._bias() if layer.has_bias else None
            geometry = (layer.stride, layer.pad, layer.dilation, 1)
            try:
                return torch.cudnn_convolution_relu(x, layer.blob("weight"), bias, *geometry)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # cuDNN has none for this shape
                self.is_one_kernel = False
        (y,) = layer.forward(x)
        return torch.relu_(y)
