"""The file of a trained model: its weights, what it is, how images are prepared for it, how it was trained."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import FormatError
from ...files import json_text, parse_json
from ...runtime.safetensors_file import open_safetensors, write_safetensors
from ..models.backbones import DEVIATION, MEAN
from ..models.pretrained import load_named
from .recipes import RECIPES, Recipe
from .tasks import Task
from .train import ModelTrainer

_MODEL, _PREPARED, _TRAINED = "model", "preprocessing", "training"


def save_trained(trainer: ModelTrainer, model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a trained model as one safetensors file; the same run gives the same bytes."""
    recipe, task = trainer.recipe, trainer.task
    run = {name: value for name, value in trainer.run.items() if name not in ("model", "options")}
    images = {
        "size": recipe.size, "resize": recipe.size if recipe.whole else recipe.resize, "order": "RGB", "scale": 1 / 255,
        "mean": MEAN, "deviation": DEVIATION,
    }  # fmt: skip
    progress = trainer.progress
    metadata = {
        _MODEL: json_text({"name": task.model, "options": trainer.run["options"]}),
        _PREPARED: json_text(None if trainer.train_rows.inputs is not None else images),
        _TRAINED: json_text(
            {**run, "factor": task.factor, "epochs": progress.epoch, "best_epoch": progress.best_epoch,
             "select": trainer.settings.select, "history": progress.history}
        ),
    }  # fmt: skip
    write_safetensors(path, {name: value.cpu() for name, value in model.state_dict().items()}, metadata)
    return Path(path)


@dataclasses.dataclass(frozen=True)
class TrainedFile:
    """A model's file, opened: the model in evaluation mode, its task and how its inputs are prepared."""

    model: nn.Module
    task: Task
    recipe: Recipe
    training: Mapping[str, Any]


def open_trained(path: str | os.PathLike[str]) -> TrainedFile:
    """Open what `save_trained` wrote. Raises FormatError for another file, WeightsError where tensors do not fit."""
    file = open_safetensors(path)
    try:
        stated = {name: parse_json(file.metadata[name]) for name in (_MODEL, _PREPARED, _TRAINED)}
        name, options = stated[_MODEL]["name"], stated[_MODEL]["options"]
        factor, data = float(stated[_TRAINED]["factor"]), str(stated[_TRAINED]["data"])
        images = stated[_PREPARED] or {"size": 1, "resize": 1}
        size, resize = int(images["size"]), int(images["resize"])
        recipe = dataclasses.replace(RECIPES[name], size=size, resize=resize, whole=False)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: is not a model that `ilgnet train --model` wrote ({error!r}); give its --out's MODEL.safetensors"
        ) from error
    task = Task(
        name, {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}, data, factor
    )
    model = task.create(0)
    load_named(model, file.tensors, str(path))
    return TrainedFile(model, task, recipe, stated[_TRAINED])
