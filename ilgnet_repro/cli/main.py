"""``ilgnet COMMAND``: runs a command, and turns errors into one line and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from importlib import import_module

from ..errors import IlgnetError
from ..version import __version__
from ._console import escaping_streams
from ._options import for_command
from ._parser import CommandParser

FOLDER = os.path.dirname(__file__)
# Command -> module of this folder (with `add_parser` and `run`), in the order of the help; existing files only.
COMMANDS = {
    command: module
    for command, module in {
        "convert": "convert",
        "compare": "compare",
        "audit": "audit",
        "score": "score",
        "partition": "partition",
        "data": "data",
        "lmdb": "lmdb",
        "mean": "mean",
        "sheet": "data_sheet",
        "test": "test",
        "report": "report",
        "train": "train",
        "synthetic": "synthetic",
        "caffe": "caffe",
        "demo": "demo",
    }.items()
    if os.path.exists(os.path.join(FOLDER, f"{module}.py"))
}

DONE, WRONG_INPUT, INTERNAL_ERROR, INTERRUPTED = 0, 1, 3, 130


def build_parser(chosen: Collection[str] = COMMANDS.keys()) -> argparse.ArgumentParser:
    """Return the parser, complete for the ``chosen`` commands; the others have their line of ``ilgnet --help`` only."""
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
        else:
            commands.add_parser(command, help=_summary(module))
    return parser


def _summary(module: str) -> str:
    """A command's summary: the first line of its file, so that help imports none of them."""
    with open(os.path.join(FOLDER, f"{module}.py"), encoding="utf-8") as file:
        return file.readline().partition(": ")[2].rstrip().rstrip('."')


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    if arguments[:1] and arguments[0] in COMMANDS:
        return build_parser(arguments[:1]).parse_args(arguments)
    build_parser(()).parse_known_args(arguments)  # prints help, the version or an error, and exits
    return build_parser().parse_args(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ilgnet`` and return its exit status: 0 done, 1 wrong input, 3 internal error, 130 interrupted."""
    try:
        arguments = _parse(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as stop:  # argparse exits with 2 for a wrong option
        return WRONG_INPUT if stop.code else DONE
    module = import_module(f".{COMMANDS[arguments.command]}", __package__)
    with escaping_streams():
        return guarded(lambda: module.run(arguments))


def guarded(work: Callable[[], int]) -> int:
    """Run ``work`` and return its status, or the one for the exception it raised."""
    try:
        return work()
    except IlgnetError as error:
        print(f"ilgnet: {for_command(error)}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("ilgnet: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception:
        import traceback

        traceback.print_exc()
        print(
            "ilgnet: internal error; please report it with the lines above",
            file=sys.stderr,
        )
        return INTERNAL_ERROR


if __name__ == "__main__":
    sys.exit(main())
