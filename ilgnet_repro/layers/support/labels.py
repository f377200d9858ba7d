"""Labels and indices, integers in a blob of floats: checks, ignored labels, and loss normalisation.

Scores have classes along one axis and, along all others, one position per label.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from ...schema import caffe_pb2 as pb
from .base import Layer, OnnxGraph, Shape, integers, numbers

MOST_CLASSES = 30_000  # each is sorted and suppressed by itself, in every image; ImageNet has 21,841


def foreground_labels(layer: Layer) -> list[int]:
    """Return the labels of a layer of SSD, all below `num_classes` but that of the background."""
    count, background = layer.param.num_classes, layer.param.background_label_id
    if not count:
        raise layer.error("num_classes is 0 or absent; state their number, with the background")
    if count > MOST_CLASSES:
        raise layer.error(f"num_classes {count} must be at most {MOST_CLASSES:,}")
    return [label for label in range(count) if label != background]


# ---------------------------------------------------------------------- torch, also for written source


def label_rows(
    scores: Tensor, labels: Tensor, axis: int, ignore_label: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores as one row per label, the labels as class numbers (0 where ignored), and a mask of those counted."""
    rows = scores.movedim(axis, -1).reshape(-1, scores.shape[axis])
    labels = labels.reshape(-1).long()
    if ignore_label is None:
        return rows, labels, torch.ones_like(labels, dtype=torch.bool)
    counts = labels != ignore_label
    return rows, torch.where(counts, labels, 0), counts


def normalized_sum(losses: Tensor, counts: Tensor, mode: str | float, batch: int) -> Tensor:
    """Return the sum of the counted losses over Caffe's normalizer, which is at least 1; a number is the normalizer."""
    total = torch.where(counts, losses, 0).sum()
    if not isinstance(mode, str):
        return total / max(mode, 1)
    if mode == "NONE":
        return total
    if mode == "VALID":
        return total / counts.sum().clamp(min=1)
    return total / max(batch if mode == "BATCH_SIZE" else losses.numel(), 1)


# ---------------------------------------------------------------------- layers


def normalization(layer: Layer, default: str) -> str | float:
    """Return how `loss_param` normalizes: by `normalization`, else the older `normalize`, else ``default``.

    R-FCN's PRE_FIXED is a number, `pre_fixed_normalizer`.  Raises LayerError for weights that the layer does not read.
    """
    param = layer.node.layer.loss_param
    if param.weight_by_label_freqs and not getattr(layer, "weighs_classes", False):
        raise layer.error(
            "loss_param.weight_by_label_freqs is not supported; remove it if it does not matter"
        )
    if param.HasField("normalization"):
        if param.normalization == pb.LossParameter.PRE_FIXED:
            return float(param.pre_fixed_normalizer)
        return pb.LossParameter.NormalizationMode.Name(param.normalization)
    if param.HasField("normalize"):
        return "VALID" if param.normalize else "BATCH_SIZE"
    return default


def ignored_label(param: pb.LossParameter) -> int | None:
    """Return `ignore_label`, or None."""
    return param.ignore_label if param.HasField("ignore_label") else None


def check_label_count(layer: Layer, scores: Shape, labels: Shape, axis: int) -> None:
    """Raise LayerError unless there is one label for each row of scores along ``axis``."""
    rows = prod(scores[:axis]) * prod(scores[axis + 1 :])
    if prod(labels) != rows:
        raise layer.error(
            f"has {prod(labels)} labels {list(labels)} for {rows} predictions {list(scores)} "
            f"along axis {axis}; give one label per prediction"
        )


def out_of_range(what: str, found: int, count: int, least: int = 0) -> str:
    """Return the message for an index outside ``least <= index < count``, with which Caffe reads out of bounds."""
    return f"{what} {found} is out of range; it must be from {least} to {count - 1}"


