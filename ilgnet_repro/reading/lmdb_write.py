"""Writing an LMDB in atomic batches, with a map that grows."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb

from ..errors import DataError
from .lmdb_pages import check_pages

FIRST_MAP = 64 << 20
"""Initial map size in bytes; doubled whenever it is full, as Caffe does."""

MAX_KEY = 511
"""LMDB's limit on a key's length."""


class LmdbWriter:
    """Appends rows to the LMDB in a folder, which is created if missing.

    A batch is one transaction: after a kill it is stored completely or not at all.
    Raises DataError, in one line, if the folder cannot be written, holds a damaged database, or the disk is full.
    """

    def __init__(self, folder: str | os.PathLike[str], map_size: int = FIRST_MAP) -> None:
        self.folder = Path(folder)
        begun = self.folder / "data.mdb"
        if begun.exists() and begun.stat().st_size:
            check_pages(self.folder)  # LMDB trusts what it maps: a damaged file would end the process
        try:
            # No lock file: Caffe's readers would use it; the builder locks the whole build.
            self._handle = lmdb.open(
                os.fsencode(self.folder), map_size=map_size, lock=False, metasync=False, readahead=False
            )
        except (lmdb.Error, OSError) as error:
            raise self._failed(error) from error

    def write(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Store (key, value) rows in one transaction, growing the map as needed."""
        while rows:
            try:
                with self._handle.begin(write=True) as transaction:
                    for key, value in rows:
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                self._grow()
            except (lmdb.Error, OSError) as error:
                raise self._failed(error) from error

    def _grow(self) -> None:
        try:
            self._handle.set_mapsize(self._handle.info()["map_size"] * 2)
        except (lmdb.Error, OSError, OverflowError) as error:
            raise self._failed(error) from error

    def last_key(self) -> bytes | None:
        """The greatest key stored, or None if there is none."""
        with self._cursor() as cursor:
            return bytes(cursor.key()) if cursor.last() else None

    def first(self) -> tuple[bytes, bytes] | None:
        """The row with the least key, or None if there is none."""
        with self._cursor() as cursor:
            return (bytes(cursor.key()), bytes(cursor.value())) if cursor.first() else None

    @contextmanager
    def _cursor(self) -> Iterator[lmdb.Cursor]:
        try:
            with self._handle.begin() as transaction:
                yield transaction.cursor()
        except lmdb.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Flush everything to disk and close the database."""
        try:
            self._handle.sync(True)
        except (lmdb.Error, OSError) as error:
            raise self._failed(error) from error
        finally:
            self._handle.close()

    def _failed(self, error: Exception) -> DataError:
        # LMDB reports a write that a full disk cut short as an input/output error.
        if os.strerror(errno.ENOSPC) in str(error) or _free_bytes(self.folder) < 1 << 20:
            return DataError(
                f"{self.folder}: the disk is full; free some space and run the same command again"
            )
        return DataError(f"{self.folder}: cannot be written ({error}); give another folder")


def _free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(folder if folder.exists() else folder.parent).free
