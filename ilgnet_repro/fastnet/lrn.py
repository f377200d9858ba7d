"""LRN over channels in few passes through memory; in two where it may be compiled."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
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
