"""Nets written in Python: ``L.Convolution(n.data, kernel_size=3, num_output=8)``, then ``n.to_proto()``.

``layers`` and ``params`` make a function of any layer type and a constant of any enum of the schema, forks' included.
A layer's parameters go to its own message (that of its type's name, or the one that its class reads), and to the
layer itself where that message has no such field; those ending in ``param`` name their message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
from google.protobuf.message import Message

from ..errors import did_you_mean
from ..layers.support.registry import layer_types
from ..schema import caffe_pb2
from .failures import NoSuchField, WrongCall

_MESSAGES = {
    field.message_type.name.removesuffix("Parameter"): field.name.removesuffix("_param")
    for field in caffe_pb2.LayerParameter.DESCRIPTOR.fields
    if field.message_type is not None and field.name.endswith("_param")
}


def param_name_dict() -> dict[str, str]:
    """Return the parameter message of each type of that name, without ``_param``: ``{"InnerProduct": "inner_product"}``."""
    return dict(_MESSAGES)


@cache
def _messages_of(type_name: str) -> tuple[str, ...]:
    """The fields of LayerParameter that hold a layer type's parameters, the most specific first."""
    own = [f"{_MESSAGES[type_name]}_param"] if type_name in _MESSAGES else []
    cls = layer_types().get(type_name)
    read = (cls.message, *cls.other_messages) if cls else ()
    fields = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name
    return tuple(dict.fromkeys(name for name in (*own, *read) if name in fields))


# ------------------------------------------------------------------------------------------- values


def assign_proto(proto: Message, name: str, val: Any) -> None:
    """Assign a Python value to a field: lists to repeated fields, dicts to messages, other values as they are.

    A single value for a repeated field is taken as a list of one.  Raises NoSuchField (an AttributeError) for a name
    that the message does not have and WrongCall (a TypeError) for a value that the field cannot hold.
    """
    _assign(proto, name, val, proto.DESCRIPTOR.name)


def _assign(proto: Message, name: str, val: Any, where: str) -> None:
    field = proto.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        known = [other for other in proto.DESCRIPTOR.fields_by_name if other != "fork_field"]
        raise NoSuchField(
            f"{where}: {proto.DESCRIPTOR.name} has no field {name!r}{did_you_mean(name, known)}"
        )
    where = f"{where}.{name}"
    held = getattr(proto, name)
    if isinstance(val, np.ndarray):
        val = val.tolist()
    if field.is_repeated:
        values = list(val) if isinstance(val, list | tuple | range) else [val]
        for value in values:
            if field.message_type is not None:
                _assign_fields(held.add(), value, where)
            else:
                _guarded(held.append, value, where)
    elif isinstance(val, list | tuple):
        raise WrongCall(f"{where}: holds one value, not {len(val)}; give one")
    elif field.message_type is not None:
        _assign_fields(held, val, where)
    else:
        _guarded(lambda value: setattr(proto, name, value), val, where)


def _assign_fields(message: Message, val: Any, where: str) -> None:
    if isinstance(val, Message):
        if val.DESCRIPTOR is not message.DESCRIPTOR:
            raise WrongCall(f"{where}: is a {message.DESCRIPTOR.name}, not a {val.DESCRIPTOR.name}")
        message.MergeFrom(val)
        return
    if not isinstance(val, Mapping):
        raise WrongCall(f"{where}: is a {message.DESCRIPTOR.name}; give a dict of its fields, not {val!r}")
    for name, value in val.items():
        _assign(message, name, value, where)


def _guarded(assign: Any, value: Any, where: str) -> None:
    try:
        assign(value.item() if isinstance(value, np.generic) else value)
    except (TypeError, ValueError) as error:
        raise WrongCall(f"{where}: cannot be {value!r} ({error})") from error


# ------------------------------------------------------------------------------------------- layers and tops


class Top:
    """One output blob of a layer."""

    def __init__(self, fn: Function, n: int) -> None:
        """Refer to output ``n`` of the layer ``fn``."""
        self.fn, self.n = fn, n

    def to_proto(self) -> caffe_pb2.NetParameter:
        """Return a net of all layers that compute this top, with names made from their types."""
        return to_proto(self)


class Function:
    """A layer: its type, the tops that it reads, and its parameters."""

    def __init__(self, type_name: str, inputs: Iterable[Top], params: Mapping[str, Any]) -> None:
        """Take the layer's bottoms and its parameters; ``ntop`` and ``in_place`` are not parameters of the layer."""
        self.type_name = type_name
        self.inputs = tuple(inputs)
        for index, one in enumerate(self.inputs):
            if not isinstance(one, Top):
                raise WrongCall(f"{type_name} input {index} is not a Top (type is {type(one)})")
        self.params = dict(params)
        self.ntop = self.params.pop("ntop", 1)
        self.in_place = self.params.pop("in_place", False)
        if not isinstance(self.ntop, int) or self.ntop < 0:
            raise WrongCall(f"{type_name}: ntop {self.ntop!r} is not a number of tops")
        self.tops = tuple(Top(self, number) for number in range(self.ntop))

    def to_proto(self) -> caffe_pb2.NetParameter:
        """Return a net of this layer and all that it reads, as a layer without tops is used."""
        return to_proto(self)


