"""A CSV journal of per-image results that is valid after a killed run."""

from __future__ import annotations

import csv
import io
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from ..errors import FormatError, IlgnetError
from .results import Row, csv_line, parse_row, row_fields

TITLE = "ilgnet_repro journal"


def is_journal(path: Path) -> bool:
    """Whether a file is a journal, or the start of one whose run was killed."""
    head = csv_line([TITLE, ""]).encode().rstrip(b'"\n')
    with open(path, "rb") as file:
        return head.startswith(file.read(len(head)))


class Journal:
    """A CSV that grows batch by batch and can be resumed after `kill -9`.

    Each line ends in a checksum of its text, so that a line cut short, or a block of zeros left by a machine
    that lost power, is seen for what it is: opening the journal drops everything from the first such line
    and continues from there. The first line names the run (``key``, such as a digest of weights, list and
    protocol); another run's journal is refused with IlgnetError.

    Use as a context manager; ``rows`` are those already done when it was opened.
    """

    def __init__(self, path: str | os.PathLike[str], key: str) -> None:
        self.path = Path(path)
        heading = _sealed([TITLE, key])
        try:
            self._file = open(self.path, "a+b")  # noqa: SIM115 (held open until close)
            self._file.seek(0)
            content = self._file.read()
        except OSError as error:
            raise IlgnetError(f"{path}: cannot be written ({error.strerror}); give another place") from error
        lines = content.split(b"\n")
        self.rows: list[Row] = []
        kept = 0
        # A journal killed within its first line is still empty; anything else that differs is not ours.
        if content and not heading.startswith(content):
            if lines[0] + b"\n" != heading:
                self._file.close()
                raise IlgnetError(f"{path}: the journal of another run; remove it or give another place")
            kept = len(heading)
            for line in lines[1:-1]:
                row = _opened(line)
                if row is None:
                    break
                self.rows.append(row)
                kept += len(line) + 1
        self._file.truncate(kept)
        if not kept:
            self._write(heading)

    def append(self, rows: Iterable[Row]) -> None:
        """Write ``rows`` and wait until they are on disk (fsync)."""
        self._write(b"".join(_sealed(row_fields(row)) for row in rows))

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise IlgnetError(
                f"{self.path}: cannot be written ({error.strerror}); free some space"
            ) from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sealed(fields: Sequence[str | int | float]) -> bytes:
    # A line break within a name would split its row: it is escaped, and so is the backslash then.
    plain = csv_line(fields).removesuffix("\n")
    text = (
        plain.replace("\\", "\\\\")
        .replace("\n", "\\n")
        .replace("\r", "\\r")
        .encode("utf-8", "surrogateescape")
    )
    return text + b",%08x\n" % zlib.crc32(text)


def _opened(line: bytes) -> Row | None:
    text, _, seal = line.rpartition(b",")
    if seal != b"%08x" % zlib.crc32(text):
        return None
    parts = text.decode("utf-8", "surrogateescape").split("\\\\")
    plain = "\\".join(part.replace("\\n", "\n").replace("\\r", "\r") for part in parts)
    try:
        return parse_row(next(csv.reader(io.StringIO(plain, newline=""))), "journal")
    except (csv.Error, StopIteration, FormatError):  # sealed, but not by this program
        return None
