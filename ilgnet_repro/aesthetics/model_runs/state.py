"""The state of an interrupted run: one safetensors file with everything that the rest of the run depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import FormatError, SolverError
from ...files import json_text, parse_json
from ...runtime.safetensors_file import open_safetensors, write_safetensors
from .recipes import load_optimizer, optimizer_tensors

STATE = "state.safetensors"
_KEY = "model_run"
_FIELDS = ("run", "epoch", "batch", "loss", "best_epoch", "best_loss", "history")


@dataclass
class Progress:
    """Where a run is: ``epoch`` and ``batch`` come next, ``loss`` is the sum of this epoch's so far.

    ``history`` has a row for each finished epoch, ``best`` the weights of the epoch with the least validation loss.
    """

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    best_epoch: int | None = None
    best_loss: float = float("inf")
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)


def save_state(
    path: Path, run: Mapping[str, Any], progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write the state, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer)}
    tensors |= {f"best.{name}": value for name, value in progress.best.items()}
    values = {name: getattr(progress, name) for name in _FIELDS[1:]}
    values["best_loss"] = None if progress.best_epoch is None else progress.best_loss
    # Sorted, as a reader lists them: an optimizer whose state was loaded has it in that order.
    arrays = {name: tensors[name].detach().cpu() for name in sorted(tensors)}
    write_safetensors(path, arrays, {_KEY: json_text({"run": dict(run), **values})})


def load_state(
    path: Path, run: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    """Load a state into the model and its optimizer, and return where the run is.

    Raises SolverError for the state of another run, naming what differs, and FormatError for a file that is none.
    """
    file = open_safetensors(path)
    values = _values(path, file.metadata)
    stated = values["run"]
    differing = [name for name in run if stated.get(name) != run[name]]
    if differing:
        name = differing[0]
        raise SolverError(
            f"{path}: is of another run: {name} was {_short(stated.get(name))} and is {_short(run[name])}; give what it was "
            "trained with, or another --out"
        )
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "best": {}}
    for name, value in file.tensors.items():
        part, _, inner = name.partition(".")
        if part not in parts:
            raise FormatError(f"{path}: tensor {name!r} is not one of a run's state")
        parts[part][inner] = value.clone()  # the file is mapped
    try:
        own = model.state_dict()
        if values["best_epoch"] is not None and {name: value.shape for name, value in own.items()} != {
            name: value.shape for name, value in parts["best"].items()
        }:
            raise ValueError("its best weights are not the model's")
        model.load_state_dict(parts["model"])
        load_optimizer(optimizer, parts["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise FormatError(f"{path}: does not fit the run ({reason}); start again without --resume") from error
    return Progress(**{name: values[name] for name in _FIELDS[1:]}, best=parts["best"])


def _values(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        values = parse_json(metadata.get(_KEY, ""))
    except ValueError:
        values = None
    if not isinstance(values, dict) or set(values) != set(_FIELDS) or not isinstance(values["run"], dict):
        raise FormatError(f"{path}: is not the state of a model's training; give the folder of its --out")
    try:
        return {"run": values["run"], **_progress(values)}
    except (ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"{path}: its metadata are damaged; start again without --resume") from error


def _progress(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `Progress`.  Raises ValueError or TypeError where they are none."""
    epoch, batch, best = _count(values["epoch"]), _count(values["batch"]), values["best_epoch"]
    history = [
        {name: None if value is None else _number(value) for name, value in row.items()}
        if isinstance(row, dict)
        else {}
        for row in values["history"]
    ]
    names = [list(row) for row in history]
    if len(history) != epoch or any(one != names[0] or "epoch" not in one for one in names):
        raise ValueError("not a row for each epoch")
    if (best is None) != (values["best_loss"] is None) or (
        best is not None and not 1 <= _count(best) <= epoch
    ):
        raise ValueError("the best epoch is none of them")
    for row in history:
        row["epoch"] = _count(row["epoch"])
    best_loss = float("inf") if best is None else float(_number(values["best_loss"]))
    loss = float(_number(values["loss"]))
    return {
        "epoch": epoch,
        "batch": batch,
        "loss": loss,
        "best_epoch": best,
        "best_loss": best_loss,
        "history": history,
    }


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError("not a count")
    return value


def _number(value: Any) -> int | float:
    """A number; `json_text` writes NaN and infinities as strings."""
    if type(value) not in (int, float) and value not in ("NaN", "Infinity", "-Infinity"):
        raise ValueError("not a number")
    return value if type(value) is int else float(value)


def _short(value: Any) -> str:
    text = json_text(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
