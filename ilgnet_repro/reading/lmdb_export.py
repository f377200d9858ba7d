"""Exporting a database to image files and a list."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files import check_output, writing
from ..staging import partial_folder
from .annotated import is_annotated
from .box_files import BoxFiles
from .datum import chw_to_hwc, datum_image
from .images import encode_image, name_with_suffix, suffix_of
from .lmdb_read import LmdbReader, Row, key_text, split_key

_LONGEST_NAME = 200


def export_lmdb(
    database: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> int:
    """Write each image under the path in its key, and ``list.txt``, into a new folder; return the number of rows.

    The key of another tool than convert_imageset is the name itself, or its bytes in hexadecimal digits where they are
    no file name. Boxes of SSD's AnnotatedDatum are written to ``boxes.json``, and as VOC's XML beside each image.
    Encoded rows are written byte for byte, raw ones as PNG (which loses nothing), and rows that are not
    8-bit images of 1, 3 or 4 channels as npy. The right suffix is appended to a path that lacks it; a duplicate
    path is replaced by the key. The folder appears when it is complete; what a killed run left in ``FOLDER.partial`` is
    removed by the next one.
    Raises DataError if it exists or a key's path would leave it.
    """
    reader, target = LmdbReader(database), Path(folder)
    rows = len(reader)
    check_output(target, [database])
    if os.path.lexists(target):
        raise DataError(f"{target}: already exists; remove it or give another name")
    with writing(target, DataError), partial_folder(target) as partial:
        with open(partial / "list.txt", "wb") as listed, BoxFiles(partial) as annotated:
            for done, row in enumerate(reader, 1):
                name, label = _export_row(row, done - 1, partial)
                listed.write(os.fsencode(f"{name} {label}\n"))
                if is_annotated(row.value, key_text(row.key)):
                    annotated.add(name, row.image()[0].shape, row.boxes())
                progress(done, rows)
        if os.path.lexists(target):  # a rename would replace an empty folder
            raise DataError(f"{target}: was created meanwhile; remove it or give another name")
        partial.rename(target)
    return rows


def _export_row(row: Row, position: int, folder: Path) -> tuple[str, int]:
    """Write one row to the folder; return its name there and its label."""
    datum, where = row.datum(), key_text(row.key)
    if datum.encoded:
        data, suffix = datum.data, suffix_of(datum.data)
    else:
        image = datum_image(datum, where)
        if image.dtype == np.uint8 and image.shape[0] in (1, 3, 4):
            data, suffix = encode_image(chw_to_hwc(image), "png"), ".png"
        else:
            data, suffix = b"", ".npy"
    number, relative = _name_of(row.key, position)
    name = name_with_suffix(relative.as_posix(), suffix)
    while os.path.lexists(folder / name):  # another row's file, which may itself be named by its number
        relative = Path(f"{number:08d}_{relative.name}")
        name = name_with_suffix(relative.as_posix(), suffix)
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".npy":
        np.save(file, image, allow_pickle=False)
    else:
        file.write_bytes(data)
    return name, datum.label


def _name_of(key: bytes, position: int) -> tuple[int, Path]:
    """The number and the path under which a row is exported. Raises DataError for a path that is no file name."""
    try:
        number, path = split_key(key)
    except DataError:
        text = key_text(key)
        usable = (
            _is_file_name(text) and text.isprintable() and text == text.strip() and len(key) <= _LONGEST_NAME
        )
        return position, Path(text.lstrip("/") if usable else key[: _LONGEST_NAME // 2].hex())
    if not _is_file_name(path):
        raise DataError(
            f"{key_text(key)}: its path leaves the folder or is not a file name; it is not exported"
        )
    return number, Path(path.lstrip("/"))


def _is_file_name(path: str) -> bool:
    parts = Path(path.lstrip("/")).parts
    return bool(parts) and ".." not in parts and "\0" not in path and "\n" not in path
