"""``ilgnet convert``: a caffemodel to safetensors and other formats."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import strict_json
from ..errors import printable
from ._console import add_row, results_console
from ._options import (
    add_allow_missing,
    add_net_options,
    add_preprocessing_options,
    read_preprocessing,
    read_shapes,
)

if TYPE_CHECKING:
    from ..conversion.job import Options
    from ..conversion.report import ConversionReport

FORMATS = ("safetensors", "onnx", "pt2", "python", "caffemodel")
PRECISIONS = ("float32", "bfloat16", "float16", "int8")

_EPILOG = """examples:
  ilgnet convert ilgnet.caffemodel
  ilgnet convert ilgnet.caffemodel --verify --out converted
  ilgnet convert net.caffemodel --prototxt deploy.prototxt --mean-value 104,117,123
  ilgnet convert net.caffemodel --prototxt deploy.prototxt --to safetensors,caffemodel --out out --json
  ilgnet convert ilgnet.caffemodel --to onnx --with-preprocessing --verify
  ilgnet convert fcn.caffemodel --prototxt fcn.prototxt --to onnx --dynamic-size --fold
  ilgnet convert ilgnet.caffemodel --to onnx --precision int8 --pictures a.jpg b.jpg
  ilgnet convert net.caffemodel --prototxt deploy.prototxt --to python,pt2

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
    _add_writing_options(parser)
    add_net_options(parser)
    add_allow_missing(parser)
    add_preprocessing_options(parser)


def _add_writing_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("writing")
    group.add_argument(
        "--fold", action="store_true",
        help="multiply BatchNorm, Scale and Bias into the layers before them, drop Dropout and Split",
    )  # fmt: skip
    group.add_argument(
        "--precision", choices=PRECISIONS, default="float32",
        help="of dense (InnerProduct) weights, in safetensors and onnx; what it costs is measured and reported",
    )  # fmt: skip
    group.add_argument(
        "--pictures", nargs="+", default=[], metavar="FILE", help="measure --precision on these pictures"
    )
    group.add_argument(
        "--dynamic-size",
        action="store_true",
        help="leave height and width open (onnx, pt2), where the net allows",
    )
    group.add_argument(
        "--fast-lrn", action="store_true",
        help="onnx: LRN as a convolution and roots, which ONNX Runtime computes several times faster than LRN nodes",
    )  # fmt: skip
    group.add_argument(
        "--with-preprocessing", action="store_true",
        help="onnx: take uint8 pictures (N, height, width, 3) and resize, crop, subtract and scale in the graph",
    )  # fmt: skip
    group.add_argument(
        "--input-order", choices=("RGB", "BGR"), default="RGB",
        help="channel order of those pictures (default RGB; OpenCV reads BGR)",
    )  # fmt: skip


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
            ignore_fields=args.ignore_field, crop=args.crop, options=_options(args), pictures=args.pictures,
            progress=progress, allow_missing=args.allow_missing,
        )  # fmt: skip
    if args.json:
        print(strict_json.dumps(report.to_json(), indent=2))
    else:
        print_report(report)
    return 0


def _options(args: argparse.Namespace) -> Options:
    from ..conversion.job import Options

    return Options(
        fold=args.fold, with_preprocessing=args.with_preprocessing, input_order=args.input_order,
        precision=args.precision, dynamic_size=args.dynamic_size, fast_lrn=args.fast_lrn,
    )  # fmt: skip


def _input_shape(args: argparse.Namespace, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of the net's picture, where preprocessing options need it."""
    if args.size or all(
        getattr(args, name) is None for name in ("path", "order", "scale", "mean_value", "mean_file")
    ):
        return None
    from ..conversion.find import find_net
    from ..formats.caffemodel import open_caffemodel
    from ..graph.build import build_graph
    from ..plan import plan_net

    graph = build_graph(
        find_net(open_caffemodel(args.weights), args.prototxt).net, args.phase, crop=args.crop
    )
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
    rows += [("note", note) for note in report.notes]
    if report.extra_layers:
        rows.append(("ignored", f"{', '.join(report.extra_layers)}: in the file, not in the net"))
    for row in rows:
        add_row(about, *row)
    console.print(about)

    files = Table(title="written", title_justify="left")
    for column, justify in (("format", "left"), ("file", "left"), ("bytes", "right"), ("seconds", "right")):
        files.add_column(column, justify=justify)  # type: ignore[arg-type]
    for file in report.written:
        add_row(files, file.format, file.path, f"{file.bytes:,}", f"{file.seconds:.2f}")
    console.print(files)
    if report.verified:
        checks = Table(title="verified against the original arrays", title_justify="left")
        for column in ("file", "output", "largest difference", "inputs"):
            checks.add_column(column)
        for check in report.verified:
            add_row(checks, check.file, check.blob, _number(check.largest), check.inputs)
        console.print(checks)
        for check in report.verified:
            for text in check.not_compared:
                console.print(printable(f"{check.file}: not compared: {text}"))
    if report.deviations:
        costs = Table(title=f"what {report.deviations[0].precision} dense weights cost", title_justify="left")
        for column in (
            "output",
            "largest difference",
            "mean difference",
            "largest value",
            "other answers",
            "inputs",
        ):
            costs.add_column(column)
        for cost in report.deviations:
            add_row(
                costs, cost.blob, _number(cost.largest), _number(cost.mean), f"{cost.scale:.3g}",
                f"{cost.changed} of {cost.rows}", cost.inputs,
            )  # fmt: skip
        console.print(costs)
        for cost in report.deviations:
            if cost.not_compared:
                console.print(printable(f"not compared: {cost.blob}: {cost.not_compared}"))


def _number(value: float | None) -> str:
    return "not compared" if value is None else f"{value:.3g}"
