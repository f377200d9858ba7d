"""Features and classes of a classification set, for heads that take features: what `ilgnet features` writes.

``train.npz``, ``test.npz`` (and ``val.npz``), each with ``key``, ``label`` and one blob, N x F or N x F x 1 x 1.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...reading.arrays import load_npz
from .splits import Dataset, Rows, make_dataset
from .text_tables import first_file

_KEYS, _LABELS = "key", "label"


def read_features(folder: str | os.PathLike[str]) -> Dataset:
    """Read the arrays of a folder. Raises DataError for arrays that are missing or do not fit each other."""
    paths = {split: Path(folder, f"{split}.npz") for split in ("train", "val", "test")}
    for split in ("train", "test"):
        first_file(folder, paths[split].name)
    splits = {split: _read(path) for split, path in paths.items() if path.is_file()}
    sizes = {split: _size(rows) for split, rows in splits.items()}
    for split, size in sizes.items():
        if size != sizes["train"]:
            raise DataError(
                f"{paths[split]}: {size} features per row, {paths['train'].name} has {sizes['train']}"
            )
    classes = count_classes(splits["train"])
    for split, rows in splits.items():
        largest = int(rows.targets["label"].max(initial=0))
        if largest >= classes:
            raise DataError(
                f"{paths[split]}: label {largest}, and the training rows have the labels 0 to {classes - 1}"
            )
    return make_dataset("features", splits)


def count_classes(rows: Rows) -> int:
    """Return the number of classes: one more than the largest label."""
    return int(rows.targets["label"].max(initial=0)) + 1


def _size(rows: Rows) -> int:
    assert rows.inputs is not None
    return int(rows.inputs.shape[1])


def _read(path: Path) -> Rows:
    arrays = load_npz(path)
    blobs = [name for name in arrays if name not in (_KEYS, _LABELS)]
    if len(blobs) != 1:
        raise DataError(f"{path}: has {len(blobs)} blobs ({', '.join(blobs) or 'none'}); give a file of one")
    features = arrays[blobs[0]]
    if _LABELS not in arrays:
        raise DataError(
            f"{path}: has no labels; write it with `ilgnet features` from a list or database with labels"
        )
    labels = arrays[_LABELS]
    if features.ndim < 2 or not features.size or labels.shape != features.shape[:1]:
        raise DataError(
            f"{path}: {blobs[0]} has shape {list(features.shape)} and the labels {list(labels.shape)}; give N x F "
            "features and N labels"
        )
    if features.dtype.kind != "f" or not np.isfinite(features).all():
        raise DataError(f"{path}: {blobs[0]} holds values that are not finite numbers; compute it again")
    if labels.dtype.kind not in "iu" or int(labels.min()) < 0:
        raise DataError(f"{path}: labels must be integers from 0")
    names = arrays.get(_KEYS)
    if names is not None and (names.dtype.kind not in "US" or names.shape != labels.shape):
        raise DataError(f"{path}: {_KEYS} must be one text for each row")
    keys = (
        [str(name) for name in names]
        if names is not None
        else [f"{path.stem}:{row}" for row in range(len(labels))]
    )
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(features.reshape(len(features), -1), np.float32)
    if not np.isfinite(flat).all():
        raise DataError(f"{path}: {blobs[0]} holds values beyond float32; compute it again")
    return Rows(tuple(keys), {"label": labels.astype(np.int64)}, inputs=flat)
