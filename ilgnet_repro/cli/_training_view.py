"""The progress view of `ilgnet train`, on stderr: a bar with loss, rate, speed and time left, and a line for each test."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

from ..train.observe import Forward, Observer, Run, Test, Updated
from ._console import make_console

_BARS = "▁▂▃▄▅▆▇█"
_CURVE = 24  # points of the curve of the loss
_SPEED_OVER = 20  # iterations


class TrainingView(Observer):
    """Shows the progress of a run: a bar on a terminal, else a line for each iteration that the solver displays."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = make_console(sys.stderr)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task: Any = None
        self._losses: list[float] = []  # of equal parts of the run so far
        self._per_point = 1  # iterations
        self._times: deque[float] = deque(maxlen=_SPEED_OVER + 1)

    def log(self, topic: str, text: str) -> None:
        shown = ("weights", "ignored", "snapshot_weights", "restored", "rows", "note", "diverged")
        if topic in shown or topic.startswith("debug_"):
            self._console.print(text, soft_wrap=True)

    def on_start(self, trainer: Run) -> None:
        total = trainer.settings.max_iter
        self._task = self._progress.add_task("training", total=total, completed=trainer.iteration, state="")
        self._times.append(time.perf_counter())
        self._progress.start()

    def on_forward(self, trainer: Run, forward: Forward) -> None:
        self._loss = forward.smoothed
        if forward.iteration % self._per_point == 0:
            self._losses.append(forward.smoothed)
        if len(self._losses) > _CURVE:  # every second point, from here on
            self._losses, self._per_point = self._losses[::2], self._per_point * 2

    def on_update(self, trainer: Run, updated: Updated) -> None:
        done, total = updated.iteration + 1, trainer.settings.max_iter
        self._times.append(time.perf_counter())
        state = f"loss {self._loss:.4f}  lr {updated.rate:.3g}"
        if updated.norms is not None:
            state += f"  gradients {updated.norm:.3g}"
        state += f"  {self._speed(total - done)}"
        if self._console.is_terminal:
            curve = _sparkline(self._losses, self._console.encoding)
            self._progress.update(self._task, completed=done, state=f"{state}  {curve}".rstrip())
        elif updated.display:
            self._console.print(f"iteration {updated.iteration} of {total}: {state}", soft_wrap=True)

    def on_test(self, trainer: Run, test: Test) -> None:
        if not test.outputs:  # test_iter 0
            return
        values = "  ".join(f"{output.name} {output.value:.4f}" for output in test.outputs[:6])
        net = f" net {test.net}" if len(trainer.test_nets) > 1 else ""
        self._console.print(f"test at {test.iteration}{net}: {values}", soft_wrap=True)

    def on_finish(self, trainer: Run) -> None:
        self._progress.stop()

    def _speed(self, left: int) -> str:
        """Iterations per second over the last ones, tests included, and the time that the others take at that speed."""
        seconds = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        rate = f"{1 / seconds:.3g} iter/s" if seconds else ""
        return f"{rate}  {_duration(left * seconds)} left" if left else rate


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{days} d {clock}" if days else clock


def _sparkline(values: list[float], encoding: str) -> str:
    """The course of some values in one line; nothing where the terminal cannot show it."""
    finite = [value for value in values if value - value == 0]
    if len(finite) < 2 or "utf" not in encoding.lower():
        return ""
    low, high = min(finite), max(finite)
    steps = [(value - low) / (high - low) if high > low else 0.0 for value in finite]
    return "".join(_BARS[round(step * (len(_BARS) - 1))] for step in steps)
