"""Tokenizer for protobuf's text format: one token at a time, each with its position in the text."""

from __future__ import annotations

import re
from bisect import bisect_right

from ..errors import ParseError, excerpt

NAME, NUMBER, STRING, MARK, END = "name", "number", "string", "mark", "end"

_MAX_WORD = 256  # limits the memory that a token takes; no real name or number is longer

# Alternatives begin with different characters and repeat over disjoint sets: no backtracking.
_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n\f\v]+|\#[^\n]*)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<number>0[xX][0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)
    |(?P<string>"[^"\\\n]*(?:\\.[^"\\\n]*)*"|'[^'\\\n]*(?:\\.[^'\\\n]*)*')
    |(?P<mark>[][{}<>:;,-])""",
    re.VERBOSE,
)
_WORD_CHARACTER = re.compile(r"[A-Za-z0-9_.]")
# Characters of word processors and of Chinese keyboards -> those of the grammar.
_MEANT = dict(
    zip("“”‘’：，；｛｝＃", ('"', '"', "'", "'", *":,;{}#"), strict=True), **{"\u00a0": "a plain space"}
) | {"+": "the number without it"}


class Tokens:
    """A cursor over the tokens of a text: ``kind``, ``text`` and ``offset`` are the current one's."""

    def __init__(self, text: str, file: str) -> None:
        self._source, self._file = text, file
        self._position = 0
        self._lines: list[int] = []
        self.kind, self.text, self.offset = END, "", 0
        self.advance()

    def advance(self) -> None:
        """Move to the next token; at the end of the text ``kind`` is END and ``text`` is empty."""
        source, position = self._source, self._position
        while True:
            if position >= len(source):
                self.kind, self.text, self.offset = END, "", len(source)
                self._position = position
                return
            match = _TOKEN.match(source, position)
            if match is None:
                raise self._unreadable(position)
            kind = match.lastgroup
            if kind != "blank":
                break
            position = match.end()
        self.kind, self.text, self.offset = kind or END, match.group(), position
        self._position = end = match.end()
        if kind == NUMBER and end < len(source) and _WORD_CHARACTER.match(source, end):
            raise self.error(f"{excerpt(self.text + source[end])} is not a number; add a space")
        if kind in (NAME, NUMBER) and len(self.text) > _MAX_WORD:
            raise self.error(f"a {kind} of {len(self.text):,} characters; use up to {_MAX_WORD}")

    def place(self, offset: int) -> tuple[int, int]:
        """Return line and column, both from 1, of an offset."""
        if not self._lines:
            self._lines = [0, *(match.end() for match in re.finditer("\n", self._source))]
        line = bisect_right(self._lines, offset)
        return line, offset - self._lines[line - 1] + 1

    def error(self, message: str, offset: int | None = None) -> ParseError:
        """Return a ParseError with line and column of ``offset``, or of the current token."""
        line, column = self.place(self.offset if offset is None else offset)
        return ParseError(message, file=self._file, line=line, column=column)

    def found(self) -> str:
        """Return the current token as shown in messages."""
        return "the end of the text" if self.kind == END else excerpt(self.text)

    def _unreadable(self, position: int) -> ParseError:
        character = self._source[position]
        if character in "\"'":
            return self.error(f"a string without its closing {character}; close it on its line", position)
        if self._source.startswith(("//", "/*"), position):
            remedy = "a comment starts with #"
        else:
            remedy = f"write {_MEANT[character]}" if character in _MEANT else "remove it"
        return self.error(f"unexpected character {character!r}; {remedy}", position)
