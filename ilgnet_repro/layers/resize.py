"""Resizing of feature maps: the layers called Upsample, and Interp (DeepLab, PSPNet)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers, uses
from .support.labels import indices_onnx, to_indices
from .support.registry import register_layer
from .support.taps import apply_taps, taps_onnx


def max_unpool(x: Tensor, mask: Tensor, height: int, width: int) -> Tensor:
    """Scatter values to the indices in ``mask``; F.max_unpool2d takes only sizes near a multiple of the window."""
    plane = x.new_zeros(*x.shape[:2], height * width)
    return plane.scatter(2, mask.flatten(2).long(), x.flatten(2)).reshape(*x.shape[:2], height, width)


def like_taps(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the taps of Tiny-DSOD's bilinear upsampling; before the first value it extrapolates, as its source does."""
    place = (torch.arange(count) + 1) / torch.tensor(count / size) - 1
    whole = place.trunc()
    low = 1 - (place - whole)
    high = torch.where(whole + 1 > size - 1, 0.0, 1 - low)
    index = torch.stack([whole.clamp(min=0), (whole + 1).clamp(max=size - 1)], 1).long()
    return index, torch.stack([low, high], 1)


def upsample_like(x: Tensor, other: Tensor) -> Tensor:
    """Resize bilinearly to the size of another image by Tiny-DSOD's rule."""
    for axis in (2, 3):
        x = apply_taps(x, axis, like_taps(x.shape[axis], other.shape[axis]))
    return x


uses(upsample_like, apply_taps, like_taps)


