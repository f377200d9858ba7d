"""``ilgnet mean``: compute, print or convert a mean image."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..files import json_text
from ._console import say
from ._options import WORKERS
from ._parser import CommandParser
from .lmdb import add_db_option, check_backend

_EPILOG = """examples:
  ilgnet mean train_lmdb mean.binaryproto
  ilgnet mean train_lmdb                       print the channel means only
  ilgnet mean mean.binaryproto mean.npy        the same mean in another format

Sums are exact. Caffe's are float32, which can differ from row 65,794 on; --caffe-rounding reproduces them bit for bit."""


def add_parser(subparsers: Any) -> None:
    """Add ``mean``."""
    parser = subparsers.add_parser(
        "mean",
        description="Compute the mean image of a Caffe LMDB, or read a mean file; print the channel means.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)


def add_flags(parser: CommandParser) -> None:
    """Add what compute_image_mean takes, and what this program adds."""
    parser.switches = ("caffe-rounding", "json")
    parser.add_argument("input", metavar="INPUT_DB", help="an LMDB folder, or a mean file")
    parser.add_argument(
        "output", metavar="OUTPUT_FILE", nargs="?", help=".binaryproto, or .npy by its suffix"
    )
    add_db_option(parser)
    parser.add_argument("--backend", default="lmdb", metavar="NAME", help="lmdb, the only one there is")
    parser.add_argument("--caffe-rounding", action="store_true", help="sum in float32, as Caffe does")
    parser.add_argument(
        "--workers", type=WORKERS, metavar="N", help="decoding threads (default: one per core)"
    )
    parser.add_argument("--json", action="store_true", help="print the means as JSON")


def run(args: argparse.Namespace) -> int:
    """Compute or read a mean, write it if asked, and print the channel means as Caffe does."""
    from ..files import check_output
    from ..reading.lmdb_read import LmdbReader, is_database, join_database
    from ..reading.mean import MeanImage, compute_mean, read_mean, write_mean

    check_backend(args.backend)
    if args.output:
        check_output(args.output, [args.input])
    if Path(args.input).is_file() and not is_database(args.input):
        mean = MeanImage(read_mean(args.input), 0)
    else:
        from ..process import tune_process
        from ._console import progress_bar

        tune_process()
        database = join_database(args.input, args.db)
        with progress_bar("summing", len(LmdbReader(database))) as bar:
            mean = compute_mean(
                database,
                caffe_rounding=args.caffe_rounding,
                workers=args.workers,
                progress=lambda done, rows: bar(done),
            )
    if args.output:
        write_mean(args.output, mean.image)
    if args.json:
        print(json_text({"rows": mean.rows, "shape": mean.image.shape, "channels": mean.channels}))
        return 0
    say(f"Number of channels: {len(mean.channels)}")
    for channel, value in enumerate(mean.channels):
        say(f"mean_value channel [{channel}]: {value:g}")
    return 0
