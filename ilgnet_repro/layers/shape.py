"""Layers that change the shape or order of values: Flatten, Reshape, Tile, Permute, Transpose, ShuffleChannel."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers
from .support.registry import register_layer
from .support.shapes import (
    Kept,
    Length,
    four_axes_index,
    legacy_shape,
    onnx_with_four_axes,
    reshape_onnx,
    with_four_axes,
)


@register_layer("Flatten")
class Flatten(Layer):
    """The axes from `axis` to `end_axis`, both included, flattened into one.

    Where `end_axis` is the one before `axis` there is nothing to flatten, and Caffe inserts an axis of length 1.
    """

    message = "flatten_param"
    fields = ("axis", "end_axis")
    no_float16 = ""

    def setup(self, rank: int) -> None:
        self.rank = rank
        self.start = self.axis(self.param.axis, rank)
        self.end = self.axis(self.param.end_axis, rank, field="end_axis")
        self.inserts = self.end == self.start - 1
        if self.end < self.start - 1:
            raise self.error(f"end_axis {self.param.end_axis} is before axis {self.param.axis}")

    def plan(self, x: Shape) -> LayerPlan:
        return LayerPlan([(*x[: self.start], prod(x[self.start : self.end + 1]), *x[self.end + 1 :])])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.unsqueeze(self.start) if self.inserts else x.flatten(self.start, self.end),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        if self.inserts:
            return [graph.node("Unsqueeze", [x, graph.constant(integers(self.start))])]
        if self.start == 1 and self.end == self.rank - 1:
            return [graph.node("Flatten", [x], axis=1)]
        front = [Kept(axis) for axis in range(self.start)]
        return [reshape_onnx(graph, x, [*front, -1, *map(Kept, range(self.end + 1, self.rank))], x)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        if self.inserts:
            return [f"{x}.unsqueeze({self.start})"]
        axes = [self.start] if self.end == self.rank - 1 else [self.start, self.end]
        return [f"{x}.flatten({', '.join(map(str, axes))})"]


@register_layer("Reshape")
class Reshape(Layer):
    """`num_axes` axes from `axis` on replaced by `shape`, where 0 copies a length and -1 is inferred."""

    message = "reshape_param"
    fields = ("shape", "axis", "num_axes")
    no_float16 = ""

    def setup(self, rank: int) -> None:
        stated = list(self.param.shape.dim)
        if min(stated, default=0) < -1:
            raise self.error(f"shape {stated} holds a length below -1")
        if stated.count(-1) > 1:
            raise self.error(f"shape {stated} has several lengths to infer; state all but one")
        if self.param.num_axes < -1:
            raise self.error(f"num_axes {self.param.num_axes} must be at least 0, or -1 for all")
        # `axis` is a position between axes: -1 is after the last axis.
        start = self.param.axis if self.param.axis >= 0 else rank + 1 + self.param.axis
        if not 0 <= start <= rank:
            raise self.error(f"axis {self.param.axis} is outside a blob of {rank} axes")
        end = rank if self.param.num_axes == -1 else start + self.param.num_axes
        if end > rank:
            raise self.error(f"axis {start} and num_axes {self.param.num_axes} exceed {rank} axes")
        middle: list[Length] = []
        for axis, length in enumerate(stated, start):
            if length == 0 and axis >= rank:
                raise self.error(f"shape {stated} copies axis {axis} of a blob of {rank} axes")
            middle.append(length or Kept(axis))
        self.lengths: list[Length] = [*map(Kept, range(start)), *middle, *map(Kept, range(end, rank))]

    def _lengths(self, x: Shape) -> list[int]:
        """Return the top's lengths, where -1 is still to be inferred."""
        return [x[length.axis] if isinstance(length, Kept) else length for length in self.lengths]

    def plan(self, x: Shape) -> LayerPlan:
        top = self._lengths(x)
        if -1 in top:
            # Copied lengths cancel out, so that an empty batch has a length to infer.
            copied = {length.axis for length in self.lengths if isinstance(length, Kept)}
            others = -prod(length for length in self.lengths if not isinstance(length, Kept))
            values = prod(length for axis, length in enumerate(x) if axis not in copied)
            if not others or values % others:
                raise self.error(f"bottom {list(x)} is not a multiple of the stated lengths {top}")
            top[top.index(-1)] = values // others
        if prod(top) != prod(x):
            raise self.error(f"bottom {list(x)} has {prod(x)} values, shape {top} has {prod(top)}")
        return LayerPlan([tuple(top)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if not torch.compiler.is_compiling() and not x.numel():  # torch infers no length of an empty batch
            return (x.reshape(*self.plan(tuple(x.shape)).tops),)
        return (x.reshape(self._lengths(x.shape)),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [reshape_onnx(graph, x, self.lengths, x)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        terms = [f"{x}.shape[{n.axis}]" if isinstance(n, Kept) else str(n) for n in self.lengths]
        return [f"{x}.reshape({', '.join(terms) or '()'})"]


@register_layer("Tile")
class Tile(Layer):
    """`tiles` copies of the bottom, concatenated along `axis`."""

    message = "tile_param"
    fields = ("axis", "tiles")

    def setup(self, rank: int) -> None:
        if self.param.tiles < 1:
            raise self.error(f"tiles {self.param.tiles} must be stated and over 0")
        axis = self.axis(self.param.axis, rank)
        self.repeats = tuple(self.param.tiles if i == axis else 1 for i in range(rank))

    def plan(self, x: Shape) -> LayerPlan:
        return LayerPlan([tuple(length * times for length, times in zip(x, self.repeats, strict=True))])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.repeat(self.repeats),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Tile", [x, graph.constant(integers(*self.repeats))])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{x}.repeat({', '.join(map(str, self.repeats))})"]


@register_layer("Permute")
class Permute(Layer):
    """The axes in the stated order, followed by those not stated (SSD)."""

    message = "permute_param"
    fields = ("order",)
    no_float16 = ""

    def setup(self, rank: int) -> None:
        stated = list(self.param.order)
        if len(set(stated)) != len(stated):
            raise self.error(f"order {stated} names an axis twice")
        if max(stated, default=0) >= rank:
            raise self.error(f"order {stated} names an axis that a blob of {rank} axes does not have")
        self.order = (*stated, *(axis for axis in range(rank) if axis not in stated))

    def plan(self, x: Shape) -> LayerPlan:
        return LayerPlan([tuple(x[axis] for axis in self.order)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.permute(self.order),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [graph.node("Transpose", [x], perm=self.order)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [f"{x}.permute({', '.join(map(str, self.order))})"]


@register_layer("Transpose")
class Transpose(Permute):
    """The axes in the order of `dim`, which lists all of them.

    Source: caffe_ocr and CTPN, src/caffe/layers/transpose_layer.cpp.
    """

    message = "transpose_param"
    fields = ("dim",)

    def setup(self, rank: int) -> None:
        order = tuple(self.param.dim)
        if sorted(order) != list(range(rank)):
            raise self.error(f"dim {list(order)} must list each axis of a blob of {rank} axes once")
        self.order = order


@register_layer("ShuffleChannel")
class ShuffleChannel(Layer):
    """Channels interleaved: the first of each group, then the second of each, ... (ShuffleNet).

    The top has four axes, as in the forks.
    """

    message = "shuffle_channel_param"
    fields = ("group",)
    no_float16 = ""

    def setup(self, rank: int) -> None:
        self.rank = rank
        self.group: int = self.param.group

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) < 2:
            raise self.error(f"bottom {list(x)} has no channels; it needs 2 axes or more")
        if len(x) > 4:
            raise self.error(f"bottom {list(x)} has {len(x)} axes; it takes 2 to 4")
        if not self.group or x[1] % self.group:
            raise self.error(f"{x[1]} channels are not a multiple of group {self.group}")
        return LayerPlan([legacy_shape(x)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        grouped = x.reshape(x.shape[0], self.group, x.shape[1] // self.group, *x.shape[2:])
        return (with_four_axes(grouped.transpose(1, 2).flatten(1, 2)),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        places = [length for length in graph.shape(x)[2:] if length is not None]
        if len(places) == self.rank - 2:
            groups = integers(0, self.group, -1, prod(places))
        else:
            groups = integers(0, self.group, graph.size(x, 1) // self.group, -1)
        shuffled = graph.node("Reshape", [x, graph.constant(groups)])
        shuffled = graph.node("Transpose", [shuffled], perm=[0, 2, 1, 3])
        lengths: list[Length] = [0, *(Kept(axis) for axis in range(1, self.rank))]
        return [onnx_with_four_axes(graph, reshape_onnx(graph, shuffled, lengths, x), self.rank)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        tail = four_axes_index(self.rank)
        return [f"{x}.unflatten(1, ({self.group}, -1)).transpose(1, 2).flatten(1, 2){tail}"]
