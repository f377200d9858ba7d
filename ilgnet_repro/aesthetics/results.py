"""The results of a test run: per image and per batch, as JSON, CSV and Parquet."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..caffe.expected_kind import naming_kind
from ..caffe.kinds import Kind
from ..errors import FormatError, IlgnetError, printable
from ..files import (
    atomic_file,
    atomic_path,
    csv_text,
    from_csv_text,
    json_text,
    open_input,
    parse_json,
    read_input,
)
from .metrics import is_correct


@dataclass(frozen=True, eq=False)
class ImageResults:
    """One row per image, N rows, in the order in which they were read.

    ``names`` (N,) str, ``labels`` (N,) int64 of 0 and 1, ``probability`` (N,) float64 of index 1, ``loss``
    (N,) float64, ``mean_score`` (N,) float64 with NaN where unknown, or None where none is known.
    Raises FormatError if the lengths differ or a value is out of range.
    """

    names: np.ndarray
    labels: np.ndarray
    probability: np.ndarray
    loss: np.ndarray
    mean_score: np.ndarray | None = None

    def __post_init__(self) -> None:
        kinds = {"names": np.str_, "labels": np.int64, "probability": np.float64, "loss": np.float64}
        if self.mean_score is not None:
            kinds["mean_score"] = np.float64
        for name, kind in kinds.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), kind))
            if getattr(self, name).shape != (len(self.names),):
                raise FormatError(
                    f"image results: {len(self.names)} names but {name} of shape"
                    f" {getattr(self, name).shape}; give one value per image"
                )
        if not np.isin(self.labels, (0, 1)).all():
            raise FormatError("image results: a label is neither 0 nor 1; only two-class lists have one")
        if not ((self.probability >= 0) & (self.probability <= 1)).all():
            raise FormatError("image results: a probability lies outside [0, 1]; check the net's output")

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageResults):
            return NotImplemented
        return all(
            (mine is None and theirs is None)
            or (mine is not None and theirs is not None and np.array_equal(mine, theirs, equal_nan=exact))
            for mine, theirs, exact in (
                (self.names, other.names, False),
                (self.labels, other.labels, False),
                (self.probability, other.probability, True),
                (self.loss, other.loss, True),
                (self.mean_score, other.mean_score, True),
            )
        )

    def __hash__(self) -> NoReturn:
        raise TypeError("image results have no hash: they are equal by the values of their arrays")

    @property
    def correct(self) -> np.ndarray:
        """Which answers are right, (N,) bool, ties wrong as in Caffe."""
        return is_correct(self.probability, self.labels)


def _batch(values: Mapping[str, Any]) -> BatchRow:
    loss = values.get("loss")
    batch = BatchRow(
        **{**values, "loss": None if loss is None else float(loss)}
    )  # "NaN" is a string in the file
    _check_types(batch)
    if not (0 <= batch.correct <= batch.size and batch.size):
        raise ValueError(f"batch {batch.index}: {batch.correct} of {batch.size} images are right")
    return batch


def _source(values: Mapping[str, Any]) -> Source:
    source = Source(**values)
    _check_types(source)
    return source


# Types of fields as the annotations of the dataclasses here write them.
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "bool": (bool,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
}


def _check_types(value: Source | BatchRow | RunResult) -> None:
    """Raise TypeError, ValueError or OverflowError for a field of another type or size: a file may hold anything."""
    for one in dataclasses.fields(value):
        wanted = _TYPES.get(str(one.type))
        held = getattr(value, one.name)
        if wanted and (not isinstance(held, wanted) or (isinstance(held, bool) and bool not in wanted)):
            raise TypeError(f"{one.name} is {type(held).__name__}, not {one.type}")
        if wanted == (int,) and abs(held) > _LARGEST:
            raise ValueError(f"{one.name} is beyond {_LARGEST}")
        if wanted and float in wanted and held is not None:
            float(held)


_LARGEST = 1 << 53  # what every float counts exactly

EXACT = "the exact net"
_KEYS = {"images": "pictures"}  # fields whose key in run.json keeps an earlier name


@dataclass(frozen=True)
class Source:
    """A file the run depended on; ``known_as`` names the released file its checksum belongs to, if any."""

    name: str
    sha256: str | None = None
    known_as: str | None = None


@dataclass(frozen=True)
class BatchRow:
    """One batch: images in it, how many were answered right, and the batch's mean loss."""

    index: int
    size: int
    correct: int
    loss: float | None = None

    @property
    def accuracy(self) -> float:
        return self.correct / self.size


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} stands where a text belongs")
    return value


