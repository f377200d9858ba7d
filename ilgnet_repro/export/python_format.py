"""Laying Python out as ruff and black would: quotes, and statements that are too long for a line."""

from __future__ import annotations

import io
import re
import textwrap
import tokenize
from itertools import pairwise

LINE_LENGTH = 100
STEP = 4
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def format_statement(text: str, indent: int = 0, limit: int = LINE_LENGTH) -> list[str]:
    """Return the lines of one statement, indented; split at brackets where it is longer than ``limit``."""
    return _split(double_quoted(text), indent, limit, "")


def double_quoted(text: str) -> str:
    """Write every plain string literal in double quotes."""
    parts, column = [], 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        plain = token.type == tokenize.STRING and token.string.startswith("'")
        if plain and '"' not in token.string and "\\" not in token.string:
            parts += [text[column : token.start[1]], f'"{token.string[1:-1]}"']
            column = token.end[1]
    return "".join(parts) + text[column:]


def _split(text: str, indent: int, limit: int, ending: str) -> list[str]:
    """Lay out ``text`` followed by ``ending`` (a comma, or nothing)."""
    margin = " " * indent
    if indent + len(text) + len(ending) <= limit:
        return [f"{margin}{text}{ending}"]
    bracket = _bracket(text, limit - indent)
    if bracket is None:
        return _in_parentheses(text, indent, limit, ending)
    start, stop = bracket
    head, body, tail = text[: start + 1], text[start + 1 : stop].strip(), text[stop:]
    is_call = start > 0 and (text[start - 1].isalnum() or text[start - 1] in "_)]")
    return [f"{margin}{head}", *_body(body, indent + STEP, limit, is_call), f"{margin}{tail}{ending}"]


def _body(body: str, indent: int, limit: int, is_call: bool) -> list[str]:
    """What is between brackets: a call's arguments on a line of their own, else a line for each element."""
    if is_call and indent + len(body) <= limit:
        return [" " * indent + body]
    elements = _elements(body)
    ending = "" if len(elements) == 1 and body.lstrip().startswith("*") else ","
    loop = _loop(body)
    if len(elements) == 1 and loop:
        return [" " * indent + body[:loop], " " * indent + body[loop + 1 :]]
    return [line for element in elements for line in _split(element, indent, limit, ending)]


def _loop(body: str) -> int:
    """Where the ``for`` of a comprehension starts (the space before it), or 0 where there is none."""
    depths = _depths(body)
    places = (match.start() for match in re.finditer(" for ", body))
    return next((place for place in places if depths[place] == 0), 0)


def _in_parentheses(text: str, indent: int, limit: int, ending: str) -> list[str]:
    """Split a sum or product at its operators, inside parentheses that an assignment's value gains."""
    target, equals, value = text.partition(" = ")
    if not equals or not target.replace(".", "").replace("_", "").isalnum():
        target, value = "", text
    margin = " " * indent
    opening = f"{margin}{target} = (" if target else f"{margin}("
    inner = " " * (indent + STEP)
    if len(inner) + len(value) <= limit:
        return [opening, f"{inner}{value}", f"{margin}){ending}"]
    terms = _terms(value)
    if len(terms) == 1:  # nothing to break at
        return [f"{margin}{text}{ending}"]
    lines = [line for term in terms for line in _split(term, indent + STEP, limit, "")]
    return [opening, *lines, f"{margin}){ending}"]


def _depths(text: str) -> list[int]:
    """How many brackets are open at each character; a string counts as one, whatever is in it."""
    depths, depth, quote, escaped = [], 0, "", False
    for character in text:
        if escaped:
            escaped = False
        elif quote:
            escaped = character == "\\"
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _PAIRS:
            depth += 1
        elif character in _PAIRS.values():
            depth -= 1
        depths.append(depth if not quote else max(depth, 1))
    return depths


def _bracket(text: str, room: int) -> tuple[int, int] | None:
    """Where the last bracket opens and closes in front of which all fits a line of ``room``, or None.

    Behind it only calls, attributes and subscripts may follow: an operator outside brackets is where a
    person would break instead.
    """
    depths = _depths(text)
    outside = "".join(c if depths[i] == 0 else "." for i, c in enumerate(text))
    value = outside.partition(" = ")[2] or outside
    if any(f" {operator} " in value for operator in "+-*/@"):
        return None
    opened = [i for i, depth in enumerate(depths) if depth == 1 and (i == 0 or depths[i - 1] == 0)]
    for start in reversed([i for i in opened if text[i] in _PAIRS]):
        stop = next(i for i in range(start + 1, len(text)) if depths[i] == 0)
        if start < room and stop > start + 1:
            return start, stop
    return None


def _elements(body: str) -> list[str]:
    """Split at the commas outside brackets."""
    return _cut(body, ",")


def _terms(text: str) -> list[str]:
    """Split in front of each + and - outside brackets, or each * and / where there is none of these."""
    depths = _depths(text)
    for operators in ("+-", "*/"):
        cuts = [
            i for i in range(1, len(text) - 1)
            if depths[i] == 0 and text[i] in operators and text[i - 1] == text[i + 1] == " "
        ]  # fmt: skip
        if cuts:
            edges = [0, *cuts, len(text)]
            return [text[a:b].strip() for a, b in pairwise(edges)]
    return [text]


def _cut(text: str, separator: str) -> list[str]:
    depths, parts, start = _depths(text), [], 0
    for position, character in enumerate(text):
        if character == separator and depths[position] == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [part for part in (*parts, text[start:].strip()) if part]


def narrowed(function: str, limit: int = LINE_LENGTH) -> str:
    """Wrap the docstring and the comments of a function's source anew where a line is too long.

    Functions come from this package, whose lines are longer than those of a written file; their code must
    fit as it is.
    """
    lines = function.split("\n")
    if all(len(line) <= limit for line in lines):
        return function
    result: list[str] = []
    block: list[str] = []  # consecutive lines of one docstring paragraph or comment
    in_docstring = False

    def flush() -> None:
        result.extend(_wrapped(block, limit) if any(len(line) > limit for line in block) else block)
        block.clear()

    for line in lines:
        text = line.strip()
        quotes = text.count('"""')
        is_prose = in_docstring or quotes > 0
        is_comment = text.startswith("#") and not is_prose
        if not (is_prose or is_comment) or text in ("", '"""'):
            flush()
            result.append(line)
        else:
            block.append(line)
        if quotes % 2 or (is_prose and quotes):
            in_docstring = quotes % 2 == 1 and not in_docstring
            if not in_docstring:
                flush()
    flush()
    return "\n".join(result)


def _wrapped(block: list[str], limit: int) -> list[str]:
    margin = block[0][: len(block[0]) - len(block[0].lstrip())]
    mark = "# " if block[0].lstrip().startswith("#") else ""
    text = " ".join(line.strip().removeprefix(mark) for line in block)
    closed = len(text) > len('"""') and text.endswith('"""')
    text = text.removesuffix('"""') if closed else text
    lines = textwrap.wrap(
        text, limit - 3 * closed, initial_indent=margin + mark, subsequent_indent=margin + mark,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [*lines, f'{margin}"""'] if closed else lines
