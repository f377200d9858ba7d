"""Reading Caffe's LMDBs: rows in key order or by index, safe in worker processes."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from ..caffe.kinds import naming_kind
from ..errors import DataError
from ..schema import caffe_pb2
from .datum import DatumHeader, datum_header, datum_image, parse_datum
from .lmdb_pages import PageFile, Place
from .lmdb_read_environment import open_environment


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


class _Index:
    """The keys of all rows, one after another, and where their values are in the file."""

    def __init__(self, rows: Iterator[tuple[bytes, Place]]) -> None:
        self._keys, self._ends = bytearray(), array("q", [0])
        self._starts, self._sizes = array("q"), array("q")
        for key, place in rows:
            self._keys += key
            self._ends.append(len(self._keys))
            self._starts.append(place.start)
            self._sizes.append(place.size << 1 | place.is_large)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> tuple[bytes, Place]:
        size = self._sizes[number]
        key = self._keys[self._ends[number] : self._ends[number + 1]]
        return bytes(key), Place(self._starts[number], size >> 1, bool(size & 1))


class LmdbReader:
    """A Caffe LMDB of ``Datum`` rows, opened when first used; pickles as its path.

    Iteration is in key order, which is Caffe's reading order. ``reader[number]`` is random access; it keeps
    the keys and places in memory, about 50 bytes per row. Raises DataError if the folder is not an LMDB or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()  # LMDB identifies a database by its inode, not by the name of a link
        if not (self.path / "data.mdb").is_file():
            absent = DataError(
                f"{path}: is not an LMDB (no data.mdb); give the folder `ilgnet lmdb make` wrote"
            )
            raise naming_kind(absent, path, "an LMDB database")
        self._opened: PageFile | None = None
        self._index: _Index | None = None
        self._indexing = Lock()

    @property
    def _file(self) -> PageFile:
        if self._opened is None:
            self._opened = open_environment(self.path)
        return self._opened

    def __len__(self) -> int:
        return self._file.rows_tree.entries

    def __iter__(self) -> Iterator[Row]:
        for key, value in self._file.rows():
            yield Row(key, value)

    def headers(self) -> Iterator[tuple[bytes, DatumHeader]]:
        """Every key with its row's header; the images are not read from disk."""
        for key, value in self._file.headed():
            yield key, datum_header(value, key_text(key))

    def keys(self) -> Iterator[bytes]:
        """Every key, in order."""
        return (key for key, _ in self._file.places())

    def key(self, number: int) -> bytes:
        """The key of row ``number`` (from 0) in reading order. Raises IndexError beyond the last."""
        return self._indexed(number)[0]

    def __getitem__(self, number: int) -> Row:
        key, place = self._indexed(number)
        return Row(key, self._file.value(place))

    def _indexed(self, number: int) -> tuple[bytes, Place]:
        with self._indexing:
            if self._index is None:
                self._index = _Index(self._file.places())
        if not 0 <= number < len(self._index):
            raise IndexError(f"{self.path}: row {number} of {len(self._index)}")
        return self._index[number]

    def get(self, key: bytes) -> Row:
        """The row under a key. Raises DataError if there is none."""
        value = self._file.get(key)
        if value is None:
            raise DataError(f"{self.path}: has no row {key_text(key)}; `ilgnet lmdb info` prints its keys")
        return Row(key, value)

    def close(self) -> None:
        """Release the database; the next use reopens it."""
        self._opened = None

    def __reduce__(self) -> tuple[type[LmdbReader], tuple[Path]]:
        return LmdbReader, (self.path,)
