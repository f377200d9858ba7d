"""Solver states in HDF5, in the layout of Caffe's `SnapshotSolverStateToHDF5`; needs h5py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..caffe.blob import Blob, Run
from ..caffe.hdf5_model import name_conflict
from ..caffe.solverstate import SolverState
from ..errors import FormatError, SolverError
from ..files import deferred_file


def write_state(
    path: Path, iteration: int, learned_net: str, history: Sequence[np.ndarray], current_step: int
) -> None:
    """Write ``/iter``, ``/learned_net``, ``/current_step`` and ``/history/INDEX``."""
    h5py = _h5py(path)
    with deferred_file(path) as target, h5py.File(target, "w") as file:
        file.create_dataset("iter", data=np.array([iteration], np.int32))
        _write_string(h5py, file, "learned_net", learned_net.encode())
        file.create_dataset("current_step", data=np.array([current_step], np.int32))
        group = file.create_group("history")
        for index, array in enumerate(history):
            group.create_dataset(str(index), data=np.asarray(array, np.float32))


def check_names(layers: Iterable[str], blobs: Mapping[str, int]) -> None:
    """Raise SolverError for layer names that conflict in an HDF5 file; ``blobs`` is the number of blobs per layer."""
    conflict = name_conflict(layers, blobs)
    if conflict:
        raise SolverError(f"{conflict}, or remove snapshot_format")


def _write_string(h5py: ModuleType, file: Any, name: str, text: bytes) -> None:
    """Write a string as `H5LTmake_dataset_string`: a scalar whose size includes the terminating zero.

    Caffe reads it into a buffer of that size as a C string: without the zero it reads past the end.
    """
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(text) + 1)
    kind.set_strpad(h5py.h5t.STR_NULLTERM)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(text, f"S{len(text) + 1}"), mtype=kind)


def read_state(path: Path) -> SolverState:
    """Read what `write_state` or Caffe wrote.  Raises FormatError for other files."""
    h5py = _h5py(path)
    try:
        with h5py.File(path, "r") as file:
            iteration = int(np.ravel(file["iter"][()])[0])
            step = int(np.ravel(file["current_step"][()])[0])
            name = np.ravel(file["learned_net"][()])[0]
            group = file["history"]
            arrays = [np.asarray(group[str(index)][()], np.float32) for index in range(len(group))]
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError) as error:
        raise FormatError(
            f"{path.name}: is not a solver state in HDF5; give the .solverstate.h5 of a snapshot"
        ) from error
    if iteration < 0 or step < 0:
        raise FormatError(f"{path.name}: iteration {iteration}, step {step}: cannot be negative")
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return SolverState(iteration, text, tuple(map(_blob, arrays)), step)


def _blob(array: np.ndarray) -> Blob:
    runs = (Run(0, array.size, array.itemsize),) if array.size else ()
    return Blob(array.shape, False, array.dtype, runs, memoryview(bytearray(array.tobytes())))


def _h5py(path: Path) -> ModuleType:
    try:
        return import_module("h5py")
    except ImportError as error:
        raise SolverError(
            f"{path.name}: HDF5 needs h5py; pip install 'ilgnet_repro[hdf5]', or remove snapshot_format"
        ) from error
