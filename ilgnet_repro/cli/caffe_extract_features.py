"""``ilgnet caffe extract_features``: Caffe's tool, argument for argument."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._options import COUNT
from ._parser import CommandParser

_EPILOG = """examples:
  ilgnet caffe extract_features net.caffemodel val.prototxt fc7 fc7_lmdb 10 lmdb
  ilgnet caffe extract_features net.caffemodel val.prototxt fc6,fc7 fc6_lmdb,fc7_lmdb 10 lmdb GPU 0

The net reads its images by its own data layers, in phase TEST; row N has the key %010d and float_data, without a
label. For keys and labels of the source, or HDF5 and npz, see `ilgnet features`."""


def add_parser(actions: Any) -> None:
    """Add ``extract_features`` to the actions of ``ilgnet caffe``."""
    parser: CommandParser = actions.add_parser(
        "extract_features", help="blobs of a net, for the rows that it reads, as LMDBs",
        description="Store blobs of a net in LMDBs, as Caffe's extract_features does.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.switches = ()
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="trained weights (.caffemodel, .caffemodel.h5, .safetensors)"
    )
    parser.add_argument("model", metavar="PROTOTXT", help="the net, with its data layers")
    parser.add_argument("blobs", metavar="BLOBS", help="names of blobs, separated by commas")
    parser.add_argument(
        "databases", metavar="DB_NAMES", help="a new folder for each blob, separated by commas"
    )
    parser.add_argument("iterations", metavar="BATCHES", type=COUNT, help="number of mini-batches")
    parser.add_argument("backend", metavar="DB_TYPE", help="lmdb, the only one there is")
    parser.add_argument(
        "device", metavar="CPU/GPU", nargs="?", choices=("CPU", "GPU"), default="CPU", help="default CPU"
    )
    parser.add_argument("gpu", metavar="DEVICE_ID", nargs="?", default="0", help="a GPU's number (default 0)")


def run(args: argparse.Namespace) -> int:
    """Extract, logging as Caffe does."""
    from ..errors import IlgnetError
    from ..files import check_output
    from .caffe_test import build, log
    from .lmdb import check_backend

    check_backend(args.backend, "DB_TYPE")
    blobs, paths = args.blobs.split(","), args.databases.split(",")
    if len(blobs) != len(paths) or not all((*blobs, *paths)):
        raise IlgnetError(
            f"{args.blobs} and {args.databases}: the number of blob names and dataset names must be equal"
        )
    if len(set(blobs)) != len(blobs) or len(set(paths)) != len(paths):
        raise IlgnetError(f"{args.blobs} and {args.databases}: one is named twice; name each once")
    for path in paths:
        check_output(path, [args.weights, args.model])
    options: dict[str, Any] = {
        "phase": "", "level": 0, "stage": "", "arrays": "", "shape": [], "ignore_field": [], "allow_missing": [],
        "crop": None, "gpu": args.gpu if args.device == "GPU" else "",
    }  # fmt: skip
    net, feed = build(argparse.Namespace(**{**vars(args), **options}), "TEST")
    from ..caffe_tool.extract import caffe_extract

    known = set(net.graph.names.values())
    for blob in blobs:
        if blob not in known:
            raise IlgnetError(
                f"Unknown feature blob name {blob} in the network {args.model}; it has {_some(known)}"
            )
    caffe_extract(net, feed, dict(zip(blobs, map(Path, paths), strict=True)), args.iterations, log)
    return 0


def _some(names: set[str]) -> str:
    listed = sorted(name for name in names if "@" not in name)
    return ", ".join(listed[:20]) + (", ..." if len(listed) > 20 else "")
