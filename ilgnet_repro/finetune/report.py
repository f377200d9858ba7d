"""The report of a fine-tuning run: figures as JSON, every val image as CSV, and a page with the worst mistakes."""

from __future__ import annotations

import base64
import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_file, csv_text, json_text
from ..intervals import Interval
from ..pages import fill_template
from ..reading.images import encode_image
from ..reading.rows import DatabaseRows
from ..reading.sheet import Sample, sample
from .evaluation import Evaluation

PAGE, FIGURES, TABLE = "report.html", "report.json", "val.csv"
_WORST = 24
_MOST_CLASSES = 20  # of a confusion matrix that is shown


@dataclass(frozen=True)
class Mistake:
    """One of the worst: its image, what it is, and what the net made of it."""

    sample: Sample
    target: str
    output: str


def figures_of(evaluation: Evaluation) -> dict[str, Any]:
    """The figures as plain values."""
    recall = {
        name: {"right": right, "of": count, **_ends(interval)}
        for name, right, count, interval in evaluation.recall
    }
    return {
        "images": len(evaluation.paths),
        "figures": {one.name: {"value": one.value, **_ends(one.interval)} for one in evaluation.figures},
        **(
            {"recall": recall, "confusion": evaluation.confusion.tolist()}
            if evaluation.confusion is not None
            else {}
        ),
    }


def _ends(interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else {"low": interval.low, "high": interval.high}


def write_report(
    evaluation: Evaluation,
    folder: str | os.PathLike[str],
    database: str | os.PathLike[str],
    *,
    title: str,
    facts: list[str],
    curves: str | os.PathLike[str] | None,
) -> None:
    """Write `PAGE`, `FIGURES` and `TABLE` into a folder; the images are those of the val database."""
    folder = Path(folder)
    rows = DatabaseRows(database)
    mistakes = []
    for number in evaluation.mistakes[:_WORST]:
        found = sample(rows, number)
        if isinstance(found, Sample):
            mistakes.append(Mistake(found, *_words(evaluation, number)))
    plot = Path(curves).read_bytes() if curves is not None and Path(curves).is_file() else None
    page = fill_template(
        "ilgnet_repro.finetune", "report.html.j2", title=title, facts=facts, evaluation=evaluation,
        mistakes=mistakes, jpeg=_jpeg, shown=len(evaluation.names) <= _MOST_CLASSES,
        curves=None if plot is None else base64.b64encode(plot).decode("ascii"),
    )  # fmt: skip
    with atomic_file(folder / TABLE, "w") as file:
        _write_table(evaluation, file)
    with atomic_file(folder / FIGURES, "w") as file:
        file.write(json_text(figures_of(evaluation), indent=1))
    with atomic_file(folder / PAGE, "w") as file:
        file.write(page)


def _write_table(evaluation: Evaluation, file: Any) -> None:
    table = csv.writer(file, lineterminator="\n")
    names = [_cell(name) for name in evaluation.names]
    is_class = evaluation.task == "classes"
    table.writerow(["path", *(["label"] if is_class else [f"true {name}" for name in names]), *names])
    for path, target, output in zip(evaluation.paths, evaluation.targets, evaluation.outputs, strict=True):
        stated = [names[int(target.argmax())]] if is_class else [f"{value:.6g}" for value in target]
        table.writerow([_cell(path), *stated, *(f"{value:.6g}" for value in output)])


def _cell(name: str) -> str:
    """A name from a file as a cell; bytes that are not UTF-8 are escaped."""
    return csv_text(name.encode("utf-8", "backslashreplace").decode())


def _words(evaluation: Evaluation, number: int) -> tuple[str, str]:
    """What an image is, and what the net made of it, for its caption."""
    target, output = evaluation.targets[number], evaluation.outputs[number]
    if evaluation.task == "classes":
        own = int(target.argmax())
        called = int(np.where(np.arange(len(output)) == own, -np.inf, output).argmax())
        return evaluation.names[own], f"{evaluation.names[called]} {output[called]:.3f}"
    if evaluation.task == "score":
        return f"{target[0]:.3g}", f"{output[0]:.3g}"
    values = np.array([float(name) for name in evaluation.names])
    return f"mean {target @ values:.3g}", f"mean {output @ values:.3g}"


def _jpeg(one: Sample) -> str:
    return base64.b64encode(encode_image(one.thumbnail, "jpg")).decode("ascii")
