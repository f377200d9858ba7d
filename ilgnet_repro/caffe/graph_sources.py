"""Whether two graphs compute the same: what each layer and each output reads, by the layer that made it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .graph import Graph, Value

Source = tuple[Any, Any]


def sources(
    graph: Graph, skipped: Collection[str] = (), given: Mapping[Value, Source] | None = None
) -> dict[Value, Source]:
    """Return what each value is: a layer's top, or another value in the shape of a blob that shares its memory.

    Layers in ``skipped`` pass their first bottom on.  ``given`` are the sources of some values, whatever makes them.
    """
    found: dict[Value, Source] = {}
    shaped: dict[Value, Source] = {}  # inserted tops: what gives them their shape
    for node in graph:
        for index, top in enumerate(node.tops):
            if given and top in given:
                found[top] = given[top]
            elif node.is_inserted:
                shaped[top] = shaped.get(node.bottoms[1]) or found[node.bottoms[1]]
                found[top] = (found[node.bottoms[0]], shaped[top])
            elif node.name in skipped:
                found[top] = found[node.bottoms[0]]
            else:
                found[top] = (node.name, index)
    return found


def reads_the_same(
    before: Graph,
    after: Graph,
    was: Mapping[Value, Source],
    now: Mapping[Value, Source],
    outputs: Iterable[str],
    added: Collection[str] = (),
) -> bool:
    """Return whether every output, and every layer of ``after`` except the ``added`` ones, reads the same as before."""
    if any(was[before.value(blob)] != now[after.value(blob)] for blob in outputs):
        return False
    nodes = {node.name: node for node in before}
    for node in after.layers:
        if node.name in added:
            continue
        old = nodes.get(node.name)
        if old is None or [was[value] for value in old.bottoms] != [now[value] for value in node.bottoms]:
            return False
        # In place it computes something else.
        if node.type == "Eltwise" and old.is_in_place != node.is_in_place:
            return False
    return True
