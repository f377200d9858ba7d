"""Console output: a rich console for tables, `say` for lines. Names from files are escaped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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

    return EscapingConsole(file=file, highlight=False, markup=False, emoji=False, **options)


def add_row(table: Table, *cells: str) -> None:
    """Add a row with control characters escaped: names come from files."""
    table.add_row(*map(printable, cells))


def say(*values: object, sep: str = " ", file: IO[str] | None = None, flush: bool = False) -> None:
    """Print one line with control characters escaped: file names may contain any."""
    print(*(printable(str(value)) for value in values), sep=sep, file=file, flush=flush)


@contextmanager
def escaping_streams() -> Iterator[None]:
    """Make stdout and stderr escape characters that their encoding lacks instead of raising."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    try:
        for stream in streams:
            stream.reconfigure(errors="backslashreplace")
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)
