"""Weights of the fast path's own: nothing of it lies in memory that the exact net may change or give back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..layers.base import Layer


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
