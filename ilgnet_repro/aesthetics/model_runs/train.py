"""Training a model of scores: epochs, validation, the best weights, and a state from which a killed run resumes."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import DivergedError, SolverError
from ...files import atomic_file, csv_text
from ...reading.preprocessing import Preprocessing
from ...runtime.model import Model
from ...staging import claimed
from ...train.distributed import ProcessGroup
from ...train.signals import Requests
from ..datasets.splits import Dataset, Rows
from ..models.backbones import IMAGENET
from ..models.gsfl import Gsfl
from .batches import Inputs, check_batches, epoch_batches
from .predict import predict
from .recipes import Recipe, make_optimizer, set_epoch
from .state import STATE, Progress, load_state, save_state
from .tasks import Task

LOG, SPLIT = "log.csv", "split.csv"
Log = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """``folder`` receives the run's files; ``save_every`` batches the state is written (0: after each epoch).

    ``select`` is "val", the weights of the epoch with the least validation loss, or "last", those of the last.
    ``patience`` ends the run after that many epochs without a smaller validation loss (0: never).
    """

    folder: Path
    epochs: int
    batch: int
    seed: int = 0
    save_every: int = 0
    patience: int = 0
    workers: int = 0
    select: str = "val"


@dataclass
class Trained:
    """What a run gave: the model with the best epoch's weights, and where the run is."""

    model: Model
    progress: Progress
    stopped: str = ""
    notes: list[str] = field(default_factory=list)