def check_labels(layer: Layer, labels: Tensor, classes: int, ignore_label: int | None) -> None:
    """Raise LayerError for a label that is not a class; Caffe reads out of bounds there.

    A compiled or exported net cannot inspect values; there torch's bounds check applies.
    """
    if torch.compiler.is_compiling() or not labels.numel():
        return
    labels = labels.long()
    wrong = (labels < 0) | (labels >= classes)
    if ignore_label is not None:
        wrong &= labels != ignore_label
    if wrong.any():
        raise layer.error(
            out_of_range("label", int(labels[wrong][0]), classes)
            + ": correct the labels, num_output or ignore_label"
        )


# ---------------------------------------------------------------------- indices


def to_indices(layer: Layer, values: Tensor, count: int | torch.SymInt, what: str) -> Tensor:
    """Return ``values`` as int64 indices, truncated towards zero as Caffe casts them.

    Raises LayerError, which calls them ``what``, for an index outside ``0 <= index < count``, where Caffe aborts or
    reads out of bounds.  A compiled or exported net cannot inspect values; there torch's bounds check applies.
    """
    indices = values.long()
    if not torch.compiler.is_compiling() and indices.numel():
        least, greatest = (int(bound) for bound in indices.aminmax())
        if least < 0 or greatest >= count:
            found = least if least < 0 else greatest
            raise layer.error(out_of_range(what, found, int(count)))
    return indices


# ---------------------------------------------------------------------- ONNX


def label_rows_onnx(
    graph: OnnxGraph, scores: str, labels: str, axis: int, ignore_label: int | None
) -> tuple[str, str, str]:
    """Add `label_rows` of a bottom to a graph; the labels are N×1."""
    rank, classes = len(graph.shape(scores)), graph.size(scores, axis)
    rows = scores
    if axis != rank - 1:
        rows = graph.node("Transpose", [scores], perm=[*range(axis), *range(axis + 1, rank), axis])
    rows = graph.node("Reshape", [rows, graph.constant(integers(-1, classes))])
    return rows, *labels_onnx(graph, labels, ignore_label)


def labels_onnx(graph: OnnxGraph, labels: str, ignore_label: int | None) -> tuple[str, str]:
    """Add the labels as class numbers N×1, 0 where ignored, and the mask of those counted."""
    from onnx import TensorProto

    flat = graph.node("Reshape", [labels, graph.constant(integers(-1, 1))])
    classes = graph.node("Cast", [flat], to=TensorProto.INT64)
    ignored = np.asarray(np.iinfo(np.int64).min if ignore_label is None else ignore_label, np.int64)
    counts = graph.node("Not", [graph.node("Equal", [classes, graph.constant(ignored)])])
    return graph.node("Where", [counts, classes, graph.constant(np.zeros((), np.int64))]), counts


def normalized_sum_onnx(
    graph: OnnxGraph, losses: str, counts: str, mode: str | float, batch: tuple[str, int] | None = None
) -> str:
    """Add `normalized_sum` to a graph; ``batch`` is a value and how many of its first axes the batch size multiplies."""
    from onnx import TensorProto

    zero, one = graph.constant(numbers(0)), graph.constant(numbers(1))
    total = graph.node("ReduceSum", [graph.node("Where", [counts, losses, zero])], keepdims=0)
    if not isinstance(mode, str):
        return graph.node("Div", [total, graph.constant(numbers(max(mode, 1)))])
    if mode == "NONE" or (mode == "BATCH_SIZE" and not (batch and batch[1])):
        return total
    if mode == "VALID":
        valid = graph.node("Cast", [counts], to=TensorProto.FLOAT)
        divisor = graph.node("ReduceSum", [valid], keepdims=0)
    elif mode == "FULL" or batch is None:
        divisor = graph.node("Cast", [graph.node("Size", [losses])], to=TensorProto.FLOAT)
    else:
        extents = graph.node("Shape", [batch[0]], start=0, end=batch[1])
        product = graph.node("ReduceProd", [extents], keepdims=0)
        divisor = graph.node("Cast", [product], to=TensorProto.FLOAT)
    return graph.node("Div", [total, graph.node("Max", [divisor, one])])


def indices_onnx(graph: OnnxGraph, value: str) -> str:
    """Add the cast of `to_indices` to a graph, without its check."""
    from onnx import TensorProto

    return graph.node("Cast", [value], to=TensorProto.INT64)
