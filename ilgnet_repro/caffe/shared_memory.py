"""Memory that blobs share in Caffe: an in-place layer changes every blob in the same memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..schema import caffe_pb2 as pb
from .graph import Value

# Their tops share the bottom's memory (`Blob::ShareData`), whatever their parameters.
_SHARING = ("Split", "Flatten", "Reshape", "GradientScaler")
# The second top of these is the probabilities that their own backward pass reads.
_WITH_PROBABILITIES = ("SoftmaxWithLoss", "InfogainLoss")


def in_place_tops(layer: pb.LayerParameter) -> list[int]:
    """Return the tops that are written over the bottom of the same position, as `Net::AppendTop` decides."""
    pairs = zip(layer.bottom, layer.top, strict=False)
    return [index for index, (bottom, top) in enumerate(pairs) if bottom == top]


def shares_memory(layer: pb.LayerParameter) -> bool:
    """Return whether every top of a layer shares the memory of its first bottom."""
    if layer.type == "Concat":
        return len(layer.bottom) == 1
    if layer.type == "Slice":
        return len(layer.top) == 1
    return layer.type in _SHARING or _keeps_order(layer)


def writes(layer: pb.LayerParameter, phase: str) -> bool:
    """Return whether an in-place layer changes values: memory-sharing layers and most of Dropout in phase TEST do not."""
    return not (
        shares_memory(layer) or (layer.type == "Dropout" and phase == "TEST" and _passes_in_test(layer))
    )


def _passes_in_test(dropout: pb.LayerParameter) -> bool:
    param = dropout.dropout_param  # the fields of forks: CTPN scales in phase TEST, SegNet draws in it
    return param.scale_train and not param.sample_weights_test


def gives_gradient_memory(layer: pb.LayerParameter) -> bool:
    """Return whether a layer has no backward pass because its top shares the gradient memory of its bottom."""
    return shares_memory(layer) and layer.type in ("Reshape", "Concat", "Slice")


def takes_gradient_memory(layer: pb.LayerParameter) -> bool:
    """Return whether a layer's backward pass replaces the gradient memory of its bottom by that of its top."""
    return layer.type == "Flatten" or _keeps_order(layer)


def _keeps_order(layer: pb.LayerParameter) -> bool:
    """Return whether a layer is a Permute that moves no axis; SSD's implementation then shares memory."""
    order = list(layer.permute_param.order)
    return layer.type == "Permute" and order == list(range(len(order)))


def guarded_top(layer: pb.LayerParameter, index: int, phase: str, shared: bool) -> str:
    """Return what else a top's memory is used for, if that makes in-place writes to it unsafe; else "".

    ``shared``: another layer shares this layer's parameter by name. In phase TEST the first pass over a Parameter
    layer's blob is well defined, and every pass here returns that result.
    """
    where = f"{layer.name or '(unnamed)'} ({layer.type})"
    if layer.type == "Parameter" and (phase == "TRAIN" or shared):
        return f"the blob of {where} itself, so that a pass changes the weights"
    if layer.type in _WITH_PROBABILITIES and index == 1 and phase == "TRAIN":
        return f"what the gradient of {where} is computed from"
    return ""


@dataclass
class Memory:
    """The memory of one or more blobs: how often in-place layers wrote it, the last value, and what else uses it."""

    guard: str = ""
    written: int = 0
    last: Value | None = None


@dataclass
class Blob:
    """A blob at one point of `Net::Init`: its memory, and its value when that was last read."""

    memory: Memory
    value: Value
    written: int  # `Memory.written` when the blob got this value