@register_layer("Upsample")
class Upsample(Layer):
    """Three forks' layers of one name, distinguished by the bottoms and the text.

    - One bottom: each value repeated `scale` times along rows and columns.  Source: eric612/MobileNet-YOLO,
      upsample_layer.cpp.
    - Two bottoms and `upsample_param`, or a second bottom that is a Pooling layer's mask: zeros, with each value of the
      first bottom at its index in the second.  The size is `upsample_h`×`upsample_w` if stated, or `scale` times the
      bottom's, one less with `pad_out_h/w`.  Source: layer of the SegNet fork (Badrinarayanan et al., 2015).
    - Two bottoms otherwise: the second one, resized bilinearly to the size of the first.  Source: lyxok1/Tiny-DSOD,
      upsample_layer.cpp.
    """

    message = "upsample_param"
    fields = ("scale", "scale_h", "scale_w", "upsample_h", "upsample_w", "pad_out_h", "pad_out_w")
    bottom_count = (1, 2)
    no_float16 = ""

    @classmethod
    def resolve_by_net(cls, text: pb.LayerParameter, net: pb.NetParameter) -> None:
        masks = {layer.top[1] for layer in net.layer if layer.type == "Pooling" and len(layer.top) == 2}
        if len(text.bottom) == 2 and text.bottom[1] in masks:
            text.upsample_param.SetInParent()

    def setup(self, *ranks: int) -> None:
        # What the first bottom is resized by: repetition, a mask, or the size of another blob.
        self.kind = "nearest" if len(ranks) == 1 else self._kind_of_two()
        self.note = {
            "nearest": "",
            "mask": "",
            "like": "Tiny-DSOD's bilinear Upsample to the size of its first bottom, as it has no upsample_param",
        }[self.kind]
        self.factor: int = self.param.scale
        if self.kind == "nearest":
            others = [field.name for field, _ in self.param.ListFields() if field.name != "scale"]
            if others:
                raise self.error(f"{others[0]} needs a second bottom, the mask of a Pooling layer; remove it")
            if self.factor < 1:
                raise self.error(f"scale {self.factor} must be at least 1")
        elif self.kind == "mask":
            self._read_size()

    def _kind_of_two(self) -> str:
        stated: bool = self.node.layer.HasField("upsample_param")
        return "mask" if stated else "like"

    def _read_size(self) -> None:
        states_size = self._states_both("upsample")
        states_scale = self._states_both("scale")
        if states_scale and self.param.HasField("scale"):
            raise self.error("states both scale and scale_h/scale_w; state one kind")
        self.size = (self.param.upsample_h, self.param.upsample_w) if states_size else None
        self.scale = (self.param.scale_h, self.param.scale_w) if states_scale else (self.factor, self.factor)
        self.less = (int(self.param.pad_out_h), int(self.param.pad_out_w))
        for field, values in (("upsample", self.size), ("scale", None if self.size else self.scale)):
            if values and min(values) < 2:
                raise self.error(f"{field} {list(values)} must be at least 2")
        for axis, scale, less in zip("hw", self.scale, self.less, strict=True):
            if less and (self.size or scale != 2):
                raise self.error(f"pad_out_{axis} goes with a scale of 2 only")

    def _states_both(self, field: str) -> bool:
        stated = [self.param.HasField(f"{field}_{axis}") for axis in "hw"]
        if any(stated) and not all(stated):
            raise self.error(f"states only one of {field}_h and {field}_w; state both")
        return all(stated)

    def plan(self, x: Shape, *others: Shape) -> LayerPlan:
        if self.kind == "mask":
            (mask,) = others
            if len(x) != 4 or x != mask:
                raise self.error(f"bottoms {list(x)} and {list(mask)} must be of one shape N×C×H×W")
            return LayerPlan([(*x[:2], *self._size(*x[2:]))])
        if len(x) != 4:
            raise self.error(f"bottom {list(x)} must be N×C×H×W")
        if self.kind == "nearest":
            return LayerPlan([(*x[:2], x[2] * self.factor, x[3] * self.factor)])
        small = others[0]
        if len(small) != 4 or small[:2] != x[:2] or small[2] > x[2] or small[3] > x[3]:
            raise self.error(
                f"bottoms {list(x)} and {list(small)}: without upsample_param the second is resized to the size of the "
                "first, so it must have as many images and channels and be no larger"
            )
        return LayerPlan([x])

    def _size(self, height: int, width: int) -> tuple[int, int]:
        (scale_h, scale_w), (less_h, less_w) = self.scale, self.less
        return self.size or (height * scale_h - less_h, width * scale_w - less_w)

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor]:
        if self.kind == "nearest":
            return (x.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3),)
        if self.kind == "like":
            return (upsample_like(others[0], x),)
        height, width = self._size(x.shape[2], x.shape[3])
        indices = to_indices(self, others[0], height * width, "mask index")
        return (max_unpool(x, indices, height, width),)

    def onnx(self, graph: OnnxGraph, x: str, *others: str) -> list[str]:
        if self.kind == "nearest":
            scales = graph.constant(numbers([1, 1, self.factor, self.factor]))
            return [
                graph.node(
                    "Resize", [x, "", scales], mode="nearest", nearest_mode="floor",
                    coordinate_transformation_mode="asymmetric",
                )
            ]  # fmt: skip
        if self.kind == "like":
            y = others[0]
            taps = [like_taps(graph.size(y, axis), graph.size(x, axis)) for axis in (2, 3)]
            for axis in (0, 1):
                y = taps_onnx(graph, y, 2 + axis, 4, taps[axis])
            return [y]
        height, width = graph.shape(x)[2:]
        if height is not None and width is not None:
            size = graph.constant(integers(*self._size(height, width)))
        elif self.size:
            size = graph.constant(integers(*self.size))
        else:
            sides = graph.node("Shape", [x], start=2)
            scaled = graph.node("Mul", [sides, graph.constant(integers(*self.scale))])
            size = graph.node("Sub", [scaled, graph.constant(integers(*self.less))])
        planes = graph.node("Shape", [x], end=2)
        area = graph.node("ReduceProd", [size], keepdims=1)
        zeros = graph.node("ConstantOfShape", [graph.node("Concat", [planes, area], axis=0)])
        flat = graph.constant(integers(0, 0, -1))
        values = graph.node("Reshape", [x, flat])
        indices = graph.node("Reshape", [indices_onnx(graph, others[0]), flat])
        placed = graph.node("ScatterElements", [zeros, indices, values], axis=2)
        return [graph.node("Reshape", [placed, graph.node("Concat", [planes, size], axis=0)])]

    def source(self, code: SourceCode, x: str, *others: str) -> list[str]:
        if self.kind == "nearest":
            return [f"{x}.repeat_interleave({self.factor}, 2).repeat_interleave({self.factor}, 3)"]
        if self.kind == "like":
            return [f"{code.helper(upsample_like)}({others[0]}, {x})"]
        size = [
            f"{x}.shape[{axis}] * {scale}{' - 1' if less else ''}"
            for axis, scale, less in zip((2, 3), self.scale, self.less, strict=True)
        ]
        height, width = self.size or size
        return [f"{code.helper(max_unpool)}({x}, {others[0]}, {height}, {width})"]


