"""Convolution, Deconvolution and Im2col, over one to three spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.jit._trace import is_tracing

from .support.base import (
    CHANNELS_LAST,
    Attribute,
    BlobSpec,
    Layer,
    LayerPlan,
    OnnxGraph,
    Shape,
    SourceCode,
    integers,
)
from .support.registry import register_layer
from .support.shapes import Kept, reshape_onnx

# Without spatial axes: over an axis of length 1.
_CONV = {0: F.conv1d, 1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {0: F.conv_transpose1d, 1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


_MULTIPLY: Callable[..., Tensor] = torch.ops.aten.thnn_conv2d.default
FEWEST_CHANNELS = 32  # of a bottom whose windows are copied from channels-last order
SMALL = 1 << 21  # multiply-adds of an image, up to which a matrix product is faster


def gemm_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """F.conv2d by im2col and matrix product, as Caffe computes it.

    oneDNN's own kernels add a sum's products one after the other; a matrix product adds them in blocks, which loses
    a third of the digits that they lose, at about two thirds of their rate.
    """
    if groups > 1 or x.device.type != "cpu" or x.dtype != torch.float32:
        return F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)
    top: Tensor
    if any(length > 1 for length in dilation):
        top = torch.ops.aten.slow_conv_dilated2d(x, weight, weight.shape[2:], bias, stride, padding, dilation)
    else:
        top = torch.ops.aten.thnn_conv2d(x, weight, weight.shape[2:], bias, stride, padding)
    return top


def plain_order(value: Tensor) -> Tensor:
    """Return a tensor with the strides of a new one, also where an axis of length 1 allows others.

    In torch 2.13 oneDNN may read out of bounds in a dilated convolution of channels-last blobs or weights, and torch takes
    blobs with an axis of length 1 for channels-last by their strides.
    """
    return value.contiguous().view(-1).view(value.shape)


class Spatial(Layer):
    """The fields that Caffe's BaseConvolutionLayer and Im2colLayer read: kernel, stride, pad and dilation per axis."""

    message = "convolution_param"
    fields: ClassVar[tuple[str, ...]] = (
        *(
            "axis",
            "pad",
            "pad_h",
            "pad_w",
            "kernel_size",
            "kernel_h",
            "kernel_w",
            "stride",
            "stride_h",
            "stride_w",
        ),
        *("dilation", "hole", "hole_h", "hole_w"),
    )
    # The N-D code path computes the same sums.
    ignored_fields: ClassVar[tuple[str, ...]] = ("engine", "force_nd_im2col")
    transposed = False
    least_axes = 1  # spatial ones
    usual_axes = 3

    def setup(self, rank: int, *others: int) -> None:
        self.channel_axis = self._read_axis(rank)
        count = rank - self.channel_axis - 1
        if not self.least_axes <= count <= 3:
            raise self.error(
                f"a bottom of {rank} axes has {count} spatial axes; {self.least_axes} to 3 are supported"
            )
        self.kernel, self.stride, self.pad, self.dilation = self._read_window(count)
        for field, values in (
            ("kernel_size", self.kernel),
            ("stride", self.stride),
            ("dilation", self.dilation),
        ):
            if min(values, default=1) < 1:
                raise self.error(f"{field} {list(values)} must be at least 1")

    def _read_axis(self, rank: int) -> int:
        return self.axis(self.param.axis, rank)

    def _read_window(self, count: int) -> tuple[tuple[int, ...], ...]:
        """Return kernel, stride, pad and dilation, each with one value per spatial axis."""
        return (
            self._spatial("kernel_size", count, None),
            self._spatial("stride", count, 1),
            self._spatial("pad", count, 0),
            self._dilation(count),
        )

    def _spatial(self, field: str, count: int, default: int | None) -> tuple[int, ...]:
        """One value per axis: `kernel_size: 3`, a value per axis, or `kernel_h` and `kernel_w`."""
        repeated = list(getattr(self.param, field))
        short = field.removesuffix("_size")
        if short in ("kernel", "pad", "stride") and any(self.param.HasField(f"{short}_{a}") for a in "hw"):
            if repeated:
                raise self.error(f"states both {field} and {short}_h/{short}_w; state one kind")
            if count != 2:
                raise self.error(f"{short}_h and {short}_w need two spatial axes; this blob has {count}")
            # without stride_w, stride_h leaves it at 0 in Caffe, and is refused below.
            pair = (getattr(self.param, f"{short}_h"), getattr(self.param, f"{short}_w"))
            if not all(self.param.HasField(f"{short}_{a}") for a in "hw") and short != "pad":
                raise self.error(f"states only one of {short}_h and {short}_w; state both")
            return pair
        if not repeated:
            if default is None and count:
                raise self.error(f"{field} is missing")
            return (default or 0,) * count
        if len(repeated) == 1:
            return (repeated[0],) * count
        if len(repeated) != count:
            raise self.error(
                f"{field} is stated {len(repeated)} times for {count} spatial axes; state 1 or {count}"
            )
        return tuple(repeated)

    def _dilation(self, count: int) -> tuple[int, ...]:
        hole = self.param.hole
        holes = (self.param.hole_h or hole, self.param.hole_w or hole)
        if holes != (1, 1):
            if self.param.dilation:
                raise self.error("states both dilation and hole; state one kind")
            return holes if count == 2 else (hole,) * count
        return self._spatial("dilation", count, 1)

    def _extent(self, size: int, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        if self.transposed:
            return self.stride[axis] * (size - 1) + reach - 2 * self.pad[axis]
        span = size + 2 * self.pad[axis] - reach
        # C rounds towards zero: a kernel that is a little larger than the padded bottom has one position.
        return (span // self.stride[axis] if span >= 0 else -(-span // self.stride[axis])) + 1

    def _missing(self, bottom: Sequence[int | None]) -> tuple[int, ...]:
        """Return how many zeros each spatial axis lacks at its end for the kernel's last position."""
        if self.transposed:
            return (0,) * len(self.kernel)
        missing = []
        for axis, size in enumerate(bottom[self.channel_axis + 1 :]):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            missing.append(0 if size is None else max(reach - size - 2 * self.pad[axis], 0))
        return tuple(missing)

    def _extents(self, bottom: Shape) -> tuple[int, ...]:
        """The top's spatial lengths; raises LayerError where the kernel does not fit."""
        spatial = bottom[self.channel_axis + 1 :]
        extents = tuple(self._extent(size, axis) for axis, size in enumerate(spatial))
        if min(extents, default=1) < 1:
            raise self.error(f"bottom {list(bottom)} is too small for kernel {list(self.kernel)}")
        return extents

    def _windowed_onnx(
        self, graph: OnnxGraph, x: str, op: str, weights: list[str], outputs: int, group: int
    ) -> str:
        """Add a convolution; ONNX has one batch axis, so all axes before `axis` are flattened into it."""
        if not self.kernel:
            return self._pointwise_onnx(graph, x, op, weights, outputs, group)
        leading = self.channel_axis
        ends = [pad + more for pad, more in zip(self.pad, self._missing(graph.shape(x)), strict=True)]
        attributes: dict[str, Attribute] = {
            "kernel_shape": self.kernel, "strides": self.stride, "pads": [*self.pad, *ends],
            "dilations": self.dilation, "group": group,
        }  # fmt: skip
        if leading == 1:
            return graph.node(op, [x, *weights], **attributes)
        shape = graph.shape(x)
        y = reshape_onnx(graph, x, [-1, *map(Kept, range(leading, len(shape)))], x)
        y = graph.node(op, [y, *weights], **attributes)
        sides = enumerate(shape[leading + 1 :])
        extents = [None if size is None else self._extent(size, axis) for axis, size in sides]
        top = [*shape[:leading], outputs, *extents]
        if top.count(None) <= 1:
            stated = graph.constant(integers(*(-1 if length is None else length for length in top)))
        else:
            parts = [graph.node("Shape", [x], end=leading)] if leading else []
            stated = graph.node("Concat", [*parts, graph.node("Shape", [y], start=1)], axis=0)
        return graph.node("Reshape", [y, stated])

    def _pointwise_onnx(
        self, graph: OnnxGraph, x: str, op: str, weights: list[str], outputs: int, group: int
    ) -> str:
        """Add a convolution of a bottom without spatial axes, as one over an axis of length 1."""
        channels, last = graph.size(x, self.channel_axis), graph.constant(integers(2))
        wide = [graph.node("Unsqueeze", [weights[0], last]), *weights[1:]]
        y = graph.node("Reshape", [x, graph.constant(integers(-1, channels, 1))])
        y = graph.node(op, [y, *wide], kernel_shape=[1], group=group)
        return reshape_onnx(graph, y, [*map(Kept, range(self.channel_axis)), outputs], x)


class ConvolutionBase(Spatial):
    """Shared by all convolutions: weights, groups and bias."""

    fields = (*Spatial.fields, "num_output", "bias_term", "group", "weight_filler", "bias_filler")
    bottom_count: ClassVar[tuple[int, int | None]] = (1, None)
    top_count: ClassVar[tuple[int, int | None]] = (1, None)
    is_depthwise = False
    least_axes = 0
    weight: Tensor
    bias: Tensor

    def setup(self, rank: int, *others: int) -> None:
        if len(self.node.bottoms) != len(self.node.tops):
            raise self.error(
                f"has {len(self.node.bottoms)} bottoms and {len(self.node.tops)} tops; the numbers must be equal"
            )
        self.outputs: int = self.param.num_output
        self.has_bias = self._reads_bias()
        self.group = self._read_group()
        self._check_outputs()
        super().setup(rank)
        self.function = (_TRANSPOSED if self.transposed else _CONV)[len(self.kernel)]
        self.is_ungrouped = self.group == 1 and not self.is_depthwise
        self.is_dilated = any(length > 1 for length in self.dilation)
        # A convolution before a pooling's mask keeps the sums that it has been recorded with.
        is_plane = self.function is F.conv2d and self.channel_axis == 1 and not self.node.feeds_mask
        if is_plane and not self.is_dilated and type(self).forward is ConvolutionBase.forward:
            self.layout = CHANNELS_LAST

    def _reads_bias(self) -> bool:
        return bool(self.param.bias_term)

    def _read_group(self) -> int:
        return int(self.param.group)

    def _check_outputs(self) -> None:
        if not self.outputs:
            raise self.error("num_output is 0 or absent; state how many channels to make")
        if not self.group or self.outputs % self.group:
            raise self.error(f"num_output {self.outputs} is not a multiple of group {self.group}")

    def groups(self, channels: int) -> int:
        """Return the number of groups for a number of input channels."""
        if channels % self.group:
            raise self.error(f"{channels} input channels are not a multiple of group {self.group}")
        return self.group

    def outputs_for(self, channels: int) -> int:
        """Return the number of output channels for a number of input channels."""
        return self.outputs

    def bias_shape(self, outputs: int) -> Shape:
        """Return the shape of the bias blob."""
        return (outputs,)

    def plan(self, *bottoms: Shape) -> LayerPlan:
        channels = bottoms[0][self.channel_axis]
        outputs = self.outputs_for(channels)
        for bottom in bottoms:
            if bottom[self.channel_axis] != channels:
                raise self.error(f"bottoms differ in channels: {bottom[self.channel_axis]} and {channels}")
        tops = [(*bottom[: self.channel_axis], outputs, *self._extents(bottom)) for bottom in bottoms]
        # A deconvolution stores its weights input channels first, as the convolution that it transposes.
        first, second = (channels, outputs) if self.transposed else (outputs, channels)
        weight = (first, second // self.groups(channels), *self.kernel)
        blobs = [BlobSpec("weight", weight, self.param.weight_filler)]
        if self.has_bias:
            blobs.append(BlobSpec("bias", self.bias_shape(outputs), self.param.bias_filler))
        positions = bottoms if self.transposed else tops
        return LayerPlan(tops, blobs, sum(map(prod, positions)) * prod(weight[1:]))

    def _bias(self) -> Tensor:
        return self.blob("bias")

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        weight, bias = self.blob("weight"), self._bias() if self.has_bias else None
        leading = self.channel_axis
        tops = []
        for x in bottoms:
            # To Caffe all axes before `axis` are batch axes; torch has one.
            images = x if leading == 1 else x.reshape(-1, *x.shape[leading:])
            groups = 1 if self.is_ungrouped else self.groups(images.shape[1])
            if self.is_dilated and not (torch.compiler.is_compiling() or is_tracing()):
                images, weight = plain_order(images), plain_order(weight)
            convolve = self._kernel_for(x, weight)
            if not self.kernel:
                y = convolve(images[..., None], weight[..., None], bias, groups=groups).squeeze(-1)
            else:
                if any(missing := self._missing(x.shape)):
                    images = F.pad(images, _ends(missing))
                y = convolve(
                    images,
                    weight,
                    bias,
                    stride=self.stride,
                    padding=self.pad,
                    dilation=self.dilation,
                    groups=groups,
                )
            tops.append(y if leading == 1 else y.reshape(*x.shape[:leading], *y.shape[1:]))
        return tuple(tops)

    def for_inference(self, *bottoms: Shape) -> Callable[..., Sequence[Tensor]]:
        is_own = type(self).forward is ConvolutionBase.forward and not (
            self.is_dilated or self.node.feeds_mask
        )
        shape = bottoms[0]
        if not is_own or len(bottoms) > 1 or self.function is not F.conv2d or self.channel_axis != 1:
            return self.forward
        if any(self._missing(shape)):
            return self.forward
        window = (self.stride, self.pad)
        has_bias = self.has_bias
        if self.is_small(shape, tuple(self.blob("weight").shape)):
            # Windows of channels-last blobs are copied a row of channels at a time, those of others a row of the plane.
            order = torch.channels_last if shape[1] >= FEWEST_CHANNELS else torch.contiguous_format

            def multiply(x: Tensor) -> tuple[Tensor]:
                bias, x = self._bias() if has_bias else None, x.contiguous(memory_format=order)
                return (_MULTIPLY(x, self.blob("weight"), self.kernel, bias, *window),)

            return multiply
        groups = self.groups(shape[1])

        def convolve(x: Tensor) -> tuple[Tensor]:
            bias = self._bias() if has_bias else None
            return (torch.conv2d(x, self.blob("weight"), bias, *window, self.dilation, groups),)

        return convolve

    def _kernel_for(self, x: Tensor, weight: Tensor) -> Callable[..., Tensor]:
        """Return what convolves a bottom: a matrix product before a pooling's mask, and where that is faster.

        In training and in written or compiled code the kernel is oneDNN's for all sizes, and for channels-last bottoms.
        """
        if self.function is not F.conv2d:
            return self.function
        if self.node.feeds_mask and not torch.compiler.is_compiling():
            return gemm_conv2d
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_tracing() or not x.is_contiguous():
            return self.function
        shape = tuple(x.shape)
        is_small = not any(self._missing(shape)) and self.is_small(shape, tuple(weight.shape))
        return gemm_conv2d if is_small else self.function

    def is_small(self, shape: Shape, weight: Shape) -> bool:
        """Return whether a matrix product is faster than oneDNN's kernel: for LeNet's layers by 2 to 5 times.

        The batch does not count, so that an image's numbers do not depend on it.
        """
        if not self.is_ungrouped or self.is_dilated:
            return False
        return prod(weight) * prod(self._extents(shape)) <= SMALL

    def _bias_onnx(self, graph: OnnxGraph) -> str:
        return graph.parameter("bias")

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        weights = [graph.parameter("weight"), *([self._bias_onnx(graph)] if self.has_bias else [])]
        op = "ConvTranspose" if self.transposed else "Conv"
        tops = []
        for x in bottoms:
            channels = graph.size(x, self.channel_axis)
            outputs, group = self.outputs_for(channels), self.groups(channels)
            tops.append(self._windowed_onnx(graph, x, op, weights, outputs, group))
        return tops

    def source(self, code: SourceCode, *bottoms: str) -> list[str]:
        count, channels = len(self.kernel), code.shape(0)[self.channel_axis]
        group = self.groups(channels)
        name = f"nn.Conv{'Transpose' if self.transposed else ''}{count or 1}d"
        outputs = self.outputs_for(channels)
        arguments = [str(channels), str(outputs), f"kernel_size={_short(self.kernel or (1,))}"]
        defaults = (("stride", self.stride, 1), ("padding", self.pad, 0), ("dilation", self.dilation, 1))
        arguments += [f"{key}={_short(value)}" for key, value, usual in defaults if value != (usual,) * count]
        arguments += [f"groups={group}"] if group != 1 else []
        arguments += [] if self.has_bias else ["bias=False"]
        blobs = {"weight": self.blob("weight"), **({"bias": self._bias()} if self.has_bias else {})}
        if not self.kernel:
            blobs["weight"] = blobs["weight"][..., None]
        module = code.module(f"{name}({', '.join(arguments)})", **blobs)
        if not self.kernel:
            return [
                f"{module}({x}.reshape(-1, {channels}, 1)).reshape(*{x}.shape[:{self.channel_axis}], {outputs})"
                for x in bottoms
            ]
        bottoms = tuple(
            f"F.pad({x}, {_ends(missing)})" if any(missing := self._missing(code.shape(index))) else x
            for index, x in enumerate(bottoms)
        )
        if self.channel_axis == 1:
            return [f"{module}({x})" for x in bottoms]
        cut = self.channel_axis
        return [
            f"{module}({x}.flatten(0, {cut - 1})).unflatten(0, {x}.shape[:{cut}])"
            if cut
            else f"{module}({x}[None])[0]"
            for x in bottoms
        ]


def _ends(missing: Sequence[int]) -> list[int]:
    """Return the arguments of F.pad, the last axis first, for zeros at the end of each axis."""
    return [side for more in reversed(missing) for side in (0, more)]


def _short(values: Sequence[int]) -> str:
    """Return sizes as source, as short as torch accepts: 3 for (3, 3)."""
    return str(values[0]) if len(set(values)) == 1 else str(tuple(values))


@register_layer("Convolution", "ConvolutionND")
class Convolution(ConvolutionBase):
    """Cross-correlation with learned weights, num_output × channels/group × kernel."""

    no_float16 = ""


@register_layer("Deconvolution")
class Deconvolution(ConvolutionBase):
    """The transpose of a Convolution, which is its backward pass; weights channels × num_output/group × kernel."""

    transposed = True
    no_float16 = ""


def im2col(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Copy each window into the channels; F.unfold takes two spatial axes only and flattens them."""
    count, first = len(kernel), x.dim() - len(kernel)
    x = F.pad(x, [size for size in reversed(pad) for _ in range(2)])
    for axis in range(count):
        extent = dilation[axis] * (kernel[axis] - 1) + 1
        x = x.unfold(first + axis, extent, stride[axis])[..., :: dilation[axis]]
    positions, windows = range(first, first + count), range(first + count, first + 2 * count)
    return x.permute(*range(first), *windows, *positions).flatten(first - 1, first - 1 + count)


@register_layer("Im2col")
class Im2col(Spatial):
    """One channel per position in the window and channel of the bottom: C·kernel channels per window."""

    def plan(self, x: Shape) -> LayerPlan:
        channels = x[self.channel_axis] * prod(self.kernel)
        return LayerPlan([(*x[: self.channel_axis], channels, *self._extents(x))])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        if any(missing := self._missing(x.shape)):
            x = F.pad(x, _ends(missing))
        return (im2col(x, self.kernel, self.stride, self.pad, self.dilation),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        # ONNX has no unfold: a convolution with one weight of 1 per output channel copies the values exactly.
        channels = graph.size(x, self.channel_axis)
        selectors = np.tile(np.eye(prod(self.kernel), dtype=np.float32), (channels, 1))
        weight = graph.constant(selectors.reshape(-1, 1, *self.kernel))
        return [self._windowed_onnx(graph, x, "Conv", [weight], channels * prod(self.kernel), channels)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        geometry = f"{self.kernel}, {self.stride}, {self.pad}, {self.dilation}"
        missing = self._missing(code.shape(0))
        x = f"F.pad({x}, {_ends(missing)})" if any(missing) else x
        return [f"{code.helper(im2col)}({x}, {geometry})"]
