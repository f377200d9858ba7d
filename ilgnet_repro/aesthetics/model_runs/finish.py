"""The file of a trained model: what `save` writes, with how images were prepared for it and how it was trained."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import FormatError
from ...export.save import save
from ...files import json_text, parse_json
from ...runtime.load import load
from ...runtime.model import Model
from .recipes import RECIPES, Recipe
from .tasks import Task
from .train import ModelTrainer

_TRAINED = "training"


def save_trained(trainer: ModelTrainer, model: Model, path: str | os.PathLike[str]) -> Path:
    """Write a trained model as one safetensors file; the same run gives the same bytes."""
    recipe, progress = trainer.recipe, trainer.progress
    how = model.about.preprocessing
    if how is not None:
        side = recipe.size if recipe.whole else recipe.resize
        how = dataclasses.replace(how, path="crop", size=(recipe.size, recipe.size), resize=(side, side))
        model.about = dataclasses.replace(model.about, preprocessing=how)
    run = {name: value for name, value in trainer.run.items() if name not in ("model", "options")}
    model.extra_metadata[_TRAINED] = json_text(
        {
            **run, "factor": trainer.task.factor, "epochs": progress.epoch, "best_epoch": progress.best_epoch,
            "select": trainer.settings.select, "history": progress.history,
        }
    )  # fmt: skip
    save(model, path)
    return Path(path)


@dataclasses.dataclass(frozen=True)
class TrainedFile:
    """A model's file, opened: the model in evaluation mode, its task and how its inputs are prepared."""

    model: Model
    task: Task
    recipe: Recipe
    training: Mapping[str, Any]


def open_trained(path: str | os.PathLike[str]) -> TrainedFile:
    """Open what `save_trained` wrote. Raises FormatError for another file, WeightsError where tensors do not fit."""
    model = load(path)
    wrong = f"{path}: is not a model that `ilgnet train --model` wrote; give its --out's MODEL.safetensors"
    if not isinstance(model, Model):
        raise FormatError(wrong)
    try:
        training = parse_json(model.extra_metadata[_TRAINED])
        factor, data = float(training["factor"]), str(training["data"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(wrong) from error
    recipe = dataclasses.replace(RECIPES[model.name], whole=False)
    how = model.about.preprocessing
    if how is not None:
        recipe = dataclasses.replace(recipe, size=how.size[0], resize=(how.resize or how.size)[0])
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in model.options.items()
    }
    return TrainedFile(model, Task(model.name, options, data, factor), recipe, training)
