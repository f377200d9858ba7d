"""Inputs drawn from a seed, for verifying, comparing, measuring and tracing, in the range that their readers need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Generator, Tensor

from ..caffe.graph import Graph, Value
from ..layers.proposal import Proposal, ProposalLayer
from ..layers.support.base import Layer, Shape
from .plan import NetPlan

SEED = 7


class Values(Protocol):
    """A set of values that an input may have."""

    def draw(self, shape: Shape, generator: Generator) -> Tensor: ...


@dataclass(frozen=True)
class Uniform:
    """Uniform between two bounds."""

    low: float
    high: float

    def draw(self, shape: Shape, generator: Generator) -> Tensor:
        return torch.empty(shape).uniform_(self.low, self.high, generator=generator)


@dataclass(frozen=True)
class Normal:
    """Normal with mean 0 and standard deviation 1."""

    def draw(self, shape: Shape, generator: Generator) -> Tensor:
        return torch.empty(shape).normal_(generator=generator)


@dataclass(frozen=True)
class Integers:
    """Integers from 0 to ``count - 1``: labels, words, rows."""

    count: int

    def draw(self, shape: Shape, generator: Generator) -> Tensor:
        return torch.randint(max(self.count, 1), shape, generator=generator).float()


@dataclass(frozen=True)
class Distinct:
    """Integers from 0 to ``count - 1``, all different within a plane, as in a Pooling layer's mask."""

    count: int

    def draw(self, shape: Shape, generator: Generator) -> Tensor:
        each = prod(shape[2:])
        if each > self.count:
            return Integers(self.count).draw(shape, generator)
        planes = [torch.randperm(self.count, generator=generator)[:each] for _ in range(prod(shape[:2]))]
        return torch.stack(planes).reshape(shape).float() if planes else torch.zeros(shape)


@dataclass(frozen=True)
class Marks:
    """0 or 1.  ``first`` is the value of the first row: 0 where sequences begin, 1 where Filter must pass a row."""

    first: int
    ones: float  # the fraction of ones after it

    def draw(self, shape: Shape, generator: Generator) -> Tensor:
        marks = (torch.rand(shape, generator=generator) < self.ones).float()
        marks[:1] = self.first
        return marks


@dataclass(frozen=True)
class ImageSize:
    """Height, width and scale factors of 1 per image."""

    height: float
    width: float

    def draw(self, shape: Shape, generator: Generator) -> Tensor:
        rows = torch.ones(shape).reshape(-1, shape[-1] if shape and shape[-1] >= 3 else prod(shape))
        rows[:, :2] = torch.tensor([self.height, self.width])
        return rows.reshape(shape)


@dataclass(frozen=True)
class Regions:
    """Rows of image index, left, top, right and bottom, within images of the given size in pixels."""

    images: int
    height: float
    width: float

    def draw(self, shape: Shape, generator: Generator) -> Tensor:
        count = prod(shape) // 5
        size = torch.tensor([self.width, self.height]) - 1
        low, reach = torch.rand((2, count, 2), generator=generator)
        low = 0.6 * low * size
        high = low + (0.1 + 0.3 * reach) * size
        number = (torch.arange(count) % max(self.images, 1))[:, None].float()
        return torch.cat([number, low, high], 1).reshape(shape)


