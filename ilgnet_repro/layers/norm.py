"""Normalisation by statistics: BatchNorm (of each channel) and MVN (of each sample)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..schema import caffe_pb2 as pb
from .support.base import (
    ANY_LAYOUT,
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
from .support.shapes import four_axes_index, legacy_shape, onnx_with_four_axes, shape_of, with_four_axes

NVIDIA_MIN_EPS = 1e-5


def constant_filler(value: float) -> pb.FillerParameter:
    """Return the filler that gives every element ``value``."""
    return pb.FillerParameter(type="constant", value=value)


def batch_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel by the batch's mean and (biased) variance; returns the result, mean and variance."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + eps), mean.flatten(), variance.flatten()


def along_channels(values: Tensor, rank: int) -> Tensor:
    """Reshape one value per channel to broadcast over a blob of ``rank`` axes."""
    return values.reshape(-1, *[1] * (rank - 2))


def onnx_batch_norm(graph: OnnxGraph, x: str, rank: int, eps: float) -> str:
    """Add nodes that normalise each channel by the batch's statistics."""
    axes = graph.constant(integers(*(axis for axis in range(rank) if axis != 1)))
    centred = graph.node("Sub", [x, graph.node("ReduceMean", [x, axes])])
    variance = graph.node("ReduceMean", [graph.node("Mul", [centred, centred]), axes])
    deviation = graph.node(
        "Sqrt", [graph.node("Add", [variance, graph.constant(numbers([eps]).reshape(()))])]
    )
    return graph.node("Div", [centred, deviation])


def onnx_affine(graph: OnnxGraph, x: str, scale: Tensor, shift: Tensor, rank: int) -> str:
    """Add nodes for x · scale + shift, one value per channel."""
    factors = (graph.constant(numbers(along_channels(values, rank))) for values in (scale, shift))
    return graph.node("Add", [graph.node("Mul", [x, next(factors)]), next(factors)])


def has_module(shape: Shape, is_train: bool) -> bool:
    """Whether torch has a module that normalises the channels of such a blob; by one value per channel it trains none."""
    return 2 <= len(shape) <= 5 and (not is_train or prod(shape) > shape[1])


def batch_norm_source(
    code: SourceCode,
    x: str,
    eps: float,
    momentum: float,
    statistics: tuple[Tensor, Tensor],
    affine: Mapping[str, Tensor],
) -> str:
    """Declare torch's BatchNorm module, and return the expression that calls it."""
    mean, variance = (value.flatten() for value in statistics)
    arguments = [str(mean.numel())]
    arguments += [f"eps={literal(eps)}"] if literal(eps) != "1e-05" else []
    arguments += [f"momentum={round(momentum, 6):g}"]
    arguments += [] if affine else ["affine=False"]
    state = {key: value.flatten() for key, value in affine.items()}
    state |= {"running_mean": mean, "running_var": variance, "num_batches_tracked": torch.tensor(0)}
    dims = max(len(code.shape(0)) - 2, 1)
    module = code.module(f"nn.BatchNorm{dims}d({', '.join(arguments)})", **state)
    return f"{module}({x})"


