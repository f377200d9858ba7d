"""A net's layers as the steps of the fast path: what does nothing goes, a ReLU joins what it follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..caffe.graph import Node, Value
from ..layers.support.base import Layer
from ..schema import caffe_pb2 as pb
from .fast_layers import LRN, Conv, can_pack, fast_dense, own_copy
from .fold import fold
from .net import CaffeNet

_FOLDABLE = {"BatchNorm", "BN", "Scale", "Bias"}
_PASSED_ON = {"Dropout", "Split"}  # in phase TEST
# What treats each image by itself, besides the modules of this folder.
_PER_IMAGE = {
    *("Pooling", "LRN", "Eltwise", "AbsVal", "BNLL", "ELU", "Exp", "Log", "Power", "PReLU", "ReLU", "ReLU6"),
    *("Sigmoid", "TanH", "Swish"),
}


@dataclass(frozen=True, eq=False)
class Step:
    """One call: a module, the values it reads and those it makes."""

    module: nn.Module
    bottoms: tuple[Value, ...]
    tops: tuple[Value, ...]


def folded(net: CaffeNet) -> CaffeNet:
    """Return ``net`` with BatchNorm, Scale, Bias and BN multiplied into the layers in front of them."""
    if not _FOLDABLE & {node.type for node in net.graph}:
        return net
    arrays = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    result = fold(net, pb.NetParameter(name=net.graph.name), arrays)
    return CaffeNet(result.graph, result.arrays, input_shapes={name: net.shapes[name] for name in net.inputs})


def plan_steps(net: CaffeNet, precision: str) -> list[Step]:
    """Return the steps that make a net's outputs."""
    alias: dict[Value, Value] = {}
    joined: set[str] = set()
    steps = []
    for node, layer in net.steps(net.outputs):
        if layer.is_input or node.name in joined:
            continue
        bottoms = tuple(alias.get(value, value) for value in node.bottoms)
        if node.type in _PASSED_ON:
            alias.update((top, bottoms[0]) for top in node.tops)
            continue
        relu = _following_relu(net, node)
        module = _fast_module(net, node, layer, precision, relu is not None)
        if module is None or relu is None:
            steps.append(Step(module or own_copy(layer), bottoms, node.tops))
        else:
            joined.add(relu.name)
            steps.append(Step(module, bottoms, relu.tops))
    # An output that only passes another value on is made a value of its own again.
    outputs = map(net.graph.value, net.outputs)
    return [*steps, *(Step(_Same(), (alias[value],), (value,)) for value in outputs if value in alias)]


def _fast_module(net: CaffeNet, node: Node, layer: Layer, precision: str, relu: bool) -> nn.Module | None:
    """What runs a layer, and a ReLU behind it, faster than its own class; None where nothing does."""
    if can_pack(layer):
        return Conv(layer, net.plan.value_shapes[node.bottoms[0]], relu)
    if node.type == "InnerProduct":
        return fast_dense(layer, net.plan.value_shapes[node.bottoms[0]], precision, relu)
    if node.type == "LRN" and layer.is_across and not relu:
        return LRN(layer)
    return None


def _following_relu(net: CaffeNet, node: Node) -> Node | None:
    """The plain ReLU that is all that reads a layer's only top."""
    if len(node.tops) != 1 or node.tops[0] in map(net.graph.value, net.outputs):
        return None
    readers = net.graph.consumers(node.tops[0])
    if len(readers) != 1 or readers[0].type != "ReLU" or net.layer(readers[0].name).slope:
        return None
    return readers[0]


class _Same(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x,)


# ---------------------------------------------------------------------- in what order and how they run


def split_per_image(steps: Sequence[Step], inputs: Collection[Value]) -> tuple[list[Step], list[Step]]:
    """Part the steps into those that treat each image by itself, to be run first, and the others."""
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
        along: Any = module
        return kind in _PER_IMAGE or (kind in ("Concat", "Slice") and along.dim > 0)
    return isinstance(module, (Conv, LRN))


def run_steps(
    steps: Sequence[Step], given: Mapping[Value, Tensor], kept: Collection[Value]
) -> dict[Value, Tensor]:
    """Run some steps and return the values to be kept; any other goes once nothing more reads it."""
    last = {value: index for index, step in enumerate(steps) for value in step.bottoms}
    values = dict(given)
    for index, step in enumerate(steps):
        tops = step.module(*(values[value] for value in step.bottoms))
        values.update(zip(step.tops, tops, strict=False))
        for value in step.bottoms:
            if last[value] == index and value not in kept:
                values.pop(value, None)
    return {value: tensor for value, tensor in values.items() if value in kept}
