"""Pooling windows in Caffe's positions: their number, the padding they need, and pooling in torch and ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .base import OnnxGraph, integers, numbers, uses

# Height and width; None where dynamic.
Sides = Sequence[int | None]

# ---------------------------------------------------------------------- torch, also for written source


def pool_size(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...],
    ceil_mode: bool,
) -> list[int]:
    """Return the number of Caffe's windows per axis; with padding, a window that starts past it is dropped."""
    counts = []
    for extent, k, s, p in zip(size, kernel, stride, pad, strict=True):
        span = extent + 2 * p - k
        count = (-(-span // s) if ceil_mode else span // s) + 1
        if any(pad) and (count - 1) * s >= extent + p:
            count -= 1
        counts.append(count)
    return counts


def pad_for_pool(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...],
    ceil_mode: bool,
    *,
    value: float,
) -> Tensor:
    """Pad an image so that it contains all of Caffe's windows; torch pads by half a kernel at most."""
    counts = pool_size(x.shape[2:], kernel, stride, pad, ceil_mode)
    geometry = zip(x.shape[2:], counts, kernel, stride, pad, strict=True)
    bottom, right = [max((count - 1) * s + k - extent - p, 0) for extent, count, k, s, p in geometry]
    return F.pad(x, (pad[1], right, pad[0], bottom), value=value)


def caffe_max_pool2d(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...] = (0, 0),
    ceil_mode: bool = True,
) -> Tensor:
    """Max pooling where torch refuses Caffe's padding or drops its last window; an empty window gives -FLT_MAX."""
    padded = pad_for_pool(x, kernel, stride, pad, ceil_mode, value=torch.finfo(x.dtype).min)
    return F.max_pool2d(padded, kernel, stride)


def caffe_max_pool2d_mask(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...] = (0, 0),
    ceil_mode: bool = True,
) -> tuple[Tensor, Tensor]:
    """Max pooling, and each maximum's index in the H×W plane as a float (-1 for an empty window)."""
    padded = pad_for_pool(x, kernel, stride, pad, ceil_mode, value=torch.finfo(x.dtype).min)
    top, index = F.max_pool2d(padded, kernel, stride, return_indices=True)
    height, width = x.shape[2:]
    row, column = index // padded.shape[3] - pad[0], index % padded.shape[3] - pad[1]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (top > torch.finfo(x.dtype).min)
    # bfloat16 represents integers up to 256 only.
    wide = torch.promote_types(x.dtype, torch.float32)
    return top, torch.where(inside, row * width + column, -1).to(wide)


def caffe_avg_pool2d(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...] = (0, 0),
    ceil_mode: bool = True,
) -> Tensor:
    """Average pooling where torch refuses Caffe's padding or drops its last window.

    Positions past the padding are not counted.
    """
    padded = pad_for_pool(x, kernel, stride, pad, ceil_mode, value=0.0)
    top = F.avg_pool2d(padded, kernel, stride, divisor_override=1)
    extents = []
    for axis in (0, 1):
        starts = torch.arange(top.shape[2 + axis], device=x.device, dtype=x.dtype) * stride[axis]
        limit = x.shape[2 + axis] + 2 * pad[axis]
        extents.append((starts + kernel[axis]).clamp(max=limit) - starts)
    return top / (extents[0][:, None] * extents[1])


def stochastic_pool2d(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...] = (0, 0),
    ceil_mode: bool = True,
) -> Tensor:
    """Average each window weighted by its own activations: the expectation of stochastic pooling."""
    padded = pad_for_pool(x, kernel, stride, pad, ceil_mode, value=0.0)
    total = F.avg_pool2d(padded, kernel, stride)
    squares = F.avg_pool2d(padded * padded, kernel, stride)
    # Caffe returns 0 where nothing in the window is active.
    active = total > 0
    return torch.where(active, squares / torch.where(active, total, 1), 0)


def stochastic_pool2d_draw(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...] = (0, 0),
    ceil_mode: bool = True,
) -> Tensor:
    """Draw one value per window with probability proportional to it (Zeiler and Fergus, 2013)."""
    padded = pad_for_pool(x, kernel, stride, pad, ceil_mode, value=0.0)
    windows = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(4)
    total = windows.detach().cumsum(-1)
    threshold = (1 - torch.rand_like(total[..., -1:])) * total[..., -1:]
    chosen = (total < threshold).sum(-1, keepdim=True).clamp(max=kernel[0] * kernel[1] - 1)
    return windows.gather(-1, chosen).squeeze(-1)


