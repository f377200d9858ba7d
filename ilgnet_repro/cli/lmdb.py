"""``ilgnet lmdb``: make, inspect, check and export Caffe's image databases."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..files import json_text
from ._console import say
from ._options import COUNT, SEED, WORKERS, add_cluster_option, say_notes
from ._parser import CommandParser

if TYPE_CHECKING:
    from ..reading.lmdb_build import BuildReport

_EPILOG = """examples:
  ilgnet lmdb make --resize_height=256 --resize_width=256 images/ train.txt train_lmdb
  ilgnet lmdb make --encoded --encode_type=png --shuffle --seed 7 images/ train.txt train_lmdb
  ilgnet lmdb info train_lmdb
  ilgnet lmdb check train_lmdb --list train.txt --labels 2
  ilgnet lmdb export train_lmdb images
  ilgnet lmdb info data.mdb --db train
  ilgnet lmdb from-leveldb train_leveldb train_lmdb
  ilgnet lmdb labels train_lmdb train_scores.txt train_scores_lmdb

make takes the flags of Caffe's convert_imageset. A build that was stopped resumes when the same command is
run again; images that cannot be read are skipped and listed in DB.bad.txt.
check exits with 1 if it finds a problem. labels stores rows of `path number [number ...]` for a second Data
layer, which reads them in step with the images."""

_CAFFE_SWITCHES = {
    "gray": "store grey images",
    "shuffle": "shuffle the rows with --seed",
    "encoded": "store image files (png, jpg), not pixels",
    "check_size": "stop if an image differs in size from the first",
}


def add_parser(subparsers: Any) -> None:
    """Add ``lmdb`` with its actions."""
    parser = subparsers.add_parser(
        "lmdb",
        description="Make a Caffe LMDB from an image list, or inspect one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_make_flags(actions.add_parser("make", help="build a database, as convert_imageset does"))
    info = actions.add_parser("info", help="rows, labels, kinds and shapes")
    check = actions.add_parser("check", help="decode every row, compare with a list")
    export = actions.add_parser("export", help="back to image files and a list")
    leveldb = actions.add_parser(
        "from-leveldb", help="a LevelDB becomes an LMDB (needs ilgnet_repro[leveldb])"
    )
    leveldb.add_argument("source", metavar="LEVELDB", help="its folder, which is not changed")
    leveldb.add_argument("database", metavar="DB_NAME", help="a new folder")
    leveldb.add_argument("--json", action="store_true", help="print the number of rows as JSON")
    labels = actions.add_parser("labels", help="float labels, one or more per image, for a second Data layer")
    labels.add_argument("images", metavar="DB", help="the LMDB of the images")
    labels.add_argument(
        "list", metavar="LISTFILE", help="rows of `path number [number ...]`, as in its own list"
    )
    labels.add_argument("database", metavar="DB_NAME", help="a new folder")
    labels.add_argument("--json", action="store_true", help="print the number of rows as JSON")
    for action in (info, check, export):
        action.add_argument("database", metavar="DB", help="its folder, or the file of an LMDB without one")
        add_db_option(action)
        action.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.add_argument("--list", metavar="LIST", help="the list it was built from")
    check.add_argument("--seed", type=SEED, metavar="N", help="the seed, if it was made with --shuffle")
    check.add_argument("--labels", type=COUNT, metavar="N", help="number of classes; labels are 0 to N - 1")
    check.add_argument(
        "--workers", type=WORKERS, metavar="N", help="decoding threads (default: one per core)"
    )
    export.add_argument("folder", metavar="FOLDER", help="a new folder for the images and list.txt")


def add_db_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for one of several databases in a file."""
    parser.add_argument("--db", default="", metavar="NAME", help="a named database in it")


def add_make_flags(make: CommandParser) -> None:
    """Add what convert_imageset takes, and what this program adds."""
    make.switches = (*_CAFFE_SWITCHES, "check-size", "strict", "json")
    make.add_argument("root", metavar="ROOTFOLDER/", help="put before the paths of the list")
    make.add_argument("list", metavar="LISTFILE", help="rows of `path label`")
    make.add_argument("database", metavar="DB_NAME", help="a new folder")
    for name, help_ in _CAFFE_SWITCHES.items():
        make.add_argument(f"--{name}", *_hyphened(name), action="store_true", help=help_)
    for side in ("height", "width"):
        name = f"resize_{side}"
        make.add_argument(
            f"--{name}", *_hyphened(name), type=int, default=0, metavar="N", help="0: no resize"
        )
    make.add_argument(
        "--encode_type", "--encode-type", default="", metavar="TYPE", help="png, jpg, …; implies --encoded"
    )
    make.add_argument("--backend", default="lmdb", metavar="NAME", help="lmdb, the only one there is")
    make.add_argument("--seed", type=SEED, default=1, metavar="N", help="seed of --shuffle (default 1)")
    make.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    make.add_argument("--workers", type=WORKERS, metavar="N", help="threads (default: one per core)")
    add_cluster_option(make, "decode and resize", "docs/databases.md")
    make.add_argument("--json", action="store_true", help="print the counts as JSON")


def _hyphened(name: str) -> list[str]:
    return [f"--{name.replace('_', '-')}"] if "_" in name else []


def check_backend(name: str, option: str = "--backend") -> None:
    """Raise DataError unless the database backend is supported."""
    if name != "lmdb":
        raise DataError(
            f"{option} {name}: only lmdb is supported; give lmdb, and convert a LevelDB with `ilgnet lmdb from-leveldb`"
        )


