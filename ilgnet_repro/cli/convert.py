"""``ilgnet convert``: a caffemodel to safetensors and other formats."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._console import results_console
from ._options import add_net_options, add_preprocessing_options, read_preprocessing, read_shapes

if TYPE_CHECKING:
    from ..conversion.report import ConversionReport

FORMATS = ("safetensors", "caffemodel")

_EPILOG = """examples:
  ilgnet convert ilgnet.caffemodel
  ilgnet convert ilgnet.caffemodel --verify --out converted
  ilgnet convert net.caffemodel --prototxt deploy.prototxt --mean-value 104,117,123
  ilgnet convert net.caffemodel --prototxt deploy.prototxt --to safetensors,caffemodel --out out --json

The prototxt is the one given, else NAME.prototxt or deploy.prototxt beside the weights, else the built-in
net whose layers have the same names and shapes (ILGNet is one)."""


def add_parser(subparsers: Any) -> None:
    """Add ``convert``."""
    parser = subparsers.add_parser(
        "convert", help="convert a caffemodel", description="Convert Caffe weights, all files or none.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    fill_parser(parser)


def fill_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("weights", metavar="X.caffemodel")
    parser.add_argument("--prototxt", metavar="P", help="the net the weights belong to")
    parser.add_argument(
        "--to", default="safetensors", metavar="FORMATS",
        help=f"formats, with commas between: {', '.join(FORMATS)} (default safetensors)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: that of the weights)")
    parser.add_argument(
        "--verify", action="store_true", help="run each written file against the original arrays"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_net_options(parser)
    add_preprocessing_options(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, and print the report."""
    from ..conversion.convert import convert
    from ..formats.caffemodel import open_caffemodel
    from ._progress import progress_bar

    size = sum(
        4 * math.prod(blob.shape) for layer in open_caffemodel(args.weights).layers for blob in layer.blobs
    )
    shapes = read_shapes(args.shape)
    with progress_bar(f"converting {Path(args.weights).name}", size, unit="bytes") as progress:
        report = convert(
            args.weights, args.prototxt, tuple(args.to.split(",")), args.out, phase=args.phase, verify=args.verify,
            preprocessing=read_preprocessing(args, _input_shape(args, shapes)), input_shapes=shapes,
            ignore_fields=args.ignore_field, progress=progress,
        )  # fmt: skip
    if args.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_report(report)
    return 0


def _input_shape(args: argparse.Namespace, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of the net's picture, where preprocessing options need it."""
    if args.size or all(
        getattr(args, name) is None for name in ("path", "order", "scale", "mean_value", "mean_file")
    ):
        return None
    from ..conversion.find import find_net
    from ..formats.caffemodel import open_caffemodel
    from ..graph.build import build_graph
    from ..net import plan_net

    graph = build_graph(find_net(open_caffemodel(args.weights), args.prototxt).net, args.phase)
    return next((shape for shape in plan_net(graph, shapes).shapes.values() if len(shape) == 4), None)


def _pictures(preprocessing: str | None) -> str:
    if preprocessing is None:
        return "preprocessing unknown: state it with --mean-value and the like"
    known = json.loads(preprocessing)
    how = "resized whole" if known["path"] == "whole" else "cropped at the centre"
    mean = (
        "a mean image"
        if known["has_mean_image"]
        else ", ".join(f"{value:g}" for value in known["mean_value"]) or 0
    )
    return f"{how} to {'x'.join(map(str, known['size']))}, {known['order']}, minus {mean}, times {known['scale']:g}"


def print_report(report: ConversionReport) -> None:
    """Print the report as tables."""
    from rich.table import Table

    console = results_console()
    release = report.source.release
    about = Table(show_header=False, box=None, pad_edge=False)
    rows = [
        ("weights", f"{report.source.file}, {report.source.bytes:,} bytes"),
        ("SHA-256", report.source.sha256),
        ("release", f"{release.name}, as published" if release else "not a file the ILGNet authors released"),
        ("net", f"{report.net} from {report.prototxt}, phase {report.phase}"),
        ("layers", f"{report.layers}, {report.parameters:,} parameters"),
        ("outputs", ", ".join(report.outputs)),
        ("pictures", _pictures(report.preprocessing)),
    ]
    rows += [("upgraded", note) for note in report.notes]
    if report.extra_layers:
        rows.append(("ignored", f"{', '.join(report.extra_layers)}: in the file, not in the net"))
    for row in rows:
        about.add_row(*row)
    console.print(about)

    files = Table(title="written", title_justify="left")
    for column, justify in (("format", "left"), ("file", "left"), ("bytes", "right"), ("seconds", "right")):
        files.add_column(column, justify=justify)  # type: ignore[arg-type]
    for file in report.written:
        files.add_row(file.format, file.path, f"{file.bytes:,}", f"{file.seconds:.2f}")
    console.print(files)
    if report.verified:
        checks = Table(title="verified against the original arrays", title_justify="left")
        for column in ("file", "output", "largest difference", "inputs"):
            checks.add_column(column)
        for check in report.verified:
            checks.add_row(check.file, check.blob, f"{check.largest:.3g}", check.inputs)
        console.print(checks)
