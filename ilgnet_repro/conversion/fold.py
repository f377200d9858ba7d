"""Folding: BatchNorm, Scale, Bias and BN multiplied into the layer before them, Dropout and Split dropped.

It makes a smaller net of the same kind, so every format can hold it, Caffe's own included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import GraphError
from ..graph.build import build_graph
from ..graph.node import Graph, Node
from ..graph.sharing import find_owners
from ..layers.base import Layer
from ..layers.bn import BN
from ..layers.conv import ConvolutionBase, Deconvolution
from ..layers.dense import InnerProduct
from ..layers.norm import BatchNorm
from ..layers.scale import Overlay
from ..net import CaffeNet
from ..schema import caffe_pb2 as pb

_FOLDED_INTO = {
    "Convolution": "convolution_param",
    "DepthwiseConvolution": "convolution_param",
    "Deconvolution": "convolution_param",
    "InnerProduct": "inner_product_param",
}
_DROPPED = ("Dropout", "Split")


@dataclass(frozen=True)
class Folded:
    """A folded net: its text, graph and arrays, and what was folded and dropped, by layer name."""

    net_text: pb.NetParameter
    graph: Graph
    arrays: dict[str, list[np.ndarray]]
    folded: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class _Affine:
    """x · factor + shift, one value a channel, in float64."""

    factor: np.ndarray
    shift: np.ndarray

    def then(self, other: _Affine) -> _Affine:
        return _Affine(self.factor * other.factor, self.shift * other.factor + other.shift)


def fold(net: CaffeNet, net_text: pb.NetParameter, arrays: Mapping[str, list[np.ndarray]]) -> Folded:
    """Return ``net`` folded; a layer whose input, output or weights others use stays as it is.

    Sums are done in float64.  Raises GraphError where the net uses one blob name for several values in a
    way that dropping a layer would change.
    """
    graph = net.graph
    shared = _sharing(graph, net)
    kept_arrays = {name: list(blobs) for name, blobs in arrays.items()}
    renamed: dict[str, str] = {}  # a value's new name
    gone: dict[str, list[str]] = {"folded": [], "dropped": []}
    layers: dict[str, pb.LayerParameter] = {}
    for node in graph:
        if node.name in (*gone["folded"], *gone["dropped"]):
            continue
        layer = pb.LayerParameter()
        layer.CopyFrom(node.layer)
        layer.name = node.name
        if _is_dropped(net.layer(node.name), graph):
            gone["dropped"].append(node.name)
            for index, top in enumerate(node.tops):
                # An in-place layer's name stays what its readers say; another's goes with it.
                if node.top_names[index] != node.bottom_names[0]:
                    renamed[top] = node.bottom_names[0]
            continue
        if node.type in _FOLDED_INTO and node.name not in shared and len(node.tops) == 1:
            chain = _chain(net, node, shared)
            if chain:
                last = chain[-1][0]
                layer.top[0] = last.top_names[0]
                kept_arrays[node.name] = _multiplied(
                    net.layer(node.name), layer, kept_arrays[node.name], chain
                )
                for taken, _ in chain:
                    gone["folded"].append(taken.name)
                    kept_arrays.pop(taken.name, None)
        layers[node.name] = layer
    for node in graph:
        if node.name in layers:
            for index, bottom in enumerate(node.bottoms):
                if bottom in renamed:
                    layers[node.name].bottom[index] = _resolve(graph, bottom, renamed, gone["dropped"])
    text = pb.NetParameter()
    text.CopyFrom(net_text)
    text.ClearField("layer")
    text.layer.extend(layers.values())
    result = build_graph(text, graph.phase)
    _check_readers(graph, result, {*gone["folded"], *gone["dropped"]})
    return Folded(text, result, kept_arrays, tuple(gone["folded"]), tuple(gone["dropped"]))


# ---------------------------------------------------------------------- what may go


def _sharing(graph: Graph, net: CaffeNet) -> set[str]:
    owners = find_owners(graph, {name: [s.shape for s in blobs] for name, blobs in net.blob_specs.items()})
    return {key[0] for key in owners} | {owner.layer for owner in owners.values()}


def _is_dropped(layer: Layer, graph: Graph) -> bool:
    node = layer.node
    if node.type not in _DROPPED or (node.type == "Dropout" and layer.is_train):
        return False
    in_place = node.top_names == node.bottom_names
    # A net's output keeps its name.
    return in_place or not set(node.tops) & set(graph.outputs)


def _chain(net: CaffeNet, node: Node, shared: set[str]) -> list[tuple[Node, _Affine]]:
    """The layers behind a node that can be multiplied into it, each the only reader of the one before."""
    if not _takes_affine(net.layer(node.name)):
        return []
    chain: list[tuple[Node, _Affine]] = []
    value = node.tops[0]
    begun = [top for other in net.graph for top in other.top_names if top not in other.bottom_names]
    while value not in net.graph.outputs:
        readers = net.graph.consumers(value)
        if len(readers) != 1 or readers[0].bottoms.count(value) != 1 or readers[0].name in shared:
            break
        reader = readers[0]
        affine = _affine_of(net.layer(reader.name), net.shapes[value])
        # A name that is used for several blobs would change its meaning when it is written earlier.
        if affine is None or begun.count(reader.top_names[0]) != 1:
            break
        chain.append((reader, affine))
        value = reader.tops[0]
    return chain


def _takes_affine(layer: Layer) -> bool:
    """Whether what the layer makes of each output lies along axis 1, as channels do."""
    if isinstance(layer, InnerProduct):
        return layer.start == 1
    return isinstance(layer, ConvolutionBase) and layer.channel_axis == 1


def _affine_of(layer: Layer, shape: tuple[int, ...]) -> _Affine | None:
    """What a layer does to each channel, or None where it does anything else."""
    channels = shape[1] if len(shape) > 1 else 0
    if isinstance(layer, BatchNorm) and channels:
        return _batch_norm_affine(layer)
    if isinstance(layer, BN):
        return _fork_affine(layer, len(shape))
    if isinstance(layer, Overlay) and layer.is_learned and channels:
        along_channels = layer.laid == (channels,) and layer.behind == len(shape) - 2
        if layer.laid == () or along_channels:
            values = {name: _wide(layer.blob(name)) for name in layer.blob_names}
            every = np.ones(channels)
            return _Affine(values.get("weight", 1.0) * every, values.get("bias", 0.0) * every)
    return None


def _batch_norm_affine(layer: BatchNorm) -> _Affine | None:
    if not layer.is_stored:
        return None
    mean, variance = map(_wide, layer.statistics)
    factor = 1 / np.sqrt(variance + layer.eps)
    if not layer.has_affine:
        return _Affine(factor, -mean * factor)
    factor *= _wide(layer.scale)
    return _Affine(factor, _wide(layer.bias) - mean * factor)


def _fork_affine(layer: BN, rank: int) -> _Affine | None:
    if layer.is_segnets and rank < 4:
        return None  # its top has four axes, which no layer before it would give
    scale, shift = _wide(layer.scale), _wide(layer.shift)
    if layer.kind == "folded":
        return _Affine(scale, shift)
    if not layer.is_stored:
        return None
    factor = scale / np.sqrt(_wide(layer.variance) + layer.eps)
    return _Affine(factor, shift - _wide(layer.mean) * factor)


def _wide(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().flatten().numpy()


# ---------------------------------------------------------------------- the sums


def _multiplied(
    layer: Layer, text: pb.LayerParameter, blobs: list[np.ndarray], chain: Iterable[tuple[Node, _Affine]]
) -> list[np.ndarray]:
    """The layer's weight and bias with the chain multiplied in; its text gains a bias."""
    affines = [affine for _, affine in chain]
    total = affines[0]
    for affine in affines[1:]:
        total = total.then(affine)
    getattr(text, _FOLDED_INTO[text.type]).bias_term = True
    weight = np.asarray(blobs[0], np.float64)
    bias = np.asarray(blobs[1], np.float64) if len(blobs) > 1 else 0.0
    return [
        (weight * _along_outputs(layer, total.factor, weight)).astype(np.float32),
        (bias * total.factor + total.shift).astype(np.float32),
    ]


