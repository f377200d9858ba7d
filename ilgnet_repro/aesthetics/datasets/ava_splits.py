"""AVA with its vote distributions and splits (Murray et al., CVPR 2012).

Either ``train.csv``, ``test.csv`` (and ``val.csv``) as the authors of TANet released them, the counts of the votes 1 to 10
in the columns ``score2`` to ``score11``; or ``AVA.txt`` and the lists of a split: AVA's own
``aesthetics_image_lists/generic_ls_train.jpgl`` and ``generic_test.jpgl``, or ``train.txt`` and ``test.txt``, or
ILGNet's ``train.txt`` and ``val.txt``, where val is the test set. Lists have an image per row, a label may follow it.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np

from ...errors import DataError
from ..ava import AvaTable, read_ava
from .splits import Dataset, Rows, make_dataset
from .text_tables import Once, first_file, read_columns, read_lines, read_number

SCALE = (1.0, 10.0)
_LARGEST_COUNT = 1e6
_PLACES = ("{image}.jpg", "images/{image}.jpg")
_COLUMNS = ("image_id", *(f"score{column}" for column in range(2, 12)))
# The lists by split, and the counts that were published for them.
_LISTS: tuple[tuple[dict[str, str], dict[str, int]], ...] = (
    (
        {"train": "aesthetics_image_lists/generic_ls_train.jpgl", "test": "aesthetics_image_lists/generic_test.jpgl"},
        {"train": 235_599, "test": 19_930},
    ),
    ({"train": "train.txt", "test": "test.txt"}, {}),
    ({"train": "train.txt", "test": "val.txt"}, {"train": 235_529, "test": 20_000}),
)  # fmt: skip


def read_ava_splits(folder: str | os.PathLike[str]) -> Dataset:
    """Read AVA's distributions and splits from ``folder``. Raises DataError with file and line."""
    published: dict[str, int] = {}
    if Path(folder, "train.csv").is_file():
        first_file(folder, "test.csv")
        splits = {
            split: _read_votes(Path(folder, f"{split}.csv"))
            for split in ("train", "val", "test")
            if Path(folder, f"{split}.csv").is_file()
        }
    else:
        table = read_ava(first_file(folder, "AVA.txt"))
        for lists, counts in _LISTS:
            if all(Path(folder, name).is_file() for name in lists.values()):
                published = counts
                break
        else:
            wanted = "; ".join(" and ".join(lists.values()) for lists, _ in _LISTS)
            raise DataError(f"{folder}: has AVA.txt and no lists of a split; add one of: {wanted}")
        splits = {split: _listed(Path(folder, name), table) for split, name in lists.items()}
        both = ("train.txt", "test.txt")
        if lists["test"] == both[1] and Path(folder, "val.txt").is_file():
            splits["val"] = _listed(Path(folder, "val.txt"), table)
    places = dict.fromkeys(("train", "val", "test"), _PLACES)
    return make_dataset("ava", splits, scale=SCALE, cut=5.0, places=places, published=published)


def _rows(images: list[str], votes: np.ndarray) -> Rows:
    shares = votes / votes.sum(1, keepdims=True)
    scores = shares @ np.arange(1, votes.shape[1] + 1)
    return Rows(
        tuple(images), {"distribution": shares.astype(np.float32), "score": scores.astype(np.float32)}
    )


def _read_votes(path: Path) -> Rows:
    images: list[str] = []
    votes: list[list[float]] = []
    once = Once()
    for number, (image, *counts) in read_columns(path, _COLUMNS, "a table of AVA's votes"):
        where = f"{path}:{number}"
        images.append(_image_id(image, where))
        once.add(images[-1], where)
        votes.append([read_number(count, 0, _LARGEST_COUNT, where, "a count of votes") for count in counts])
        if not any(votes[-1]):
            raise DataError(f"{where}: image {image} has no votes, so no distribution; remove the row")
    return _rows(images, np.array(votes, np.float64).reshape(-1, len(_COLUMNS) - 1))


def _listed(path: Path, table: AvaTable) -> Rows:
    rows_of = dict(zip(table.ids.tolist(), range(len(table)), strict=True))
    images: list[str] = []
    numbers: list[int] = []
    once = Once()
    for number, line in read_lines(path, "a list of AVA's images"):
        where = f"{path}:{number}"
        image = _image_id(line.split()[0], where)
        once.add(image, where)
        if int(image) not in rows_of:
            raise DataError(
                f"{where}: image {image} is not in {table.file}; give lists of that file's images"
            )
        images.append(image)
        numbers.append(rows_of[int(image)])
    return _rows(images, table.votes[np.array(numbers, np.int64)].astype(np.float64))


def _image_id(text: str, where: str) -> str:
    """AVA's id of an image, given as a number or the name of its file."""
    stem = PurePosixPath(text.strip()).name.removesuffix(".jpg")
    if not (stem.isascii() and stem.isdigit() and len(stem) <= 10):
        raise DataError(f"{where}: {text[:40]!r} is not one of AVA's image ids; write 953958 or 953958.jpg")
    return str(int(stem))
