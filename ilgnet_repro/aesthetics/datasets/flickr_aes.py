"""FLICKR-AES: 40,988 photographs with a score from 0 to 1, each rated by five workers (Ren et al., ICCV 2017).

``FLICKR-AES_image_score.txt`` has rows of ``image score``, ``FLICKR-AES_image_labeled_by_each_worker.csv`` one row per
rating. The published split is by worker, and its 37 test workers are in neither file: where ``test_workers.txt`` names
them, one per line, the images that they rated are the test set. Without it a tenth of the images is drawn for testing.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...errors import DataError
from .splits import Dataset, Rows, draw_split, make_dataset
from .text_tables import Once, first_file, read_columns, read_lines, read_name, read_number

PUBLISHED_IMAGES = 40_988
PUBLISHED = {"train": 35_263, "test": 4_737}  # by worker: 173 and 37
TEST_SHARE = 0.1
SCORES = "FLICKR-AES_image_score.txt"
RATINGS = "FLICKR-AES_image_labeled_by_each_worker.csv"
TEST_WORKERS = "test_workers.txt"
_PLACES = ("{image}", "40K/{image}")


def read_flickr_aes(folder: str | os.PathLike[str]) -> Dataset:
    """Read the lists of FLICKR-AES from ``folder``. Raises DataError with file and line."""
    path = first_file(folder, SCORES)
    scores: dict[str, float] = {}
    once = Once()
    for number, line in read_lines(path, SCORES):
        where = f"{path}:{number}"
        image, _, score = line.strip().rpartition(" ")
        image = read_name(image.strip(), where)
        once.add(image, where)
        scores[image] = read_number(score, 0.0, 1.0, where, "the score")
    rows = Rows(tuple(scores), {"score": np.array(list(scores.values()), np.float32)})
    notes = []
    if len(rows) != PUBLISHED_IMAGES:
        notes.append(f"flickr-aes: {len(rows):,} images, as published {PUBLISHED_IMAGES:,}")
    places = dict.fromkeys(("train", "val", "test"), _PLACES)
    workers = Path(folder, TEST_WORKERS)
    if not workers.is_file():
        notes.append(
            f"flickr-aes: without {TEST_WORKERS} the split is not the published one by worker, so figures do not compare"
        )
        whole = make_dataset("flickr-aes", {"train": rows}, places=places, notes=notes)
        return draw_split(whole, "train", "test", TEST_SHARE)
    rated = _rated_by(workers, first_file(folder, RATINGS))
    is_test = np.array([image in rated for image in rows.images], bool)
    splits = {"train": rows.take(np.flatnonzero(~is_test)), "test": rows.take(np.flatnonzero(is_test))}
    return make_dataset("flickr-aes", splits, places=places, published=PUBLISHED, notes=notes)


def _rated_by(workers: Path, ratings: Path) -> set[str]:
    """The images that the test workers rated."""
    chosen = {
        line.strip(): f"{workers}:{number}" for number, line in read_lines(workers, "a list of workers")
    }
    rated: set[str] = set()
    seen: set[str] = set()
    for number, (worker, image, score) in read_columns(
        ratings, ("worker", "imagePair", "score"), "FLICKR-AES's ratings"
    ):
        read_number(score, 1.0, 5.0, f"{ratings}:{number}", "the rating")
        if worker in chosen:
            seen.add(worker)
            rated.add(image)
    unknown = [worker for worker in chosen if worker not in seen]
    if unknown:
        raise DataError(
            f"{chosen[unknown[0]]}: worker {unknown[0][:40]!r} has rated no image of {ratings.name}"
        )
    return rated