class ModelTrainer:
    """Trains a task's model; with the same seed every run, resumed or not, ends with the same bytes.

    All that is random follows from the seed, the epoch and the batch: no generator's state needs to be kept. Weights are
    selected by the loss of the split ``val``, never by ``test``, which is not read. In several processes each takes its
    rows of every batch, and batch statistics are of a process's rows, as in torch's data parallelism.
    """

    def __init__(
        self,
        task: Task,
        dataset: Dataset,
        recipe: Recipe,
        settings: Settings,
        device: torch.device,
        *,
        paths: Mapping[str, list[Path]] | None = None,
        group: ProcessGroup | None = None,
        requests: Requests | None = None,
        log: Log = lambda text: None,
        on_batch: Callable[[int, int, int], None] = lambda epoch, done, total: None,
    ) -> None:
        self.task, self.dataset, self.recipe, self.settings, self.device = (
            task,
            dataset,
            recipe,
            settings,
            device,
        )
        self.group, self.requests = group or ProcessGroup(), requests or Requests()
        self.log, self.on_batch = log, on_batch
        self.train_rows, self.val_rows = dataset.split("train"), dataset.split("val")
        check_batches(len(self.train_rows), settings.batch, self.group.world)
        found = paths or {}
        self.model = task.create(settings.seed)
        if self.train_rows.inputs is None:
            self.model.check_shape((1, 3, recipe.size, recipe.size))
        how = self.model.about.preprocessing or IMAGENET
        self.train_inputs = Inputs(
            self.train_rows, found.get("train", ()), recipe.size, recipe.resize, settings.workers, how
        )
        self.val_inputs = tested_inputs(recipe, self.val_rows, found.get("val", ()), settings.workers, how)
        task.prepare(self.model, self.train_rows, settings.seed)
        self.model.to(device)
        self.optimizer = make_optimizer(self.model, recipe)
        self.progress = Progress()
        self.run = self._describe()

    def _describe(self) -> dict[str, Any]:
        """What the bytes of the result depend on, beside the number of epochs."""
        recipe = vars(self.recipe)
        return {
            "model": self.task.model,
            "options": {
                name: list(v) if isinstance(v, tuple) else v for name, v in self.task.options.items()
            },
            "data": self.dataset.name,
            "train": digest_rows(self.train_rows),
            "val": digest_rows(self.val_rows),
            "seed": self.settings.seed,
            "batch": self.settings.batch,
            "recipe": {
                name: dict(recipe[name]) if name == "rates" else recipe[name]
                for name in (
                    "optimizer",
                    "rates",
                    "weight_decay",
                    "decay",
                    "decay_epochs",
                    "size",
                    "resize",
                    "whole",
                )
            },
            "processes": self.group.world,
            "weights": "drawn",
        }

    def start_from(self, load: Callable[[nn.Module], None], digest: str) -> None:
        """Start from other weights: ``load`` puts them into the model, ``digest`` says which they are.

        Images are prepared from then on as the model states, which may be otherwise than before.
        """
        load(self.model)
        self._check_groups()
        how = self.model.about.preprocessing or IMAGENET
        self.train_inputs, self.val_inputs = (
            dataclasses.replace(one, how=how) for one in (self.train_inputs, self.val_inputs)
        )
        self.run["weights"] = digest

    def _check_groups(self) -> None:
        """Raise DataError where GSFL's groups, which a file may state, are none of the model's."""
        if isinstance(self.model, Gsfl) and self.model.is_decomposed:
            self.model.set_groups(self.model.classes_of_groups)

    # ------------------------------------------------------------------ running

    def train(self, *, resume: bool) -> Trained:
        """Train to the last epoch, or to a request to stop. Raises SolverError where another run has the folder."""
        folder = self.settings.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SolverError(
                f"{folder}: cannot be created ({error.strerror}); give another folder", option="out"
            ) from error
        if not self.group.is_first:
            return self._train(resume)
        with claimed(folder / STATE):
            return self._train(resume)

    def _train(self, resume: bool) -> Trained:
        self._restore(resume)
        stopped = ""
        wrapped = self.group.wrap(self.model, self.device)
        while self.progress.epoch < self.settings.epochs:
            if self._out_of_patience():
                stopped = f"no smaller validation loss in {self.settings.patience} epochs"
                break
            if not self._epoch(wrapped):
                stopped = "by request"
                break
        if self.progress.best and self.settings.select == "val":
            self.model.load_state_dict(self.progress.best)
        return Trained(self.model.eval(), self.progress, stopped)

    def _restore(self, resume: bool) -> None:
        path = self.settings.folder / STATE
        exists = bool(self.group.broadcast_object(path.is_file()))
        if exists and not resume:
            raise SolverError(
                f"{path}: is of an earlier run; resume that one with resume=latest, or give another folder as out=",
                option="resume out",
            )
        if exists:
            self.progress = load_state(path, self.run, self.model, self.optimizer)
            self._check_groups()
            self.log(f"resumed at epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1}")
        elif self.group.is_first:
            write_split(self.settings.folder / SPLIT, self.dataset)

    def _out_of_patience(self) -> bool:
        best, patience = self.progress.best_epoch, self.settings.patience
        return bool(patience) and best is not None and self.progress.epoch - best > patience

    def _epoch(self, wrapped: nn.Module) -> bool:
        """Train one epoch and validate; False if a request to stop interrupted it."""
        settings, progress = self.settings, self.progress
        set_epoch(self.optimizer, self.recipe, progress.epoch)
        batches = epoch_batches(len(self.train_rows), settings.batch, settings.seed, progress.epoch)
        rank, world = self.group.rank, self.group.world
        left = [(numbers, numbers[rank::world]) for numbers in batches[progress.batch :]]
        inputs = self.train_inputs.training([own for _, own in left], settings.seed, progress.epoch)
        self.model.train()
        for (numbers, own), x in zip(left, inputs, strict=True):
            loss = self._step(wrapped, x.to(self.device), numbers, own)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"epoch {progress.epoch + 1}, batch {progress.batch + 1}: the loss is {loss:g}; lower --lr"
                )
            progress.loss += loss * len(numbers)
            progress.batch += 1
            self.on_batch(progress.epoch + 1, progress.batch, len(batches))
            if self._asked_to_stop():
                self._save()
                return False
            if (
                settings.save_every
                and progress.batch % settings.save_every == 0
                and progress.batch < len(batches)
            ):
                self._save()
        self._finish_epoch()
        return True

    def _step(self, wrapped: nn.Module, x: Tensor, numbers: np.ndarray, own: np.ndarray) -> float:
        """Make one update; return the loss of the whole batch."""
        progress, world = self.progress, self.group.world
        torch.manual_seed(_mixed(self.settings.seed, progress.epoch, progress.batch, self.group.rank))
        target = {
            name: value.to(self.device) for name, value in self.task.targets(self.train_rows, own).items()
        }
        self.optimizer.zero_grad(set_to_none=True)
        found = wrapped(x)
        terms = self.task.loss(self.model, found, x, target)
        # Of the whole batch: what the processes' gradients are averaged to.
        weights = {name: 1.0 if name in self.task.summed else len(own) / len(numbers) for name in terms}
        loss = sum(
            (weights[name] * term for name, term in terms.items()), torch.zeros((), device=self.device)
        )
        (loss * world).backward()
        self.optimizer.step()
        if isinstance(self.model, Gsfl) and self.model.is_decomposed:
            self._move_centres(self.model, found, target["label"], numbers, own)
        return float(self.group.sum(loss.detach()))

    def _move_centres(
        self, model: Gsfl, found: dict[str, Tensor], labels: Tensor, numbers: np.ndarray, own: np.ndarray
    ) -> None:
        """Move GSFL's centres by the features of the whole batch, whichever process has them."""
        if self.group.world > 1:
            places = torch.arange(len(numbers), device=self.device)[self.group.rank :: self.group.world]
            whole = {}
            for name in ("discriminative", "shared"):
                value = found[name].detach()
                whole[name] = value.new_zeros(len(numbers), value.shape[1]).index_copy_(0, places, value)
                self.group.sum(whole[name])
            labels = torch.from_numpy(self.train_rows.targets["label"][numbers]).to(self.device)
            found = whole
        model.move_centres(found, labels)

    def _asked_to_stop(self) -> bool:
        """Act on the signals to any process: SIGHUP writes the state, SIGINT also ends the run."""
        stop, save = self.requests.take()
        if self.group.world > 1:
            asked = torch.tensor([float(stop), float(save)], device=self.device)
            stop, save = (value > 0 for value in self.group.sum(asked).tolist())
        if save and not stop:
            self._save()
        return bool(stop)

    def _finish_epoch(self) -> None:
        progress = self.progress
        loss = progress.loss / len(self.train_rows)
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "loss": loss}
        if self.group.is_first:
            predicted, val_loss = predict(
                self.model, self.task, self.val_inputs, self.settings.batch, self.device
            )
            figures = self.task.figures(predicted, self.val_rows, self.dataset, resamples=0)
            row |= {"val_loss": val_loss, **{name: found.value for name, found in figures.items()}}
        row["val_loss"] = val_loss = float(self.group.broadcast_object(row.get("val_loss")))
        progress.history.append(row)
        progress.epoch, progress.batch, progress.loss = progress.epoch + 1, 0, 0.0
        if val_loss < progress.best_loss:
            progress.best_epoch, progress.best_loss = progress.epoch, val_loss
            progress.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in list(row.items())[1:] if value is not None)
        self.log(f"epoch {progress.epoch} of {self.settings.epochs}: {shown}")
        self._save()

    def _save(self) -> None:
        if self.group.is_first:
            save_state(self.settings.folder / STATE, self.run, self.progress, self.model, self.optimizer)
            write_log(self.settings.folder / LOG, self.progress.history)


