"""A pass without gradients in float32 on the CPU: channels-last blobs, merged layers, ReLU in place.

torch's max pooling is ten times as fast on channels-last blobs as on N×C×H×W, and its convolutions are a little faster.
Each layer states the order in memory that its bottoms are given in (`Layer.layout`), so that one written for contiguous
tensors gets them; a pass returns contiguous blobs.  Layers with one value per channel (BatchNorm, Scale) become one
multiplication and addition, and a ReLU overwrites values that nothing else reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers.activation import ReLU
from ..layers.conv import ConvolutionBase
from ..layers.eltwise import Eltwise
from ..layers.support.base import ANY_LAYOUT, CHANNELS_LAST, Layer
from .plan import NetPlan
from .step import Step


@dataclass(frozen=True, slots=True)
class Call:
    """What computes a step, or several that are merged."""

    step: Step  # the first of them
    run: Callable[..., Sequence[Tensor]] | None  # None for an input
    layout: str
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]
    freed: tuple[int, ...]

    def __call__(self, values: Sequence[Any]) -> Sequence[Tensor]:
        """Return the tops for the bottoms in some slots."""
        assert self.run is not None
        if len(self.bottoms) == 1:
            return self.run(in_layout(values[self.bottoms[0]], self.layout))
        return self.run(*[in_layout(values[slot], self.layout) for slot in self.bottoms])


def in_layout(value: Tensor, layout: str) -> Tensor:
    """Return a tensor in the order of memory that a layer takes."""
    if layout == ANY_LAYOUT:
        return value
    if layout == CHANNELS_LAST and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value.contiguous()


@dataclass(frozen=True, slots=True)
class _ChannelAffine:
    """Layers that each multiply and add one value per channel, as one."""

    layers: tuple[Layer, ...]

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        factor: Tensor | None = None
        shift: Tensor | None = None
        for layer in self.layers:
            found = layer.channel_affine(layer.training)
            if found is None:  # in training it computes something else
                return self._one_by_one(x)
            more, further = found
            shift = further if shift is None else torch.addcmul(further, shift, more)
            factor = more if factor is None else factor * more
        assert factor is not None and shift is not None
        return (torch.addcmul(shift[:, None, None], x, factor[:, None, None]),)

    def _one_by_one(self, x: Tensor) -> Sequence[Tensor]:
        for layer in self.layers:
            (x,) = layer.forward(x)
        return (x,)


@dataclass(frozen=True, slots=True)
class _ThenReLU:
    """A call whose top is then overwritten by max(x, 0)."""

    run: Callable[..., Sequence[Tensor]]

    def __call__(self, *bottoms: Tensor) -> Sequence[Tensor]:
        (top,) = self.run(*bottoms)
        return (torch.relu_(top),)


def make_calls(plan: NetPlan, steps: Sequence[Step], kept: Collection[int]) -> tuple[Call, ...]:
    """Return the calls of a pass that keeps the values in some slots, or none where the net gains nothing by them.

    A net gains where a 2-D convolution is too large for the matrix product that small ones are computed by, and where
    all layers are its own and read values of other layers only.
    """
    if not all(map(_is_simple, steps)) or not any(_gains(plan, step) for step in steps):
        return ()
    reads = Counter(slot for step in steps for slot in step.bottoms)
    calls: list[Call] = []
    rest = list(steps)
    while rest:
        merged = [rest.pop(0)]
        step = merged[0]
        layer: Any = step.layer
        run = None if layer.is_input else layer.forward
        is_new = _makes_new_top(step)
        if _is_affine(plan, step):
            while rest and _follows(merged[-1], rest[0], reads, kept) and _is_affine(plan, rest[0]):
                merged.append(rest.pop(0))
            run, is_new = _ChannelAffine(tuple(one.layer for one in merged if one.layer is not None)), True
        if is_new and rest and _follows(merged[-1], rest[0], reads, kept) and _is_plain_relu(rest[0]):
            assert run is not None
            merged.append(rest.pop(0))
            run = _ThenReLU(run)
        freed = tuple({slot for one in merged for slot in one.freed})
        calls.append(Call(step, run, layer.layout, step.bottoms, merged[-1].tops, freed))
    return tuple(calls)


def _is_simple(step: Step) -> bool:
    layer = step.layer
    if layer is None or layer.may_be_fed or step.loss_weights:
        return False
    return layer.is_input or bool(step.bottoms)


def _gains(plan: NetPlan, step: Step) -> bool:
    layer = step.layer
    if not isinstance(layer, ConvolutionBase) or layer.layout != CHANNELS_LAST:
        return False
    bottom = plan.value_shapes[step.node.bottoms[0]]
    return not layer.is_small(bottom, plan.blobs[step.node.name][0].shape)


def _follows(before: Step, after: Step, reads: Counter[int], kept: Collection[int]) -> bool:
    """Return whether a step alone reads the only top of the one before it."""
    return (
        len(before.tops) == 1
        and after.bottoms == before.tops
        and reads[before.tops[0]] == 1
        and before.tops[0] not in kept
    )


def _makes_new_top(step: Step) -> bool:
    """Return whether a ReLU may overwrite a layer's top: it is always a new tensor, and the only one."""
    layer = step.layer
    if isinstance(layer, Eltwise):
        return type(layer).forward is Eltwise.forward and not layer.clears_first
    return (
        isinstance(layer, ConvolutionBase)
        and type(layer).forward is ConvolutionBase.forward
        and len(step.tops) == 1
    )


def _is_affine(plan: NetPlan, step: Step) -> bool:
    layer = step.layer
    if layer is None or layer.layout != ANY_LAYOUT or len(step.bottoms) != 1:
        return False
    return layer.is_channel_affine(len(plan.value_shapes[step.node.bottoms[0]]))


def _is_plain_relu(step: Step) -> bool:
    return type(step.layer) is ReLU and step.layer.is_plain
