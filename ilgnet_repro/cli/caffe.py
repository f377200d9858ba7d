"""``ilgnet caffe ACTION``: Caffe's own commands and tools, with their arguments and flags."""

from __future__ import annotations

import argparse
from typing import Any

from . import (
    caffe_compute_image_mean,
    caffe_convert_imageset,
    caffe_device_query,
    caffe_draw_net,
    caffe_extract_features,
    caffe_run,
    caffe_test,
    caffe_time,
    caffe_train,
    caffe_upgrade_net_proto_binary,
    caffe_upgrade_net_proto_text,
    caffe_upgrade_solver_proto_text,
)

# The actions of Caffe's command, and Caffe's other tools under their names. Each module has `add_parser` and `run`.
ACTIONS = {
    "train": caffe_train,
    "test": caffe_test,
    "time": caffe_time,
    "device_query": caffe_device_query,
    "run": caffe_run,
    "convert_imageset": caffe_convert_imageset,
    "compute_image_mean": caffe_compute_image_mean,
    "extract_features": caffe_extract_features,
    "upgrade_net_proto_text": caffe_upgrade_net_proto_text,
    "upgrade_net_proto_binary": caffe_upgrade_net_proto_binary,
    "upgrade_solver_proto_text": caffe_upgrade_solver_proto_text,
    "draw_net": caffe_draw_net,
}

_EPILOG = """examples:
  ilgnet caffe train -solver solver.prototxt -weights bvlc_googlenet.caffemodel
  ilgnet caffe test -model val.prototxt -weights net.caffemodel -iterations 400
  ilgnet caffe time -model deploy.prototxt
  ilgnet caffe run classify.py images/
  ilgnet caffe convert_imageset -resize_height=256 -resize_width=256 --shuffle images/ train.txt train_lmdb
  ilgnet caffe compute_image_mean -backend=lmdb train_lmdb mean.binaryproto
  ilgnet caffe extract_features net.caffemodel val.prototxt fc7 fc7_lmdb 10 lmdb"""


def add_parser(subparsers: Any) -> None:
    """Add ``caffe`` and its actions."""
    parser = subparsers.add_parser(
        "caffe", description="Caffe's command and tools: flags with one dash or two, and Caffe's log on stderr.",
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
