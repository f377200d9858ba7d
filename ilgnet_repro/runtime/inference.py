"""A pass without gradients in float32 on the CPU: channels-last blobs, merged layers, ReLU in place.

torch's max pooling is ten times as fast on channels-last blobs as on N×C×H×W, and its convolutions are a little faster.
Each layer states the order in memory that its bottoms are given in (`Layer.layout`), so that one written for contiguous
tensors gets them; a pass returns contiguous blobs.  Layers with one value per channel (BatchNorm, Scale) become one
multiplication and addition, which overwrites its bottom where nothing else reads it, and so does a ReLU.  What layers
decide by the sizes of their bottoms (`Layer.for_inference`) is decided once for each size of the inputs: beside LeNet's
layers, of 5 to 70 us, it took as long as they do.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ARITHMETIC, unusable
from ..layers.activation import ReLU
from ..layers.conv import ConvolutionBase
from ..layers.dense import InnerProduct
from ..layers.eltwise import Eltwise
from ..layers.support.base import ANY_LAYOUT, CHANNELS_LAST, CONTIGUOUS, Layer, Shape
from .calls import Sizes
from .plan import NetPlan
from .step import Step

Run = Callable[..., Sequence[Tensor]]
MOST_SIZES = 32  # of inputs, for which a net keeps what its layers decided


@dataclass(frozen=True, slots=True)
class Call:
    """What computes a step, or several that are merged."""

    step: Step  # the first of them
    layer: Layer | None  # None where the call begins with layers that multiply and add
    affine: tuple[Layer, ...]  # that then multiply and add one value per channel
    is_rectified: bool  # max(x, 0) comes last
    varies: bool  # the shapes of its bottoms depend on values, not on the sizes of the inputs alone
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]
    freed: tuple[int, ...]

    def prepared(self, bottoms: Sequence[Shape]) -> Run:
        """Return what computes the tops, for bottoms of these shapes."""
        if self.layer is None:
            return _Merged(None, self.affine, self.is_rectified)
        run = self.layer.forward if self.varies else self.layer.for_inference(*bottoms)
        return _Merged(run, self.affine, self.is_rectified) if self.affine or self.is_rectified else run


@dataclass(frozen=True, slots=True)
class _Merged:
    """A layer, layers that each multiply and add one value per channel, and a ReLU."""

    run: Run | None
    affine: tuple[Layer, ...]
    is_rectified: bool

    def __call__(self, *bottoms: Tensor) -> Sequence[Tensor]:
        (top,) = bottoms if self.run is None else self.run(*bottoms)
        if self.affine:
            top = self._multiplied(top)
        return (torch.relu_(top) if self.is_rectified else top,)

    def _multiplied(self, x: Tensor) -> Tensor:
        factor: Tensor | None = None
        shift: Tensor | None = None
        for layer in self.affine:
            found = layer.channel_affine(layer.training)
            if found is None:  # in training it computes something else
                return self._one_by_one(x)
            more, further = found
            shift = further if shift is None else torch.addcmul(further, shift, more)
            factor = more if factor is None else factor * more
        assert factor is not None and shift is not None
        out = None if self.run is None else x
        return torch.addcmul(shift[:, None, None], x, factor[:, None, None], out=out)

    def _one_by_one(self, x: Tensor) -> Tensor:
        for layer in self.affine:
            (x,) = layer.forward(x)
        return x


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a call does for bottoms of some shapes."""

    run: Run | None  # None for an input
    orders: tuple[torch.memory_format | None, ...]  # that each bottom is put into; None leaves it


