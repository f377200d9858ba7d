"""Layers that select values of a blob: Crop, BatchReindex, Filter, ArgMax."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers
from .support.labels import indices_onnx, to_indices
from .support.registry import register_layer


@register_layer("Crop")
class Crop(Layer):
    """The part of the first bottom, from `offset` on, that has the second's size from `axis` on."""

    message = "crop_param"
    fields = ("axis", "offset")
    bottom_count = (2, 2)
    no_float16 = ""

    def setup(self, x: int, like: int) -> None:
        self.start = self.axis(self.param.axis, x)
        count = x - self.start
        offsets = tuple(self.param.offset) or (0,)
        if len(offsets) not in (1, count):
            raise self.error(f"offset is stated {len(offsets)} times for {count} axes; state 1 or {count}")
        self.offsets = offsets * count if len(offsets) == 1 else offsets

    def plan(self, x: Shape, like: Shape) -> LayerPlan:
        if len(x) != len(like):
            raise self.error(f"bottoms {list(x)} and {list(like)} differ in their number of axes")
        for axis, offset in enumerate(self.offsets, self.start):
            if offset + like[axis] > x[axis]:
                raise self.error(
                    f"axis {axis} of length {x[axis]} has no {like[axis]} values from {offset} on"
                )
        return LayerPlan([(*x[: self.start], *like[self.start :])])

    def forward(self, x: Tensor, like: Tensor) -> tuple[Tensor]:
        for axis, offset in enumerate(self.offsets, self.start):
            x = x.narrow(axis, offset, like.shape[axis])
        return (x,)

    def onnx(self, graph: OnnxGraph, x: str, like: str) -> list[str]:
        wanted = graph.shape(like)[self.start :]
        starts = graph.constant(integers(*self.offsets))
        known = [length for length in wanted if length is not None]
        if len(known) == len(wanted):
            ends = graph.constant(integers(*map(sum, zip(self.offsets, known, strict=True))))
        else:
            ends = graph.node("Add", [graph.node("Shape", [like], start=self.start), starts])
        axes = graph.constant(integers(*range(self.start, self.start + len(wanted))))
        return [graph.node("Slice", [x, starts, ends, axes])]

    def source(self, code: SourceCode, x: str, like: str) -> list[str]:
        cuts = [":"] * self.start
        for axis, offset in enumerate(self.offsets, self.start):
            first, plus = (f"{offset} ", f"{offset} + ") if offset else ("", "")
            cuts.append(f"{first}: {plus}{like}.shape[{axis}]")
        return [f"{x}[{', '.join(cuts)}]"]


@register_layer("BatchReindex")
class BatchReindex(Layer):
    """The images of the first bottom at the indices in the second."""

    index_bottoms = (1,)
    bottom_count = (2, 2)

    def plan(self, x: Shape, order: Shape) -> LayerPlan:
        if not x or len(order) != 1:
            raise self.error(f"the second bottom {list(order)} must have one axis, of image numbers")
        return LayerPlan([(order[0], *x[1:])])

    def forward(self, x: Tensor, order: Tensor) -> tuple[Tensor]:
        return (x.index_select(0, to_indices(self, order, x.shape[0], "image number")),)

    def onnx(self, graph: OnnxGraph, x: str, order: str) -> list[str]:
        return [graph.node("Gather", [x, indices_onnx(graph, order)], axis=0)]

    def source(self, code: SourceCode, x: str, order: str) -> list[str]:
        return [f"{x}.index_select(0, {order}.long())"]


@register_layer("Filter")
class Filter(Layer):
    """Of each bottom but the last, the images whose value in the last, the selector, is not 0.

    Their number is known only when the net runs: `plan` returns the maximum.
    """

    bottom_count = (2, None)
    top_count = (1, None)
    sized_by_values = True

    def setup(self, *ranks: int) -> None:
        filtered, tops = len(ranks) - 1, len(self.node.tops)
        if filtered != tops:
            raise self.error(f"has {filtered} bottoms to filter and {tops} tops; the numbers must be equal")

    def plan(self, *bottoms: Shape) -> LayerPlan:
        *filtered, selector = bottoms
        if not selector or any(length != 1 for length in selector[1:]):
            raise self.error(f"the selector {list(selector)} must hold one value per image")
        for shape in filtered:
            if shape[:1] != selector[:1]:
                raise self.error(
                    f"bottom {list(shape)} and the selector {list(selector)} differ in their number of images"
                )
        return LayerPlan(filtered)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        *filtered, selector = bottoms
        chosen = selector.flatten() != 0
        return tuple(x[chosen] for x in filtered)

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        from onnx import TensorProto

        *filtered, selector = bottoms
        flat = graph.node("Reshape", [selector, graph.constant(integers(-1))])
        chosen = graph.node("Cast", [flat], to=TensorProto.BOOL)
        return [graph.node("Compress", [x, chosen], axis=0) for x in filtered]

    def source(self, code: SourceCode, *bottoms: str) -> list[str]:
        *filtered, selector = bottoms
        return [f"{x}[{selector}.flatten() != 0]" for x in filtered]