def run(args: argparse.Namespace) -> int:
    """Run one action; return 0, or 1 if a check found a problem."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "make": make,
        "info": _info,
        "check": _check,
        "export": _export,
        "from-leveldb": _from_leveldb,
        "labels": _labels,
    }
    return actions[args.action](args)


def make(args: argparse.Namespace) -> int:
    """Build a database."""
    from ..process import tune_process
    from ..reading.image_list import ImageList
    from ..reading.lmdb_build import BuildOptions, build_lmdb
    from ._console import progress_bar

    tune_process()
    check_backend(args.backend)
    if os.path.isfile(args.root) and os.path.isdir(args.list):
        raise DataError(
            f"{args.root} is a file and {args.list} a folder; give the folder of images first, then the list"
        )
    options = BuildOptions(
        resize_height=args.resize_height,
        resize_width=args.resize_width,
        gray=args.gray,
        encoded=args.encoded,
        encode_type=args.encode_type,
        check_size=args.check_size,
        seed=args.seed if args.shuffle else None,
    )
    sides = {"--resize_height": args.resize_height, "--resize_width": args.resize_width}
    for flag, other in (tuple(sides), tuple(sides)[::-1]):
        if sides[flag] and not sides[other]:
            say_notes([f"{flag} {sides[flag]} without {other}: no image is resized, as in Caffe"])
    images = ImageList(args.list)
    say_notes(images.notes())
    with progress_bar("making", len(images)) as bar:
        report = build_lmdb(
            args.root,
            args.list,
            args.database,
            options,
            strict=args.strict,
            workers=args.workers,
            cluster=args.cluster,
            progress=lambda done, rows: bar(done),
            on_bad=lambda bad: say(f"skipped: row {bad.number}: {bad.reason}", file=sys.stderr),
        )
    _print_report(report, args)
    return 0


def _print_report(report: BuildReport, args: argparse.Namespace) -> None:
    if args.json:
        bad = [row._asdict() for row in report.bad]
        print(json_text({"path": str(report.path), "rows": report.rows, "stored": report.stored, "bad": bad}))
        return
    if report.start_row:
        say(f"resumed at row {report.start_row}", file=sys.stderr)
    say(f"{report.path}: {report.stored:,} of {report.rows:,} rows stored")
    if report.bad:
        say(f"{report.path}.bad.txt: {len(report.bad):,} rows skipped")


def _info(args: argparse.Namespace) -> int:
    from ..reading.lmdb_check import summarise
    from ..reading.lmdb_read import join_database

    summary = summarise(join_database(args.database, args.db))
    if args.json:
        print(json_text(asdict(summary)))
        return 0
    say(f"{summary.path}: {summary.rows:,} rows, {summary.file_bytes:,} bytes")
    say(f"keys: {summary.first_key} to {summary.last_key}")
    shown: dict[str, Mapping[int, int] | Mapping[str, int]] = {
        "label": summary.labels,
        "kind": summary.kinds,
        "shape": summary.shapes,
        "class": summary.boxes,
    }
    for title, counts in shown.items():
        for value, count in list(counts.items())[:10]:
            say(f"{title} {value}: {count:,} {'boxes' if counts is summary.boxes else 'rows'}")
        if len(counts) > 10:
            say(f"{title}: {len(counts) - 10:,} more")
    return 0


def _check(args: argparse.Namespace) -> int:
    from ..process import tune_process
    from ..reading.image_list import ImageList
    from ..reading.lmdb_check import check_lmdb
    from ..reading.lmdb_read import LmdbReader, join_database
    from ._console import progress_bar

    tune_process()
    images = ImageList(args.list, args.seed) if args.list else None
    database = join_database(args.database, args.db)
    with progress_bar("checking", len(LmdbReader(database))) as bar:
        found = check_lmdb(
            database,
            images=images,
            labels=args.labels,
            workers=args.workers,
            progress=lambda done, rows: bar(done),
        )
    if args.json:
        print(json_text(asdict(found)))
    else:
        for fault in found.faults:
            say(fault)
        if found.fault_count > len(found.faults):
            say(f"… and {found.fault_count - len(found.faults):,} more")
        say(f"{args.database}: {found.rows:,} rows, {found.fault_count:,} problems")
    return 1 if found.fault_count else 0


def _export(args: argparse.Namespace) -> int:
    from ..reading.lmdb_export import export_lmdb
    from ..reading.lmdb_read import LmdbReader, join_database
    from ._console import progress_bar

    database = join_database(args.database, args.db)
    with progress_bar("exporting", len(LmdbReader(database))) as bar:
        rows = export_lmdb(database, args.folder, lambda done, rows: bar(done))
    if args.json:
        print(json_text({"folder": args.folder, "rows": rows}))
    else:
        say(f"{args.folder}: {rows:,} images and list.txt")
    return 0


def _from_leveldb(args: argparse.Namespace) -> int:
    from ..reading.leveldb_convert import convert_leveldb

    rows = convert_leveldb(args.source, args.database)
    if args.json:
        print(json_text({"path": args.database, "rows": rows}))
    else:
        say(f"{args.database}: {rows:,} rows")
    return 0


def _labels(args: argparse.Namespace) -> int:
    from ..reading.lmdb_labels import build_label_lmdb

    rows = build_label_lmdb(args.images, args.list, args.database)
    if args.json:
        print(json_text({"path": args.database, "rows": rows}))
    else:
        say(f"{args.database}: {rows:,} rows")
    return 0
