"""The exported program as coremltools reads it: operators that it lacks, or of which it drops a result, by others."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten


def prepared(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program in operators that coremltools 9.0 converts."""
    table: Any = torch.export.default_decompositions()
    table[_ATEN.var_mean.correction] = _variance_and_mean
    program = program.run_decompositions(table)
    if _has_indices(program):
        program = program.run_decompositions({_ATEN.max_pool2d_with_indices.default: _max_pool_with_indices})
    graph = program.graph
    for node in list(graph.nodes):
        if node.target == _ATEN.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return program


def _has_indices(program: torch.export.ExportedProgram) -> bool:
    """Whether the indices of a pooling are read: coremltools leaves them out."""
    pooling = _ATEN.max_pool2d_with_indices.default
    return any(
        node.target is operator.getitem and node.args[1] == 1 and node.args[0].target == pooling
        for node in program.graph.nodes
        if node.users
    )


def _variance_and_mean(
    x: Tensor, dim: list[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    axes = list(range(x.dim())) if dim is None else dim
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    mean = x.mean(axes, keepdim=True)
    apart = x - mean
    variance = (apart * apart).mean(axes, keepdim=keepdim)
    less = 1 if correction is None else correction
    if less:
        variance = variance * (count / (count - less))
    return variance, mean if keepdim else x.mean(axes)


def _max_pool_with_indices(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int] | None = None,
    padding: tuple[int, ...] = (0, 0),
    dilation: tuple[int, ...] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the maxima and their positions in the image, the first one of equal values, as torch does.

    The layers pad their images themselves, so that windows are whole.  Positions are counted in float32, as Caffe
    stores them: coremltools takes a chosen integer for a float.
    """
    if any(padding) or any(one != 1 for one in dilation) or ceil_mode:
        raise NotImplementedError("indices of a pooling that pads its image itself")
    (high, wide), (down, right) = kernel_size, stride or kernel_size
    height, width = x.shape[-2:]
    rows, columns = (height - high) // down + 1, (width - wide) // right + 1
    first = (torch.arange(rows) * down * width)[:, None] + torch.arange(columns) * right
    best, at = None, None
    for i in range(high):
        for j in range(wide):
            value = x[..., i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
            if best is None or at is None:
                best, at = value, torch.zeros_like(value)
            else:
                is_more = value > best
                best, at = torch.where(is_more, value, best), torch.where(is_more, float(i * width + j), at)
    assert best is not None and at is not None
    return best, (at + first.to(at.dtype)).to(torch.int64)
