"""An LMDB of float labels beside an LMDB of images: what a second Data layer reads, row by row."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError, excerpt
from ..files import check_output, staged_results
from .datum import raw_datum
from .image_list import read_list
from .lmdb_read import LmdbReader, key_text, split_key
from .lmdb_write import LmdbWriter

_LARGEST = float(np.finfo(np.float32).max)
_BATCH = 4096


def build_label_lmdb(
    images: str | os.PathLike[str], list_file: str | os.PathLike[str], target: str | os.PathLike[str]
) -> int:
    """Store the numbers of each row of a list under the key that the image of this row has in an LMDB; return the count.

    A row is ``path number [number ...]``, separated by spaces.  ``images`` was made of a list of the same paths in the same
    order; the images that it lacks, because they could not be read, have no label either, so that two Data layers
    stay in step.  Each row becomes a Datum of shape (numbers, 1, 1).  Raises DataError where list and images do not fit.
    """
    target = Path(target)
    check_output(target, [images, list_file])
    if os.path.lexists(target):
        raise DataError(f"{target}: already exists; remove it or give another name")
    rows = _read_rows(Path(list_file))
    with staged_results(target.parent, target.name, DataError) as stage:
        writer = LmdbWriter(stage / target.name)
        count = 0
        batch: list[tuple[bytes, bytes]] = []
        try:
            keys = LmdbReader(images).keys()
            for key in keys:
                number, path = split_key(key)
                if number >= len(rows) or rows[number][0] != path:
                    raise DataError(
                        f"{images}: its row {key_text(key)} is not row {number} of {list_file}; "
                        "give the list that it was made of, with numbers"
                    )
                batch.append((key, raw_datum(np.array(rows[number][1], np.float32)[:, None, None], 0)))
                count += 1
                if len(batch) == _BATCH:
                    writer.write(batch)
                    batch = []
            writer.write(batch)
        finally:
            writer.close()
        os.rename(stage / target.name, target)
    return count


def _read_rows(path: Path) -> list[tuple[str, tuple[float, ...]]]:
    try:
        data = read_list(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a list") from error
    found: list[tuple[str, tuple[float, ...]]] = []
    for line, text in enumerate(data.rstrip().split(b"\n"), 1):
        name, numbers = _read_row(os.fsdecode(text.rstrip()))
        if not name or not numbers or len(numbers) != len(found[0][1] if found else numbers):
            wanted = f" ({len(found[0][1])} of them, as in the first row)" if found else ""
            raise DataError(f"{path}:{line}: write a path, then its numbers{wanted}, separated by spaces")
        found.append((name, numbers))
    return found


def _read_row(text: str) -> tuple[str, tuple[float, ...]]:
    """The path, which may contain spaces, and the numbers at the end of a row."""
    numbers: list[float] = []
    while (parts := text.rsplit(None, 1)) and len(parts) == 2:
        value = _number(parts[1])
        if value is None:
            break
        numbers.append(value)
        text = parts[0]
    return text, tuple(reversed(numbers))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise DataError(f"label {excerpt(text)!r}: is beyond float32; correct the list")
    return value


def label_rows(database: str | os.PathLike[str]) -> Iterator[np.ndarray]:
    """Yield the numbers of each row of such an LMDB."""
    for row in LmdbReader(database):
        yield row.image()[0].reshape(-1)
