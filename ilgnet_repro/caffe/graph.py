"""What every later stage reads: `Value`, `Node`, one layer of the net, and `Graph`."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..schema import caffe_pb2 as pb


def unused_name(name: str, taken: Container[str]) -> str:
    """Return a name for something that is made, with primes where a net has that name itself."""
    while name in taken:
        name += "'"
    return name


class Value(NamedTuple):
    """What one layer writes into a blob: a blob that layers in place write again has several values."""

    blob: str
    writer: str  # the node's name


@dataclass(frozen=True)
class Node:
    """One layer.

    ``name`` is the layer's name, made unique with ``#2`` where a net repeats one.

    A ``made`` node is no layer of the net: it gives its second bottom, a blob that shares memory with the
    first, the values that a layer in place has written there (graph/memory.py).
    """

    name: str
    type: str
    bottoms: tuple[Value, ...]
    tops: tuple[Value, ...]
    phase: str
    layer: pb.LayerParameter
    made: bool = False
    # Caffe's gradient stops here: a Flatten behind it took the memory that its bottom's would have come in.
    loses_gradient: bool = False

    @property
    def is_in_place(self) -> bool:
        """Whether a top is written over the bottom of its position."""
        pairs = zip(self.bottoms, self.tops, strict=False)
        return not self.made and any(bottom.blob == top.blob for bottom, top in pairs)

    @property
    def top_names(self) -> tuple[str, ...]:
        """The blobs that the tops are, as the prototxt names them."""
        return tuple(top.blob for top in self.tops)


@dataclass(frozen=True)
class Graph:
    """A net in one phase: nodes in Caffe's order, and its outputs, blobs in the order Caffe lists them."""

    name: str
    phase: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    # What each value, in the order they are written, is called where a user or a file names it.  What the caller feeds
    # and a blob's last value go by the blob's own name; a value that an in-place layer replaces by ``blob@layer``, with
    # primes where the net has such a blob.  These names are for showing and finding, and are never taken apart.
    names: Mapping[Value, str]
    # The text that the graph was built from, in all its phases.
    text: pb.NetParameter = field(default_factory=pb.NetParameter, repr=False, compare=False)
    _values: Mapping[str, Value] = field(init=False, repr=False, compare=False)
    _first_values: Mapping[str, Value] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Not on first use: torch.compile traces no lock, and `cached_property` takes one.
        last = {value.blob: value for value in self.names}
        object.__setattr__(self, "_values", {name: value for value, name in self.names.items()} | last)
        first = {value.blob: value for value in reversed(tuple(self.names))}
        object.__setattr__(self, "_first_values", first)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def layers(self) -> tuple[Node, ...]:
        """The nodes that are layers of the net's own text."""
        return tuple(node for node in self.nodes if not node.made)

    def value(self, name: str) -> Value:
        """Return the value that a blob holds after a pass, or the replaced one of that name."""
        return self._values[name]

    def fed_value(self, blob: str) -> Value:
        """Return the first value of a blob: of an input, what the caller feeds."""
        return self._first_values[blob]

    def node(self, name: str) -> Node | None:
        """Return the node of that name, or None."""
        return next((node for node in self.nodes if node.name == name), None)

    @property
    def replaced(self) -> frozenset[str]:
        """The names of the values that an in-place layer replaces, what the caller feeds aside."""
        return frozenset(
            name
            for value, name in self.names.items()
            if value != self.value(value.blob) and name != value.blob
        )

    def consumers(self, value: Value) -> tuple[Node, ...]:
        """Return the nodes that read ``value``."""
        return tuple(node for node in self.nodes if value in node.bottoms)
