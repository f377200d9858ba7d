"""``ilgnet convert``: convert weights to other formats."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import precisions
from ..errors import IlgnetError, one_of, printable
from ..files import json_text, parse_json, real_path
from ..reading.labels import read_labels
from ._console import add_row, results_console, say
from ._options import (
    BATCH,
    add_allow_missing,
    add_net_options,
    add_preprocessing_options,
    check_exist,
    for_command,
    read_preprocessing,
    read_shapes,
    read_stages,
    text_path,
)
from ._parser import CommandParser

if TYPE_CHECKING:
    from ..about import Source
    from ..caffe.kinds import Kind
    from ..export.report import ConversionReport
    from ..export.saving import SaveOptions
    from ..reading.preprocessing import Preprocessing
    from ..runtime.model import Model
    from ..runtime.net import CaffeNet

FORMATS = ("safetensors", "onnx", "pt2", "python", "caffemodel", "hdf5", "openvino", "tflite", "coreml")
CONSUMERS = (
    *(
        "onnxruntime",
        "openvino",
        "opencv",
        "reference",
        "onnxsim",
        "onnxslim",
        "onnx2torch",
        "onnx2tf",
        "pnnx",
    ),
)
WEIGHTS = (
    ".caffemodel",
    ".caffemodel.h5",
)  # taken from a folder by name, even if damaged

_EPILOG = """examples:
  ilgnet convert bvlc_googlenet.caffemodel
  ilgnet convert bvlc_googlenet.caffemodel --verify --out converted
  ilgnet convert net.caffemodel --prototxt deploy.prototxt --mean-value 104,117,123
  ilgnet convert net.caffemodel --prototxt deploy.prototxt --to safetensors,caffemodel --out out --json
  ilgnet convert bvlc_googlenet.caffemodel --to onnx --with-preprocessing --verify
  ilgnet convert fcn.caffemodel --prototxt fcn.prototxt --to onnx --dynamic-size --fold
  ilgnet convert bvlc_googlenet.caffemodel --to onnx --precision int8 --pictures a.jpg b.jpg
  ilgnet convert net.caffemodel --prototxt deploy.prototxt --to python,pt2
  ilgnet convert trained.safetensors --to caffemodel,hdf5 --out caffe
  ilgnet convert nima.safetensors --to onnx,pt2 --verify onnxruntime,openvino
  ilgnet convert models more/x.caffemodel --to onnx --out onnx
  ilgnet convert all_in_one.caffemodel --prototxt all_in_one.prototxt --stage deploy --to onnx

X is a caffemodel, its HDF5 form or a .safetensors file written by this program, recognized by content. From a folder
and its subfolders Caffe's weights are taken (not names that start with a dot), and other files are counted; with --out
each result is written to the same subfolder there. Several files are converted independently: a bad one is reported
in the table at the end, and the exit code is then 1.