@register_layer("BatchNorm")
class BatchNorm(Layer):
    """Normalise each channel (axis 1) by the batch's mean and variance (in training) or the stored ones.

    Blobs: sums of means and of variances, and the scale factor that both are divided by (0 means zeros).
    Each pass that uses the batch's statistics decays all three by moving_average_fraction and adds the batch's:
    1 to the factor, the unbiased variance to the second.  So does one in phase TEST with use_global_stats: false:
    Caffe's test passes update the statistics that they share with the train net.  A stated use_global_stats decides;
    otherwise `training` does, which follows the phase until `train()` or `eval()`.  NVIDIA's
    fork is recognized by scale_bias or a filler, which add a learned scale and bias as blobs four and five.  There
    only `training` decides, the third of five blobs is not a divisor, and a pass in TRAIN updates mean and variance
    directly: the first two passes copy the batch's, the variance with eps added.
    Source: batch_norm_layer.cpp; Ioffe and Szegedy, 2015.
    """

    message = "batch_norm_param"
    layout = ANY_LAYOUT
    in_place = True
    fields = (
        "use_global_stats",
        "moving_average_fraction",
        "eps",
        "scale_filler",
        "bias_filler",
        "scale_bias",
    )

    mean: Tensor
    variance: Tensor
    scale_factor: Tensor
    scale: Tensor
    bias: Tensor
    passes: Tensor
    no_float16 = "statistics (fold=True multiplies them into the layers before)"

    @classmethod
    def resolve_kind(cls, text: pb.LayerParameter, blobs: int) -> None:
        # NVIDIA's Caffe 0.15 always had five blobs, whether its text states a filler or not.
        param = text.batch_norm_param
        if blobs == 5 and not any(map(param.HasField, ("scale_bias", "scale_filler", "bias_filler"))):
            param.scale_bias = True

    def setup(self, rank: int) -> None:
        self.rank = rank
        fillers = any(self.param.HasField(field) for field in ("scale_filler", "bias_filler"))
        self.has_affine: bool = self.param.scale_bias or fillers
        self.is_nvidia: bool = fillers or self.param.HasField("scale_bias")
        self.eps: float = self.param.eps
        stated = self.param.HasField("use_global_stats") and not self.is_nvidia
        self.follows_mode = not stated
        # By the phase at load: decides what is exported and folded.
        self.is_stored: bool = self.param.use_global_stats if stated else not self.is_train
        if self.is_nvidia:
            # The number of passes with batch statistics since the layer was created.
            self.register_buffer("passes", torch.tensor(0), persistent=False)
            self.eps = max(self.eps, NVIDIA_MIN_EPS)
            self.note = (
                "BatchNorm of NVIDIA's Caffe, by its scale_bias, scale_filler or bias_filler: only the phase decides "
                "which statistics are used, eps is at least 1e-5"
                + (", the third of five blobs is not a divisor" if self.has_affine else "")
            )

    def plan(self, x: Shape) -> LayerPlan:
        if not x:
            raise self.error("bottom has no axes; it takes 1 or more")
        channels = x[1] if len(x) > 1 else 1
        blobs = [BlobSpec(name, (channels,), learned=False) for name in ("mean", "variance")]
        initial = constant_filler(1.0) if self.is_nvidia else None
        blobs.append(BlobSpec("scale_factor", (1,), initial, learned=False))
        if self.has_affine:
            for name, usual in (("scale", 1.0), ("bias", 0.0)):
                field = f"{name}_filler"
                stated = self.param.HasField(field)
                filler = getattr(self.param, field) if stated else constant_filler(usual)
                blobs.append(BlobSpec(name, (channels,), filler))
        return LayerPlan([x], blobs)

    def register_blob(self, spec: BlobSpec, parameter: nn.Parameter) -> None:
        super().register_blob(spec, parameter)
        if spec.name != "scale_factor":
            return
        factor, where = float(parameter.detach().flatten()[0]), f"{self.node.name} (BatchNorm)"
        if not self.has_affine and factor == 0 and bool(self.mean.detach().any()):
            warnings.warn(
                f"{where}: its scale factor is 0 and its means are not; Caffe takes mean and variance as 0 then, NVIDIA's "
                "Caffe, which wrote such files in 2017, as they are stored: set the factor to 1 for its numbers",
                stacklevel=2,
            )
        elif self.has_affine and factor not in (0, 1):
            warnings.warn(
                f"{where}: the third of its five blobs is {factor:g}; NVIDIA's Caffe, as here, does not divide by it, "
                "Intel's does",
                stacklevel=2,
            )

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """The stored mean and variance, divided by the scale factor where they are sums."""
        if self.has_affine:  # NVIDIA's: older releases left 0 in the third of five blobs, newer ones 1
            return self.mean, self.variance
        factor = self.scale_factor
        inverse = torch.where(factor == 0, 0, 1 / torch.where(factor == 0, 1, factor))
        return self.mean * inverse, self.variance * inverse

    def becomes_module(self, shape: Shape) -> bool:
        """Whether written source has one of torch's modules for it, which `train()` and `eval()` switch."""
        return self.follows_mode and has_module(shape, self.is_train)

    def _update_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Add a batch's statistics to the moving sums, as Caffe does on every pass."""
        fraction = self.param.moving_average_fraction
        with torch.no_grad():
            if self.is_nvidia:
                weight = torch.where(self.passes > 1, mean.new_tensor(1 - fraction), 1)
                old = self.statistics
                for blob, stored, new in zip(
                    (self.mean, self.variance), old, (mean, variance + self.eps), strict=True
                ):
                    blob.copy_(torch.lerp(stored, new, weight))
                self.scale_factor.fill_(1)
                self.passes.add_(1)
                return
            self.scale_factor.mul_(fraction).add_(1)
            self.mean.mul_(fraction).add_(mean)
            self.variance.mul_(fraction).add_(variance * (count / (count - 1) if count > 1 else 1.0))

    def is_channel_affine(self, rank: int) -> bool:
        return rank == 4

    def channel_affine(self, training: bool) -> tuple[Tensor, Tensor] | None:
        if training if self.follows_mode else not self.is_stored:
            return None
        mean, variance = self.blob("mean"), self.blob("variance")
        sums = 1.0 if self.has_affine else self.blob("scale_factor").item()
        if sums != 1:  # `statistics`, in fewer operations
            mean, variance = (mean / sums, variance / sums) if sums else (mean * 0, variance * 0)
        factor = torch.rsqrt(variance + self.eps)
        if self.has_affine:
            factor = factor * self.scale
            return factor, self.bias - mean * factor
        return factor, -mean * factor

    def forward(self, x: Tensor) -> tuple[Tensor]:
        scale, bias = (self.scale, self.bias) if self.has_affine else (None, None)
        if not self.training if self.follows_mode else self.is_stored:
            # F.batch_norm needs a channel axis; without one Caffe has a single channel.
            wide = x if self.rank > 1 else x[:, None]
            top = F.batch_norm(wide, *self.statistics, scale, bias, eps=self.eps)
            return (top.view_as(x),)
        top, mean, variance = batch_norm(x, self.eps)
        if not torch.compiler.is_exporting():  # an exported program only computes the tops
            self._update_statistics(mean, variance, x.numel() // mean.numel())
        if scale is not None and bias is not None:
            top = top * along_channels(scale, self.rank) + along_channels(bias, self.rank)
        return (top,)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        mean, variance = self.statistics
        ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
        scale, bias = (self.scale, self.bias) if self.has_affine else (ones, zeros)
        if not self.is_stored:
            top = onnx_batch_norm(graph, x, self.rank, self.eps)
            return [onnx_affine(graph, top, scale, bias, self.rank) if self.has_affine else top]
        last = graph.constant(integers(1))
        wide = x if self.rank > 1 else graph.node("Unsqueeze", [x, last])
        values = [graph.constant(numbers(blob)) for blob in (scale, bias, mean, variance)]
        top = graph.node("BatchNormalization", [wide, *values], epsilon=self.eps)
        return [top if self.rank > 1 else graph.node("Squeeze", [top, last])]

    def source(self, code: SourceCode, x: str) -> list[str]:
        if self.becomes_module(code.shape(0)):
            affine_blobs = {"weight": self.scale, "bias": self.bias} if self.has_affine else code.affine()
            momentum = 1 - self.param.moving_average_fraction
            return [batch_norm_source(code, x, self.eps, momentum, self.statistics, affine_blobs)]
        eps = literal(self.eps)
        affine = (
            [code.parameter(name, self.blob(name)) for name in ("scale", "bias")] if self.has_affine else []
        )
        if self.is_stored:
            stored = zip(("mean", "variance"), self.statistics, strict=True)
            arguments = [code.buffer(name, value) for name, value in stored]
            wide, end = (x, "") if self.rank > 1 else (f"{x}[:, None]", "[:, 0]")
            return [f"F.batch_norm({', '.join([wide, *arguments, *affine])}, eps={eps}){end}"]
        top = f"{code.helper(batch_norm)}({x}, {eps})[0]"
        if affine:
            scale, bias = (f"{value}.reshape(-1{', 1' * (self.rank - 2)})" for value in affine)
            return [f"{top} * {scale} + {bias}"]
        return [top]


def in_groups(x: Tensor, groups: int) -> Tensor:
    """Return N × groups × values; also of no samples, where the last length cannot be inferred by reshape."""
    rows = x.flatten(1) if x.dim() > 1 else x.reshape(-1, 1)
    return rows.reshape(*rows.shape[:1], groups, rows.shape[1] // groups)


def mean_variance_norm(x: Tensor, groups: int, eps: float) -> Tensor:
    """Subtract each group's mean and divide by its standard deviation; eps is added to that, not to the variance."""
    rows = in_groups(x, groups)
    centred = rows - rows.mean(2, keepdim=True)
    variance = centred.square().mean(2, keepdim=True)
    deviation = variance.detach().sqrt() + eps
    # Caffe's gradient divides by this sum where the exact one divides only by the deviation (0 / 0 for a
    # constant group): the second term is 0 and has that gradient.
    deviation = deviation + (variance - variance.detach()) / (2 * deviation)
    return (centred / deviation).view_as(x)


def subtract_mean(x: Tensor, groups: int) -> Tensor:
    """Subtract each group's mean."""
    rows = in_groups(x, groups)
    return (rows - rows.mean(2, keepdim=True)).view_as(x)


uses(mean_variance_norm, in_groups)
uses(subtract_mean, in_groups)


@register_layer("MVN")
class MVN(Layer):
    """Normalise every plane, or with across_channels every sample, to mean 0 and standard deviation 1.

    The top has four axes whatever the bottom has: Caffe shapes it num x channels x height x width.
    """

    message = "mvn_param"
    in_place = True
    fields = ("normalize_variance", "across_channels", "eps")
    no_float16 = "sums of squares"

    def setup(self, rank: int) -> None:
        self.rank = rank
        # A blob of one axis has a single channel.
        self.is_per_channel = rank > 1 and not self.param.across_channels

    def plan(self, x: Shape) -> LayerPlan:
        if len(x) > 4:
            raise self.error(f"bottom {list(x)} has {len(x)} axes; it takes 0 to 4")
        return LayerPlan([legacy_shape(x)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        groups = x.shape[1] if self.is_per_channel else 1
        if self.param.normalize_variance:
            return (with_four_axes(mean_variance_norm(x, groups, self.param.eps)),)
        return (with_four_axes(subtract_mean(x, groups)),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        axis = graph.constant(integers(2))
        if self.rank <= 1:
            rows = graph.node("Reshape", [x, graph.constant(integers(-1, 1, 1))])
        else:
            # 0 copies the length, a dynamic one too.
            groups = 0 if self.is_per_channel else 1
            rows = graph.node("Reshape", [x, graph.constant(integers(0, groups, -1))])
        top = graph.node("Sub", [rows, graph.node("ReduceMean", [rows, axis])])
        if self.param.normalize_variance:
            variance = graph.node("ReduceMean", [graph.node("Mul", [top, top]), axis])
            eps = graph.constant(numbers([self.param.eps]).reshape(()))
            top = graph.node("Div", [top, graph.node("Add", [graph.node("Sqrt", [variance]), eps])])
        top = graph.node("Reshape", [top, shape_of(graph, x)])
        return [onnx_with_four_axes(graph, top, self.rank)]

    def source(self, code: SourceCode, x: str) -> list[str]:
        groups = f"{x}.shape[1]" if self.is_per_channel else "1"
        tail = four_axes_index(self.rank)
        if self.param.normalize_variance:
            eps = literal(self.param.eps)
            return [f"{code.helper(mean_variance_norm)}({x}, {groups}, {eps}){tail}"]
        return [f"{code.helper(subtract_mean)}({x}, {groups}){tail}"]
