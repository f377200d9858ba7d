"""``ilgnet caffe convert_imageset``: Caffe's tool, flag for flag; the same as ``ilgnet lmdb make``."""

from __future__ import annotations

import argparse
from typing import Any

from .lmdb import add_make_flags, make

_EPILOG = """examples:
  ilgnet caffe convert_imageset --resize_height=256 --resize_width=256 --shuffle images/ train.txt train_lmdb
  ilgnet caffe convert_imageset -gray=true -encoded -encode_type=png images/ train.txt train_lmdb

--shuffle takes --seed, where Caffe takes its seed from the clock. The same as `ilgnet lmdb make`."""


def add_parser(actions: Any) -> None:
    """Add ``convert_imageset`` to the actions of ``ilgnet caffe``."""
    parser = actions.add_parser(
        "convert_imageset", help="an image list becomes an LMDB",
        description="Store the images of a list in an LMDB, as Caffe's convert_imageset does.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_make_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Build the database."""
    return make(args)
