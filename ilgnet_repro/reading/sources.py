"""Row sources of data layers: LMDBs, image lists and HDF5 files, read by index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..caffe.expected_kind import kind_named
from ..caffe.expected_kind import refusal as refusal_of_kind
from ..caffe.fork_fields import refusal
from ..caffe.graph import Node
from ..caffe.kinds import Kind, kind_of
from ..caffe.named_files import NamedFiles
from ..errors import DataError, LayerError
from ..files import open_input, utf8_path
from ..schema import caffe_pb2 as pb
from .fed_arrays import TYPES as FED
from .image_list import find_image, read_list
from .lmdb_read import is_database, join_database, split_database
from .rows import DatabaseRows, ImageRows, ListRows
from .transforms import Transform

Row = tuple[np.ndarray | float, ...]


class Source(Protocol):
    """Rows by index, one value per top.

    ``draws`` is whether reading one needs a random generator, ``in_order`` whether one thread must read them.
    """

    draws: bool
    in_order: bool

    def __len__(self) -> int: ...
    def row(self, index: int, rng: np.random.Generator | None) -> Row: ...
    def where(self, index: int) -> str:
        """How messages name a row."""
        ...


class ImageSource:
    """Images and labels of a Data or ImageData layer, each image by the layer's ``transform_param``.

    ``colour`` is how images are decoded: None keeps the channels of an encoded row.
    """

    in_order = False

    def __init__(self, node: Node, files: NamedFiles, rows: ImageRows, colour: bool | None = None) -> None:
        for field in node.layer.fork_field:
            if field.path.startswith("transform_param."):
                what = refusal(field, node.layer.DESCRIPTOR)
                raise LayerError(node.name, node.type, what, option="ignore_fields")
        self.transform = Transform.from_param(node.layer.transform_param, node.phase, files)
        self.rows, self.colour = rows, self.transform.colour if colour is None else colour
        self.draws = self.transform.random

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int, rng: np.random.Generator | None) -> Row:
        image, label = self.rows.image(index, self.colour)
        return self.transform(image, rng), float(label)

    def where(self, index: int) -> str:
        return self.rows.where(index)


def _database_source(node: Node, files: NamedFiles) -> ImageSource:
    """A Data layer's database."""
    param = node.layer.data_param
    source, name = param.source, ""
    if not files.first(source, Path.exists).exists():
        source, name = split_database(source)
    database = join_database(files.find(source), name)
    if param.backend != pb.DataParameter.LMDB and not is_database(database):
        raise LayerError(
            node.name,
            node.type,
            f"backend LEVELDB of {param.source} is not read; convert it with `ilgnet lmdb from-leveldb`",
        )
    return ImageSource(node, files, DatabaseRows(database))


def _list_source(node: Node, files: NamedFiles) -> ImageSource:
    """An ImageData layer's list of image files."""
    param = node.layer.image_data_param
    if bool(param.new_height) != bool(param.new_width):
        raise LayerError(node.name, node.type, "new_height and new_width must be set together")
    listed = files.find(param.source)
    size = (param.new_height, param.new_width) if param.new_height else None
    rows = ListRows(listed, param.root_folder, size)
    for note in rows.images.notes():
        files.note(note)
    if len(rows):
        _find_images(rows, files.beside(listed))
    return ImageSource(node, files, rows, param.is_color)


def _find_images(rows: ListRows, files: NamedFiles) -> None:
    """Set the folder of a list's images to the one that has the first: as written, else beside a text or the list."""
    written, first = rows.root or ".", rows.name(0)
    folder = files.first(
        written,
        lambda place: os.path.lexists(find_image(os.fspath(place) if rows.root else "", first, place)),
    )
    if folder != files.root / written:
        files.note(f"{rows.where(0)} does not exist; {folder} is taken as the folder of the images")
    if rows.root:
        rows.root = os.fspath(folder)
    else:  # a name in the list may be absolute
        rows.base = folder


