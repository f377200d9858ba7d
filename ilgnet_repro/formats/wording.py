"""How values from files appear in messages: on one line and not too long."""

from __future__ import annotations

from collections.abc import Iterable


def shown(text: str, limit: int = 80) -> str:
    """The text with control characters escaped and its end cut off beyond ``limit`` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def one_of(names: Iterable[str]) -> str:
    """``A``, ``A or B``, ``A, B or C``."""
    listed = list(names)
    return " or ".join(([", ".join(listed[:-1])] if listed[:-1] else []) + listed[-1:])
