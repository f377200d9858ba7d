"""The graph of a net in one phase: `Graph`, its `Node`s (layers) and `Value`s."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..schema import caffe_pb2 as pb


def unused_name(name: str, taken: Container[str]) -> str:
    """Return ``name``, with primes appended until it is not in ``taken``."""
    while name in taken:
        name += "'"
    return name


class Value(NamedTuple):
    """What one layer writes to a blob: a blob that in-place layers overwrite has several values."""

    blob: str
    writer: str  # the node's name


@dataclass(frozen=True)
class Node:
    """One layer.

    ``name`` is the layer's name, made unique by ``#2`` if the net repeats it.

    A node that ``is_inserted`` is not a layer of the net: its top is its second bottom, a blob that shares memory with
    the first, with the values that an in-place layer wrote there (shared_memory.py).
    """

    name: str
    type: str
    bottoms: tuple[Value, ...]
    tops: tuple[Value, ...]
    phase: str
    layer: pb.LayerParameter
    is_inserted: bool = False
    # Caffe's gradient stops here: a Flatten after it replaced the memory that this layer's bottom would get it from.
    loses_gradient: bool = False
    # A Pooling's mask (the positions of its maxima) is computed from it: where two values are nearly equal, the last bit
    # of a sum decides which position the mask names, and everything after it.
    feeds_mask: bool = False

    @property
    def is_in_place(self) -> bool:
        """Whether a top is the bottom of the same position."""
        pairs = zip(self.bottoms, self.tops, strict=False)
        return not self.is_inserted and any(bottom.blob == top.blob for bottom, top in pairs)

    @property
    def top_names(self) -> tuple[str, ...]:
        """The names of the tops in the prototxt."""
        return tuple(top.blob for top in self.tops)


@dataclass(frozen=True)
class Graph:
    """A net in one phase: nodes in Caffe's order, and the names of its outputs in Caffe's order."""

    name: str
    phase: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    # The name of each value, in the order in which they are written. An input, and the last value of a blob, have the
    # name of the blob; a value that an in-place layer replaces is ``blob@layer``, with primes if the net has a blob of
    # that name. The names are for display and lookup only, and are never parsed.
    names: Mapping[Value, str]
    # The text that the graph was built from, with all phases.
    text: pb.NetParameter = field(default_factory=pb.NetParameter, repr=False, compare=False)
    _values: Mapping[str, Value] = field(init=False, repr=False, compare=False)
    _first_values: Mapping[str, Value] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Not lazily: torch.compile cannot trace the lock of `cached_property`.
        last = {value.blob: value for value in self.names}
        object.__setattr__(self, "_values", {name: value for value, name in self.names.items()} | last)
        first = {value.blob: value for value in reversed(tuple(self.names))}
        object.__setattr__(self, "_first_values", first)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def layers(self) -> tuple[Node, ...]:
        """The nodes that are layers of the net's text."""
        return tuple(node for node in self.nodes if not node.is_inserted)

    def value(self, name: str) -> Value:
        """Return the last value of a blob, or the replaced value of that name."""
        return self._values[name]

    def input_value(self, blob: str) -> Value:
        """Return the first value of a blob; that of an input is what the caller passes."""
        return self._first_values[blob]

    def node(self, name: str) -> Node | None:
        """Return the node of that name, or None."""
        return next((node for node in self.nodes if node.name == name), None)

    @property
    def replaced(self) -> frozenset[str]:
        """The names of the values that an in-place layer replaces, except inputs."""
        return frozenset(
            name
            for value, name in self.names.items()
            if value != self.value(value.blob) and name != value.blob
        )

    def consumers(self, value: Value) -> tuple[Node, ...]:
        """Return the nodes that read ``value``."""
        return tuple(node for node in self.nodes if value in node.bottoms)
