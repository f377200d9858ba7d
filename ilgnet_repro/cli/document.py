"""Generates docs/commands.md from the parsers: ``python -m ilgnet_repro.cli.document --write``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .main import build_parser

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
HEAD = """# Commands

Written by `python -m ilgnet_repro.cli.document --write`; a test compares it with the parsers.

Results go to stdout, progress and log to stderr. Exit status: 0 done, 1 wrong input (one line says where,
what and how to fix it), 3 internal error, 130 interrupted, 143 ended by SIGTERM.
"""


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *_parsers(build_parser())]).rstrip() + "\n"


def _parsers(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _section(child)
                yield from _parsers(child)


def _section(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"{'#' * (parser.prog.count(' ') + 1)} `{parser.prog}`\n"
    if parser.description:
        yield f"{parser.description}\n"
    rows = [_row(action) for action in parser._actions if not _is_hidden(action)]
    if rows:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows, ""])
    if parser.epilog:
        yield f"```text\n{parser.epilog.strip()}\n```\n"


def _is_hidden(action: argparse.Action) -> bool:
    return (
        isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
        or action.help == argparse.SUPPRESS
    )


def _row(action: argparse.Action) -> str:
    shown = ", ".join(f"`{name}`" for name in action.option_strings)
    value = action.metavar or (action.dest if action.nargs != 0 else "")
    value = " ".join(value) if isinstance(value, tuple) else str(value)
    if action.choices:
        value = "\\|".join(map(str, action.choices))
    if action.option_strings and action.nargs == 0:
        value = ""
    meaning = (action.help or "").replace("%%", "%").replace("|", "\\|")
    return f"| {shown}{' ' if shown and value else ''}{value} | {meaning} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(prog="python -m ilgnet_repro.cli.document", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    if parser.parse_args(argv).write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
