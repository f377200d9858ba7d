"""Caffe's HDF5 weights (`.caffemodel.h5`): `/data/LAYER/INDEX`, found by h5py and viewed by offset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError
from .blob import Blob, Run

_ROOT = "data"


def hdf5_layers(path: str | os.PathLike[str], buffer: memoryview) -> list[tuple[str, tuple[Blob, ...]]]:
    """The layers with arrays in an HDF5 weights file, by name (HDF5 keeps no order).

    A layer name with a slash is a group in a group.  ``buffer`` is the mapped file.
    Raises FormatError without h5py, and for arrays that are not plain float32 or float64 in one piece.
    """
    name = Path(path).name
    try:
        import h5py
    except ImportError as error:
        raise FormatError(f"{name}: HDF5 weights need h5py; pip install 'ilgnet_repro[hdf5]'") from error
    found: dict[str, dict[int, Blob]] = {}

    def visit(key: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        layer, _, index = key.rpartition("/")
        if not index.isdecimal() or len(index) > 6 or not layer:
            raise FormatError(f"{name}: /{_ROOT}/{key}: not LAYER/INDEX, as Caffe writes; give Caffe's file")
        found.setdefault(layer, {})[int(index)] = _blob(item, buffer, f"{name}: layer {layer}, blob {index}")

    try:
        with h5py.File(path, "r") as file:
            root = file.get(_ROOT) if isinstance(file.get(_ROOT, getlink=True), h5py.HardLink) else None
            if not isinstance(root, h5py.Group):
                raise FormatError(f"{name}: HDF5 without /{_ROOT}, so not Caffe's weights; give Caffe's file")
            root.visititems(visit)  # hard links only: nothing outside the file is ever opened
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise FormatError(f"{name}: damaged HDF5 ({' '.join(str(error).split())}); fetch it again") from error
    if not found:
        raise FormatError(f"{name}: holds no layers; give the weights file")
    for layer, blobs in found.items():
        if sorted(blobs) != list(range(len(blobs))):
            raise FormatError(f"{name}: layer {layer}: blobs {sorted(blobs)}, one is missing; fetch it again")
    return [(layer, tuple(blobs[i] for i in range(len(blobs)))) for layer, blobs in found.items()]


def _blob(dataset: Any, buffer: memoryview, where: str) -> Blob:
    kind = dataset.dtype
    if kind not in (np.dtype("<f4"), np.dtype("<f8")):
        raise FormatError(f"{where}: numbers of type {kind}; Caffe writes float32 or float64")
    size = int(dataset.size or 0)
    offset = dataset.id.get_offset()
    if size and (offset is None or dataset.external):
        raise FormatError(f"{where}: not in one piece; run `h5repack -l CONTI` on the file first")
    if size * kind.itemsize > len(buffer) - (offset or 0):
        raise FormatError(f"{where}: {size:,} values do not fit in the file; fetch it again")
    runs = (Run(offset or 0, size, kind.itemsize),) if size else ()
    return Blob(tuple(map(int, dataset.shape)), False, np.dtype(kind), runs, buffer)
