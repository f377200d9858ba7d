"""Reading the datasets' text files: rows with their line numbers, columns by name, numbers in their range."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ...caffe.expected_kind import naming_kind
from ...errors import DataError
from ...files import open_input

LONGEST_LINE = 4096
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?", re.ASCII)


def read_lines(path: str | os.PathLike[str], what: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not empty, with their numbers.

    Raises DataError, which says ``what`` the file should be, where it cannot be read or is not UTF-8 text.
    """
    try:
        with open_input(path) as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise naming_kind(
                        DataError(f"{path}:{number}: longer than {LONGEST_LINE} bytes; give {what}"),
                        path,
                        what,
                    )
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
                except UnicodeDecodeError:
                    raise naming_kind(
                        DataError(f"{path}:{number}: is not UTF-8 text; give {what}"), path, what
                    ) from None
                if text.strip():
                    yield number, text
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give {what}") from error


def read_columns(
    path: str | os.PathLike[str], names: Sequence[str], what: str, *, delimiter: str = ","
) -> Iterator[tuple[int, list[str]]]:
    """Yield the columns ``names`` of each row of a table with a header, and the line's number.

    Raises DataError for a column that is missing or there twice, and a row of another length than the header.
    """
    lines = read_lines(path, what)
    header: list[str] = []
    indices: list[int] = []
    for number, text in lines:
        try:
            cells = next(csv.reader([text], delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}:{number}: is not a row of {what} ({error})") from None
        if not header:
            header = [cell.strip() for cell in cells]
            for name in names:
                if header.count(name) != 1:
                    found = "is missing" if name not in header else "is there twice"
                    raise DataError(
                        f"{path}:{number}: column {name!r} {found}; {what} has {', '.join(names)}"
                    )
            indices = [header.index(name) for name in names]
            continue
        if len(cells) != len(header):
            raise DataError(f"{path}:{number}: {len(cells)} columns, the header has {len(header)}")
        yield number, [cells[index].strip() for index in indices]
    if not header:
        raise DataError(f"{path}: is empty; give {what}, with the columns {', '.join(names)}")


def read_number(text: str, low: float, high: float, where: str, what: str) -> float:
    """Return a number from ``low`` to ``high``; raises DataError, which names where and what it is."""
    value = float(text) if _NUMBER.fullmatch(text) else None
    if value is None or not low <= value <= high:
        raise DataError(f"{where}: {what} is {text[:20]!r}; give a number from {low:g} to {high:g}")
    return value


def read_name(text: str, where: str) -> str:
    """Return the name of an image, which must not lead out of the folder of images."""
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts or "\0" in text:
        raise DataError(f"{where}: {text[:80]!r} is not the name of an image below a folder")
    return text


class Once:
    """Refuses an image that is listed twice; remembers where it was first."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def add(self, image: str, where: str) -> None:
        """Note an image; raises DataError if it was noted before."""
        first = self._lines.setdefault(image, where)
        if first is not where:
            raise DataError(f"{where}: image {image!r} is already at {first}; remove one of them")


def first_file(folder: str | os.PathLike[str], *names: str) -> Path:
    """Return the first of these files that is in ``folder``; raises DataError where none is."""
    for name in names:
        if Path(folder, name).is_file():
            return Path(folder, name)
    raise DataError(f"{folder}: has no {' or '.join(names)}; give the folder of the lists")
