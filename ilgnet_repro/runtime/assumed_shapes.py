"""`errors_of_any_shape`: what is wrong with a net whose inputs have no shapes, whatever these are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from ..caffe.graph import Graph, Value
from ..errors import LayerError
from ..layers.support.base import Shape
from ..layers.support.registry import class_of
from .plan import NetPlan, plan_net

# Lengths of the axes in order, of inputs with one to five: three quite different ones, the last with many divisors.
_LENGTHS = ((2, 3, 224, 224, 16), (3, 4, 227, 321, 19), (12, 5040, 64, 48, 4))
# Numbers of axes of the first input whose number the text does not show, and of the others (labels, boxes, indicators).
_AXES = ((4, 1), (4, 4), (4, 2), (2, 1), (2, 2), (3, 2), (3, 3), (5, 1), (1, 1), (1, 4))


def errors_of_any_shape(
    graph: Graph, given: Mapping[str, Shape], without_shape: Collection[str]
) -> dict[str, str]:
    """Return the message for each layer with an error that does not depend on the shapes of some inputs.

    ``without_shape`` are the names of the layers that feed these, ``given`` the shapes of other inputs.  The net is planned
    for several shapes; the numbers of axes are those for which most layers can be planned.  An error is returned where
    every plan has it, in the same words: messages name the lengths that they are about.
    """

    def attempts(
        lengths: Shape, choices: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], _Attempt]]:
        seen: list[dict[str, Shape]] = []
        for axes in choices:
            assumed = dict(_assumed(graph, given, without_shape, axes, lengths))
            if assumed not in seen:
                seen.append(assumed)
                yield axes, _Attempt.of(graph, {**given, **assumed}, without_shape)

    usual = [(axes, found) for axes, found in attempts(_LENGTHS[0], _AXES) if found.is_usual]
    most = max((found.planned for _, found in usual), default=0)
    best = {axes: found for axes, found in usual if found.planned == most}
    every = [*best.values(), *(found for lengths in _LENGTHS[1:] for _, found in attempts(lengths, best))]
    return dict(set.intersection(*(set(found.errors.items()) for found in every))) if every else {}


class _Attempt(NamedTuple):
    errors: dict[str, str]  # the first of each layer
    planned: int
    is_usual: bool

    @classmethod
    def of(cls, graph: Graph, shapes: Mapping[str, Shape], without_shape: Collection[str]) -> _Attempt:
        faults: list[LayerError] = []
        plan = plan_net(graph, shapes, faults=faults)
        errors = {error.layer: str(error) for error in reversed(faults)}
        return cls(errors, len(plan.layers), _is_usual(plan, without_shape))


def _assumed(
    graph: Graph,
    given: Mapping[str, Shape],
    without_shape: Collection[str],
    axes: tuple[int, int],
    lengths: Shape,
) -> Iterator[tuple[str, Shape]]:
    first, others = axes
    for node in graph:
        if node.name not in without_shape:
            continue
        kind = class_of(node)
        if kind is not None and kind.image_axes:
            yield node.top_names[0], lengths[: kind.image_axes]
            continue
        for top in node.top_names:
            if top not in given:
                yield top, lengths[:first]
                first = others


def _is_usual(plan: NetPlan, without_shape: Collection[str]) -> bool:
    """Whether no layer reads one of these inputs, as it is or computed value by value, with fewer axes than usual."""
    inputs: set[Value] = set()
    for node in plan.graph:
        if node.name in without_shape:
            inputs.update(node.tops)
        if not node.bottoms or node.bottoms[0] not in inputs & plan.value_shapes.keys():
            continue
        shape, kind = plan.value_shapes[node.bottoms[0]], class_of(node)
        if kind is not None and len(shape) < kind.usual_axes:
            return False
        inputs.update(top for top in node.tops if plan.value_shapes.get(top) == shape)
    return True
