"""Building a Caffe LMDB from an image list, as ``convert_imageset`` does, on all cores and resumable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ..errors import DataError
from ..files import check_output
from .datum import datum_picture, encoded_datum, hwc_to_chw, parse_datum, raw_datum
from .image_list import ImageList, ListRow, picture_path
from .images import (
    LARGEST_SIDE,
    check_encode_type,
    encode_picture,
    guess_encode_type,
    read_picture,
    same_kind,
)
from .lmdb_build_journal import BadRow, Journal
from .lmdb_read import key_text, row_key, split_key
from .lmdb_write import MAX_KEY, LmdbWriter
from .parallel import ordered_map

BATCH_ROWS = 256
BATCH_BYTES = 32 << 20
"""A batch is committed at so many rows or bytes, whichever comes first: it bounds memory and lost work."""


@dataclass(frozen=True)
class BuildOptions:
    """convert_imageset's flags, under its names. Images are resized only if both sides are given.

    ``seed`` is that of ``shuffle``; None keeps the list's order.
    """

    resize_height: int = 0
    resize_width: int = 0
    gray: bool = False
    encoded: bool = False
    encode_type: str = ""
    check_size: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("resize_height", "resize_width"):
            if not 0 <= getattr(self, name) <= LARGEST_SIDE:
                raise DataError(
                    f"{name} {getattr(self, name)}: a side is 0 (as it is) or more pixels, up to {LARGEST_SIDE}"
                )
        if self.encode_type:
            check_encode_type(self.encode_type)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) to resize to, or None."""
        return (self.resize_height, self.resize_width) if self.resize_height and self.resize_width else None


@dataclass(frozen=True)
class BuildReport:
    """What a build did: rows of the list, rows stored by all runs of it, rows left out, and the row at which
    this run began."""

    path: Path
    rows: int
    stored: int
    bad: tuple[BadRow, ...]
    began_at: int


@dataclass(frozen=True)
class _Made:
    """A row ready to be stored, with the pixels' count that check_size compares, or why it is not."""

    number: int
    row: ListRow
    value: bytes = b""
    pixels: int = 0
    reason: str = ""


def make_value(row: ListRow, root: str | os.PathLike[str], options: BuildOptions) -> tuple[bytes, int]:
    """The serialised ``Datum`` of one list row, and how many values its image has.

    Encoded rows that need no resizing keep the file's own bytes, where its suffix is the encoding's.
    Raises DataError if the file is no image.
    """
    path = picture_path(root, row.path)
    picture = read_picture(path, not options.gray, options.size)
    kind = options.encode_type or (guess_encode_type(row.path) if options.encoded else "")
    if not kind:
        return raw_datum(hwc_to_chw(picture), row.label), picture.size
    # Caffe looks at the flags here, not at whether a resize took place.
    if not options.resize_height and not options.resize_width and same_kind(path, kind):
        data = Path(path).read_bytes()
    else:
        data = encode_picture(picture, kind)
    return encoded_datum(data, row.label), picture.size


def _make(root: str, options: BuildOptions, item: tuple[int, ListRow]) -> _Made:
    number, row = item
    try:
        if len(row_key(number, row.path)) > MAX_KEY:
            raise DataError(
                f"{row.path}: is longer than LMDB's keys may be ({MAX_KEY} bytes); shorten the path"
            )
        value, pixels = make_value(row, root, options)
    except (DataError, OSError) as error:
        return _Made(number, row, reason=str(error))
    return _Made(number, row, value, pixels)


def build_lmdb(
    root: str | os.PathLike[str],
    list_file: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    strict: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, rows: None,
    on_bad: Callable[[BadRow], None] = lambda bad: None,
) -> BuildReport:
    """Store the images of a list, found under ``root``, as the LMDB ``target``; or finish doing so.

    Rows are numbered by the list (after a shuffle), also where images are left out, as in Caffe. The work
    goes on in ``target.partial``; keys rise with the list's rows, so the last key stored *is* the point to
    resume from, and a run killed at any moment loses and doubles nothing. The folder ``target`` appears when
    it is whole. Bad images are skipped and named in ``target.bad.txt``; ``strict`` stops at the first.
    Raises DataError if the target exists, the list cannot be used, ``target.partial`` is of another build, or
    the disk is full; run again, the build goes on where it was.
    """
    options = options or BuildOptions()
    target = Path(target)
    images = ImageList(list_file, options.seed)
    if not len(images):
        raise DataError(f"{images.path}: has no rows; write `path label` lines")
    check_output(target, [images.path])
    with Journal(target, images, os.fspath(root), asdict(options)) as journal:
        start = len(images)
        if not journal.whole:
            writer = LmdbWriter(journal.database)
            try:
                last = writer.last_key()
                start = 0 if last is None else split_key(last)[0] + 1
                journal.keep_bad_before(start)
                items = ((number, images[number]) for number in range(start, len(images)))
                made = ordered_map(partial(_make, os.fspath(root), options), items, workers)
                if options.check_size:
                    made = _same_size(made, _first_size(writer))
                _store(writer, _good_rows(made, journal, strict, on_bad), len(images), progress)
            finally:
                writer.close()
        bad = tuple(journal.bad)
        journal.finish()
    return BuildReport(target, len(images), len(images) - len(bad), bad, start)


def _good_rows(
    rows: Iterable[_Made], journal: Journal, strict: bool, on_bad: Callable[[BadRow], None]
) -> Iterator[_Made]:
    """Pass on the rows that can be stored; note the others, or stop at the first."""
    for made in rows:
        if not made.reason:
            yield made
            continue
        bad = BadRow(made.number, *made.row, made.reason)
        if strict:
            raise DataError(f"{journal.list_name}: row {bad.number}: {bad.reason}")
        journal.add_bad(bad)
        on_bad(bad)


def _same_size(rows: Iterable[_Made], expected: int) -> Iterator[_Made]:
    """Stop at an image with another number of values than the first (``expected``, or 0 if none is known).

    Caffe compares the stored bytes with the shape fields, which encoded rows do not have: there its
    check_size always fails. Here the decoded images are compared.
    """
    for made in rows:
        expected = expected or made.pixels
        if not made.reason and made.pixels != expected:
            raise DataError(
                f"{made.row.path}: has {made.pixels} values where the first image has {expected}; "
                "resize, or leave out check_size"
            )
        yield made


def _store(
    writer: LmdbWriter, rows: Iterable[_Made], total: int, progress: Callable[[int, int], None]
) -> None:
    """Write the rows in batches."""
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for made in rows:
        batch.append((row_key(made.number, made.row.path), made.value))
        size += len(made.value)
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            writer.write(batch)
            batch, size = [], 0
        progress(made.number + 1, total)
    writer.write(batch)
    progress(total, total)


def _first_size(writer: LmdbWriter) -> int:
    """How many values the first stored image has, for a build that goes on; 0 in an empty database."""
    first = writer.first()
    if first is None:
        return 0
    where = key_text(first[0])
    return datum_picture(parse_datum(first[1], where), where).size
