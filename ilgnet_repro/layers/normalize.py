"""Normalize, a type name that three forks use for different normalisations to length 1."""

from __future__ import annotations

from math import prod

from torch import Tensor

from ..schema import caffe_pb2 as pb
from .norm import along_channels, constant_filler
from .support.base import (
    BlobSpec,
    Layer,
    LayerPlan,
    OnnxGraph,
    Shape,
    SourceCode,
    integers,
    literal,
    numbers,
    uses,
)
from .support.registry import register_layer
from .support.shapes import four_axes_index, legacy_shape, onnx_with_four_axes, with_four_axes

# ---------------------------------------------------------------------- torch, also for written source


def l2_normalize(x: Tensor, axes: list[int], eps: float) -> Tensor:
    """Return x over its Euclidean length along ``axes``; SSD adds eps under the root."""
    return x / (x.square().sum(axes, keepdim=True) + eps).sqrt()


def l2_normalize_channels(x: Tensor, scale: Tensor, axes: list[int], eps: float) -> Tensor:
    """Return x over its Euclidean length, times one scale per channel.

    Caffe's gradient has the channel's scale outside the sum over channels, where the exact one has it inside:
    scale · (dy - x sum(x dy) / n²) / n.
    """
    scaled = x.detach() + scale.detach() * (x - x.detach())
    unit = l2_normalize(scaled, axes, eps)
    return unit.detach() * scale + (unit - unit.detach())


def length_over(x: Tensor, axes: list[int], eps: float, first_power: bool) -> Tensor:
    """Return the sum of absolute values plus eps, or the root of the sum of squares plus eps."""
    if first_power:
        return x.abs().sum(axes, keepdim=True) + eps
    return (x.square().sum(axes, keepdim=True) + eps).sqrt()


uses(l2_normalize_channels, l2_normalize)

# ---------------------------------------------------------------------- the layer

FORK = "normalize_param"
EACH_POSITION, WHOLE_ITEM, SCALED = "each position", "whole item", "scaled"
NOTES = {
    EACH_POSITION: "Normalize of happynear's Caffe: x over its length at each position, no blob",
    WHOLE_ITEM: "Normalize of yjxiong's Caffe, or an older one of happynear's: x over the length of the whole item, no blob",
    SCALED: "Normalize of SSD's Caffe: with a learned scale",
}


