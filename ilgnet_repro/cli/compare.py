"""``ilgnet compare``: compare two forms of one net, blob by blob."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import printable
from ..files import json_text
from ..precisions import ENGINES
from ._console import add_row, results_console
from ._options import (
    SEED,
    Real,
    add_allow_missing,
    add_device_option,
    add_text_options,
    check_exist,
    read_shapes,
    read_stages,
    refuse_unused_device,
    text_path,
)

if TYPE_CHECKING:
    from ..compare.comparison import BlobRow, Comparison

_EPILOG = """A and B are files (.caffemodel .caffemodel.h5 .safetensors .onnx .pt2), or a file with a tool named before it:
  opencv:net.caffemodel      OpenCV 4's readNetFromCaffe
  caffe2onnx:net.caffemodel  caffe2onnx 2.0.1, its graph run by ONNX Runtime    (make crosscheck)
  onnx2torch:net.onnx        onnx2torch, its module run by torch                (make crosscheck)

examples:
  ilgnet compare net.caffemodel net.onnx
  ilgnet compare net.caffemodel opencv:net.caffemodel --prototxt deploy.prototxt
  ilgnet compare net.onnx onnx2torch:net.onnx --inputs images.npz --tolerance 1e-5
  ilgnet compare net.safetensors net.pt2 --json
  ilgnet compare net.caffemodel net.caffemodel --engine openvino
  ilgnet compare net.caffemodel net.caffemodel.h5 --prototxt all_in_one.prototxt --stage deploy

A blob agrees if no value differs by more than T times the blob's largest value (at least 1).
A blob without a finite value never agrees. The exit code is 0 if every blob agrees, 1 if one does not, could not be
compared, or a tool failed."""


def add_parser(subparsers: Any) -> None:
    """Add ``compare``."""
    parser = subparsers.add_parser(
        "compare", description="Run two forms of a net on the same inputs and compare every blob both have.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("first", metavar="A")
    parser.add_argument("second", metavar="B")
    parser.add_argument(
        "--prototxt", metavar="P", help="the net of weights files (default: found as convert does)"
    )
    parser.add_argument(
        "--inputs", metavar="NPZ", help="an array for each input (default: drawn from --seed)"
    )
    parser.add_argument("--seed", type=SEED, default=7, help="default 7")
    parser.add_argument("--tolerance", type=Real(), default=1e-4, metavar="T", help="default 1e-4")
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="also what in-place layers replace (blob@layer); not for folded nets",
    )
    parser.add_argument(
        "--engine", choices=ENGINES,
        help="compute B, Caffe weights, by a fast net in this engine (as `ilgnet score --engine`)",
    )  # fmt: skip
    add_device_option(parser)
    add_text_options(parser)
    add_allow_missing(parser)
    parser.add_argument("--all", action="store_true", help="list every blob, even if many agree")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(args: argparse.Namespace) -> int:
    """Compare and print; return 1 unless every blob agrees."""
    check_exist(
        [name for name in (args.first, args.second) if ":" not in name], text_path(args.prototxt), args.inputs
    )
    from ..compare.comparison import compare_files
    from ..errors import IlgnetError

    refuse_unused_device(args.device, args.engine, "--engine")
    if not -(1 << 63) <= args.seed < 1 << 63:
        raise IlgnetError(f"--seed {args.seed}: give a signed 64-bit integer")
    found = compare_files(
        args.first, args.second, prototxt=args.prototxt, inputs=args.inputs, seed=args.seed, tolerance=args.tolerance,
        in_place=args.in_place, allow_missing=args.allow_missing, level=args.level, stages=read_stages(args.stage),
        input_shapes=read_shapes(args.shape), ignore_fields=args.ignore_field,
        engine=args.engine, device=args.device,
    )  # fmt: skip
    if args.json:
        print(json_text(found.to_json(), indent=2))
    else:
        _print(found, args.all)
    return 0 if found.agrees else 1


SHOWN = 12


def _print(found: Comparison, show_all: bool) -> None:
    from rich.table import Table

    console = results_console()
    if found.failed is not None:
        console.print(printable(f"failed: {found.failed}"))
        return
    mismatch = found.first_mismatch
    title = (f"A {found.first}", f"B {found.second}", f"inputs {found.inputs}")
    table = Table(
        title="\n".join(map(printable, title)),
        title_justify="left",
    )
    for column in ("blob", "shape"):
        table.add_column(column)
    for column in ("largest difference", "mean difference", "largest value"):
        table.add_column(column, justify="right")
    table.add_column("")
    rows = found.rows if show_all else _worth_showing(found.rows)
    for row in rows:
        shape = "x".join(map(str, row.shape))
        if row.shape != row.other_shape:
            shape += f", B {'x'.join(map(str, row.other_shape))}"
        mark = "first to differ" if row is mismatch else "differs" if row.differs else ""
        if row.not_compared:
            mark = row.not_compared if row.agrees else f"not compared: {row.not_compared}"
        add_row(table, row.blob, shape, f"{row.largest:.3g}", f"{row.mean:.3g}", f"{row.scale:.3g}", mark)
    console.print(table)
    left_out = len(found.rows) - len(rows)
    if left_out:
        console.print(f"{left_out} more blobs agree better; --all lists them")
    for name, blobs in (("A", found.only_first), ("B", found.only_second)):
        if blobs:
            console.print(f"only in {name}: {len(blobs)} blobs, such as {printable(blobs[0])}")
    unknown = [row for row in found.rows if not row.agrees and not row.differs]
    if unknown:
        console.print(
            f"{len(unknown)} of {len(found.rows)} blobs were not compared, such as {printable(unknown[0].blob)}: "
            f"{unknown[0].not_compared}; give other inputs with --inputs",
        )
    if mismatch is None:
        if unknown:
            return
        console.print(f"all {len(found.rows)} blobs agree within {found.tolerance:g}")
    else:
        blob = printable(mismatch.blob)
        differing = sum(row.differs for row in found.rows)
        console.print(
            f"{differing} of {len(found.rows)} blobs differ by more than {found.tolerance:g}; the first is {blob}"
        )


def _worth_showing(rows: tuple[BlobRow, ...]) -> tuple[BlobRow, ...]:
    """The blobs that differ and those closest to differing, in the order of computation."""
    if len(rows) <= SHOWN:
        return rows
    worst = sorted(rows, key=lambda row: row.largest / max(1.0, row.scale), reverse=True)
    kept = set(map(id, worst[:SHOWN])) | {id(row) for row in rows if not row.agrees}
    return tuple(row for row in rows if id(row) in kept)
