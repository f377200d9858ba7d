"""The schedule of a forward pass: which layers run for some blobs, and when each value is freed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..caffe.graph import Graph, Node, Value
from ..layers.support.base import Layer
from .inference import Inference, make_inference
from .plan import NetPlan
from .step import Step


@dataclass(frozen=True)
class Schedule:
    """A pass for some blobs, planned once: values are stored in numbered slots, not by name."""

    steps: tuple[Step, ...]
    own: tuple[tuple[Step, Any], ...]  # each step with the net's own layer
    inference: Inference | None  # a pass without gradients in float32 on the CPU, where all layers allow it
    slots: int
    wanted: tuple[tuple[str, int], ...]


def make_schedule(
    plan: NetPlan, keys: Mapping[str, Node], modules: nn.Module, wanted: tuple[str, ...], with_loss: bool
) -> Schedule:
    """Return the schedule of a pass that computes ``wanted`` and, ``with_loss``, all losses.

    ``keys`` are the names of the net's ``modules`` with their nodes, in the net's order.
    """
    graph = plan.graph
    weights = {name: _weights(layer, graph) if with_loss else () for name, layer in plan.layers.items()}
    outputs = {name: graph.value(name) for name in wanted}
    kept = set(outputs.values())
    needed = set(kept)
    chosen: list[tuple[str, Node]] = []
    for key, node in reversed(list(keys.items())):
        if needed.intersection(node.tops) or weights[node.name]:
            needed.update(node.bottoms)
            chosen.append((key, node))
    chosen.reverse()
    slots: dict[Value, int] = {}
    for _, node in chosen:
        for value in node.tops:
            slots.setdefault(value, len(slots))
    last_reader = {value: node.name for _, node in chosen for value in node.bottoms}
    steps = tuple(
        Step(
            key=key,
            node=node,
            layer=_own_layer(modules, key, node),
            bottoms=tuple(slots[value] for value in node.bottoms),
            tops=tuple(slots[value] for value in node.tops),
            top_names=tuple(
                name if value in needed else None
                for name, value in zip(node.top_names, node.tops, strict=True)
            ),
            only_forward=_only_forward(plan.layers[node.name]),
            parameter_count=len(plan.blobs[node.name]),
            freed=tuple({
                slots[value] for value in node.bottoms if last_reader[value] == node.name and value not in kept
            }),
            loss_weights=weights[node.name],
        )
        for key, node in chosen
    )  # fmt: skip
    own = tuple((step, step.layer) for step in steps)
    found = tuple((name, slots[value]) for name, value in outputs.items())
    return Schedule(steps, own, make_inference(plan, steps, len(slots), found), len(slots), found)


def _weights(layer: Layer, graph: Graph) -> tuple[tuple[int, float], ...]:
    """Return the tops that are losses with their weights; with force_backward Caffe starts from those of weight 0 too."""
    stated = enumerate(layer.loss_weights())
    if layer.is_loss and graph.text.force_backward:
        return tuple(stated) or ((0, 0.0),)
    return tuple((top, weight) for top, weight in stated if weight)


def _own_layer(modules: nn.Module, key: str, node: Node) -> Layer | None:
    layer = modules._modules.get(key)
    return layer if isinstance(layer, Layer) and layer.node is node else None


def _only_forward(layer: Layer) -> bool:
    return bool(layer.node.bottoms) and not (layer.is_input or layer.may_be_fed or layer.stopped_bottoms)