@register_layer("Normalize")
class Normalize(Layer):
    """Normalise each position or each item to length 1, as the fork does that the text shows.

    - SSD: ``norm_param``, or a blob in the weights file: a learned scale, by channel or one for all; the top is
      shaped like the bottom.
    - happynear: ``normalize_param`` or a second top: the length over the channels of each position, with
      1e-6 under the root or, with ``normalize_type: "L1"``, added to the sum.  The second top is the length; it
      passes a gradient to the bottom with ``bp_norm``.  No blob.
    - yjxiong, and happynear's before it had fields (source: happynear/caffe-windows 0112142c,
      src/caffe/layers/normalize_layer.cpp): no field at all; the length of the whole item, without an eps.  No blob.

    The tops of the last two have four axes.  Where the text shows none of them and the file holds no blob, the
    last two agree on bottoms of one position; for others ``normalize_param { across_spatial: false }`` selects
    happynear's and ``true`` yjxiong's.
    """

    scale: Tensor

    message = "norm_param"
    fields = ("across_spatial", "scale_filler", "channel_shared", "eps")
    # `fix_gradient` is read by the fork and changes nothing.
    # NormFace states `softmax_param.normalize_type` too, a field of its Caffe's Softmax that this layer does not read.
    fork_fields = (
        FORK,
        "softmax_param.normalize_type",
        *(f"{FORK}.{name}" for name in ("normalize_type", "bp_norm", "fix_gradient", "across_spatial")),
    )
    top_count = (1, 2)
    no_float16 = "sums of squares"

    @classmethod
    def resolve_kind(cls, text: pb.LayerParameter, blobs: int) -> None:
        if blobs == 1 and not _shows_fork(text):
            text.norm_param.SetInParent()

    def setup(self, rank: int) -> None:
        self.rank = rank
        shows_ssd = self.node.layer.HasField("norm_param")
        shows_fork = _shows_fork(self.node.layer)
        if shows_ssd and shows_fork:
            raise self.error(
                "shows both SSD's layer (norm_param) and happynear's (normalize_param or a second top); keep one"
            )
        self.kind = SCALED if shows_ssd else EACH_POSITION
        self.first_power = self._choice("normalize_type", "L2", ("L1", "L2")) == "L1"
        self.passes_norm = self._choice("bp_norm", "false", ("true", "false")) == "true"
        if self._choice("across_spatial", "false", ("true", "false")) == "true":
            if self.first_power or len(self.node.tops) == 2:
                raise self.error(f"{FORK}.across_spatial: true goes with one top and normalize_type L2")
            self.kind = WHOLE_ITEM
        self.is_known = shows_ssd or shows_fork
        whole = self.kind == WHOLE_ITEM or (self.kind == SCALED and self.param.across_spatial)
        self.axes = list(range(1, rank)) if whole else [1]
        self.eps: float = {SCALED: self.param.eps, EACH_POSITION: 1e-6, WHOLE_ITEM: 0.0}[self.kind]
        self.note = NOTES[self.kind]

    def _choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = (self.fork_field(f"{FORK}.{name}") or default).strip("\"'")
        if value not in choices:
            raise self.error(f"{FORK}.{name} {value!r} must be {' or '.join(choices)}")
        return value

    # ------------------------------------------------------------------ shapes

    def plan(self, x: Shape) -> LayerPlan:
        if not 2 <= len(x) <= 4:
            raise self.error(f"bottom {list(x)} has {len(x)} axes; it takes 2 to 4")
        if self.kind == SCALED:
            stated = self.param.HasField("scale_filler")
            filler = self.param.scale_filler if stated else constant_filler(1.0)
            return LayerPlan([x], [BlobSpec("scale", () if self.param.channel_shared else x[1:2], filler)])
        if not self.is_known and prod(x[2:]) != 1:
            raise self.error(
                "two forks have layers of this name without fields and blobs, which differ on a bottom of "
                f"{'x'.join(map(str, x))}; state {FORK} {{ across_spatial: false }} for the length at each position "
                "(happynear) or true for that of the whole item (yjxiong); a scale in the weights file would show SSD's"
            )
        top = legacy_shape(x)
        return LayerPlan([top, (top[0], 1, *top[2:])][: len(self.node.tops)])

    def _shaped_scale(self) -> Tensor:
        return self.scale if self.param.channel_shared else along_channels(self.scale, self.rank)

    # ------------------------------------------------------------------ forward, ONNX and source

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.kind == SCALED:
            if self.param.channel_shared:
                return (l2_normalize(x, self.axes, self.eps) * self.scale,)
            return (l2_normalize_channels(x, self._shaped_scale(), self.axes, self.eps),)
        length = length_over(x, self.axes, self.eps, self.first_power)
        norm = length if self.passes_norm else length.detach()
        return tuple(map(with_four_axes, (x / length, norm)[: len(self.node.tops)]))

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        axes = graph.constant(integers(*self.axes))
        eps = graph.constant(numbers([self.eps]).reshape(()))
        total = graph.node("ReduceL1" if self.first_power else "ReduceSumSquare", [x, axes])
        length = graph.node("Add", [total, eps])
        if not self.first_power:
            length = graph.node("Sqrt", [length])
        top = graph.node("Div", [x, length])
        if self.kind == SCALED:
            return [graph.node("Mul", [top, graph.constant(numbers(self._shaped_scale()))])]
        tops = [top, length][: len(self.node.tops)]
        return [onnx_with_four_axes(graph, value, self.rank) for value in tops]

    def source(self, code: SourceCode, x: str) -> list[str]:
        if self.kind == SCALED:
            scale = code.parameter("scale", self._shaped_scale())
            if not self.param.channel_shared:
                call = code.helper(l2_normalize_channels)
                return [f"{call}({x}, {scale}, {self.axes}, {literal(self.eps)})"]
            return [f"{code.helper(l2_normalize)}({x}, {self.axes}, {literal(self.eps)}) * {scale}"]
        length = f"{code.helper(length_over)}({x}, {self.axes}, {literal(self.eps)}, {self.first_power})"
        norm = length if self.passes_norm else f"{length}.detach()"
        tail = four_axes_index(self.rank)
        return [f"({x} / {length}){tail}", f"{norm}{tail}"][: len(self.node.tops)]


def _shows_fork(text: pb.LayerParameter) -> bool:
    """Whether the text shows happynear's layer (or, by ``across_spatial``, states which fork's it is)."""
    return len(text.top) == 2 or any(field.path.split(".")[0] == FORK for field in text.fork_field)