def is_run(path: Path) -> bool:
    """Whether a file is a run's result."""
    values = parse_json(read_input(path))
    return isinstance(values, dict) and values.keys() >= {"protocol", "dataset", "weights", "pictures"}


@dataclass(frozen=True)
class RunResult:
    """A whole run. ``dataset`` is ``ava1``, ``ava2`` or any other name; ``elapsed`` is in seconds.

    ``batches`` follow the protocol, and may count an image twice where the list wraps; ``images`` hold
    each image once. ``list_order`` says in what order the rows were read, ``computed`` in what form the
    net ran and how far that is from the exact one.
    """

    protocol: str
    dataset: str
    weights: Source
    random_weights: bool
    partition: Source
    mean: Source | None
    preprocessing: str
    batch_size: int
    batches: tuple[BatchRow, ...]
    images: ImageResults
    list_order: str = "as given"
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    computed: str = EXACT
    command: str = ""
    elapsed: float = 0.0

    @property
    def correct(self) -> int:
        """Right answers as the protocol counts them, summed over the batches."""
        return sum(batch.correct for batch in self.batches)

    @property
    def count(self) -> int:
        """Images as the protocol counts them: the accuracy's denominator."""
        return sum(batch.size for batch in self.batches)

    @property
    def accuracy(self) -> float:
        """Right answers per image, as the protocol counts them."""
        return self.correct / self.count if self.count else math.nan

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON; NaN mean scores become None."""
        values = {_KEYS.get(f.name, f.name): getattr(self, f.name) for f in dataclasses.fields(self)}
        scores = self.images.mean_score
        return values | {
            "weights": dataclasses.asdict(self.weights),
            "partition": dataclasses.asdict(self.partition),
            "mean": dataclasses.asdict(self.mean) if self.mean else None,
            "batches": [dataclasses.asdict(batch) for batch in self.batches],
            _KEYS["images"]: {
                "names": self.images.names.tolist(),
                "labels": self.images.labels.tolist(),
                "probability": self.images.probability.tolist(),
                "loss": self.images.loss.tolist(),
                "mean_score": None
                if scores is None
                else [None if math.isnan(score) else score for score in scores.tolist()],
            },
            "warnings": list(self.warnings),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], file: str = "<run>") -> RunResult:
        """The run that ``to_dict`` described; raises FormatError naming what is missing or wrong."""
        try:
            images = dict(values[_KEYS["images"]])
            if images.get("mean_score") is not None:
                images["mean_score"] = [
                    math.nan if score is None else score for score in images["mean_score"]
                ]
            others = {name: value for name, value in values.items() if name != _KEYS["images"]}
            known = {one.name for one in dataclasses.fields(cls)}
            if unknown := [name for name in others if name not in known]:
                raise ValueError(f"it has the unknown field {unknown[0]!r}")
            run = cls(
                **{
                    **others,
                    "weights": _source(values["weights"]),
                    "partition": _source(values["partition"]),
                    "mean": _source(values["mean"]) if values["mean"] else None,
                    "batches": tuple(map(_batch, values["batches"])),
                    "images": ImageResults(**images),
                    "warnings": tuple(map(_text, values["warnings"])),
                    "versions": {
                        _text(name): _text(text) for name, text in values.get("versions", {}).items()
                    },
                }
            )
            _check_types(run)
            if run.batch_size < 1:
                raise ValueError(f"batch_size is {run.batch_size}")
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise FormatError(
                f"{file}: is not a run's result: {what}; give the run.json that `ilgnet test` wrote"
            ) from error
        return run

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the run as JSON, complete or not at all."""
        with atomic_file(path, "w") as file:
            file.write(json_text(self.to_dict()))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunResult:
        """Read what ``write`` wrote; raises FormatError if it is anything else."""
        try:
            values = parse_json(read_input(path).decode())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None)
            how = f"cannot be read ({reason})" if reason else f"cannot be read as JSON ({error})"
            wrong = FormatError(f"{path}: {how}; give a run's result")
            raise naming_kind(wrong, path, "a run's result", Kind.JSON) from error
        if not isinstance(values, dict):
            raise FormatError(f"{path}: holds no JSON object; give a run's result")
        return cls.from_dict(values, str(path))


