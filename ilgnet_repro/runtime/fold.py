"""Folding: BatchNorm, Scale, Bias and BN multiplied into the layer before them; Split and Dropout dropped.

The result is a smaller Caffe net, so that every format can store it, Caffe's own included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..caffe.graph import Graph, Node
from ..caffe.graph_build import build_graph
from ..caffe.graph_sources import reads_the_same, sources
from ..errors import GraphError, IlgnetError
from ..layers.bn import BN
from ..layers.conv import ConvolutionBase
from ..layers.dense import InnerProduct
from ..layers.norm import BatchNorm
from ..layers.scale import Broadcast
from ..layers.support.base import Layer
from ..schema import caffe_pb2 as pb
from .net import CaffeNet

_FOLDED_INTO = {
    "Convolution": "convolution_param",
    "Convolution3D": "convolution3d_param",
    "ConvolutionDepthwise": "convolution_param",
    "ConvolutionND": "convolution_param",
    "Deconvolution": "convolution_param",
    "Deconvolution3D": "convolution_param",
    "DepthwiseConvolution": "convolution_param",
    "NdConvolution": "convolution_param",
    "InnerProduct": "inner_product_param",
}


@dataclass(frozen=True)
class Folded:
    """A folded net: its text, graph and arrays, and the names of folded and of dropped layers."""

    net_text: pb.NetParameter
    graph: Graph
    arrays: dict[str, list[np.ndarray]]
    folded: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class _Affine:
    """x · factor + shift with one value per channel, in float64."""

    factor: np.ndarray
    shift: np.ndarray

    def then(self, other: _Affine) -> _Affine:
        return _Affine(self.factor * other.factor, self.shift * other.factor + other.shift)


@dataclass(frozen=True)
class _Removal:
    """Layers that are removed together: a no-op, or the chain that is multiplied into ``host``."""

    nodes: tuple[Node, ...]
    host: Node | None = None
    affines: tuple[_Affine, ...] = ()


def fold(net: CaffeNet, net_text: pb.NetParameter, arrays: Mapping[str, list[np.ndarray]]) -> Folded:
    """Return ``net`` folded; a layer whose input, output or weights others use is not removed.

    Computes in float64.  A layer also stays where removing it would change what another reads, for example where
    an in-place layer writes the bottom of a dropped Split.  Raises GraphError where the net uses one
    blob name for several values in a way that Caffe refuses and that dropping a layer would change.
    """
    graph = net.graph
    removals = _removals(net)
    text, after = _without(graph, net_text, removals)
    if after is None:
        _check_names(graph)
        kept: list[_Removal] = []
        for removal in removals:
            if _without(graph, net_text, [*kept, removal])[1] is not None:
                kept.append(removal)
        removals = kept
        text, after = _without(graph, net_text, removals)
    assert after is not None  # without removals the net is unchanged
    kept_arrays = {name: list(blobs) for name, blobs in arrays.items()}
    for removal in removals:
        if removal.host is not None:
            name = removal.host.name
            kept_arrays[name] = _multiplied(net.layer(name), kept_arrays[name], removal.affines)
            for node in removal.nodes:
                kept_arrays.pop(node.name, None)
    folded = tuple(node.name for removal in removals if removal.host for node in removal.nodes)
    dropped = tuple(node.name for removal in removals if not removal.host for node in removal.nodes)
    return Folded(text, after, kept_arrays, folded, dropped)


# ---------------------------------------------------------------------- what can be removed


def _sharing(net: CaffeNet) -> set[str]:
    owners = net.plan.owners
    return {key[0] for key in owners} | {owner.layer for owner in owners.values()}


def _removals(net: CaffeNet) -> list[_Removal]:
    """Return every possible removal, in the net's order."""
    shared = _sharing(net)
    removals = []
    for node in net.graph.layers:
        if any(node.layer.loss_weight):
            continue
        if net.layer(node.name).is_identity():
            removals.append(_Removal((node,)))
        elif node.type in _FOLDED_INTO and node.name not in shared and len(node.tops) == 1:
            chain = _chain(net, node, shared)
            if chain:
                nodes, affines = zip(*chain, strict=True)
                removals.append(_Removal(nodes, node, affines))
    return removals


def _chain(net: CaffeNet, node: Node, shared: set[str]) -> list[tuple[Node, _Affine]]:
    """Return the layers after a node that can be multiplied into it, each the only reader of the one before."""
    if not _takes_affine(net.layer(node.name)):
        return []
    outputs = set(map(net.graph.value, net.graph.outputs))
    chain: list[tuple[Node, _Affine]] = []
    value = node.tops[0]
    while value not in outputs:
        readers = net.graph.consumers(value)
        if len(readers) != 1 or readers[0].bottoms.count(value) != 1 or readers[0].name in shared:
            break
        reader = readers[0]
        affine = _affine_of(net.layer(reader.name), net.plan.value_shapes[value])
        if affine is None or any(reader.layer.loss_weight):
            break
        chain.append((reader, affine))
        value = reader.tops[0]
    return chain


def _takes_affine(layer: Layer) -> bool:
    """Whether the layer's outputs are along axis 1, as channels are."""
    if isinstance(layer, InnerProduct):
        return layer.is_plain and layer.start == 1
    return isinstance(layer, ConvolutionBase) and layer.channel_axis == 1


