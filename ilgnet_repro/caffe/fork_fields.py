"""Fields that no schema lists, kept by the text parser: here dropped, or refused with a remedy."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message

from ..errors import GraphError, did_you_mean, excerpt, one_of
from ..schema import caffe_pb2 as pb

M = TypeVar("M", bound=Message)

_INDEX = re.compile(r"\[\d+\]")
_NEAR_VALUE = 0.6  # AVG and AVE; the names of an enum are few
# Fields of a net: one of them in a solver means that the wrong file was given.
_NET_BLOCKS = ("name", "layer", "layers", "input", "input_dim", "input_shape")


def without_indices(path: str) -> str:
    """Return a path without its indices: ``include.fog`` for ``include[1].fog``."""
    return _INDEX.sub("", path)


def drop_fields(message: M, paths: Iterable[str], notes: list[str] | None = None) -> M:
    """Return a net or solver without the unknown fields of the given dotted paths.

    A path starts at the enclosing layer, net or solver; the path of an unknown message includes every field
    in it.  ``notes`` lists known fields whose unknown value is ignored, and what their value is instead.
    """
    dropped = set(paths)
    if not dropped:
        return message
    result = type(message)()
    result.CopyFrom(message)
    for keeper in _keepers(result):
        kept = [field for field in keeper.fork_field if dropped.isdisjoint(_names_of(field.path))]
        if notes is not None:
            notes += _left_at_default(keeper, kept)
        del keeper.fork_field[:]
        keeper.fork_field.extend(kept)
    return result


def without_marks(net: pb.NetParameter) -> pb.NetParameter:
    """Return a copy of a net without the fields that only this package's reader states, and no Caffe knows."""
    result = pb.NetParameter()
    result.CopyFrom(net)
    for layer in result.layer:
        layer.ClearField("replaces_feeders")
        if layer.HasField("python_param"):
            for name in ("of_rfcn", "mines"):
                layer.python_param.ClearField(name)
    return result


def describe_field(field: pb.ForkField) -> str:
    """Return the path of an unknown field with its line and column."""
    place = f" (line {field.line}, column {field.column})" if field.line else ""
    return f"field {field.path}{place}"


def refusal(field: pb.ForkField, descriptor: Any, messages: Collection[str] | None = None) -> str:
    """Return the message for an unknown field: its position, the likely intended name, and the remedy.

    ``messages`` are those of the layer's type: a message of another type is never what was intended.
    """
    known = _enum_field(field.path, descriptor)
    if known is not None:  # ignoring it would leave the default, another value
        names = list(known.enum_type.values_by_name)
        return (
            f"{describe_field(field)} is {excerpt(field.text)}, which is unknown to Caffe and to this package"
            f"{did_you_mean(field.text, names, _NEAR_VALUE)}; use {one_of(names)}"
        )
    return (
        f"{describe_field(field)} is unknown to Caffe and to this package"
        f"{_meant(field.path, descriptor, messages)}; remove it, or ignore it with "
        f"ignore_fields=['{_unknown_part(field.path, descriptor)}'] if it does not affect the result"
    )


def is_misspelt(field: pb.ForkField, descriptor: Any) -> bool:
    """Return whether an unknown field is spelled much like a known one."""
    return bool(_meant(field.path, descriptor, None))


def filler_of(field: pb.ForkField) -> str:
    """Return the path of the filler that an unknown field belongs to; "" for any other, and for a misspelt one.

    A filler matters only where initial values are drawn.
    """
    message, _, rest = without_indices(field.path).partition(".")
    name = rest.rpartition(".")[0]
    known = pb.LayerParameter.DESCRIPTOR.fields_by_name.get(message)
    inner = known.message_type.fields_by_name.get(name) if known and known.message_type else None
    is_filler = inner is not None and inner.message_type is pb.FillerParameter.DESCRIPTOR
    return f"{message}.{name}" if is_filler and not is_misspelt(field, pb.LayerParameter.DESCRIPTOR) else ""


