"""The scored image sets of the documents, by their published layouts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from ...errors import DataError, did_you_mean
from .aadb import read_aadb
from .ava_splits import read_ava_splits
from .eva import read_eva
from .features import read_features
from .flickr_aes import read_flickr_aes
from .splits import Dataset, ImageKeys, Rows, locate_images, with_validation
from .tad66k import read_tad66k

DATASETS: Mapping[str, Callable[[str | os.PathLike[str]], Dataset]] = {
    "ava": read_ava_splits,
    "tad66k": read_tad66k,
    "aadb": read_aadb,
    "eva": read_eva,
    "flickr-aes": read_flickr_aes,
    "features": read_features,
}


def read_dataset(name: str, folder: str | os.PathLike[str]) -> Dataset:
    """Read a dataset's lists from ``folder``, in the layout in which it was published.

    ``name`` is "ava", "tad66k", "aadb", "eva", "flickr-aes", or "features" for the arrays that `ilgnet features` writes.
    The `notes` of what is returned say where its counts differ from the published ones, and what its splits share.
    Raises DataError, with file and line, for a file that is missing or a row that cannot be used.
    """
    if name not in DATASETS:
        raise DataError(
            f"data {name!r} is unknown{did_you_mean(name, DATASETS)}; choose one of {', '.join(DATASETS)}"
        )
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: is not a folder; give the folder of the lists of {name}")
    return DATASETS[name](folder)


__all__ = ["DATASETS", "Dataset", "ImageKeys", "Rows", "locate_images", "read_dataset", "with_validation"]
