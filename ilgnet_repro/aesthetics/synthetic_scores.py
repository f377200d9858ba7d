"""Generated sets of scored images, written in the published layouts: what models of scores are tried on.

Each image has one disc on a plain background, and four factors between 0 and 1 that can be seen: how saturated the
colours are ("visual"), how near the disc is to a crossing of the thirds ("composition"), how little noise there is
("quality") and how large the disc is ("semantic"). The score is the factors' mean; the attributes are mixtures of the
factors, so that they are correlated with each other and with the score. Hue, lightness and crossing are at random.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import opencv as cv2
from ..errors import DataError, did_you_mean
from ..files import atomic_file, atomic_path, staged_results
from .models.attributes import ATTRIBUTES

FACTORS = ("visual", "composition", "quality", "semantic")
LARGEST_SIDE = 1024
_AADB_MIXTURE_SEED = 11  # of the attributes' weights, the same for every set
_VOTES = 100
_THEMES = ("animal", "street", "plant")


@dataclass(frozen=True, eq=False)
class Scored:
    """Drawn images: ``factors`` (N, 4) as they are seen, ``score`` (N,) from 0 to 1, maybe with noise."""

    images: list[np.ndarray]
    factors: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def draw_scored(count: int, side: int, seed: int, *, noise: float = 0.0) -> Scored:
    """Draw images and their scores; ``noise`` is the deviation of what is added to each score."""
    random = np.random.default_rng(seed)
    factors = random.random((count, len(FACTORS)))
    images = [draw_image(random, row, side) for row in factors]
    score = np.clip(factors.mean(1) + noise * random.standard_normal(count), 0, 1)
    return Scored(images, factors, score)


def draw_image(random: np.random.Generator, factors: np.ndarray, side: int) -> np.ndarray:
    """Draw one image with these four factors: uint8 (side, side, 3) in BGR."""
    visual, composition, quality, semantic = factors
    hue, lightness = random.integers(180), random.uniform(110, 170)
    hsv = np.empty((side, side, 3), np.uint8)
    hsv[...] = hue, 255 * visual, lightness
    crossing = random.choice((side / 3, 2 * side / 3), 2)
    place = crossing + (side / 2 - crossing) * (1 - composition)
    radius = side * (0.05 + 0.15 * semantic)
    colour = (int((hue + 90) % 180), int(255 * visual), int(min(lightness + 70, 255)))
    cv2.circle(hsv, tuple(round(float(value)) for value in place), round(float(radius)), colour, -1)
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR).astype(np.float32)
    image += random.normal(0, 40 * (1 - quality), image.shape)
    drawn: np.ndarray = np.clip(image, 0, 255).astype(np.uint8)
    return drawn


def attribute_values(data: str, factors: np.ndarray) -> dict[str, np.ndarray]:
    """Return the attributes of a dataset from 0 to 1, (N,) each: EVA's are the factors, AADB's mixtures of them."""
    if data == "eva":
        return {name: factors[:, index] for index, name in enumerate(FACTORS)}
    weights = np.random.default_rng(_AADB_MIXTURE_SEED).dirichlet(
        np.ones(len(FACTORS)), len(ATTRIBUTES["aadb"])
    )
    return {name: factors @ row for name, row in zip(ATTRIBUTES["aadb"], weights, strict=True)}


# ---------------------------------------------------------------------- the published layouts

Splits = Mapping[str, Scored]


def _name(split: str, number: int) -> str:
    """An AVA id for each image: another range for each split."""
    return str({"train": 100_000, "val": 200_000, "test": 300_000}[split] + number)


def _write_text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "w") as file:
        file.write("".join(f"{line}\n" for line in lines))


def _write_images(folder: Path, splits: Splits, name: Callable[[str, int], str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, scored in splits.items():
        for number, image in enumerate(scored.images):
            found, png = cv2.imencode(".png", image)
            assert found
            with atomic_path(folder / name(split, number)) as path:
                path.write_bytes(png.tobytes())


def _votes(score: float) -> np.ndarray:
    """100 votes around a score from 0 to 1, the largest remainders given first."""
    centre = 1 + 9 * score
    shares = np.exp(-0.5 * ((np.arange(1, 11) - centre) / 1.4) ** 2)
    exact = _VOTES * shares / shares.sum()
    votes: np.ndarray = np.floor(exact).astype(int)
    votes[np.argsort(votes - exact, kind="stable")[: _VOTES - votes.sum()]] += 1
    return votes


def _ava(folder: Path, splits: Splits) -> None:
    header = ["image_id", *(f"score{column}" for column in range(2, 12)), "tag1", "tag2", "tag3"]
    for split, scored in splits.items():
        rows = [
            ",".join([_name(split, number), *map(str, _votes(score)), "0", "0", "1"])
            for number, score in enumerate(scored.score)
        ]
        _write_text(folder / f"{split}.csv", [",".join(header), *rows])
    _write_images(folder / "images", splits, lambda split, number: f"{_name(split, number)}.jpg")


def _tad66k(folder: Path, splits: Splits) -> None:
    for split, scored in splits.items():
        for index, theme in enumerate(_THEMES):
            numbers = range(index, len(scored), len(_THEMES))
            rows = [f"{split}_{number}.jpg,{1 + 9 * scored.score[number]:.4f}" for number in numbers]
            _write_text(folder / split / f"{theme}.csv", ["image,score", *rows])
    _write_images(folder / "images", splits, lambda split, number: f"{split}_{number}.jpg")


def _aadb(folder: Path, splits: Splits) -> None:
    stems = {
        "train": "imgListTrainRegression",
        "val": "imgListValidationRegression",
        "test": "imgListTestNewRegression",
    }
    for split, scored in splits.items():
        columns = {"score": scored.score}
        columns |= {name: 2 * values - 1 for name, values in attribute_values("aadb", scored.factors).items()}
        for name, values in columns.items():
            spelled = "BalacingElements" if name == "BalancingElement" else name
            rows = [f"{split}_{number}.jpg {value:.4f}" for number, value in enumerate(values)]
            _write_text(folder / "imgListFiles_label" / f"{stems[split]}_{spelled}.txt", rows)
    _write_images(folder / "images", splits, lambda split, number: f"{split}_{number}.jpg")


def _eva(folder: Path, splits: Splits) -> None:
    header = "=".join(
        f'"{name}"'
        for name in ("image_id", "user_id", "score", "difficulty", *FACTORS, "vote_time", "1", "2", "3", "4")
    )
    rows = []
    for split, scored in splits.items():
        for number, (score, factors) in enumerate(zip(scored.score, scored.factors, strict=True)):
            for user, offset in enumerate((-0.25, 0.25)):  # two votes, integers on both sides of the value
                votes = [f'"{int(np.floor(10 * score + 0.5 + offset))}"', '"2"']
                votes += [
                    f'"{int(np.clip(np.floor(1 + 3 * value + 0.5 + offset), 1, 4))}"' for value in factors
                ]
                cells = [
                    f'"{_name(split, number)}"',
                    f'"E{user}"',
                    *votes,
                    '"9.5"',
                    '"1"',
                    '"0"',
                    '"0"',
                    '"0"',
                ]
                rows.append("=".join(cells))
    _write_text(folder / "data" / "votes_filtered.csv", [header, *rows])
    _write_images(folder / "images", splits, lambda split, number: f"{_name(split, number)}.jpg")


def _flickr_aes(folder: Path, splits: Splits) -> None:
    def name(split: str, number: int) -> str:
        return f"farm1_2_{_name(split, number)}_0123456789_b.jpg"

    scores = [
        f" {name(split, number)} {score:.4f}"
        for split, scored in splits.items()
        for number, score in enumerate(scored.score)
    ]
    _write_text(folder / "FLICKR-AES_image_score.txt", scores)
    workers = {split: f"A{index}" for index, split in enumerate(splits)}
    ratings = [
        f"{workers[split]},{name(split, number)},{round(1 + 4 * float(score))}"
        for split, scored in splits.items()
        for number, score in enumerate(scored.score)
    ]
    _write_text(
        folder / "FLICKR-AES_image_labeled_by_each_worker.csv", [" worker, imagePair, score", *ratings]
    )
    _write_text(folder / "test_workers.txt", [workers["test"]])
    _write_images(folder / "images", splits, name)


_LAYOUTS: Mapping[str, Callable[[Path, Splits], None]] = {
    "ava": _ava, "tad66k": _tad66k, "aadb": _aadb, "eva": _eva, "flickr-aes": _flickr_aes,
}  # fmt: skip


def write_scored_set(
    data: str,
    folder: str | os.PathLike[str],
    counts: Mapping[str, int],
    *,
    side: int = 64,
    seed: int = 0,
    noise: float = 0.0,
) -> Path:
    """Write a generated set in the layout of ``data`` into a new folder, its images in ``images``; return the folder.

    ``counts`` are the images of "train", "val" and "test". EVA's layout has no splits: all images are in one list.
    Raises DataError where the folder has files, or for another name or size.
    """
    if data not in _LAYOUTS:
        raise DataError(
            f"data {data!r} is unknown{did_you_mean(data, _LAYOUTS)}; choose one of {', '.join(_LAYOUTS)}"
        )
    if not 8 <= side <= LARGEST_SIDE or any(count < 0 for count in counts.values()):
        raise DataError(
            f"side {side}, images {dict(counts)}: give sides from 8 to {LARGEST_SIDE}, counts from 0"
        )
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder}: has files; give a new folder")
    splits = {
        split: draw_scored(count, side, 3 * seed + index, noise=noise if split == "train" else 0.0)
        for index, (split, count) in enumerate(counts.items())
        if count
    }
    folder.mkdir(parents=True, exist_ok=True)
    with staged_results(folder, "scored", DataError) as stage:
        _LAYOUTS[data](stage, splits)
        for path in list(stage.iterdir()):
            os.rename(path, folder / path.name)
    return folder
