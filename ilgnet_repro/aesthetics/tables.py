"""Per-picture results as files: CSV and Parquet."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, IlgnetError, printable
from ..files import atomic_file, atomic_path
from .results import PictureResult

COLUMNS = ("name", "label", "probability", "loss", "mean_score")
Row = tuple[str, int, float, float, float]  # the mean score is NaN where unknown


def write_table(path: str | os.PathLike[str], pictures: PictureResult) -> None:
    """Write CSV, or Parquet where the name ends in .parquet; the file appears whole or not at all."""
    if Path(path).suffix == ".parquet":
        _write_parquet(path, pictures)
        return
    lines = (csv_line(row_fields(row)) for row in _rows(pictures))
    with atomic_file(path) as file:
        file.write(csv_line(COLUMNS).encode())
        file.writelines(line.encode() for line in lines)


def read_table(path: str | os.PathLike[str]) -> PictureResult:
    """Read what ``write_table`` wrote; raises FormatError with the line that is wrong."""
    if Path(path).suffix == ".parquet":
        return _read_parquet(path)
    try:
        text = Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read ({error}); give a table of results") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    if next(reader, None) != list(COLUMNS):
        raise FormatError(f"{path}:1: the first line must be {','.join(COLUMNS)}")
    return from_rows(parse_row(fields, f"{path}:{reader.line_num}") for fields in reader)


def from_rows(rows: Iterable[Row]) -> PictureResult:
    """A PictureResult of rows (name, label, probability, loss, mean score or NaN)."""
    names, labels, probability, loss, scores = zip(*rows, strict=True) if (rows := list(rows)) else ([],) * 5
    known = any(not math.isnan(score) for score in scores)
    return PictureResult(
        np.array(names, np.str_),
        np.array(labels, np.int64),
        np.array(probability, np.float64),
        np.array(loss, np.float64),
        np.array(scores, np.float64) if known else None,
    )


def _rows(pictures: PictureResult) -> Iterable[Row]:
    scores = [math.nan] * len(pictures) if pictures.mean_score is None else pictures.mean_score.tolist()
    return zip(
        map(_plain, pictures.names.tolist()),
        pictures.labels.tolist(),
        pictures.probability.tolist(),
        pictures.loss.tolist(),
        scores,
        strict=True,
    )


def _plain(name: str) -> str:
    """A name in UTF-8 and without control characters; line breaks stay, which CSV quotes."""
    return name if name.isprintable() else re.sub(r"[^\r\n]+", lambda part: printable(part[0]), name)


def row_fields(row: Row) -> list[str | int | float]:
    """A row as the fields of its CSV line, an unknown score as an empty one."""
    score = "" if math.isnan(row[4]) else float(row[4])
    return [row[0], int(row[1]), float(row[2]), float(row[3]), score]


def csv_line(fields: Sequence[str | int | float]) -> str:
    """One line of CSV, texts quoted, for a name may hold a line break.

    Numbers are spelt so that they read back exactly: a resumed run equals a whole one.
    """
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(fields)
    return buffer.getvalue()


def parse_row(fields: Sequence[str], place: str) -> Row:
    """The row that ``row_fields`` spelt; raises FormatError naming ``place``."""
    try:
        name, label, probability, loss, score = fields
        return name, int(label), float(probability), float(loss), float(score) if score else math.nan
    except ValueError as error:
        raise FormatError(f"{place}: not a row of {','.join(COLUMNS)} ({error})") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise IlgnetError(
            "Parquet needs pyarrow: pip install 'ilgnet_repro[tables]', or give a name that ends in .csv"
        ) from None
    return pyarrow


def _write_parquet(path: str | os.PathLike[str], pictures: PictureResult) -> None:
    pyarrow = _pyarrow()
    columns: dict[str, object] = {
        "name": [_plain(name) for name in pictures.names.tolist()],
        "label": pictures.labels,
        "probability": pictures.probability,
        "loss": pictures.loss,
    }
    scores = pictures.mean_score
    missing = np.ones(len(pictures), bool) if scores is None else np.isnan(scores)
    values = np.zeros(len(pictures)) if scores is None else scores
    columns["mean_score"] = pyarrow.array(values, pyarrow.float64(), mask=missing)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)


def _read_parquet(path: str | os.PathLike[str]) -> PictureResult:
    pyarrow = _pyarrow()
    try:
        with open(path, "rb") as file:
            table = pyarrow.parquet.read_table(file)
        columns = [table.column(name).to_pylist() for name in COLUMNS]
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise FormatError(f"{path}: not a table of results ({reason}); give one of `ilgnet test`") from error
    columns[4] = [math.nan if score is None else score for score in columns[4]]
    return from_rows(zip(*columns, strict=True))