class Inference:
    """The calls of a pass, with what their layers decided for each size of the inputs."""

    def __init__(self, calls: Sequence[Call], slots: int, wanted: Sequence[tuple[str, int]]) -> None:
        self.calls, self.slots, self.wanted = tuple(calls), slots, tuple(wanted)
        self._known: OrderedDict[Sizes, tuple[_Prepared, ...]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # A copy's layers decide for themselves: what these decided reads their weights.
        return {**vars(self), "_known": OrderedDict()}

    def __call__(self, sizes: Sizes, feed: Callable[[Step], Sequence[Any]]) -> dict[str, Tensor]:
        """Return the wanted blobs; ``feed`` returns the tops of an input layer.

        Raises LayerError where a layer cannot compute its tops.
        """
        values: list[Any] = [None] * self.slots
        known = self._known.get(sizes)
        done: list[_Prepared] = []
        call = self.calls[0]
        try:
            for index, call in enumerate(self.calls):
                prepared = known[index] if known else _prepared(call, values)
                run = prepared.run
                tops: Sequence[Any]
                if run is None:
                    tops = feed(call.step)
                elif len(call.bottoms) == 1:
                    (order,), value = prepared.orders, values[call.bottoms[0]]
                    tops = run(value if order is None else value.contiguous(memory_format=order))
                else:
                    pairs = zip(call.bottoms, prepared.orders, strict=True)
                    tops = run(*[in_order(values[slot], order) for slot, order in pairs])
                if len(call.tops) == 1:
                    values[call.tops[0]] = tops[0]
                else:
                    for slot, top in zip(call.tops, tops, strict=False):
                        values[slot] = top
                for slot in call.freed:
                    values[slot] = None
                if known is None:
                    done.append(prepared)
        except ARITHMETIC as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            node = call.step.node
            raise unusable(node.name, node.type, "cannot compute its tops", error) from error
        if known is None:
            self._known[sizes] = tuple(done)
            if len(self._known) > MOST_SIZES:
                self._known.popitem(last=False)
        return {name: values[slot].contiguous() for name, slot in self.wanted}


def _prepared(call: Call, values: Sequence[Any]) -> _Prepared:
    """Return a call for the shapes that its bottoms have now."""
    if not call.bottoms:
        return _Prepared(None, ())
    shapes = [tuple(values[slot].shape) for slot in call.bottoms]
    layout = CONTIGUOUS if call.step.layer is None else call.step.layer.layout
    return _Prepared(call.prepared(shapes), tuple(_order(layout, len(shape)) for shape in shapes))


def _order(layout: str, rank: int) -> torch.memory_format | None:
    """Return the order of memory that a layout asks of a tensor with so many axes; None leaves it."""
    if layout == ANY_LAYOUT:
        return None
    return torch.channels_last if layout == CHANNELS_LAST and rank == 4 else torch.contiguous_format


def in_layout(value: Tensor, layout: str) -> Tensor:
    """Return a tensor in the order of memory of a layout."""
    return in_order(value, _order(layout, value.dim()))


def in_order(value: Tensor, order: torch.memory_format | None) -> Tensor:
    """Return a tensor in the order of memory that a layer takes."""
    return value if order is None else value.contiguous(memory_format=order)


def make_inference(
    plan: NetPlan, steps: Sequence[Step], slots: int, wanted: Sequence[tuple[str, int]]
) -> Inference | None:
    """Return the pass of some steps that returns ``wanted``, names of blobs with their slots.

    None where a layer reads more than values of others, and where nothing is to be computed.
    """
    if not steps or not all(map(_is_simple, steps)):
        return None
    kept = {slot for _, slot in wanted}
    reads = Counter(slot for step in steps for slot in step.bottoms)
    varied: set[int] = set()  # slots of values whose shapes depend on values
    calls: list[Call] = []
    rest = list(steps)
    while rest:
        step = rest.pop(0)
        merged = [step]
        layer = None if _is_affine(plan, step) else step.layer
        affine = [] if layer is not None else [step]
        if layer is None or makes_new_top(step.layer):
            while rest and _follows(merged[-1], rest[0], reads, kept) and _is_affine(plan, rest[0]):
                affine.append(rest[0])
                merged.append(rest.pop(0))
        is_new = bool(affine) or makes_new_top(step.layer)
        is_rectified = bool(
            is_new and rest and _follows(merged[-1], rest[0], reads, kept) and _is_plain_relu(rest[0])
        )
        if is_rectified:
            merged.append(rest.pop(0))
        freed = tuple({slot for one in merged for slot in one.freed})
        layers = tuple(one.layer for one in affine if one.layer is not None)
        varies = not varied.isdisjoint(step.bottoms)
        if varies or (step.layer is not None and step.layer.sized_by_values):
            varied.update(merged[-1].tops)
        calls.append(Call(step, layer, layers, is_rectified, varies, step.bottoms, merged[-1].tops, freed))
    return Inference(calls, slots, wanted)


def _is_simple(step: Step) -> bool:
    layer = step.layer
    if layer is None or layer.may_be_fed or step.loss_weights:
        return False
    return layer.is_input or bool(step.bottoms)


def _follows(before: Step, after: Step, reads: Counter[int], kept: Collection[int]) -> bool:
    """Return whether a step alone reads the only top of the one before it."""
    return (
        len(before.tops) == 1
        and after.bottoms == before.tops
        and reads[before.tops[0]] == 1
        and before.tops[0] not in kept
    )


def makes_new_top(layer: Layer | None) -> bool:
    """Return whether a ReLU may overwrite a layer's top: it is always a new tensor, and the only one."""
    if isinstance(layer, Eltwise):
        return type(layer).forward is Eltwise.forward and not layer.clears_first
    if isinstance(layer, InnerProduct):
        return type(layer).forward is InnerProduct.forward
    return (
        isinstance(layer, ConvolutionBase)
        and type(layer).forward is ConvolutionBase.forward
        and len(layer.node.tops) == 1
    )


def _is_affine(plan: NetPlan, step: Step) -> bool:
    layer = step.layer
    if layer is None or layer.layout != ANY_LAYOUT or len(step.bottoms) != 1:
        return False
    return layer.is_channel_affine(len(plan.value_shapes[step.node.bottoms[0]]))


def _is_plain_relu(step: Step) -> bool:
    return type(step.layer) is ReLU and step.layer.is_plain
