"""The text proposals of CTPN: its Python layer `layers.text_proposal_layer`."""

from __future__ import annotations

import torch
from torch import Tensor

from .python_layer import PythonLayer, register_python_layer
from .support.base import LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers
from .support.detections import node_writer

HEIGHTS = (11, 16, 23, 33, 48, 68, 97, 139, 198, 283)
# First and last row of each anchor around a cell of 16 pixels; the layer keeps them as integers.
SPANS = tuple((int(7.5 - height / 2), int(7.5 + height / 2)) for height in HEIGHTS)


def text_proposals(
    scores: Tensor, deltas: Tensor, im_info: Tensor, spans: tuple[tuple[int, int], ...], stride: int
) -> tuple[Tensor, Tensor]:
    """Return the box (left, top, right, bottom) of each anchor, by cells, and its score.

    The net gives the height and the middle of a box; its sides are the anchor's, 16 pixels apart.
    """
    height, width = scores.shape[2:]
    row = torch.arange(height, device=scores.device)[:, None, None] * stride
    first, last = torch.tensor(spans, device=scores.device).T
    low, high = (row + first).to(scores.dtype), (row + last).to(scores.dtype)
    move, grow = deltas[0].reshape(len(spans), 2, height, width).permute(1, 2, 3, 0)
    tall = high - low + 1
    size = grow.exp() * tall
    top = move * tall + (low + high) / 2 - size / 2
    left = (torch.arange(width, device=scores.device)[:, None] * stride).to(top).expand_as(top)
    bottom, right = im_info.flatten()[:2] - 1
    sides = ((left, right), (top, bottom), (left + 15, right), (top + size, bottom))
    boxes = torch.stack([torch.minimum(side, most).clamp(min=0) for side, most in sides], -1)
    return boxes.reshape(-1, 4), scores[0, len(spans) :].permute(1, 2, 0).reshape(-1, 1)


@register_python_layer("layers.text_proposal_layer", "ProposalLayer")
class TextProposalLayer(PythonLayer):
    """CTPN's: bottoms are scores 1×20×H×W (text last), offsets 1×20×H×W (middle, height) and the image's size.

    Tops: a box and a score for each of ten anchors of a cell, clipped to the image; `param_str` has feat_stride.
    Source: CTPN, src/layers/text_proposal_layer.py and src/anchor.py.
    """

    bottom_count = (3, 3)
    top_count = (2, 2)
    has_gradient = False
    no_onnx = ""
    no_source = ""

    def setup(self) -> None:
        settings = self.settings
        for name in settings:
            if name != "feat_stride":
                raise self.error(f"param_str: {name} is unknown; known is feat_stride")
        stride = settings.get("feat_stride")
        if not isinstance(stride, int) or stride < 1:
            raise self.error("param_str: feat_stride must be an integer over 0, as in 'feat_stride': 16")
        self.stride = stride

    def plan(self, scores: Shape, deltas: Shape, info: Shape) -> LayerPlan:
        channels = 2 * len(SPANS)
        if len(scores) != 4 or scores[:2] != (1, channels):
            raise self.error(f"scores {list(scores)} must be 1×{channels}×H×W: one image at a time")
        if deltas != scores:
            raise self.error(f"offsets {list(deltas)} must have the shape of the scores, {list(scores)}")
        if len(info) != 2 or info[0] != 1 or info[1] < 2:
            raise self.error(
                f"the third bottom {list(info)} must hold an image's height and width, 1×2 or more"
            )
        count = len(SPANS) * scores[2] * scores[3]
        return LayerPlan([(count, 4), (count, 1)])

    def forward(self, scores: Tensor, deltas: Tensor, info: Tensor) -> tuple[Tensor, ...]:
        return text_proposals(scores.detach(), deltas.detach(), info.detach(), SPANS, self.stride)

    def source(self, code: SourceCode, scores: str, deltas: str, info: str) -> list[str]:
        return [f"{code.helper(text_proposals)}({scores}, {deltas}, {info}, {SPANS}, {self.stride})"]

    def onnx(self, graph: OnnxGraph, scores: str, deltas: str, info: str) -> list[str]:
        import numpy as np
        from onnx import TensorProto

        node = node_writer(graph)

        def starts(axis: int) -> str:
            """Add the first pixel of each cell along an axis of the scores."""
            count = node("Squeeze", node("Shape", scores, start=axis, end=axis + 1))
            cells = node("Cast", node("Range", np.array(0), count, np.array(1)), to=TensorProto.FLOAT)
            return node("Mul", cells, numbers(self.stride))

        count = len(SPANS)
        sides = node("Shape", scores, start=2)
        split = node("Concat", integers(count, 2), sides, axis=0)
        pair = node("Transpose", node("Reshape", deltas, split), perm=[1, 2, 3, 0])
        move, grow = (node("Gather", pair, np.array(index)) for index in (0, 1))
        row = node("Unsqueeze", starts(2), integers(1, 2))
        middle = node("Add", row, numbers([(low + high) / 2 for low, high in SPANS]))
        tall = numbers([high - low + 1 for low, high in SPANS])
        size = node("Mul", node("Exp", grow), tall)
        top = node("Sub", node("Add", node("Mul", move, tall), middle), node("Mul", size, numbers(0.5)))
        left = node("Expand", node("Unsqueeze", starts(3), integers(0, 2)), node("Shape", top))
        edges = node("Sub", node("Reshape", info, integers(-1)), numbers(1))
        bottom, right = (node("Gather", edges, np.array(index)) for index in (0, 1))
        far = node("Add", left, numbers(15))
        boxes = [
            node("Unsqueeze", node("Max", node("Min", side, most), numbers(0)), integers(3))
            for side, most in ((left, right), (top, bottom), (far, right), (node("Add", top, size), bottom))
        ]
        text = node("Slice", scores, integers(count), integers(2 * count), integers(1))
        return [
            node("Reshape", node("Concat", *boxes, axis=3), integers(-1, 4)),
            node("Reshape", node("Transpose", text, perm=[0, 2, 3, 1]), integers(-1, 1)),
        ]
