"""Parses protobuf's text format into messages by their descriptors, and keeps fields that the schema lacks.

An unknown field, or a known one with an unknown name of an enum, becomes a ForkField of the nearest enclosing message
that has such a field (a layer, the net, the solver): one per leaf, with its dotted path from there. The path of a
repeated message's element has its index: ``include[1].weather``. A message without fields is kept as ``{}``, an empty
list as ``[]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from ..errors import excerpt
from .layer_types import FORK_V1_TYPES, V1_TYPES
from .text_values import read_value
from .tokens import END, MARK, NAME, NUMBER, STRING, Tokens

M = TypeVar("M", bound=Message)

_MAX_DEPTH = 100
_MAX_MESSAGES = 250_000  # a message takes some hundred bytes of memory, however short its text
_MAX_PATH = 1_000
_MAX_FORK_FIELDS = 100_000
_CLOSING = {"{": "}", "<": ">"}
_FORK_FIELD = "fork_field"


@dataclass(frozen=True)
class _Schema:
    fields: dict[str, tuple[FieldDescriptor, bool]]  # by name: the field, whether it repeats
    required: tuple[str, ...]
    keeps_fork_fields: bool


@cache
def _schema(descriptor: Descriptor) -> _Schema:
    # is_repeated and is_required replaced label, which newer protobufs lack.
    def has(field: FieldDescriptor, label: str) -> bool:
        new = getattr(field, f"is_{label.lower()}", None)
        return bool(getattr(field, "label", None) == getattr(field, f"LABEL_{label}") if new is None else new)

    return _Schema(
        {f.name: (f, has(f, "REPEATED")) for f in descriptor.fields if f.name != _FORK_FIELD},
        tuple(f.name for f in descriptor.fields if has(f, "REQUIRED")),
        _FORK_FIELD in descriptor.fields_by_name,
    )


def parse_text(text: str, message_class: type[M], file: str) -> M:
    """Parse a text into a new message of the given class.

    Raises ParseError with file, line and column for whatever protobuf's own parser refuses in a
    known field, and for nesting, names or numbers of fields beyond those of any real net.
    """
    message = message_class()
    _Parser(text, file).body(message, "", None, ("", None), depth=0)
    return message


# The path from the enclosing message that keeps unknown fields (with a final dot), and that message.
_Keeper = tuple[str, Any]


class _Parser:
    def __init__(self, text: str, file: str) -> None:
        self.tokens = Tokens(text, file)
        self.kept = self.opened = 0

    def body(self, message: Message, closing: str, opened: int | None, keeper: _Keeper, depth: int) -> None:
        """Parse fields into ``message`` up to its closing bracket (or the end of the text)."""
        tokens = self.tokens
        schema = _schema(message.DESCRIPTOR)
        if schema.keeps_fork_fields:
            keeper = ("", message)
        seen: dict[str, int] = {}
        while not self._closed(closing, opened):
            name, offset = self._field_name()
            known = schema.fields.get(name)
            if known is None:
                self._unknown(name, offset, keeper, depth)
            else:
                field, repeated = known
                if not repeated:
                    if name in seen:
                        line, column = tokens.place(seen[name])
                        raise tokens.error(
                            f"{name} is given twice, first at line {line}, column {column}; keep one", offset
                        )
                    seen[name] = offset
                if field.message_type is not None:
                    self._messages(message, field, repeated, keeper, depth)
                else:
                    self._scalars(message, field, repeated, keeper)
            self._separator()
        for name in schema.required:
            if name not in seen:
                raise tokens.error(
                    f"{message.DESCRIPTOR.name} lacks its required field {name}; add it", opened or 0
                )

    def _closed(self, closing: str, opened: int | None) -> bool:
        tokens = self.tokens
        if tokens.kind == END:
            if opened is not None:
                raise tokens.error(f"this bracket is never closed; add {closing}", opened)
            return True
        if closing and tokens.kind == MARK and tokens.text == closing:
            tokens.advance()
            return True
        return False

    def _field_name(self) -> tuple[str, int]:
        tokens = self.tokens
        if tokens.kind != NAME:
            raise tokens.error(f"expected a field name, found {tokens.found()}; check the brackets")
        name, offset = tokens.text, tokens.offset
        tokens.advance()
        return name, offset

    def _is(self, *marks: str) -> bool:
        return self.tokens.kind == MARK and self.tokens.text in marks

    def _separator(self) -> None:
        if self._is(",", ";"):
            self.tokens.advance()

    def _colon(self, name: str) -> None:
        if not self._is(":"):
            raise self.tokens.error(
                f"expected : after {name}, found {self.tokens.found()}; write {name}: VALUE"
            )
        self.tokens.advance()

    def _open(self, name: str, depth: int) -> tuple[str, int]:
        tokens = self.tokens
        if not self._is("{", "<"):
            raise tokens.error(f"expected {{ after {name}, found {tokens.found()}; {name} contains fields")
        if depth >= _MAX_DEPTH:
            raise tokens.error(f"nested deeper than {_MAX_DEPTH} brackets; is this a prototxt?")
        self.opened += 1
        if self.opened > _MAX_MESSAGES:
            raise tokens.error(f"over {_MAX_MESSAGES:,} brackets; is this a prototxt?")
        closing, opened = _CLOSING[tokens.text], tokens.offset
        tokens.advance()
        return closing, opened

    def _list(self, element: Callable[[], None]) -> bool:
        """Call ``element`` for each element of ``[a, b]``; return whether there was one."""
        self.tokens.advance()
        if self._is("]"):
            self.tokens.advance()
            return False
        while True:
            element()
            if self._is(","):
                self.tokens.advance()
            elif self._is("]"):
                self.tokens.advance()
                return True
            else:
                raise self.tokens.error(
                    f"expected , or ] in a list, found {self.tokens.found()}; close the list"
                )

    def _messages(
        self, message: Message, field: FieldDescriptor, repeated: bool, keeper: _Keeper, depth: int
    ) -> None:
        if self._is(":"):
            self.tokens.advance()

        def element() -> None:
            inner = getattr(message, field.name)
            path = field.name
            if repeated:
                path += f"[{len(inner)}]"
                inner = inner.add()
            else:
                inner.SetInParent()
            closing, opened = self._open(field.name, depth)
            self.body(inner, closing, opened, (f"{keeper[0]}{path}.", keeper[1]), depth + 1)

        if repeated and self._is("["):
            self._list(element)
        else:
            element()

    def _scalars(self, message: Message, field: FieldDescriptor, repeated: bool, keeper: _Keeper) -> None:
        self._colon(field.name)

        def element() -> None:
            kind, text, offset = self._scalar(field.name)
            try:
                value = read_value(field, kind, text)
            except ValueError as error:
                if field.enum_type is not None and kind == NAME and keeper[1] is not None:  # a fork's
                    self._keep(keeper, field.name, text, offset)
                    return
                remedy = _type_remedy(field, kind, text) or str(error)
                raise self.tokens.error(f"{field.name}: {remedy}", offset) from None
            if repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)

        if repeated and self._is("["):
            self._list(element)
        else:
            element()

    def _scalar(self, name: str) -> tuple[str, str, int]:
        """Return kind, text and offset of a value; the text includes its sign, or all pieces of a string."""
        tokens = self.tokens
        offset, sign = tokens.offset, ""
        if self._is("-"):
            sign = "-"
            tokens.advance()
        kind, text = tokens.kind, tokens.text
        if kind not in (NAME, NUMBER, STRING) or (sign and kind == STRING):
            raise tokens.error(f"expected a value for {name}, found {tokens.found()}; write one")
        tokens.advance()
        if kind == STRING and tokens.kind == STRING:
            pieces = [text]
            while tokens.kind == STRING:
                pieces.append(tokens.text)
                tokens.advance()
            text = " ".join(pieces)
        return kind, sign + text, offset

    def _unknown(self, name: str, offset: int, keeper: _Keeper, depth: int) -> None:
        tokens = self.tokens
        colon = self._is(":")
        if colon:
            tokens.advance()

        def element() -> None:
            if self._is("{", "<"):
                closing, opened = self._open(name, depth)
                inner = (f"{keeper[0]}{name}.", keeper[1])
                before = self.kept
                while not self._closed(closing, opened):
                    self._unknown(*self._field_name(), inner, depth + 1)
                    self._separator()
                if self.kept == before:
                    self._keep(keeper, name, "{}", offset)
            else:
                if not colon:
                    self._colon(name)
                _, text, _ = self._scalar(name)
                self._keep(keeper, name, text, offset)

        if colon and self._is("["):
            if not self._list(element):
                self._keep(keeper, name, "[]", offset)
        else:
            element()

    def _keep(self, keeper: _Keeper, name: str, text: str, offset: int) -> None:
        tokens = self.tokens
        path, message = keeper
        if message is None:
            raise tokens.error(f"unknown field {name}; remove it", offset)
        self.kept += 1
        if self.kept > _MAX_FORK_FIELDS or len(path) + len(name) > _MAX_PATH:
            raise tokens.error("more or longer unknown fields than any net has; is this a prototxt?", offset)
        line, column = tokens.place(offset)
        try:
            message.fork_field.add(path=path + name, text=text, line=line, column=column)
        except UnicodeEncodeError:
            raise tokens.error(
                f"{name}: {excerpt(text)} is not UTF-8; save the file as UTF-8", offset
            ) from None


_V1_TYPE = "ilgnet_repro.caffe.V1LayerParameter.type"
_V2_TYPE = "ilgnet_repro.caffe.LayerParameter.type"
_OLD_TYPES = V1_TYPES | FORK_V1_TYPES


def _type_remedy(field: FieldDescriptor, kind: str, text: str) -> str | None:
    """Return the remedy for a layer type spelled as in another generation of Caffe, or None."""
    if field.full_name == _V2_TYPE and kind == NAME and text in _OLD_TYPES:
        return f'{text} is the spelling of `layers`; in `layer` write type: "{_OLD_TYPES[text]}"'
    if field.full_name == _V1_TYPE and kind == STRING:
        old = [name for name, new in _OLD_TYPES.items() if new and new == text[1:-1]]
        write = f"type: {old[0]} or call the layer `layer`" if old else "`layer` instead of `layers`"
        return f"{excerpt(text)} is the spelling of `layer`; write {write}"
    return None