for _helper in (
    caffe_max_pool2d,
    caffe_max_pool2d_mask,
    caffe_avg_pool2d,
    stochastic_pool2d,
    stochastic_pool2d_draw,
):
    uses(_helper, pad_for_pool)
uses(pad_for_pool, pool_size)


# ---------------------------------------------------------------------- one window


@dataclass(frozen=True)
class Window:
    """The sliding window of Caffe's PoolingLayer; each pair is (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    ceil_mode: bool

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the output's height and width; below 1 where the image is too small."""
        rows, columns = pool_size((height, width), self.kernel, self.stride, self.pad, self.ceil_mode)
        return rows, columns

    def _axes(self) -> zip[tuple[int, int, int]]:
        return zip(self.kernel, self.stride, self.pad, strict=True)

    @property
    def max_is_plain(self) -> bool:
        """Whether F.max_pool2d computes Caffe's result for an image of any size.

        Torch accepts padding of half a kernel at most.  Rounding up may add a window without a pixel:
        Caffe keeps it and returns -FLT_MAX, torch drops it or returns -inf.
        """
        return all(2 * p <= k and (not self.ceil_mode or s <= k - p) for k, s, p in self._axes())

    @property
    def average_is_plain(self) -> bool:
        """Whether F.avg_pool2d computes Caffe's result for an image of any size."""
        keeps_all = not self.ceil_mode or any(self.pad) or all(s <= k for k, s, _ in self._axes())
        return keeps_all and all(2 * p <= k for k, _, p in self._axes())

    def arguments(self) -> str:
        """Return the arguments after ``x`` in a call of torch's pooling functions, as source."""
        words = [short(self.kernel)]
        words += [short(self.stride)] if self.stride != self.kernel else []
        words += [f"padding={short(self.pad)}"] if any(self.pad) else []
        words += ["ceil_mode=True"] if self.ceil_mode and self.stride != (1, 1) else []
        return ", ".join(words)

    def helper_arguments(self) -> str:
        """Return the arguments after ``x`` in a call of this file's functions, as source."""
        words = [str(self.kernel), str(self.stride)]
        words += [f"pad={self.pad}"] if any(self.pad) else []
        words += [] if self.ceil_mode else ["ceil_mode=False"]
        return ", ".join(words)

    # ------------------------------------------------------------------ ONNX
    #
    # Averages use an explicit Pad and windows inside it: consumers disagree on `ceil_mode` and `count_include_pad`
    # (docs/migrating.md has the measurements).

    @property
    def may_be_empty(self) -> bool:
        """Whether rounding up may add a window without a pixel, depending on the size."""
        return self.ceil_mode and not any(self.pad) and any(s > k for k, s, _ in self._axes())

    def onnx_max(self, graph: OnnxGraph, x: str, sides: Sides, *, mask: bool = False) -> list[str]:
        """Add a MaxPool with pads for Caffe's size and return its output; with ``mask`` also the index in the plane."""
        ends, empty = self._end_padding(sides)
        window = {**self._onnx_window(), "pads": [*self.pad, *ends]}
        lowest = np.asarray(np.finfo(np.float32).min)
        if not mask:
            top = graph.node("MaxPool", [x], **window)
            return [self._append(graph, top, empty, lowest)]
        top, index = graph.nodes("MaxPool", [x], 2, **window)
        # ONNX's indices run over N, C, H and W, Caffe's over the plane.
        index = graph.node("Mod", [index, self._area(graph, x, sides)])
        index = graph.node("Cast", [index], to=1)
        none = numbers([-1.0]).reshape(())
        return [self._append(graph, top, empty, lowest), self._append(graph, index, empty, none)]

    def onnx_average(self, graph: OnnxGraph, x: str, sides: Sides) -> str:
        """Add an average over an explicit Pad, its divisor corrected where windows extend past Caffe's padding."""
        top = self.onnx_kernel_average(graph, x, sides)
        height, width = sides
        if height is None or width is None:
            extends = any(end > p for end, p in zip(self._end_padding(sides)[0], self.pad, strict=True))
            return graph.node("Div", [top, self._fraction_onnx(graph, x)]) if extends else top
        rows, columns = (
            np.minimum(starts + k, extent + 2 * p) - starts
            for starts, extent, (k, _, p) in zip(
                self._starts(height, width), (height, width), self._axes(), strict=True
            )
        )
        divisor = np.outer(rows, columns).astype(np.float64)
        if (divisor == prod(self.kernel)).all():
            return top
        # A window just beyond the image has no pixels and no divisor: Caffe divides 0 by 0 there.
        with np.errstate(divide="ignore"):
            correction = prod(self.kernel) / divisor
        return graph.node("Mul", [top, graph.constant(correction[None, None].astype(np.float32))])

    def onnx_kernel_average(self, graph: OnnxGraph, x: str, sides: Sides) -> str:
        """Add an average that divides every window's sum by the kernel's area."""
        ends, empty = self._end_padding(sides)
        top = self._average_onnx(graph, _pad(graph, x, self.pad, ends))
        return self._append(graph, top, empty, numbers([0.0]).reshape(()))

    def _fraction_onnx(self, graph: OnnxGraph, x: str) -> str:
        """Add the fraction of each window that is on the image and its padding, N×1×rows×columns."""
        first = [graph.constant(integers(*values)) for values in ([0], [1], [1])]
        # Every value to the power 0 is 1, NaN included.
        ones = graph.node("Pow", [graph.node("Slice", [x, *first]), graph.constant(numbers(0))])
        ones = _pad(graph, ones, self.pad, self.pad, value=1)
        over = [end - p for end, p in zip(self._end_padding((None, None))[0], self.pad, strict=True)]
        return self._average_onnx(graph, _pad(graph, ones, (0, 0), over))

    def _average_onnx(self, graph: OnnxGraph, x: str) -> str:
        # Without VALID, ONNX Runtime up to 1.24 fuses Pad into AveragePool and divides by other counts.
        return graph.node("AveragePool", [x], auto_pad="VALID", **self._onnx_window())

    @staticmethod
    def _area(graph: OnnxGraph, x: str, sides: Sides) -> str:
        """Add the number of pixels in a plane, one int64."""
        known = [side for side in sides if side is not None]
        if len(known) == len(sides):
            return graph.constant(integers(prod(known)))
        return graph.node("ReduceProd", [graph.node("Shape", [x], start=2)], keepdims=1)

    def _starts(self, height: int, width: int) -> list[np.ndarray]:
        """Return the start of each window along each axis, from the edge of the padding."""
        return [np.arange(count) * s for count, s in zip(self.size(height, width), self.stride, strict=True)]

    def _end_padding(self, sides: Sides) -> tuple[list[int], list[int]]:
        """Return the end padding that the windows with pixels need, and the number of windows without, per axis.

        Where a side is dynamic (None) the padding gives Caffe's number of windows for every length, unless
        the window `may_be_empty`.
        """
        ends, empty = [], []
        for axis, (extent, (k, s, p)) in enumerate(zip(sides, self._axes(), strict=True)):
            if extent is None:
                # Rounded up, the windows are (extent + 2p - k) / s + 1; where any axis is padded only those
                # that start before extent + p.
                up = min(p + s - 1, k - 1) if any(self.pad) else p + s - 1
                ends.append(up if self.ceil_mode else p)
                empty.append(0)
                continue
            known = [extent if side is None else side for side in sides]
            starts = self._starts(*known)[axis]
            filled = starts[starts - p < extent]
            ends.append(max(int(filled[-1]) + k - extent - p, 0))
            empty.append(len(starts) - len(filled))
        return ends, empty

    def _append(self, graph: OnnxGraph, top: str, empty: list[int], value: np.ndarray) -> str:
        """Add the results of windows without a pixel, which ONNX Runtime's pooling cannot produce."""
        return _pad(graph, top, (0, 0), empty, value=value)

    def _onnx_window(self) -> dict[str, list[int]]:
        return {"kernel_shape": list(self.kernel), "strides": list(self.stride)}


def _pad(
    graph: OnnxGraph, x: str, start: Sequence[int], end: Sequence[int], *, value: float | np.ndarray = 0
) -> str:
    """Add a Pad of rows and columns, unless there are none to add."""
    if not any((*start, *end)):
        return x
    pads = graph.constant(integers(0, 0, *start, 0, 0, *end))
    # 0 is the default; OpenCV 4 fails where another node reads the same constant.
    values = [graph.constant(np.asarray(value, np.float32))] if value else []
    return graph.node("Pad", [x, pads, *values])


def short(values: Sequence[int]) -> str:
    """Return sizes as source, as short as torch accepts: 3 for (3, 3)."""
    return str(values[0]) if len(set(values)) == 1 else str(tuple(values))
