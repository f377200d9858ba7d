"""Labelled images for a test, from a list and a folder or from an LMDB, by row."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import DataError, IlgnetError
from ..reading.datum import datum_image
from ..reading.lmdb_read import key_name, key_text
from ..reading.rows import DatabaseRows, ListRows
from .caffe_shuffle import caffe_shuffle
from .releases import Release, default_folder, find_release, known_release


class LabelledImages(Protocol):
    """Rows of a two-class set, ``names`` and ``labels`` by row; ``release`` is the released list it is."""

    labels: np.ndarray
    title: str
    order: str
    sha256: str
    release: Release | None

    @property
    def names(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def image(self, row: int) -> str | np.ndarray:
        """The path of a row's image, or the image: uint8 (height, width, 3) in BGR."""
        ...


class ListedImages:
    """The rows of a list file, their images under ``root``. Raises DataError for a label other than 0 and 1."""

    order = "as given"

    def __init__(self, list_file: str | os.PathLike[str], root: str | os.PathLike[str] = "") -> None:
        self._rows = ListRows(list_file, root)
        rows = self._rows.images
        if not len(rows):
            raise DataError(f"{list_file}: no rows; write `path label` lines")
        rows.check_labels()
        self.names, labels = zip(*rows, strict=True)
        self.labels = _two_classes(np.array(labels, np.int64), self.names, str(list_file))
        self.title = str(list_file)
        self.sha256 = rows.digest()
        self.release = known_release(self.sha256)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, row: int) -> str:
        return self._rows.where(row)


class StoredImages:
    """The rows of a Caffe LMDB in key order, in which Caffe reads it.

    Its list is written out again from keys and labels: a database made of a released list is known by it.
    """

    def __init__(self, database: str | os.PathLike[str]) -> None:
        self._rows = DatabaseRows(database)
        names, labels = [], []
        for key, head in self._rows.reader.headers():
            names.append(key_name(key))
            labels.append(head.label)
        if not names:
            raise DataError(f"{database}: has no rows; build it again")
        self.names = tuple(names)
        self.labels = _two_classes(np.array(labels, np.int64), self.names, str(database))
        self.title = str(database)
        text = "\n".join(f"{name} {label}" for name, label in zip(names, labels, strict=True)).encode(
            "utf-8", "surrogateescape"
        )
        # The released lists have no line break after the last row.
        digests = [hashlib.sha256(text).hexdigest(), hashlib.sha256(text + b"\n").hexdigest()]
        self.sha256 = next((digest for digest in digests if known_release(digest)), digests[1])
        self.release = known_release(self.sha256)
        self.order = "as given" if self.release else "in the database's order"

    def __len__(self) -> int:
        return len(self.names)

    def image(self, row: int) -> np.ndarray:
        stored = self._rows.reader[row]
        datum = stored.datum()
        # A grey file is decoded in colour; raw pixels keep their channels.
        image = datum_image(datum, key_text(stored.key), True if datum.encoded else None)
        return image.transpose(1, 2, 0)


class ShuffledImages:
    """The rows of a set in the order in which `convert_imageset --shuffle` with a seed writes them."""

    def __init__(self, images: LabelledImages, seed: int) -> None:
        self._images, self._rows = images, caffe_shuffle(len(images), seed)
        self.names = tuple(images.names[row] for row in self._rows)
        self.labels = images.labels[self._rows]
        self.title, self.sha256, self.release = images.title, images.sha256, images.release
        self.order = f"permuted by Caffe's shuffle, seed {seed}"

    def __len__(self) -> int:
        return len(self.names)

    def image(self, row: int) -> str | np.ndarray:
        return self._images.image(int(self._rows[row]))


def _two_classes(labels: np.ndarray, names: Sequence[str], where: str) -> np.ndarray:
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where}: {names[row]} has label {labels[row]}; a two-class list has 0 (low) and 1 (high)"
        )
    return labels


def open_images(
    dataset: str,
    *,
    images: str | os.PathLike[str] | None = None,
    list_file: str | os.PathLike[str] | None = None,
    database: str | os.PathLike[str] | None = None,
) -> LabelledImages:
    """The images that the caller names: an LMDB, or a list with the folder its paths start from.

    Without a list it is the released val list of ``dataset``, if it was fetched. Raises IlgnetError for a
    choice that names no images, or too many.
    """
    if database is not None:
        if list_file is not None or images is not None:
            raise IlgnetError(
                "an LMDB holds list and images: leave out list_file= and images=",
                option="list_file images",
            )
        return StoredImages(database)
    if list_file is not None:
        return _listed(list_file, images or "")
    if images is None:
        raise IlgnetError(
            "no images: give images=FOLDER, list_file=LIST or database=DB",
            option="images list_file database",
        )
    if dataset not in ("ava1", "ava2"):
        raise IlgnetError(f"{images}: give the labels too, as list_file=LIST", option="list_file")
    released = default_folder() / Path(find_release(f"{dataset}-val").path)
    if not released.is_file():
        raise IlgnetError(
            f"{released}: the released list is not there; `ilgnet data get {dataset}-val`,"
            " or give list_file=LIST",
            option="list_file",
        )
    return _listed(released, images)


def _listed(list_file: str | os.PathLike[str], folder: str | os.PathLike[str]) -> ListedImages:
    """Open a list once its folder is known to be there; "" is the current one."""
    if folder and not os.path.isdir(folder):
        raise IlgnetError(
            f"images={os.fspath(folder)!r}: no such folder; give the one that the list's paths start from",
            option="images",
        )
    return ListedImages(list_file, folder)
