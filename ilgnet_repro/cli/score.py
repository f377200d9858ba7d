"""``ilgnet score``: score images."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..files import json_text
from ._console import say
from ._options import (
    BATCH,
    add_allow_missing,
    add_crop_option,
    add_fast_options,
    add_preprocessing_options,
    add_text_options,
    check_exist,
    load_for_images,
    make_fast,
    say_notes,
    text_path,
)

if TYPE_CHECKING:
    from ..scored import Score

_TOP = 5  # classes shown
_EPILOG = """examples:
  ilgnet score a.jpg b.jpg --weights net.safetensors
  ilgnet score images/ --weights net.caffemodel --json
  ilgnet score images/ --weights net.onnx
  ilgnet score images/ --weights other_tools.onnx --mean-value 104,117,123 --size 224
  ilgnet score images/ --weights net.safetensors --mean-file mean.binaryproto
  ilgnet score images/ --weights net.safetensors --fast --precision int8"""


def add_parser(subparsers: Any) -> None:
    """Add ``score``."""
    parser = subparsers.add_parser(
        "score", description="Score images with any net that can be run.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("pictures", nargs="+", metavar="IMAGE", help="files, or folders of them")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="a .caffemodel, .caffemodel.h5, .safetensors, .onnx or .pt2 file",
    )
    parser.add_argument("--prototxt", metavar="P", help="the net of the weights")
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="the classes, one per line, such as synset_words.txt: shows the five best",
    )
    parser.add_argument("--batch", type=BATCH, default=16, metavar="N", help="images per batch (default 16)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    add_text_options(parser)
    add_crop_option(parser)
    add_allow_missing(parser)
    add_fast_options(parser)
    add_preprocessing_options(parser)


def run(args: argparse.Namespace) -> int:
    """Score the images and print a line for each."""
    check_exist(args.pictures, args.weights, text_path(args.prototxt), args.mean_file, args.labels)
    from ..errors import IlgnetError
    from ..process import tune_process
    from ..scoring import Scorer, check_batch, expand
    from ._console import progress_bar

    tune_process()
    check_batch(args.batch)
    net, preprocessing, about = load_for_images(args)
    say_notes(about.notes)
    labels = read_labels(args.labels) if args.labels else about.labels
    images = expand(args.pictures)
    if not images:
        raise IlgnetError(f"{args.pictures[0]}: contains no images")
    net = make_fast(net, args, 1 if about.image_order else args.batch)
    with progress_bar("scoring", len(images)) as progress:
        for done, row in enumerate(
            Scorer(net, preprocessing=preprocessing, batch=args.batch).score(images, errors="raise"), 1
        ):
            if args.json:
                print(json_text(_values(row, labels)))
            elif row.value is not None and not args.labels:
                spread = "" if row.deviation is None else f" ± {row.deviation:.6f}"
                say(f"{row.value:.6f}{spread}  {row.path}")
            else:
                shown = (
                    f"{name} {_named(values, labels) or _shown(values)}"
                    for name, values in row.outputs.items()
                )
                say(row.path, *shown, sep="\t")
            progress(done)
    return 0


def read_labels(path: str) -> tuple[str, ...]:
    """Read the names of classes, one per line.  Raises FormatError for a file of another kind."""
    from pathlib import Path

    from ..caffe.kinds import Kind, expect

    expect(path, Kind.TEXT, what="a list of labels")
    return tuple(Path(path).read_text(encoding="utf-8-sig", errors="replace").rstrip().splitlines())


def _best(values: tuple[float, ...], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """The classes of the largest values, at most `_TOP`; none where the labels are not of these values."""
    if len(values) != len(labels):
        return []
    order = sorted(range(len(values)), key=lambda index: -values[index])[:_TOP]
    return [{"index": index, "label": labels[index], "value": values[index]} for index in order]


def _named(values: tuple[float, ...], labels: tuple[str, ...]) -> str:
    return "; ".join(f"{one['label']} {one['value']:.6g}" for one in _best(values, labels))


def _values(row: Score, labels: tuple[str, ...]) -> dict[str, Any]:
    """A row as JSON: the score also under the name of its meaning, and the best classes where labels are known."""
    named = {row.meaning.replace(" ", "_"): row.value} if row.meaning else {"high_quality": None}
    best = {name: found for name, values in row.outputs.items() if (found := _best(values, labels))}
    top = {"top": best} if best else {}
    spread = {} if row.deviation is None else {"deviation": row.deviation}
    return {"picture": row.path, **named, "value": row.value, **spread, "outputs": row.outputs, **top}


def _shown(values: tuple[float, ...], most: int = 10) -> str:
    return " ".join(f"{value:.6g}" for value in values[:most]) + (" …" if len(values) > most else "")
