"""LRN over channels in few passes through memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.base import Layer


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


def lrn_in_place(x: Tensor, size: int, factor: float, beta: float, k: float) -> Tensor:
    """LRN whose passes reuse two buffers, each channel's window cut off at the first and last channel."""
    squares = x.square()
    total = squares.clone()
    channels = x.shape[1]
    for shift in range(1, min(size // 2, channels - 1) + 1):
        total[:, shift:] += squares[:, :-shift]
        total[:, :-shift] += squares[:, shift:]
    total.mul_(factor).add_(k)
    if beta == 0.75:
        root = torch.rsqrt(total, out=total)
        torch.sqrt(root, out=squares)
        return squares.mul_(root).mul_(x)
    return total.pow_(-beta).mul_(x)