def _along_outputs(layer: Layer, factor: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Shape one factor an output so that it broadcasts over the weights."""
    if isinstance(layer, InnerProduct) and layer.param.transpose:
        return factor[None, :]
    if not isinstance(layer, Deconvolution):
        return factor.reshape(-1, *[1] * (weight.ndim - 1))
    # Input channels × outputs a group: the channels of each group meet their own outputs.
    group = layer.groups(weight.shape[0])
    rows = np.repeat(factor.reshape(group, -1), weight.shape[0] // group, axis=0)
    return rows.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


# ---------------------------------------------------------------------- names


def _resolve(graph: Graph, value: str, renamed: Mapping[str, str], dropped: list[str]) -> str:
    """The blob name a reader of ``value`` uses once the layers that only passed it on are gone."""
    name = renamed[value]
    maker = next(node for node in graph if value in node.tops)
    source = maker.bottoms[0]
    made = next(node for node in graph if source in node.tops)
    return _resolve(graph, source, renamed, dropped) if made.name in dropped and source in renamed else name


def _check_readers(before: Graph, after: Graph, gone: set[str]) -> None:
    """Every layer that stayed must read the layers it read, the gone ones skipped."""
    makers = {top: node for node in before for top in node.tops}

    def source(value: str) -> str:
        node = makers[value]
        return source(node.bottoms[0]) if node.name in gone else node.name

    found = {top: node.name for node in after for top in node.tops}
    for node in before:
        now = after.node(node.name)
        if now is not None and [source(value) for value in node.bottoms] != [
            found[value] for value in now.bottoms
        ]:
            raise GraphError(
                f"net {before.name!r}: layer {node.name} would read another blob once layers are folded, because "
                "a blob name is used again; convert without --fold"
            )
