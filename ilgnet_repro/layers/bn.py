"""BN, a type name that several forks use for different batch normalisations."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import LayerError
from ..schema import caffe_pb2 as pb
from .norm import along_channels, batch_norm, batch_norm_source, has_module, onnx_affine, onnx_batch_norm
from .support.base import BlobSpec, Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal, numbers
from .support.registry import register_layer
from .support.shapes import four_axes_index, legacy_shape, onnx_with_four_axes, with_four_axes

VARIANCE, INVERSE_STD = "VARIANCE", "INVERSE_STD"
# Fields of PSPNet's first Caffe, and of older ones of happynear; where none is stated, its eps is that of its schema.
FIRST, FIRST_EPS = ("decay", "axis", "var_eps"), 1e-10
FIRST_NOTE = (
    "BN of PSPNet's first Caffe: (scale, shift, mean, variance); phase TEST uses the stored statistics only with "
    "moving_average: true, else the batch's"
)


def stored_norm(x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Normalise by stored statistics, with the gradient of batch statistics.

    The fork's backward pass is the same in both phases; only ``frozen`` has a different one.
    """
    mean, deviation = along_channels(mean, x.dim()), along_channels((variance + eps).sqrt(), x.dim())
    axes = [axis for axis in range(x.dim()) if axis != 1]
    unit = ((x - mean) / deviation).detach()
    moved = x / deviation
    moved = moved - moved.mean(axes, keepdim=True) - unit * (moved * unit).mean(axes, keepdim=True)
    return unit + (moved - moved.detach())


