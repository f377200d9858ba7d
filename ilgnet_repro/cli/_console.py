"""The console that results are printed to: as wide as the terminal, or wide enough where there is none."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Piped output is read by programs and in files: no row is cut for the sake of a screen.
PIPED_WIDTH = 160


def results_console() -> Console:
    """Return a rich console on stdout."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
