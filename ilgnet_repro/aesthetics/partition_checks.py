"""Checks of partitions: counts, class order, duplicates, overlap, contamination, missing and bad images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial

from ..errors import DataError
from ..reading.image_list import ImageList, find_image
from ..reading.images import read_image
from ..reading.parallel import ordered_map
from .releases import Release, known_release, releases, shared_rows


@dataclass(frozen=True)
class ListReport:
    """The content of a list. ``class_sizes`` counts rows by label; ``runs`` is the number of stretches of one
    label, ``first_run`` the length of the first; ``duplicates`` are the paths with more than one row."""

    file: str
    rows: int
    class_sizes: dict[int, int]
    runs: int
    first_run: int
    first_label: int
    duplicates: tuple[str, ...]
    sha256: str
    release: str | None

    @property
    def sorted_by_class(self) -> bool:
        """Whether there are several classes, each in one stretch."""
        return 1 < len(self.class_sizes) == self.runs

    @property
    def order_note(self) -> str | None:
        """One line on the effect of sorting by class on a test that stops early; None for a mixed list."""
        if not self.sorted_by_class:
            return None
        return (
            f"sorted by class: its first {self.first_run:,} rows are all label {self.first_label}, so a test "
            "that stops early (Caffe's default is 50 batches) sees one class; shuffle it or test all rows"
        )


def check_list(path: str | os.PathLike[str]) -> ListReport:
    """Read a whole list. Raises DataError for a bad row (with its line) or a list without rows."""
    rows = ImageList(path)
    if not len(rows):
        raise DataError(f"{path}: no rows; write `path label` lines")
    rows.check_labels()
    sizes: Counter[int] = Counter()
    seen: set[str] = set()
    twice: dict[str, None] = {}
    runs, first_run, previous = 0, 0, None
    for name, label in rows:
        runs += label != previous
        first_run += runs == 1
        previous = label
        sizes[label] += 1
        if name in seen:
            twice[name] = None
        seen.add(name)
    digest = rows.digest()
    release = known_release(digest)
    return ListReport(
        file=str(path),
        rows=len(rows),
        class_sizes=dict(sorted(sizes.items())),
        runs=runs,
        first_run=first_run,
        first_label=rows[0].label,
        duplicates=tuple(twice),
        sha256=digest,
        release=release.name if release else None,
    )


def list_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The paths of a list, row by row. Raises DataError for a bad row."""
    return tuple(name for name, _ in ImageList(path))


def contamination(train: Collection[str], val: Iterable[str]) -> int:
    """How many rows of val name an image of train."""
    known = frozenset(train)
    return sum(name in known for name in val)


def warn_contaminated(weights_release: Release | None, partition_release: Release | None) -> str | None:
    """One line if released weights meet a released list they were trained on, in part or whole; else None.

    Either may be None (not a released file): nothing is known then, and None is returned.
    """
    if weights_release is None or partition_release is None or partition_release.rows is None:
        return None
    trained_on = weights_release.trained_on
    if trained_on is None:
        return None
    if trained_on == partition_release.name:
        shared = partition_release.rows
    else:
        shared = shared_rows(trained_on, partition_release.name)
    if not shared:
        return None
    clean = [
        release.name
        for release in releases()
        if release.kind == "partition"
        and release.name != trained_on
        and not shared_rows(trained_on, release.name)
    ]
    return (
        f"{weights_release.name} were trained on {shared:,} of the {partition_release.rows:,} images of "
        f"{partition_release.name} ({shared / partition_release.rows:.1%}), so this is no test of them; "
        f"use {' or '.join(clean)}"
    )


@dataclass(frozen=True)
class ImageReport:
    """Paths (as the list has them) whose file is ``missing``, ``corrupt`` (it cannot be decoded) or
    ``truncated`` (it decodes, with grey where its end is cut off, which Caffe accepts without a warning)."""

    checked: int
    missing: tuple[str, ...]
    corrupt: tuple[str, ...]
    truncated: tuple[str, ...]

    @property
    def bad(self) -> dict[str, str]:
        """Defect by path, for a list of images to leave out."""
        kinds = ("missing", "corrupt", "truncated")
        return {name: kind for kind in kinds for name in getattr(self, kind)}


def check_images(
    rows: ImageList,
    folder: str | os.PathLike[str],
    workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> ImageReport:
    """Decode every image of a list, on ``workers`` threads (one per core by default)."""
    faults: dict[str, list[str]] = {"missing": [], "corrupt": [], "truncated": []}
    done = 0
    names = (name for name, _ in rows)
    for name, fault in ordered_map(partial(_image_fault, folder), names, workers):
        done += 1
        if fault:
            faults[fault].append(name)
        progress(done)
    return ImageReport(done, **{kind: tuple(found) for kind, found in faults.items()})


def _image_fault(folder: str | os.PathLike[str], name: str) -> tuple[str, str | None]:
    path = find_image(folder, name)
    if not os.path.isfile(path):
        return name, "missing"
    try:
        read_image(path)
        with open(path, "rb") as file:
            return name, "truncated" if _cut_short(file.read()) else None
    except (DataError, OSError):
        return name, "corrupt"


def _cut_short(data: bytes) -> bool:
    """Whether a JPEG's last scan, or a PNG, has no end mark. Trailing bytes after the mark are allowed."""
    if data.startswith(b"\xff\xd8"):
        # Inside a scan 0xff is followed by 0 or a restart mark, so these two cannot occur by chance there.
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    return data.startswith(b"\x89PNG") and b"IEND" not in data[-4096:]
