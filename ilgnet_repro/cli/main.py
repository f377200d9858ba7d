"""``ilgnet COMMAND``: runs a command, and turns errors into one line and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from importlib import import_module

from ..version import __version__
from ._ending import DONE, WRONG_INPUT, cut_files_reported, guarded, interrupts_end_quietly, usable_streams
from ._parser import CommandParser

FOLDER = os.path.dirname(__file__)
# Command -> module of this folder (with `add_parser` and `run`), in the order of the help; existing files only.
COMMANDS = {
    command: module
    for command, module in {
        "convert": "convert",
        "compare": "compare",
        "audit": "audit",
        "view": "view",
        "score": "score",
        "serve": "serve",
        "features": "features",
        "partition": "partition",
        "data": "data",
        "lmdb": "lmdb",
        "mean": "mean",
        "sheet": "data_sheet",
        "test": "test",
        "report": "report",
        "train": "train",
        "finetune": "finetune",
        "synthetic": "synthetic",
        "caffe": "caffe",
        "demo": "demo",
    }.items()
    if os.path.exists(os.path.join(FOLDER, f"{module}.py"))
}


def build_parser(
    chosen: Collection[str] = COMMANDS.keys(), are_others_listed: bool = True
) -> argparse.ArgumentParser:
    """Return the parser, complete for the ``chosen`` commands; the others have at most their line of ``ilgnet --help``."""
    parser = CommandParser(
        prog="ilgnet",
        description="Caffe nets on PyTorch with Caffe's own numbers: convert, check, score, test and train.",
        epilog="`ilgnet COMMAND --help` shows a command's options and examples.",
    )
    parser.add_argument("--version", action="version", version=f"ilgnet_repro {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, module in COMMANDS.items():
        if command in chosen:
            import_module(f".{module}", __package__).add_parser(commands)
        elif are_others_listed:
            commands.add_parser(command, help=_summary(module))
    return parser


def _summary(module: str) -> str:
    """A command's summary: the first line of its file, so that help imports none of them."""
    with open(os.path.join(FOLDER, f"{module}.py"), encoding="utf-8") as file:
        return file.readline().partition(": ")[2].rstrip().rstrip('."')


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    if arguments[:1] and arguments[0] in COMMANDS:
        return build_parser(arguments[:1], are_others_listed=False).parse_args(arguments)
    build_parser(()).parse_known_args(arguments)  # prints help, the version or an error, and exits
    return build_parser().parse_args(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ilgnet`` and return its exit status: 0 done, 1 wrong input, 3 internal error, 130 interrupted.

    A status over 128 is that of a signal.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with usable_streams():
        status = guarded(lambda: run_command(arguments))
    if argv is None:
        interrupts_end_quietly()
    return status


def run_command(arguments: Sequence[str]) -> int:
    """Run a command within another; its errors are the caller's."""
    try:
        parsed = _parse(arguments)
    except SystemExit as stop:  # argparse exits with 2 for a wrong option
        return WRONG_INPUT if stop.code else DONE
    module = import_module(f".{COMMANDS[parsed.command]}", __package__)
    with cut_files_reported():
        status: int = module.run(parsed)
    return status


if __name__ == "__main__":
    sys.exit(main())
