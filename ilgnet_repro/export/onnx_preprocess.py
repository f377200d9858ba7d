"""The preprocessing as ONNX nodes, from uint8 images to the net's input, for both preprocessing paths.

The resizes are built from Gather and arithmetic, because ONNX's Resize computes neither of the two
that Caffe users meet: OpenCV's interpolates in 11-bit fixed point, and pycaffe's pads with the image's
minimum beyond its edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from ..errors import IlgnetError
from ..layers.support.base import Attribute, Shape, integers
from ..reading.preprocessing import GREY, Preprocessing
from .onnx_graph import OnnxWriter, value_info

IMAGE_INPUT = "picture"
ORDERS = ("RGB", "BGR")
# OpenCV's resize: weights of 11 bits, sums of 22 brought back to 8 in two steps (imgproc/src/resize.cpp).
_ONE = 2048
_FIRST_SHIFT, _SECOND_SHIFT, _LAST_SHIFT = 16, 65536, 4


def find_image_input(
    shapes: dict[str, Shape], how: Preprocessing | None, net: str
) -> tuple[Preprocessing, str]:
    """Return the preprocessing and the input that takes images.

    Raises IlgnetError where the preprocessing is not known, or not exactly one input takes images of its size.
    """
    if how is None:
        raise IlgnetError(
            f"net {net!r}: its preprocessing is unknown; state it as preprocessing=", option="preprocessing"
        )
    if how.order == GREY:
        raise IlgnetError(
            f"net {net!r}: its images are grey (1 channel), and with_preprocessing=True takes colour images; leave it out",
            option="with_preprocessing",
        )
    wanted = (3, *how.size)
    found = [name for name, shape in shapes.items() if shape[1:] == wanted]
    if len(found) != 1:
        raise IlgnetError(
            f"net {net!r}: {len(found) or 'no'} inputs take images of 3x{wanted[1]}x{wanted[2]}; "
            "with_preprocessing=True needs one, of the preprocessing's size",
            option="with_preprocessing",
        )
    return how, found[0]


def add_preprocessing(writer: OnnxWriter, blob: str, how: Preprocessing, order: str) -> onnx.ValueInfoProto:
    """Add the nodes that compute ``blob`` from images in ``order``, and return the graph input they read.

    That input is uint8, N × height × width × 3; all images of a batch have one size.  Compared with
    `Preprocessing`, the path ``crop`` is exact and the path ``whole`` differs by at most 1e-3 of a grey level
    (float32 here, float64 there).
    """
    if order not in ORDERS:
        raise IlgnetError(f"input_order={order!r}: choose one of {', '.join(ORDERS)}", option="input_order")
    writer.add_input(IMAGE_INPUT)
    nodes = _Nodes(writer)
    pixels, sides = (_whole if how.path == "whole" else _crop)(nodes, how)
    if order != how.order:
        pixels = nodes("Gather", pixels, nodes.longs(2, 1, 0), axis=3)
    value = nodes("Transpose", pixels, perm=[0, 3, 1, 2])
    mean = _mean(how)
    if mean is not None:
        value = nodes("Sub", value, writer.constant(mean))
    if how.scale != 1:
        value = nodes("Mul", value, writer.constant(np.float32(how.scale)))
    if how.deviation:
        divisor = np.asarray(how.deviation, np.float32).reshape(1, -1, 1, 1)
        value = nodes("Div", value, writer.constant(divisor))
    writer.bind(blob, value)
    return value_info(IMAGE_INPUT, [writer.dims[blob][0], *sides, 3], TensorProto.UINT8)


def _mean(how: Preprocessing) -> np.ndarray | None:
    if how.mean_image is not None:
        top, left = (
            (side - crop) // 2 for side, crop in zip(how.mean_image.shape[1:], how.size, strict=True)
        )
        return how.mean_image[None, :, top : top + how.size[0], left : left + how.size[1]].astype(np.float32)
    if not any(how.mean_value):
        return None
    return np.asarray(how.mean_value, np.float32).reshape(1, -1, 1, 1)


@dataclass(frozen=True)
class _Nodes:
    """Shorthand for nodes with one output."""

    writer: OnnxWriter

    def __call__(self, op: str, *inputs: str, **attributes: Attribute) -> str:
        return self.writer.node(op, list(inputs), **attributes)

    def longs(self, *values: int) -> str:
        return self.writer.constant(integers(*values))

    def whole(self, value: int) -> str:
        return self.writer.constant(np.int32(value))

    def double(self, value: float) -> str:
        return self.writer.constant(np.float64(value))

    def side(self, axis: int) -> str:
        """The images' height (axis 1) or width (axis 2), one int64."""
        return self("Shape", IMAGE_INPUT, start=axis, end=axis + 1)

    def centres(self, side: str, size: int, window: slice) -> str:
        """Return the positions of a resized axis's points on the image's axis, half-pixel centred, in float64."""
        points = self.writer.constant(np.arange(size, dtype=np.float64)[window] + 0.5)
        step = self("Div", self("Cast", side, to=TensorProto.DOUBLE), self.double(size))
        return self("Sub", self("Mul", points, step), self.double(0.5))

    def clipped(self, index: str, last: str) -> str:
        return self("Min", self("Max", index, self.longs(0)), last)

    def columns(self, values: str) -> str:
        """Broadcast one value per column over (N, height, width, 3)."""
        return self("Unsqueeze", values, self.longs(1))

    def rows(self, values: str) -> str:
        """Broadcast one value per row over (N, height, width, 3)."""
        return self("Unsqueeze", values, self.longs(1, 2))


