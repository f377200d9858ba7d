"""Reading Caffe's LMDBs: rows in key order or by index, safe in worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from ..caffe.kinds import naming_kind
from ..errors import DataError
from ..schema import caffe_pb2
from .datum import DatumHeader, datum_header, datum_image, parse_datum
from .lmdb_read_environment import WINDOW, Environment, open_environment


class Row(NamedTuple):
    """A row of a database: its key and the ``Datum`` under it, serialised."""

    key: bytes
    value: bytes

    def datum(self) -> caffe_pb2.Datum:
        return parse_datum(self.value, key_text(self.key))

    def image(self, colour: bool | None = None) -> tuple[np.ndarray, int]:
        """The image as (channels, height, width) and its label; see ``datum_image``."""
        datum = self.datum()
        return datum_image(datum, key_text(self.key), colour), datum.label


def row_key(number: int, path: str) -> bytes:
    """The key of row ``number`` of a list in convert_imageset: ``%08d_path``."""
    return b"%08d_" % number + os.fsencode(path)


def split_key(key: bytes) -> tuple[int, str]:
    """The list's row number and the path within a key. Raises DataError if it is not ``%08d_path``."""
    number, separator, path = key.partition(b"_")
    if not separator or not number.isdigit() or len(number) < 8:
        raise DataError(f"{key_text(key)}: is not a key of convert_imageset (`%08d_path`)")
    return int(number), os.fsdecode(path)


def key_text(key: bytes) -> str:
    """A key as printable text."""
    return key.decode("utf-8", "backslashreplace")


class LmdbReader:
    """A Caffe LMDB of ``Datum`` rows, opened when first used; pickles as its path.

    Iteration is in key order, which is Caffe's reading order. ``reader[number]`` is random access; it keeps
    the keys in memory, about 30 bytes per row. Raises DataError if the folder is not an LMDB or is truncated.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()  # LMDB identifies a database by its inode, not by the name of a link
        if not (self.path / "data.mdb").is_file():
            absent = DataError(
                f"{path}: is not an LMDB (no data.mdb); give the folder `ilgnet lmdb make` wrote"
            )
            raise naming_kind(absent, path, "an LMDB database")
        self._opened: Environment | None = None
        self._keys: tuple[bytes, np.ndarray] | None = None
        self._indexing = Lock()

    @property
    def _environment(self) -> Environment:
        if self._opened is None:
            self._opened = open_environment(self.path)
        return self._opened

    def __len__(self) -> int:
        with self._environment.transaction() as transaction:
            return transaction.stat()["entries"]

    def __iter__(self) -> Iterator[Row]:
        for key, value in self._scan():
            yield Row(key, value)

    def headers(self) -> Iterator[tuple[bytes, DatumHeader]]:
        """Every key with its row's header; the images are not read from disk."""
        for key, value in self._scan(buffers=True):
            yield bytes(key), datum_header(value, key_text(bytes(key)))

    def keys(self) -> Iterator[bytes]:
        """Every key, in order."""
        return (bytes(key) for key, _ in self._scan(buffers=True))

    def _scan(self, buffers: bool = False) -> Iterator[tuple[Any, Any]]:
        """All rows, in transactions of about ``WINDOW`` bytes. A view is valid until the next row only."""
        environment = self._environment
        last, more = b"", True
        while more:
            with environment.transaction(buffers) as transaction:
                cursor = transaction.cursor()
                more = cursor.set_key(last) and cursor.next() if last else cursor.first()
                budget = WINDOW
                while more and budget > 0:
                    key, value = cursor.item()
                    budget -= environment.count(len(value))
                    last = bytes(key)
                    yield key, value
                    del key, value
                    more = cursor.next()

    def key(self, number: int) -> bytes:
        """The key of row ``number`` (from 0) in reading order. Raises IndexError beyond the last."""
        with self._indexing:
            if self._keys is None:
                self._keys = self._pack_keys()
        text, ends = self._keys
        if not 0 <= number < len(ends) - 1:
            raise IndexError(f"{self.path}: row {number} of {len(ends) - 1}")
        return text[ends[number] : ends[number + 1]]

    def _pack_keys(self) -> tuple[bytes, np.ndarray]:
        """All keys one after another, and where each ends, from 0."""
        packed = bytearray()
        ends = np.zeros(len(self) + 1, np.int64)
        for index, key in enumerate(self.keys(), 1):
            packed += key
            ends[index] = len(packed)
        return bytes(packed), ends

    def __getitem__(self, number: int) -> Row:
        return self.get(self.key(number))

    def get(self, key: bytes) -> Row:
        """The row under a key. Raises DataError if there is none."""
        with self._environment.transaction() as transaction:
            value = transaction.get(key)
        if value is None:
            raise DataError(f"{self.path}: has no row {key_text(key)}; `ilgnet lmdb info` prints its keys")
        self._environment.count(len(value))
        return Row(key, value)

    def close(self) -> None:
        """Release the database; the next use reopens it."""
        self._opened = None

    def __reduce__(self) -> tuple[type[LmdbReader], tuple[Path]]:
        return LmdbReader, (self.path,)
