"""HoleConvolution: the dilated convolution of PSPNet's first Caffe."""

from __future__ import annotations

from .conv import Convolution
from .support.base import LayerPlan, Shape
from .support.registry import register_layer


@register_layer("HoleConvolution")
class HoleConvolution(Convolution):
    """A Convolution whose dilation is `hole`, or `hole_h` and `hole_w`; one of them is stated.

    Source: hszhao/PSPNet 88d0b3ee, src/caffe/layers/hole_conv_layer.cpp.
    """

    fields = tuple(field for field in Convolution.fields if field not in ("axis", "dilation"))

    def setup(self, rank: int, *others: int) -> None:
        if any(axes != 4 for axes in (rank, *others)):
            raise self.error(f"its bottoms have {[rank, *others]} axes; it takes 4 (N, C, H, W)")
        for field in ("hole", "pad", "stride", "kernel_size"):
            short = field.removesuffix("_size")
            sides = [side for side in (f"{short}_h", f"{short}_w") if self.param.HasField(side)]
            whole = self.param.hole if field == "hole" else getattr(self.param, field)
            is_stated = self.param.HasField("hole") if field == "hole" else bool(whole)
            if sides and (is_stated or len(sides) < 2):
                raise self.error(
                    f"states {' and '.join([field] * is_stated + sides)}; state {field}, or both {short}_h and {short}_w"
                )
            if field == "hole" and not (sides or is_stated):
                raise self.error("states no hole; state it, or make it a Convolution")
            if field != "hole" and len(whole) > 1:
                raise self.error(f"{field} is stated {len(whole)} times; state it once")
        super().setup(rank, *others)

    def _dilation(self, count: int) -> tuple[int, ...]:
        hole = self.param.hole
        return (self.param.hole_h, self.param.hole_w) if self.param.HasField("hole_h") else (hole, hole)

    def plan(self, *bottoms: Shape) -> LayerPlan:
        for bottom in bottoms[1:]:
            if bottom != bottoms[0]:
                raise self.error(
                    f"bottoms {list(bottoms[0])} and {list(bottom)} differ; they must have one shape"
                )
        return super().plan(*bottoms)
