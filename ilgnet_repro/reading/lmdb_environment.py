"""LMDBs opened for reading: once a process, again after a fork, never holding much of the file in memory."""

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
"""Bytes read from a database before its map is given back."""

PAGE = 4096


class Environment:
    """An open LMDB, shared by all readers of the process, as LMDB must not be opened twice in one.

    It is opened anew after a fork, which no environment may be carried over, and after every ``WINDOW`` bytes
    that were read: that lets go of the mapped pages, so that memory does not grow with the database.
    Raises DataError if the folder is no LMDB or data.mdb is cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        # No lock file: finished databases do not change, and may lie on a medium that cannot be written.
        try:
            self._handle = lmdb.open(
                os.fsencode(self.path), readonly=True, lock=False, create=False, max_dbs=0
            )
        except lmdb.Error as error:
            raise DataError(
                f"{self.path}: is not an LMDB ({error}); give the folder that holds data.mdb"
            ) from error
        self._process, self._guard = os.getpid(), Lock()
        self._live = self._read = 0
        pages = self._handle.info()["last_pgno"] + 1
        # LMDB maps the file: reading a page beyond its end would end the process, not raise.
        needed, size = pages * self._handle.stat()["psize"], (self.path / "data.mdb").stat().st_size
        if size < needed:
            self._handle.close()
            raise DataError(f"{self.path}: data.mdb has {size} bytes of {needed}; copy or build it again")

    @contextmanager
    def transaction(self, buffers: bool = False) -> Iterator[lmdb.Transaction[Any]]:
        """A read transaction, which should end before it has read much more than ``WINDOW`` bytes.

        ``buffers`` gives views of the map instead of copies.
        """
        if self._process != os.getpid():
            self._reopen()
        with self._guard:
            if not self._live and self._read >= WINDOW:
                self._reopen()
            self._live += 1
        try:
            with self._handle.begin(buffers=True) if buffers else self._handle.begin() as transaction:
                yield transaction
        finally:
            with self._guard:
                self._live -= 1

    def _reopen(self) -> None:
        self._handle.close()
        self._open()

    def count(self, size: int) -> int:
        """Note that a row of this size was read; gives what that counts for, at least a page."""
        size = max(size, PAGE)
        self._read += size
        return size

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._handle.close()


_open_environments: WeakValueDictionary[Path, Environment] = WeakValueDictionary()


def open_environment(path: Path) -> Environment:
    """The environment of this process for an absolute path, opened if no reader holds it."""
    environment = _open_environments.get(path) or Environment(path)
    _open_environments[path] = environment
    return environment
