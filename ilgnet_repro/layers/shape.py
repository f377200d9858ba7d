"""Layers that only give values another shape or order: Flatten, Reshape, Tile, Permute, ShuffleChannel."""

from __future__ import annotations

from math import prod

from torch import Tensor

from .axes import four_axes_index, legacy_shape, onnx_with_four_axes, with_four_axes
from .base import Layer, OnnxGraph, Shape, SourceCode, integers
from .lengths import Kept, Length, reshape_onnx
from .registry import register


@register("Flatten")
class Flatten(Layer):
    """The axes from `axis` to `end_axis`, both included, made one."""

    message = "flatten_param"
    fields = ("axis", "end_axis")

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        (bottom,) = bottoms
        self.rank = len(bottom)
        self.start = self.axis(self.param.axis, self.rank)
        self.end = self.axis(self.param.end_axis, self.rank, field="end_axis")
        if self.end < self.start:
            raise self.error(f"end_axis {self.param.end_axis} lies in front of axis {self.param.axis}")
        return [(*bottom[: self.start], prod(bottom[self.start : self.end + 1]), *bottom[self.end + 1 :])]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (bottoms[0].flatten(self.start, self.end),)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        (x,) = bottoms
        if self.start == 1 and self.end == self.rank - 1:
            return [graph.node("Flatten", [x], axis=1)]
        front = [Kept(axis) for axis in range(self.start)]
        return [reshape_onnx(graph, x, [*front, -1, *map(Kept, range(self.end + 1, self.rank))], x)]

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        axes = [self.start] if self.end == self.rank - 1 else [self.start, self.end]
        return [f"{bottoms[0]}.flatten({', '.join(map(str, axes))})"]


@register("Reshape")
class Reshape(Layer):
    """`num_axes` axes from `axis` on replaced by `shape`, where 0 copies a length and -1 is inferred."""

    message = "reshape_param"
    fields = ("shape", "axis", "num_axes")

    def setup(self) -> None:
        self.stated = list(self.param.shape.dim)
        if min(self.stated, default=0) < -1:
            raise self.error(f"shape {self.stated} holds a length below -1")
        if self.stated.count(-1) > 1:
            raise self.error(f"shape {self.stated} leaves several lengths to infer; state all but one")
        if self.param.num_axes < -1:
            raise self.error(f"num_axes {self.param.num_axes} must be at least 0, or -1 for all")

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        (bottom,) = bottoms
        rank = len(bottom)
        # `axis` counts gaps, not axes: -1 is behind the last axis.
        start = self.param.axis if self.param.axis >= 0 else rank + 1 + self.param.axis
        if not 0 <= start <= rank:
            raise self.error(f"axis {self.param.axis} is outside a blob of {rank} axes")
        end = rank if self.param.num_axes == -1 else start + self.param.num_axes
        if end > rank:
            raise self.error(f"axis {start} and num_axes {self.param.num_axes} reach past {rank} axes")
        middle: list[Length] = []
        for offset, length in enumerate(self.stated):
            if length == 0 and start + offset >= rank:
                raise self.error(f"shape {self.stated} copies axis {start + offset} of a blob of {rank} axes")
            middle.append(length or Kept(start + offset))
        self.lengths: list[Length] = [*map(Kept, range(start)), *middle, *map(Kept, range(end, rank))]
        top = [bottom[length.axis] if isinstance(length, Kept) else length for length in self.lengths]
        if -1 in top:
            others = -prod(top)
            if not others or prod(bottom) % others:
                raise self.error(f"bottom {list(bottom)} is no multiple of the stated lengths {top}")
            top[top.index(-1)] = prod(bottom) // others
        if prod(top) != prod(bottom):
            raise self.error(f"bottom {list(bottom)} has {prod(bottom)} values, shape {top} has {prod(top)}")
        return [tuple(top)]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        (x,) = bottoms
        return (x.reshape([x.shape[n.axis] if isinstance(n, Kept) else n for n in self.lengths]),)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        return [reshape_onnx(graph, bottoms[0], self.lengths, bottoms[0])]

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        (x,) = bottoms
        terms = [f"{x}.shape[{n.axis}]" if isinstance(n, Kept) else str(n) for n in self.lengths]
        return [f"{x}.reshape({', '.join(terms) or '()'})"]


