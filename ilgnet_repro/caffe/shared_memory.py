"""Memory that Caffe's layers share: a layer in place writes for every blob that lies in the same memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..schema import caffe_pb2 as pb
from .graph import Value

# Their tops share the bottom's memory (`Blob::ShareData`), whatever their parameters say.
_SHARING = ("Split", "Flatten", "Reshape")
# The second top of these is the probabilities that their own backward pass reads.
_WITH_PROBABILITIES = ("SoftmaxWithLoss", "InfogainLoss")


def in_place_tops(layer: pb.LayerParameter) -> list[int]:
    """Return the tops that are written over the bottom of the same position, as `Net::AppendTop` decides."""
    pairs = zip(layer.bottom, layer.top, strict=False)
    return [index for index, (bottom, top) in enumerate(pairs) if bottom == top]


def shares_memory(layer: pb.LayerParameter) -> bool:
    """Tell whether every top of a layer is its first bottom's memory under another name."""
    if layer.type == "Concat":
        return len(layer.bottom) == 1
    if layer.type == "Slice":
        return len(layer.top) == 1
    return layer.type in _SHARING or _keeps_order(layer)


def writes(layer: pb.LayerParameter, phase: str) -> bool:
    """Tell whether a layer in place changes the values: Dropout does not in phase TEST, nor does a sharing layer."""
    return not (shares_memory(layer) or (layer.type == "Dropout" and phase == "TEST"))


def gives_gradient_memory(layer: pb.LayerParameter) -> bool:
    """Tell whether a layer's backward pass is nothing but the gradient memory that its top got from its bottom."""
    return shares_memory(layer) and layer.type in ("Reshape", "Concat", "Slice")


def takes_gradient_memory(layer: pb.LayerParameter) -> bool:
    """Tell whether a layer's backward pass gives its bottom the top's gradient memory in place of its own."""
    return layer.type == "Flatten" or _keeps_order(layer)


def _keeps_order(layer: pb.LayerParameter) -> bool:
    """A Permute that moves no axis: SSD's shares memory then."""
    order = list(layer.permute_param.order)
    return layer.type == "Permute" and order == list(range(len(order)))


def guarded_top(layer: pb.LayerParameter, index: int, phase: str, shared: bool) -> str:
    """Say what else a top's memory is, where that matters beyond one forward pass; else an empty string.

    ``shared``: other layers have a parameter of the name that this layer's has.  In phase TEST the first pass
    over a Parameter's own blob is well defined, and is what a net of ours gives at each.
    """
    where = f"{layer.name or '(unnamed)'} ({layer.type})"
    if layer.type == "Parameter" and (phase == "TRAIN" or shared):
        return f"the blob of {where} itself, so that a pass changes the weights"
    if layer.type in _WITH_PROBABILITIES and index == 1 and phase == "TRAIN":
        return f"what the gradient of {where} is computed from"
    return ""


@dataclass
class Memory:
    """One piece of memory: how often layers in place have written it, the last value, and whose it is besides."""

    guard: str = ""
    written: int = 0
    last: Value | None = None


@dataclass
class Blob:
    """What a blob's name stands for at one point of the walk: its memory, and its value when that was last read."""

    memory: Memory
    value: Value
    written: int  # how often its memory had been written when it got this value
