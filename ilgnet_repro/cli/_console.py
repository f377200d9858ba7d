"""Console output: tables, lines, progress bars. Names from files are escaped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from ..errors import printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Piped output is read by programs: rows are not cut to the width of a screen.
PIPED_WIDTH = 160


def results_console() -> Console:
    """Return a rich console on stdout: as wide as the terminal, or `PIPED_WIDTH` without one."""
    return make_console(sys.stdout, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def make_console(file: IO[str], **options: Any) -> Console:
    """A rich console that shows text as it is: no markup or emoji in it, control characters as escapes.

    Text of this package's own may be printed with ``markup=True``, its values passed through `rich.markup.escape`.
    """
    from rich.console import Console
    from rich.text import Text

    class EscapingConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable_lines(text), **options)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich ends the process; `guarded` does, without an error

    return EscapingConsole(file=file, highlight=False, markup=False, emoji=False, **options)


def add_row(table: Table, *cells: str) -> None:
    """Add a row with control characters escaped: names come from files."""
    table.add_row(*map(printable, cells))


def say(*values: object, sep: str = " ", file: IO[str] | None = None, flush: bool = False) -> None:
    """Print one line with control characters escaped: file names may contain any."""
    print(*(printable(str(value)) for value in values), sep=sep, file=file, flush=flush)


@contextmanager
def progress_bar(title: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the amount done so far.

    ``unit="bytes"`` shows sizes and speed, any other unit the rate per second.
    Nothing is drawn, and rich is not imported, if stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if not unit or speed is None else f"{speed:,.1f} {unit}/s")

    amount = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), Rate())
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *amount, TimeRemainingColumn())
    console = make_console(sys.stderr)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(printable(title), total=total)
        yield lambda done: progress.update(task, completed=done)
