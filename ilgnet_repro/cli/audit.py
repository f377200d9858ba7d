"""``ilgnet audit``: what a net needs, and which weights fit it."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import IlgnetError, printable
from ..files import csv_text, json_text
from ._console import add_row, results_console, say
from ._options import (
    add_net_options,
    check_exist,
    for_command,
    line_for_command,
    read_shapes,
    read_stages,
    say_notes,
)

if TYPE_CHECKING:
    from ..audit import Audit, StateAudit
    from ..audit_folder import NetRow

_EPILOG = """examples:
  ilgnet audit deploy.prototxt
  ilgnet audit deploy.prototxt net.caffemodel
  ilgnet audit bvlc_googlenet.caffemodel
  ilgnet audit converted.safetensors
  ilgnet audit all_in_one.prototxt --stage deploy
  ilgnet audit net.caffemodel --candidates deploy.prototxt deploy_old.prototxt
  ilgnet audit train_val.prototxt --phase TRAIN --shape data=32,3,224,224 --json
  ilgnet audit ~/models /mnt/old_disk --csv > nets.csv

A folder is searched with its subfolders: one row per net, with the weights that fit it and what it lacks to run.

The exit code is 1 if there is a problem that prevents conversion; for folders, if any net is blocked."""


def add_parser(subparsers: Any) -> None:
    """Add ``audit``."""
    parser = subparsers.add_parser(
        "audit",
        description="Show a net's layers, shapes, parameters and multiply-adds, what is unsupported, and which weights fit.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a prototxt, a weights file (.caffemodel, .caffemodel.h5, .safetensors), or both, in any order; or folders",
    )
    parser.add_argument(
        "--candidates", nargs="+", default=[], metavar="P", help="report which of these fit the weights"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--csv", action="store_true", help="of folders: print the table as CSV")
    add_net_options(parser)


def run(args: argparse.Namespace) -> int:
    """Audit and print; return 1 if there are problems."""
    check_exist(args.files, args.candidates)
    from ..audit import audit_files
    from ..caffe.prototxt import read_net

    if any(os.path.isdir(name) for name in args.files):
        return _folders(args)
    if args.csv:
        raise IlgnetError("--csv: is for folders; for one net give --json")
    texts, weights = texts_and_weights(args.files, "; other prototxts go with --candidates")
    if args.candidates:
        if texts:
            raise IlgnetError(f"{texts[0]}: give it with --candidates too")
        return _candidates(weights[0], args)
    found = audit_files(
        read_net(texts[0]) if texts else None, weights[0] if weights else None, phase=args.phase, level=args.level,
        stages=read_stages(args.stage), input_shapes=read_shapes(args.shape), ignore_fields=args.ignore_field,
        crop=args.crop,
    )  # fmt: skip
    if args.json:
        print(json_text(found.to_json(), indent=2))
    else:
        print_audit(found)
    return 1 if found.problems else 0


def _folders(args: argparse.Namespace) -> int:
    """Print a row per net of the folders; return 1 if any is blocked."""
    from ..audit_folder import BLOCKED, audit_folders

    if args.candidates:
        raise IlgnetError("--candidates: goes with a weights file, not with folders")
    if args.csv and args.json:
        raise IlgnetError("--csv and --json: give one of them")
    rows = audit_folders(
        args.files, phase=args.phase, level=args.level, stages=read_stages(args.stage),
        input_shapes=read_shapes(args.shape), ignore_fields=args.ignore_field, crop=args.crop,
    )  # fmt: skip
    if args.json:
        print(json_text([row.to_json() for row in rows], indent=2))
    elif args.csv:
        _write_csv(rows)
    else:
        _print_rows(rows)
    return 1 if any(row.status == BLOCKED for row in rows) else 0


_COLUMNS = ("prototxt", "net", "weights", "status", "missing", "layers", "parameters")


def _write_csv(rows: list[NetRow]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        cells = (row.prototxt, row.net, "; ".join(row.weights), row.status, "; ".join(row.missing))
        writer.writerow([*(csv_text(printable(cell)) for cell in cells), row.layers, row.parameters])


def _print_rows(rows: list[NetRow]) -> None:
    from rich.table import Table

    from ..audit_folder import BLOCKED, NEEDS, RUNS

    table = Table(show_lines=False)
    for column in ("prototxt", "weights", "status", "missing"):
        table.add_column(column, overflow="fold")
    for row in rows:
        missing = [line_for_command(line) for line in row.missing]
        add_row(table, row.prototxt, _first(row.weights), row.status, _first(missing))
    console = results_console()
    console.print(table)
    counts = {status: sum(row.status == status for row in rows) for status in (RUNS, NEEDS, BLOCKED)}
    nets = f"{len(rows)} net{'s' if len(rows) != 1 else ''}"
    needs = f"{counts[NEEDS]} need a shape or weights"
    console.print(f"{nets}: {counts[RUNS]} run, {needs}, {counts[BLOCKED]} blocked")


def _first(values: Sequence[str]) -> str:
    """Return the first of several cells, and how many more there are; CSV and JSON have all."""
    return "".join(values[:1]) + _more(values)


def _more(lines: Sequence[str]) -> str:
    return f" (and {len(lines) - 1} more)" if lines[1:] else ""


def texts_and_weights(files: Sequence[str], more: str = "") -> tuple[list[str], list[str]]:
    """Return the prototxt and the weights among files, at most one each.  Raises IlgnetError, with the hint ``more``."""
    from ..caffe.expected_kind import expect
    from ..caffe.kinds import Kind

    texts = [name for name in files if _is_text(name)]
    weights = [name for name in files if name not in texts]
    if len(texts) > 1 or len(weights) > 1:
        for name in weights:
            expect(name, Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5, Kind.SAFETENSORS)
        raise IlgnetError(f"{files[1]}: give one prototxt and one weights file{more}")
    return texts, weights


def _is_text(name: str) -> bool:
    """Whether a file is a prototxt, by content or, if that is unknown, by name.  Raises IlgnetError for a solver."""
    from ..caffe.expected_kind import refusal
    from ..caffe.kinds import Kind, kind_of

    try:
        kind = kind_of(name)
    except IlgnetError:
        kind = Kind.UNKNOWN
    if kind is Kind.SOLVER:
        raise refusal(name, kind, "a net's prototxt")
    if kind is Kind.PROTOTXT:
        return True
    return kind not in (Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5) and name.endswith(
        (".prototxt", ".pbtxt", ".txt")
    )


def _candidates(weights: str, args: argparse.Namespace) -> int:
    from ..caffe.graph_build import Choices
    from ..runtime.candidates import deploy_candidates
    from ..runtime.find import match_built_in
    from ..runtime.load import open_weights

    model = open_weights(weights)
    choices = Choices(
        args.phase or "TEST", args.level, read_stages(args.stage), read_shapes(args.shape),
        tuple(args.ignore_field), args.crop,
    )  # fmt: skip
    candidates = deploy_candidates(model, list(map(Path, args.candidates)), choices)
    for one in candidates:
        say_notes(f"{one.path}: {line_for_command(note)}" for note in one.notes)
    rows = [(str(one.path), _verdict(one.path, one.error)) for one in candidates]
    rows += [(f"built in: {name}", "fits") for name in match_built_in(model)]
    if args.json:
        print(json_text(dict(rows)))
    else:
        for name, verdict in rows:
            say(f"{name}: {verdict}")
    return 0 if any(verdict == "fits" for _, verdict in rows) else 1


def _verdict(path: Path, error: IlgnetError | None) -> str:
    """Return ``fits``, or why a prototxt does not, without its own name."""
    if error is None:
        return "fits"
    return for_command(error).removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")


def print_audit(found: Audit) -> None:
    """Print the findings as tables."""
    from rich.table import Table

    from ..caffe.net_states import state_text

    console = results_console()
    where = state_text(found.phase, found.stages)
    table = Table(title=printable(f"{found.net or 'net'}, {where}"), title_justify="left")
    for column in ("layer", "type", "top shape"):
        table.add_column(column)
    for column in ("parameters", "multiply-adds"):
        table.add_column(column, justify="right")
    table.add_column("remark")
    for row in found.layers:
        shapes = ", ".join("x".join(map(str, shape)) or "(scalar)" for shape in row.tops)
        remark = "NOT SUPPORTED" if row.problem else "SHAPE NEEDED" if row.need else row.note
        add_row(
            table, row.name, row.type, shapes, f"{row.parameters:,}" if row.parameters else "",
            f"{row.multiply_adds:,}" if row.multiply_adds else "", remark,
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{found.parameters:,} parameters; an image takes {found.multiply_adds:,} multiply-adds "
        f"and {found.blob_bytes:,} bytes of blobs; outputs: {printable(', '.join(found.outputs))}"
    )
    for note in found.upgrades:
        console.print(printable(f"upgraded: {note}"))
    if found.sha256:
        console.print(f"weights: SHA-256 {found.sha256}: {found.release or 'not a known release'}")
    if found.fit:
        fit = found.fit
        console.print(
            f"weights: {len(fit.matched)} layers fit, {len(fit.missing)} missing, {len(fit.misshapen)} misshapen"
        )
        for name, how in fit.filled.items():
            console.print(printable(f"weights: not in the file, filled as the prototxt says: {name} ({how})"))
        if fit.extra:
            console.print(printable(f"weights: not in the net, ignored: {', '.join(fit.extra)}"))
    elif found.needs and found.sha256:
        console.print("weights: whether they fit is known once the shapes are given")
    for need in found.needs:
        console.print(printable(f"needed: {line_for_command(need)}"))
    for problem in found.problems:
        console.print(printable(f"problem: {line_for_command(problem)}"))
    for other in found.others:
        console.print(printable(f"also {_other_line(other)}"))


def _other_line(other: StateAudit) -> str:
    """Return what another phase or stage of the text needs, in one line."""
    from ..caffe.net_states import state_text

    counted = (
        f"{state_text(other.phase, other.stages)}: {other.layers} layer{'s' if other.layers != 1 else ''}"
    )
    if other.problems:
        return f"{counted}, NOT SUPPORTED: {line_for_command(other.problems[0])}{_more(other.problems)}"
    if other.needs:
        return f"{counted}, {line_for_command(other.needs[0])}{_more(other.needs)}"
    return f"{counted}, all supported"
