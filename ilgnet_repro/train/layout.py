"""The layers and blobs of a net as Caffe's `Net::Init` makes them: splits, blobs by number, where gradients go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..caffe.graph import Node
from ..caffe.param_sharing import param_spec
from ..caffe.shared_memory import in_place_tops
from ..errors import GraphError
from ..layers.support.base import Layer
from ..runtime.plan import NetPlan
from ..schema import caffe_pb2 as pb
from .trained_net import insert_splits

AUTOMATIC = "(automatic)"  # the name of a loss that the text gives no top
# The labels of losses, where they may be other numbers than indices.
_LABELS = {
    "ContrastiveLoss": (2,),
    "HingeLoss": (1,),
    "InfogainLoss": (1, 2),
    "MultinomialLogisticLoss": (1,),
    "SigmoidCrossEntropyLoss": (1,),
    "SoftmaxWithLoss": (1,),
}


@dataclass(frozen=True)
class Place:
    """A layer in a net: its node (None for a Split that Caffe inserts), and its blobs by number."""

    name: str
    type: str
    text: pb.LayerParameter
    node: Node | None
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]
    loss_weights: tuple[float, ...]  # one per top


@dataclass(frozen=True)
class Layout:
    """The layers of a net with Caffe's splits, and the names of its blobs."""

    places: tuple[Place, ...]
    blobs: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def loss_weights(self) -> list[float]:
        """The weight of each blob in the loss, as Caffe's `blob_loss_weights_`."""
        weights = [0.0] * len(self.blobs)
        for place in self.places:
            for top, weight in zip(place.tops, place.loss_weights, strict=True):
                weights[top] = weight
        return weights


@dataclass(frozen=True)
class Backward:
    """Which layers have a backward pass, and to which of their bottoms it goes."""

    layers: tuple[bool, ...]
    bottoms: tuple[tuple[bool, ...], ...]


def plan_layout(plan: NetPlan) -> Layout:
    """Return the layers and blobs of a net.  Raises GraphError where Caffe refuses what its splits lead to."""
    nodes = plan.graph.layers
    names: list[str] = []
    numbers: dict[str, int] = {}
    places: list[Place] = []
    for text, index in insert_splits([node.layer for node in nodes]):
        node = None if index is None else nodes[index]
        bottoms = tuple(numbers[blob] for blob in text.bottom)
        in_place = in_place_tops(text)
        tops: list[int] = []
        for position, blob in enumerate(text.top):
            if position not in in_place:
                if blob in numbers:
                    raise GraphError(
                        f"{text.name} ({text.type}): top {blob!r} is written in place, but another layer reads what was "
                        "there before; Caffe refuses this (produced by multiple sources), so give the top another name"
                    )
                numbers[blob] = len(names)
                names.append(blob)
            tops.append(numbers[blob])
        if node is not None and not tops and plan.layers[node.name].is_loss:
            tops.append(len(names))
            names.append(AUTOMATIC)
        stated = tuple(text.loss_weight)
        weights = stated if node is None or stated else plan.layers[node.name].default_loss_weights()
        if node is not None and node.layer.loss_weight and not stated:  # moved to the split after it
            weights = ()
        padded = (*weights, *[0.0] * len(tops))[: len(tops)]
        places.append(Place(text.name, text.type, text, node, bottoms, tuple(tops), padded))
    inputs = tuple(top for place in places if place.type == "Input" for top in place.tops)
    outputs = tuple(numbers[name] for name in plan.graph.outputs)
    return Layout(tuple(places), tuple(names), inputs, outputs)


def rates(plan: NetPlan, node: Node) -> list[float]:
    """Return the `lr_mult` of each of a layer's blobs; 0 for statistics."""
    return [
        param_spec(node, index).lr_mult if spec.learned else 0.0
        for index, spec in enumerate(plan.blobs[node.name])
    ]


def stated_rates(plan: NetPlan, node: Node) -> list[float]:
    """Return the `lr_mult` of each of a layer's blobs as its text states it, 1 by default.

    `Net::Init` decides by these where gradients are computed, before BatchNorm sets those of its statistics to 0.
    """
    return [param_spec(node, index).lr_mult for index in range(len(plan.blobs[node.name]))]


def plan_backward(plan: NetPlan, layout: Layout) -> Backward:
    """Decide the backward pass as `Net::Init` does: from parameters with a rate, and under a loss only."""
    count = len(layout.places)
    needed = [False] * len(layout.blobs)
    layers = [False] * count
    bottoms: list[list[bool]] = []
    for number, place in enumerate(layout.places):
        stated = place.text.propagate_down
        bottoms.append([
            stated[position] if stated else needed[bottom] for position, bottom in enumerate(place.bottoms)
        ])  # fmt: skip
        need = any(needed[bottom] for bottom in place.bottoms)
        if place.node is not None:
            need = need or any(stated_rates(plan, place.node))
        layers[number] = need
        if need:
            for top in place.tops:
                needed[top] = True
    _only_under_loss(layout, layers, bottoms)
    if plan.graph.text.force_backward:
        for number, place in enumerate(layout.places):
            layers[number] = True
            bottoms[number] = [
                go or _may_force(plan.layers, place, position) for position, go in enumerate(bottoms[number])
            ]
    return Backward(tuple(layers), tuple(map(tuple, bottoms)))


def _only_under_loss(layout: Layout, layers: list[bool], bottoms: list[list[bool]]) -> None:
    """Leave out layers that no loss depends on, and those all of whose readers pass nothing back."""
    under_loss: set[int] = set()
    skipped: set[int] = set()
    for number in reversed(range(len(layout.places))):
        place = layout.places[number]
        contributes = any(
            weight or top in under_loss for top, weight in zip(place.tops, place.loss_weights, strict=True)
        )
        if layers[number] and all(top in skipped for top in place.tops):
            layers[number] = False
            bottoms[number] = [False] * len(place.bottoms)
        layers[number] = layers[number] and contributes
        for position, bottom in enumerate(place.bottoms):
            if contributes:
                under_loss.add(bottom)
            else:
                bottoms[number][position] = False
            if not bottoms[number][position]:
                skipped.add(bottom)


def _may_force(layers: Mapping[str, Layer], place: Place, position: int) -> bool:
    """Caffe's `AllowForceBackward`: no gradient goes to labels."""
    if place.node is None:
        return True
    labels = _LABELS.get(place.type, layers[place.node.name].index_bottoms)
    return position not in labels
