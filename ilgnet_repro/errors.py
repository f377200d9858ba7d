"""The package's own errors: what a user's input can do wrong, each told in one line."""

from __future__ import annotations

import html
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


def html_text(text: str) -> str:
    """``text`` for HTML: escaped, and `printable`."""
    return html.escape(printable(text))


class IlgnetError(Exception):
    """Something the user gave cannot be used; the message is one line: where, what, remedy.

    Names come from files and may hold anything: what cannot be printed is written as an escape, and a
    message of over `LONGEST` characters loses its middle.

    ``option`` is the keyword that is at fault, which the message writes as ``option=``; a command shows its own flag.
    """

    def __init__(self, message: str, *, option: str = "") -> None:
        message = printable(message)
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
        super().__init__(message)
        self.option = option


class FormatError(IlgnetError):
    """A file is not what it claims to be: truncated, lying about a length, or with a bad value."""


class ParseError(FormatError):
    """A prototxt cannot be read; says file, line and column (both from 1)."""

    def __init__(self, message: str, *, file: str = "<text>", line: int = 0, column: int = 0) -> None:
        super().__init__(f"{file}:{line}:{column}: {message}" if line else f"{file}: {message}")
        self.file, self.line, self.column = file, line, column


class LayerError(IlgnetError):
    """A layer cannot be built or run; the message starts with its name and type."""

    def __init__(self, name: str, type_: str, message: str) -> None:
        super().__init__(f"{name} ({type_}): {message}")
        self.layer, self.type = name, type_


class GraphError(IlgnetError):
    """The layers do not form a net: a missing bottom, a cycle, a top written twice."""


class WeightsError(IlgnetError):
    """The weights do not fit the net: a layer missing, extra or of another shape."""


class DataError(IlgnetError):
    """A picture, list, mean file or database cannot be used."""


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
