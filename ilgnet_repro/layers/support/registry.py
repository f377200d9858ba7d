"""Layer types by name: `@register_layer("Convolution")` on a class is all that a new type needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TypeVar

from ...caffe.fork_layers import known_fork_layer
from ...caffe.graph import Node
from ...caffe.layer_types import FORK_V1_TYPES, V1_TYPES
from ...errors import IlgnetError, LayerError, did_you_mean
from ...schema import caffe_pb2 as pb
from .base import Layer
from .fed import UnknownData
from .shared import SharedView

LayerClass = TypeVar("LayerClass", bound=type[Layer])

_NEAR = (
    0.85  # how alike an unknown type and the one that may be meant are; forks' types are named after Caffe's
)
_BUILT_IN = __package__.rpartition(".")[0]  # the package whose modules are the built-in types
_classes: dict[str, type[Layer]] = {}


def register_layer(*types: str) -> Callable[[LayerClass], LayerClass]:
    """Register a subclass of `Layer` for one or more layer types; returns the class unchanged.

    Raises IlgnetError for a type that another class is registered for, built-in or not, and for anything that is no
    subclass of `Layer`.
    """

    def add(cls: LayerClass) -> LayerClass:
        if not (isinstance(cls, type) and issubclass(cls, Layer)):
            raise IlgnetError(f"{cls!r} cannot be registered as a layer type; derive it from Layer")
        if cls.__module__.rpartition(".")[0] != _BUILT_IN:
            _load_built_in()  # so that the name of a built-in type is refused here, not when a net is loaded
        for type_ in types:
            if type_ in _classes and _classes[type_] is not cls:
                raise IlgnetError(
                    f"layer type {type_!r} is registered twice: by {_classes[type_].__qualname__} "
                    f"and by {cls.__qualname__}; give one of them another name"
                )
        _classes.update(dict.fromkeys(types, cls))
        return cls

    return add


@cache
def _load_built_in() -> None:
    """Import every module of layers/: a new file of layers is listed nowhere."""
    for module in iter_modules([str(Path(__file__).parent.parent)]):
        import_module(f"{_BUILT_IN}.{module.name}")


def layer_types() -> dict[str, type[Layer]]:
    """Return every registered type and its class, in alphabetical order."""
    _load_built_in()
    return dict(sorted(_classes.items()))


def make_layer(node: Node, ranks: Sequence[int] | None = ()) -> Layer:
    """Return a new layer for a node whose bottoms have ``ranks`` axes (None: unknown, see `Layer`).

    Raises LayerError for an unknown type, which names the type that may be meant.
    """
    _load_built_in()
    if node.is_inserted:
        return SharedView(node, ranks)
    if class_of(node) is UnknownData:
        return UnknownData(node, ranks)
    cls = _classes.get(node.type)
    if cls is None:
        if known := known_fork_layer(node.type):
            raise LayerError(
                node.name,
                node.type,
                f"layer type is not implemented: {known}; register a class for it (docs/layers.md)",
            )
        meant = _meant(node)
        hint = f"did you mean {meant}?" if meant else "register a class for it (docs/layers.md)"
        # Types of V1 layers are spelled like this; one that no Caffe has arrives here as it is written.
        if meant:
            close = ""
        elif node.type.isupper():
            close = did_you_mean(node.type, (*V1_TYPES, *FORK_V1_TYPES))
        else:
            close = did_you_mean(node.type, _readers(node), _NEAR)
        raise LayerError(node.name, node.type, f"layer type is unknown{close}; {hint}")
    return cls(node, ranks)


def class_of(node: Node) -> type[Layer] | None:
    """Return a node's class, None for an unknown type; one that reads no blob and has no weights can only feed the net."""
    _load_built_in()
    type_ = _classes.get(node.type)
    cls = type_.class_for(node) if type_ else None
    if (
        cls is None
        and node.tops
        and not (node.bottoms or node.layer.param or (type_ is None and _meant(node)))
    ):
        return UnknownData
    return cls


def _meant(node: Node) -> str:
    """Return the type that differs from the node's in case only, if it reads every message of the node.

    Otherwise it is another layer: CTPN's `Lstm`, with its `lstm_param`, is not Caffe's `LSTM`.
    """
    return next((type_ for type_ in _readers(node) if type_.lower() == node.type.lower()), "")


def _readers(node: Node) -> list[str]:
    """Return the types that read every message of the node."""
    stated = {field.name for field, _ in node.layer.ListFields() if field.name.endswith("_param")}
    stated |= {field.path.split(".")[0] for field in node.layer.fork_field}
    return [type_ for type_, cls in _classes.items() if stated <= {cls.message, *cls.other_messages}]


def resolve_kinds(net: pb.NetParameter, blobs: Mapping[str, int]) -> pb.NetParameter:
    """Return a copy of ``net`` (modern form) that states the kind of layers whose text leaves it open.

    Forks gave one name to different layers (BN, Normalize); ``blobs``, the number of blobs in the weights file by
    layer name, distinguishes them.  It also states which layers replace the data layers that they read.
    """
    _load_built_in()
    result = pb.NetParameter()
    result.CopyFrom(net)
    for layer in result.layer:
        if cls := _classes.get(layer.type):
            cls.resolve_kind(layer, blobs.get(layer.name, 0))
            cls.resolve_by_net(layer, net)
            if cls.replaces_feeders:
                layer.replaces_feeders = True
    return result