# ---------------------------------------------------------------------- path "whole", as pycaffe


def _whole(nodes: _Nodes, how: Preprocessing) -> tuple[str, Sequence[int | str]]:
    least = nodes("ReduceMin", IMAGE_INPUT, nodes.longs(1, 2, 3))
    least = nodes("Cast", least, to=TensorProto.FLOAT)
    first, second, weights = _blend(nodes, 1, how.size[0])
    rows = [nodes("Gather", IMAGE_INPUT, index, axis=1) for index in (first, second)]
    above_least = [nodes("Sub", nodes("Cast", row, to=TensorProto.FLOAT), least) for row in rows]
    value = _weighted_sum(nodes, above_least, [nodes.rows(weight) for weight in weights])
    first, second, weights = _blend(nodes, 2, how.size[1])
    sides = [nodes("Gather", value, index, axis=2) for index in (first, second)]
    value = _weighted_sum(nodes, sides, [nodes.columns(weight) for weight in weights])
    return nodes("Add", value, least), ("H", "W")


def _weighted_sum(nodes: _Nodes, values: Sequence[str], weights: Sequence[str]) -> str:
    products = [nodes("Mul", value, weight) for value, weight in zip(values, weights, strict=True)]
    return nodes("Add", *products)


def _blend(nodes: _Nodes, axis: int, size: int) -> tuple[str, str, tuple[str, str]]:
    """Return the two neighbours of each point and their weights, 0 for a neighbour beyond the edge."""
    side = nodes.side(axis)
    last = nodes("Sub", side, nodes.longs(1))
    centres = nodes.centres(side, size, slice(None))
    floor = nodes("Floor", centres)
    fraction = nodes("Cast", nodes("Sub", centres, floor), to=TensorProto.FLOAT)
    below = nodes("Cast", floor, to=TensorProto.INT64)
    above = nodes("Add", below, nodes.longs(1))
    one = nodes.writer.constant(np.float32(1))
    inside = [
        nodes("Cast", nodes(test, index, limit), to=TensorProto.FLOAT)
        for test, index, limit in (("GreaterOrEqual", below, nodes.longs(0)), ("LessOrEqual", above, last))
    ]
    weights = (nodes("Mul", nodes("Sub", one, fraction), inside[0]), nodes("Mul", fraction, inside[1]))
    return nodes.clipped(below, last), nodes.clipped(above, last), weights