The prototxt is the one given, else NAME.prototxt or deploy.prototxt beside the weights, else the built-in
net whose layers have the same names and shapes (GoogLeNet is one)."""


def add_parser(subparsers: Any) -> None:
    """Add ``convert``."""
    parser = subparsers.add_parser(
        "convert", description="Convert Caffe weights, all files or none.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    fill_parser(parser)


def fill_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    if isinstance(parser, CommandParser):
        parser.optional_values = ("--verify",)
    parser.add_argument("weights", nargs="+", metavar="X", help="weights files, or folders of them")
    parser.add_argument(
        "--prototxt",
        metavar="P",
        help="the net the weights belong to, or `inside`: the net in the caffemodel",
    )
    parser.add_argument(
        "--to", default="safetensors", metavar="FORMATS",
        help=f"formats, separated by commas: {', '.join(FORMATS)} (default safetensors)",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the results, created if missing (default: that of the weights)",
    )
    parser.add_argument(
        "--sha256", action="store_true", help="hash the weights even if no known release has their size"
    )
    parser.add_argument(
        "--verify", nargs="?", const=True, default=False, type=lambda name: name or True, metavar="CONSUMER",
        help="run each written file and compare it with the original arrays; "
        f"with {one_of(CONSUMERS)} (or several, separated by commas) let these run the ONNX file too",
    )  # fmt: skip
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="the classes, one per line, stored in the file: `ilgnet score` prints them",
    )
    parser.add_argument(
        "--score",
        default="",
        metavar="BLOB[:INDEX]",
        help="the output value that is the score, stored in the file",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    _add_writing_options(parser)
    add_net_options(parser)
    add_allow_missing(parser)
    add_preprocessing_options(parser)


def _add_writing_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("writing")
    group.add_argument(
        "--outputs", default="", metavar="BLOBS",
        help="write only the layers that compute these blobs, separated by commas, as for features, or to stop before "
        "DetectionOutput; a blob is its last value, BLOB@LAYER what one layer wrote before others in place",
    )  # fmt: skip
    group.add_argument(
        "--inputs", default="", metavar="BLOBS",
        help="feed these blobs instead of computing them; layers that only these needed are left out",
    )  # fmt: skip
    group.add_argument(
        "--batch",
        type=BATCH,
        metavar="N",
        help="fix the batch at N (default: open in onnx and pt2, else as stated)",
    )
    group.add_argument(
        "--states", action="store_true",
        help="make the first and last states of RNN and LSTM inputs and outputs, as with Caffe's expose_hidden: "
        "LAYER_h_0, LAYER_c_0, LAYER_h_T, LAYER_c_T",
    )  # fmt: skip
    group.add_argument(
        "--fold", action="store_true",
        help="multiply BatchNorm, Scale and Bias into the layers before them, drop Dropout and Split",
    )  # fmt: skip
    group.add_argument(
        "--precision", choices=precisions.WEIGHTS,
        help="of dense (InnerProduct) weights, in safetensors and onnx; float16 of all weights, in a caffemodel and coreml "
        "too; the loss of accuracy is measured and reported, and layers whose rounding changes the logits keep float32",
    )  # fmt: skip
    group.add_argument(
        "--arithmetic", choices=precisions.ARITHMETIC, default="float32",
        help="onnx: float16 also computes in float16 what sums, normalization and exponentials do not need in float32 "
        "(with --precision float16); what keeps float32 is reported, with what changes in the logits",
    )  # fmt: skip
    group.add_argument(
        "--pictures", nargs="+", default=[], metavar="FILE", help="measure --precision on these images"
    )
    group.add_argument(
        "--dynamic-size",
        action="store_true",
        help="leave height and width open (onnx, pt2), if the net allows",
    )
    group.add_argument(
        "--fast-lrn", action="store_true",
        help="onnx: LRN as a convolution and roots, which ONNX Runtime computes several times faster than LRN nodes",
    )  # fmt: skip
    group.add_argument(
        "--opset", type=int, metavar="N",
        help="onnx: the opset, from 13 to the newest that the installed ONNX Runtime accepts (default 13, which most read)",
    )  # fmt: skip
    group.add_argument(
        "--with-preprocessing", action="store_true",
        help="onnx: take uint8 images (N, height, width, 3) and resize, crop, subtract and scale in the graph",
    )  # fmt: skip
    group.add_argument(
        "--input-order", choices=("RGB", "BGR"), default="RGB",
        help="channel order of those images (default RGB; OpenCV reads BGR)",
    )  # fmt: skip


@dataclass(frozen=True)
class Given:
    """A weights file, and the folder of its results."""

    path: Path
    out: Path


def run(args: argparse.Namespace) -> int:
    """Convert, and print the report, or a table for several files."""
    check_exist(args.weights, text_path(args.prototxt), args.mean_file, args.pictures, args.labels)
    from ..process import tune_process

    tune_process()
    _check_not_swapped(args.weights)
    sources = _sources(args.weights, args.out)
    if len(sources) > 1 or Path(args.weights[0]).is_dir():
        return _run_many(args, sources)
    report = _convert(args, sources[0])
    if args.json:
        print(json_text(report.to_json(), indent=2))
    else:
        print_report(report)
    return 0


def _check_not_swapped(given: list[str]) -> None:
    """Refuse a prototxt beside one weights file, as other tools take them."""
    from ..caffe.kinds import Kind

    if len(given) == 2:
        texts = [name for name in given if _kind(Path(name)) in (Kind.PROTOTXT, Kind.SOLVER)]
        if texts and _kind(Path(texts[0])) is Kind.PROTOTXT:
            raise IlgnetError(
                f"{texts[0]}: is a net's prototxt, not weights; give it as --prototxt, after the weights file"
            )
        if texts:
            raise IlgnetError(f"{texts[0]}: is a solver's prototxt, not weights; omit it")


def _kind(path: Path) -> Kind | None:
    """The kind of a file, or None if it is unknown."""
    from ..caffe.kinds import kind_of

    try:
        return kind_of(path)
    except IlgnetError:
        return None


def _sources(given: list[str], out: str | None) -> list[Given]:
    """The weights files that files and folders name.  Raises IlgnetError for a folder without any."""
    found: dict[Path, Given] = {}
    for path in map(Path, given):
        if not path.is_dir():
            found.setdefault(path, Given(path, Path(out) if out is not None else path.parent))
            continue
        files, others = _weights_in(path)
        if not files:
            raise IlgnetError(f"{path}: no Caffe weights among its {others} files; name the files to convert")
        if others:
            say(f"{path}: {len(files)} weights files found, {others} other files ignored", file=sys.stderr)
        for file in files:
            place = file.parent if out is None else Path(out, file.parent.relative_to(path))
            found.setdefault(file, Given(file, place))
    return list(found.values())


def _weights_in(folder: Path) -> tuple[list[Path], int]:
    """Caffe's weights in a folder and its subfolders, in order of name, and how many other files there are."""
    from ..caffe.kinds import Kind

    weights: list[Path] = []
    others = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            is_named = name.lower().endswith(WEIGHTS) and not name.startswith(".")
            if is_named or (path.is_file() and _kind(path) in (Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5)):
                weights.append(path)
            else:
                others += 1
    return weights, others


