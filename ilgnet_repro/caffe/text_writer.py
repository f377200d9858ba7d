"""Writes messages as prototxt, as Caffe users do: two spaces per level, fields in the order of the schema."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from google.protobuf.message import Message

from ..schema.caffe_pb2 import ForkField
from .text_values import format_value

# An unknown field: the rest of its path, and its text.
_Leaf = tuple[tuple[str, ...], str]


def format_message(message: Message) -> str:
    """Return a message as prototxt, with unknown fields (of forks) under their own names.

    Parsing the text returns an equal message, except for the positions and order of unknown fields.
    """
    return "".join(f"{line}\n" for line in _lines(message, "", []))


def format_fork_fields(fields: Iterable[ForkField]) -> str:
    """Return unknown fields as the text they were parsed from."""
    leaves = [(tuple(field.path.split(".")), field.text) for field in fields]
    return "".join(f"{line}\n" for line in _leaf_lines(leaves, ""))


def _lines(message: Message, indent: str, leaves: list[_Leaf]) -> Iterator[str]:
    kept = getattr(message, "fork_field", None)
    if kept is not None:
        leaves = [(tuple(field.path.split(".")), field.text) for field in kept]
    below: dict[str, list[_Leaf]] = {}
    for path, text in leaves:
        if path[1:]:
            below.setdefault(path[0], []).append((path[1:], text))
    printed = set()
    for descriptor, value in sorted(message.ListFields(), key=lambda entry: entry[0].index):
        name = descriptor.name
        if name == "fork_field":
            continue
        single = isinstance(value, (Message, str, bytes, bool, int, float))
        for index, item in enumerate((value,) if single else value):
            if descriptor.message_type is None:
                yield f"{indent}{name}: {format_value(descriptor, item)}"
                continue
            key = name if single else f"{name}[{index}]"
            printed.add(key)
            yield f"{indent}{name} {{"
            yield from _lines(item, indent + "  ", below.get(key, []))
            yield f"{indent}}}"
    yield from _leaf_lines([leaf for leaf in leaves if leaf[0][0] not in printed or not leaf[0][1:]], indent)


def _leaf_lines(leaves: list[_Leaf], indent: str) -> Iterator[str]:
    for (name, nested), group in groupby(leaves, key=lambda leaf: (leaf[0][0], len(leaf[0]) > 1)):
        if nested:
            yield f"{indent}{name} {{"
            yield from _leaf_lines([(path[1:], text) for path, text in group], indent + "  ")
            yield f"{indent}}}"
        else:
            for _, text in group:
                yield f"{indent}{name} {{\n{indent}}}" if text == "{}" else f"{indent}{name}: {text}"
