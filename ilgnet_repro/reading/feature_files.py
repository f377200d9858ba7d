"""Files of features: an LMDB of Datums with float_data as Caffe's extract_features writes them, HDF5, or npz."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from zipfile import ZipFile

import numpy as np

from ..errors import DataError
from ..files import atomic_file, check_output, deferred_file, writing
from ..schema import caffe_pb2
from ..staging import partial_folder
from .lmdb_read import key_text
from .lmdb_write import MAX_KEY, LmdbWriter

HDF5_SUFFIXES = (".h5", ".hdf5")
_ROWS, _BYTES = 256, 32 << 20  # of a transaction


class FeatureRow(NamedTuple):
    """One row: its key, its label if it has one, and its values of each blob."""

    key: bytes
    label: int | None
    values: Mapping[str, np.ndarray]


class FeatureWriter(Protocol):
    """Takes rows one after another."""

    def add(self, rows: Sequence[FeatureRow]) -> None: ...


def feature_datum(values: np.ndarray, label: int | None = None) -> bytes:
    """Serialise one row of a blob as Caffe's extract_features does: shape and float_data, no label.

    Axes that the blob lacks are 1. Raises DataError for one with more than four axes.
    """
    if values.ndim > 3:
        raise DataError(
            f"a row of shape {values.shape}: a Datum holds (channels, height, width); write HDF5 or npz"
        )
    channels, height, width = [*values.shape, 1, 1, 1][:3]
    datum = caffe_pb2.Datum(channels=channels, height=height, width=width)
    if label is not None:
        datum.label = label
    datum.float_data.extend(np.asarray(values, np.float32).ravel().tolist())
    return datum.SerializeToString()


def database_paths(out: str | os.PathLike[str], blobs: Sequence[str]) -> dict[str, Path]:
    """The LMDB of each blob: ``out`` itself, or ``OUT_BLOB`` where there are several."""
    if len(blobs) == 1:
        return {blobs[0]: Path(out)}
    return {blob: Path(f"{os.fspath(out)}_{blob.replace('/', '_')}") for blob in blobs}


def output_paths(out: str | os.PathLike[str], blobs: Sequence[str]) -> list[Path]:
    """The files or folders that `write_features` makes."""
    return list(database_paths(out, blobs).values()) if _is_database(out) else [Path(out)]


def _is_database(out: str | os.PathLike[str]) -> bool:
    return Path(out).suffix.lower() not in (*HDF5_SUFFIXES, ".npz")


@contextmanager
def write_features(out: str | os.PathLike[str], blobs: Sequence[str]) -> Iterator[FeatureWriter]:
    """Yield a writer of ``out``: ``.npz``, ``.h5`` or ``.hdf5`` by its suffix, else an LMDB for each blob.

    Files and folders appear, complete, when the block succeeds. Raises DataError if a folder exists or cannot be written.
    """
    if _is_database(out):
        with write_databases(database_paths(out, blobs)) as writer:
            yield writer
    elif Path(out).suffix.lower() == ".npz":
        arrays = _Arrays(blobs)
        yield arrays
        with atomic_file(out) as file, ZipFile(file, "w") as archive:
            for name, array in arrays.collected().items():  # not np.savez, whose own arguments are names too
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    else:
        with _hdf5(out, blobs) as writer:
            yield writer


class _Databases:
    def __init__(self, writers: Mapping[str, LmdbWriter]) -> None:
        self._writers = writers
        self._batches: dict[str, list[tuple[bytes, bytes]]] = {blob: [] for blob in writers}
        self._sizes = dict.fromkeys(writers, 0)

    def add(self, rows: Sequence[FeatureRow]) -> None:
        for row in rows:
            if not 0 < len(row.key) <= MAX_KEY:
                raise DataError(
                    f"{key_text(row.key)}: is a key of {len(row.key)} bytes; LMDB takes 1 to {MAX_KEY}"
                )
            for blob, values in row.values.items():
                value = feature_datum(values, row.label)
                self._batches[blob].append((row.key, value))
                self._sizes[blob] += len(value)
                if len(self._batches[blob]) == _ROWS or self._sizes[blob] >= _BYTES:
                    self._write(blob)

    def _write(self, blob: str) -> None:
        self._writers[blob].write(self._batches[blob])
        self._batches[blob], self._sizes[blob] = [], 0

    def finish(self) -> None:
        for blob in self._writers:
            self._write(blob)


@contextmanager
def write_databases(paths: Mapping[str, Path]) -> Iterator[FeatureWriter]:
    """Yield a writer of an LMDB for each blob; none appears unless the block succeeds."""
    for path in paths.values():
        if os.path.lexists(path):
            raise DataError(f"{path}: already exists; remove it or give another name")
    with ExitStack() as stack:
        folders, writers = {}, {}
        for blob, path in paths.items():
            stack.enter_context(writing(path, DataError))
            folders[blob] = stack.enter_context(partial_folder(path))
            writers[blob] = LmdbWriter(folders[blob])
        databases = _Databases(writers)
        try:
            yield databases
            databases.finish()
        finally:
            for writer in writers.values():
                writer.close()
        for blob, path in paths.items():
            if os.path.lexists(path):  # a rename would replace an empty folder
                raise DataError(f"{path}: was created meanwhile; remove it or give another name")
            folders[blob].rename(path)


class _Arrays:
    """Rows in memory, as the arrays of an npz file."""

    def __init__(self, blobs: Sequence[str]) -> None:
        self._keys: list[str] = []
        self._labels: list[int] = []
        self._values: dict[str, list[np.ndarray]] = {blob: [] for blob in blobs}

    def add(self, rows: Sequence[FeatureRow]) -> None:
        for row in rows:
            self._keys.append(key_text(row.key))
            self._labels += [] if row.label is None else [row.label]
            for blob, values in row.values.items():
                self._values[blob].append(np.array(values, np.float32))

    def collected(self) -> dict[str, np.ndarray]:
        return {
            **({"label": np.array(self._labels, np.int64)} if self._labels else {}),
            "key": np.array(self._keys),
            **{blob: np.stack(values) for blob, values in self._values.items()},
        }


@contextmanager
def _hdf5(out: str | os.PathLike[str], blobs: Sequence[str]) -> Iterator[FeatureWriter]:
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{out}: HDF5 needs h5py; pip install 'ilgnet_repro[hdf5]'") from error
    with deferred_file(out) as raw, h5py.File(raw, "w") as file:
        yield _Hdf5(file, h5py.string_dtype(), blobs)


class _Hdf5:
    """Datasets that grow: one for each blob, ``key`` and ``label``, as an HDF5Data layer reads them."""

    def __init__(self, file: Any, text: Any, blobs: Sequence[str]) -> None:
        self._file, self._text, self._blobs = file, text, blobs

    def add(self, rows: Sequence[FeatureRow]) -> None:
        if not rows:
            return
        for blob in self._blobs:
            self._append(blob, np.stack([np.asarray(row.values[blob], np.float32) for row in rows]))
        self._append("key", np.array([key_text(row.key) for row in rows], object), self._text)
        if rows[0].label is not None:
            self._append("label", np.array([row.label for row in rows], np.int64))

    def _append(self, name: str, values: np.ndarray, kind: Any = None) -> None:
        if name not in self._file:
            shape = (None, *values.shape[1:])
            self._file.create_dataset(name, data=values, maxshape=shape, dtype=kind, chunks=True)
            return
        dataset = self._file[name]
        start = dataset.shape[0]
        dataset.resize(start + len(values), axis=0)
        dataset[start:] = values


def check_names(
    blobs: Sequence[str],
    out: str | os.PathLike[str] | None,
    inputs: Sequence[str | os.PathLike[str]],
) -> None:
    """Raise IlgnetError for outputs that would replace an input or each other, and for names that are taken."""
    if not blobs or len(set(blobs)) != len(blobs):
        raise DataError(
            f"blobs {', '.join(blobs) or 'none'}: name at least one, and each once", option="blobs"
        )
    if out is None:
        return
    if not _is_database(out) and (taken := {"key", "label"}.intersection(blobs)):
        raise DataError(f"{out}: {taken.pop()!r} is the name of the rows' own column; write an LMDB")
    for blob in blobs if not _is_database(out) else ():
        clash = next((other for other in blobs if other.startswith(f"{blob}/")), None)
        if (
            not blob.isprintable()
            or not blob.strip("./")
            or (clash and Path(out).suffix.lower() in HDF5_SUFFIXES)
        ):
            raise DataError(f"{out}: {blob!r} cannot be the name of an array in it; write an LMDB")
    paths = output_paths(out, blobs)
    if len(set(paths)) != len(paths):
        raise DataError(f"{out}: two blobs would be {paths[0]}; extract them one at a time")
    for path in paths:
        check_output(path, inputs)
