"""Building a Caffe LMDB from an image list, as ``convert_imageset`` does: on all cores, resumable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ..errors import DataError
from ..files import check_output
from .cluster import Columns, Work, check_cluster, rows_on_cluster
from .datum import datum_image, encoded_datum, hwc_to_chw, parse_datum, raw_datum
from .image_list import ImageList, ListRow, find_image
from .images import LARGEST_SIDE, check_encode_type, encode_image, guess_encode_type, has_encoding
from .lmdb_build_journal import BadRow, Journal
from .lmdb_read import key_text, row_key, split_key
from .lmdb_write import MAX_KEY, LmdbWriter
from .parallel import ordered_map
from .rows import read_listed_image

BATCH_ROWS = 256
BATCH_BYTES = 32 << 20
"""A batch is committed at this many rows or bytes, whichever comes first, to bound memory and lost work."""


@dataclass(frozen=True)
class BuildOptions:
    """convert_imageset's flags, under its names. Images are resized only if both sides are given.

    ``seed`` shuffles the list; None keeps its order.
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
                raise DataError(f"{name} {getattr(self, name)}: give 0 (no resize) to {LARGEST_SIDE}")
        if self.encode_type:
            check_encode_type(self.encode_type)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) to resize to, or None."""
        return (self.resize_height, self.resize_width) if self.resize_height and self.resize_width else None


@dataclass(frozen=True)
class BuildReport:
    """Result of a build: rows of the list, rows stored by all its runs, rows skipped, and the first row of this run."""

    path: Path
    rows: int
    stored: int
    bad: tuple[BadRow, ...]
    start_row: int


@dataclass(frozen=True)
class _BuiltRow:
    """A row ready to be stored and the number of its values (for check_size), or why it cannot be."""

    number: int
    row: ListRow
    value: bytes = b""
    size: int = 0
    reason: str = ""


def row_value(row: ListRow, root: str | os.PathLike[str], options: BuildOptions) -> tuple[bytes, int]:
    """Return the serialised ``Datum`` of one list row and the number of values of its image.

    Encoded rows that need no resizing keep the file's own bytes if its suffix is that of the encoding.
    Raises DataError if the file is not an image.
    """
    path = find_image(root, row.path)
    image = read_listed_image(row, root, not options.gray, options.size)
    kind = options.encode_type or (guess_encode_type(row.path) if options.encoded else "")
    if not kind:
        return raw_datum(hwc_to_chw(image), row.label), image.size
    # Caffe tests the flags here, not whether a resize took place.
    if not options.resize_height and not options.resize_width and has_encoding(path, kind):
        data = Path(path).read_bytes()
    else:
        data = encode_image(image, kind)
    return encoded_datum(data, row.label), image.size


def _build_row(root: str, options: BuildOptions, item: tuple[int, ListRow]) -> _BuiltRow:
    number, row = item
    try:
        if len(row_key(number, row.path)) > MAX_KEY:
            raise DataError(f"{row.path}: is longer than an LMDB key ({MAX_KEY} bytes); shorten the path")
        value, size = row_value(row, root, options)
    except (DataError, OSError) as error:
        return _BuiltRow(number, row, reason=str(error))
    return _BuiltRow(number, row, value, size)


def build_lmdb(
    root: str | os.PathLike[str],
    list_file: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    strict: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    progress: Callable[[int, int], None] = lambda done, rows: None,
    on_bad: Callable[[BadRow], None] = lambda bad: None,
) -> BuildReport:
    """Store the images of a list, found under ``root``, as the LMDB ``target``, or resume doing so.

    Rows are numbered by the list (after a shuffle), skipped images included, as in Caffe. The database is
    built in ``target.partial``; keys increase with the list's rows, so the last key stored is the point to
    resume from, and a run killed at any moment neither loses nor duplicates rows. The folder ``target`` appears
    when it is complete. Bad images are skipped and listed in ``target.bad.txt``; ``strict`` stops at the first.
    ``cluster="ray"`` decodes and resizes on a cluster, whose machines see list and images by the
    same paths; the database is the same, and is written here.
    Raises DataError if no row can be stored, the target exists, the list cannot be used, ``target.partial`` belongs to
    another build, or the disk is full; the same call again resumes the build.
    """
    options = options or BuildOptions()
    if cluster is not None:
        check_cluster(cluster)
    target = Path(target)
    images = ImageList(list_file, options.seed)
    if not len(images):
        raise DataError(f"{images.path}: has no rows; write `path label` lines")
    images[0]  # a file that is no list is refused before anything is written
    check_output(target, [images.path])
    with Journal(target, images, os.fspath(root), asdict(options)) as journal:
        start = len(images)
        if not journal.complete:
            writer = LmdbWriter(journal.database)
            try:
                last = writer.last_key()
                start = 0 if last is None else split_key(last)[0] + 1
                journal.keep_bad_before(start)
                items = ((number, images[number]) for number in range(start, len(images)))
                build = partial(_build_row, os.fspath(root), options)
                made: Iterable[_BuiltRow]
                if cluster is None:
                    made = ordered_map(build, items, workers)
                else:
                    made = _built_on_cluster(root, options, images, start, cluster)
                if options.check_size:
                    made = _check_sizes(made, _first_size(writer))
                _store(writer, _good_rows(made, journal, strict, on_bad), len(images), progress)
            finally:
                writer.close()
        bad = tuple(journal.bad)
        if len(bad) == len(images):
            listed = journal.give_up()
            raise DataError(
                f"{target}: none of the {len(images):,} rows could be stored (row 0: {bad[0].reason}); {listed} "
                "lists why"
            )
        journal.finish()
    return BuildReport(target, len(images), len(images) - len(bad), bad, start)


@dataclass(frozen=True)
class _ClusterBuild:
    """Builds numbered rows on another machine, which opens the list itself: only its path is sent."""

    root: str
    options: BuildOptions
    list_file: str
    seed: int | None

    def __call__(self, threads: int) -> Work:
        return partial(self._build, ImageList(self.list_file, self.seed))

    def _build(self, images: ImageList, numbers: Sequence[int]) -> Columns:
        made = [_build_row(self.root, self.options, (number, images[number])) for number in numbers]
        return {
            "number": [row.number for row in made],
            "value": [row.value for row in made],
            "size": [row.size for row in made],
            "reason": [os.fsencode(row.reason) for row in made],
        }


def _built_on_cluster(
    root: str | os.PathLike[str], options: BuildOptions, images: ImageList, start: int, cluster: str
) -> Iterator[_BuiltRow]:
    build = _ClusterBuild(os.fspath(root), options, os.fspath(images.path), images.seed)
    for row in rows_on_cluster(build, range(start, len(images)), cluster=cluster):
        number = int(row["number"])
        yield _BuiltRow(number, images[number], row["value"], int(row["size"]), os.fsdecode(row["reason"]))


def _good_rows(
    rows: Iterable[_BuiltRow], journal: Journal, strict: bool, on_bad: Callable[[BadRow], None]
) -> Iterator[_BuiltRow]:
    """Yield the rows that can be stored; record the others, or stop at the first."""
    for made in rows:
        if not made.reason:
            yield made
            continue
        bad = BadRow(made.number, *made.row, made.reason)
        if strict:
            raise DataError(f"{journal.list_name}: row {bad.number}: {bad.reason}")
        journal.add_bad(bad)
        on_bad(bad)


def _check_sizes(rows: Iterable[_BuiltRow], expected: int) -> Iterator[_BuiltRow]:
    """Stop at an image whose number of values differs from the first's (``expected``, 0 if not known yet).

    Caffe compares the stored bytes with the shape fields, which encoded rows do not have, so its
    check_size always fails on them. Here the decoded images are compared.
    """
    for made in rows:
        expected = expected or made.size
        if not made.reason and made.size != expected:
            raise DataError(
                f"{made.row.path}: has {made.size} values where the first image has {expected}; "
                "resize, or omit check_size"
            )
        yield made


def _store(
    writer: LmdbWriter, rows: Iterable[_BuiltRow], total: int, progress: Callable[[int, int], None]
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
    """The number of values of the first stored image, for a resumed build; 0 in an empty database."""
    first = writer.first()
    if first is None:
        return 0
    where = key_text(first[0])
    return datum_image(parse_datum(first[1], where), where).size
