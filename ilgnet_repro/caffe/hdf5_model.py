"""Reads and writes Caffe's HDF5 weights (`.caffemodel.h5`), `/data/LAYER/INDEX`; arrays are memory-mapped.

Caffe stores a shared blob with its owner only, so a layer may have only some of its blobs. A slash in a layer's name
creates nested groups: they are read and written here, but Caffe 1.0 neither creates nor reads them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import FormatError, WeightsError, excerpt
from ..files import deferred_file
from ..schema import caffe_pb2
from .blob import LARGEST_COUNT, MOST_AXES, Blob, LayerBlobs, Run
from .caffemodel_writer import Layer, check_layers

_ROOT, _DIFF_ROOT = "data", "diff"
_MOST_LINKS = 100_000  # groups and arrays of one file
_MOST_LEVELS = 64  # of groups in groups


@dataclass(frozen=True)
class Hdf5Layer(LayerBlobs):
    """A layer of an HDF5 file, and the indices of the blobs it has."""

    numbers: tuple[int, ...]


def hdf5_layers(path: str | os.PathLike[str], buffer: memoryview) -> list[LayerBlobs]:
    """Return the layers of an HDF5 weights file, sorted by name; ``buffer`` is the memory-mapped file.

    No other file is opened. Raises FormatError without h5py, for links, and for arrays that are not contiguous
    float32 or float64.
    """
    name = Path(path).name
    h5py = _h5py(name)
    found: dict[str, dict[int, Blob]] = {}
    links: list[str] = []
    try:
        with h5py.File(path, "r") as file:
            root = file.get(_ROOT) if isinstance(file.get(_ROOT, getlink=True), h5py.HardLink) else None
            if not isinstance(root, h5py.Group):
                raise FormatError(f"{name}: HDF5 without /{_ROOT}, so not Caffe's weights; give Caffe's file")
            for key, item in _items(h5py, root, name):
                if item is None:
                    links.append(f"/{_ROOT}/{key}")
                    continue
                if not isinstance(item, h5py.Dataset):
                    found.setdefault(key, {})
                    continue
                layer, _, index = key.rpartition("/")
                if not layer or len(index) > 6 or not index.isdecimal() or str(int(index)) != index:
                    raise FormatError(
                        f"{name}: /{_ROOT}/{key}: not LAYER/INDEX, as Caffe writes; give Caffe's file"
                    )
                found[layer][int(index)] = _blob(
                    item, buffer, f"{name}: layer {excerpt(layer)}, blob {index}"
                )
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"{name}: damaged HDF5 ({' '.join(str(error).split())}); fetch it again") from error
    held = [layer for layer, blobs in found.items() if blobs]
    if not held:
        why = f" but {links[0]}, a link, which is not followed" if links else ""
        raise FormatError(f"{name}: has no layers{why}; give the weights file")
    if links:
        raise FormatError(f"{name}: {links[0]}: a link, which is not followed; put the array itself there")
    if len(held) == 1 and 0 not in found[held[0]]:  # no other layer can be its owner
        raise FormatError(
            f"{name}: layer {excerpt(held[0])}: blobs {sorted(found[held[0]])}, one is missing; fetch it again"
        )
    paths = {layer[:end] for layer in found for end, sign in enumerate(layer) if sign == "/"}
    return [
        Hdf5Layer(layer, "", tuple(blobs[index] for index in sorted(blobs)), tuple(sorted(blobs)))
        for layer, blobs in found.items()
        if blobs or layer not in paths
    ]


def _items(h5py: ModuleType, root: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield path and item of each group and array below ``root``, parents first; the item is None for a link."""
    seen = {h5py.h5o.get_info(root.id).addr}
    count = 0
    waiting = [("", root, iter(list(root)))]
    while waiting:
        prefix, group, names = waiting[-1]
        key = next(names, None)
        if key is None:
            waiting.pop()
            continue
        count += 1
        path = f"{prefix}{key}"
        if count > _MOST_LINKS or len(waiting) > _MOST_LEVELS:
            raise FormatError(
                f"{name}: over {_MOST_LINKS:,} entries or {_MOST_LEVELS} levels of groups; not a net"
            )
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            yield path, None
            continue
        item = group[key]
        yield path, item
        if isinstance(item, h5py.Group):
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise FormatError(f"{name}: /{_ROOT}/{path}: a group with two paths; give Caffe's file")
            seen.add(address)
            waiting.append((f"{path}/", item, iter(list(item))))
        elif not isinstance(item, h5py.Dataset):
            raise FormatError(f"{name}: /{_ROOT}/{path}: neither a group nor an array; give Caffe's file")


