"""Counts of a database and checks of its rows: ``ilgnet lmdb info`` and ``check``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, FormatError, IlgnetError
from .annotated import is_annotated
from .image_list import ImageList
from .lmdb_build_journal import read_bad_numbers
from .lmdb_read import LmdbReader, Row, key_text, row_key, split_key
from .parallel import ordered_map


@dataclass(frozen=True)
class LmdbSummary:
    """Rows, bytes of the file, rows by label, by kind (raw, float, png, …) and by shape, and the first and last key.

    Shapes are ``CxHxW`` as the rows state them; encoded rows state none and count by kind only. ``boxes`` are those of
    SSD's AnnotatedDatum rows by class; empty for other rows.
    """

    path: str
    rows: int
    file_bytes: int
    labels: dict[int, int]
    kinds: dict[str, int]
    shapes: dict[str, int]
    first_key: str
    last_key: str
    boxes: dict[int, int]


def summarise(path: str | os.PathLike[str]) -> LmdbSummary:
    """Count a database's rows in one pass, without reading the images."""
    reader = LmdbReader(path)
    labels: Counter[int] = Counter()
    kinds: Counter[str] = Counter()
    shapes: Counter[str] = Counter()
    first = last = b""
    found: Counter[int] = Counter()
    for key, header, objects in reader.annotated_headers():
        found.update(box.label for box in objects)
        first, last = first or key, key
        labels[header.label] += 1
        kinds[header.kind] += 1
        if header.shape:
            shapes["x".join(map(str, header.shape))] += 1
    return LmdbSummary(
        path=str(path),
        rows=len(reader),
        file_bytes=reader.file_bytes,
        labels=dict(sorted(labels.items())),
        kinds=dict(kinds.most_common()),
        shapes=dict(shapes.most_common()),
        first_key=key_text(first),
        last_key=key_text(last),
        boxes=dict(sorted(found.items())),
    )


@dataclass(frozen=True)
class LmdbCheck:
    """Result of a check: rows checked, and the problems found, one line each (at most ``MAX_FAULTS`` are kept)."""

    rows: int
    fault_count: int
    faults: tuple[str, ...]


MAX_FAULTS = 100


def check_lmdb(
    path: str | os.PathLike[str],
    *,
    images: ImageList | None = None,
    labels: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> LmdbCheck:
    """Check every row in constant memory: it decodes, and no two keys ``%08d_path`` have the same number.

    ``labels`` is the number of classes: labels, or the classes of boxes, must be in [0, labels). ``images`` is the list
    the database was built from: each row of the list must be there, with its path and label, except those that its
    ``.bad.txt`` lists. Keys of other tools name their row by a number, the path itself, or their position. Raises
    DataError if the database cannot be opened; other problems are in the result.
    """
    reader = LmdbReader(path)
    rows = len(reader)
    kept: list[str] = [] if rows else [f"{path}: has no rows; build it again"]
    count = len(kept)
    skipped = read_bad_numbers(Path(path)) if images is not None else frozenset()
    seen = _with_progress(ordered_map(_check_row, reader, workers), lambda done: progress(done, rows))
    first = next(reader.keys(), b"") if images is not None and rows else b""
    if images is not None and rows and not _is_convert_imagesets(first):
        found = _faults_by_number(seen, images, labels, skipped)
    else:
        found = _faults(seen, images, labels, skipped)
    for fault in found:
        count += 1
        if len(kept) < MAX_FAULTS:
            kept.append(fault)
    return LmdbCheck(rows, count, tuple(kept))


class _CheckedRow(NamedTuple):
    """A row's key, its label, why it cannot be decoded, and the classes of its boxes if it is an AnnotatedDatum."""

    key: bytes
    label: int
    fault: str
    classes: tuple[int, ...] | None = None

    def wrong_label(self, labels: int | None) -> str:
        """What is wrong with its label, or with the classes of its boxes, where there are ``labels`` classes."""
        stated = (self.label,) if self.classes is None else self.classes
        wrong = next((label for label in stated if labels is not None and not 0 <= label < labels), None)
        if wrong is None or labels is None:
            return ""
        what, remedy = (
            ("label", "correct the list") if self.classes is None else ("box of class", "correct it")
        )
        return f"{key_text(self.key)}: {what} {wrong} is not in 0..{labels - 1}; {remedy}"


def _check_row(row: Row) -> _CheckedRow:
    try:
        _, label = row.image()
        annotated = is_annotated(row.value, key_text(row.key))
        classes = tuple(box.label for box in row.boxes()) if annotated else None
    except (DataError, FormatError) as error:
        return _CheckedRow(row.key, 0, str(error))
    return _CheckedRow(row.key, label, "", classes)


def _with_progress(rows: Iterable[_CheckedRow], progress: Callable[[int], None]) -> Iterator[_CheckedRow]:
    for done, row in enumerate(rows, 1):
        yield row
        progress(done)


def _faults(
    rows: Iterable[_CheckedRow],
    images: ImageList | None,
    labels: int | None,
    skipped: frozenset[int],
) -> Iterator[str]:
    """Yield the problems in row order. ``expected`` is the next row number of the list."""
    expected, previous = 0, -1
    for row in rows:
        key, label, fault, _ = row
        if fault:
            yield fault
        elif wrong := row.wrong_label(labels):
            yield wrong
        try:
            number, _ = split_key(key)
        except IlgnetError as error:
            if images is not None:
                yield str(error)
            continue
        if number <= previous:
            yield f"{key_text(key)}: a second row with number {number}; build the database again"
        previous = number
        if images is None:
            continue
        yield from _missing(images, range(expected, min(number, len(images))), skipped)
        expected = max(expected, number + 1)
        if number >= len(images):
            yield f"{key_text(key)}: the list has {len(images)} rows; give the list it was made from"
        elif key != row_key(number, images[number].path):
            yield f"{key_text(key)}: the list's row is {images[number].path}; give the list it was made from"
        elif not fault and label != images[number].label:
            yield f"{key_text(key)}: label {label} where the list has {images[number].label}; build it again"
    if images is not None:
        yield from _missing(images, range(expected, len(images)), skipped)


def _is_convert_imagesets(key: bytes) -> bool:
    try:
        split_key(key)
    except DataError:
        return False
    return True


def _faults_by_number(
    rows: Iterable[_CheckedRow], images: ImageList, labels: int | None, skipped: frozenset[int]
) -> Iterator[str]:
    """Yield the problems of a database of another tool: whose keys are numbers, paths of the list, or anything."""
    numbers = {os.fsencode(row.path): number for number, row in enumerate(images)}
    seen = bytearray(len(images))
    for position, row in enumerate(rows):
        key, label, fault, _ = row
        if fault:
            yield fault
        elif wrong := row.wrong_label(labels):
            yield wrong
        number = numbers.get(key, int(key) if key.isdigit() and len(key) < 20 else position)
        if number >= len(images):
            yield f"{key_text(key)}: the list has {len(images)} rows; give the list it was made from"
            continue
        if seen[number]:
            yield f"{key_text(key)}: a second row with number {number}; build the database again"
        elif not fault and label != images[number].label:
            yield f"{key_text(key)}: label {label} where the list has {images[number].label}; build it again"
        seen[number] = 1
    yield from _missing(images, range(len(images)), skipped | {n for n, there in enumerate(seen) if there})


def _missing(images: ImageList, numbers: range, skipped: frozenset[int]) -> Iterator[str]:
    for number in numbers:
        if number not in skipped:
            yield f"row {number} ({images[number].path}) of the list is missing; build it again"
