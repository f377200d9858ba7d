"""Testing a trained model on a split: its predictions, its figures beside the published ones, what it has seen before."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import DataError
from ...files import atomic_file, csv_text, from_csv_text, json_text
from ...intervals import RESAMPLES
from ...runtime.model import Model
from ..datasets.splits import Dataset, contamination, locate_images
from ..datasets.text_tables import read_columns
from ..model_results import PublishedScores, find_published
from ..proportions import Measured
from .predict import predict
from .recipes import Recipe
from .tasks import Task
from .train import SPLIT, tested_inputs


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model on a split, by name, with what was published for it; ``warnings`` are for the user."""

    model: str
    options: Mapping[str, Any]
    data: str
    split: str
    images: int
    loss: float
    figures: Mapping[str, Measured]
    published: PublishedScores | None
    warnings: tuple[str, ...]
    predictions: Mapping[str, np.ndarray]

    def values(self) -> dict[str, Any]:
        """Return the result as JSON takes it, without the predictions."""
        figures = {
            name: {
                "value": found.value,
                "low": found.interval.low if found.interval else None,
                "high": found.interval.high if found.interval else None,
                **({"reason": found.reason} if found.reason else {}),
            }
            for name, found in self.figures.items()
        }
        published = None if self.published is None else dict(self.published.figures)
        return {
            "model": self.model, "options": dict(self.options), "data": self.data, "split": self.split,
            "images": self.images, "loss": self.loss, "figures": figures, "published": published,
            "warnings": list(self.warnings),
        }  # fmt: skip


def evaluate_model(
    model: Model,
    task: Task,
    recipe: Recipe,
    dataset: Dataset,
    images: str | os.PathLike[str],
    *,
    split: str = "test",
    batch: int = 32,
    workers: int = 0,
    device: torch.device | None = None,
    trained_on: list[tuple[str, str]] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Run a model on a split and return its figures; ``trained_on`` are (data, image) pairs that it was trained on."""
    rows = dataset.split(split)
    paths = [] if rows.inputs is not None else locate_images(dataset, split, images)
    inputs = tested_inputs(recipe, rows, paths, workers, model.about.preprocessing)
    predicted, loss = predict(model, task, inputs, batch, device or torch.device("cpu"), progress)
    warned = contamination(trained_on or [], dataset, split)
    shared = [note for note in dataset.notes if f"images of {split} are in" in note]
    return Evaluation(
        task.model, task.options, dataset.name, split, len(rows), loss,
        task.figures(predicted, rows, dataset, resamples=RESAMPLES),
        find_published(task.model, task.options, dataset.name),
        (*shared, *filter(None, [warned])), predicted,
    )  # fmt: skip


def read_split(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return the (data, image) pairs of a run's split.csv, those that selected its weights included."""
    columns = read_columns(path, ("data", "split", "image"), f"a run's {SPLIT}")
    return [(data, from_csv_text(image)) for _, (data, _, image) in columns]


def write_result(result: Evaluation, dataset: Dataset, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``figures.json`` and ``predictions.csv`` into a folder; return their paths."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created ({error.strerror}); give another folder") from error
    rows = dataset.split(result.split)
    single = {name: values for name, values in result.predictions.items() if values.ndim == 1}
    wide = {name: values for name, values in result.predictions.items() if values.ndim == 2}
    header = ["image"]
    for name in single:
        header += [name, f"{name} of the data"] if name in rows.targets else [name]
    for name, values in wide.items():
        header += [f"{name} {number}" for number in range(1, values.shape[1] + 1)]
    figures, predictions = folder / "figures.json", folder / "predictions.csv"
    with atomic_file(predictions, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for number, image in enumerate(rows.images):
            cells = [csv_text(image)]
            for name, values in single.items():
                cells.append(f"{values[number]:.6g}")
                if name in rows.targets:
                    cells.append(f"{rows.targets[name][number]:.6g}")
            for values in wide.values():
                cells += [f"{value:.6g}" for value in values[number]]
            writer.writerow(cells)
    with atomic_file(figures, "w") as file:
        file.write(json_text(result.values(), indent=1) + "\n")
    return figures, predictions