def net_refusals(net: pb.NetParameter) -> list[str]:
    """Return a message for each unknown field of a net outside its layers, one per top-level block."""
    first = {field.path.split(".")[0]: field for field in reversed(net.fork_field)}
    return [f"net {net.name!r}: {refusal(first[name], net.DESCRIPTOR)}" for name in reversed(first)]


def check_net_fields(net: pb.NetParameter) -> None:
    """Raise GraphError for the first unknown field of a net outside its layers."""
    for line in net_refusals(net):
        raise GraphError(line, option="ignore_fields")


def check_rule_fields(layer: pb.LayerParameter) -> None:
    """Raise GraphError for an unknown field in a layer's rules, which may decide whether the layer is included."""
    for field in layer.fork_field:
        if without_indices(field.path).split(".")[0] in ("include", "exclude"):
            raise GraphError(
                f"{layer.name} ({layer.type}): {refusal(field, layer.DESCRIPTOR)}", option="ignore_fields"
            )


def is_of_a_net(field: pb.ForkField) -> bool:
    """Return whether an unknown field of a solver is a field of nets."""
    return field.path.split(".")[0] in _NET_BLOCKS


def _keepers(message: Any) -> Iterator[Any]:
    """Yield the message and all messages in it that keep unknown fields."""
    yield message
    for descriptor, value in message.ListFields():
        inner = descriptor.message_type
        if inner is not None and descriptor.name != "fork_field" and "fork_field" in inner.fields_by_name:
            for one in (value,) if isinstance(value, Message) else value:
                yield from _keepers(one)


def _names_of(path: str) -> Collection[str]:
    """Return every path that matches a field: its own and those of its enclosing messages, with and without indices."""
    names: set[str] = set()
    for written in {path, without_indices(path)}:
        parts = written.split(".")
        names.update(".".join(parts[: end + 1]) for end in range(len(parts)))
    return names


def _left_at_default(keeper: Any, kept: Collection[pb.ForkField]) -> Iterator[str]:
    """Yield a note for each unknown value of a known enum that is not among the kept fields."""
    for field in keeper.fork_field:
        known = None if field in kept else _enum_field(field.path, keeper.DESCRIPTOR)
        if known is not None:
            where = getattr(keeper, "name", "") or keeper.DESCRIPTOR.name
            value = known.default_value
            instead = (
                "has no value"
                if known.is_repeated
                else f"has its default {known.enum_type.values_by_number[value].name}"
            )
            yield f"{excerpt(where)}: {field.path} {instead}: {excerpt(field.text)} is ignored"


def _enum_field(path: str, descriptor: Any) -> Any:
    """Return the descriptor of a known enum; None for a field that is unknown itself."""
    *messages, name = without_indices(path).split(".")
    for message in messages:
        known = descriptor.fields_by_name.get(message)
        if known is None or known.message_type is None:
            return None
        descriptor = known.message_type
    found = descriptor.fields_by_name.get(name)
    return found if found is not None and found.enum_type else None


def _unknown_part(path: str, descriptor: Any) -> str:
    """Return a path up to its first unknown name: what can be ignored as a whole."""
    parts = without_indices(path).split(".")
    for end, part in enumerate(parts, 1):
        known = descriptor.fields_by_name.get(part)
        if known is None or known.message_type is None:
            return ".".join(parts[:end])
        descriptor = known.message_type
    return ".".join(parts)


def _meant(path: str, descriptor: Any, messages: Collection[str] | None) -> str:
    for part in without_indices(path).split("."):
        known = descriptor.fields_by_name.get(part)
        if known is None or known.message_type is None:
            names = [name for name in descriptor.fields_by_name if name != "fork_field"]
            if messages is not None:
                names = [name for name in names if name in messages or not name.endswith("_param")]
            return did_you_mean(part, names)
        descriptor, messages = known.message_type, None
    return ""