def _convert(args: argparse.Namespace, source: Given) -> ConversionReport:
    from ..export.convert import convert
    from ._console import progress_bar

    weights = source.path
    size = weights.stat().st_size if weights.is_file() else 0
    with progress_bar(f"converting {weights.name}", size, unit="bytes") as progress:
        return convert(
            weights, args.prototxt, tuple(args.to.split(",")), source.out, phase=args.phase, level=args.level,
            stages=read_stages(args.stage), verify=args.verify,
            input_shapes=read_shapes(args.shape), ignore_fields=args.ignore_field, crop=args.crop,
            allow_missing=args.allow_missing, sha256=args.sha256, pictures=args.pictures,
            preprocessing=lambda net: _preprocessing(args, net), progress=progress,
            labels=read_labels(args.labels) if args.labels else (), score=args.score,
            **_options(args),
        )  # fmt: skip


def _run_many(args: argparse.Namespace, sources: list[Given]) -> int:
    """Convert each file, continuing after failures; return 1 if there was one."""
    _check_all(args)
    rows: list[dict[str, Any]] = []
    results: dict[Path, Path] = {}  # result -> the weights file it was written from
    inputs = {real_path(source.path) for source in sources}
    for number, source in enumerate(sources, 1):
        path = source.path
        say(f"{number} of {len(sources)}: {path}", file=sys.stderr)
        try:
            _check_places(args, source, results, inputs)
            report = _convert(args, source).to_json()
            rows.append({"file": str(path), "report": report, "error": None})
            results |= {real_path(one["path"]): path for one in report["written"]}
        except IlgnetError as error:
            rows.append({"file": str(path), "report": None, "error": for_command(error)})
            say(f"ilgnet: {for_command(error)}", file=sys.stderr)
        except KeyboardInterrupt:
            done = sum(row["error"] is None for row in rows)
            say(
                f"stopped at {path}: {done} of {len(sources)} files were converted and are kept",
                file=sys.stderr,
            )
            raise
    failed = sum(row["error"] is not None for row in rows)
    if args.json:
        print(json_text(rows, indent=2))
    else:
        _print_rows(rows, failed)
    return int(failed > 0)


