"""The two values that every later stage reads: `Node`, one layer of the net, and `Graph`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..schema import caffe_pb2 as pb


@dataclass(frozen=True)
class Node:
    """One layer.

    ``bottoms`` and ``tops`` are *value* names, unique in the graph: the last layer that writes a blob
    gives it its plain Caffe name, an earlier writer (whose result an in-place layer replaces) gives
    ``blob@layer``.  ``name`` is the layer's name, made unique with ``#2`` where a net repeats one.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    phase: str
    layer: pb.LayerParameter

    @property
    def bottom_names(self) -> tuple[str, ...]:
        """The bottoms as the prototxt names them."""
        return tuple(self.layer.bottom)

    @property
    def top_names(self) -> tuple[str, ...]:
        """The tops as the prototxt names them."""
        return tuple(self.layer.top)


@dataclass(frozen=True)
class Graph:
    """A net in one phase: nodes in Caffe's order, and its outputs in the order Caffe lists them."""

    name: str
    phase: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def node(self, name: str) -> Node | None:
        """Return the node of that name, or None."""
        return next((node for node in self.nodes if node.name == name), None)

    @property
    def blob_names(self) -> dict[str, str]:
        """The blob that each value is, as the prototxt names it; any name may hold an ``@``."""
        return {
            value: blob for node in self.nodes for value, blob in zip(node.tops, node.top_names, strict=False)
        }

    @property
    def replaced(self) -> frozenset[str]:
        """The values that an in-place layer replaces."""
        return frozenset(value for value, blob in self.blob_names.items() if value != blob)

    def consumers(self, value: str) -> tuple[Node, ...]:
        """Return the nodes that read ``value``."""
        return tuple(node for node in self.nodes if value in node.bottoms)
