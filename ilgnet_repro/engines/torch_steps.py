"""A net's layers as steps that torch runs: drops no-ops, merges affine layers and ReLU."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..caffe.graph import Node, Value
from ..layers.dense import InnerProduct
from ..layers.lrn import LRN, FastLRN
from ..layers.support.base import Layer, Shape
from ..runtime.fold import fold
from ..runtime.inference import makes_new_top
from ..runtime.net import CaffeNet
from ..schema import caffe_pb2 as pb
from .torch_layers import ChannelAffine, Conv, ThenReLU, can_pack, fast_dense, is_large_dense, own_copy

_FOLDABLE = {"BatchNorm", "BN", "Scale", "Bias"}


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
    planner = _Planner(net, wanted, precision, is_whole=only is None)
    for node, layer in net.steps(wanted):
        if layer.is_input or node.name in fused or (only is not None and node.name not in only):
            continue
        bottoms = tuple(alias.get(value, value) for value in node.bottoms)
        if layer.is_identity():
            alias.update((top, bottoms[0]) for top in node.tops)
            continue
        module, last = planner.module(node, layer)
        fused.update(one.name for one in last)
        steps.append(Step(module, bottoms, (last[-1] if last else node).tops))
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


def gains_by_packing(net: CaffeNet, wanted: tuple[str, ...]) -> bool:
    """Return whether a net has a convolution that is too large for the matrix product of the exact net's small ones.

    oneDNN takes twice as long for all of LeNet's (`ConvolutionBase.is_small`).
    """
    for node, layer in net.steps(wanted):
        if can_pack(layer):
            convolution: Any = layer
            bottom = net.plan.value_shapes[node.bottoms[0]]
            if not convolution.is_small(bottom, net.plan.blobs[node.name][0].shape):
                return True
    return False


class _Planner:
    """Makes the module of a layer, and of the layers after it that are merged into it.

    Convolutions are packed where a net has one that gains by it; the blobs are then channels-last.
    """

    def __init__(self, net: CaffeNet, wanted: tuple[str, ...], precision: str, *, is_whole: bool) -> None:
        self.net, self.precision = net, precision
        self.kept = {net.graph.value(name) for name in wanted}
        self.packs = gains_by_packing(net, wanted)
        self.channels_last = self.packs and is_whole  # an engine's outputs are contiguous

    def module(self, node: Node, layer: Layer) -> tuple[nn.Module, list[Node]]:
        """Return a layer's module and the nodes that are merged into it, in order."""
        if node.feeds_mask:
            return own_copy(layer), []
        relu = following_relu(self.net, node, self.kept)
        merged = [] if relu is None else [relu]
        shape = self._bottom(node)
        if self.packs and can_pack(layer):
            return Conv(layer, shape, relu is not None), merged
        if isinstance(layer, InnerProduct) and layer.is_plain:
            return fast_dense(layer, shape, self.precision, relu is not None, self.channels_last), merged
        if isinstance(layer, LRN) and layer.is_across:
            return FastLRN(layer), []
        if self._affine(node) is not None:
            return self._affine_chain(node)
        if relu is not None and makes_new_top(layer):
            return ThenReLU(own_copy(layer)), merged
        return own_copy(layer), []

    def _bottom(self, node: Node) -> Shape:
        return self.net.plan.value_shapes[node.bottoms[0]] if node.bottoms else ()

    def _affine(self, node: Node) -> tuple[Tensor, Tensor] | None:
        """Return the factor and shift per channel of a layer, or None where it computes something else."""
        layer = self.net.layer(node.name)
        if node.feeds_mask or len(node.bottoms) != 1 or not layer.is_channel_affine(len(self._bottom(node))):
            return None
        return layer.channel_affine(training=False)

    def _affine_chain(self, node: Node) -> tuple[nn.Module, list[Node]]:
        affines, merged, last = [self._affine(node)], [], node
        while (reader := only_reader(self.net, last, self.kept)) is not None and (
            more := self._affine(reader)
        ):
            affines.append(more)
            merged.append(reader)
            last = reader
        relu = following_relu(self.net, last, self.kept)
        if relu is not None:
            merged.append(relu)
        return ChannelAffine([one for one in affines if one], relu is not None), merged


def only_reader(net: CaffeNet, node: Node, kept: Collection[Value]) -> Node | None:
    """Return the only reader of a layer's only top, or None."""
    if len(node.tops) != 1 or node.tops[0] in kept:
        return None
    readers = net.graph.consumers(node.tops[0])
    return readers[0] if len(readers) == 1 else None


def following_relu(net: CaffeNet, node: Node, kept: Collection[Value]) -> Node | None:
    """Return the plain ReLU (no negative slope, no limit) that is the only reader of a layer's only top, or None."""
    reader = only_reader(net, node, kept)
    is_plain = reader is not None and reader.type == "ReLU" and net.layer(reader.name).is_plain
    return reader if is_plain else None


class Identity(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x,)


class Program:
    """Steps in order, prepared to keep some values; any other is freed after its last reader."""

    def __init__(self, steps: Sequence[Step], kept: Collection[Value]) -> None:
        self.kept = frozenset(kept)
        last = {value: index for index, step in enumerate(steps) for value in step.bottoms}
        self._calls = [
            (
                step.module,
                step.bottoms,
                step.tops,
                tuple({value for value in step.bottoms if last[value] == index} - self.kept),
            )
            for index, step in enumerate(steps)
        ]

    def __call__(self, given: Mapping[Value, Tensor]) -> dict[Value, Tensor]:
        """Return the kept values.

        Without hooks torch's call of a module only runs `forward`, and takes as long as a small layer.
        """
        values = dict(given)
        has_hooks = _has_any_global_hook()
        for module, bottoms, tops, freed in self._calls:
            run: Any = module
            if not (has_hooks or module._forward_hooks or module._forward_pre_hooks):
                run = module.forward
            if len(bottoms) == 1:
                found = run(values[bottoms[0]])
            else:
                found = run(*[values[value] for value in bottoms])
            if len(tops) == 1:
                values[tops[0]] = found[0]
            else:
                values.update(zip(tops, found, strict=False))
            for value in freed:
                values.pop(value, None)
        return {value: tensor for value, tensor in values.items() if value in self.kept}
