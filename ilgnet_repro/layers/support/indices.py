"""Blobs that hold whole numbers as floats: checked against their range, then turned into indices."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Layer, OnnxGraph


def whole_indices(layer: Layer, values: Tensor, count: int | torch.SymInt, what: str) -> Tensor:
    """Return ``values`` as int64 indices, cut off towards zero as Caffe casts them.

    Raises LayerError for an index outside ``0 <= index < count``, where Caffe stops or reads out of
    bounds.  A compiled or exported net cannot look at values; there torch's bounds check applies.
    """
    indices = values.long()
    if not torch.compiler.is_compiling() and indices.numel():
        least, greatest = (int(bound) for bound in indices.aminmax())
        if least < 0 or greatest >= count:
            found = least if least < 0 else greatest
            raise layer.error(f"{what} {found} is out of range; it must be from 0 to {int(count) - 1}")
    return indices


def indices_onnx(graph: OnnxGraph, value: str) -> str:
    """Add the cast of `whole_indices` to a graph."""
    from onnx import TensorProto

    return graph.node("Cast", [value], to=TensorProto.INT64)
