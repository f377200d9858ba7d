"""Files for libraries that end the process when a write fails: HDF5 and torch's archives do on a full disk."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from .atomic import atomic_path


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
