"""`Step`: one layer in a pass, by the numbers of the slots that hold its values."""

from __future__ import annotations

from dataclasses import dataclass

from ..caffe.graph import Node
from ..layers.support.base import Layer


@dataclass(frozen=True, slots=True)
class Step:
    """One layer in a pass, with the slots of its bottoms and tops, and of the values freed after it."""

    key: str
    node: Node
    layer: Layer | None  # the net's own; None where another module replaced it
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]
    top_names: tuple[str | None, ...]  # None where neither a layer nor the caller reads the top
    only_forward: bool  # the tops depend on nothing but the unmodified bottoms
    parameter_count: int
    freed: tuple[int, ...]
    loss_weights: tuple[tuple[int, float], ...]  # by the position of the top
