"""``ilgnet convert``: a caffemodel to safetensors and other formats."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import strict_json
from ..errors import IlgnetError, printable
from ._console import add_row, results_console, say
from ._options import (
    add_allow_missing,
    add_net_options,
    add_preprocessing_options,
    read_preprocessing,
    read_shapes,
)

if TYPE_CHECKING:
    from ..about import Source
    from ..conversion.formats import SaveOptions
    from ..conversion.report import ConversionReport
    from ..data.preprocess import Preprocessing
    from ..runtime.net import CaffeNet

FORMATS = ("safetensors", "onnx", "pt2", "python", "caffemodel", "hdf5")
WEIGHTS = (".caffemodel", ".caffemodel.h5")  # what is converted of a folder
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
  ilgnet convert trained.safetensors --to caffemodel,hdf5 --out caffe
  ilgnet convert models more/x.caffemodel --to onnx --out onnx

X is a caffemodel, its HDF5 form or a .safetensors file that was written here, told by what it holds; of a folder all
files named .caffemodel and .caffemodel.h5 are taken. Of several files each is converted by itself: a bad one is
reported in the table at the end, and the exit code is then 1.

The prototxt is the one given, else NAME.prototxt or deploy.prototxt beside the weights, else the built-in
net whose layers have the same names and shapes (ILGNet is one)."""


def add_parser(subparsers: Any) -> None:
    """Add ``convert``."""
    parser = subparsers.add_parser(
        "convert", help="convert weights to other formats", description="Convert Caffe weights, all files or none.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    fill_parser(parser)


def fill_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("weights", nargs="+", metavar="X", help="weights files, or folders of them")
    parser.add_argument("--prototxt", metavar="P", help="the net the weights belong to")
    parser.add_argument(
        "--to", default="safetensors", metavar="FORMATS",
        help=f"formats, with commas between: {', '.join(FORMATS)} (default safetensors)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the results, made if need be (default: the weights' own)"
    )
    parser.add_argument(
        "--sha256", action="store_true", help="hash the weights even where their size is no known release's"
    )
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
        "--precision", choices=PRECISIONS,
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
    """Convert, and print the report; of several files, a table."""
    files = _files(args.weights)
    if len(files) > 1 or Path(args.weights[0]).is_dir():
        return _run_many(args, files)
    report = _convert(args, files[0])
    if args.json:
        print(strict_json.dumps(report.to_json(), indent=2))
    else:
        print_report(report)
    return 0


def _files(given: list[str]) -> list[Path]:
    """The weights files that files and folders name.  Raises IlgnetError for a folder without any."""
    found: list[Path] = []
    for path in map(Path, given):
        if not path.is_dir():
            found.append(path)
            continue
        held = sorted(
            entry for entry in path.iterdir() if entry.name.lower().endswith(WEIGHTS) and entry.is_file()
        )
        if not held:
            raise IlgnetError(f"{path}: holds no file named {' or '.join(WEIGHTS)}")
        found += held
    return list(dict.fromkeys(found))


def _convert(args: argparse.Namespace, weights: Path) -> ConversionReport:
    from ..conversion.convert import convert
    from ._progress import progress_bar

    size = weights.stat().st_size if weights.is_file() else 0
    with progress_bar(f"converting {weights.name}", size, unit="bytes") as progress:
        return convert(
            weights, args.prototxt, tuple(args.to.split(",")), args.out, phase=args.phase, verify=args.verify,
            input_shapes=read_shapes(args.shape), ignore_fields=args.ignore_field, crop=args.crop,
            allow_missing=args.allow_missing, sha256=args.sha256, pictures=args.pictures,
            preprocessing=lambda net: _preprocessing(args, net), progress=progress,
            **_options(args),
        )  # fmt: skip


def _run_many(args: argparse.Namespace, files: list[Path]) -> int:
    """Convert each file by itself, going on past those that cannot be; 1 if there was one."""
    from rich.table import Table

    rows: list[dict[str, Any]] = []
    taken: dict[Path, Path] = {}  # a result -> the file it was made of
    for number, path in enumerate(files, 1):
        say(f"{number} of {len(files)}: {path}", file=sys.stderr)
        try:
            _check_taken(args, path, taken)
            rows.append({"file": str(path), "report": _convert(args, path).to_json(), "error": None})
        except IlgnetError as error:
            rows.append({"file": str(path), "report": None, "error": str(error)})
    failed = sum(row["error"] is not None for row in rows)
    if args.json:
        print(strict_json.dumps(rows, indent=2))
        return int(failed > 0)
    table = Table(title=f"{len(files) - failed} of {len(files)} files converted", title_justify="left")
    for column in ("weights", "net", "written", "error"):
        table.add_column(column, overflow="fold")
    for row in rows:
        report = row["report"]
        written = ", ".join(one["path"] for one in report["written"]) if report else ""
        add_row(table, row["file"], report["net"] if report else "", written, row["error"] or "")
    results_console().print(table)
    return int(failed > 0)


def _check_taken(args: argparse.Namespace, path: Path, taken: dict[Path, Path]) -> None:
    """Refuse to write over what another of the files was just converted to."""
    from ..conversion.convert import stem_of

    place = Path(args.out or path.parent).resolve() / stem_of(path)
    if place in taken:
        raise IlgnetError(
            f"{path}: its results would replace those of {taken[place]}, which has the same name; convert it apart"
        )
    taken[place] = path


def _options(args: argparse.Namespace) -> SaveOptions:
    return {
        "fold": args.fold, "with_preprocessing": args.with_preprocessing, "input_order": args.input_order,
        "precision": args.precision, "dynamic_size": args.dynamic_size, "fast_lrn": args.fast_lrn,
    }  # fmt: skip


def _preprocessing(args: argparse.Namespace, net: CaffeNet) -> Preprocessing | None:
    """What the options say, for the size of the net's own image."""
    return read_preprocessing(
        args, next((shape for name in net.inputs if len(shape := net.shapes[name]) == 4), None)
    )


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


def _release(source: Source) -> str:
    if not source.release:
        return "none that is known"
    return f"{source.release}, {source.derived or 'as published'}"


def print_report(report: ConversionReport) -> None:
    """Print the report as tables."""
    from rich.table import Table

    console = results_console()
    source = report.source
    about = Table(show_header=False, box=None, pad_edge=False)
    rows = []
    if source is not None:
        rows += [
            ("weights", f"{source.file}, {source.bytes:,} bytes"),
            (
                "SHA-256",
                source.sha256 or "not computed: the size is no known release's; --sha256 asks for it",
            ),
            ("release", _release(source)),
        ]
    rows += [
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
