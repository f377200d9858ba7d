"""Layer types by name: `@register("Convolution")` on a class is all that a new type needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from ...caffe.graph import Node
from ...errors import IlgnetError, LayerError
from ...schema import caffe_pb2 as pb
from .base import Layer
from .shared import SharedView

_classes: dict[str, type[Layer]] = {}


def register(*types: str) -> Callable[[type[Layer]], type[Layer]]:
    """Register a class for one or more layer types; a type registered twice is an error."""

    def add(cls: type[Layer]) -> type[Layer]:
        for type_ in types:
            if type_ in _classes and _classes[type_] is not cls:
                raise IlgnetError(
                    f"layer type {type_!r} is registered twice: by {_classes[type_].__qualname__} "
                    f"and by {cls.__qualname__}"
                )
            _classes[type_] = cls
        return cls

    return add


@cache
def _load_families() -> None:
    # Every module of layers/: a new file of layers needs no entry anywhere.
    layers = __package__.rpartition(".")[0]
    for module in iter_modules([str(Path(__file__).parent.parent)]):
        import_module(f"{layers}.{module.name}")


def layer_types() -> dict[str, type[Layer]]:
    """Return every registered type and its class, in alphabetical order."""
    _load_families()
    return dict(sorted(_classes.items()))


def make_layer(node: Node, ranks: Sequence[int] | None = ()) -> Layer:
    """Make the layer of a node whose bottoms have ``ranks`` axes (None: unknown, see `Layer`).

    An unknown type is a LayerError that names the nearest known one.
    """
    _load_families()
    if node.made:
        return SharedView(node, ranks)
    cls = _classes.get(node.type)
    if cls is None:
        alike = [type_ for type_ in _classes if type_.lower() == node.type.lower()]
        hint = f"did you mean {alike[0]}?" if alike else "register a class for it (docs/layers.md)"
        raise LayerError(node.name, node.type, f"layer type is unknown; {hint}")
    return cls(node, ranks)


def tell_kinds(net: pb.NetParameter, blobs: Mapping[str, int]) -> pb.NetParameter:
    """Return ``net`` (modern form) with what a weights file tells of layers whose text leaves their kind open.

    Forks gave one name to layers that are not the same (BN, Normalize); the number of blobs that the file holds,
    by layer name, tells them apart.
    """
    _load_families()
    result = pb.NetParameter()
    result.CopyFrom(net)
    for layer in result.layer:
        if layer.type in _classes:
            _classes[layer.type].tell_kind(layer, blobs.get(layer.name, 0))
    return result