@register_layer("BN")
class BN(Layer):
    """Batch normalisation with scale and shift, of the fork that the text shows.

    The weights are not known when a layer is created, so the fields decide (`kind`):

    - ``folded``: ``bn_mode: INFERENCE`` (SegNet): x · scale + shift, statistics folded into both.
    - ``batch``: (scale, shift) and the batch's own statistics in either phase: SegNet's ``scale_filler``,
      ``shift_filler``, ``bn_mode: LEARN`` or three tops, of which two are the mean and the (biased) variance; or
      ``slope_filler`` with ``moving_average: false`` in TRAIN.
    - ``stored``: (slope, bias, mean, fourth): ``slope_filler``, ``bias_filler``, ``momentum`` or ``frozen``
      (PSPNet and its parents), ``moving_average: true``, or four ``param`` rows.
      ``frozen`` always uses the stored statistics; otherwise a pass in training uses the batch's and updates the
      stored ones, and any other pass uses the stored ones.
      PSPNet's first Caffe (source: hszhao/PSPNet 88d0b3ee, src/caffe/layers/bn_layer.cpp) has the same four blobs:
      ``decay``, ``axis`` or ``var_eps`` (1e-10), or ``scale_filler`` or ``shift_filler`` with ``moving_average`` or
      four ``param`` rows.  There momentum is 1 - ``decay``, and a pass outside training uses the batch's statistics and
      updates none, unless ``moving_average: true`` is stated.

    The phase at load decides the kind; `train()` and `eval()` switch the statistics of the ``stored`` kind only.

    Where the text shows none, the number of blobs in the weights file decides (`resolve_kind`).  Weights with another
    number of blobs than the kind has are refused when they are loaded.  A text that shows several kinds, or none
    without a file, is refused here.  The fourth blob is the variance in older builds of the
    same fork and 1 / sqrt(variance + eps) in newer ones; neither text nor file shows which:
    ``bn_param { fourth_blob: INVERSE_STD }`` states it, and VARIANCE is the default.
    """

    message = "bn_param"
    in_place = True
    top_count = (1, 3)
    fields = (
        *("slope_filler", "bias_filler", "scale_filler", "shift_filler", "momentum", "eps", "var_eps"),
        *("frozen", "moving_average", "bn_mode", "decay", "axis"),
    )
    fork_fields = ("bn_param.fourth_blob",)
    scale: Tensor
    shift: Tensor
    mean: Tensor
    fourth_blob: Tensor
    no_float16 = "statistics (fold=True multiplies them into the layers before)"

    @classmethod
    def resolve_kind(cls, text: pb.LayerParameter, blobs: int) -> None:
        stated = {field.name for field, _ in text.bn_param.ListFields()}
        if blobs == 4 and stated and stated <= {"scale_filler", "shift_filler"}:
            text.bn_param.decay = (
                text.bn_param.decay
            )  # stated, it shows PSPNet's first; SegNet's layer has two blobs
        shown = stated - {"eps", "var_eps"}
        if not shown and len(text.param) not in (2, 4):
            if blobs == 4:
                text.bn_param.slope_filler.SetInParent()
            elif blobs == 2:
                text.bn_param.scale_filler.SetInParent()

    def setup(self, rank: int) -> None:
        self.rank = rank
        self.is_first = self._is_first()
        self.kind = self._kind()
        self.eps = self._eps()
        self.momentum: float = 1 - self.param.decay if self.is_first else self.param.momentum
        if self.is_first:
            self.note = FIRST_NOTE
            if self.param.axis != 1:
                raise self.error(f"bn_param.axis {self.param.axis} is not supported; state 1 or leave it out")
        self.fourth = (self.fork_field("bn_param.fourth_blob") or VARIANCE).strip("\"'")
        if self.fourth not in (VARIANCE, INVERSE_STD):
            raise self.error(f"bn_param.fourth_blob {self.fourth!r} must be {VARIANCE} or {INVERSE_STD}")
        if self.fourth == INVERSE_STD and self.is_first:
            raise self.error("the fourth blob of this fork's BN is the variance; remove bn_param.fourth_blob")
        if self.fourth == INVERSE_STD and self.kind != "stored":
            raise self.error(
                f"bn_param.fourth_blob goes with four blobs; this text shows the {self.kind!r} kind of two"
            )
        self.is_frozen: bool = self.param.frozen
        # By the phase at load: decides what is exported and folded.
        self.reads_stored = self.kind == "stored" and (self.param.moving_average or not self.is_first)
        self.is_stored = self.reads_stored and (self.is_frozen or not self.is_train)
        self.has_no_statistics = self.kind == "batch" and self._has_no_statistics()
        if len(self.node.tops) == 2 or (len(self.node.tops) == 3 and self.kind != "batch"):
            raise self.error(
                f"has {len(self.node.tops)} tops; it takes 1, or 3 (mean and variance) where it uses the batch's statistics"
            )
        # Only SegNet's layer gives its top four axes, num x channels x height x width.
        sloped = self._states("slope_filler", "bias_filler", "moving_average")
        self.is_segnet = self.kind != "stored" and not sloped

    def _states(self, *fields: str) -> list[str]:
        return [field for field in fields if self.param.HasField(field)]

    def _is_first(self) -> bool:
        """Whether the text shows PSPNet's first Caffe."""
        scaled = self._states("scale_filler", "shift_filler")
        shown = self._states(*FIRST)
        if scaled and not shown:
            has_rows = len(self.node.layer.param) == 4 and not self.param.HasField("bn_mode")
            shown = self._states("moving_average") or (scaled if has_rows else [])
        other = self._states("slope_filler", "bias_filler", "momentum", "frozen", "eps", "bn_mode")
        if shown and other:
            raise self.error(
                f"states both {shown[0]} (of PSPNet's first Caffe) and {other[0]}, which belong to different forks; keep "
                "those of the fork that made the weights"
            )
        return bool(shown)

    def _kind(self) -> str:
        sloped = self._states("slope_filler", "bias_filler", "momentum", "frozen")
        scaled = self._states("scale_filler", "shift_filler", "bn_mode")
        averaged = self._states("moving_average")
        rows = len(self.node.layer.param)
        if sloped and scaled:
            raise self.error(
                f"states both {sloped[0]} (slope, bias, mean, variance) and {scaled[0]} (scale, shift), "
                "which belong to different forks; keep those of the fork that made the weights"
            )
        if self.is_first:
            return "stored"
        if self.param.bn_mode == self.param.INFERENCE:
            return "folded"
        if self._has_no_statistics():
            if not self.is_train:
                raise self._undefined("phase TEST")
            return "batch"
        if averaged and not sloped and not self._states("eps"):
            raise self.error(
                "moving_average: true alone is of two forks, whose eps differ; state eps (1e-05, with slope_filler) or "
                "var_eps (1e-10, with scale_filler)"
            )
        if sloped or averaged or rows == 4:
            return "stored"
        if scaled or rows == 2 or len(self.node.tops) == 3:
            return "batch"
        raise self.error(
            "bn_param does not show which fork's BN this is; state slope_filler for 4 blobs (slope, bias, "
            "mean, variance), scale_filler for 2 (scale, shift), or bn_mode: INFERENCE for 2 folded ones"
        )

    def _has_no_statistics(self) -> bool:
        return self.param.HasField("moving_average") and not self.param.moving_average

    def _undefined(self, where: str) -> LayerError:
        return self.error(
            f"moving_average: false keeps no statistics for {where}, and its fork leaves the "
            "result undefined; state true if the weights hold 4 blobs"
        )

    def _eps(self) -> float:
        if self.is_first:
            return float(self.param.var_eps) if self.param.HasField("var_eps") else FIRST_EPS
        # SegNet's layer has a constant and no field for it.
        is_fixed = self.kind == "batch" and not self._states("slope_filler", "bias_filler", "eps")
        return 1e-9 if is_fixed else float(self.param.eps)

    # ------------------------------------------------------------------ shapes

    def plan(self, x: Shape) -> LayerPlan:
        if not 2 <= len(x) <= 4:
            raise self.error(f"bottom {list(x)} has {len(x)} axes; it takes 2 to 4")
        # The forks write (1, C), (1, C, 1, 1) or both in one history: axes of size 1 do not matter here.
        shape = (1, x[1]) if self.kind == "stored" else (1, x[1], 1, 1)
        first, second = self.param.slope_filler, self.param.bias_filler
        if self._states("scale_filler", "shift_filler"):
            first, second = self.param.scale_filler, self.param.shift_filler
        learned = not self.param.frozen
        blobs = [
            BlobSpec("scale", shape, first, learned, any_ones=True),
            BlobSpec("shift", shape, second, learned, any_ones=True),
        ]
        if self.kind == "stored":
            initial = pb.FillerParameter(type="constant", value=1.0 if self.param.frozen else 0.0)
            blobs.append(BlobSpec("mean", shape, learned=False, any_ones=True))
            blobs.append(BlobSpec("fourth_blob", shape, initial, learned=False, any_ones=True))
        statistic = (1, x[1], 1, 1)
        tops = [legacy_shape(x) if self.is_segnet else x, statistic, statistic]
        return LayerPlan(tops[: len(self.node.tops)], blobs)

    def register_blob(self, spec: BlobSpec, parameter: nn.Parameter) -> None:
        super().register_blob(spec, parameter)
        if spec.name == "fourth_blob" and bool((parameter.detach() < 0).any()):
            warnings.warn(
                f"{self.node.name} (BN): its fourth blob holds negative values, which neither variances nor "
                f"inverse deviations have; it is read as {self.fourth} (bn_param.fourth_blob)",
                stacklevel=2,
            )

    # ------------------------------------------------------------------ forward, ONNX and source

    @property
    def _affine(self) -> tuple[Tensor, Tensor]:
        return self.scale.flatten(), self.shift.flatten()

    @property
    def variance(self) -> Tensor:
        fourth = self.fourth_blob.flatten()
        # F.batch_norm adds eps to it again.
        return fourth.square().reciprocal() - self.eps if self.fourth == INVERSE_STD else fourth

    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Update the stored statistics by a batch's; this fork stores the biased variance."""
        fourth = variance if self.fourth == VARIANCE else torch.rsqrt(variance + self.eps)
        with torch.no_grad():
            self.mean.lerp_(mean.view_as(self.mean), 1 - self.momentum)
            self.fourth_blob.lerp_(fourth.view_as(self.fourth_blob), 1 - self.momentum)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scale, shift = self._affine
        stored = self.reads_stored and (self.is_frozen or not self.training)
        if stored and not self.is_frozen and torch.is_grad_enabled() and x.requires_grad:
            x = stored_norm(x, self.mean.flatten(), self.variance, self.eps)
            return (x * along_channels(scale, self.rank) + along_channels(shift, self.rank),)
        if stored:
            return (F.batch_norm(x, self.mean.flatten(), self.variance, scale, shift, eps=self.eps),)
        if self.has_no_statistics and not self.training:
            raise self._undefined("eval()")
        statistics: tuple[Tensor, ...] = ()
        if self.kind != "folded":
            x, mean, variance = batch_norm(x, self.eps)
            if self.kind == "stored" and self.training:
                self._update_statistics(mean, variance)
            # Caffe's backward pass starts from the first top only.
            statistics = tuple(value.detach().view(1, -1, 1, 1) for value in (mean, variance))
        top = x * along_channels(scale, self.rank) + along_channels(shift, self.rank)
        top = with_four_axes(top) if self.is_segnet else top
        return (top, *statistics)[: len(self.node.tops)]

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        if self.is_stored:
            values = [*self._affine, self.mean.flatten(), self.variance]
            constants = [graph.constant(numbers(value)) for value in values]
            return [graph.node("BatchNormalization", [x, *constants], epsilon=self.eps)]
        unit = x if self.kind == "folded" else onnx_batch_norm(graph, x, self.rank, self.eps)
        top = onnx_affine(graph, unit, *self._affine, self.rank)
        tops = [onnx_with_four_axes(graph, top, self.rank) if self.is_segnet else top]
        if len(self.node.tops) == 3:
            axes = graph.constant(integers(*(axis for axis in range(self.rank) if axis != 1)))
            mean = graph.node("ReduceMean", [x, axes])
            difference = graph.node("Sub", [x, mean])
            variance = graph.node("ReduceMean", [graph.node("Mul", [difference, difference]), axes])
            tops += [onnx_with_four_axes(graph, value, self.rank) for value in (mean, variance)]
        return tops

    def source(self, code: SourceCode, x: str) -> list[str]:
        eps = literal(self.eps)
        if self.reads_stored and not self.is_frozen and has_module(code.shape(0), self.is_train):
            affine = dict(zip(("weight", "bias"), self._affine, strict=True))
            statistics = self.mean.flatten(), self.variance
            return [batch_norm_source(code, x, self.eps, 1 - self.momentum, statistics, affine)]
        if self.is_stored:
            stored = (("mean", self.mean.flatten()), ("variance", self.variance))
            arguments = [code.buffer(name, value) for name, value in stored]
            declare = code.buffer if self.is_frozen else code.parameter
            arguments += [
                declare(name, value) for name, value in zip(("scale", "shift"), self._affine, strict=True)
            ]
            return [f"F.batch_norm({x}, {', '.join(arguments)}, eps={eps})"]
        scale, shift = (
            code.parameter(name, along_channels(value, self.rank))
            for name, value in zip(("scale", "shift"), self._affine, strict=True)
        )
        call = x if self.kind == "folded" else f"{code.helper(batch_norm)}({x}, {eps})"
        top = x if self.kind == "folded" else f"{call}[0]"
        tail = four_axes_index(self.rank) if self.is_segnet else ""
        tops = [f"({top} * {scale} + {shift}){tail}" if tail else f"{top} * {scale} + {shift}"]
        tops += [f"{call}[{index}].view(1, -1, 1, 1)" for index in (1, 2)]
        return tops[: len(self.node.tops)]
