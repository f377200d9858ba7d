"""Paths that C libraries can take, and outputs that must not replace what they are made from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

from .errors import IlgnetError

PathLike = str | os.PathLike[str]


@contextmanager
def utf8_path(path: PathLike) -> Iterator[str]:
    """Yield a name of ``path`` that is UTF-8: its own, or that of a symbolic link in a temporary folder.

    A file name on Linux is any bytes. Python holds those that are not UTF-8 as lone surrogates, which a
    library in C++ (OpenCV, ONNX Runtime, torch, Arrow) cannot take: it raises, or ends the process.
    """
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = os.path.join(folder, f"link{_utf8_suffix(name)}")
            os.symlink(os.path.abspath(name), link)
            yield link
    else:
        yield name


def _utf8_suffix(name: str) -> str:
    suffix = Path(name).suffix
    return suffix if suffix.isascii() else ""


def check_output(output: PathLike, inputs: Iterable[PathLike | None], option: str = "") -> None:
    """Raise IlgnetError where writing ``output`` would replace one of ``inputs``, or damage it.

    That is where both are one file (by name, link or hard link), where ``output`` is a folder that holds an
    input, and where it lies in an LMDB that is read. ``option`` is how the output was given, such as
    ``--out``; None among the inputs stands for an option that was not given.
    """
    given = f"{option} {output}" if option else str(output)
    target = os.path.realpath(output)
    for path in inputs:
        if path is None or not os.fspath(path):
            continue
        source = os.path.realpath(path)
        if target == source or _same_file(output, path):
            raise IlgnetError(f"{given}: is the input {path} itself; give another name")
        if _is_within(source, target):
            raise IlgnetError(f"{given}: is a folder that holds the input {path}; give another name")
        if _is_within(target, source) and os.path.exists(os.path.join(source, "data.mdb")):
            raise IlgnetError(f"{given}: lies in the input database {path}; give another place")


def check_outputs(outputs: Iterable[PathLike], inputs: Iterable[PathLike | None], option: str = "") -> None:
    """`check_output` for each of several; and no two of them may be one file."""
    outputs, inputs = list(outputs), list(inputs)
    for number, output in enumerate(outputs):
        check_output(output, inputs, option)
        for other in outputs[:number]:
            if os.path.realpath(output) == os.path.realpath(other):
                raise IlgnetError(f"{output}: is named twice as an output; give another name")


def check_replaced(path: PathLike, is_ours: Callable[[Path], bool], writer: str, remedy: str) -> None:
    """Raise IlgnetError where ``path`` exists and ``is_ours`` does not recognize it as written by ``writer``.

    For files whose names a command chooses itself: a user's file of that name stays.
    """
    target = Path(path)
    if not os.path.lexists(target):
        return
    try:
        # An empty file, as a killed run leaves it, holds nothing to lose.
        known = target.is_file() and (not target.stat().st_size or is_ours(target))
    except (IlgnetError, OSError, ValueError, TypeError, RecursionError, BadZipFile):
        known = False
    if not known:
        raise IlgnetError(f"{target}: is there already and was not written by {writer}; {remedy}")


def starts_with(*heads: bytes) -> Callable[[Path], bool]:
    """A test of a file's first bytes, for `check_replaced`."""

    def test(path: Path) -> bool:
        with open(path, "rb") as file:
            return file.read(max(map(len, heads))).startswith(heads)

    return test


def _same_file(first: PathLike, second: PathLike) -> bool:
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return False


def _is_within(inner: str, outer: str) -> bool:
    """Whether a resolved path lies below a resolved folder."""
    return inner != outer and os.path.commonpath((inner, outer)) == outer
