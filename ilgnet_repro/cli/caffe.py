"""``ilgnet caffe train|test|time``: train, test or time a net as Caffe's own command does."""

from __future__ import annotations

import argparse
from typing import Any

from . import caffe_test, caffe_time, caffe_train

ACTIONS = {"train": caffe_train, "test": caffe_test, "time": caffe_time}

_EPILOG = """examples:
  ilgnet caffe train -solver solver.prototxt -weights bvlc_googlenet.caffemodel
  ilgnet caffe test -model val.prototxt -weights net.caffemodel -iterations 400
  ilgnet caffe time -model deploy.prototxt"""


def add_parser(subparsers: Any) -> None:
    """Add ``caffe`` and its actions."""
    parser = subparsers.add_parser(
        "caffe", description="Caffe's command: flags with one dash or two, and Caffe's log on stderr.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for module in ACTIONS.values():
        module.add_parser(actions)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    from ..process import tune_process

    tune_process()
    status: int = ACTIONS[args.action].run(args)
    return status
