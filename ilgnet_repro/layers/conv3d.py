"""Convolutions of video: Convolution3D and Deconvolution3D (C3D), NdConvolution."""

from __future__ import annotations

from torch import Tensor

from .conv import ConvolutionBase
from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode, integers
from .support.registry import register_layer
from .support.shapes import shape_field


class _C3D(ConvolutionBase):
    """N×C×T×H×W with one kernel, stride and pad for rows and columns and another for time; the bias has five axes.

    V1 text has these fields in `convolution_param`; its upgrade moves them.
    """

    message = "convolution3d_param"
    fields = (
        *("num_output", "bias_term", "weight_filler", "bias_filler", "filter_group"),
        *("kernel_size", "kernel_depth", "stride", "temporal_stride", "pad", "temporal_pad"),
    )
    ignored_fields = ("engine",)
    bottom_count = top_count = (1, 1)

    def _read_group(self) -> int:
        return 1

    def _read_axis(self, rank: int) -> int:
        if rank != 5:
            raise self.error(f"its bottom has {rank} axes; it takes 5 (N, C, time, H, W)")
        return 1

    def _read_window(self, count: int) -> tuple[tuple[int, ...], ...]:
        for field in ("kernel_size", "kernel_depth"):
            if not getattr(self.param, field):
                raise self.error(f"{field} is missing; state it in {self.message}")
        kernel, stride, pad = (
            (getattr(self.param, time), *(getattr(self.param, side),) * 2)
            for time, side in (
                ("kernel_depth", "kernel_size"),
                ("temporal_stride", "stride"),
                ("temporal_pad", "pad"),
            )
        )
        return kernel, stride, pad, (1, 1, 1)

    def bias_shape(self, outputs: int) -> Shape:
        return (1, 1, 1, 1, outputs)

    def _bias(self) -> Tensor:
        return self.blob("bias").flatten()

    def _bias_onnx(self, graph: OnnxGraph) -> str:
        return graph.node("Reshape", [graph.parameter("bias"), graph.constant(integers(-1))])


@register_layer("Convolution3D")
class Convolution3D(_C3D):
    """Cross-correlation over time, rows and columns; weights num_output × channels × kernel_depth × kernel².

    `filter_group` splits the filters to save memory, not the input channels.  Source: facebookarchive/C3D,
    convolution3d_layer.cpp.
    """

    def _check_outputs(self) -> None:
        super()._check_outputs()
        parts: int = self.param.filter_group
        if not parts or self.outputs % parts:
            raise self.error(f"num_output {self.outputs} is not a multiple of filter_group {parts}")


@register_layer("Deconvolution3D")
class Deconvolution3D(_C3D):
    """The transpose of a Convolution3D; weights channels × num_output × kernel_depth × kernel².

    `bias_term` is that of `convolution_param`, as in the source: facebookarchive/C3D, deconvolution3d_layer.cpp.
    """

    transposed = True
    other_messages = ("convolution_param",)

    def _reads_bias(self) -> bool:
        return self.node.layer.convolution_param.bias_term


@register_layer("NdConvolution")
class NdConvolution(ConvolutionBase):
    """A Convolution whose kernel, stride and pad are shapes with one length per spatial axis (yjxiong's action nets).

    The top lacks the spatial axes whose length is 1.  Source: cudnn_ndconv_layer.cpp of yjxiong's fork.
    """

    fields = (
        *("num_output", "bias_term", "group", "weight_filler", "bias_filler"),
        *("kernel_shape", "stride_shape", "pad_shape"),
    )

    def _read_axis(self, rank: int) -> int:
        return 1

    def _read_window(self, count: int) -> tuple[tuple[int, ...], ...]:
        kernel = shape_field(self, "kernel_shape", count, None, least=1)
        stride = shape_field(self, "stride_shape", count, 1, least=1)
        return kernel, stride, shape_field(self, "pad_shape", count, 0), (1,) * count

    def plan(self, *bottoms: Shape) -> LayerPlan:
        if any(bottom != bottoms[0] for bottom in bottoms):
            raise self.error(f"bottoms {[list(bottom) for bottom in bottoms]} differ in shape")
        plan = super().plan(*bottoms)
        tops = [(*top[:2], *(length for length in top[2:] if length != 1)) for top in plan.tops]
        return LayerPlan(tops, plan.blobs, plan.multiply_adds)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return tuple(top.squeeze(self._ones(bottoms[0].shape)) for top in super().forward(*bottoms))

    def _ones(self, bottom: Shape) -> tuple[int, ...]:
        """Return the axes of the convolution's result that the top lacks."""
        return tuple(axis for axis, length in enumerate(self._extents(bottom), 2) if length == 1)

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        spatial = [graph.size(bottoms[0], axis) for axis in range(2, 2 + len(self.kernel))]
        ones = self._ones((1, 1, *spatial))
        tops = super().onnx(graph, *bottoms)
        return (
            [graph.node("Squeeze", [top, graph.constant(integers(*ones))]) for top in tops] if ones else tops
        )

    def source(self, code: SourceCode, *bottoms: str) -> list[str]:
        ones = self._ones(code.shape(0))
        return [f"{top}.squeeze({ones})" if ones else top for top in super().source(code, *bottoms)]
