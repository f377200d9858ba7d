"""Reading and writing files: memory-mapped input, output that is complete or absent, and strict JSON."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import mmap
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

from .errors import DataError, FormatError, IlgnetError, printable
from .staging import staged_file, staged_folder

PathLike = str | os.PathLike[str]
_PIECE = 1 << 20  # bytes read at a time


def map_file(path: PathLike) -> memoryview:
    """Map a file into memory, copy-on-write: views are writable and the file never changes.

    Pages are read on first access. Raises FormatError for a file that is absent, empty or not a regular file.
    """
    name = Path(path).name
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(
            mode
        ):  # opening a pipe would block until something writes to it
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


def open_input(path: PathLike, mode: str = "rb", **options: Any) -> IO[Any]:
    """Open an input file as `open`; a pipe or a device, which might never end or begin, is an OSError by that reason."""

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
            os.close(descriptor)
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            reason = os.strerror(code) if stat.S_ISDIR(mode) else "is a pipe or device, not a plain file"
            raise OSError(code, reason, name)
        return descriptor

    return open(path, mode, opener=opener, **options)


def read_input(path: PathLike) -> bytes:
    """Return the bytes of an input file; raises OSError as `open_input`."""
    with open_input(path) as file:
        data: bytes = file.read()
    return data


def file_sha256(path: PathLike) -> str:
    """Return the SHA-256 of a file, read in pieces.  Raises DataError if it cannot be read."""
    return file_digests(path, {"sha256"})["sha256"]


def file_digests(path: PathLike, kinds: Iterable[str]) -> dict[str, str]:
    """Return several digests of a file (names as in `hashlib`), read once.  Raises DataError if it cannot be read."""
    hashes = {kind: hashlib.new(kind, usedforsecurity=False) for kind in sorted(kinds)}
    try:
        with open_input(path) as file:
            while piece := file.read(_PIECE):
                for value in hashes.values():
                    value.update(piece)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return {kind: value.hexdigest() for kind, value in hashes.items()}


def real_path(path: PathLike) -> Path:
    """Return an absolute path without links; unlike `Path.resolve`, never raises for links in a circle."""
    return Path(os.path.realpath(path))


@contextmanager
def utf8_path(path: PathLike) -> Iterator[str]:
    """Yield a valid UTF-8 path for ``path``: the path itself, or a symbolic link to it in a temporary folder.

    File names on Linux are arbitrary bytes. Python represents those that are not UTF-8 as lone surrogates,
    which C++ libraries (OpenCV, ONNX Runtime, torch, Arrow) do not accept: they raise, or end the process.
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


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` if the block succeeds.

    The temporary path has the suffix of ``path``, for libraries that choose a format by it. Symbolic links are
    followed: the link stays and its target is replaced. Raises IlgnetError if the folder does not exist or
    cannot be written, or if ``path`` exists and is not a regular file.
    """
    try:
        target = Path(os.path.realpath(path))
        exists, is_file = target.exists(), target.is_file()
    except (OSError, ValueError) as error:  # a null byte in the name, or a name too long
        reason = getattr(error, "strerror", None) or error
        raise IlgnetError(f"{path}: cannot be written ({reason}); give another name") from error
    if exists and not is_file:
        kind = "folder" if target.is_dir() else "device or pipe"
        raise IlgnetError(f"{path}: is a {kind}; give the name of a file")
    with writing(path), staged_file(target) as temporary:
        yield temporary
        os.replace(temporary, target)


@contextmanager
def staged_results(
    folder: PathLike, name: str, kind: type[IlgnetError] = IlgnetError, option: str = ""
) -> Iterator[Path]:
    """Yield a hidden folder for the results ``name``, beside them, for the caller to rename what is in it.

    Raises IlgnetError if another process is writing them, and ``kind`` of it if ``folder`` cannot be written; an
    IlgnetError of the block that names a file of the hidden folder names the result instead.
    """
    with writing(folder, kind, option), staged_folder(Path(folder, name)) as stage:
        try:
            yield stage
        except IlgnetError as error:
            error.args = (str(error).replace(printable(str(stage)), printable(str(folder))),)
            raise


@contextmanager
def writing(path: PathLike, kind: type[IlgnetError] = IlgnetError, option: str = "") -> Iterator[None]:
    """Raise ``kind`` of IlgnetError, in one line, where the block fails to write ``path``."""
    try:
        yield
    except OSError as error:
        raise kind(unwritten(path, error, option), option=option) from error


def unwritten(path: PathLike, error: OSError, option: str = "") -> str:
    """Return the message for an output that cannot be written."""
    remedies = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space",
        errno.EFBIG: "raise the limit on the size of files",
    }
    given = remedies.get(error.errno or 0, f"give another {option}=" if option else "give another folder")
    return f"{path}: cannot be written ({error.strerror or error}); {given}"


@contextmanager
def atomic_file(path: PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield an open file whose content appears under ``path`` only if the block succeeds.

    ``mode`` is ``wb`` or ``w``; text is written as UTF-8, with lone surrogates (bytes of a file name that is not
    UTF-8) as backslash escapes.
    """
    binary = "b" in mode
    with (
        atomic_path(path) as temporary,
        # Not "wb": ext4 flushes a file to disk on close if it was truncated when opened.
        open(
            temporary,
            "r+b" if binary else "r+",
            encoding=None if binary else "utf-8",
            errors=None if binary else "backslashreplace",
        ) as file,
    ):
        yield file


@contextmanager
def deferred_file(path: PathLike) -> Iterator[io.RawIOBase]:
    """Yield an open file whose content appears under ``path`` only if the block and every write succeed.

    Writing to it never raises: the first error is recorded, and raised as an IlgnetError when the block ends.
    For HDF5 and torch's zip writer, which end the process when a write raises.
    """
    with atomic_path(path) as temporary, open(temporary, "r+b", buffering=0) as raw:
        target = _DeferredFile(raw)
        yield target
        if target.failure is not None:
            raise target.failure


class _DeferredFile(io.RawIOBase):
    """A file that records its first write error, and from then on discards what is written."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__()
        self._raw = raw
        self._size = 0  # the size if no write had failed
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
            while self.failure is None and rest:  # one call writes at most 2 GB
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


def check_output(output: PathLike, inputs: Iterable[PathLike | None], option: str = "") -> None:
    """Raise IlgnetError if writing ``output`` would overwrite or damage one of ``inputs``.

    This is so if both are the same file (by name, symbolic link or hard link), if ``output`` is a folder that
    contains an input, or if it is inside an input LMDB. ``option`` names the output's option in the message;
    inputs that are None (options not given) are skipped.
    """
    if not os.fspath(output):
        raise IlgnetError(f"{option or 'the output'}: is empty; give a name")
    given = f"{option} {output}" if option else str(output)
    target = os.path.realpath(output)
    for path in inputs:
        if path is None or not os.fspath(path):
            continue
        source = os.path.realpath(path)
        if target == source or _same_file(output, path):
            raise IlgnetError(f"{given}: is the input {path} itself; give another name")
        if _is_within(source, target):
            raise IlgnetError(f"{given}: is a folder that contains the input {path}; give another name")
        if _is_within(target, source) and os.path.exists(os.path.join(source, "data.mdb")):
            raise IlgnetError(f"{given}: is inside the input database {path}; give another place")


def check_outputs(outputs: Iterable[PathLike], inputs: Iterable[PathLike | None], option: str = "") -> None:
    """Apply `check_output` to each of ``outputs``; raise IlgnetError also if two of them are the same file."""
    outputs, inputs = list(outputs), list(inputs)
    for number, output in enumerate(outputs):
        check_output(output, inputs, option)
        for other in outputs[:number]:
            if os.path.realpath(output) == os.path.realpath(other):
                raise IlgnetError(f"{output}: is given twice as an output; give another name")


def _same_file(first: PathLike, second: PathLike) -> bool:
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return False


def _is_within(inner: str, outer: str) -> bool:
    """Return whether the resolved path ``inner`` is inside the resolved folder ``outer``."""
    return inner != outer and os.path.commonpath((inner, outer)) == outer


def check_replaced(
    path: PathLike, is_ours: Callable[[Path], bool], writer: str, remedy: str, *, option: str = ""
) -> None:
    """Raise IlgnetError if ``path`` exists and ``is_ours`` does not recognize it as written by ``writer``.

    For output files that a command names itself, so that it never overwrites a user's file of the same name.
    """
    target = Path(path)
    if not os.path.lexists(target):
        return
    try:
        # An empty file, as an interrupted run leaves it, may be replaced.
        known = (
            is_ours(target)
            if target.is_dir()
            else target.is_file() and (not target.stat().st_size or is_ours(target))
        )
    except (IlgnetError, OSError, ValueError, TypeError, OverflowError, RecursionError, BadZipFile):
        known = False
    if not known:
        raise IlgnetError(f"{target}: exists and was not written by {writer}; {remedy}", option=option)


def starts_with(*heads: bytes) -> Callable[[Path], bool]:
    """Return a function that checks whether a file starts with one of ``heads``, for `check_replaced`."""

    def test(path: Path) -> bool:
        with open_input(path) as file:
            return bytes(file.read(max(map(len, heads)))).startswith(heads)

    return test


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text from a file holds; raises ValueError, also for one nested deeper than can be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_text(value: Any, **options: Any) -> str:
    """Return ``value`` as standard JSON: as `json.dumps`, with NaN and infinities as strings.

    Bare ``NaN`` and ``Infinity`` are not JSON, and other readers reject them; ``float()`` reads the strings.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:  # a number is not finite
        return json.dumps(_replace_non_finite(value), allow_nan=False, **options)


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _replace_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_non_finite(inner) for inner in value]
    return value


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_QUOTED = re.compile(r"'+[=+\-@\t\r]")


def csv_text(text: str) -> str:
    """Return a text as a cell of CSV that no spreadsheet takes for a formula: with a quote before it.

    For names that come from files. `from_csv_text` removes the quote.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_csv_text(cell: str) -> str:
    """Return the text of a cell that `csv_text` wrote."""
    return cell[1:] if _QUOTED.match(cell) else cell


def bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
