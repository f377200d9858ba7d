"""Pooling and SPP: maximum, average and stochastic pooling, with Caffe's rounding up of the size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import is_tracing
from torch.nn import functional as F

from .support.base import (
    ANY_LAYOUT,
    CHANNELS_LAST,
    Layer,
    LayerPlan,
    OnnxGraph,
    Shape,
    SourceCode,
    integers,
    uses,
)
from .support.registry import register_layer
from .support.window import (
    Sides,
    Window,
    caffe_avg_pool2d,
    caffe_max_pool2d,
    caffe_max_pool2d_mask,
    pool_size,
    stochastic_pool2d,
    stochastic_pool2d_draw,
)
from .support.window_nd import NdWindow


class _PoolingBase(Layer):
    """Shared by Pooling and SPP: the method, four axes, and no padding with STOCHASTIC."""

    usual_axes = 4

    def setup(self, rank: int) -> None:
        if rank != 4:
            raise self.error(f"its bottom has {rank} axes; it takes 4 (N, C, H, W)")
        self.method = self.param.PoolMethod.Name(self.param.pool)
        if self.method == "STOCHASTIC" and self.is_train:
            self.no_onnx = "STOCHASTIC draws random numbers in each pass in phase TRAIN"

    def _check_pad(self, window: Window) -> None:
        if not any(window.pad):
            return
        if self.method == "STOCHASTIC":
            raise self.error(f"pad {list(window.pad)} goes with MAX and AVE only, not {self.method}")
        if any(p >= k for p, k in zip(window.pad, window.kernel, strict=True)):
            raise self.error(f"pad {list(window.pad)} must be smaller than the kernel {list(window.kernel)}")

    def function(self, draws: bool) -> Callable[..., Tensor]:
        """Return this package's function, for windows that torch does not place as Caffe does.

        ``draws``: STOCHASTIC draws one value per window, as in training, instead of returning the expectation.
        """
        if self.method == "STOCHASTIC":
            return stochastic_pool2d_draw if draws else stochastic_pool2d
        return caffe_max_pool2d if self.method == "MAX" else caffe_avg_pool2d

    def _pooled(self, x: Tensor, pool: Callable[[Tensor], Any]) -> Any:
        """Return ``pool(x)``, its maxima as Caffe finds them: values greater than -FLT_MAX, so neither NaN nor -inf.

        On the CPU the bottom is searched for such values only where a maximum shows one; a GPU would wait for that answer.
        """
        if self.method != "MAX":
            return pool(x)
        lowest = torch.finfo(x.dtype).min
        if not (torch.compiler.is_compiling() or is_tracing() or x.is_meta):
            if x.device.type != "cpu":
                return pool(torch.fmax(x, torch.tensor(lowest, dtype=x.dtype)))
            top = pool(x)
            values = (top[0] if isinstance(top, tuple) else top).detach()
            if not values.numel() or bool(values.amin() >= lowest):  # False for NaN too
                return top
        return pool(torch.where(x >= lowest, x, lowest))

    def _onnx_pool(self, graph: OnnxGraph, x: str, sides: Sides, window: Window) -> str:
        if self.method == "MAX":
            return window.onnx_max(graph, x, sides)[0]
        if self.method == "AVE":
            return window.onnx_average(graph, x, sides)
        total = window.onnx_kernel_average(graph, x, sides)
        squares = window.onnx_kernel_average(graph, graph.node("Mul", [x, x]), sides)
        zero = graph.constant(_ZERO)
        ratio = graph.node("Div", [squares, total])
        return graph.node("Where", [graph.node("Greater", [total, zero]), ratio, zero])


_ZERO = torch.zeros(()).numpy()
# Where torch.nn.functional's function only wraps another one in checks, the latter.
_TORCH: dict[str, Callable[..., Tensor]] = {
    "max_pool2d": torch.max_pool2d,
    "avg_pool2d": F.avg_pool2d,
    "adaptive_max_pool2d": F.adaptive_max_pool2d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
}


@register_layer("Pooling")
class Pooling(_PoolingBase):
    """MAX (a second top is each maximum's index in its plane), AVE or STOCHASTIC over sliding windows.

    Of equal maxima the first gets the gradient.  AVE divides by the window clipped to the padded
    image.  Source of the size rule: pooling_layer.cpp.  With five axes, as in Intel's fork, the window has the same
    length along time.
    """

    message = "pooling_param"
    fields = (
        *(
            "pool",
            "kernel_size",
            "kernel_h",
            "kernel_w",
            "stride",
            "stride_h",
            "stride_w",
            "pad",
            "pad_h",
            "pad_w",
        ),
        *("global_pooling", "round_mode", "ceil_mode"),
    )
    top_count = (1, 2)
    no_float16 = ""

    def setup(self, rank: int) -> None:
        if self.param.pool != self.param.MAX:
            self.no_float16 = "sums of many values"
        self.is_video = rank == 5
        if self.is_video:
            self._read_video()
            return
        super().setup(rank)
        self.has_mask = len(self.node.tops) == 2
        if self.has_mask and self.method != "MAX":
            raise self.error(f"a second top (the mask) goes with MAX only, not {self.method}")
        self.window = self._read_window()
        self.torch_name = self._torch_name()
        if self.torch_name:
            self.torch_function = _TORCH[self.torch_name]
            self.arguments = self._arguments()
            if type(self).forward is Pooling.forward:
                is_ordered = self.method == "MAX" and not self._may_halve()
                self.layout = CHANNELS_LAST if is_ordered else ANY_LAYOUT

    def _may_halve(self) -> bool:
        """Whether it is the maximum of 2×2 values that no other window reads, where the sides are even."""
        window = self.window
        return window is not None and (window.kernel, window.stride, window.pad) == ((2, 2), (2, 2), (0, 0))

    def _read_video(self) -> None:
        """Read the window over three spatial axes, which Intel's fork and OpenCV pool by the rules of two."""
        self.method = self.param.PoolMethod.Name(self.param.pool)
        if self.method == "STOCHASTIC":
            raise self.error("pool STOCHASTIC takes four axes; use MAX or AVE")
        if len(self.node.tops) == 2:
            raise self.error("a second top (the mask) takes four axes; remove it")
        window = self._read_window()
        for field in ("kernel_h", "stride_h", "pad_h"):
            if self.param.HasField(field):
                raise self.error(f"{field} takes four axes; this blob has five")
        self.video = None
        if window:
            kernel, stride, pad = (values[:1] * 3 for values in (window.kernel, window.stride, window.pad))
            self.video = NdWindow(self.method, kernel, stride, pad, window.ceil_mode)

    def _video_window(self, size: Sequence[int]) -> NdWindow:
        return self.video or NdWindow(self.method, tuple(size), (1, 1, 1), (0, 0, 0))

    def _read_window(self) -> Window | None:
        """Return the window, or None for global pooling."""
        if self.param.HasField("ceil_mode") and self.param.HasField("round_mode"):
            raise self.error("states both round_mode and the forks' ceil_mode; state one")
        ceil = (
            self.param.ceil_mode
            if self.param.HasField("ceil_mode")
            else self.param.round_mode == self.param.CEIL
        )
        pad = self._pair("pad", "pad")
        stride = self._pair("stride", "stride")
        if self.param.global_pooling:
            if any(self.param.HasField(field) for field in ("kernel_size", "kernel_h", "kernel_w")):
                raise self.error(
                    "global_pooling takes the whole plane; remove kernel_size, kernel_h and kernel_w"
                )
            if pad != (0, 0) or stride != (1, 1):
                raise self.error("global_pooling takes pad 0 and stride 1 only; remove them")
            return None
        kernel = self._pair("kernel_size", "kernel")
        for field, values in (("kernel_size", kernel), ("stride", stride)):
            if min(values) < 1:
                raise self.error(f"{field} {list(values)} must be at least 1")
        window = Window(kernel, stride, pad, ceil)
        self._check_pad(window)
        return window

    def _pair(self, field: str, stem: str) -> tuple[int, int]:
        """Return one value for both axes, or one per axis; Caffe refuses a mixture, and half of a pair."""
        stated = [self.param.HasField(f"{stem}_{axis}") for axis in "hw"]
        if not any(stated):
            if field == "kernel_size" and not self.param.HasField(field):
                raise self.error("kernel_size is missing; state it, kernel_h and kernel_w, or global_pooling")
            return (getattr(self.param, field),) * 2
        if self.param.HasField(field):
            raise self.error(f"states both {field} and {stem}_h/{stem}_w; state one kind")
        if not all(stated):
            raise self.error(f"states only one of {stem}_h and {stem}_w; state both")
        return getattr(self.param, f"{stem}_h"), getattr(self.param, f"{stem}_w")

    def _window(self, plane: Sequence[int]) -> Window:
        return self.window or Window((plane[0], plane[1]), (1, 1), (0, 0), True)

    def _torch_name(self) -> str:
        """Return the name of torch's function that computes Caffe's result for every size; empty where none does."""
        if self.has_mask or self.method == "STOCHASTIC":
            return ""
        stem, plain = ("max", "max_is_plain") if self.method == "MAX" else ("avg", "average_is_plain")
        if self.window is None:
            return f"adaptive_{stem}_pool2d"
        return f"{stem}_pool2d" if getattr(self.window, plain) else ""

    def _arguments(self) -> tuple[Any, ...]:
        """Return the arguments of torch's function after the bottom."""
        window = self.window
        if window is None:
            return (1,)
        dilation = (1,) if self.method == "MAX" else ()
        return (window.kernel, window.stride, window.pad, *dilation, window.ceil_mode)

    def plan(self, x: Shape) -> LayerPlan:
        window: Window | NdWindow = self._video_window(x[2:]) if self.is_video else self._window(x[2:])
        size = window.counts(x[2:]) if isinstance(window, NdWindow) else window.size(*x[2:])
        if min(size) < 1:
            raise self.error(f"bottom {list(x)} is too small for kernel {list(window.kernel)}")
        return LayerPlan([(*x[:2], *size)] * len(self.node.tops))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.is_video:
            return (self._video_window(x.shape[2:])(x),)
        if self.torch_name:
            return (self._pooled(x, lambda x: self.torch_function(x, *self.arguments)),)
        window = self._window(x.shape[2:])
        geometry = (window.kernel, window.stride, window.pad, window.ceil_mode)
        if self.has_mask:
            top, mask = self._pooled(x, lambda x: caffe_max_pool2d_mask(x, *geometry))
            return top, mask
        return (self._pooled(x, lambda x: self.function(self.training)(x, *geometry)),)

    def for_inference(self, *bottoms: Shape) -> Callable[..., Sequence[Tensor]]:
        if type(self).forward is not Pooling.forward or self.is_video or not self.torch_name:
            return self.forward
        pool, arguments = self.torch_function, self.arguments
        if self.method != "MAX":
            return lambda x: (pool(x, *arguments),)
        lowest = torch.finfo(torch.float32).min
        halves = self._may_halve() and not any(length % 2 for length in bottoms[0][2:])

        def greatest(x: Tensor) -> tuple[Tensor, ...]:
            if halves and x.is_contiguous():
                top = halved(x)
            else:
                top = pool(x.contiguous(memory_format=torch.channels_last), *arguments)
            if not top.numel() or top.amin().item() >= lowest:  # False for NaN too; see `_pooled`
                return (top,)
            return self.forward(x)

        return greatest

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        if self.is_video:
            size = [graph.size(x, axis) for axis in (2, 3, 4)]
            return [self._video_window(size).onnx(graph, x, size)]
        if self.window is None and self.torch_name:
            return [graph.node("GlobalMaxPool" if self.method == "MAX" else "GlobalAveragePool", [x])]
        sides: Sides = graph.shape(x)[2:]
        window = self.window
        if window is None or window.may_be_empty:
            plane = (graph.size(x, 2), graph.size(x, 3))
            sides, window = plane, self._window(plane)
        if self.has_mask:
            return window.onnx_max(graph, x, sides, mask=True)
        return [self._onnx_pool(graph, x, sides, window)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        if self.is_video:
            video = self._video_window(code.shape(0)[2:])
            return [f"{code.helper(video.function)}({x}, {video.arguments()})"]
        if self.torch_name:
            return [f"F.{self.torch_name}({x}, {self.window.arguments() if self.window else 1})"]
        helper = code.helper(caffe_max_pool2d_mask if self.has_mask else self.function(self.is_train))
        window = self.window.helper_arguments() if self.window else f"{x}.shape[2:], (1, 1)"
        return [f"{helper}({x}, {window})"]


def halved(x: Tensor) -> Tensor:
    """Return the maxima of 2×2 values of N×C×H×W with even sides: a quarter of the time of torch's pooling in that order."""
    rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


def pyramid_window(height: int, width: int, bins: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the kernel and padding of ``bins`` × ``bins`` windows that cover a plane, as in Caffe's SPP."""
    kernel = (-(-height // bins), -(-width // bins))
    return kernel, ((kernel[0] * bins - height + 1) // 2, (kernel[1] * bins - width + 1) // 2)


def spatial_pyramid_pool(x: Tensor, levels: int, pool: Callable[..., Tensor]) -> Tensor:
    """Pool into 1, 4, 16, ... bins and concatenate them; the result of one level has four axes."""
    height, width = x.shape[2:]
    tops = []
    for level in range(levels):
        kernel, pad = pyramid_window(height, width, 2**level)
        tops.append(pool(x, kernel, kernel, pad))
    return tops[0] if levels == 1 else torch.cat([top.flatten(1) for top in tops], 1)


uses(spatial_pyramid_pool, pyramid_window)


@register_layer("SPP")
class SPP(_PoolingBase):
    """Spatial pyramid pooling (He et al., 2014): the same number of features for an image of any size."""

    message = "spp_param"
    fields = ("pyramid_height", "pool")
    no_float16 = "sums of many values"

    def setup(self, rank: int) -> None:
        super().setup(rank)
        self.levels: int = self.param.pyramid_height
        # No image has 2^15 bins per side; a larger number is a mistake.
        if not 1 <= self.levels <= 15:
            raise self.error(f"pyramid_height {self.levels} must be 1 to 15")

    def _windows(self, plane: tuple[int, int]) -> list[Window]:
        windows = []
        for level in range(self.levels):
            kernel, pad = pyramid_window(*plane, 2**level)
            windows.append(Window(kernel, kernel, pad, True))
        return windows

    def plan(self, x: Shape) -> LayerPlan:
        count, channels, height, width = x
        total = 0
        for window in self._windows((height, width)):
            self._check_pad(window)
            rows, columns = pool_size((height, width), window.kernel, window.stride, window.pad, True)
            total += rows * columns
        return LayerPlan([(count, channels, 1, 1) if self.levels == 1 else (count, channels * total)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (
            self._pooled(x, lambda x: spatial_pyramid_pool(x, self.levels, self.function(self.training))),
        )

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        sides = graph.size(x, 2), graph.size(x, 3)
        tops = [self._onnx_pool(graph, x, sides, window) for window in self._windows(sides)]
        if self.levels == 1:
            return tops
        flat = [graph.node("Reshape", [top, graph.constant(integers(0, -1))]) for top in tops]
        return [graph.node("Concat", flat, axis=1)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        pool = code.helper(self.function(self.is_train))
        return [f"{code.helper(spatial_pyramid_pool)}({x}, {self.levels}, {pool})"]