def greatest(x: Tensor, count: int, dim: int) -> tuple[Tensor, Tensor]:
    """Return the greatest values along an axis and their indices; of equal values Caffe takes the last first."""
    values, order = x.flip(dim).sort(dim=dim, descending=True, stable=True)
    indices = x.shape[dim] - 1 - order.narrow(dim, 0, count)
    # bfloat16 represents integers up to 256 only.
    return values.narrow(dim, 0, count), indices.to(torch.promote_types(x.dtype, torch.float32))


@register_layer("ArgMax")
class ArgMax(Layer):
    """The indices of the `top_k` greatest values along `axis`, or over each whole image.

    Over an image the top is N×1×top_k, or with `out_max_val` N×2×top_k of indices and values, and has
    the bottom's number of axes (3 at least).  Along an axis it holds indices, or values instead.
    """

    message = "argmax_param"
    fields = ("out_max_val", "top_k", "axis")
    has_gradient = False

    def setup(self, rank: int) -> None:
        self.count: int = self.param.top_k
        self.with_values: bool = self.param.out_max_val
        self.dim = self.axis(self.param.axis, rank) if self.param.HasField("axis") else None
        if self.dim is None and not rank:
            raise self.error("the bottom has no axes; it needs at least one")
        self.rank = rank
        self.tail = (1,) * (max(rank, 3) - 3)

    def plan(self, x: Shape) -> LayerPlan:
        available = prod(x[1:]) if self.dim is None else x[self.dim]
        if not 1 <= self.count <= available:
            raise self.error(f"top_k {self.count} must be from 1 to the {available} values compared")
        if self.dim is not None:
            return LayerPlan([(*x[: self.dim], self.count, *x[self.dim + 1 :])])
        return LayerPlan([(x[0], 2 if self.with_values else 1, self.count, *self.tail)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if self.dim is not None:
            values, indices = greatest(x, self.count, self.dim)
            return (values if self.with_values else indices,)
        values, indices = greatest(x.flatten(1) if x.dim() > 1 else x[:, None], self.count, 1)
        found = torch.stack([indices, values], 1) if self.with_values else indices.unsqueeze(1)
        return (found.reshape(*found.shape, *self.tail),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        from onnx import TensorProto

        axis = 1 if self.dim is None else self.dim
        x = graph.node("Flatten", [x], axis=1) if self.dim is None else x
        # TopK takes the first of equal values, so the axis is reversed.
        back, limit = graph.constant(integers(-1)), graph.constant(integers(-(2**63)))
        reversed_x = graph.node("Slice", [x, back, limit, graph.constant(integers(axis)), back])
        values, order = graph.nodes("TopK", [reversed_x, graph.constant(integers(self.count))], 2, axis=axis)
        if self.dim is not None and self.with_values:
            return [values]
        length = graph.node("Shape", [x], start=axis, end=axis + 1)
        last = graph.node("Sub", [length, graph.constant(integers(1))])
        indices = graph.node("Cast", [graph.node("Sub", [last, order])], to=TensorProto.FLOAT)
        if self.dim is not None:
            return [indices]
        axes = graph.constant(integers(1, *range(3, 3 + len(self.tail))))
        parts = [indices, values] if self.with_values else [indices]
        with_axes = [graph.node("Unsqueeze", [part, axes]) for part in parts]
        return [graph.node("Concat", with_axes, axis=1) if self.with_values else with_axes[0]]

    def source(self, code: SourceCode, x: str) -> list[str]:
        call = code.helper(greatest)
        if self.dim is not None:
            return [f"{call}({x}, {self.count}, {self.dim})[{0 if self.with_values else 1}]"]
        tail = f"[..., {', '.join(['None'] * len(self.tail))}]" if self.tail else ""
        rows = f"{x}.flatten(1)" if self.rank > 1 else f"{x}[:, None]"
        found = f"{call}({rows}, {self.count}, 1)"
        if self.with_values:
            return [f"torch.stack({found}[::-1], 1){tail}"]
        return [f"{found}[1].unsqueeze(1){tail}"]
