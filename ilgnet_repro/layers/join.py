"""Concat, Slice and Split: joining and dividing blobs along an axis, and copies of one."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .support.base import ANY_LAYOUT, Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers
from .support.registry import register_layer

# An end past any axis, which ONNX clips as NumPy does.
_TO_THE_END = 2**63 - 1


class _AlongAxis(Layer):
    """Shared by Concat and Slice: `axis`, or the older field, which cannot be negative."""

    older = ""

    def setup(self, rank: int, *others: int) -> None:
        field = self.older if self.param.HasField(self.older) else "axis"
        if field == self.older and self.param.HasField("axis"):
            raise self.error(f"states both axis and {self.older}; state one of them")
        self.dim = self.axis(getattr(self.param, field), rank, field=field)


@register_layer("Concat")
class Concat(_AlongAxis):
    """The bottoms concatenated along `axis` (in old nets `concat_dim`)."""

    message = "concat_param"
    fields = ("axis", "concat_dim")
    older = "concat_dim"
    layout = ANY_LAYOUT
    bottom_count = (1, None)
    no_float16 = ""

    def plan(self, *bottoms: Shape) -> LayerPlan:
        first = bottoms[0]
        rest = [(shape[: self.dim], shape[self.dim + 1 :]) for shape in bottoms]
        for shape, others in zip(bottoms, rest, strict=True):
            if len(shape) != len(first) or others != rest[0]:
                raise self.error(f"bottoms {list(first)} and {list(shape)} differ outside axis {self.dim}")
        total = sum(shape[self.dim] for shape in bottoms)
        return LayerPlan([(*first[: self.dim], total, *first[self.dim + 1 :])])

    def can_be_in_place(self) -> bool:
        return len(self.node.bottoms) == 1  # then it does nothing

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return (torch.cat(bottoms, dim=self.dim),)

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        return [graph.node("Concat", bottoms, axis=self.dim)]

    def source(self, code: SourceCode, *bottoms: str) -> list[str]:
        return [f"torch.cat([{', '.join(bottoms)}], dim={self.dim})"]


@register_layer("Slice")
class Slice(_AlongAxis):
    """The bottom divided along `axis` (in old nets `slice_dim`) at the stated points, or evenly."""

    message = "slice_param"
    fields = ("axis", "slice_dim", "slice_point")
    older = "slice_dim"
    top_count = (1, None)
    no_float16 = ""

    def setup(self, rank: int, *others: int) -> None:
        super().setup(rank)
        self.points = tuple(self.param.slice_point)
        tops = len(self.node.tops)
        if self.points and len(self.points) != tops - 1:
            raise self.error(f"has {len(self.points)} slice_points for {tops} tops; state {tops - 1}")

    def _lengths(self, length: int) -> list[int]:
        """Return the tops' lengths along the axis."""
        tops = len(self.node.tops)
        if self.points:
            if any(a >= b for a, b in pairwise((0, *self.points))) or self.points[-1] > length:
                raise self.error(f"slice_points {list(self.points)} must increase from 1 to {length} at most")
        elif length % tops:
            raise self.error(f"axis {self.dim} of length {length} cannot be divided evenly into {tops} tops")
        ends = self.points or tuple(length // tops * part for part in range(1, tops))
        return [b - a for a, b in pairwise((0, *ends, length))]

    def plan(self, x: Shape) -> LayerPlan:
        parts = self._lengths(x[self.dim])
        return LayerPlan([(*x[: self.dim], part, *x[self.dim + 1 :]) for part in parts])

    def can_be_in_place(self) -> bool:
        return len(self.node.tops) == 1  # then it does nothing

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.points:
            return tuple(x.tensor_split(self.points, dim=self.dim))
        return tuple(x.chunk(len(self.node.tops), dim=self.dim))

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        tops = len(self.node.tops)
        if tops == 1:
            return [x]
        if not self.points:
            return graph.nodes("Split", [x], tops, axis=self.dim, num_outputs=tops)
        length = graph.shape(x)[self.dim]
        if length is not None:
            parts = graph.constant(integers(*self._lengths(length)))
            return graph.nodes("Split", [x, parts], tops, axis=self.dim)
        # The last part has the rest of the axis, whatever its length.
        axes = graph.constant(integers(self.dim))
        cuts = [graph.constant(integers(point)) for point in (0, *self.points, _TO_THE_END)]
        return [graph.node("Slice", [x, start, end, axes]) for start, end in pairwise(cuts)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        if len(self.node.tops) == 1:
            return [x]
        if self.points:
            edges: list[int | None] = [0, *self.points, None]
            before = ":, " * self.dim
            return [
                f"{x}[{before}{start or ''}:{'' if end is None else end}]" for start, end in pairwise(edges)
            ]
        return [f"{x}.chunk({len(self.node.tops)}, dim={self.dim})"]


@register_layer("Split")
class Split(Layer):
    """Copies of the bottom; its gradient is the sum of theirs."""

    layout = ANY_LAYOUT
    top_count = (1, None)
    no_float16 = ""

    def plan(self, x: Shape) -> LayerPlan:
        return LayerPlan([x] * len(self.node.tops))

    def is_identity(self) -> bool:
        return True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,) * len(self.node.tops)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        return [x] * len(self.node.tops)

    def source(self, code: SourceCode, x: str) -> list[str]:
        return [x] * len(self.node.tops)
