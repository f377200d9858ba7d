"""``ilgnet caffe run``: run a script written for pycaffe, unchanged."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import IlgnetError
from ._options import check_exist

_EPILOG = """examples:
  ilgnet caffe run classify.py --gpu images/
  ilgnet caffe run -m pytest test_net.py"""


def add_parser(actions: Any) -> None:
    """Add ``run`` to the actions of ``ilgnet caffe``."""
    parser = actions.add_parser(
        "run", help="run a Python script written for pycaffe",
        description="Run a Python script, or a module, in which `import caffe` leads to this package (docs/pycaffe.md).",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        help="run a module, as -m of Python does, with its arguments",
    )
    parser.add_argument("script", nargs="?", help="the script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")


def run(args: argparse.Namespace) -> int:
    """Run the script or module and return its exit status."""
    if args.module:
        from ..pycaffe.run import run_module

        return run_module(args.module[0], args.module[1:])
    if args.script is None:
        raise IlgnetError("caffe run: no script; give its path, or -m and the name of a module")
    check_exist(args.script)
    from ..pycaffe.run import run_script

    return run_script(args.script, args.arguments)
