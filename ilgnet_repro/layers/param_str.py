"""The small YAML of `python_param.param_str`, by which Python layers are configured; nothing is evaluated."""

from __future__ import annotations

import re
from typing import Any

Value = bool | int | float | str | None

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'[^'\n]*'|"[^"\n]*")|(?P<mark>[][{},:])|(?P<word>[^][{},:'"\s][^][{},:\n]*))"""
)
_WORDS: dict[str, Value] = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
    **dict.fromkeys(("null", "none", "~")),
}


def parse_param_str(text: str) -> dict[str, Value | list[Value]]:
    """Read the flat YAML or Python dict that a layer gets: ``'feat_stride': 16, 'scales': [8, 16]``.

    Values are numbers, words, quoted text and lists of these.  Raises ValueError, in one line, for
    anything else; nothing is evaluated.
    """
    tokens = [*_tokens(re.sub(r"(?m)(^|\s)#.*$", "", text)), ("end", "")]
    place = 0

    def take(*wanted: str) -> str:
        nonlocal place
        kind, found = tokens[place]
        if wanted and (found if kind == "mark" else kind) not in wanted:
            raise ValueError(
                f"{found or 'the end'!r} stands where {' or '.join(wanted)} is due; write key: value"
            )
        place += 1
        return found

    def value() -> Value:
        kind, found = tokens[place]
        take("text", "word")
        if found.startswith("- "):
            raise ValueError(f"{found!r} is a list written downwards; write [8, 16]")
        return found[1:-1] if kind == "text" else _scalar(found.strip())

    result: dict[str, Value | list[Value]] = {}
    braces = tokens[0] == ("mark", "{")
    if braces:
        take("{")
    while tokens[place][0] in ("text", "word"):
        key = str(take("text", "word").strip("'\" "))
        take(":")
        if tokens[place] == ("mark", "["):
            take("[")
            entries: list[Value] = []
            while tokens[place] != ("mark", "]"):
                entries.append(value())
                if tokens[place] != ("mark", "]"):
                    take(",")
            take("]")
            result[key] = entries
        else:
            result[key] = value()
        if tokens[place] == ("mark", ","):
            take(",")
    if braces:
        take("}")
    take("end")
    return result


def _tokens(text: str) -> list[tuple[str, str]]:
    found = []
    place = 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"{text[place:].strip()[:20]!r} cannot be read; write key: value")
        kind: Any = match.lastgroup
        found.append((kind, match[kind]))
        place = match.end()
    return found


def _scalar(word: str) -> Value:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    for read in (int, float):
        try:
            return read(word)
        except ValueError:
            continue
    return word
