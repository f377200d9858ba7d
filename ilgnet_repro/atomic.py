"""Writing files that are either whole or absent: a temporary name first, then a rename."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import IlgnetError


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
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
    except ValueError as error:  # a zero byte
        raise IlgnetError(f"{path}: cannot be written ({error}); give another name") from error
    except OSError as error:
        raise IlgnetError(f"{path}: cannot be written ({error.strerror}); give another folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner can read; a result is as open as any other file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except OSError as error:
        raise IlgnetError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


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
