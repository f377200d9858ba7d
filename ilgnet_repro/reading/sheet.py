"""Summary of a list or database of images: counts, sizes and samples."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from .. import opencv as cv2
from ..errors import DataError, FormatError
from .datum import chw_to_hwc
from .parallel import ordered_map
from .rows import ImageRows, open_rows

BOX_COLOUR = (0, 255, 0)
THUMBNAIL = 112
"""Side of the square a sample is fitted into, in pixels."""


@dataclass(frozen=True)
class Sample:
    """One sampled image: its name, label, original (width, height), and thumbnail (BGR, uint8)."""

    name: str
    label: int
    size: tuple[int, int]
    thumbnail: np.ndarray


@dataclass(frozen=True)
class Sheet:
    """A summary: rows by label, the sizes (width, height) of the images decoded, those that could not be,
    and a few samples of each label."""

    title: str
    rows: int
    labels: dict[int, int]
    sizes: tuple[tuple[int, int], ...]
    unreadable: tuple[str, ...]
    samples: dict[int, tuple[Sample, ...]]


def make_sheet(
    source: str | os.PathLike[str],
    root: str | os.PathLike[str] = "",
    *,
    per_label: int = 12,
    sizes_of: int = 1000,
    seed: int = 0,
) -> Sheet:
    """Summarise an LMDB folder, or a list file whose images are under ``root``.

    All rows are counted; ``sizes_of`` of them, drawn with ``seed``, are decoded for the sizes, and up to
    ``per_label`` of each label are shown. Raises DataError if the source is neither, or has no rows.
    """
    if per_label < 0 or sizes_of < 0 or not 0 <= seed < 1 << 32:
        raise DataError(f"per_label {per_label}, sizes_of {sizes_of}, seed {seed}: none may be negative")
    where = open_rows(source, root)
    labels = where.labels()
    if not len(labels):
        raise DataError(f"{source}: has no rows; give a list or database with rows")
    counts = Counter(labels.tolist())
    order = np.random.RandomState(seed).permutation(len(labels))
    shown = {label: order[labels[order] == label][:per_label].tolist() for label in sorted(counts)}
    chosen = list(dict.fromkeys([row for rows in shown.values() for row in rows] + order[:sizes_of].tolist()))
    found: dict[int, Sample] = {}
    unreadable = []
    for row, result in zip(chosen, ordered_map(partial(sample, where), chosen), strict=True):
        if isinstance(result, Sample):
            found[row] = result
        else:
            unreadable.append(result)
    return Sheet(
        title=str(source),
        rows=len(labels),
        labels=dict(sorted(counts.items())),
        sizes=tuple(sample.size for sample in found.values()),
        unreadable=tuple(unreadable),
        samples={label: tuple(found[row] for row in rows if row in found) for label, rows in shown.items()},
    )


def sample(rows: ImageRows, number: int) -> Sample | str:
    """The sample of a row, or why there is none."""
    try:
        chw, label = rows.image(number)
        name, image = rows.name(number), chw_to_hwc(_shown(chw))
        boxes = rows.boxes(number)
    except (DataError, FormatError) as error:
        return str(error)
    height, width = image.shape[:2]
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    scale = min(THUMBNAIL / width, THUMBNAIL / height)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    thumbnail = cv2.resize(image[:, :, :3], fitted, interpolation=cv2.INTER_AREA)
    for box in boxes:
        corners = np.nan_to_num([box.xmin, box.ymin, box.xmax, box.ymax]).clip(0, 1) * (
            np.array(fitted * 2) - 1
        )
        left, top, right, bottom = (round(float(corner)) for corner in corners)
        cv2.rectangle(thumbnail, (left, top), (right, bottom), BOX_COLOUR, 1)
    return Sample(name, label, (width, height), thumbnail)


def _shown(image: np.ndarray) -> np.ndarray:
    """An image as 8 bits of 1, 3 or 4 channels: other numbers from their least to their greatest, other channels' mean."""
    if image.shape[0] not in (1, 3, 4):
        image = image.mean(axis=0, keepdims=True, dtype=np.float32)
    if image.dtype == np.uint8:
        return image
    finite = np.nan_to_num(image.astype(np.float64), nan=0, posinf=0, neginf=0)
    low, span = finite.min(), np.ptp(finite)
    return np.asarray((finite - low) * (255 / span if span else 0), np.uint8)


def histogram(values: np.ndarray, bins: int = 24) -> Iterator[tuple[int, int, int]]:
    """Yield (from, to, count) of bins of equal integer width that cover the values."""
    low, high = int(values.min()), int(values.max())
    step = -(-(high - low + 1) // bins)
    for start in range(low, high + 1, step):
        yield start, start + step - 1, int(((values >= start) & (values < start + step)).sum())
