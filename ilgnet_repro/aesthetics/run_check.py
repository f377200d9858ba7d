"""`ilgnet test --check`: what a run would read, and what it would cost, without running the net."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..reading.images import decode_file, not_decoded
from ..reading.parallel import cores, ordered_map
from .labelled_images import LabelledImages
from .protocols import BATCH_SIZES, OTHER_BATCH_SIZE, PROTOCOLS

# Of a table, its journal and run.json together: the name in each, and the digits of label, probability and loss.
_BYTES_PER_ROW = 120
_BYTES_OF_A_RUN = 8192


@dataclass(frozen=True)
class Fault:
    """A row whose image is missing or broken; ``batch`` is the published one it falls in, None past the last."""

    row: int
    name: str
    kind: str
    reason: str
    batch: int | None


@dataclass(frozen=True)
class RunCheck:
    """The rows of a test, their images that can be read, and what a run needs.

    ``disk`` is that of its results, in bytes, ``seconds`` the time that reading and decoding took: a run takes this
    and the net's own time (docs/speed.md).  ``batches`` are the published ones, of ``batch_size`` rows each.
    """

    dataset: str
    rows: int
    labels: dict[int, int]
    found: int
    missing: int
    broken: int
    batches: int
    batch_size: int
    faults: tuple[Fault, ...]
    disk: int
    seconds: float

    @property
    def faulty_batches(self) -> tuple[int, ...]:
        """The published batches with a row whose image is missing or broken, by number."""
        return tuple(sorted({fault.batch for fault in self.faults if fault.batch is not None}))


def check_run(
    dataset: str,
    images: LabelledImages,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> RunCheck:
    """Read and decode every image of a test.  Raises nothing for images that cannot be read."""
    started = time.monotonic()
    size = batch_size or BATCH_SIZES.get(dataset, OTHER_BATCH_SIZE)
    published = PROTOCOLS["published"].batches or 0
    faults = []
    read = ordered_map(lambda row: _fault(images, row), range(len(images)), workers or cores())
    for row, fault in enumerate(read):
        if fault is not None:
            kind, reason = fault
            batch = row // size if row < published * size else None
            faults.append(Fault(row, images.names[row], kind, reason, batch))
        progress(row + 1)
    missing = sum(fault.kind == "missing" for fault in faults)
    values, counts = np.unique(images.labels, return_counts=True)
    return RunCheck(
        dataset=dataset,
        rows=len(images),
        labels=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        found=len(images) - len(faults),
        missing=missing,
        broken=len(faults) - missing,
        batches=published,
        batch_size=size,
        faults=tuple(faults),
        disk=_disk(images.names),
        seconds=time.monotonic() - started,
    )


def _fault(images: LabelledImages, row: int) -> tuple[str, str] | None:
    """Return what is wrong with a row's image, and the reason; None where it can be read."""
    try:
        image = images.image(row)
    except (DataError, OSError) as error:
        return "broken", str(error)
    if not isinstance(image, str):
        return None
    import cv2

    if decode_file(image, cv2.IMREAD_COLOR) is not None:
        return None
    return ("broken" if os.path.isfile(image) else "missing"), f"{image}: {not_decoded(image)}"


def _disk(names: Sequence[str]) -> int:
    return _BYTES_OF_A_RUN + sum(2 * len(os.fsencode(name)) + _BYTES_PER_ROW for name in names)


def free_space(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or would be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
