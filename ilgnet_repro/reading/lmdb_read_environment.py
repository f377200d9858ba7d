"""LMDB environments for reading: one per process and path, reopened after a fork, with bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import lmdb

from ..errors import DataError

WINDOW = 64 << 20
"""Bytes read from a database before its memory map is released."""

PAGE = 4096


class Environment:
    """An open LMDB, shared by all readers of the process: LMDB must not be opened twice in one process.

    It is reopened after a fork, because an environment must not be used across one, and after every ``WINDOW``
    bytes read: that releases the mapped pages, so that memory does not grow with the database.
    Raises DataError if the folder is not an LMDB or data.mdb is truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        # No lock file: finished databases do not change, and may be on a read-only medium.
        try:
            self._handle = lmdb.open(
                os.fsencode(self.path), readonly=True, lock=False, create=False, max_dbs=0
            )
        except lmdb.Error as error:
            raise DataError(f"{self.path}: is not an LMDB ({error}); give the folder of data.mdb") from error
        self._process, self._guard = os.getpid(), Lock()
        self._transactions = self._read = 0
        pages = self._handle.info()["last_pgno"] + 1
        # LMDB maps the file: reading a page past its end would kill the process, not raise.
        needed, size = pages * self._handle.stat()["psize"], (self.path / "data.mdb").stat().st_size
        if size < needed:
            self._handle.close()
            raise DataError(f"{self.path}: data.mdb has {size} of {needed} bytes; copy or build it again")

    @contextmanager
    def transaction(self, buffers: bool = False) -> Iterator[lmdb.Transaction[Any]]:
        """A read transaction, which should end before it has read much more than ``WINDOW`` bytes.

        ``buffers`` returns views of the map instead of copies.
        """
        if self._process != os.getpid():
            self._reopen()
        with self._guard:
            if not self._transactions and self._read >= WINDOW:
                self._reopen()
            self._transactions += 1
        try:
            with self._handle.begin(buffers=True) if buffers else self._handle.begin() as transaction:
                yield transaction
        finally:
            with self._guard:
                self._transactions -= 1

    def _reopen(self) -> None:
        self._handle.close()
        self._open()

    def count(self, size: int) -> int:
        """Record that a row of this size was read; return the bytes counted for it, at least a page."""
        size = max(size, PAGE)
        self._read += size
        return size

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._handle.close()


_open_environments: WeakValueDictionary[Path, Environment] = WeakValueDictionary()


def open_environment(path: Path) -> Environment:
    """The environment of this process for an absolute path, opened if no reader uses it."""
    environment = _open_environments.get(path) or Environment(path)
    _open_environments[path] = environment
    return environment
