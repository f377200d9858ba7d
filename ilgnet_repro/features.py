"""`extract_features`: blobs of a net for every row of a database, a list or a folder of images, the keys kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from .errors import DataError, IlgnetError
from .image_paths import ImagePaths
from .reading.datum import chw_to_hwc
from .reading.feature_files import FeatureRow, check_names, output_paths, write_features
from .reading.image_list import ImageList, find_image
from .reading.lmdb_read import LmdbReader, is_database, key_text, row_key
from .reading.preprocessing import Preprocessing
from .runtime.calls import check_batch
from .runtime.load import LoadOptions, load
from .runtime.runnable import Runnable
from .scoring import BATCH, prepared_about, run_images
from .signatures import shows_options

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Features:
    """Blobs of a net, a row for each image: ``blobs`` are float32 arrays N x ..., by name.

    ``keys`` are the keys of the database, or ``%08d_path`` for the images of a list or folder; ``labels`` is None where
    the source has none. If they were written to ``files``, the arrays are there only: ``blobs`` is empty.
    """

    rows: int
    keys: tuple[bytes, ...]
    labels: np.ndarray | None
    blobs: dict[str, np.ndarray]
    files: tuple[Path, ...]


@shows_options(LoadOptions, load)
def extract_features(
    source: PathLike,
    weights: PathLike | Runnable,
    blobs: str | Sequence[str],
    out: PathLike | None = None,
    *,
    root: PathLike = "",
    preprocessing: Preprocessing | None = None,
    batch: int = BATCH,
    **options: Unpack[LoadOptions],
) -> Features:
    """Run a net on every row of ``source`` and return, or write to ``out``, the values of ``blobs``.

    ``source`` is an LMDB, a list of images under ``root``, or a folder (with its subfolders).  ``weights`` is any
    file that `load` takes, with its ``options``, or a loaded net.  ``out`` is an ``.npz``, ``.h5`` or ``.hdf5`` file,
    else the folder of an LMDB as Caffe's extract_features writes it (``OUT_BLOB`` for each of several blobs), with the
    keys of the source.
    Raises IlgnetError where the net's preprocessing is neither known nor given, and for a blob that the net lacks.
    """
    net = load(weights, **options) if isinstance(weights, str | os.PathLike) else weights
    names = [blobs] if isinstance(blobs, str) else list(blobs)
    return extract_with(net, open_images(source, root), names, out, preprocessing, batch)


@dataclass(frozen=True)
class Images:
    """A source of images: how many, and each with its key and label, as a path or an array; what it reads."""

    count: int
    rows: Callable[[], Iterator[tuple[bytes, int | None, Any]]]
    inputs: tuple[PathLike, ...]
    notes: tuple[str, ...] = ()


def open_images(source: PathLike, root: PathLike = "") -> Images:
    """Open an LMDB, a folder of images, or a list whose images are under ``root``.  Raises DataError without rows."""
    if is_database(source):
        images = _of_database(source)
    elif Path(source).is_dir():
        found = ImagePaths((os.fsdecode(source),))
        paths = list(found)
        names = [os.path.relpath(path, source) for path in paths]
        images = Images(
            len(paths),
            lambda: ((row_key(n, names[n]), None, path) for n, path in enumerate(paths)),
            (*paths,),
            tuple(found.notes()),
        )
    else:
        listed = ImageList(source)
        images = Images(
            len(listed),
            lambda: (
                (row_key(n, row.path), row.label, find_image(root, row.path)) for n, row in enumerate(listed)
            ),
            (source,),
            tuple(listed.notes()),
        )
    if not images.count:
        raise DataError(f"{source}: has no images; give an LMDB, a list or a folder of images")
    return images


def _of_database(source: PathLike) -> Images:
    reader = LmdbReader(source)

    def rows() -> Iterator[tuple[bytes, int | None, Any]]:
        for row in reader:
            image, label = row.image()
            if image.dtype != np.uint8 or image.shape[0] not in (1, 3, 4):
                raise DataError(
                    f"{key_text(row.key)}: is not an 8-bit image of 1, 3 or 4 channels; feed such rows through a Data layer "
                    "(`ilgnet caffe extract_features`)"
                )
            yield row.key, label, chw_to_hwc(image)

    return Images(len(reader), rows, (source,))


def extract_with(
    net: Runnable,
    images: Images,
    blobs: Sequence[str],
    out: PathLike | None = None,
    preprocessing: Preprocessing | None = None,
    batch: int = BATCH,
    progress: Callable[[int], None] = lambda done: None,
) -> Features:
    """Extract with a loaded net."""
    check_batch(batch)
    check_names(blobs, out, images.inputs)
    keys: list[bytes] = []
    labels: list[int | None] = []
    values: dict[str, list[np.ndarray]] = {blob: [] for blob in blobs}

    def note(rows: Sequence[FeatureRow]) -> Sequence[FeatureRow]:
        keys.extend(row.key for row in rows)
        labels.extend(row.label for row in rows)
        progress(len(keys))
        return rows

    extracted = map(note, _extract(net, images, blobs, preprocessing, batch))
    files: tuple[Path, ...] = ()
    if out is None:
        for rows in extracted:
            for blob in blobs:
                values[blob] += [np.array(row.values[blob]) for row in rows]
    else:
        with write_features(out, blobs) as writer:
            for rows in extracted:
                writer.add(rows)
        files = tuple(output_paths(out, blobs))
    return Features(
        rows=len(keys),
        keys=tuple(keys),
        labels=None if None in labels else np.array(labels, np.int64),
        blobs={blob: np.stack(rows) for blob, rows in values.items()} if out is None else {},
        files=files,
    )


def _extract(
    net: Runnable, images: Images, blobs: Sequence[str], preprocessing: Preprocessing | None, batch: int
) -> Iterator[list[FeatureRow]]:
    about = prepared_about(net, preprocessing)
    for chunk, found in run_images(net, about, images.rows(), batch, blobs, image=lambda row: row[2]):
        arrays = {blob: _rows_of(blob, found[blob], len(chunk)) for blob in blobs}
        yield [
            FeatureRow(key, label, {blob: array[index] for blob, array in arrays.items()})
            for index, (key, label, _) in enumerate(chunk)
        ]


def _rows_of(blob: str, value: torch.Tensor, count: int) -> np.ndarray:
    if value.dim() == 0 or value.shape[0] != count:
        raise IlgnetError(
            f"blob {blob!r} of shape {list(value.shape)} does not have one row per image; name another"
        )
    array: np.ndarray = value.detach().cpu().float().numpy()
    return array
