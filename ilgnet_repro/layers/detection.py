"""DetectionOutput: a list of boxes from SSD's offsets and scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..schema import caffe_pb2 as pb
from .support.base import (
    Layer,
    LayerPlan,
    OnnxGraph,
    Shape,
    SourceCode,
    exact,
    integers,
    literal,
    numbers,
    uses,
)
from .support.boxes import decode_boxes, default_box_count, greedy_nms
from .support.detections import node_writer, rows_or_blank
from .support.labels import foreground_labels
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def detect(
    loc: Tensor,
    conf: Tensor,
    priors: Tensor,
    *,
    classes: int,
    background: int,
    shared: bool,
    code: tuple[str, bool],
    nms: tuple[float, float, int | None],
    keep_top_k: int | None,
    confidence: float,
) -> Tensor:
    """Return rows (image, class, score, xmin, ymin, xmax, ymax), 1×1×R×7, by image, class and descending score.

    ``code`` is the code type and whether variances are encoded already, ``nms`` its threshold, eta and
    top_k.  Where nothing is detected there is one row of -1 per image.
    """
    (code_type, encoded), (threshold, eta, top_k) = code, nms
    boxes, variances = priors.reshape(2, -1, 1, 4)
    variances = torch.ones_like(variances) if encoded else variances
    offsets = loc.reshape(len(loc), len(boxes), 1 if shared else classes, 4)
    found = decode_boxes(offsets, boxes, variances, code_type).cpu()
    scores = conf.reshape(len(conf), len(boxes), classes).cpu()
    rows = []
    for image in range(len(loc)):
        parts = [found.new_zeros(0, 7)]
        for label in (label for label in range(classes) if label != background):
            score, order = scores[image, :, label].sort(descending=True, stable=True)
            order = order[score > confidence][:top_k]
            box = found[image, order, 0 if shared else label]
            kept = greedy_nms(box, threshold, eta=eta)
            labels = torch.tensor([image, label], dtype=found.dtype).expand(len(kept), 2)
            score = scores[image, order[kept], label, None]
            parts.append(torch.cat([labels, score, box[kept]], 1))
        here = torch.cat(parts)
        if keep_top_k is not None and len(here) > keep_top_k:
            best = here[:, 2].argsort(descending=True, stable=True)[:keep_top_k]
            here = here[best.sort().values]
        rows.append(here)
    top = torch.cat(rows) if rows else found.new_zeros(0, 7)
    if not len(top):
        top = torch.full((len(loc), 7), -1.0, dtype=found.dtype)
        top[:, 0] = torch.arange(len(loc))
    return top[None, None].to(loc.device)


uses(detect, decode_boxes, greedy_nms)

# ---------------------------------------------------------------------- layer


@register_layer("DetectionOutput")
class DetectionOutput(Layer):
    """Decoded boxes that survive each class's non-maximum suppression (Liu et al., ECCV 2016).

    Bottoms: offsets N×4P (or N×4P·classes), scores N×P·classes, default boxes 1×2×4P; a fourth, the images
    to draw on, is not read.  The number of rows is known only when the net runs: `plan` returns the maximum.
    """

    message = "detection_output_param"
    fields = (
        *("num_classes", "share_location", "background_label_id", "nms_param", "code_type"),
        *("variance_encoded_in_target", "keep_top_k", "confidence_threshold"),
    )
    # These show windows and write files; the top is the same.
    ignored_fields = ("save_output_param", "visualize", "visualize_threshold", "save_file")
    bottom_count = (3, 4)
    has_gradient = False
    sized_by_values = True
    counted_axis = 2

    def setup(self, *ranks: int) -> None:
        nms = self.param.nms_param
        self.foreground = foreground_labels(self)
        if nms.nms_threshold < 0 or not 0 < nms.eta <= 1:
            raise self.error(
                f"nms_threshold {nms.nms_threshold} must be at least 0 and eta {nms.eta} in (0, 1]"
            )
        if nms.eta < 1:
            self.no_onnx = "NonMaxSuppression has no adaptive threshold (nms_param.eta under 1)"
        self.classes: int = self.param.num_classes
        self.shared: bool = self.param.share_location
        self.code_type = pb.PriorBoxParameter.CodeType.Name(self.param.code_type)
        self.top_k = nms.top_k if nms.HasField("top_k") and nms.top_k >= 0 else None
        self.keep: int | None = self.param.keep_top_k if self.param.keep_top_k >= 0 else None
        stated = self.param.HasField("confidence_threshold")
        lowest = float(np.finfo(np.float32).min)
        self.confidence: float = self.param.confidence_threshold if stated else lowest
        if not self.foreground:
            raise self.error("the background is the only class; num_classes includes it")

    def plan(self, loc: Shape, conf: Shape, boxes: Shape, *image: Shape) -> LayerPlan:
        priors = default_box_count(self, loc, conf, boxes, self.classes, self.shared)
        each = priors if self.top_k is None else min(self.top_k, priors)
        most = len(self.foreground) * each
        rows = max(most if self.keep is None else min(self.keep, most), 1)
        return LayerPlan([(1, 1, loc[0] * rows, 7)])

    def _settings(self) -> dict[str, Any]:
        nms = self.param.nms_param
        return {
            "classes": self.classes,
            "background": self.param.background_label_id,
            "shared": self.shared,
            "code": (self.code_type, self.param.variance_encoded_in_target),
            "nms": (nms.nms_threshold, nms.eta, self.top_k),
            "keep_top_k": self.keep,
            "confidence": self.confidence,
        }

    def forward(self, loc: Tensor, conf: Tensor, priors: Tensor, *image: Tensor) -> tuple[Tensor]:
        return (detect(loc.detach(), conf.detach(), priors.detach(), **self._settings()),)

    def source(self, code: SourceCode, loc: str, conf: str, priors: str, *image: str) -> list[str]:
        settings = self._settings()
        threshold, eta, top_k = settings.pop("nms")
        texts = {name: exact(value) for name, value in settings.items()}
        texts["nms"] = f"({literal(threshold)}, {literal(eta)}, {top_k})"
        texts["confidence"] = literal(self.confidence)
        rest = ", ".join(f"{name}={text}" for name, text in texts.items())
        return [f"{code.helper(detect)}({loc}, {conf}, {priors}, {rest})"]

    # ------------------------------------------------------------------ ONNX

    def onnx(self, graph: OnnxGraph, loc: str, conf: str, priors: str, *image: str) -> list[str]:
        return [_DetectionGraph(graph, self).rows(loc, conf, priors)]


class _DetectionGraph:
    """The nodes of one DetectionOutput: the best of each class, suppression, the best of each image."""

    def __init__(self, graph: OnnxGraph, layer: DetectionOutput) -> None:
        self.graph, self.layer, self.node = graph, layer, node_writer(graph)

    def decoded(self, loc: str, priors: str, count: int) -> str:
        """Add `decode_boxes`: N×P×(1 or classes)×4."""
        layer, node = self.layer, self.node
        pair = node("Reshape", priors, integers(2, count, 1, 4))
        corners, variances = (node("Gather", pair, np.array(index)) for index in (0, 1))
        offsets = node("Reshape", loc, integers(-1, count, 1 if layer.shared else layer.classes, 4))
        if not layer.param.variance_encoded_in_target:
            offsets = node("Mul", offsets, variances)
        if layer.code_type == "CORNER":
            return node("Add", corners, offsets)
        low, high = self.graph.nodes("Split", [corners], 2, axis=2, num_outputs=2)
        size = node("Sub", high, low)
        if layer.code_type == "CORNER_SIZE":
            return node("Add", corners, node("Mul", offsets, node("Concat", size, size, axis=2)))
        move, grow = self.graph.nodes("Split", [offsets], 2, axis=3, num_outputs=2)
        half = numbers(0.5)
        centre = node("Add", node("Mul", node("Add", low, high), half), node("Mul", move, size))
        reach = node("Mul", node("Mul", node("Exp", grow), size), half)
        return node("Concat", node("Sub", centre, reach), node("Add", centre, reach), axis=3)

    def candidates(self, loc: str, conf: str, priors: str) -> tuple[str, str, int]:
        """Add the best top_k scores of each class, N×F×K, and their boxes, N×F×K×4; return these and K."""
        layer, node = self.layer, self.node
        count = self.graph.size(priors, 2) // 4
        keep = count if layer.top_k is None else min(layer.top_k, count)
        labels = integers(*layer.foreground)
        scores = node("Reshape", conf, integers(-1, count, layer.classes))
        scores = node("Gather", node("Transpose", scores, perm=[0, 2, 1]), labels, axis=1)
        constant = self.graph.constant(integers(keep))
        best, order = self.graph.nodes("TopK", [scores, constant], 2, axis=2)
        boxes = node("Transpose", self.decoded(loc, priors, count), perm=[0, 2, 1, 3])
        if layer.shared:
            boxes = node("Squeeze", boxes, integers(1))
            order = node("Reshape", order, integers(-1, len(layer.foreground) * keep, 1))
            boxes = node("GatherND", boxes, order, batch_dims=1)
        else:
            boxes = node("Gather", boxes, labels, axis=1)
            boxes = node("GatherND", boxes, node("Unsqueeze", order, integers(3)), batch_dims=2)
        return best, node("Reshape", boxes, integers(-1, len(layer.foreground), keep, 4)), keep

    def kept(self, best: str, boxes: str, keep: int) -> str:
        """Add 1 per candidate that its class's suppression keeps, else 0: N×(F·K)."""
        layer, node = self.layer, self.node
        flat = node("Reshape", boxes, integers(-1, keep, 4))
        low, high = self.graph.nodes("Split", [flat], 2, axis=2, num_outputs=2)
        # In SSD a box with swapped corners has no area; NonMaxSuppression would swap them.
        flat = node("Concat", low, node("Max", low, high), axis=2)
        scores = node("Reshape", best, integers(-1, 1, keep))
        threshold = numbers([layer.param.nms_param.nms_threshold])
        chosen = node(
            "NonMaxSuppression", flat, scores, integers(keep), threshold, numbers([layer.confidence])
        )
        places = node("Gather", chosen, integers(0, 2), axis=1)
        marks = node("ConstantOfShape", node("Shape", node("Squeeze", scores, integers(1))))
        ones = node("Expand", numbers([1]), node("Shape", places, start=0, end=1))
        marks = node("ScatterND", marks, places, ones)
        return node("Reshape", marks, integers(-1, len(layer.foreground) * keep))

    def rows(self, loc: str, conf: str, priors: str) -> str:
        """Add the layer's top."""
        from onnx import TensorProto

        layer, node = self.layer, self.node
        best, boxes, keep = self.candidates(loc, conf, priors)
        total = len(layer.foreground) * keep
        marks = self.kept(best, boxes, keep)
        scores = node("Reshape", best, integers(-1, total))
        if layer.keep is not None and layer.keep < total:
            lost = numbers(-np.inf)
            kept = node("Where", node("Cast", marks, to=TensorProto.BOOL), scores, lost)
            limit = self.graph.constant(integers(layer.keep))
            values, order = self.graph.nodes("TopK", [kept, limit], 2, axis=1)
            survives = node("Cast", node("Greater", values, lost), to=TensorProto.FLOAT)
            nothing = node("ConstantOfShape", node("Shape", marks))
            marks = node("ScatterElements", nothing, order, survives, axis=1)
        places = node("Transpose", node("NonZero", marks), perm=[1, 0])  # image, candidate
        image, candidate = self.graph.nodes("Split", [places], 2, axis=1, num_outputs=2)
        label = node("Gather", np.repeat(numbers(layer.foreground), keep), candidate)
        score = node("Unsqueeze", node("GatherND", scores, places), integers(1))
        corners = node("GatherND", node("Reshape", boxes, integers(-1, total, 4)), places)
        number = node("Cast", image, to=TensorProto.FLOAT)
        found = node("Concat", number, label, score, corners, axis=1)

        return rows_or_blank(self.graph, found, loc)
