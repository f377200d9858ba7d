"""What a model learns from a dataset: its options, its targets, its loss, and its predictions on the data's scale."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import DataError, IlgnetError, one_of
from ...runtime.model import Model
from ..datasets.features import count_classes
from ..datasets.splits import Dataset, Rows
from ..losses import attributes_loss, emd_loss, score_loss
from ..metrics import srcc
from ..models import CHOICES, MODELS, create
from ..models.attributes import ATTRIBUTES
from ..models.gsfl import Gsfl, find_groups
from ..proportions import Measured, proportion
from ..score_metrics import bootstrap, score_figures


@dataclass(frozen=True)
class Task:
    """A model by its name and options, on a kind of data.

    A score of the data is ``factor`` times that of the model. ``summed`` are the terms of the loss that are sums over the
    rows; the others are means.
    """

    model: str
    options: Mapping[str, Any]
    data: str
    factor: float = 1.0
    summed: tuple[str, ...] = ()

    def create(self, seed: int) -> Model:
        """Return the model with weights drawn by the seed."""
        torch.manual_seed(seed)
        return create(self.model, **self.options)

    def prepare(self, model: nn.Module, train: Rows, seed: int) -> None:
        """Set what the model takes from the training data before it is trained: GSFL's groups of classes."""
        if isinstance(model, Gsfl) and model.is_decomposed:
            features, labels = torch.from_numpy(_features(train)), torch.from_numpy(train.targets["label"])
            classes = len(model.classes_of_groups)
            model.set_groups(find_groups(features, labels, classes, len(model.group_centres), seed=seed))

    # ------------------------------------------------------------------ targets and loss

    def outputs(self) -> tuple[str, ...]:
        """Return the targets that are learned, by name."""
        if self.model == "gsfl":
            return ("label",)
        if self.model == "attributes":
            return tuple(self.options.get("tasks") or ("score", *ATTRIBUTES[self.options["data"]]))
        return ("distribution",) if self.has_distribution() else ("score",)

    def has_distribution(self) -> bool:
        """Return whether the model gives a distribution of votes."""
        return self.model == "nima" or self.options.get("data") == "ava"

    def targets(self, rows: Rows, numbers: np.ndarray) -> dict[str, Tensor]:
        """Return the targets of these rows, on the model's scale, each N x 1 or N x B (labels: N)."""
        found = {}
        for name in self.outputs():
            values = torch.from_numpy(np.ascontiguousarray(rows.targets[name][numbers]))
            if name == "score":
                values = values / self.factor
            found[name] = values if name == "label" or values.ndim == 2 else values[:, None]
        return found

    def loss(
        self, model: nn.Module, found: dict[str, Tensor], x: Tensor, target: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the terms of a batch's loss; their sum is trained. In evaluation: what weights are selected by."""
        if isinstance(model, Gsfl):
            if not model.training:
                return {"classification": F.cross_entropy(found["logits"], target["label"])}
            return model.loss(found, x, target["label"])
        if self.model == "attributes":
            return {"attributes": attributes_loss(found, target)}
        if self.has_distribution():
            return {"emd": emd_loss(found["distribution"], target["distribution"])}
        return {"score": score_loss(found["score"], target["score"])}

    # ------------------------------------------------------------------ predictions and figures

    def predictions(self, found: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs as arrays on the data's scale: (N,) each, distributions and logits (N, B)."""
        arrays = {}
        for name, value in found.items():
            values = value.detach().cpu().numpy().astype(np.float32)
            values = values[:, 0] if values.shape[1:] == (1,) else values
            arrays[name] = values * np.float32(self.factor) if name == "score" else values
        return arrays

    def figures(
        self, predicted: Mapping[str, np.ndarray], rows: Rows, dataset: Dataset, *, resamples: int
    ) -> dict[str, Measured]:
        """Return the figures that are reported, by name, with bootstrap intervals (``resamples`` 0: without)."""
        if self.model == "gsfl":
            right = predicted["logits"].argmax(1) == rows.targets["label"]
            return {"accuracy": proportion(int(right.sum()), len(right))}
        if "score" not in predicted:  # the single-task twin of an attribute
            return {}
        known = np.isfinite(rows.targets["score"])
        theirs = {
            name: rows.targets[name][known] for name in ("score", "distribution") if name in rows.targets
        }
        ours = {name: predicted[name][known] for name in theirs if name in predicted}
        figures = score_figures(ours, theirs, cut=dataset.cut, scale=self.factor, resamples=max(resamples, 1))
        figures |= {
            f"SRCC {name}": _attribute_srcc(predicted[name], rows.targets[name], max(resamples, 1))
            for name in self.outputs()
            if name in ATTRIBUTES.get(self.data, ())
        }
        if not resamples:
            figures = {name: Measured(found.value, found.reason) for name, found in figures.items()}
        return figures


def _attribute_srcc(predicted: np.ndarray, target: np.ndarray, resamples: int) -> Measured:
    known = np.isfinite(target)
    return bootstrap(srcc, predicted[known], target[known], resamples=resamples)


def _features(rows: Rows) -> np.ndarray:
    if rows.inputs is None:
        raise DataError("gsfl takes features, not images; give --data features")
    return rows.inputs


# The data that each model can be trained on; the first is its own.
DATA: Mapping[str, tuple[str, ...]] = {
    "nima": ("ava",),
    "tanet": ("tad66k", "ava", "flickr-aes", "aadb", "eva"),
    "attributes": ("aadb", "eva"),
    "gsfl": ("features",),
}


def make_task(model: str, dataset: Dataset, given: Mapping[str, Any]) -> Task:
    """Return the task of a model on a dataset, the model's options completed from the data.

    Raises IlgnetError for a model that the data do not suit, and options that contradict the data.
    """
    check_data(model, dataset.name)
    options = dict(given)
    factor, summed = 1.0, tuple[str, ...]()
    if model == "tanet":
        options.setdefault("data", "ava" if dataset.name == "ava" else "tad66k")
        if options["data"] == "ava" and dataset.name != "ava":
            raise IlgnetError(
                f"model tanet: data='ava' needs distributions, which {dataset.name} lacks; leave it out"
            )
        factor = dataset.scale[1] if options["data"] == "tad66k" else 1.0
    elif model == "attributes":
        if options.setdefault("data", dataset.name) != dataset.name:
            raise IlgnetError(
                f"model attributes: data={options['data']!r} does not suit --data {dataset.name}"
            )
    elif model == "gsfl":
        train = dataset.split("train")
        stated = {"features": _features(train).shape[1], "classes": count_classes(train)}
        for name, value in stated.items():
            if options.setdefault(name, value) != value:
                raise IlgnetError(
                    f"model gsfl: {name}={options[name]!r}, and the data have {value}; leave it out"
                )
        options.setdefault("groups", min(5, stated["classes"]))
        summed = ("class_centres", "group_centres")
    return Task(model, options, dataset.name, factor, summed)


def task_on(task: Task, dataset: Dataset) -> Task:
    """Return the task of a trained model on another dataset. Raises IlgnetError for data that do not suit it."""
    check_data(task.model, dataset.name)
    if task.model == "attributes" and task.options["data"] != dataset.name:
        raise IlgnetError(
            f"the model was trained on {task.options['data']}, whose attributes are not those of {dataset.name}; "
            f"use --data {task.options['data']}"
        )
    is_unit = task.model == "tanet" and task.options.get("data", "tad66k") == "tad66k"
    return replace(task, data=dataset.name, factor=dataset.scale[1] if is_unit else 1.0)


def check_data(model: str, data: str) -> None:
    """Raise IlgnetError for a model that is unknown, or data that it cannot be trained on."""
    if model not in MODELS:
        create(model)
    if data not in DATA[model]:
        raise IlgnetError(f"model {model} is not trained on {data!r}; use --data {one_of(DATA[model])}")


def read_options(model: str, texts: list[str]) -> dict[str, Any]:
    """Read a model's options from ``NAME=VALUE`` texts: integers, true or false, lists with commas, else text.

    Raises IlgnetError for another form; `create` refuses what the model does not know.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier() or not value:
            raise IlgnetError(f"--option {text}: write NAME=VALUE")
        if name in found:
            raise IlgnetError(f"--option {text}: {name} is given twice")
        found[name] = _value(model, name, value)
    return found


def _value(model: str, name: str, text: str) -> Any:
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    if text in ("true", "false"):
        return text == "true"
    if model in MODELS:
        found = inspect.signature(MODELS[model]).parameters.get(name)
        if found is not None and "tuple" in str(found.annotation):
            return tuple(text.split(","))
    return text


__all__ = ["CHOICES", "DATA", "Task", "check_data", "make_task", "read_options", "task_on"]
