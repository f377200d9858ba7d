"""Staging of outputs: a hidden file or folder beside the result, locked as long as a process writes it.

The name follows from the result's, so what a killed process left is found and removed by the next one, and the lock,
which ends with its process, shows which of them is still being written.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import IlgnetError

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

MARK = "ilgnet_repro-tmp"
_LONGEST_NAME = 255  # bytes, on every file system in use
_SUFFIX = 24  # bytes of a suffix that are kept
_LOCK = ".lock"
_PARTIAL = ".partial"
_LONGEST_NOTE = 1 << 20

# The name may be taken by a link or a pipe of someone else.
_UNFOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
# tempfile creates files that only their owner can read, and reading the umask means changing it for a moment.
# os.open with mode 0o666 lets the kernel apply the umask.
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)

_claims: dict[Path, tuple[int, int]] = {}  # staging path -> process, descriptor


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield an empty file beside ``target``, for the caller to rename to it; it is removed if it is still there.

    It has the suffix of ``target``, for libraries that choose a format by it. Raises IlgnetError if another process
    is writing ``target``, and OSError if the folder cannot be written.
    """
    with _staged(target, target.suffix, _create_file) as path:
        yield path


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target``; otherwise as `staged_file`."""
    with _staged(target, "", os.mkdir) as path:
        yield path


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder within ``TARGET.partial``; otherwise as `staged_folder`.

    What takes long and much space is in sight, and so is what a killed process left of it.  A ``TARGET.partial`` with
    anything else in it is someone's own, and refused.
    """
    path = _claim(target, _PARTIAL, os.mkdir)
    try:
        stage = path / MARK
        stage.mkdir()
        yield stage
    finally:
        _release(path)


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """Claim ``target`` for this process while the block writes files for it, in any order.

    Raises IlgnetError if another process has claimed it, or its folder cannot be written.
    """
    try:
        path = _claim(target, _LOCK, _create_file)
    except OSError as error:
        raise IlgnetError(f"{target}: cannot be written ({error.strerror}); give another folder") from error
    try:
        yield
    finally:
        _release(path)


def note_in_claim(target: Path, data: bytes) -> None:
    """Append to a note in the file by which this process has `claimed` a target; without such a file, do nothing."""
    owner, descriptor = _claims.get(_path(target, _LOCK), (0, -1))
    if owner == os.getpid():
        os.write(descriptor, data)


def note_of_killed(target: Path) -> bytes:
    """Return the note in the claim of a process that was killed; empty if there is none, or it is being written."""
    descriptor = -1
    try:
        descriptor = os.open(_path(target, _LOCK), os.O_RDONLY | _UNFOLLOWED)
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and lock(descriptor):
            return os.read(descriptor, _LONGEST_NOTE)
    except OSError:
        pass
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return b""


def discard_staged() -> None:
    """Remove what this process has staged; for a process that ends before its blocks do."""
    for path in list(_claims):
        _release(path)


def lock(descriptor: int) -> bool | None:
    """Lock an open file or folder until it is closed; return False if another process holds the lock.

    Returns None where there are no such locks, as on Windows and some network file systems.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def _staged(target: Path, suffix: str, create: Callable[[Path], None]) -> Iterator[Path]:
    path = _claim(target, suffix, create)
    try:
        yield path
    finally:
        _release(path)


def _path(target: Path, suffix: str, unique: str = "") -> Path:
    """Return the staging path of a target: hidden, but for a partial folder."""
    suffix = suffix if len(os.fsencode(suffix)) <= _SUFFIX else ""
    is_partial = suffix == _PARTIAL
    stem = target.name if is_partial else target.name.removesuffix(suffix)
    start, ending = ("", f"{unique}{suffix}") if is_partial else (".", f"{unique}.{MARK}{suffix}")
    room = _LONGEST_NAME - len(os.fsencode(start + ending))
    if len(os.fsencode(stem)) > room:
        digest = f"~{zlib.crc32(os.fsencode(stem)):08x}"
        stem = os.fsdecode(os.fsencode(stem)[: room - len(digest)]) + digest
    return target.with_name(f"{start}{stem}{ending}")


def _create_file(path: Path) -> None:
    os.close(os.open(path, _NEW, 0o666))


def _claim(target: Path, suffix: str, create: Callable[[Path], None]) -> Path:
    """Create and lock a staging path, in place of what a killed process left there; return it."""
    unique = "" if fcntl else f".{os.urandom(4).hex()}"
    while True:
        path = _path(target, suffix, unique)
        is_new = True
        try:
            create(path)
        except FileExistsError:
            is_new = False
            if suffix == _PARTIAL and not _is_left_over(path):
                raise IlgnetError(
                    f"{path}: was not left by a run of this command; remove it, or give another name"
                ) from None
        descriptor = _open(path, is_new)
        if descriptor is None:  # removed meanwhile, or neither a file nor a folder
            continue
        locked = lock(descriptor)
        if is_new and locked is not False and _is_at(path, descriptor):
            _claims[path] = os.getpid(), descriptor
            return path
        try:
            if locked is False:
                raise IlgnetError(
                    f"{target}: another process is writing it; wait for it, or give another name"
                )
            if locked is None:  # whether another process writes it is unknown here
                unique = f".{os.urandom(4).hex()}"
            elif _is_at(path, descriptor):
                _remove(path)
        finally:
            os.close(descriptor)


def _is_left_over(path: Path) -> bool:
    """Whether a partial folder is one that a process of this program makes or made: nothing else is in it."""
    try:
        return not path.is_symlink() and set(os.listdir(path)) <= {MARK}
    except FileNotFoundError:  # removed meanwhile
        return True
    except NotADirectoryError:
        return False


def _open(path: Path, is_new: bool) -> int | None:
    """Open a staging path for its lock; remove what is neither a file nor a folder."""
    if fcntl is None:  # Windows neither renames nor removes an open file
        return os.open(os.devnull, os.O_RDONLY)
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            # Network file systems lock only what is open for writing.
            write = os.O_RDWR if is_new and stat.S_ISREG(mode) else os.O_RDONLY
            return os.open(path, write | _UNFOLLOWED)
        os.unlink(path)
    except FileNotFoundError:
        pass
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the path still names the file that was opened."""
    if fcntl is None:
        return os.path.lexists(path)
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _release(path: Path) -> None:
    """Remove a staging path if it is still there, and end its claim."""
    owner, descriptor = _claims.pop(path, (0, -1))
    if owner != os.getpid():  # ended already, or claimed by the process that this one was forked from
        return
    try:
        if _is_at(path, descriptor):
            _remove(path)
    except OSError:
        pass  # the next run removes it
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