class _Writer:
    """Writes layers after those that they read, each once, with the names given or made from the types."""

    def __init__(self, names: Mapping[Any, str]) -> None:
        self.names: dict[Any, str] = dict(names)
        self.counts: Counter[str] = Counter()
        self.layers: dict[Function, caffe_pb2.LayerParameter] = {}

    def add(self, named: Top | Function) -> None:
        """Add the layer and those that it reads; a stack of its own, since nets are deeper than Python's."""
        left = [named.fn if isinstance(named, Top) else named]
        while left:
            fn = left[-1]
            missing = [one.fn for one in fn.inputs if one.fn not in self.layers]
            if fn in self.layers:
                left.pop()
            elif missing:
                left.append(missing[0])
            else:
                self.layers[left.pop()] = self._layer(fn)

    def net(self) -> caffe_pb2.NetParameter:
        """Return the layers so far as a net."""
        net = caffe_pb2.NetParameter()
        net.layer.extend(self.layers.values())
        return net

    def _layer(self, fn: Function) -> caffe_pb2.LayerParameter:
        layer = caffe_pb2.LayerParameter(type=fn.type_name)
        layer.bottom.extend(self.layers[one.fn].top[one.n] for one in fn.inputs)
        layer.top.extend(layer.bottom if fn.in_place else map(self._name, fn.tops))
        layer.name = self._name(fn.tops[0] if fn.tops else fn)
        for name, value in fn.params.items():
            _assign(_owner(layer, name), name, value, f"{layer.name} ({fn.type_name})")
        return layer

    def _name(self, named: Top | Function) -> str:
        if named not in self.names:
            type_ = (named.fn if isinstance(named, Top) else named).type_name
            self.counts[type_] += 1
            self.names[named] = f"{type_}{self.counts[type_]}"
        return self.names[named]


def _owner(layer: caffe_pb2.LayerParameter, name: str) -> Message:
    """The message that a parameter goes to: one of its type's that has such a field, otherwise the layer itself."""
    for held in _messages_of(layer.type):
        message: Message = getattr(layer, held)
        if name in message.DESCRIPTOR.fields_by_name:
            return message
    return layer


def to_proto(*tops: Top | Function) -> caffe_pb2.NetParameter:
    """Return a net of all layers that compute ``tops``, with names made from their types: ``Convolution1``."""
    writer = _Writer({})
    for top in tops:
        writer.add(_checked(top, "to_proto"))
    return writer.net()


def _checked(named: Any, where: str) -> Top | Function:
    if not isinstance(named, Top | Function):
        raise WrongCall(f"{where}: is not a Top (type is {type(named)})")
    return named


class NetSpec:
    """A net whose tops are named by assigning them: ``n.conv1 = L.Convolution(n.data, ...)``."""

    tops: dict[str, Top | Function]

    def __init__(self) -> None:
        """Start without layers."""
        super().__setattr__("tops", {})

    def __setattr__(self, name: str, value: Any) -> None:
        """Name a top, or a layer without tops."""
        self.tops[name] = value

    def __getattr__(self, name: str) -> Any:
        """Return the top of that name."""
        if name not in self.tops:
            raise NoSuchField(f"NetSpec: has no top {name!r}{did_you_mean(name, self.tops)}")
        return self.tops[name]

    def __delattr__(self, name: str) -> None:
        """Forget the name."""
        self.__getattr__(name)
        del self.tops[name]

    __setitem__ = __setattr__
    __getitem__ = __getattr__
    __delitem__ = __delattr__

    def __contains__(self, name: str) -> bool:
        """Whether a top has that name."""
        return name in self.tops

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order in which they were given."""
        return iter(self.tops)

    def keys(self) -> list[str]:
        """The names, in the order in which they were given."""
        return list(self.tops)

    def vals(self) -> list[Any]:
        """The tops, in the order of their names."""
        return list(self.tops.values())

    def update(self, name: str, params: Mapping[str, Any]) -> None:
        """Add parameters to the layer of a top, or replace them."""
        named = self.__getattr__(name)
        (named.fn if isinstance(named, Top) else named).params.update(params)

    def to_proto(self) -> caffe_pb2.NetParameter:
        """Return the net: each named top's layer, after all that it reads."""
        writer = _Writer({_checked(top, name): name for name, top in self.tops.items()})
        for top in self.tops.values():
            writer.add(top)
        return writer.net()


# ------------------------------------------------------------------------------------------- pseudo-modules


class Layers:
    """``layers.TYPE(*bottoms, **params)`` returns a layer's top; its tops where ``ntop`` is not 1, itself where it is 0."""

    def __getattr__(self, name: str) -> Any:
        """Return the function that makes layers of that type."""
        if name.startswith("__"):  # asked for by copy, inspect and the like
            raise AttributeError(name)

        def layer_fn(*args: Top, **kwargs: Any) -> Top | Function | tuple[Top, ...]:
            fn = Function(name, args, kwargs)
            if fn.ntop == 0:
                return fn
            return fn.tops[0] if fn.ntop == 1 else fn.tops

        layer_fn.__name__ = layer_fn.__qualname__ = name
        return layer_fn


class Parameters:
    """``params.Pooling.MAX`` is the value of that name in an enum of ``PoolingParameter``."""

    def __getattr__(self, name: str) -> Any:
        """Return the constants of ``NAMEParameter``."""
        if name.startswith("__"):
            raise AttributeError(name)
        return _Constants(name)


class _Constants:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        message = getattr(caffe_pb2, f"{self._name}Parameter", None)
        if message is None:
            known = [one.removesuffix("Parameter") for one in dir(caffe_pb2) if one.endswith("Parameter")]
            raise NoSuchField(
                f"params.{self._name}: there is no {self._name}Parameter{did_you_mean(self._name, known)}"
            )
        values = [value for enum in message.DESCRIPTOR.enum_types for value in enum.values_by_name]
        if name not in values:
            raise NoSuchField(f"params.{self._name}: has no constant {name!r}{did_you_mean(name, values)}")
        return getattr(message, name)


layers = Layers()
params = Parameters()