class Hdf5Source:
    """An HDF5Data layer's files, concatenated; each top is the dataset of its name."""

    draws = False
    in_order = True  # one file is in memory at a time

    def __init__(self, node: Node, files: NamedFiles) -> None:
        self._where = f"{node.name} ({node.type})"
        self._tops = node.top_names
        source = files.find(node.layer.hdf5_data_param.source)
        with kind_named(source, "a list of HDF5 files"):
            self._paths = list(self._listed(source, files.beside(source)))
            self._starts = np.cumsum([0, *(self._rows_of(path) for path in self._paths)])
        self._open: tuple[int, dict[str, np.ndarray]] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int, rng: np.random.Generator | None) -> Row:
        number = self._file_of(index)
        # One file in memory at a time, as in Caffe.
        if self._open is None or self._open[0] != number:
            self._open = number, self._load(self._paths[number])
        offset = index - int(self._starts[number])
        return tuple(np.asarray(self._open[1][top][offset], np.float32) for top in self._tops)

    def where(self, index: int) -> str:
        number = self._file_of(index)
        return f"row {index - int(self._starts[number])} of {self._paths[number]}"

    def _file_of(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _listed(self, source: Path, files: NamedFiles) -> Iterator[Path]:
        """The files that a list names, one per row; Caffe also separates them at spaces."""
        try:
            lines = read_list(source).splitlines()
        except OSError as error:
            raise DataError(
                f"{self._where}: source {source}: {error.strerror}; give a list of files"
            ) from error
        if kind_of(source) is Kind.HDF5:
            raise refusal_of_kind(source, Kind.HDF5, "a list of HDF5 files")
        for line in (os.fsdecode(line.strip()) for line in lines):
            is_one = files.first(line, Path.is_file).is_file()
            yield from map(files.find, [line] if is_one else line.split())

    def _rows_of(self, path: Path) -> int:
        with self._file(path) as file:
            counts = {int(file[top].shape[0]) if file[top].ndim else 0 for top in self._tops}
        if len(counts) != 1 or 0 in counts:
            raise DataError(
                f"{self._where}: {path}: its datasets must have the same number of rows, at least one"
            )
        return counts.pop()

    def _load(self, path: Path) -> dict[str, np.ndarray]:
        with self._file(path) as file:
            return {top: file[top][()] for top in self._tops}

    def _file(self, path: Path) -> Any:
        try:
            import h5py
        except ImportError as error:
            raise DataError(f"{self._where}: HDF5 needs h5py; pip install 'ilgnet_repro[hdf5]'") from error
        try:
            open_input(path).close()  # HDF5 would wait for a pipe
            with utf8_path(path) as name:
                file = h5py.File(name, "r")
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            what = "cannot be read as HDF5" if path.is_file() else "no such file"
            raise DataError(f"{self._where}: {path}: {what}; check the list") from error
        for top in self._tops:
            dataset = file.get(top)
            is_dataset = isinstance(dataset, h5py.Dataset)
            if is_dataset and dataset.dtype.kind in "SOU":
                file.close()
                raise DataError(
                    f"{self._where}: {path}: dataset {top!r} holds text; store numbers, such as class indices"
                )
            if not is_dataset or dataset.dtype.kind not in "fiub":
                file.close()
                raise DataError(
                    f"{self._where}: {path}: has no numeric dataset {top!r}; name the tops as the datasets"
                )
        return file


# Data layers that read files; all their messages have source and batch_size.
SOURCES: dict[str, Callable[[Node, NamedFiles], Source]] = {
    "Data": _database_source,
    "ImageData": _list_source,
    "HDF5Data": Hdf5Source,
}

WINDOWS = "WindowData"  # its rows are sampled (windows.py)
READING_TYPES = (*SOURCES, WINDOWS)


def open_source(node: Node, files: NamedFiles) -> Source:
    """Open the source of a data layer.  Raises LayerError, by name, for layers that only a caller can feed."""
    if node.type not in SOURCES:
        raise LayerError(node.name, node.type, f"nothing feeds it while training; {_instead(node)}")
    source = SOURCES[node.type](node, files)
    if not len(source):
        raise LayerError(node.name, node.type, "its source has no rows; build it again")
    return source


def _instead(node: Node) -> str:
    """Return how to train a net with a layer that only a caller can feed."""
    loop = "feed its tops in a loop over net.loss (docs/torch.md)"
    if node.type == "Python":
        return f"run its class by a script for pycaffe (docs/pycaffe.md), or {loop}"
    other = "feed it from Python (arrays={'TOP': array})" if node.type in FED else loop
    return f"use a Data, ImageData, HDF5Data or DummyData layer, or {other}"
