"""What the commands that upgrade a file share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ._options import check_exist

if TYPE_CHECKING:
    from ..caffe_tool.upgrade import Upgrade


def add_parser(actions: Any, name: str, what: str, example: str) -> None:
    """Add one of them: the file to read and the file to write, in this order as in Caffe."""
    parser = actions.add_parser(
        name, help=what, description=f"Write {what}.",
        epilog=f"examples:\n  ilgnet caffe {name} {example}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("source", metavar="IN", help="the file to read")
    parser.add_argument("target", metavar="OUT", help="the file to write, which may be the same")


def run(args: argparse.Namespace, upgrade: Upgrade) -> int:
    """Upgrade the file."""
    from .caffe_test import log

    check_exist(args.source)
    upgrade(args.source, args.target, log)
    return 0