@dataclass(frozen=True)
class Boxes:
    """Prior boxes and their variances, 1×2×4P, as fractions of the image."""

    def draw(self, shape: Shape, generator: Generator) -> Tensor:
        items, _, sides = shape
        low, reach = torch.rand((2, items, sides // 4, 2), generator=generator)
        boxes = torch.cat([0.6 * low, 0.6 * low + 0.1 + 0.3 * reach], -1).reshape(items, 1, sides)
        variances = torch.tensor([0.1, 0.1, 0.2, 0.2]).repeat(items, 1, sides // 4)
        return torch.cat([boxes, variances], 1)


# ---------------------------------------------------------------------- what each type of layer reads

PIXELS = Uniform(-120, 135)  # after mean subtraction
FRACTIONS = Uniform(0, 1)
POSITIVE = (0.1, 10.0)
LARGEST = 1e38  # bounds beyond it cannot be drawn between in float32

Rule = Callable[[Layer, int, list[Shape], list[Shape]], Values | None]  # layer, bottom, bottoms, tops


def _inner(layer: Layer, low: float, high: float) -> Values | None:
    """Return the x for which shift + scale · x is between two bounds."""
    scale, shift = layer.param.scale, layer.param.shift
    if not scale:
        return None
    low, high = sorted(((low - shift) / scale, (high - shift) / scale))
    is_drawable = math.isfinite(high - low) and max(abs(low), abs(high)) < LARGEST
    return Uniform(low, high) if is_drawable else None


def _log(layer: Layer, index: int, bottoms: list[Shape], tops: list[Shape]) -> Values | None:
    return _inner(layer, *POSITIVE)


def _exp(layer: Layer, index: int, bottoms: list[Shape], tops: list[Shape]) -> Values | None:
    base = layer.param.base
    slope = abs(math.log(base)) if 0 < base < math.inf else 1.0
    return _inner(layer, -4 / slope, 4 / slope) if slope else None


def _power(layer: Layer, index: int, bottoms: list[Shape], tops: list[Shape]) -> Values | None:
    power = layer.param.power
    if not math.isfinite(power):
        return None
    if power < 0 or power != int(power):
        return _inner(layer, *POSITIVE)
    return _inner(layer, -4, 4) if power > 2 else None


def _labels(layer: Layer, index: int, bottoms: list[Shape], tops: list[Shape]) -> Values | None:
    if index == 1:
        return Integers(bottoms[0][layer.axis(layer.param.axis, len(bottoms[0]))])
    return FRACTIONS if index == 2 else None  # InfogainLoss: its matrix


def _label_per_image(layer: Layer, index: int, bottoms: list[Shape], tops: list[Shape]) -> Values | None:
    if index == 1:
        return Integers(prod(bottoms[0][1:]))
    return Uniform(0.05, 1) if layer.node.type == "MultinomialLogisticLoss" else None


def _regions(layer: Layer, index: int, bottoms: list[Shape], tops: list[Shape]) -> Values | None:
    if index != 1:
        return None
    images, _, height, width = bottoms[0]
    scale = getattr(layer.param, "spatial_scale", 1.0) if layer.message else 1.0
    return Regions(images, height / (scale or 1.0), width / (scale or 1.0))


def _proposals(layer: Layer, index: int, bottoms: list[Shape], tops: list[Shape]) -> Values | None:
    assert isinstance(layer, (Proposal, ProposalLayer))
    stride = layer.proposal_settings.feat_stride
    return (FRACTIONS, Uniform(-0.5, 0.5), ImageSize(bottoms[0][2] * stride, bottoms[0][3] * stride))[index]


def _detections(layer: Layer, index: int, bottoms: list[Shape], tops: list[Shape]) -> Values | None:
    return (Uniform(-1, 1), FRACTIONS, Boxes())[index] if index < 3 else None


def _maps(layer: Layer, index: int, bottoms: list[Shape], tops: list[Shape]) -> Values | None:
    return Uniform(-4, 4)  # sides are their exponentials


def _mask(layer: Layer, index: int, bottoms: list[Shape], tops: list[Shape]) -> Values | None:
    return Distinct(prod(tops[0][2:])) if index == 1 else None


def _at(values: Mapping[int, Values]) -> Rule:
    return lambda layer, index, bottoms, tops: values.get(index)


def _filter(layer: Layer, index: int, bottoms: list[Shape], tops: list[Shape]) -> Values | None:
    return Marks(1, 0.5) if index == len(bottoms) - 1 else None


_SATURATES = _at({0: Uniform(-4, 4)})
_RULES: dict[str, Rule] = {
    "Embed": lambda layer, index, bottoms, tops: Integers(layer.param.input_dim),
    "BatchReindex": lambda layer, index, bottoms, tops: Integers(bottoms[0][0]) if index else None,
    "Filter": _filter,
    "Upsample": _mask,
    "Log": _log, "Exp": _exp, "Power": _power,
    **dict.fromkeys(("Softmax", "Sigmoid", "TanH", "BNLL", "ELU"), _SATURATES),
    **dict.fromkeys(("SoftmaxWithLoss", "InfogainLoss", "Accuracy"), _labels),
    **dict.fromkeys(("MultinomialLogisticLoss", "HingeLoss"), _label_per_image),
    "SigmoidCrossEntropyLoss": _at({1: FRACTIONS}),
    "ContrastiveLoss": _at({2: Integers(2)}),
    "SmoothL1Loss": _at({2: FRACTIONS, 3: FRACTIONS}),
    **dict.fromkeys(("RNN", "LSTM"), _at({1: Marks(0, 0.8)})),
    **dict.fromkeys(("ROIPooling", "PSROIPooling", "ROIAlign", "PSROIAlign"), _regions),
    "DetectionOutput": _detections,
    **dict.fromkeys(("YoloDetectionOutput", "Yolov3DetectionOutput"), _maps),
}  # fmt: skip
# Their tops have the values of their bottoms at other positions: the readers of a top limit the bottom.
_REARRANGES = {
    *(
        "Split",
        "Reshape",
        "Flatten",
        "Slice",
        "Concat",
        "Tile",
        "Permute",
        "ShuffleChannel",
        "Crop",
        "Dropout",
    ),
    *("BatchReindex", "Filter"),
}


def input_values(
    graph: Graph, layers: Mapping[str, Layer], shapes: Mapping[Value, Shape], value: Value
) -> Values | None:
    """Return the values that the readers of a blob accept, or None where they accept any."""
    found = _reader_values(graph, layers, shapes, value)
    if not found:
        return None
    counts = [one.count for one in found if isinstance(one, Integers)]
    if len(counts) == len(found):
        return Integers(min(counts))
    ranges = [one for one in found if isinstance(one, Uniform)]
    if len(ranges) == len(found):
        low, high = max(one.low for one in ranges), min(one.high for one in ranges)
        if low < high:
            return Uniform(low, high)
    return found[0]


def _reader_values(
    graph: Graph, layers: Mapping[str, Layer], shapes: Mapping[Value, Shape], value: Value
) -> list[Values]:
    found: list[Values] = []
    for node in graph.consumers(value):
        layer = layers[node.name]
        bottoms, tops = [[shapes[one] for one in ends] for ends in (node.bottoms, node.tops)]
        for index, bottom in enumerate(node.bottoms):
            if bottom != value:
                continue
            rule = _proposals if isinstance(layer, (Proposal, ProposalLayer)) else _RULES.get(node.type)
            values = rule(layer, index, bottoms, tops) if rule else None
            if values is None and index in layer.index_bottoms:
                values = Integers(1)  # a type without a rule: 0 is in every range
            if values is not None:
                found.append(values)
            elif node.type in _REARRANGES:
                for top in node.tops:
                    found += _reader_values(graph, layers, shapes, top)
    return found


def draw_inputs(plan: NetPlan, graph: Graph, names: Iterable[str], seed: int = SEED) -> dict[str, Tensor]:
    """Draw inputs for a plan in the range that their readers accept; otherwise pixels (four axes) or normal values."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name in names:
        shape = plan.shapes[name]
        values = input_values(graph, plan.layers, plan.value_shapes, graph.input_value(name))
        drawn[name] = draw_plain(shape, generator) if values is None else values.draw(shape, generator)
    return drawn


def draw_plain(shape: Shape, generator: Generator) -> Tensor:
    """Draw an input of which only the shape is known."""
    return (PIXELS if len(shape) == 4 else Normal()).draw(shape, generator)