def _print_rows(rows: list[dict[str, Any]], failed: int) -> None:
    from rich.table import Table

    table = Table(title=f"{len(rows) - failed} of {len(rows)} files converted", title_justify="left")
    for column in ("weights", "net", "written", "error"):
        table.add_column(column, overflow="fold")
    for row in rows:
        report = row["report"]
        written = ", ".join(one["path"] for one in report["written"]) if report else ""
        add_row(table, row["file"], report["net"] if report else "", written, row["error"] or "")
    results_console().print(table)


def _check_all(args: argparse.Namespace) -> None:
    """Refuse options that would fail for every file."""
    from ..export.formats import check_options, find_format, read_options

    check_options([find_format(name) for name in args.to.split(",")], read_options(_options(args)))
    read_shapes(args.shape)


def _check_places(
    args: argparse.Namespace, source: Given, results: dict[Path, Path], inputs: set[Path]
) -> None:
    """Refuse to overwrite the result of another of the files, or one of the files."""
    from ..export.formats import find_format
    from ..runtime.find import stem_of

    for name in args.to.split(","):
        place = find_format(name).path(source.out, stem_of(source.path))
        target = real_path(place)
        if target in results:
            raise IlgnetError(
                f"{source.path}: its results would replace those of {results[target]}, which has the same name; "
                "convert it separately"
            )
        if target in inputs and target != real_path(source.path):
            raise IlgnetError(
                f"{source.path}: its result {place} would replace another of the files; give another --out"
            )


def _options(args: argparse.Namespace) -> SaveOptions:
    return {
        "outputs": _blobs(args.outputs), "inputs": _blobs(args.inputs), "batch": args.batch,
        "states": args.states,
        "fold": args.fold, "with_preprocessing": args.with_preprocessing, "input_order": args.input_order,
        "precision": args.precision, "dynamic_size": args.dynamic_size, "fast_lrn": args.fast_lrn,
        "opset": args.opset, "arithmetic": args.arithmetic,
    }  # fmt: skip


def _blobs(given: str) -> tuple[str, ...]:
    """The names in a list separated by commas."""
    return tuple(name.strip() for name in given.split(",")) if given else ()


def _preprocessing(args: argparse.Namespace, net: CaffeNet | Model) -> Preprocessing | None:
    """The preprocessing that the options state, for the size of the net's image input."""
    return read_preprocessing(
        args, next((shape for name in net.inputs if len(shape := net.shapes[name]) == 4), None)
    )


def _preprocessing_text(preprocessing: str | None) -> str:
    if preprocessing is None:
        return "preprocessing unknown: state it with --mean-value and the like"
    known = parse_json(preprocessing)
    how = "resized whole" if known["path"] == "whole" else "cropped at the centre"
    mean = (
        "a mean image"
        if known["has_mean_image"]
        else ", ".join(f"{value:g}" for value in known["mean_value"]) or 0
    )
    return f"{how} to {'x'.join(map(str, known['size']))}, {known['order']}, minus {mean}, times {known['scale']:g}"


def _release(source: Source) -> str:
    if not source.release:
        return "not a known release"
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
                source.sha256 or "not computed: no known release has this size; add --sha256",
            ),
            ("release", _release(source)),
        ]
    rows += [
        (
            "net",
            f"{report.net} from {report.prototxt}, phase {report.phase}"
            if report.prototxt
            else f"model {report.net}",
        ),
        ("layers", f"{report.layers}, {report.parameters:,} parameters"),
        ("outputs", ", ".join(report.outputs)),
        ("images", _preprocessing_text(report.preprocessing)),
    ]
    rows += [("note", note) for note in report.notes]
    if report.extra_layers:
        rows.append(("ignored", f"{', '.join(report.extra_layers)}: in the file, not in the net"))
    for row in rows:
        add_row(about, *row)
    console.print(about)

    files = Table(title="written", title_justify="left")
    for column in ("format", "file"):
        files.add_column(column)
    for column in ("bytes", "seconds"):
        files.add_column(column, justify="right")
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
        dense = "" if report.deviations[0].precision == "float16" else "dense "
        costs = Table(
            title=f"deviation with {report.deviations[0].precision} {dense}weights", title_justify="left"
        )
        for column in (
            "output",
            "largest difference",
            "mean difference",
            "largest value",
            "argmax changed",
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
