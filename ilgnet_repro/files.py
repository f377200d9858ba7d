"""Writing files that are either whole or absent: a temporary name first, then a rename."""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast
from zipfile import BadZipFile

from .errors import FormatError, IlgnetError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` if the block succeeds.

    The temporary keeps the suffix of ``path``, for libraries that choose a format by it. A link stays, and
    the file that it names is replaced. Raises IlgnetError if the folder does not exist or cannot be written,
    or ``path`` is no file.
    """
    target = Path(path)
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            kind = "folder" if target.is_dir() else "device or pipe"
            raise IlgnetError(f"{path}: is a {kind}; give the name of a file")
        temporary = _create(target, lambda path: os.close(os.open(path, _NEW_FILE, 0o666)), target.suffix)
    except ValueError as error:  # a zero byte
        raise IlgnetError(f"{path}: cannot be written ({error}); give another name") from error
    except OSError as error:
        raise IlgnetError(f"{path}: cannot be written ({error.strerror}); give another folder") from error
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise IlgnetError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_folder(target: Path) -> Path:
    """Create a folder beside ``target``, with the permissions of any new folder, to be renamed to it."""
    return _create(target, os.mkdir, "")


# tempfile makes what only its owner can read, and the umask can be asked for only by changing it: the kernel applies it.
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def _create(target: Path, create: Callable[[Path], None], suffix: str) -> Path:
    """Call ``create`` with a hidden name beside ``target`` that nothing else has; return it."""
    stem = target.name.removesuffix(suffix)
    while True:
        path = target.parent / f".{stem}.{os.urandom(4).hex()}{suffix}"
        with suppress(FileExistsError):
            create(path)
            return path


@contextmanager
def atomic_file(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO]:
    """Yield an open file whose content appears under ``path`` only if the block succeeds.

    ``mode`` is ``wb`` or ``w``: UTF-8, with the bytes of a file name that are not UTF-8 written as escapes.
    """
    binary = "b" in mode
    with (
        atomic_path(path) as temporary,
        # Not "wb": ext4 takes a truncated file for one being replaced, and writes it out when it is closed.
        open(
            temporary,
            "r+b" if binary else "r+",
            encoding=None if binary else "utf-8",
            errors=None if binary else "backslashreplace",
        ) as file,
    ):
        yield file


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


def check_replaced(
    path: PathLike, is_ours: Callable[[Path], bool], writer: str, remedy: str, *, option: str = ""
) -> None:
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
        raise IlgnetError(
            f"{target}: is there already and was not written by {writer}; {remedy}", option=option
        )


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


def dumps(value: Any, **options: Any) -> str:
    """As `json.dumps`."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:  # some number is not finite
        return json.dumps(_plain(value), allow_nan=False, **options)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def map_file(path: str | os.PathLike[str]) -> memoryview:
    """Map a file into memory, copy-on-write: views are writable and the file never changes.

    Pages are read when they are touched.  Raises FormatError for a file that is absent, empty or no plain file.
    """
    name = Path(path).name
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would wait for its writer
            raise FormatError(f"{path}: is not a plain file (a pipe or device); save its content to a file")
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise FormatError(f"{name}: the file is empty; fetch it again")
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError:
                # A private mapping larger than memory and swap together may be refused: read-only then.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except ValueError as error:
        raise FormatError(f"{path}: cannot be read ({error}); check the path") from error
    return memoryview(mapped)


@contextmanager
def deferred_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield an open file whose content appears under ``path`` only if the block succeeds and all was written.

    Writing to it never fails: the first failure is kept and raised, as an IlgnetError, when the block ends.
    """
    with atomic_path(path) as temporary, open(temporary, "r+b", buffering=0) as raw:
        target = _Target(raw)
        yield cast(IO[bytes], target)
        if target.failure is not None:
            raise target.failure


class _Target(io.RawIOBase):
    """A file that keeps its first failure to write for later, and goes on as if there had been none."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__()
        self._raw = raw
        self._size = 0  # as if everything had been written
        self.failure: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            return self._raw.seek(self._size + offset)
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any) -> int:
        return self._raw.readinto(buffer)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        length, self._size = len(rest), max(self._size, self._raw.tell() + len(rest))
        try:
            while self.failure is None and rest:  # one call writes 2 GB at most
                rest = rest[self._raw.write(rest) :]
        except OSError as error:
            self.failure = error
        return length

    def truncate(self, size: int | None = None) -> int:
        self._size = self._raw.tell() if size is None else size
        try:
            if self.failure is None:
                self._raw.truncate(self._size)
        except OSError as error:
            self.failure = error
        return self._size
