"""Reads and writes mean files (`.binaryproto`): one array, as compute_image_mean writes it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..files import atomic_file, map_file
from .blob import blob_chunks, scan_blob
from .kinds import Kind, expect


def read_blob(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a BlobProto file: float32 (float64 for ``double_data``) in the shape it declares.

    A mean file is (1, channels, height, width).  The values are a view of the memory-mapped file.
    Raises FormatError if the file is not a BlobProto or its shape and number of values disagree.
    """
    name = Path(path).name
    expect(path, Kind.BINARYPROTO, Kind.UNKNOWN, what="a mean file")
    buffer = map_file(path)
    return scan_blob(buffer, 0, len(buffer), name).array()


def write_blob(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array of up to four axes in the num/channels/height/width form of mean files.

    Missing leading axes become 1.  The file is complete or absent.
    """
    _, chunks = blob_chunks(np.asarray(array), legacy=True, where=Path(path).name)
    with atomic_file(path) as file:
        for chunk in chunks:
            file.write(chunk)
