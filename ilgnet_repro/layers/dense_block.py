"""DenseBlock: a whole block of a DenseNet in one layer (caffe_ocr)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .norm import along_channels, constant_filler
from .support.base import BlobSpec, Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers, uses
from .support.registry import register_layer

EPS = 1e-5
# Blobs of one transition, in the file's order of groups; with use_BC those of the 1 × 1 convolution follow.
_GROUPS = ("filter", "scale", "bias", "mean", "variance")
_STATISTICS = ("mean", "variance")


def batch_norm_unbiased(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel by the batch's mean and unbiased variance, whose gradient is that of the biased one."""
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    count = x.numel() // x.shape[1]
    unbiased = variance + (variance * (count / max(count - 1, 1)) - variance).detach()
    top = (x - mean[:, None, None]) * torch.rsqrt(unbiased + 1e-5)[:, None, None]
    return top, mean, unbiased


def dense_transition(
    x: Tensor,
    last: tuple[Tensor, Tensor, Tensor],
    middle: tuple[Tensor, Tensor, Tensor] | None = None,
    by_batch: bool = False,
) -> Tensor:
    """Append the channels of one transition; scale, bias and filter of each convolution in it.

    In the middle, the scale and bias before the 1 × 1 convolution are those of ``last``.
    """
    y = x
    steps = [last] if middle is None else [(*last[:2], middle[2]), (*middle[:2], last[2])]
    for scale, bias, filters in steps:
        y = batch_norm_unbiased(y)[0] if by_batch else y
        y = F.conv2d(F.relu(y * scale + bias), filters, padding=filters.shape[2] // 2)
    return torch.cat([x, y], 1)


uses(dense_transition, batch_norm_unbiased)


def _batch_norm_onnx(graph: OnnxGraph, x: str, channels: int) -> str:
    """Add `batch_norm_unbiased` to a graph."""
    from onnx import TensorProto

    axes, one = graph.constant(integers(0, 2, 3)), graph.constant(numbers(1))
    centered = graph.node("Sub", [x, graph.node("ReduceMean", [x, axes])])
    squares = graph.node("ReduceSum", [graph.node("Mul", [centered, centered]), axes])
    size = graph.node("Cast", [graph.node("Size", [x])], to=TensorProto.FLOAT)
    count = graph.node("Sub", [graph.node("Div", [size, graph.constant(numbers(channels))]), one])
    variance = graph.node("Div", [squares, count])
    deviation = graph.node("Sqrt", [graph.node("Add", [variance, graph.constant(numbers(EPS))])])
    return graph.node("Div", [centered, deviation])


MOST_TRANSITIONS = 1000  # each is two or four layers


@register_layer("DenseBlock")
class DenseBlock(Layer):
    """`numTransition` times: BN, ReLU, 3 × 3 convolution to `growthRate` channels, appended to the channels so far.

    With `use_BC` a 1 × 1 convolution to 4 · growthRate channels, BN and ReLU come before the 3 × 3 one.  Convolutions
    have no bias; their filters are turned by 180 degrees, on the CPU as on the GPU (CUDNN_CONVOLUTION).  Stored means
    and variances are sums, divided by the last blob (0 means zeros); each pass in training decays all three by
    `moving_average_fraction` and adds the batch's.  `initChannel` is ignored.
    Source: senlinuc/caffe_ocr, DenseBlock_layer.cpp.
    """

    message = "denseblock_param"
    fields = (
        *("numTransition", "growthRate", "use_BC", "moving_average_fraction"),
        *("Filter_Filler", "BN_Scaler_Filler", "BN_Bias_Filler"),
    )
    ignored_fields = ("initChannel", "dropout_amount", "workspace_mb", "gpuIdx", "BC_ultra_space_efficient")

    def setup(self, rank: int) -> None:
        if rank != 4:
            raise self.error(f"its bottom has {rank} axes; it takes 4 (N, C, H, W)")
        self.count: int = self.param.numTransition
        self.growth: int = self.param.growthRate
        for field, value in (("numTransition", self.count), ("growthRate", self.growth)):
            if value < 1:
                raise self.error(f"{field} {value} must be at least 1")
        if self.count > MOST_TRANSITIONS:
            raise self.error(f"numTransition {self.count} must be at most {MOST_TRANSITIONS}")
        self.has_bottleneck: bool = self.param.use_BC

    def plan(self, x: Shape) -> LayerPlan:
        channels = [x[1] + index * self.growth for index in range(self.count)]
        middle = 4 * self.growth
        blobs = []
        inputs = [middle] * self.count if self.has_bottleneck else channels
        blobs += self._specs("", [(self.growth, inputs[i], 3, 3) for i in range(self.count)], channels)
        if self.has_bottleneck:
            blobs += self._specs(
                "bc_", [(middle, channels[i], 1, 1) for i in range(self.count)], [middle] * self.count
            )
        blobs.append(BlobSpec("factor", (1,), constant_filler(0), learned=False))
        positions = x[0] * x[2] * x[3]
        work = sum(
            positions * spec.shape[0] * spec.shape[1] * spec.shape[2] * spec.shape[3]
            for spec in blobs
            if "filter" in spec.name
        )
        return LayerPlan([(x[0], x[1] + self.count * self.growth, *x[2:])], blobs, work)

    def _specs(self, prefix: str, filters: list[Shape], channels: list[int]) -> list[BlobSpec]:
        fillers = {
            "filter": self.param.Filter_Filler,
            "scale": self.param.BN_Scaler_Filler,
            "bias": self.param.BN_Bias_Filler,
            "mean": constant_filler(0),
            "variance": constant_filler(1),
        }
        return [
            BlobSpec(
                f"{prefix}{group}{index}",
                filters[index] if group == "filter" else (1, channels[index], 1, 1),
                fillers[group],
                learned=group not in _STATISTICS,
            )
            for group in _GROUPS
            for index in range(self.count)
        ]

    def _affine(self, prefix: str, index: int) -> tuple[Tensor, Tensor]:
        """Return the factor and shift of a stored normalization."""
        scale, bias, mean, variance = (
            self.blob(f"{prefix}{group}{index}").flatten() for group in ("scale", "bias", *_STATISTICS)
        )
        factor = self.blob("factor")
        inverse = torch.where(factor == 0, 0, 1 / torch.where(factor == 0, 1, factor))
        factor = scale * torch.rsqrt(variance * inverse + EPS)
        return factor, bias - mean * inverse * factor

    def _filter(self, prefix: str, index: int) -> Tensor:
        return self.blob(f"{prefix}filter{index}").flip(2, 3)

    def _normalize(self, x: Tensor, prefix: str, index: int, by_batch: bool) -> Tensor:
        if not by_batch:
            factor, shift = self._affine(prefix, index)
            return x * along_channels(factor, 4) + along_channels(shift, 4)
        top, mean, variance = batch_norm_unbiased(x)
        if not torch.compiler.is_exporting():  # an exported program only computes the tops
            with torch.no_grad():
                for group, value in zip(_STATISTICS, (mean, variance), strict=True):
                    blob = self.blob(f"{prefix}{group}{index}")
                    blob.mul_(self.param.moving_average_fraction).add_(value.reshape(blob.shape))
        return top * self.blob(f"{prefix}scale{index}") + self.blob(f"{prefix}bias{index}")

    def forward(self, x: Tensor) -> tuple[Tensor]:
        by_batch = self.training
        for index in range(self.count):
            y = F.relu(self._normalize(x, "", index, by_batch))
            if self.has_bottleneck:
                y = F.conv2d(y, self._filter("bc_", index))
                y = F.relu(self._normalize(y, "bc_", index, by_batch))
            x = torch.cat([x, F.conv2d(y, self._filter("", index), padding=1)], 1)
        if by_batch and not torch.compiler.is_exporting():
            with torch.no_grad():
                self.blob("factor").mul_(self.param.moving_average_fraction).add_(1)
        return (x,)

    def _normalize_onnx(self, graph: OnnxGraph, x: str, prefix: str, index: int, channels: int) -> str:
        if self.is_train:
            scale, bias = (self.blob(f"{prefix}{group}{index}") for group in ("scale", "bias"))
            x = _batch_norm_onnx(graph, x, channels)
        else:
            scale, bias = (along_channels(value, 4) for value in self._affine(prefix, index))
        x = graph.node("Mul", [x, graph.constant(numbers(scale))])
        return graph.node("Relu", [graph.node("Add", [x, graph.constant(numbers(bias))])])

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        channels = graph.size(x, 1)
        for index in range(self.count):
            y = self._normalize_onnx(graph, x, "", index, channels + index * self.growth)
            if self.has_bottleneck:
                y = graph.node("Conv", [y, graph.constant(numbers(self._filter("bc_", index)))])
                y = self._normalize_onnx(graph, y, "bc_", index, 4 * self.growth)
            filters = graph.constant(numbers(self._filter("", index)))
            x = graph.node("Concat", [x, graph.node("Conv", [y, filters], pads=[1, 1, 1, 1])], axis=1)
        return [x]

    def source(self, code: SourceCode, x: str) -> list[str]:
        call = code.helper(dense_transition)
        for index in range(self.count):
            arguments = [x]
            for prefix in ["bc_", ""] if self.has_bottleneck else [""]:
                if self.is_train:
                    affine = [self.blob(f"{prefix}{group}{index}") for group in ("scale", "bias")]
                else:
                    affine = [along_channels(value, 4) for value in self._affine(prefix, index)]
                values = {"scale": affine[0], "bias": affine[1], "filter": self._filter(prefix, index)}
                # In phase TEST the scale and bias hold the statistics too.
                declare = {"scale": code.parameter if self.is_train else code.buffer}
                declare["bias"] = declare["scale"]
                names = [
                    declare.get(name, code.parameter)(f"{prefix}{name}{index}", value)
                    for name, value in values.items()
                ]
                arguments.append(f"({', '.join(names)})")
            middle = f", middle={arguments.pop(1)}" if self.has_bottleneck else ""
            x = f"{call}({', '.join(arguments)}{middle}, by_batch={self.is_train})"
        return [x]
