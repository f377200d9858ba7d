"""The two values that every later stage reads: `Node`, one layer of the net, and `Graph`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..schema import caffe_pb2 as pb
from .memory import in_place_tops


@dataclass(frozen=True)
class Node:
    """One layer.

    ``bottoms`` and ``tops`` are *value* names, unique in the graph: the last layer that writes a blob
    gives it its plain Caffe name, an earlier writer (whose result an in-place layer replaces) gives
    ``blob@layer``, or that with primes where the net has such a blob; what the caller feeds always has its
    plain name.  ``name`` is the layer's name, made unique with ``#2`` where a net repeats one.

    A ``made`` node is no layer of the net: it gives its second bottom, a blob that shares memory with the
    first, the values that a layer in place has written there (graph/memory.py).
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    phase: str
    layer: pb.LayerParameter
    made: bool = False
    # Caffe's gradient stops here: a Flatten behind it took the memory that its bottom's would have come in.
    loses_gradient: bool = False

    @property
    def bottom_names(self) -> tuple[str, ...]:
        """The bottoms as the prototxt names them."""
        return tuple(self.layer.bottom)

    @property
    def is_in_place(self) -> bool:
        """Whether a top is written over the bottom of its position."""
        return not self.made and bool(in_place_tops(self.layer))

    @property
    def top_names(self) -> tuple[str, ...]:
        """The tops as the prototxt names them."""
        return tuple(self.layer.top)


@dataclass(frozen=True)
class Graph:
    """A net in one phase: nodes in Caffe's order, and its outputs, blobs in the order Caffe lists them."""

    name: str
    phase: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    # Blobs whose last value does not have their plain name: what the caller feeds and a layer in place writes.
    renamed: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def layers(self) -> tuple[Node, ...]:
        """The nodes that are layers of the net's own text."""
        return tuple(node for node in self.nodes if not node.made)

    def value(self, blob: str) -> str:
        """Return the value that a blob holds after a pass."""
        return self.renamed.get(blob, blob)

    def node(self, name: str) -> Node | None:
        """Return the node of that name, or None."""
        return next((node for node in self.nodes if node.name == name), None)

    @cached_property
    def blob_names(self) -> dict[str, str]:
        """The blob that each value is, as the prototxt names it; any name may hold an ``@``."""
        return {
            value: blob for node in self.nodes for value, blob in zip(node.tops, node.top_names, strict=False)
        }

    @property
    def replaced(self) -> frozenset[str]:
        """The values that an in-place layer replaces, what the caller feeds aside."""
        return frozenset(
            value for value, blob in self.blob_names.items() if value not in (blob, self.value(blob))
        )

    def consumers(self, value: str) -> tuple[Node, ...]:
        """Return the nodes that read ``value``."""
        return tuple(node for node in self.nodes if value in node.bottoms)
