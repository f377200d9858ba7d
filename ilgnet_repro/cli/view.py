"""``ilgnet view``: draw a net as a graph."""

from __future__ import annotations

import argparse
from typing import Any

from ._console import say
from ._options import add_net_options, check_exist, read_shapes, read_stages

_EPILOG = """examples:
  ilgnet view deploy.prototxt --svg net.svg
  ilgnet view net.caffemodel --svg net.svg
  ilgnet view deploy.prototxt net.caffemodel --svg net.svg
  ilgnet view train_val.prototxt --phase TRAIN --svg train.svg
  ilgnet view net.onnx --svg net.svg

A box is a layer with the in-place layers on its top: type, shape, parameters, multiply-adds of the batch. A layer that is
not supported is drawn too."""


def add_parser(subparsers: Any) -> None:
    """Add ``view``."""
    parser = subparsers.add_parser(
        "view", description="Draw a net as a graph of its layers, with shapes, parameters and multiply-adds.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="a prototxt, a weights file (.caffemodel, .caffemodel.h5, .safetensors), or both, in any order; or a .onnx or "
        ".pt2 file",
    )  # fmt: skip
    parser.add_argument("--svg", required=True, metavar="FILE", help="the drawing to write")
    add_net_options(parser)


def run(args: argparse.Namespace) -> int:
    """Draw it and write the file."""
    from ..files import atomic_file, check_output
    from ..web.net_graph import draw, svg
    from ..web.view_files import open_view
    from .audit import texts_and_weights

    check_exist(args.files)
    check_output(args.svg, args.files, "--svg")
    texts, weights = texts_and_weights(args.files)
    view = open_view(
        texts[0] if texts else None, weights[0] if weights else None, phase=args.phase, level=args.level,
        stages=read_stages(args.stage), input_shapes=read_shapes(args.shape), ignore_fields=tuple(args.ignore_field),
        crop=args.crop,
    )  # fmt: skip
    net = view.rows
    drawing = draw(net)
    with atomic_file(args.svg) as file:
        file.write(svg(drawing).encode("utf-8"))
    say(
        f"{args.svg}: {len(net.layers)} layers, {net.parameters:,} parameters, {net.multiply_adds:,} multiply-adds per image"
    )
    return 0
