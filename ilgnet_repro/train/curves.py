"""The training curves of a run: CSV tables, TensorBoard events, and a plot."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import DataError, SolverError, printable
from ..files import (
    atomic_file,
    atomic_path,
    check_output,
    check_replaced,
    csv_text,
    from_csv_text,
    open_input,
    starts_with,
    writing,
)
from .observe import Forward, Observer, Run, Test, Updated

TRAIN, TEST, NORMS, PLOT = "train.csv", "test.csv", "gradients.csv", "curves.png"
_TRAIN_COLUMNS = ["iteration", "learning_rate", "loss", "smoothed_loss"]
_HEADS = {
    TRAIN: f"{','.join(_TRAIN_COLUMNS)}\n".encode(),
    TEST: b"iteration",
    NORMS: b"iteration,gradient_norm",
}


class CsvLog(Observer):
    """Writes ``train.csv`` (a row per iteration) and ``test.csv`` (a row per test) into a folder.

    With ``norms`` also ``gradients.csv``: the L2 norm of all gradients, and that of each parameter's.  A resumed run keeps
    the rows before its first iteration.
    """

    def __init__(self, folder: str | os.PathLike[str], *, norms: bool = False) -> None:
        self.folder, self.norms = Path(folder), norms
        self._files: dict[str, Any] = {}

    def check(self) -> None:
        """Raise IlgnetError if the folder is a database, or has files of these names that are not ours."""
        check_output(self.folder / TRAIN, [self.folder])
        remedy = "give another folder as out="
        for name in (TRAIN, TEST, *([NORMS] if self.norms else [])):
            check_replaced(
                self.folder / name, starts_with(_HEADS[name]), "`ilgnet train`", remedy, option="out"
            )
        check_replaced(
            self.folder / PLOT,
            lambda path: (self.folder / TRAIN).is_file(),
            "`ilgnet train`",
            remedy,
            option="out",
        )

    def on_start(self, trainer: Run) -> None:
        self.check()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SolverError(
                f"{self.folder}: cannot be created ({error.strerror}); give another folder"
            ) from error
        self._rate = 0.0
        self._table(TRAIN, trainer, _TRAIN_COLUMNS)
        nets = len(trainer.test_nets)
        tested = [net for net, one in enumerate(trainer.settings.test_nets) if one.test_iter]
        names = [
            f"{output}#{net}" if nets > 1 else output
            for net in tested
            for output in trainer.test_nets[net].outputs
        ]
        self._table(TEST, trainer, ["iteration", *names])
        if self.norms:
            parameters = [one.name for one in trainer.net.learnables()]
            self._table(NORMS, trainer, ["iteration", "gradient_norm", *parameters])
        self._row: dict[str, float] = {}
        self._nets, self._tested, self._remaining = nets, len(tested), len(tested)

    def on_forward(self, trainer: Run, forward: Forward) -> None:
        self._forward = forward

    def on_update(self, trainer: Run, updated: Updated) -> None:
        self._write(TRAIN, [updated.iteration, updated.rate, self._forward.loss, self._forward.smoothed])
        if updated.norms is not None and self.norms:
            self._write(NORMS, [updated.iteration, updated.norm, *updated.norms.values()])

    def on_test(self, trainer: Run, test: Test) -> None:
        if not test.outputs:  # test_iter 0
            return
        for output in test.outputs:  # a blob of several values counts by its first
            self._row.setdefault(f"{output.name}#{test.net}" if self._nets > 1 else output.name, output.value)
        self._remaining -= 1
        if not self._remaining:
            self._write(TEST, [test.iteration, *self._row.values()])
            self._row, self._remaining = {}, self._tested

    def on_finish(self, trainer: Run) -> None:
        for file in self._files.values():
            with suppress(OSError):  # reported where the row was written
                file.close()

    def _table(self, name: str, trainer: Run, columns: Sequence[str]) -> None:
        path = self.folder / name
        kept = []
        if trainer.iteration and path.is_file():
            kept = [row for row in read_table(path)[1] if 0 <= row[0] < trainer.iteration]
        with atomic_file(path, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(map(csv_text, columns))
            writer.writerows([int(row[0]), *row[1:]] for row in kept)
        self._files[name] = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - closed in on_finish

    def _write(self, name: str, row: Sequence[float]) -> None:
        with writing(self.folder / name, SolverError):
            csv.writer(self._files[name], lineterminator="\n").writerow(
                [row[0], *(f"{value:.9g}" for value in row[1:])]
            )
            self._files[name].flush()


class TensorBoardLog(Observer):
    """Writes the same numbers as TensorBoard events.  Raises SolverError if tensorboard is not installed."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SolverError(
                "tensorboard is not installed; pip install 'ilgnet_repro[tensorboard]'"
            ) from error
        make: Callable[..., Any] = SummaryWriter
        try:
            self._writer = make(os.fspath(folder))
        except UnicodeEncodeError as error:
            raise SolverError(
                f"{folder}: TensorBoard needs names in UTF-8; give another out=", option="out"
            ) from error

    def on_forward(self, trainer: Run, forward: Forward) -> None:
        self._writer.add_scalar("train/loss", forward.loss, forward.iteration)

    def on_update(self, trainer: Run, updated: Updated) -> None:
        self._writer.add_scalar("train/learning_rate", updated.rate, updated.iteration)
        if updated.norms is not None:
            self._writer.add_scalar("gradients/all", updated.norm, updated.iteration)
            for name, norm in updated.norms.items():
                self._writer.add_scalar(f"gradients/{name}", norm, updated.iteration)

    def on_test(self, trainer: Run, test: Test) -> None:
        for output in test.outputs:
            self._writer.add_scalar(f"test{test.net or ''}/{output.name}", output.value, test.iteration)

    def on_finish(self, trainer: Run) -> None:
        self._writer.close()