# ---------------------------------------------------------------------- path "crop", as Caffe's Data layer


def _crop(nodes: _Nodes, how: Preprocessing) -> tuple[str, Sequence[int | str]]:
    if how.mean_image is not None and how.resize not in (None, how.mean_image.shape[1:]):
        raise IlgnetError(
            f"preprocessing: mean image of {how.mean_image.shape[1:]} and images of {how.resize} differ in size"
        )
    if how.resize is None:
        return _cut(nodes, how)
    windows = [
        slice((side - crop) // 2, (side - crop) // 2 + crop)
        for side, crop in zip(how.resize, how.size, strict=True)
    ]
    top, bottom, row_weights = _fixed_point(nodes, 1, how.resize[0], windows[0])
    left, right, column_weights = _fixed_point(nodes, 2, how.resize[1], windows[1])
    column_weights = [nodes.columns(weight) for weight in column_weights]
    halves = []
    for index, weight in zip((top, bottom), row_weights, strict=True):
        row = nodes("Gather", IMAGE_INPUT, index, axis=1)
        ends = [
            nodes("Cast", nodes("Gather", row, side, axis=2), to=TensorProto.INT32) for side in (left, right)
        ]
        across = nodes("Div", _weighted_sum(nodes, ends, column_weights), nodes.whole(_FIRST_SHIFT))
        halves.append(nodes("Div", nodes("Mul", across, nodes.rows(weight)), nodes.whole(_SECOND_SHIFT)))
    rounded = nodes("Add", nodes("Add", *halves), nodes.whole(_LAST_SHIFT // 2))
    return nodes("Cast", nodes("Div", rounded, nodes.whole(_LAST_SHIFT)), to=TensorProto.FLOAT), ("H", "W")


def _fixed_point(nodes: _Nodes, axis: int, size: int, window: slice) -> tuple[str, str, list[str]]:
    """Return the two neighbours of each point, clipped to the image, and their weights as fractions of `_ONE`."""
    side = nodes.side(axis)
    last = nodes("Sub", side, nodes.longs(1))
    centres = nodes("Cast", nodes.centres(side, size, window), to=TensorProto.FLOAT)
    floor = nodes("Floor", centres)
    below = nodes("Cast", floor, to=TensorProto.INT64)
    fraction = nodes("Sub", centres, floor)
    if axis == 2:
        # A column beyond an edge is the edge's value; a row is read twice, which rounds differently.
        inside = nodes("And", nodes("GreaterOrEqual", below, nodes.longs(0)), nodes("Less", below, last))
        fraction = nodes("Mul", fraction, nodes("Cast", inside, to=TensorProto.FLOAT))
    above = nodes("Add", below, nodes.longs(1))
    one, scale = (nodes.writer.constant(np.float32(value)) for value in (1, _ONE))
    weights = [
        nodes("Cast", nodes("Round", nodes("Mul", part, scale)), to=TensorProto.INT32)
        for part in (nodes("Sub", one, fraction), fraction)
    ]
    return nodes.clipped(below, last), nodes.clipped(above, last), weights


def _cut(nodes: _Nodes, how: Preprocessing) -> tuple[str, Sequence[int | str]]:
    """Crop the centre of images of their own size; a mean image fixes that size."""
    starts = []
    for axis, crop in zip((1, 2), how.size, strict=True):
        spare = nodes("Sub", nodes.side(axis), nodes.longs(crop))
        starts.append(nodes("Div", spare, nodes.longs(2)))
    start = nodes("Concat", *starts, axis=0)
    cut = nodes("Slice", IMAGE_INPUT, start, nodes("Add", start, nodes.longs(*how.size)), nodes.longs(1, 2))
    sides = ("H", "W") if how.mean_image is None else how.mean_image.shape[1:]
    return nodes("Cast", cut, to=TensorProto.FLOAT), sides
