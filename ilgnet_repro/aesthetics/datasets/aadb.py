"""AADB: 10,000 photographs with a score from 0 to 1 and eleven attributes from -1 to 1 (Kong et al., ECCV 2016).

One list per split and attribute, rows of ``image value``: ``imgListTrainRegression_Light.txt``, and so on, with
``Validation`` and ``TestNew``; the lists ``imgListTestRegression_*`` are of an earlier test set and are not read.
The release writes ``BalacingElements``. The images of the new test set may have their score before their name.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..models.attributes import ATTRIBUTES
from .splits import Dataset, Rows, make_dataset
from .text_tables import Once, first_file, read_lines, read_name, read_number

PUBLISHED = {"train": 8_458, "val": 500, "test": 1_000}
_LISTS = {
    "train": "imgListTrainRegression",
    "val": "imgListValidationRegression",
    "test": "imgListTestNewRegression",
}
_SPELLINGS = {"BalancingElement": ("BalacingElements", "BalancingElements", "BalancingElement")}
_FOLDER = "imgListFiles_label"
_OLD_TEST = "imgListTestRegression"
_PLACES = ("{image}", "datasetImages_warp256/{image}", "datasetImages_originalSize/{image}")
_TEST_PLACES = (
    "{image}", "AADB_newtest/{score}_{image}", "AADB_newtest_originalSize/{score}_{image}", "{score}_{image}", *_PLACES[1:],
)  # fmt: skip


def read_aadb(folder: str | os.PathLike[str]) -> Dataset:
    """Read AADB's lists from ``folder`` or its ``imgListFiles_label``. Raises DataError with file and line."""
    inner = Path(folder, _FOLDER)
    lists = inner if inner.is_dir() else Path(folder)
    splits = {split: _read(lists, stem) for split, stem in _LISTS.items()}
    notes = []
    if next(lists.glob(f"{_OLD_TEST}_*.txt"), None) is not None:
        notes.append(f"aadb: the lists {_OLD_TEST}_* are of an earlier test set and are not read")
    places = {"train": _PLACES, "val": _PLACES, "test": _TEST_PLACES}
    return make_dataset("aadb", splits, places=places, published=PUBLISHED, notes=notes)


def _read(folder: Path, stem: str) -> Rows:
    scores, path = _column(folder, stem, "score", 0.0)
    targets = {"score": np.array(list(scores.values()), np.float32)}
    for attribute in ATTRIBUTES["aadb"]:
        values, other = _column(folder, stem, attribute, -1.0)
        lacking = [image for image in scores if image not in values] or [
            image for image in values if image not in scores
        ]
        if lacking:
            raise DataError(
                f"{other}: image {lacking[0]!r} is in one of this list and {path.name} only; they must list the same "
                "images"
            )
        targets[attribute] = np.array([values[image] for image in scores], np.float32)
    return Rows(tuple(scores), targets)


def _column(folder: Path, stem: str, attribute: str, low: float) -> tuple[dict[str, float], Path]:
    spellings = _SPELLINGS.get(attribute, (attribute,))
    path = first_file(folder, *(f"{stem}_{spelling}.txt" for spelling in spellings))
    values: dict[str, float] = {}
    once = Once()
    for number, line in read_lines(path, "a list of AADB"):
        where = f"{path}:{number}"
        parts = line.split()
        if len(parts) != 2:
            raise DataError(f"{where}: {line[:80]!r} is not a row; write `image value`")
        once.add(read_name(parts[0], where), where)
        values[parts[0]] = read_number(parts[1], low, 1.0, where, f"the value of {attribute}")
    return values, path
