"""``ilgnet caffe device_query``: Caffe's `device_query`: what is known of the GPUs."""

from __future__ import annotations

import argparse
from typing import Any

from .caffe_test import log

_EPILOG = """examples:
  ilgnet caffe device_query
  ilgnet caffe device_query -gpu all"""


def add_parser(actions: Any) -> None:
    """Add ``device_query`` to the actions of ``ilgnet caffe``."""
    parser = actions.add_parser(
        "device_query", help="what is known of the GPUs", description="Log what torch knows of the GPUs.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "-gpu", "--gpu", default="", metavar="N", help="GPUs, separated by commas, or all (default: none)"
    )


def run(args: argparse.Namespace) -> int:
    """Query the devices."""
    from ..caffe_tool.devices import query_devices

    query_devices(args.gpu, log)
    return 0
