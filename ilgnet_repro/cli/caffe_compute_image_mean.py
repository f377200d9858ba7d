"""``ilgnet caffe compute_image_mean``: Caffe's tool, flag for flag; the same as ``ilgnet mean``."""

from __future__ import annotations

import argparse
from typing import Any

from . import mean

_EPILOG = """examples:
  ilgnet caffe compute_image_mean train_lmdb mean.binaryproto
  ilgnet caffe compute_image_mean -backend=lmdb train_lmdb

The same as `ilgnet mean`."""


def add_parser(actions: Any) -> None:
    """Add ``compute_image_mean`` to the actions of ``ilgnet caffe``."""
    parser = actions.add_parser(
        "compute_image_mean", help="the mean image of an LMDB",
        description="Compute the mean image of an LMDB, as Caffe's compute_image_mean does; print the channel means.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    mean.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Compute the mean."""
    return mean.run(args)
