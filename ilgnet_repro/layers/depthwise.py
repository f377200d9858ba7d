"""Convolutions that filter each channel by itself: DepthwiseConvolution and ConvolutionDepthwise (MobileNet)."""

from __future__ import annotations

from .conv import ConvolutionBase
from .support.registry import register_layer


@register_layer("DepthwiseConvolution")
class DepthwiseConvolution(ConvolutionBase):
    """A Convolution with its own `group`, or with one group per channel where `group` is 1 or absent.

    Weights are num_output × channels/group × kernel.  Source: yonghenglh6/DepthwiseConvolution,
    depthwise_conv_layer.cpp, which is a plain Convolution on the CPU; other forks' texts leave `group` out.
    """

    is_depthwise = True
    no_float16 = ""

    def groups(self, channels: int) -> int:
        if self.group > 1:
            return super().groups(channels)
        if self.outputs % channels:
            raise self.error(f"num_output {self.outputs} is not a multiple of its {channels} input channels")
        return channels


@register_layer("ConvolutionDepthwise")
class ConvolutionDepthwise(ConvolutionBase):
    """One filter per channel, whatever `num_output` and `group` say; weights are channels × 1 × kernel.

    Source: farmingyard/caffe-mobilenet, conv_dw_layer.cpp.
    """

    is_depthwise = True
    bottom_count = top_count = (1, 1)
    no_float16 = ""

    def _check_outputs(self) -> None:
        pass

    def outputs_for(self, channels: int) -> int:
        return channels

    def groups(self, channels: int) -> int:
        return channels
