"""``ilgnet synthetic``: draw a small aesthetic task to try training on."""

from __future__ import annotations

import argparse
from typing import Any

from ._console import say

_EPILOG = """examples:
  ilgnet synthetic synthetic

prints the two training commands that follow."""


def add_parser(subparsers: Any) -> None:
    """Add ``synthetic``."""
    parser = subparsers.add_parser(
        "synthetic",
        description="Draw 2,000 images whose label follows from composition and colour, with nets and solvers.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR", help="where images, databases, nets and solvers go")


def run(args: argparse.Namespace) -> int:
    """Write the task and say what to run next."""
    from ..aesthetics.synthetic_task import make_task

    folder = make_task(args.folder)
    say(f"ilgnet train --solver {folder}/trunk_solver.prototxt")
    say(f"ilgnet train --solver {folder}/solver.prototxt --weights {folder}/trunk_iter_250.caffemodel")
    return 0
