"""The progress view of `ilgnet train`, on stderr: a bar with loss and rate, and a line for each test."""

from __future__ import annotations

import sys
from typing import Any

from ..train.observe import Forward, Observer, Run, Test, Updated
from ._console import make_console


class TrainingView(Observer):
    """Shows the progress of a run; only tests and snapshots if stderr is not a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = make_console(sys.stderr)
        columns = (
            *(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            ),
            TextColumn("{task.fields[state]}", markup=False),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task: Any = None
        self._loss = ""

    def log(self, topic: str, text: str) -> None:
        shown = ("weights", "ignored", "snapshot_weights", "restored", "note", "diverged")
        if topic in shown or topic.startswith("debug_"):
            self._console.print(text, soft_wrap=True)

    def on_start(self, trainer: Run) -> None:
        total = trainer.settings.max_iter
        self._task = self._progress.add_task("training", total=total, completed=trainer.iteration, state="")
        self._progress.start()

    def on_forward(self, trainer: Run, forward: Forward) -> None:
        self._loss = f"loss {forward.smoothed:.4f}"

    def on_update(self, trainer: Run, updated: Updated) -> None:
        self._progress.update(
            self._task, completed=updated.iteration + 1, state=f"{self._loss}  lr {updated.rate:.3g}"
        )

    def on_test(self, trainer: Run, test: Test) -> None:
        if not test.outputs:  # test_iter 0
            return
        values = "  ".join(f"{output.name} {output.value:.4f}" for output in test.outputs[:6])
        net = f" net {test.net}" if len(trainer.test_nets) > 1 else ""
        self._console.print(f"test at {test.iteration}{net}: {values}", soft_wrap=True)

    def on_finish(self, trainer: Run) -> None:
        self._progress.stop()
