"""R-CNN's window files: images, each with its windows, which are split into foreground and background."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ..caffe.expected_kind import kind_named
from ..errors import DataError, excerpt

_FIELDS = 6  # of a window: class, overlap, x1, y1, x2, y2
_AT_ONCE = 4096  # windows
_LARGEST = 2**31 - 1  # they are int in Caffe


@dataclass(frozen=True)
class Windows:
    """Windows as rows of (image, class, x1, y1, x2, y2), int64; the class of the background is 0."""

    images: tuple[str, ...]  # as the file states them
    channels: int
    foreground: np.ndarray
    background: np.ndarray


def read_windows(path: str | os.PathLike[str], fg_threshold: float, bg_threshold: float) -> Windows:
    """Read a window file as Caffe's WindowDataLayer does.

    Windows whose overlap is at least ``fg_threshold`` are foreground, those below ``bg_threshold`` background, others
    are left out.  Raises DataError, by image and window, for a file of another form.
    """
    with kind_named(path, "a window file"):
        try:
            with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
                words = (word for line in file for word in line.split())
                return _read(words, os.fspath(path), np.float32(fg_threshold), np.float32(bg_threshold))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); give R-CNN's window file") from error


def _read(words: Iterator[str], path: str, least: np.float32, below: np.float32) -> Windows:
    images: list[str] = []
    groups: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    channels = 0
    for mark in words:
        where = f"{path}: image {len(images)}"
        if mark != "#":
            raise DataError(
                f"{where}: {excerpt(mark)!r} is where # and its number should be; write `# {len(images)}`"
            )
        number = _integers(words, 1, where, "its number")[0]
        if number != len(images):
            raise DataError(f"{where}: is numbered {number}; number the images from 0, in order")
        name = next(words, None)
        if name is None:
            raise DataError(f"{where}: the file ends before its path; fetch it again")
        channels, _, _, count = _integers(words, 4, where, "channels, height, width and number of windows")
        if count < 0:
            raise DataError(f"{where}: {count} windows; state 0 or more")
        images.append(name)
        for kind, rows in zip((0, 1), _windows(words, count, number, where, least, below), strict=True):
            groups[kind].append(rows)
    if not images:
        raise DataError(f"{path}: has no image; give R-CNN's window file")
    foreground, background = (np.concatenate(rows) for rows in groups)
    return Windows(tuple(images), channels, foreground, background)


def _windows(
    words: Iterator[str], count: int, image: int, where: str, least: np.float32, below: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """The foreground and the background windows of one image."""
    kinds: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for start in range(0, count, _AT_ONCE):
        rows = min(_AT_ONCE, count - start)
        listed = list(islice(words, rows * _FIELDS))
        if len(listed) < rows * _FIELDS:
            raise DataError(
                f"{where}: the file ends at window {start + len(listed) // _FIELDS} of {count}; fetch it again"
            )
        try:
            table = np.array(listed).astype(np.float64).reshape(rows, _FIELDS)
        except ValueError as error:
            raise DataError(
                f"{where}: windows {start} to {start + rows - 1} are not all numbers ({error})"
            ) from error
        whole = table[:, [0, 2, 3, 4, 5]]
        is_whole = (whole == np.trunc(whole)) & (np.abs(whole) <= _LARGEST)
        bad = np.flatnonzero(~is_whole.all(1) | ~np.isfinite(table).all(1))
        if len(bad):
            raise DataError(
                f"{where}: window {start + int(bad[0])}: class and corners must be integers; "
                "write class, overlap, x1, y1, x2, y2"
            )
        overlaps = table[:, 1].astype(np.float32)
        is_foreground = overlaps >= least
        unlabelled = np.flatnonzero(is_foreground & (table[:, 0] <= 0))
        if len(unlabelled):
            at = int(unlabelled[0])
            raise DataError(
                f"{where}: window {start + at}: is foreground (overlap {overlaps[at]:g}) of class "
                f"{table[at, 0]:g}; classes of objects are over 0"
            )
        is_background = ~is_foreground & (overlaps < below)
        rows_of = np.concatenate([np.full((rows, 1), image), whole], axis=1).astype(np.int64)
        kinds[0].append(rows_of[is_foreground])
        background = rows_of[is_background]
        background[:, 1] = 0
        kinds[1].append(background)
    none = np.zeros((0, _FIELDS), np.int64)
    return np.concatenate([none, *kinds[0]]), np.concatenate([none, *kinds[1]])


def _integers(words: Iterator[str], count: int, where: str, what: str) -> list[int]:
    listed = list(islice(words, count))
    try:
        values = [int(word) for word in listed]
    except ValueError:
        values = []
    if len(values) < count:
        raise DataError(f"{where}: {excerpt(' '.join(listed))!r} is not {what}; give R-CNN's window file")
    return values
