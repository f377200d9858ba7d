"""A net before its parameters exist: every layer made, every shape known, no memory taken for weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from .graph.node import Graph, Node
from .graph.shapes import infer_shapes
from .graph.sharing import Owner, find_owners
from .layers.base import BlobSpec, Layer, LayerPlan, Shape
from .layers.registry import make_layer


@dataclass(frozen=True)
class Plan:
    """A net before its parameters exist: layers, the shape of every value, the blobs each layer needs."""

    graph: Graph
    layers: dict[str, Layer]
    shapes: dict[str, Shape]
    specs: dict[str, list[BlobSpec]]

    @cached_property
    def owners(self) -> dict[tuple[str, int], Owner]:
        """Which blobs are another layer's, shared by name.  Raises LayerError where their shapes differ."""
        return find_owners(self.graph, {name: [s.shape for s in blobs] for name, blobs in self.specs.items()})


def plan_net(graph: Graph, input_shapes: Mapping[str, Shape] | None = None, counts: int = 1) -> Plan:
    """Make every layer of ``graph`` and work out all shapes; takes no memory for weights.

    ``counts`` multiplies the lengths that depend on values, to see what they decide.
    """
    layers: dict[str, Layer] = {}
    specs: dict[str, list[BlobSpec]] = {}
    given = dict(input_shapes or {})

    def rule(node: Node, bottoms: list[Shape]) -> Sequence[Shape]:
        layer = layers[node.name] = make_layer(node, [len(shape) for shape in bottoms])
        made = (
            LayerPlan(layer.input_shapes(given))
            if layer.is_input or layer.may_be_fed
            else layer.plan(*bottoms)
        )
        specs[node.name] = list(made.blobs)
        if layer.shaped_by_values and counts != 1:
            axis = layer.counted_axis
            return [(*top[:axis], top[axis] * counts, *top[axis + 1 :]) for top in made.tops]
        return made.tops

    shapes = infer_shapes(graph, rule)
    return Plan(graph, layers, shapes, specs)
