"""Reading Caffe's LMDBs: rows in key order or by index, safe in worker processes."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from ..caffe.expected_kind import naming_kind
from ..caffe.kinds import Kind, kind_of
from ..errors import DataError, FormatError
from ..files import real_path
from ..schema import caffe_pb2
from .annotated import Box, boxes
from .datum import DatumHeader, datum_header, datum_image, parse_datum
from .lmdb_pages import PageFile, Place
from .lmdb_read_environment import open_environment


class Row(NamedTuple):
    """A row of a database: its key and the ``Datum`` under it, serialised."""

    key: bytes
    value: bytes

    def datum(self) -> caffe_pb2.Datum:
        return parse_datum(self.value, key_text(self.key))

    def boxes(self) -> tuple[Box, ...]:
        """The boxes of an AnnotatedDatum; none in a Datum."""
        return boxes(self.value, key_text(self.key))

    def image(self, colour: bool | None = None) -> tuple[np.ndarray, int]:
        """The image as (channels, height, width) and its label; see ``datum_image``."""
        datum = self.datum()
        return datum_image(datum, key_text(self.key), colour), datum.label


class RowBlock(NamedTuple):
    """The keys of consecutive rows, and where their values are."""

    keys: list[bytes]
    places: list[Place]


def row_key(number: int, path: str) -> bytes:
    """The key of row ``number`` of a list in convert_imageset: ``%08d_path``."""
    return b"%08d_" % number + os.fsencode(path)


def split_key(key: bytes) -> tuple[int, str]:
    """The list's row number and the path within a key. Raises DataError if it is not ``%08d_path``."""
    number, separator, path = key.partition(b"_")
    if not separator or not number.isdigit() or len(number) < 8:
        raise DataError(f"{key_text(key)}: is not a key of convert_imageset (`%08d_path`)")
    return int(number), os.fsdecode(path)


def key_name(key: bytes) -> str:
    """The path within a key of convert_imageset; a key of another tool as it is."""
    try:
        return split_key(key)[1]
    except DataError:
        return key_text(key)


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

    ``path`` is its folder, or the file of an LMDB without one; ``PATH#NAME`` is the database NAME in it.
    Iteration is in key order, which is Caffe's reading order. ``reader[number]`` is random access; it keeps
    the keys and places in memory, about 50 bytes per row. Raises DataError if the folder is not an LMDB or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        found, self.name = split_database(path)
        self.path = real_path(found)  # LMDB identifies a database by its inode, not by the name of a link
        if not is_database(self.path):
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
            self._opened = open_environment(self.path, self.name)
        return self._opened

    def __len__(self) -> int:
        return self._file.rows_tree.entries

    @property
    def file_bytes(self) -> int:
        """The size of its file."""
        return self._file.size

    def __iter__(self) -> Iterator[Row]:
        for key, value in self._file.rows():
            yield Row(key, value)

    def blocks(self, rows: int, size: int) -> Iterator[RowBlock]:
        """Every row in key order, in blocks of at most so many rows and bytes whose values are evenly spaced in the file."""
        keys: list[bytes] = []
        places: list[Place] = []
        next_place: Place | None = None  # of the row that continues the spacing of the last two
        spacing, most = 0, rows
        for key, place in self._file.places():
            if place != next_place or len(places) >= most:
                spacing = place.start - places[0].start if len(places) == 1 else 0
                most = min(rows, size // max(spacing, 1))
                is_near = 0 < spacing <= 2 * place.size + 4096
                if not is_near or most < 2 or place[1:] != places[0][1:]:
                    if places:
                        yield RowBlock(keys, places)
                    keys, places, spacing = [], [], 0
            keys.append(key)
            places.append(place)
            next_place = Place(place.start + spacing, place.size, place.is_large) if spacing else None
        if places:
            yield RowBlock(keys, places)

    def rows_of(self, block: RowBlock) -> list[Row]:
        """The rows of a block."""
        pairs = zip(block.keys, block.places, strict=True)
        return [Row(key, self._file.value(place)) for key, place in pairs]

    def stacked(self, block: RowBlock) -> np.ndarray | None:
        """The values of a block of large ones, rows × bytes, by one read; None for any other block."""
        first, count = block.places[0], len(block.places)
        if count == 1 or not first.is_large:
            return None
        spacing = block.places[1].start - first.start
        data = self._file.read(first.start - 16, (count - 1) * spacing + 16 + first.size)
        shape, steps = (count, 16 + first.size), (spacing, 1)
        stack = np.lib.stride_tricks.as_strided(np.frombuffer(data, np.uint8), shape, steps, writeable=False)
        self._file.check_overflows(block.places, stack[:, :16].tobytes())
        return stack[:, 16:]

    def headers(self) -> Iterator[tuple[bytes, DatumHeader]]:
        """Every key with its row's header; the images are not read from disk."""
        for key, value in self._file.headed():
            yield key, datum_header(value, key_text(key))

    def annotated_headers(self) -> Iterator[tuple[bytes, DatumHeader, tuple[Box, ...]]]:
        """Every key with its row's header and boxes; the images are not read from disk."""
        for key, value in self._file.headed():
            where = key_text(key)
            yield key, datum_header(value, where), boxes(value, where)

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

    def __reduce__(self) -> tuple[type[LmdbReader], tuple[str]]:
        return LmdbReader, (join_database(self.path, self.name),)


def split_database(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The path of a database and the name in it, from ``PATH#NAME``; a path that exists has no name."""
    text = os.fspath(path)
    found, separator, name = text.rpartition("#")
    return (found, name) if separator and found and not os.path.lexists(text) else (text, "")


def join_database(path: str | os.PathLike[str], name: str) -> str:
    """``PATH#NAME``, or the path where there is no name."""
    return f"{os.fspath(path)}#{name}" if name else os.fspath(path)


def is_database(path: str | os.PathLike[str]) -> bool:
    """Whether there is an LMDB: a folder with data.mdb, or a file by itself; ``PATH#NAME`` too."""
    found = Path(split_database(path)[0])
    try:
        if found.is_dir():
            return (found / "data.mdb").is_file()
        return found.is_file() and kind_of(found) is Kind.LMDB
    except (OSError, ValueError, FormatError):
        return False