def read_table(path: Path) -> tuple[list[str], list[list[float]]]:
    """Read a table of `CsvLog`: its columns and its complete rows.  Raises DataError for other files."""
    try:
        with open_input(path, "r", encoding="utf-8", newline="") as file:
            columns, *rows = csv.reader(file)
        # A run that was killed may have left an incomplete row.
        return [*map(from_csv_text, columns)], [
            [float(value) for value in row] for row in rows if len(row) == len(columns)
        ]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: is not a table of a training run; give the folder that `ilgnet train` wrote"
        ) from error


def draw_curves(folder: str | os.PathLike[str], image: str | os.PathLike[str], title: str = "") -> None:
    """Draw a run's losses and other test outputs, from its tables, to a PNG."""
    from matplotlib.figure import Figure

    _, train = read_table(Path(folder, TRAIN))
    columns, test = read_table(Path(folder, TEST))
    iterations = [row[0] for row in test]
    # Only the last part counts: loss1/top-1 is not a loss, loss1/loss is.
    losses = [number for number, name in enumerate(columns) if "loss" in name.rsplit("/", 1)[-1].lower()]
    others = [number for number in range(1, len(columns)) if number not in losses]
    figure = Figure(figsize=(8.0, 3.2) if others and test else (4.4, 3.2), layout="constrained")
    axes = figure.subplots(1, 2 if others and test else 1, squeeze=False)[0]
    axes[0].plot(
        [row[0] for row in train], [row[3] for row in train], linewidth=0.8, color="0.6", label="train"
    )
    for number in losses:
        axes[0].plot(
            iterations,
            [row[number] for row in test],
            marker=".",
            label=_escape_mathtext(f"test {columns[number]}"),
        )
    for number in others if test else ():
        axes[1].plot(
            iterations,
            [row[number] for row in test],
            marker=".",
            color="C2",
            label=_escape_mathtext(f"test {columns[number]}"),
        )
    axes[0].set_ylabel("loss")
    for panel in axes:
        panel.set_xlabel("iteration")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.suptitle(_escape_mathtext(title))
    with atomic_path(image) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _escape_mathtext(name: str) -> str:
    """A name for a chart: matplotlib parses text between two dollar signs as TeX."""
    return printable(name).replace("$", r"\$")