def _affine_of(layer: Layer, shape: tuple[int, ...]) -> _Affine | None:
    """Return what a layer does to each channel, or None where it is not affine per channel."""
    channels = shape[1] if len(shape) > 1 else 0
    if isinstance(layer, BatchNorm) and channels:
        return _batch_norm_affine(layer)
    if isinstance(layer, BN):
        return _fork_affine(layer, len(shape))
    if isinstance(layer, Broadcast) and layer.is_learned and not layer.is_limited and channels:
        blob_shape = layer.blobs[0].shape
        along_channels = blob_shape == (channels,) and layer.trailing_axes == len(shape) - 2
        if blob_shape == () or along_channels:
            values = {name: _float64(layer.blob(name)) for name in layer.blob_names}
            every = np.ones(channels)
            return _Affine(values.get("weight", 1.0) * every, values.get("bias", 0.0) * every)
    return None


def _batch_norm_affine(layer: BatchNorm) -> _Affine | None:
    if not layer.is_stored:
        return None
    mean, variance = map(_float64, layer.statistics)
    factor = 1 / np.sqrt(variance + layer.eps)
    if not layer.has_affine:
        return _Affine(factor, -mean * factor)
    factor *= _float64(layer.scale)
    return _Affine(factor, _float64(layer.bias) - mean * factor)


def _fork_affine(layer: BN, rank: int) -> _Affine | None:
    if layer.is_segnet and rank < 4:
        return None  # its top has four axes, unlike the top of the layer before it
    scale, shift = _float64(layer.scale), _float64(layer.shift)
    if layer.kind == "folded":
        return _Affine(scale, shift)
    if not layer.is_stored:
        return None
    factor = scale / np.sqrt(_float64(layer.variance) + layer.eps)
    return _Affine(factor, shift - _float64(layer.mean) * factor)


def _float64(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().flatten().numpy()


# ---------------------------------------------------------------------- weights


def _multiplied(layer: Layer, blobs: list[np.ndarray], affines: Sequence[_Affine]) -> list[np.ndarray]:
    """Return the layer's weight and bias with the chain multiplied in."""
    total = affines[0]
    for affine in affines[1:]:
        total = total.then(affine)
    weight = np.asarray(blobs[0], np.float64)
    bias = np.asarray(blobs[1], np.float64) if len(blobs) > 1 else 0.0
    bias = bias * total.factor + total.shift
    if isinstance(layer, ConvolutionBase):
        bias = bias.reshape(layer.bias_shape(bias.size))
    return [
        (weight * _along_outputs(layer, total.factor, weight)).astype(np.float32),
        bias.astype(np.float32),
    ]


def _along_outputs(layer: Layer, factor: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Reshape one factor per output so that it broadcasts over the weights."""
    if isinstance(layer, InnerProduct) and layer.param.transpose:
        return factor[None, :]
    if not isinstance(layer, ConvolutionBase) or not layer.transposed:
        return factor.reshape(-1, *[1] * (weight.ndim - 1))
    # Input channels × outputs per group: each group's channels have their own outputs.
    group = layer.groups(weight.shape[0])
    rows = np.repeat(factor.reshape(group, -1), weight.shape[0] // group, axis=0)
    return rows.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


# ---------------------------------------------------------------------- the text without the removed layers


def _without(
    graph: Graph, net_text: pb.NetParameter, removals: Sequence[_Removal]
) -> tuple[pb.NetParameter, Graph | None]:
    """Return the net's text without some layers, and its graph or None if it would compute something else."""
    makers = {top: node for node in graph for top in node.tops}
    dropped = {node.name for removal in removals if not removal.host for node in removal.nodes}
    gone = {node.name for removal in removals for node in removal.nodes}
    hosts = {removal.host.name: removal.nodes[-1] for removal in removals if removal.host}
    text = pb.NetParameter()
    text.CopyFrom(net_text)
    text.ClearField("layer")
    for node in graph.layers:
        if node.name in gone:
            continue
        layer = text.layer.add()
        layer.CopyFrom(node.layer)
        layer.name = node.name
        for rules in ("include", "exclude"):  # the phase rules have been applied
            layer.ClearField(rules)
        for index, value in enumerate(node.bottoms):
            while makers[value].name in dropped:
                value = makers[value].bottoms[0]
                layer.bottom[index] = value.blob
        if node.name in hosts:
            layer.top[0] = hosts[node.name].tops[0].blob
            getattr(layer, _FOLDED_INTO[layer.type]).bias_term = True
    try:
        after = build_graph(text, graph.phase)
    except IlgnetError:  # a layer reads a name that no layer writes now
        return text, None
    return text, after if _is_same(graph, after, gone) else None


def _is_same(before: Graph, after: Graph, gone: set[str]) -> bool:
    """Whether every remaining layer and every output reads the same values as before."""
    if before.outputs != after.outputs:
        return False
    return reads_the_same(before, after, sources(before, gone), sources(after), before.outputs)


def _check_names(graph: Graph) -> None:
    """Refuse a net that reads a blob twice and writes it in place, which Caffe refuses too."""
    for node in graph.layers:
        if node.is_in_place:
            for reader in graph.consumers(node.bottoms[0]):
                if reader is not node and not reader.is_inserted:
                    raise GraphError(
                        f"net {graph.name!r}: a layer after {reader.name} would read another blob once layers are "
                        f"folded, because {node.name} uses its name again; convert without fold=True",
                        option="fold",
                    )
