"""A dataset as splits of rows: images and their targets, where the images are, and what two splits share."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...errors import DataError

SPLITS = ("train", "val", "test")
LEAST_ROWS = 2  # of a split: correlations and batch statistics need two
_PLAIN = ("{image}",)


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a split: names of N images, and their targets by the name of the model's output.

    ``score`` and attributes are float32 (N,), ``distribution`` (N, 10), ``label`` int64 (N,). ``inputs`` are the rows'
    features (N, F) where no images are read; ``themes`` name each row's theme where the data have themes.
    """

    images: tuple[str, ...]
    targets: Mapping[str, np.ndarray]
    inputs: np.ndarray | None = None
    themes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def take(self, numbers: np.ndarray) -> Rows:
        """Return the rows of these numbers."""
        return Rows(
            tuple(self.images[number] for number in numbers),
            {name: values[numbers] for name, values in self.targets.items()},
            None if self.inputs is None else self.inputs[numbers],
            tuple(self.themes[number] for number in numbers) if self.themes else (),
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset by its splits.

    Scores go from ``scale[0]`` to ``scale[1]``; an image is of high quality where its score is above ``cut``. ``places``
    are the paths that a split's images may have below the folder of images. ``notes`` are for the user.
    """

    name: str
    splits: Mapping[str, Rows]
    scale: tuple[float, float] = (0.0, 1.0)
    cut: float = 0.5
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> Rows:
        """Return a split; raises DataError where the dataset has none of this name."""
        if name not in self.splits:
            raise DataError(f"{self.name}: has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]


def make_dataset(
    name: str,
    splits: Mapping[str, Rows],
    *,
    scale: tuple[float, float] = (0.0, 1.0),
    cut: float = 0.5,
    places: Mapping[str, tuple[str, ...]] | None = None,
    published: Mapping[str, int] | None = None,
    notes: Iterable[str] = (),
) -> Dataset:
    """Return a dataset with notes on the counts that differ from the ``published`` ones and images in two splits.

    Raises DataError for a split with too few rows.
    """
    for split, rows in splits.items():
        if len(rows) < LEAST_ROWS:
            raise DataError(f"{name}: split {split} has {len(rows)} images; at least {LEAST_ROWS} are needed")
    found = [*notes]
    for split, count in (published or {}).items():
        if split in splits and len(splits[split]) != count:
            found.append(f"{name}: {split} has {len(splits[split]):,} images, as published {count:,}")
    keys = {split: ImageKeys.of(name, rows.images) for split, rows in splits.items()}
    for later, split in enumerate(splits):
        for other in list(splits)[:later]:
            shared = keys[split].count_in(keys[other])
            if shared:
                found.append(
                    f"{name}: {shared:,} images of {split} are in {other} too; figures on them say nothing"
                )
    return Dataset(name, dict(splits), scale, cut, dict(places or {}), tuple(found))


def draw_split(dataset: Dataset, source: str, into: str, share: float) -> Dataset:
    """Move a share of a split's images into a new split: those whose names have the smallest SHA-256, at least two.

    The order of the rows does not matter. Raises DataError where too few are left.
    """
    if not 0 < share < 1:
        raise DataError(f"share {share:g} of {source} for {into}: must be between 0 and 1")
    rows = dataset.split(source)
    count = max(LEAST_ROWS, round(share * len(rows)))
    digests = [
        hashlib.sha256(f"{into}:{image}".encode("utf-8", "surrogateescape")).digest() for image in rows.images
    ]
    drawn = np.zeros(len(rows), bool)
    drawn[sorted(range(len(rows)), key=digests.__getitem__)[:count]] = True
    splits = {source: rows.take(np.flatnonzero(~drawn)), into: rows.take(np.flatnonzero(drawn))}
    for split, part in splits.items():
        if len(part) < LEAST_ROWS:
            raise DataError(
                f"{dataset.name}: {len(rows)} images of {source} leave {len(part)} for {split} when a share of "
                f"{share:g} is drawn for {into}; give more images or another share"
            )
    note = f"{dataset.name}: {len(splits[into]):,} images for {into} are drawn from {source} by their names' SHA-256"
    merged = {**dataset.splits, **splits}
    ordered = {name: merged[name] for name in SPLITS if name in merged}
    return replace(dataset, splits=ordered, notes=(*dataset.notes, note))


def with_validation(dataset: Dataset, share: float = 0.1) -> Dataset:
    """Return the dataset with a split ``val``, drawn from ``train`` where it has none: never from ``test``."""
    return dataset if "val" in dataset.splits else draw_split(dataset, "train", "val", share)


# ---------------------------------------------------------------------- the images on disk


def locate_images(dataset: Dataset, split: str, root: str | os.PathLike[str]) -> list[Path]:
    """Return the path of each image of a split below ``root``: the first of the dataset's places where it is.

    Raises DataError where images are missing: how many, and the first.
    """
    rows = dataset.split(split)
    places = dataset.places.get(split, _PLAIN)
    scores = rows.targets.get("score")
    found: list[Path] = []
    missing: list[str] = []
    for number, image in enumerate(rows.images):
        score = "" if scores is None else f"{scores[number]:.3f}"
        for place in places:
            path = Path(root, place.format(image=image, score=score))
            if path.is_file():
                found.append(path)
                break
        else:
            missing.append(image)
    if missing:
        looked = ", ".join(place.format(image=missing[0], score="SCORE") for place in places)
        raise DataError(
            f"{root}: {len(missing):,} of {len(rows):,} images of {dataset.name}'s {split} are missing, the first "
            f"{missing[0]!r} (looked for {looked}); give the folder of the images"
        )
    return found


# ---------------------------------------------------------------------- images that datasets share

# AVA's and EVA's images are named by AVA's ids, AADB's and FLICKR-AES's by Flickr's: farm, server, PHOTO, secret.
_AVA_NAMED = ("ava", "eva")
_ROW = re.compile(r"^\d{8}_")  # of a database's key, before the path
_FLICKR = re.compile(r"(?:^|[_/])farm\d+_\d+_(\d+)_[0-9a-f]+")


def image_key(dataset: str, image: str) -> str:
    """Return what an image is known by: AVA's id, Flickr's, or its name within the dataset."""
    found = _FLICKR.search(image)
    if found:
        return f"flickr:{found[1]}"
    if dataset == "features":
        return f"features:{_ROW.sub('', image)}"
    stem = Path(image).stem
    if dataset in _AVA_NAMED and stem.isascii() and stem.isdigit():
        return f"ava:{stem.lstrip('0') or '0'}"
    return f"{dataset}:{image}"


@dataclass(frozen=True, eq=False)
class ImageKeys:
    """The keys of a split's images, to be compared with another's."""

    keys: frozenset[str]

    @classmethod
    def of(cls, dataset: str, images: Iterable[str]) -> ImageKeys:
        """Return the keys of a dataset's images."""
        return cls(frozenset(image_key(dataset, image) for image in images))

    def count_in(self, other: ImageKeys) -> int:
        """Return how many of these images the other has."""
        return len(self.keys & other.keys)


def contamination(trained: Iterable[tuple[str, str]], dataset: Dataset, split: str) -> str:
    """Return a warning where images of a split were trained on, or "": ``trained`` are (dataset, image) pairs."""
    keys = ImageKeys(frozenset(image_key(name, image) for name, image in trained))
    rows = dataset.split(split)
    shared = ImageKeys.of(dataset.name, rows.images).count_in(keys)
    if not shared:
        return ""
    return (
        f"{shared:,} of the {len(rows):,} images of {dataset.name}'s {split} were trained on: the figures are not those "
        "of unseen images"
    )
