"""A net before its parameters exist: every layer made, every shape known, no memory taken for weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from .errors import GraphError, did_you_mean
from .graph.node import Graph, Node
from .graph.shapes import infer_shapes
from .graph.sharing import Owner, find_owners
from .layers.base import BlobSpec, Layer, LayerPlan, Shape
from .layers.registry import layer_types, make_layer


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
    given = by_input(graph, input_shapes or {})

    def rule(node: Node, bottoms: list[Shape]) -> Sequence[Shape]:
        layer = layers[node.name] = make_layer(node, [len(shape) for shape in bottoms])
        made = (
            LayerPlan(layer.input_shapes(given))
            if layer.is_input or layer.may_be_fed
            else layer.plan(*bottoms)
        )
        specs[node.name] = list(made.blobs)
        layer.check_param_rows(len(made.blobs))
        if layer.shaped_by_values and counts != 1:
            axis = layer.counted_axis
            return [(*top[:axis], top[axis] * counts, *top[axis + 1 :]) for top in made.tops]
        return made.tops

    shapes = infer_shapes(graph, rule)
    return Plan(graph, layers, shapes, specs)


def by_input(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return shapes by input, one that an in-place layer follows by its value's name.

    Raises GraphError for a name that is no input of the net: none that a fed layer gives out.
    """
    types = layer_types()
    inputs: dict[str, str] = {}
    for node in graph:
        # What an unknown type without bottoms gives out may be an input.
        kind = types.get(node.type)
        if kind.may_be_fed if kind else not node.bottoms:
            inputs.update(zip(node.top_names, node.top_names, strict=True))
        elif kind and kind.is_input:
            inputs.update(zip(node.top_names, node.tops, strict=True))
    result = {}
    for name, shape in shapes.items():
        if name not in inputs and name not in inputs.values():
            listed = ", ".join(map(repr, inputs)) or "none"
            raise GraphError(
                f"{name!r} is no input of net {graph.name!r}{did_you_mean(str(name), inputs)}; it has {listed}"
            )
        result[inputs.get(name, name)] = shape
    return result
