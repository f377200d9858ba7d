"""EVA: 4,070 of AVA's images with votes from 0 to 10 and on four attributes from 1 to 4 (Kang et al., 2020; CC0).

``votes_filtered.csv``, one row per vote, its columns separated by "=". An image's target is the mean of its votes. No
split was published: a tenth of the images is drawn for testing and a tenth of the rest for validation, by the names'
SHA-256.
"""

from __future__ import annotations

import os

import numpy as np

from ...errors import DataError
from ..models.attributes import ATTRIBUTES
from .splits import Dataset, Rows, draw_split, make_dataset
from .text_tables import first_file, read_columns, read_name, read_number

PUBLISHED_IMAGES = 4_070
SCALE = (0.0, 10.0)
TEST_SHARE = 0.1
_RANGES = {"score": SCALE, **dict.fromkeys(ATTRIBUTES["eva"], (1.0, 4.0))}
_PLACES = ("{image}.jpg", "images/{image}.jpg", "EVA_together/{image}.jpg", "images/EVA_together/{image}.jpg")


def read_eva(folder: str | os.PathLike[str]) -> Dataset:
    """Read EVA's votes from ``folder`` or its ``data``. Raises DataError with file and line."""
    path = first_file(folder, "votes_filtered.csv", "data/votes_filtered.csv")
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    lacking = 0
    for number, cells in read_columns(
        path, ("image_id", *_RANGES), "EVA's votes_filtered.csv", delimiter="="
    ):
        where = f"{path}:{number}"
        image = read_name(cells[0], where)
        if image not in sums:
            sums[image], counts[image] = np.zeros(len(_RANGES)), np.zeros(len(_RANGES))
        for index, (text, (name, (low, high))) in enumerate(zip(cells[1:], _RANGES.items(), strict=True)):
            if not text and name != "score":
                lacking += 1  # NaN is the target where no vote is left, and `attributes_loss` leaves it out
                continue
            sums[image][index] += read_number(text, low, high, where, f"the vote on {name}")
            counts[image][index] += 1
    if not sums:
        raise DataError(f"{path}: has no votes; give EVA's votes_filtered.csv")
    with np.errstate(invalid="ignore"):
        means = np.stack([sums[image] / counts[image] for image in sums]).astype(np.float32)
    rows = Rows(tuple(sums), {name: means[:, index] for index, name in enumerate(_RANGES)})
    notes = [f"eva: {lacking:,} votes do not state every attribute"] if lacking else []
    if len(rows) != PUBLISHED_IMAGES:
        notes.append(f"eva: {len(rows):,} images, as published {PUBLISHED_IMAGES:,}")
    whole = make_dataset(
        "eva", {"train": rows}, scale=SCALE, cut=5.0, notes=notes,
        places=dict.fromkeys(("train", "val", "test"), _PLACES),
    )  # fmt: skip
    return draw_split(whole, "train", "test", TEST_SHARE)