COLUMNS = ("name", "label", "probability", "loss", "mean_score")
Row = tuple[str, int, float, float, float]  # the mean score is NaN where unknown


def write_table(path: str | os.PathLike[str], images: ImageResults) -> None:
    """Write CSV, or Parquet where the name ends in .parquet; the file is complete or absent."""
    if Path(path).suffix == ".parquet":
        _write_parquet(path, images)
        return
    lines = (csv_line(row_fields(row)) for row in _rows(images))
    with atomic_file(path) as file:
        file.write(csv_line(COLUMNS).encode())
        file.writelines(line.encode() for line in lines)


def read_table(path: str | os.PathLike[str]) -> ImageResults:
    """Read what ``write_table`` wrote; raises FormatError with the line that is wrong."""
    if Path(path).suffix == ".parquet":
        return _read_parquet(path)
    try:
        text = read_input(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read ({error}); give a table of results") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        if next(reader, None) != list(COLUMNS):
            raise FormatError(f"{path}:1: the first line must be {','.join(COLUMNS)}")
        return from_rows(parse_row(fields, f"{path}:{reader.line_num}") for fields in reader)
    except csv.Error as error:
        raise FormatError(f"{path}:{reader.line_num}: {error}; give a table of results") from error


def from_rows(rows: Iterable[Row]) -> ImageResults:
    """The ImageResults of rows (name, label, probability, loss, mean score or NaN)."""
    names, labels, probability, loss, scores = zip(*rows, strict=True) if (rows := list(rows)) else ([],) * 5
    known = any(not math.isnan(score) for score in scores)
    return ImageResults(
        np.array(names, np.str_),
        np.array(labels, np.int64),
        np.array(probability, np.float64),
        np.array(loss, np.float64),
        np.array(scores, np.float64) if known else None,
    )


def _rows(images: ImageResults) -> Iterable[Row]:
    scores = [math.nan] * len(images) if images.mean_score is None else images.mean_score.tolist()
    return zip(
        map(_plain, images.names.tolist()),
        images.labels.tolist(),
        images.probability.tolist(),
        images.loss.tolist(),
        scores,
        strict=True,
    )


def _plain(name: str) -> str:
    """A name in UTF-8 and without control characters; line breaks stay, which CSV quotes."""
    return name if name.isprintable() else re.sub(r"[^\r\n]+", lambda part: printable(part[0]), name)


def row_fields(row: Row) -> list[str | int | float]:
    """A row as the fields of its CSV line, an unknown score as an empty one."""
    score = "" if math.isnan(row[4]) else float(row[4])
    return [csv_text(row[0]), int(row[1]), float(row[2]), float(row[3]), score]


def csv_line(fields: Sequence[str | int | float]) -> str:
    """One line of CSV, texts quoted, since a name may contain a line break.

    Numbers are written so that they read back exactly: a resumed run equals an uninterrupted one.
    """
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(fields)
    return buffer.getvalue()


def parse_row(fields: Sequence[str], place: str) -> Row:
    """The row that ``row_fields`` wrote; raises FormatError naming ``place``."""
    try:
        name, label, probability, loss, score = fields
        return (
            from_csv_text(name),
            int(label),
            float(probability),
            float(loss),
            float(score) if score else math.nan,
        )
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


def _write_parquet(path: str | os.PathLike[str], images: ImageResults) -> None:
    pyarrow = _pyarrow()
    columns: dict[str, Sequence[str] | np.ndarray] = {
        "name": [_plain(name) for name in images.names.tolist()],
        "label": images.labels,
        "probability": images.probability,
        "loss": images.loss,
    }
    scores = images.mean_score
    missing = np.ones(len(images), bool) if scores is None else np.isnan(scores)
    values = np.zeros(len(images)) if scores is None else scores
    columns["mean_score"] = pyarrow.array(values, pyarrow.float64(), mask=missing)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)


def _read_parquet(path: str | os.PathLike[str]) -> ImageResults:
    pyarrow = _pyarrow()
    try:
        with open_input(path) as file:
            table = pyarrow.parquet.read_table(file)
        columns = [table.column(name).to_pylist() for name in COLUMNS]
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise FormatError(f"{path}: not a table of results ({reason}); give one of `ilgnet test`") from error
    columns[4] = [math.nan if score is None else score for score in columns[4]]
    return from_rows(zip(*columns, strict=True))