def interp_by(x: Tensor, shrink: int, zoom: int) -> Tensor:
    """Resize with aligned corners; the factors apply to the number of gaps between pixels."""
    size = [(length - 1) // shrink * zoom + 1 for length in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


@register_layer("Interp")
class Interp(Layer):
    """Bilinear resizing with aligned corners, after cropping -`pad_beg` and -`pad_end` pixels off the sides.

    The size is that of a second bottom (in some forks with `use_blob_size`), or (n − 1) / `shrink_factor` (rounded
    down) · `zoom_factor` + 1 of each side n, or `height`×`width`.  A size beside one factor is not read, nor are both
    factors beside a size.  Source: layer of the DeepLab and PSPNet forks.
    """

    message = "interp_param"
    fields = ("height", "width", "zoom_factor", "shrink_factor", "pad_beg", "pad_end", "use_blob_size")
    bottom_count = (1, 2)

    def setup(self, x: int, *like: int) -> None:
        factors = [self.param.HasField(field) for field in ("zoom_factor", "shrink_factor")]
        by_size = [self.param.HasField(field) for field in ("height", "width")]
        if self.param.use_blob_size and not like:
            raise self.error("use_blob_size needs a second bottom, whose size is taken")
        if any(by_size) and not all(by_size):
            raise self.error("states only one of height and width; state both")
        if not self.param.use_blob_size and (any(factors) or all(by_size)) + len(like) != 1:
            raise self.error("needs either height and width, or factors, or a second bottom")
        # With one factor Caffe's forks ignore the size, with both they ignore the factors.
        takes_size = all(by_size) and sum(factors) != 1 and not like
        for field in ("zoom_factor", "shrink_factor", *(("height", "width") if takes_size else ())):
            if getattr(self.param, field) < 1:
                raise self.error(f"{field} {getattr(self.param, field)} must be at least 1")
        for field in ("pad_beg", "pad_end"):
            if getattr(self.param, field) > 0:
                raise self.error(f"{field} {getattr(self.param, field)} is over 0; it can only crop")
        self.size = (self.param.height, self.param.width) if takes_size else None
        self.shrink: int = self.param.shrink_factor
        self.zoom: int = self.param.zoom_factor
        self.crop: tuple[int, int] = (-self.param.pad_beg, -self.param.pad_end)

    def plan(self, x: Shape, *like: Shape) -> LayerPlan:
        for shape in (x, *like):
            if len(shape) != 4:
                raise self.error(f"bottom {list(shape)} is not of shape N×C×H×W")
        if min(x[2:]) <= sum(self.crop):
            raise self.error(f"bottom {list(x)} is empty after cropping {sum(self.crop)} per axis")
        size = like[0][2:] if like else self.size or tuple(map(self._by_factor, x[2:]))
        return LayerPlan([(*x[:2], *size)])

    def _by_factor(self, length: int) -> int:
        return (length - sum(self.crop) - 1) // self.shrink * self.zoom + 1

    def forward(self, x: Tensor, *like: Tensor) -> tuple[Tensor]:
        first, last = self.crop
        if any(self.crop):
            x = x[:, :, first : x.shape[2] - last, first : x.shape[3] - last]
        if not like and not self.size:
            return (interp_by(x, self.shrink, self.zoom),)
        size = like[0].shape[2:] if like else self.size
        return (F.interpolate(x, size=size, mode="bilinear", align_corners=True),)

    def onnx(self, graph: OnnxGraph, x: str, *like: str) -> list[str]:
        first, last = self.crop
        height, width = graph.shape((x, *like)[-1])[2:]
        if any(self.crop):
            ends = integers(*[-last or 2**63 - 1] * 2)
            cuts = (integers(first, first), ends, integers(2, 3))
            x = graph.node("Slice", [x, *map(graph.constant, cuts)])
        if self.size:
            size = graph.constant(integers(*self.size))
        elif height is not None and width is not None:
            sides = (height, width) if like else (self._by_factor(height), self._by_factor(width))
            size = graph.constant(integers(*sides))
        elif like:
            size = graph.node("Shape", like, start=2)
        else:
            size = graph.node("Shape", [x], start=2)
            for op, value in (("Sub", 1), ("Div", self.shrink), ("Mul", self.zoom), ("Add", 1)):
                size = graph.node(op, [size, graph.constant(integers(value))])
        return [
            graph.node(
                "Resize", [x, "", "", size], mode="linear", axes=[2, 3],
                coordinate_transformation_mode="align_corners",
            )
        ]  # fmt: skip

    def source(self, code: SourceCode, x: str, *like: str) -> list[str]:
        first, last = self.crop
        if any(self.crop):
            kept = f"{first or ''}:{-last or ''}"
            x = f"{x}[:, :, {kept}, {kept}]"
        if not like and not self.size:
            return [f"{code.helper(interp_by)}({x}, shrink={self.shrink}, zoom={self.zoom})"]
        size = f"{like[0]}.shape[2:]" if like else str(self.size)
        return [f'F.interpolate({x}, size={size}, mode="bilinear", align_corners=True)']
