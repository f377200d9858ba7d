"""The steps of a net: each layer with its blobs, and the data that its data layers read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..caffe.graph import Graph, Node
from ..caffe.shared_memory import gives_gradient_memory, shares_memory, takes_gradient_memory
from ..layers.data import DummyData, MemoryData, Parameter
from ..layers.support.base import Shape
from ..reading.data_layer_batches import Feed
from ..reading.sources import READING_TYPES
from ..runtime.net import CaffeNet
from ..train.layout import Backward, Layout, Place
from .blob import Blob, BlobVec
from .memory import ParameterGradient, ParameterValues
from .python_layer import UserLayer
from .steps import (
    DataStep,
    DummyStep,
    MemoryStep,
    ParameterStep,
    PythonStep,
    SharedStep,
    SplitStep,
    Step,
    TorchStep,
)


class Data:
    """What the data layers of a net read, each from its own first row on."""

    def __init__(self, graph: Graph, root: Path, seed: int | None) -> None:
        seed = int(torch.randint(2**31, (1,), generator=_fresh())) if seed is None else seed
        self._feeds = {
            node.name: Feed(replace(graph, nodes=(node,)), root, seed)
            for node in graph.layers
            if node.type in READING_TYPES
        }

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of a batch, by top."""
        return {top: shape for feed in self._feeds.values() for top, shape in feed.shapes().items()}

    def __contains__(self, node: Node) -> bool:
        return node.name in self._feeds

    def batches(self, node: Node) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of a layer, without end."""
        return self._feeds[node.name].batches()


def _fresh() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


def parameter_blobs(net: CaffeNet) -> dict[str, BlobVec]:
    """Return the parameters of each layer as blobs; what layers share is one memory."""
    memories: dict[int, tuple[ParameterValues, ParameterGradient]] = {}
    found: dict[str, BlobVec] = {}
    layers = net.layers_by_name()
    for node in net.graph.layers:
        layer = layers[node.name]
        # The blobs that a script's layer has added are the parameters from here on.
        blobs = layer.user.blobs if isinstance(layer, UserLayer) else BlobVec()
        found[node.name] = blobs
        for index, (name, spec) in enumerate(zip(layer.blob_names, net.plan.blobs[node.name], strict=True)):
            stored: Any = layer.stored_blob(name)
            if id(stored) not in memories:
                memories[id(stored)] = ParameterValues(stored), ParameterGradient(stored)
            if index == len(blobs):
                blobs.append(Blob(spec.shape))
            blobs[index].data_memory, blobs[index].diff_memory = memories[id(stored)]
    return found


def build_steps(
    net: CaffeNet, layout: Layout, backward: Backward, params: Mapping[str, BlobVec], data: Data
) -> tuple[list[Step], BlobVec]:
    """Return the steps of a net in order, and its blobs in the order of `Layout.blobs`."""
    blobs: dict[int, Blob] = {}
    steps: list[Step] = []
    layers = net.layers_by_name()
    for number, place in enumerate(layout.places):
        bottoms = [blobs[bottom] for bottom in place.bottoms]
        layer = None if place.node is None else layers[place.node.name]
        _make_tops(net, place, layer, blobs)
        tops = [blobs[top] for top in place.tops]
        own = BlobVec() if place.node is None else params[place.node.name]
        goes = backward.bottoms[number] if backward.layers[number] else None
        steps.append(_step(place, layer, bottoms, tops, own, goes, data))
    return steps, BlobVec(blobs[number] for number in range(len(layout.blobs)))


def _make_tops(net: CaffeNet, place: Place, layer: Any, blobs: dict[int, Blob]) -> None:
    node = place.node
    shapes: Sequence[Shape]
    if node is None:
        shapes = [blobs[place.bottoms[0]].shape] * len(place.tops)
    else:
        shapes = [net.plan.value_shapes[top] for top in node.tops] or [()] * len(place.tops)
    for position, (top, shape) in enumerate(zip(place.tops, shapes, strict=True)):
        if top not in blobs:
            # A script's layer may have filled its tops in `setup`.
            blobs[top] = layer.tops[position] if isinstance(layer, UserLayer) else Blob(shape)


def _step(
    place: Place, layer: Any, bottoms: list[Blob], tops: list[Blob], params: BlobVec,
    goes: tuple[bool, ...] | None, data: Data,
) -> Step:  # fmt: skip
    common = (place.name, place.type, bottoms, tops, params)
    node = place.node
    if node is None:
        return SplitStep(*common)
    if isinstance(layer, UserLayer):
        return PythonStep(*common, layer)
    if isinstance(layer, DummyData):
        return DummyStep(*common, layer)
    if isinstance(layer, MemoryData):
        return MemoryStep(*common, layer)
    if isinstance(layer, Parameter):
        return ParameterStep(*common)
    if node in data:
        return DataStep(*common, lambda: data.batches(node), node.top_names)
    if layer.is_input:
        return Step(*common)
    if shares_memory(place.text) and (gives_gradient_memory(place.text) or takes_gradient_memory(place.text)):
        return SharedStep(*common, layer, takes_gradient=takes_gradient_memory(place.text))
    return TorchStep(*common, layer, records=goes)
