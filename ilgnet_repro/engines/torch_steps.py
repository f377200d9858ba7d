"""A net's layers as steps that torch runs: drops no-ops, fuses ReLU."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..caffe.graph import Node, Value
from ..layers.conv import ConvolutionBase
from ..layers.dense import InnerProduct
from ..layers.lrn import LRN, FastLRN
from ..layers.support.base import Layer
from ..runtime.fold import fold
from ..runtime.net import CaffeNet
from ..schema import caffe_pb2 as pb
from .torch_layers import Conv, can_pack, fast_dense, is_large_dense, own_copy

_FOLDABLE = {"BatchNorm", "BN", "Scale", "Bias"}
# Layers that process each image separately, besides the fast modules.
_PER_IMAGE = {
    *("Pooling", "LRN", "Eltwise", "AbsVal", "BNLL", "ELU", "Exp", "Log", "Power", "PReLU", "ReLU", "ReLU6"),
    *("Sigmoid", "TanH", "Swish"),
}


@dataclass(frozen=True, eq=False)
class Step:
    """One call: a module, the values it reads and the values it computes."""

    module: nn.Module
    bottoms: tuple[Value, ...]
    tops: tuple[Value, ...]


def folded(net: CaffeNet) -> CaffeNet:
    """Return ``net`` with BatchNorm, Scale, Bias and BN multiplied into the layers before them.

    A net with a pooling's mask stays: its positions depend on the last bit of nearly equal values.
    """
    if not _FOLDABLE & {node.type for node in net.graph} or any(node.feeds_mask for node in net.graph):
        return net
    arrays = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    result = fold(net, pb.NetParameter(name=net.graph.name), arrays)
    return CaffeNet(result.graph, result.arrays, input_shapes={name: net.shapes[name] for name in net.inputs})


def folded_for(net: CaffeNet, wanted: tuple[str, ...]) -> CaffeNet:
    """Return the folded net, or, where blobs are wanted that folding changes, the net itself."""
    return folded(net) if set(wanted) <= set(net.outputs) else net


def plan_steps(
    net: CaffeNet, wanted: tuple[str, ...], precision: str, only: Collection[str] | None = None
) -> list[Step]:
    """Return the steps that compute some blobs; ``precision`` is that of large dense weights.

    With ``only``, the names of layers, the others are left out: their tops are given.
    """
    alias: dict[Value, Value] = {}
    fused: set[str] = set()
    steps = []
    targets = {net.graph.value(name) for name in wanted}
    for node, layer in net.steps(wanted):
        if layer.is_input or node.name in fused or (only is not None and node.name not in only):
            continue
        bottoms = tuple(alias.get(value, value) for value in node.bottoms)
        if layer.is_identity():
            alias.update((top, bottoms[0]) for top in node.tops)
            continue
        relu = following_relu(net, node, targets)
        module = _fast_module(net, node, layer, precision, relu is not None)
        if module is None or relu is None:
            steps.append(Step(module or own_copy(layer), bottoms, node.tops))
        else:
            fused.add(relu.name)
            steps.append(Step(module, bottoms, relu.tops))
    # A wanted value that is the alias of another one gets a step that copies the reference.
    copied = [value for value in map(net.graph.value, wanted) if value in alias]
    return [*steps, *(Step(Identity(), (alias[value],), (value,)) for value in copied)]


def after_large_dense(net: CaffeNet, wanted: tuple[str, ...]) -> set[str]:
    """Return the names of the large dense layers, and of all layers that depend on one."""
    found: set[str] = set()
    made: set[Value] = set()
    for node, layer in net.steps(wanted):
        if is_large_dense(layer) or made.intersection(node.bottoms):
            found.add(node.name)
            made.update(node.tops)
    return found


def _fast_module(net: CaffeNet, node: Node, layer: Layer, precision: str, relu: bool) -> nn.Module | None:
    """Return a faster module for a layer and the ReLU after it, or None where there is none."""
    if node.feeds_mask:
        return None
    if can_pack(layer):
        return Conv(layer, net.plan.value_shapes[node.bottoms[0]], relu)
    if isinstance(layer, InnerProduct) and layer.is_plain:
        return fast_dense(layer, net.plan.value_shapes[node.bottoms[0]], precision, relu)
    if isinstance(layer, LRN) and layer.is_across and not relu:
        return FastLRN(layer)
    return None


def following_relu(net: CaffeNet, node: Node, kept: Collection[Value]) -> Node | None:
    """Return the plain ReLU (no negative slope, no limit) that is the only reader of a layer's only top, or None."""
    if len(node.tops) != 1 or node.tops[0] in kept:
        return None
    readers = net.graph.consumers(node.tops[0])
    if len(readers) != 1 or readers[0].type != "ReLU" or not net.layer(readers[0].name).is_plain:
        return None
    return readers[0]


class Identity(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x,)


# ---------------------------------------------------------------------- order and running


def split_per_image(steps: Sequence[Step], inputs: Collection[Value]) -> tuple[list[Step], list[Step]]:
    """Split the steps into those that process each image separately, which run first, and the others."""
    trunk: list[Step] = []
    heads: list[Step] = []
    made = set(inputs)
    for step in steps:
        if made.issuperset(step.bottoms) and _is_per_image(step.module):
            trunk.append(step)
            made.update(step.tops)
        else:
            heads.append(step)
    return trunk, heads


def _is_per_image(module: Any) -> bool:
    if isinstance(module, Layer):
        kind = module.node.type
        layer: Any = module
        if isinstance(layer, ConvolutionBase):
            return layer.channel_axis == 1
        return kind in _PER_IMAGE or (kind in ("Concat", "Slice") and layer.dim > 0)
    return isinstance(module, (Conv, FastLRN))


def run_steps(
    steps: Sequence[Step], given: Mapping[Value, Tensor], kept: Collection[Value]
) -> dict[Value, Tensor]:
    """Run some steps and return the ``kept`` values; any other is freed after its last reader."""
    last = {value: index for index, step in enumerate(steps) for value in step.bottoms}
    values = dict(given)
    for index, step in enumerate(steps):
        tops = step.module(*(values[value] for value in step.bottoms))
        values.update(zip(step.tops, tops, strict=False))
        for value in step.bottoms:
            if last[value] == index and value not in kept:
                values.pop(value, None)
    return {value: tensor for value, tensor in values.items() if value in kept}
