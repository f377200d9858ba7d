"""Convolutions with their weights packed once for oneDNN, bias and ReLU in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..layers.base import Layer, Shape
from .copies import pack


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
