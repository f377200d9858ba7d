"""Writing an LMDB in batches, each whole or absent, with a map that grows."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import lmdb

from ..errors import DataError

FIRST_MAP = 64 << 20
"""Bytes of address space to begin with; doubled whenever they are full, as Caffe does."""

MAX_KEY = 511
"""LMDB's limit on a key's length."""


class LmdbWriter:
    """Appends rows to the LMDB in a folder, which is made if absent.

    A batch is one transaction: after a kill it is there whole or not at all.
    Raises DataError, in one line, if the folder cannot be written or the disk is full.
    """

    def __init__(self, folder: str | os.PathLike[str], map_size: int = FIRST_MAP) -> None:
        self.folder = Path(folder)
        try:
            # No lock file (Caffe's readers would take it for theirs); the builder locks the whole build.
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
        """The greatest key stored, or None where there is none."""
        with self._handle.begin() as transaction:
            cursor = transaction.cursor()
            return cursor.key() if cursor.last() else None

    def first(self) -> tuple[bytes, bytes] | None:
        """The row with the least key, or None where there is none."""
        with self._handle.begin() as transaction:
            cursor = transaction.cursor()
            return cursor.item() if cursor.first() else None

    def close(self) -> None:
        """Bring everything to the disk and let go of it."""
        try:
            self._handle.sync(True)
        except (lmdb.Error, OSError) as error:
            raise self._failed(error) from error
        finally:
            self._handle.close()

    def _failed(self, error: Exception) -> DataError:
        # LMDB tells of a write cut short by a full disk as an input/output error.
        if os.strerror(errno.ENOSPC) in str(error) or _room(self.folder) < 1 << 20:
            return DataError(
                f"{self.folder}: the disk is full; free some space and run the same command again"
            )
        return DataError(f"{self.folder}: cannot be written ({error}); give another folder")


def _room(folder: Path) -> int:
    """Bytes free on the disk a folder is, or would be, on."""
    return shutil.disk_usage(folder if folder.exists() else folder.parent).free
