"""What is printed for people: a rich console for tables, `say` for lines. Names from files come out escaped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from ..errors import printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Piped output is read by programs and in files: no row is cut for the sake of a screen.
PIPED_WIDTH = 160


def results_console() -> Console:
    """Return a rich console on stdout: as wide as the terminal, or wide enough where there is none."""
    return make_console(sys.stdout, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def make_console(file: IO[str], **options: Any) -> Console:
    """A rich console that shows text as it is: no markup or emoji in it, control characters as escapes.

    What this package words itself may pass ``markup=True``, and `rich.markup.escape` what it puts in.
    """
    from rich.console import Console
    from rich.text import Text

    class EscapingConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable_lines(text), **options)

    return EscapingConsole(file=file, highlight=False, markup=False, emoji=False, **options)


def add_row(table: Table, *cells: str) -> None:
    """Add a row of one line: names come from files."""
    table.add_row(*map(printable, cells))


def say(*values: object, sep: str = " ", file: IO[str] | None = None, flush: bool = False) -> None:
    """Print one line, each value without control characters: a file name may hold any."""
    print(*(printable(str(value)) for value in values), sep=sep, file=file, flush=flush)


@contextmanager
def escaping_streams() -> Iterator[None]:
    """Make stdout and stderr write what their encoding lacks as escapes, in place of raising."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    try:
        for stream in streams:
            stream.reconfigure(errors="backslashreplace")
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)
