"""`score`: a net's outputs for images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, Unpack

import torch

from .about import About
from .errors import IlgnetError
from .known import ScoreAt
from .prepare_images import list_images, prepare
from .reading.preprocessing import Preprocessing
from .runtime.load import LoadOptions, load
from .runtime.modes import as_loaded
from .runtime.runnable import Runnable, run_rows
from .signatures import shows_options

PathLike = str | os.PathLike[str]
Row = TypeVar("Row")
BATCH = 16
LARGEST_BATCH = 65_536
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Score:
    """One image's outputs: each output blob's values, flattened.  ``path`` is "image N" for an array.

    ``value`` is the score, if the net's metadata say which value it is (`About.score`), and ``meaning`` its name.
    """

    path: str
    outputs: dict[str, tuple[float, ...]]
    value: float | None = None
    meaning: str = ""


@shows_options(LoadOptions, load)
def score(
    images: Any,
    weights: PathLike | Runnable,
    *,
    preprocessing: Preprocessing | None = None,
    batch: int = BATCH,
    **options: Unpack[LoadOptions],
) -> list[Score]:
    """Return each image's score, in the order given.

    ``images`` are files, folders, uint8 arrays or PIL images, or one of them.  ``weights`` is any file that `load`
    takes, with its ``options``, or a loaded net.  Raises IlgnetError where the net's preprocessing is neither known
    nor given, since the scores would be wrong.
    """
    net = load(weights, **options) if isinstance(weights, str | os.PathLike) else weights
    return list(score_with(net, expand(list_images(images)), preprocessing, batch))


def check_batch(batch: int) -> None:
    """Raise IlgnetError for an impossible batch size."""
    if not 1 <= batch <= LARGEST_BATCH:
        raise IlgnetError(f"batch={batch}: give a number from 1 to {LARGEST_BATCH}", option="batch")


def score_with(
    net: Runnable, images: Iterable[Any], preprocessing: Preprocessing | None = None, batch: int = BATCH
) -> Iterator[Score]:
    """Score images with a loaded net, in batches."""
    about = prepared_about(net, preprocessing)
    done = 0
    for chunk, outputs in run_images(net, about, images, batch):
        for index, image in enumerate(chunk):
            rows = {blob: _row(found, index, len(chunk)) for blob, found in outputs.items()}
            value = _value(rows, about.score)
            meaning = about.score.meaning if about.score is not None and value is not None else ""
            done += 1
            yield Score(_path_of(image) or f"image {done}", rows, value, meaning)


def prepared_about(net: Runnable, preprocessing: Preprocessing | None) -> About:
    """Return what is known of a net, with the ``preprocessing`` stated. Raises IlgnetError where there is none."""
    about = net.about if preprocessing is None else net.about.stating(preprocessing)
    if about.preprocessing is None and not about.image_order:
        raise IlgnetError(
            f"net {net.name!r}: nothing says how its images are prepared; state it as preprocessing=",
            option="preprocessing",
        )
    return about


def run_images(
    net: Runnable,
    about: About,
    rows: Iterable[Row],
    batch: int,
    blobs: Sequence[str] | None = None,
    image: Callable[[Row], Any] = lambda row: row,
) -> Iterator[tuple[list[Row], dict[str, torch.Tensor]]]:
    """Yield the rows of each batch with the net's outputs for their images, or the requested blobs."""
    name = net.image_input()
    check_batch(batch)
    if about.image_order:
        batch = 1  # images of several sizes cannot form a batch
    remaining = iter(rows)
    while chunk := list(islice(remaining, batch)):
        values = torch.from_numpy(prepare(about, [image(row) for row in chunk], net=net.name))
        with torch.inference_mode(), as_loaded(net):
            found = run_rows(net, name, values, blobs)
        yield chunk, found


def _path_of(image: Any) -> str:
    """Return an image's path: of a PIL image its file's, of an array none."""
    path: PathLike = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "")
    return os.fspath(path)


def _value(rows: dict[str, tuple[float, ...]], at: ScoreAt | None) -> float | None:
    values = rows.get(at.output, ()) if at is not None else ()
    return values[at.index] if at is not None and at.index < len(values) else None


def _row(blob: torch.Tensor, index: int, count: int) -> tuple[float, ...]:
    if blob.dim() == 0 or blob.shape[0] != count:
        raise IlgnetError(f"an output of shape {list(blob.shape)} does not have one row per image")
    return tuple(blob[index].flatten().tolist())


def expand(images: Iterable[Any]) -> list[Any]:
    """Return images with each folder replaced by its images (not those of its subfolders), sorted by name."""
    found: list[Any] = []
    for image in images:
        path = Path(image) if isinstance(image, str | os.PathLike) else None
        if path is None:
            found.append(image)
        elif path.is_dir():
            found += sorted(entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
        else:
            found.append(path)
    return found
