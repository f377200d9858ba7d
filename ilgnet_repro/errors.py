"""The package's own errors: what a user's input can do wrong, each told in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 1000


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean NAME?)`` for the one of ``names`` that is close to ``name``, or nothing."""
    known = {other.casefold(): other for other in names}
    close = get_close_matches(name.casefold(), known, n=1, cutoff=0.7)
    return f" (did you mean {known[close[0]]}?)" if close else ""


def printable(text: str) -> str:
    """``text`` in one line that any terminal, page or UTF-8 file can hold.

    Control characters, and bytes of a file name that are not UTF-8 (lone surrogates), become escapes.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def printable_lines(text: str) -> str:
    """`printable`, but for line breaks and tabs."""
    return re.sub(r"[^\n\t]+", lambda part: printable(part[0]), text)


class IlgnetError(Exception):
    """Something the user gave cannot be used; the message is one line: ``where: what; remedy``.

    ``where`` (a file, a layer, an input), ``what`` and ``remedy`` are its parts; ``option`` is the keyword of the call
    that it speaks of (several with spaces between), which the message spells as in Python (``precision="int8"``) and the
    command as its flag.
    Names come from files and may hold anything: what cannot be printed is written as an escape, and a
    message of over `LONGEST` characters loses its middle.
    """

    def __init__(self, message: str, *, option: str = "") -> None:
        message = printable(message)
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
        super().__init__(message)
        self.option = option

    @property
    def where(self) -> str:
        """What the error is about: the part before the first colon, or nothing."""
        where, colon, _ = str(self).partition(": ")
        return where if colon else ""

    @property
    def what(self) -> str:
        """What is wrong."""
        return self._without_where.rpartition("; ")[0] or self._without_where

    @property
    def remedy(self) -> str:
        """What to do: the part behind the last semicolon, or nothing."""
        _, semicolon, remedy = self._without_where.rpartition("; ")
        return remedy if semicolon else ""

    @property
    def _without_where(self) -> str:
        where, colon, rest = str(self).partition(": ")
        return rest if colon else where


class FormatError(IlgnetError):
    """A file is not what it claims to be: truncated, lying about a length, or with a bad value."""


class ParseError(FormatError):
    """A prototxt cannot be read; says file, line and column (both from 1)."""

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


class GraphError(IlgnetError):
    """The layers do not form a net: a missing bottom, a cycle, a top written twice."""


class WeightsError(IlgnetError):
    """The weights do not fit the net: a layer missing, extra or of another shape."""


class DataError(IlgnetError):
    """An image, list, mean file or database cannot be used."""


class DownloadError(IlgnetError):
    """A released file could not be fetched whole."""


class SolverError(IlgnetError):
    """A solver, its snapshot or its data cannot be used for training."""


class DivergedError(SolverError):
    """A training run whose loss or weights are no longer finite."""


def shown(text: str, limit: int = 80) -> str:
    """The text with control characters escaped and its end cut off beyond ``limit`` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def one_of(names: Iterable[str]) -> str:
    """``A``, ``A or B``, ``A, B or C``."""
    listed = list(names)
    return " or ".join(([", ".join(listed[:-1])] if listed[:-1] else []) + listed[-1:])
