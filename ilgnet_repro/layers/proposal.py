"""Region proposals of Faster R-CNN: type Proposal, and the Python layer of its authors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .python_layer import PythonLayer, register_python_layer
from .support.base import (
    Attribute,
    Layer,
    LayerPlan,
    OnnxGraph,
    Shape,
    SourceCode,
    exact,
    integers,
    numbers,
    uses,
)
from .support.boxes import greedy_nms
from .support.registry import register_layer
from .support.tracing import refuse_tracing


@dataclass(frozen=True)
class Settings:
    """The settings of `propose`: sizes in pixels, ``top_n`` regions before and after suppression.

    Regions smaller than ``min_size`` are removed or, with ``keep_small``, kept with score 0.
    """

    anchors: tuple[tuple[float, ...], ...]
    feat_stride: int
    top_n: tuple[int, int]
    nms_threshold: float = 0.7
    min_size: float = 16
    keep_small: bool = False


def make_anchors(
    base_size: int,
    ratios: Sequence[float],
    scales: Sequence[float],
    rounded: Callable[[float], float] = np.round,
) -> tuple[tuple[float, ...], ...]:
    """Return the corners x1, y1, x2, y2 of one anchor per ratio (height / width) and scale, around a cell.

    Widths and heights are ``rounded`` before scaling, as in Faster R-CNN's `generate_anchors`.
    """
    centre = (base_size - 1) / 2
    anchors = []
    for ratio in ratios:
        width = rounded(np.sqrt(base_size**2 / ratio))
        height = rounded(width * ratio)
        for scale in scales:
            half_x, half_y = (width * scale - 1) / 2, (height * scale - 1) / 2
            anchors.append((centre - half_x, centre - half_y, centre + half_x, centre + half_y))
    return tuple(tuple(float(edge) for edge in anchor) for anchor in anchors)


# ---------------------------------------------------------------------- torch, also for written source


def quicksort_order(score: Tensor, count: int) -> Tensor:
    """Return the order of PVANet's `sort_box`, an unstable quicksort; only the first ``count`` are sorted.

    Each part is split at its first score: smaller ones from the left are swapped with greater ones from the right.
    """
    refuse_tracing()
    values, order = score.clone(), torch.arange(len(score), device=score.device)
    parts = [(0, len(score) - 1)]
    while parts:
        start, end = parts.pop()
        if start >= end or bool((values[start : end + 1] == values[start]).all()):
            continue
        rest, pivot = values[start + 1 : end + 1], values[start].item()
        small = (rest < pivot).nonzero()[:, 0] + start + 1
        great = (rest > pivot).nonzero()[:, 0].flip(0) + start + 1
        paired = min(len(small), len(great))
        swaps = int((small[:paired] < great[:paired]).sum())
        left, right = small[:swaps], great[:swaps]
        moved = torch.cat([right, left])
        for row in (values, order):
            row[torch.cat([left, right])] = row[moved]
        # Where the search from the right ends: at the next greater score, the position of a swap, or the start.
        last = start
        if swaps:
            last = int(left[-1])
            if last + 1 > int(right[-1]) - 1:  # the two searches have met
                last = int(right[-1]) - 1
        if len(great) > swaps and int(great[swaps]) > last:
            last = int(great[swaps])
        for row in (values, order):
            row[[start, last]] = row[[last, start]]
        parts += [(start, last - 1), *([(last + 1, end)] if last + 1 < count else [])]
    return order


def propose(
    scores: Tensor,
    deltas: Tensor,
    im_info: Tensor,
    *,
    anchors: tuple[tuple[float, ...], ...],
    feat_stride: int,
    top_n: tuple[int, int],
    nms_threshold: float,
    min_size: float,
    keep_small: bool,
) -> tuple[Tensor, Tensor]:
    """Return regions (0, x1, y1, x2, y2) and their scores, best first; ``top_n`` before and after suppression.

    ``im_info`` holds the image's height, width and scale; with ``keep_small`` it may hold one scale per axis.
    """
    height, width = scores.shape[2:]
    score = scores[0, len(anchors) :].permute(1, 2, 0).reshape(-1)
    starts = [torch.arange(cells, device=scores.device) * feat_stride for cells in (height, width)]
    y, x = torch.meshgrid(*starts, indexing="ij")
    boxes = torch.tensor(anchors, device=scores.device) + torch.stack([x, y, x, y], -1)[:, :, None]
    low, high = boxes.reshape(-1, 4).chunk(2, 1)
    size = high - low + 1
    move, grow = deltas[0].permute(1, 2, 0).reshape(-1, 4).chunk(2, 1)
    centre, reach = move * size + low + 0.5 * size, 0.5 * grow.exp() * size
    rows, columns, *scales = im_info.flatten()[: 4 if keep_small else 3]
    least = min_size * torch.stack([scales[-1], scales[0]])
    edge = torch.stack([columns, rows]) - 1
    low, high = [torch.minimum(corner, edge).clamp(min=0) for corner in (centre - reach, centre + reach)]
    boxes, large = torch.cat([low, high], 1), (high - low + 1 >= least).all(1)
    if keep_small:
        score = torch.where(large, score, 0)
    else:
        boxes, score = boxes[large], score[large]
    sorted_score, order = score.sort(descending=True, stable=True)
    first = sorted_score[: top_n[0] + 1]
    if keep_small and len(scales) == 2 and bool((first[1:] == first[:-1]).any()):  # PVANet's layer
        order = quicksort_order(score, top_n[0])
    order = order[: top_n[0]]
    score, boxes = score[order], boxes[order]
    kept = greedy_nms(boxes.cpu(), nms_threshold, pixel=1.0, limit=top_n[1]).to(boxes.device)
    score = score[kept] if keep_small else score[kept, None]
    return torch.cat([torch.zeros_like(boxes[kept, :1]), boxes[kept]], 1), score


uses(quicksort_order, refuse_tracing)
uses(propose, greedy_nms, quicksort_order)

# ---------------------------------------------------------------------- layers


class _Proposals(Layer):
    """Bottoms: scores 1×2A×H×W (foreground last), offsets 1×4A×H×W, and the image's height, width, scale.

    Tops: regions R×5 and, where named, their scores (R×1, or R with `keep_small`).  R is known only when
    the net runs: `plan` returns the maximum.
    """

    bottom_count: ClassVar[tuple[int, int | None]] = (3, 3)
    top_count: ClassVar[tuple[int, int | None]] = (1, 2)
    has_gradient = False
    sized_by_values = True
    no_onnx: str = ""
    no_source: str = ""
    proposal_settings: Settings

    def plan(self, scores: Shape, deltas: Shape, info: Shape) -> LayerPlan:
        count = len(self.proposal_settings.anchors)
        if len(scores) != 4 or scores[0] != 1:
            raise self.error(f"scores {list(scores)} must be 1×{2 * count}×H×W: one image at a time")
        for what, shape, channels in (("scores", scores, 2 * count), ("offsets", deltas, 4 * count)):
            if shape != (1, channels, *scores[2:]):
                raise self.error(f"{what} {list(shape)} must have {channels} channels for {count} anchors")
        if int(np.prod(info)) < 3:
            raise self.error(f"the third bottom {list(info)} must hold an image's height, width and scale")
        most = min(count * scores[2] * scores[3], *self.proposal_settings.top_n)
        tops: list[Shape] = [(most, 5), (most,) if self.proposal_settings.keep_small else (most, 1)]
        return LayerPlan(tops[: len(self.node.tops)])

    def forward(self, scores: Tensor, deltas: Tensor, info: Tensor) -> tuple[Tensor, ...]:
        tops = propose(scores.detach(), deltas.detach(), info.detach(), **asdict(self.proposal_settings))
        return tops[: len(self.node.tops)]

    def source(self, code: SourceCode, scores: str, deltas: str, info: str) -> list[str]:
        rest = ", ".join(f"{name}={exact(value)}" for name, value in asdict(self.proposal_settings).items())
        call = f"{code.helper(propose)}({scores}, {deltas}, {info}, {rest})"
        return [call if len(self.node.tops) > 1 else f"{call}[0]"]

    def onnx(self, graph: OnnxGraph, scores: str, deltas: str, info: str) -> list[str]:
        from onnx import TensorProto

        def node(op: str, *inputs: str | np.ndarray, **attributes: Attribute) -> str:
            names = [graph.constant(x) if isinstance(x, np.ndarray) else x for x in inputs]
            return graph.node(op, names, **attributes)

        def halves(value: str) -> list[str]:
            return graph.nodes("Split", [value], 2, axis=1, num_outputs=2)

        def grid(axis: int, mask: list[int], spread: np.ndarray) -> str:
            """Add the start of each cell along an axis, for the corners that the mask selects."""
            count = node("Squeeze", node("Shape", scores, start=axis, end=axis + 1))
            steps = node("Cast", node("Range", np.array(0), count, np.array(1)), to=TensorProto.FLOAT)
            starts = node(
                "Unsqueeze", node("Mul", steps, numbers(self.proposal_settings.feat_stride)), spread
            )
            return node("Mul", starts, numbers(mask))

        settings, count = self.proposal_settings, len(self.proposal_settings.anchors)
        shift = node(
            "Add", grid(2, [0, 1, 0, 1], integers(1, 2, 3)), grid(3, [1, 0, 1, 0], integers(0, 2, 3))
        )
        anchors = node("Reshape", node("Add", shift, np.array(settings.anchors, np.float32)), integers(-1, 4))
        low, high = halves(anchors)
        offsets = node("Reshape", node("Transpose", deltas, perm=[0, 2, 3, 1]), integers(-1, 4))
        move, grow = halves(offsets)
        size = node("Add", node("Sub", high, low), numbers(1))
        half = node("Mul", size, numbers(0.5))
        centre = node("Add", node("Add", node("Mul", move, size), low), half)
        reach = node("Mul", node("Exp", grow), half)
        image = node("Reshape", info, integers(-1))
        edge = node("Sub", node("Gather", image, integers(1, 0)), numbers(1))
        low, high = (
            node("Max", node("Min", node(op, centre, reach), edge), numbers(0)) for op in ("Sub", "Add")
        )
        both = (
            settings.keep_small and prod(graph.size(info, axis) for axis in range(len(graph.shape(info)))) > 3
        )
        scales = node("Gather", image, integers(3, 2) if both else integers(2))  # of x and y
        least = node("Mul", scales, numbers(settings.min_size))
        enough = node("GreaterOrEqual", node("Add", node("Sub", high, low), numbers(1)), least)
        enough = node("Cast", enough, to=TensorProto.FLOAT)
        large = node("Cast", node("ReduceMin", enough, integers(1), keepdims=0), to=TensorProto.BOOL)
        boxes = node("Concat", low, high, axis=1)

        foreground = node("Slice", scores, integers(count), integers(2 * count), integers(1))
        flat = node("Reshape", node("Transpose", foreground, perm=[0, 2, 3, 1]), integers(-1))
        if settings.keep_small:
            # Small boxes score 0.  Below 0 by their places they keep their order: OpenVINO has its own for equal scores.
            places = node("Range", np.array(0), node("Squeeze", node("Shape", flat)), np.array(1))
            places = node("Add", node("Cast", places, to=TensorProto.FLOAT), numbers(1))
            flat = node("Where", large, flat, node("Mul", places, numbers(-1e-30)))
        else:
            boxes, flat = (node("Compress", value, large, axis=0) for value in (boxes, flat))
        limit = node("Min", node("Shape", flat), integers(settings.top_n[0]))
        best, order = graph.nodes("TopK", [flat, limit], 2, axis=0)
        boxes = node("Gather", boxes, order)
        # Corners are pixels of the box; its edge is one further.
        edges = node("Unsqueeze", node("Add", boxes, numbers([0, 0, 1, 1])), integers(0))
        limits = (integers(settings.top_n[1]), numbers([settings.nms_threshold]))
        # Ranks as scores: OpenCV 5 drops boxes of score 0, and OpenVINO has an order of its own for equal ones.
        ranks = node("Range", node("Squeeze", limit), np.array(0), np.array(-1))
        ranks = node("Cast", ranks, to=TensorProto.FLOAT)
        chosen = node("NonMaxSuppression", edges, node("Unsqueeze", ranks, integers(0, 1)), *limits)
        kept = node("Gather", chosen, np.array(2), axis=1)
        regions = node("Pad", node("Gather", boxes, kept), integers(0, 1, 0, 0))
        chosen_scores = node("Gather", best, kept)
        if settings.keep_small:
            tiny = node("Less", node("Abs", chosen_scores), numbers(1e-20))
            chosen_scores = node("Where", tiny, numbers(0), chosen_scores)
        tops = [
            regions,
            chosen_scores if settings.keep_small else node("Unsqueeze", chosen_scores, integers(1)),
        ]
        return tops[: len(self.node.tops)]


_FIELDS = (
    *("feat_stride", "base_size", "min_size", "ratio", "scale"),
    *("pre_nms_topn", "post_nms_topn", "nms_thresh"),
)


@register_layer("Proposal")
class Proposal(_Proposals):
    """The C++ layer of PVANet and R-FCN, which reads `proposal_param`; its defaults are Faster R-CNN's.

    A region that is too small takes part in suppression and stays in the tops, with score 0.  The third bottom is the
    image's height, width and one scale (R-FCN), or one for each of height and width (PVANet).  Equal scores are in
    the order of the cells or, with two scales, in that of PVANet's sort; in ONNX always in that of the cells.
    """

    fork_fields = tuple(f"proposal_param.{field}" for field in _FIELDS)

    def setup(self, *ranks: int) -> None:
        ratios, scales = self._numbers("ratio", 0.5, 1, 2), self._numbers("scale", 8, 16, 32)
        if min(*ratios, *scales) <= 0:
            raise self.error(f"ratio {list(ratios)} and scale {list(scales)} must be over 0")
        self.proposal_settings = Settings(
            anchors=make_anchors(
                self._integer("base_size", 16),
                ratios,
                scales,
                rounded=lambda x: np.floor(np.float32(x + 0.5)),
            ),
            feat_stride=self._integer("feat_stride", 16),
            top_n=(self._integer("pre_nms_topn", 6000), self._integer("post_nms_topn", 300)),
            nms_threshold=self._numbers("nms_thresh", 0.7)[-1],
            min_size=self._numbers("min_size", 16)[-1],
            keep_small=True,
        )

    def _numbers(self, field: str, *default: float) -> tuple[float, ...]:
        path = f"proposal_param.{field}"
        texts = [field.text for field in self.node.layer.fork_field if field.path == path]
        try:
            return tuple(float(text) for text in texts) or default
        except ValueError:
            raise self.error(f"{path} {' '.join(texts)} is not a number") from None

    def _integer(self, field: str, default: int) -> int:
        value = self._numbers(field, default)[-1]
        if value < 1 or value != int(value):
            raise self.error(f"proposal_param.{field} {value:g} must be an integer over 0")
        return int(value)


@register_python_layer("rpn.proposal_layer", "ProposalLayer")
class ProposalLayer(_Proposals, PythonLayer):
    """Faster R-CNN's Python layer; `param_str` has feat_stride and, optionally, scales and ratios.

    Its counts are the defaults of its configuration file: 6000 regions before suppression and 300 after,
    12000 and 2000 in phase TRAIN.
    """

    # What param_str may state, with its defaults.
    known: ClassVar[Mapping[str, Any]] = {"feat_stride": 16, "scales": [8, 16, 32], "ratios": [0.5, 1, 2]}

    def setup(self) -> None:
        settings = self.settings
        for name in settings:
            if name not in self.known:
                raise self.error(f"param_str: {name} is unknown; known are {', '.join(self.known)}")
        stated = {**self.known, **settings}
        if "feat_stride" not in settings:
            stated["feat_stride"] = None
        for name in ("feat_stride", "base_size"):
            value = stated.get(name, 16)
            if not isinstance(value, int) or value < 1:
                raise self.error(f"param_str: {name} must be an integer over 0, as in '{name}': 16")
        for name in ("scales", "ratios"):
            values = stated[name]
            if not isinstance(values, list | tuple) or not all(
                isinstance(v, int | float) and v > 0 for v in values
            ):
                raise self.error(f"param_str: {name} must be a list of numbers over 0, not {values}")
        anchors = make_anchors(stated.get("base_size", 16), stated["ratios"], stated["scales"])
        self.proposal_settings = self._settings(anchors, stated["feat_stride"])

    def _settings(self, anchors: tuple[tuple[float, ...], ...], stride: int) -> Settings:
        return Settings(anchors, stride, (12000, 2000) if self.is_train else (6000, 300))


@register_python_layer("SSH.layers.proposal_layer", "ProposalLayer")
class SSHProposalLayer(ProposalLayer):
    """SSH's, by its `default_config.yml`: in phase TEST the 1000 best regions of any size, none suppressed.

    In phase TRAIN 300 of the 1000 best, suppressed by an overlap over 0.3, with sides of 4 pixels or more.
    Source: mahyarnajibi/SSH, SSH/layers/proposal_layer.py.
    """

    known: ClassVar[Mapping[str, Any]] = {**ProposalLayer.known, "base_size": 16}

    def _settings(self, anchors: tuple[tuple[float, ...], ...], stride: int) -> Settings:
        if self.is_train:
            return Settings(anchors, stride, (1000, 300), nms_threshold=0.3, min_size=4)
        return Settings(anchors, stride, (1000, 1000), nms_threshold=1, min_size=0)
