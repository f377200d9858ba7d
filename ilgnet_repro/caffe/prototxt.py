"""Prototxts: reads nets and solvers from text.

The reader follows protobuf's text format as Caffe 1.0 uses it, and keeps unknown fields (text_parser.py).
Nothing is upgraded here; upgrade.py does that.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import FormatError, ParseError, excerpt
from ..files import map_file
from ..schema import caffe_pb2
from .expected_kind import expect
from .kinds import Kind, encoding_of, looks_like_text
from .text_parser import M, parse_text
from .text_writer import format_message

__all__ = ["format_message", "parse_message", "parse_net", "parse_solver", "read_net", "read_solver"]

_MAX_TEXT = 16 << 20
_HEAD = 1024


def parse_message(text: str, message_class: type[M], file: str = "<text>") -> M:
    """Parse text into a message of any class of the schema.

    Raises ParseError (``file:line:column: what; remedy``) for invalid text.
    """
    if len(text) > _MAX_TEXT:
        raise ParseError(f"{len(text):,} characters; no prototxt has over {_MAX_TEXT:,}", file=file)
    return parse_text(text.removeprefix("\ufeff"), message_class, file)


def parse_net(text: str, file: str = "<text>") -> caffe_pb2.NetParameter:
    """Parse a net as it is written, of any generation and not upgraded."""
    return parse_message(text, caffe_pb2.NetParameter, file)


def parse_solver(text: str, file: str = "<text>") -> caffe_pb2.SolverParameter:
    """Parse a solver as it is written, not upgraded."""
    return parse_message(text, caffe_pb2.SolverParameter, file)


# What stands in a file that was not fetched whole: a server's answer, or the target of a link.
_NOT_THE_FILE = {
    r"([45]\d\d:? [A-Z][A-Za-z' ]+)\.?": "the server did not have the file; fetch it again",
    r"([\w./+-]+\.(?:prototxt|pbtxt|txt))": "it is a link as Git stores it; give the file it names",
}
_LONGEST_LINK = 1000
_CONFLICT = re.compile(r"^(?:<{7} |>{7} |={7}$)", re.MULTILINE)


def read_net(path: str | os.PathLike[str]) -> caffe_pb2.NetParameter:
    """Read a net's prototxt as it is written.  Raises FormatError or ParseError."""
    return parse_net(_read_text(path, Kind.PROTOTXT, "a net's prototxt"), os.fspath(path))


def read_solver(path: str | os.PathLike[str]) -> caffe_pb2.SolverParameter:
    """Read a solver's prototxt as it is written.  Raises FormatError or ParseError."""
    return parse_solver(_read_text(path, Kind.SOLVER, "a solver's prototxt"), os.fspath(path))


def _read_text(path: str | os.PathLike[str], kind: Kind, what: str) -> str:
    name = Path(path).name
    # For damaged text, or text without a known field, the parser reports the position.
    expect(path, kind, Kind.TEXT, Kind.UNKNOWN, what=what)
    buffer = map_file(path)
    if len(buffer) > _MAX_TEXT:
        raise FormatError(f"{name}: {len(buffer):,} bytes; no prototxt has over {_MAX_TEXT:,}")
    data = bytes(buffer)
    encoding = encoding_of(data)
    if encoding in ("utf-16", "utf-32"):
        raise FormatError(f"{name}: text in {encoding.upper()}; save it as UTF-8")
    if b"\0" in data or not looks_like_text(data[:_HEAD]):
        raise FormatError(f"{name}: a binary file, not text; give the prototxt")
    # Comments in another encoding do not matter; the parser refuses strings in one, with their position.
    text = data.decode("utf-8", errors="surrogateescape")
    for pattern, remedy in _NOT_THE_FILE.items():
        found = re.fullmatch(pattern, text.strip()) if len(text) <= _LONGEST_LINK else None
        if found:
            raise FormatError(f"{name}: holds only {excerpt(found.group(1))!r}; {remedy}")
    if conflict := _CONFLICT.search(text):
        raise FormatError(
            f"{name}: line {text.count(chr(10), 0, conflict.start()) + 1} is the mark of a merge conflict; resolve it"
        )
    return text
