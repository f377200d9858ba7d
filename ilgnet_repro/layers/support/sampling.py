"""Bilinear sampling of feature maps at any points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import integers, numbers


def sample_bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return N×C×P values of N×C×H×W at points N×P in pixels; neighbours outside count 0."""
    height, width = x.shape[2:]
    maps = x.flatten(2)
    top, left = rows.detach().floor(), columns.detach().floor()
    parts = []
    for row, row_share in ((top, 1 - (rows - top)), (top + 1, rows - top)):
        for column, column_share in ((left, 1 - (columns - left)), (left + 1, columns - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = row.nan_to_num(0).clamp(0, height - 1).long() * width
            index = index + column.nan_to_num(0).clamp(0, width - 1).long()
            share = torch.where(inside, row_share * column_share, 0)
            parts.append(maps.gather(2, index[:, None].expand(-1, x.shape[1], -1)) * share[:, None])
    return torch.stack(parts).sum(0)


def sample_bilinear_onnx(node: Callable[..., str], x: str, rows: str, columns: str) -> str:
    """Add `sample_bilinear` with a `node_writer`."""
    from onnx import TensorProto

    maps = node("Transpose", x, perm=[0, 2, 3, 1])
    bounds = [
        node("Cast", node("Squeeze", node("Shape", x, start=axis, end=axis + 1)), to=TensorProto.FLOAT)
        for axis in (2, 3)
    ]
    total = ""
    neighbours = []
    for places in (rows, columns):
        low = node("Floor", places)
        far = node("Sub", places, low)
        neighbours.append(((low, node("Sub", numbers(1), far)), (node("Add", low, numbers(1)), far)))
    for row, row_share in neighbours[0]:
        for column, column_share in neighbours[1]:
            indices, shares = [], [row_share, column_share]
            for place, bound in ((row, bounds[0]), (column, bounds[1])):
                within = node("And", node("GreaterOrEqual", place, numbers(0)), node("Less", place, bound))
                shares.append(node("Cast", within, to=TensorProto.FLOAT))
                inside = node("Clip", place, numbers(0), node("Sub", bound, numbers(1)))
                indices.append(node("Unsqueeze", node("Cast", inside, to=TensorProto.INT64), integers(2)))
            read = node("GatherND", maps, node("Concat", *indices, axis=2), batch_dims=1)
            share = node("Mul", node("Mul", *shares[:2]), node("Mul", *shares[2:]))
            part = node("Mul", read, node("Unsqueeze", share, integers(2)))
            total = node("Add", total, part) if total else part
    return node("Transpose", total, perm=[0, 2, 1])
