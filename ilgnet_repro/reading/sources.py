"""Row sources of data layers: LMDBs, image lists and HDF5 files, read by index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..caffe.fork_fields import refusal
from ..caffe.graph import Node
from ..caffe.kinds import kind_named
from ..errors import DataError, LayerError
from ..schema import caffe_pb2 as pb
from .fed_arrays import TYPES as FED
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


class ImageSource:
    """Images and labels of a Data or ImageData layer, each image by the layer's ``transform_param``.

    ``colour`` is how images are decoded: None keeps the channels of an encoded row.
    """

    in_order = False

    def __init__(self, node: Node, root: Path, rows: ImageRows, colour: bool | None = None) -> None:
        for field in node.layer.fork_field:
            if field.path.startswith("transform_param."):
                what = refusal(field, node.layer.DESCRIPTOR)
                raise LayerError(node.name, node.type, what, option="ignore_fields")
        self.transform = Transform.from_param(node.layer.transform_param, node.phase, root)
        self.rows, self.colour = rows, self.transform.colour if colour is None else colour
        self.draws = self.transform.random

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int, rng: np.random.Generator | None) -> Row:
        image, label = self.rows.image(index, self.colour)
        return self.transform(image, rng), float(label)


def _database_source(node: Node, root: Path) -> ImageSource:
    """A Data layer's database."""
    param = node.layer.data_param
    folder = Path(root, param.source)
    if param.backend != pb.DataParameter.LMDB and not (folder / "data.mdb").is_file():
        raise LayerError(
            node.name,
            node.type,
            f"backend LEVELDB of {param.source} is not read; make an LMDB with `ilgnet lmdb make`",
        )
    return ImageSource(node, root, DatabaseRows(folder))


def _list_source(node: Node, root: Path) -> ImageSource:
    """An ImageData layer's list of image files."""
    param = node.layer.image_data_param
    if bool(param.new_height) != bool(param.new_width):
        raise LayerError(node.name, node.type, "new_height and new_width must be set together")
    folder = param.root_folder
    if not Path(folder).is_absolute():
        folder = str(Path(root)) + "/" + folder
    size = (param.new_height, param.new_width) if param.new_height else None
    return ImageSource(node, root, ListRows(Path(root, param.source), folder, size), param.is_color)


class Hdf5Source:
    """An HDF5Data layer's files, concatenated; each top is the dataset of its name."""

    draws = False
    in_order = True  # one file is in memory at a time

    def __init__(self, node: Node, root: Path) -> None:
        self._where = f"{node.name} ({node.type})"
        self._tops = node.top_names
        source = Path(root, node.layer.hdf5_data_param.source)
        with kind_named(source, "a list of HDF5 files"):
            self._paths = [Path(root, line.strip()) for line in self._lines(source) if line.strip()]
            self._starts = np.cumsum([0, *(self._rows_of(path) for path in self._paths)])
        self._open: tuple[int, dict[str, np.ndarray]] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int, rng: np.random.Generator | None) -> Row:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        # One file in memory at a time, as in Caffe.
        if self._open is None or self._open[0] != number:
            self._open = number, self._load(self._paths[number])
        offset = index - int(self._starts[number])
        return tuple(np.asarray(self._open[1][top][offset], np.float32) for top in self._tops)

    def _lines(self, source: Path) -> list[str]:
        try:
            return source.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not text"
            raise DataError(f"{self._where}: source {source}: {reason}; give a list of files") from error

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
            file = h5py.File(path, "r")
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise DataError(f"{self._where}: {path}: cannot be read as HDF5; check the list") from error
        for top in self._tops:
            dataset = file.get(top)
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub":
                file.close()
                raise DataError(
                    f"{self._where}: {path}: has no numeric dataset {top!r}; name the tops as the datasets"
                )
        return file


# Data layers that read files; all their messages have source and batch_size.
SOURCES: dict[str, Callable[[Node, Path], Source]] = {
    "Data": _database_source,
    "ImageData": _list_source,
    "HDF5Data": Hdf5Source,
}


def open_source(node: Node, root: Path) -> Source:
    """Open the source of a data layer.  Raises LayerError, by name, for layers that only a caller can feed."""
    if node.type not in SOURCES:
        raise LayerError(
            node.name,
            node.type,
            "nothing feeds it while training; use a Data, ImageData, HDF5Data or DummyData layer"
            + (", or feed it from Python (arrays={'TOP': array})" if node.type in FED else ""),
        )
    source = SOURCES[node.type](node, root)
    if not len(source):
        raise LayerError(node.name, node.type, "its source has no rows; build it again")
    return source