def _blob(dataset: Any, buffer: memoryview, where: str) -> Blob:
    kind = dataset.dtype
    if kind not in (np.dtype("<f4"), np.dtype("<f8")):
        raise FormatError(f"{where}: numbers of type {kind}; Caffe writes float32 or float64")
    if dataset.shape is None:
        raise FormatError(f"{where}: holds no array; fetch it again")
    shape = tuple(map(int, dataset.shape))
    size = math.prod(shape)
    if math.prod(max(length, 1) for length in shape) > LARGEST_COUNT or len(shape) > MOST_AXES:
        raise FormatError(
            f"{where}: shape {'x'.join(map(str, shape))} is beyond Caffe's {LARGEST_COUNT:,} values and {MOST_AXES} "
            "axes per blob; damaged"
        )
    offset = dataset.id.get_offset()
    if size and (offset is None or dataset.external or dataset.is_virtual):
        if not dataset.id.get_storage_size() and not dataset.external and not dataset.is_virtual:
            raise FormatError(f"{where}: its {size:,} values were never written; fetch it again")
        raise FormatError(f"{where}: not in one piece; run `h5repack -l CONTI` on the file first")
    if size * kind.itemsize > len(buffer) - (offset or 0):
        raise FormatError(f"{where}: {size:,} values do not fit in the file; fetch it again")
    runs = (Run(offset or 0, size, kind.itemsize),) if size else ()
    return Blob(shape, False, np.dtype(kind), runs, buffer)


def write_hdf5_model(
    path: str | os.PathLike[str],
    net: caffe_pb2.NetParameter,
    blobs: Mapping[str, Sequence[np.ndarray]],
    *,
    owners: Container[tuple[str, int]] = (),
    diffs: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> None:
    """Write ``blobs`` (arrays by layer name) as Caffe's `Net::ToHDF5` does; the file is complete or absent.

    Each layer of ``net`` is a group, also one without blobs. ``owners`` has the (layer, index) of the blobs that
    another layer owns (`NetPlan.owners`): these are left out. ``diffs`` are written below `/diff`, those of shared blobs
    with every layer that has them. The same net and arrays give the same bytes. Raises
    WeightsError without h5py, for a name that no layer of ``net`` has, and for names that conflict in HDF5.
    """
    where = Path(path).name
    check_layers(net, blobs, where)
    layers: list[Layer] = [*net.layers, *net.layer]
    names = list(dict.fromkeys(layer.name for layer in layers))
    conflict = name_conflict(names, {name: len(arrays) for name, arrays in blobs.items()})
    if conflict:
        raise WeightsError(f"{where}: {conflict}")
    h5py = _h5py(where, WeightsError)
    try:
        # The oldest file format, which Caffe's files have and every HDF5 version reads.
        with deferred_file(path) as target, h5py.File(target, "w", libver=("earliest", "v108")) as file:
            root = file.create_group(_ROOT)
            diff_root = None if diffs is None else file.create_group(_DIFF_ROOT)
            for name in names:
                group = root.require_group(name)
                for index, array in enumerate(blobs.get(name, ())):
                    if (name, index) not in owners:
                        values = np.asarray(array, np.float32)
                        group.create_dataset(str(index), data=values, track_times=False)
                if diffs is None or diff_root is None:
                    continue
                group = diff_root.require_group(name)
                for index, array in enumerate(diffs.get(name, ())):
                    group.create_dataset(str(index), data=np.asarray(array, np.float32), track_times=False)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{where}: cannot be written ({' '.join(str(error).split())})") from error


def name_conflict(names: Iterable[str], counts: Mapping[str, int]) -> str:
    """Return why layers of these names cannot be in one HDF5 file, with the remedy; "" if they can.

    ``counts`` has the number of each layer's blobs. A name is a path in the file: layer ``a/0`` would have the path
    of the first blob of layer ``a``.
    """
    names = list(names)
    datasets = {f"{name}/{index}": name for name in names for index in range(counts.get(name, 0))}
    for name in names:
        parts = name.split("/")
        if "" in parts or "." in parts or "\0" in name:
            return f"layer {name!r}: not a valid name in HDF5; rename it"
        paths = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
        taken = next((datasets[path] for path in paths if path in datasets), None)
        if taken is not None:
            return f"layer {name!r}: has the HDF5 path of a blob of layer {taken!r}; rename one of the two"
    return ""


def _h5py(where: str, error: type[FormatError] | type[WeightsError] = FormatError) -> ModuleType:
    try:
        import h5py
    except ImportError as absent:
        raise error(f"{where}: HDF5 weights need h5py; pip install 'ilgnet_repro[hdf5]'") from absent
    module: ModuleType = h5py
    return module
