"""``ilgnet score``: pictures scored by a converted net."""

from __future__ import annotations

import argparse
from typing import Any

from .. import strict_json
from ._console import say
from ._options import (
    add_allow_missing,
    add_crop_option,
    add_fast_options,
    add_preprocessing_options,
    make_fast,
    read_preprocessing,
    say_notes,
)

_EPILOG = """examples:
  ilgnet score a.jpg b.jpg --weights ilgnet.safetensors
  ilgnet score pictures/ --weights ilgnet.caffemodel --json
  ilgnet score pictures/ --weights ilgnet.safetensors --mean-file AVA1_mean.binaryproto
  ilgnet score pictures/ --weights ilgnet.safetensors --fast --precision int8"""


def add_parser(subparsers: Any) -> None:
    """Add ``score``."""
    parser = subparsers.add_parser(
        "score", help="score pictures", description="Score pictures with a converted file or a caffemodel.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files, or folders of them")
    parser.add_argument("--weights", required=True, metavar="W", help="a .safetensors file, or a caffemodel")
    parser.add_argument("--prototxt", metavar="P", help="the net of a caffemodel")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="pictures a pass (default 16)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a picture")
    add_crop_option(parser)
    add_allow_missing(parser)
    add_fast_options(parser)
    add_preprocessing_options(parser)


def run(args: argparse.Namespace) -> int:
    """Score each picture and print a line for it."""
    from ..errors import IlgnetError
    from ..scoring import check_batch, expand, open_weights, score_with
    from ._progress import progress_bar

    check_batch(args.batch)
    net, known = open_weights(args.weights, args.prototxt, crop=args.crop, allow_missing=args.allow_missing)
    say_notes(net.load_notes)
    preprocessing = read_preprocessing(args, net.shapes[net.image_input()]) or known
    pictures = expand(args.pictures)
    if not pictures:
        raise IlgnetError(f"{args.pictures[0]}: holds no pictures")
    net = make_fast(net, args)
    with progress_bar("scoring", len(pictures)) as progress:
        for done, row in enumerate(score_with(net, pictures, preprocessing, args.batch), 1):
            if args.json:
                print(
                    strict_json.dumps(
                        {"picture": row.picture, "high_quality": row.high_quality, "outputs": row.outputs}
                    )
                )
            elif row.high_quality is not None:
                say(f"{row.high_quality:.6f}  {row.picture}")
            else:
                say(
                    row.picture,
                    *(f"{name} {_shown(values)}" for name, values in row.outputs.items()),
                    sep="\t",
                )
            progress(done)
    return 0


def _shown(values: tuple[float, ...], most: int = 10) -> str:
    return " ".join(f"{value:.6g}" for value in values[:most]) + (" …" if len(values) > most else "")
