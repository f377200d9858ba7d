"""The package's exceptions, each a one-line message about the user's input, and helpers to word messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

MAX_LENGTH = 1000


def one_of(names: Iterable[str]) -> str:
    """Return ``A``, ``A or B`` or ``A, B or C``."""
    listed = list(names)
    return " or ".join(([", ".join(listed[:-1])] if listed[:-1] else []) + listed[-1:])


_MESSAGE_ENDING = re.compile(r"_param(?:eter)?s?$")


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.7) -> str:
    """Return `` (did you mean NAME?)`` with the one of ``names`` closest to ``name``, or "" if none is close."""
    # The ending that all parameter messages share says nothing about how alike two of them are.
    known = {_MESSAGE_ENDING.sub("", other.casefold()): other for other in names}
    close = get_close_matches(_MESSAGE_ENDING.sub("", name.casefold()), known, n=1, cutoff=cutoff)
    return f" (did you mean {known[close[0]]}?)" if close else ""


def printable(text: str) -> str:
    """Return ``text`` as one line that any terminal, page or UTF-8 file accepts.

    Control characters, and bytes of a file name that are not UTF-8 (lone surrogates), become escapes.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """Return ``text`` as `printable` does, but with its line breaks and tabs."""
    return re.sub(r"[^\n\t]+", lambda part: printable(part[0]), text)


def excerpt(text: str, limit: int = 80) -> str:
    """Return at most the first ``limit`` characters of ``text``, as `printable` does."""
    return printable(text if len(text) <= limit else text[: limit - 1] + "…")


class IlgnetError(Exception):
    """Input from the user cannot be used; the message is one line: ``where: what; remedy``.

    ``where`` (a file, a layer, an input), ``what`` and ``remedy`` are available as properties. ``option`` is the
    keyword argument that the message is about (several are separated by spaces): the message writes it as in Python
    (``precision="int8"``), and the command line as its flag. Names from files can contain any character:
    unprintable ones become escapes, and a message longer than ``MAX_LENGTH`` is shortened in the middle.
    """

    def __init__(self, message: str, *, option: str = "") -> None:
        message = printable(message)
        if len(message) > MAX_LENGTH:
            message = f"{message[: MAX_LENGTH // 2]} … {message[-MAX_LENGTH // 2 :]}"
        super().__init__(message)
        self.option = option

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it as it is, so that it reaches the caller from another process: subclasses take other arguments."""
        return _remade, (type(self), self.args, vars(self))

    @property
    def where(self) -> str:
        """What the error is about: the part before the first colon, or ""."""
        where, colon, _ = str(self).partition(": ")
        return where if colon else ""

    @property
    def what(self) -> str:
        """What is wrong."""
        return self._without_where.rpartition("; ")[0] or self._without_where

    @property
    def remedy(self) -> str:
        """What to do: the part after the last semicolon, or ""."""
        _, semicolon, remedy = self._without_where.rpartition("; ")
        return remedy if semicolon else ""

    @property
    def _without_where(self) -> str:
        where, colon, rest = str(self).partition(": ")
        return rest if colon else where


def _remade(kind: type[IlgnetError], arguments: tuple[Any, ...], state: Mapping[str, Any]) -> IlgnetError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(state)
    return error


class FormatError(IlgnetError):
    """A file is not valid in its format: truncated, with a wrong length or a bad value."""


class ParseError(FormatError):
    """A prototxt cannot be read; the message starts with file, line and column (both from 1)."""

    def __init__(self, message: str, *, file: str = "<text>", line: int = 0, column: int = 0) -> None:
        super().__init__(f"{file}:{line}:{column}: {message}" if line else f"{file}: {message}")
        self.file, self.line, self.column = file, line, column


class LayerError(IlgnetError):
    """A layer cannot be built or run; the message starts with its name and type."""

    def __init__(self, name: str, type_: str, message: str, *, option: str = "") -> None:
        super().__init__(f"{name} ({type_}): {message}", option=option)
        self.layer, self.type = name, type_

    @property
    def where(self) -> str:
        """The layer's name and type."""
        return printable(f"{self.layer} ({self.type})")

    @property
    def _without_where(self) -> str:
        return str(self).removeprefix(f"{self.where}: ")


ARITHMETIC = (ArithmeticError, LookupError, ValueError, RuntimeError, MemoryError)
"""What Python and torch raise where sizes or parameters make no sense: an empty axis, a division by zero, a number
beyond its type, memory that nobody has."""


def reason_of(error: BaseException) -> str:
    """Return the class and the first line of an exception that is not ours."""
    lines = str(error).strip().splitlines()
    return excerpt(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__, 200)


def unusable(name: str, type_: str, doing: str, error: BaseException) -> LayerError:
    """Return the LayerError for one of `ARITHMETIC` that no check of the layer's own foresaw."""
    return LayerError(name, type_, f"{doing} ({reason_of(error)}); correct its parameters or its bottoms")


class GraphError(IlgnetError):
    """The layers do not form a net: a missing bottom, a cycle, a duplicate top."""


class WeightsError(IlgnetError):
    """The weights do not match the net: a layer is missing, unexpected or of a different shape."""


class DataError(IlgnetError):
    """An image, list, mean file or database cannot be used."""


class ValuesError(DataError, ValueError):
    """Arrays given to a function do not fit each other or its range; also a ValueError, as NumPy users expect."""


class DownloadError(IlgnetError):
    """A released file could not be downloaded completely."""


class SolverError(IlgnetError):
    """A solver, its snapshot or its data cannot be used for training."""


class DivergedError(SolverError):
    """The loss or the weights of a training run are no longer finite."""
