"""TAD66K: 66,327 images of 47 themes with a score from 1 to 10 (He et al., IJCAI 2022).

Tables with the columns ``image`` and ``score``: ``train.csv`` and ``test.csv`` of all themes, or one file per theme, named
``THEME_train.csv`` and ``THEME_test.csv``, or ``THEME.csv`` in the folders ``train`` and ``test``. The images are in one
folder. There is no validation list, and the published code selected its weights on the test set; here a tenth of the
training images is drawn for that.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...errors import DataError
from .splits import Dataset, Rows, make_dataset
from .text_tables import Once, read_columns, read_name, read_number

PUBLISHED = {"train": 52_248, "test": 14_079}
THEMES = 47
SCALE = (1.0, 10.0)
_WHAT = "a table of TAD66K"


def read_tad66k(folder: str | os.PathLike[str]) -> Dataset:
    """Read the tables of TAD66K from ``folder``. Raises DataError with file and line."""
    tables = {split: _tables(Path(folder), split) for split in ("train", "val", "test")}
    for split in ("train", "test"):
        if not tables[split]:
            raise DataError(
                f"{folder}: has no {split}.csv, no THEME_{split}.csv and no {split}/THEME.csv; give the folder of the "
                "tables of TAD66K"
            )
    splits = {split: _read(found) for split, found in tables.items() if found}
    themes = {theme for rows in splits.values() for theme in rows.themes}
    notes = []
    if themes and len(themes) != THEMES:
        notes.append(f"tad66k: {len(themes)} themes, as published {THEMES}")
    if "" not in tables["train"] | tables["test"]:
        notes += [
            f"tad66k: theme {theme} has a table of {other}, and none of {split}"
            for split, other in (("train", "test"), ("test", "train"))
            for theme in sorted(tables[other].keys() - tables[split].keys())
        ]
    return make_dataset("tad66k", splits, scale=SCALE, cut=5.0, published=PUBLISHED, notes=notes)


def _tables(folder: Path, split: str) -> dict[str, Path]:
    """The tables of a split by theme; that of all themes is named ""."""
    whole = folder / f"{split}.csv"
    if whole.is_file():
        return {"": whole}
    ending = f"_{split}.csv"
    found = {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*{ending}"))}
    found.update({path.stem: path for path in sorted(folder.joinpath(split).glob("*.csv"))})
    return found


def _read(tables: dict[str, Path]) -> Rows:
    images: list[str] = []
    scores: list[float] = []
    themes: list[str] = []
    once = Once()
    for theme, path in tables.items():
        for number, (image, score) in read_columns(path, ("image", "score"), _WHAT):
            where = f"{path}:{number}"
            once.add(read_name(image, where), where)
            images.append(image)
            scores.append(read_number(score, *SCALE, where, "the score"))
            themes.append(theme)
    return Rows(
        tuple(images),
        {"score": np.array(scores, np.float32)},
        themes=tuple(themes) if "" not in tables else (),
    )
