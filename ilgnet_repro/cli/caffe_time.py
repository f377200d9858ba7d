"""``ilgnet caffe time``: Caffe's `time`, flag for flag and line for line."""

from __future__ import annotations

import argparse
from typing import Any

from ..files import json_text
from .caffe_test import add_net_flags, build, log

_EPILOG = """examples:
  ilgnet caffe time -model deploy.prototxt -iterations 10
  ilgnet caffe time -model deploy.prototxt -phase TEST -shape data=16,3,227,227 -json"""


def add_parser(actions: Any) -> None:
    """Add ``time`` to the actions of ``ilgnet caffe``."""
    parser = actions.add_parser(
        "time", help="time each layer, forward and backward",
        description="Time a net layer by layer as Caffe does.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_net_flags(parser, "TRAIN")


def run(args: argparse.Namespace) -> int:
    """Time passes over the first batch, logging as Caffe does."""
    net, feed = build(args, "TRAIN")
    from ..caffe_tool.time import caffe_time

    result = caffe_time(net, next(feed.batches(1)), args.iterations, log)
    if args.json:
        print(json_text(result.to_dict()))
    return 0
