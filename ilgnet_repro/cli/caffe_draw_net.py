"""``ilgnet caffe draw_net``: pycaffe's `draw_net.py`: a net's prototxt as an image."""

from __future__ import annotations

import argparse
from typing import Any

from ..files import check_output
from ._options import check_exist

_EPILOG = """examples:
  ilgnet caffe draw_net deploy.prototxt net.png
  ilgnet caffe draw_net train_val.prototxt net.svg --rankdir TB --phase TEST

By Graphviz where it or the extra draw is installed, otherwise plainer, by matplotlib. The suffix chooses the format;
.raw is Graphviz's own text."""


def add_parser(actions: Any) -> None:
    """Add ``draw_net`` to the actions of ``ilgnet caffe``."""
    parser = actions.add_parser(
        "draw_net", help="a net as an image", description="Draw a net by Graphviz, as pycaffe's draw_net.py does.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("net", metavar="PROTOTXT", help="the net")
    parser.add_argument("image", metavar="IMAGE", help="the image to write")
    parser.add_argument(
        "--rankdir", default="LR", choices=("LR", "RL", "TB", "BT"),
        help="from left to right (LR, default), or from the top to the bottom (TB), or the other way",
    )  # fmt: skip
    parser.add_argument(
        "--phase",
        default="ALL",
        choices=("TRAIN", "TEST", "ALL"),
        help="draw the layers of one phase (default ALL)",
    )
    parser.add_argument(
        "--display_lrm", action="store_true", help="show the learning rate multipliers of layers with weights"
    )


def run(args: argparse.Namespace) -> int:
    """Draw the net."""
    check_exist(args.net)
    check_output(args.image, [args.net])
    from ..caffe.prototxt import read_net
    from ..pycaffe.draw import draw_net_to_file
    from ..pycaffe.phases import TEST, TRAIN

    phase = {"TRAIN": TRAIN, "TEST": TEST, "ALL": None}[args.phase]
    draw_net_to_file(read_net(args.net), args.image, args.rankdir, phase, args.display_lrm)
    print(f"Drawing net to {args.image}")
    return 0