def tested_inputs(
    recipe: Recipe,
    rows: Rows,
    paths: list[Path] | tuple[Path, ...],
    workers: int = 0,
    how: Preprocessing | None = None,
) -> Inputs:
    """Return the inputs of rows that are tested: images resized whole, or their centre, as the recipe says.

    ``how`` is the model's preprocessing.
    """
    resize = recipe.size if recipe.whole else recipe.resize
    return Inputs(rows, paths, recipe.size, resize, workers, how or IMAGENET)


def digest_rows(rows: Rows) -> str:
    """Return the SHA-256 of a split's names, targets and features."""
    digest = hashlib.sha256("\n".join(rows.images).encode("utf-8", "surrogateescape"))
    for name, values in sorted(rows.targets.items()):
        digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    if rows.inputs is not None:
        digest.update(np.ascontiguousarray(rows.inputs).tobytes())
    return digest.hexdigest()


def write_log(path: Path, history: list[dict[str, Any]]) -> None:
    """Write the table of the epochs."""
    if not history:
        return
    with atomic_file(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(history[0])
        writer.writerows(
            [["" if value is None else repr(value) for value in row.values()] for row in history]
        )


def write_split(path: Path, dataset: Dataset) -> None:
    """Write which images were trained on and which selected the weights: `ilgnet test` warns where it meets them again."""
    with atomic_file(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("data", "split", "image"))
        for split in ("train", "val"):
            writer.writerows((dataset.name, split, csv_text(image)) for image in dataset.split(split).images)


def _mixed(*numbers: int) -> int:
    """A seed for torch from several numbers."""
    digest = hashlib.sha256(":".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