@register("Tile")
class Tile(Layer):
    """`tiles` copies of the bottom beside each other along `axis`."""

    message = "tile_param"
    fields = ("axis", "tiles")

    def setup(self) -> None:
        if self.param.tiles < 1:
            raise self.error(f"tiles {self.param.tiles} must be stated and over 0")

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        (bottom,) = bottoms
        axis = self.axis(self.param.axis, len(bottom))
        self.repeats = tuple(self.param.tiles if i == axis else 1 for i in range(len(bottom)))
        return [tuple(length * times for length, times in zip(bottom, self.repeats, strict=True))]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (bottoms[0].repeat(self.repeats),)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        return [graph.node("Tile", [bottoms[0], graph.constant(integers(*self.repeats))])]

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        return [f"{bottoms[0]}.repeat({', '.join(map(str, self.repeats))})"]


@register("Permute")
class Permute(Layer):
    """The axes in the stated order, those not stated behind them (SSD)."""

    message = "permute_param"
    fields = ("order",)

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        (bottom,) = bottoms
        stated = list(self.param.order)
        if len(set(stated)) != len(stated):
            raise self.error(f"order {stated} names an axis twice")
        if max(stated, default=0) >= len(bottom):
            raise self.error(f"order {stated} names an axis that a blob of {len(bottom)} axes has not")
        self.order = (*stated, *(axis for axis in range(len(bottom)) if axis not in stated))
        return [tuple(bottom[axis] for axis in self.order)]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (bottoms[0].permute(self.order),)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        return [graph.node("Transpose", bottoms, perm=self.order)]

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        return [f"{bottoms[0]}.permute({', '.join(map(str, self.order))})"]


@register("ShuffleChannel")
class ShuffleChannel(Layer):
    """Channels dealt out anew: the first of each group, then the second of each, ... (ShuffleNet).

    The top has four axes, as the forks shape it.
    """

    message = "shuffle_channel_param"
    fields = ("group",)

    def top_shapes(self, bottoms: list[Shape]) -> list[Shape]:
        (bottom,) = bottoms
        self.group: int = self.param.group
        if len(bottom) < 2:
            raise self.error(f"bottom {list(bottom)} has no channels; it needs 2 axes or more")
        if len(bottom) > 4:
            raise self.error(f"bottom {list(bottom)} has {len(bottom)} axes; it takes 2 to 4")
        if not self.group or bottom[1] % self.group:
            raise self.error(f"{bottom[1]} channels are no multiple of group {self.group}")
        return [legacy_shape(bottom)]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (with_four_axes(bottoms[0].unflatten(1, (self.group, -1)).transpose(1, 2).flatten(1, 2)),)

    def onnx(self, graph: OnnxGraph, bottoms: list[str]) -> list[str]:
        (x,) = bottoms
        shape = graph.shape(x)
        places = [length for length in shape[2:] if length is not None]
        if len(places) == len(shape) - 2:
            groups = integers(0, self.group, -1, prod(places))
        else:
            groups = integers(0, self.group, graph.size(x, 1) // self.group, -1)
        dealt = graph.node("Reshape", [x, graph.constant(groups)])
        dealt = graph.node("Transpose", [dealt], perm=[0, 2, 1, 3])
        lengths: list[Length] = [0, *(Kept(axis) for axis in range(1, len(shape)))]
        return [onnx_with_four_axes(graph, reshape_onnx(graph, dealt, lengths, x), len(shape))]

    def source(self, code: SourceCode, bottoms: list[str]) -> list[str]:
        tail = four_axes_index(len(code.shape(0)))
        return [f"{bottoms[0]}.unflatten(1, ({self.group}, -1)).transpose(1, 2).flatten(1, 2){tail}"]
