"""``ilgnet features``: blobs of a net for each image of a database, list or folder."""

from __future__ import annotations

import argparse
from typing import Any

from ..files import json_text
from ._console import say
from ._options import (
    BATCH,
    add_allow_missing,
    add_crop_option,
    add_preprocessing_options,
    add_text_options,
    check_exist,
    load_for_images,
    say_notes,
    text_path,
)
from .lmdb import add_db_option

_EPILOG = """examples:
  ilgnet features val_lmdb --weights net.safetensors --blob fc7 --out fc7.h5
  ilgnet features images/ --weights net.caffemodel --blob pool5 --blob fc7 --out features.npz
  ilgnet features val.txt --root images/ --weights net.safetensors --blob fc7 --out fc7_lmdb

The keys of an LMDB are kept; the images of a list or folder have %08d_path. Without .npz, .h5 or .hdf5 the output is
an LMDB with float_data as Caffe's extract_features writes it: OUT, or OUT_BLOB for each of several blobs."""


def add_parser(subparsers: Any) -> None:
    """Add ``features``."""
    parser = subparsers.add_parser(
        "features", description="Store blobs of a net for each image of a database, list or folder.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("source", metavar="SOURCE", help="an LMDB, a list file, or a folder of images")
    parser.add_argument(
        "--weights", required=True, metavar="W", help="a .caffemodel, .caffemodel.h5, .safetensors, .onnx or .pt2 file"
    )  # fmt: skip
    parser.add_argument("--prototxt", metavar="P", help="the net of the weights")
    parser.add_argument(
        "--blob", required=True, action="append", metavar="NAME", help="a blob; may be repeated"
    )
    parser.add_argument(
        "--out", required=True, metavar="PATH", help=".npz, .h5, .hdf5, or a new folder for an LMDB"
    )
    parser.add_argument("--root", default="", metavar="DIR/", help="put before the paths of a list")
    add_db_option(parser)
    parser.add_argument("--batch", type=BATCH, default=16, metavar="N", help="images per batch (default 16)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_text_options(parser)
    add_crop_option(parser)
    add_allow_missing(parser)
    add_preprocessing_options(parser)


def run(args: argparse.Namespace) -> int:
    """Extract and write them."""
    check_exist(args.weights, text_path(args.prototxt), args.mean_file)
    from ..features import extract_with, open_images
    from ..files import check_outputs
    from ..process import tune_process
    from ..reading.feature_files import output_paths
    from ..reading.lmdb_read import join_database
    from ._console import progress_bar

    tune_process()
    images = open_images(join_database(args.source, args.db), args.root)
    outputs = output_paths(args.out, args.blob)
    check_outputs(outputs, [args.source, args.weights, text_path(args.prototxt), args.mean_file], "--out")
    say_notes(images.notes)
    net, preprocessing, about = load_for_images(args)
    say_notes([*about.notes, *about.random_notes])
    with progress_bar("extracting", images.count) as progress:
        done = extract_with(net, images, args.blob, args.out, preprocessing, args.batch, progress)
    if args.json:
        print(json_text({"rows": done.rows, "files": [str(path) for path in done.files]}))
    else:
        for path in done.files:
            say(f"{path}: {done.rows:,} rows")
    return 0
