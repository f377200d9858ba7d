"""``ilgnet partition``: make AVA1 and AVA2 lists from AVA.txt, or check lists."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from itertools import combinations
from typing import Any

from ..files import json_text
from ._console import say
from ._options import SEED, WORKERS, Real, Whole

_EPILOG = """examples:
  ilgnet partition ava1 AVA.txt --out lists/AVA1 --seed 1
  ilgnet partition ava1 AVA.txt --out lists/AVA1d1 --seed 1 --delta 1 --order shuffled
  ilgnet partition ava2 AVA.txt --out lists/AVA2 --seed 1 --scores lists/AVA2/scores.csv
  ilgnet partition check lists/AVA1/train.txt lists/AVA1/val.txt --pictures images --bad bad.txt
  ilgnet partition ava1 AVA.txt --out lists/clean --seed 1 --exclude bad.txt

check ends with 1 if a list has duplicates, lists overlap, or images are missing or bad."""


def add_parser(subparsers: Any) -> None:
    """Add ``partition`` with its three actions."""
    parser = subparsers.add_parser(
        "partition",
        description="Make the AVA1 and AVA2 partitions from AVA.txt by a seed, or check lists.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, help_ in (
        ("ava1", "all images, cut at a mean score of 5"),
        ("ava2", "the top and bottom tenth by mean score"),
    ):
        make = actions.add_parser(name, help=help_, description=f"{name.upper()}: {help_}.")
        make.add_argument("ava", metavar="AVA.txt")
        make.add_argument("--out", required=True, metavar="DIR", help="gets train.txt and val.txt")
        make.add_argument(
            "--seed", required=True, type=SEED, metavar="N", help="the same seed, the same lists"
        )
        default = "class" if name == "ava1" else "shuffled"
        make.add_argument(
            "--order",
            choices=("class", "shuffled"),
            default=default,
            help=f"of the rows: label 0 first, or mixed (default {default}, as the authors')",
        )
        make.add_argument("--scores", metavar="FILE", help="also write mean scores and votes (.csv or .npz)")
        make.add_argument("--exclude", metavar="LIST", help="image ids to leave out, one per line")
        make.add_argument("--force", action="store_true", help="replace lists that are there")
        make.add_argument("--json", action="store_true", help="print the counts as JSON")
        if name == "ava1":
            make.add_argument(
                "--delta",
                type=Real(0, 10),
                default=0.0,
                metavar="D",
                help="drop training images with |mean - 5| < D",
            )
            make.add_argument(
                "--val-sizes",
                type=Whole(),
                nargs=2,
                default=(4_000, 16_000),
                metavar=("LOW", "HIGH"),
                help="images of each class in val (default 4000 16000, as the authors')",
            )
    check = actions.add_parser("check", help="counts, class order, duplicates, overlap, bad images")
    check.add_argument("lists", nargs="+", metavar="LIST")
    check.add_argument("--pictures", metavar="DIR", help="decode every image below this folder")
    check.add_argument("--bad", metavar="FILE", help="write the missing and bad images here, for --exclude")
    check.add_argument(
        "--workers", type=WORKERS, metavar="N", help="decoding threads (default: one per core)"
    )
    check.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Make or check; 0, or 1 where a check found a fault."""
    return _check(args) if args.action == "check" else _make(args)


def _make(args: argparse.Namespace) -> int:
    from ..aesthetics import ava_partition as partition
    from ..aesthetics import partition_scores as scores
    from ..aesthetics.ava import read_ava
    from ..files import check_outputs

    outputs = [os.path.join(args.out, name) for name in partition.LISTS]
    check_outputs([*outputs, *([args.scores] if args.scores else [])], [args.ava, args.exclude])
    table = read_ava(args.ava)
    if args.exclude:
        table = table.without(partition.read_excluded(args.exclude))
    if args.action == "ava1":
        made = partition.partition_ava1(
            table, args.seed, delta=args.delta, val_sizes=args.val_sizes, order=args.order
        )
    else:
        made = partition.partition_ava2(table, args.seed, order=args.order)
    paths = partition.write_partition(made, table, args.out, replace=args.force)
    if args.scores:
        scores.write_scores(scores.scores_of(made, table), args.scores)
    sizes = {"train": made.train.class_sizes, "val": made.val.class_sizes}
    if args.json:
        lists = {
            name: {"file": str(path), "rows": sum(sizes[name]), "class_sizes": list(sizes[name])}
            for name, path in zip(sizes, paths, strict=True)
        }
        print(json_text({"pictures": len(table), "seed": args.seed, "dropped": made.dropped, **lists}))
    else:
        say(f"{len(table):,} images, {args.action.upper()}, seed {args.seed}, order {args.order}")
        for path, (low, high) in zip(paths, sizes.values(), strict=True):
            say(f"{path}: {low + high:,} rows, {low:,} of label 0, {high:,} of label 1")
        if made.dropped:
            say(f"{made.dropped:,} training images dropped: within {args.delta:g} of 5")
    if args.order == "class":
        print("note: sorted by class; a test that stops early sees only label 0", file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> int:
    from ..aesthetics import partition_checks as checks
    from ..errors import DataError
    from ..reading.image_list import ImageList

    if args.bad and not args.pictures:
        raise DataError(f"--bad {args.bad}: needs the images; add --pictures DIR")
    if args.bad:
        for path in args.lists:
            ImageList(path).check_output(args.bad, args.pictures, "--bad")
    reports = [checks.check_list(path) for path in args.lists]
    names = {path: checks.list_names(path) for path in args.lists} if len(args.lists) > 1 else {}
    overlaps: list[dict[str, Any]] = [
        {"lists": [first, second], "rows": checks.contamination(names[first], names[second])}
        for first, second in combinations(args.lists, 2)
    ]
    images = [_check_images(path, args) for path in args.lists] if args.pictures else []
    if args.bad:
        _write_bad(args.bad, images)
    faulty = (
        any(report.duplicates for report in reports)
        or any(overlap["rows"] for overlap in overlaps)
        or any(report.bad for report in images)
    )
    if args.json:
        lists = [{**asdict(report), "sorted_by_class": report.sorted_by_class} for report in reports]
        for entry, report in zip(lists, images, strict=False):
            entry["pictures"] = asdict(report)
        print(json_text({"lists": lists, "overlaps": overlaps, "faulty": faulty}))
    else:
        for index, report in enumerate(reports):
            _print_list(report, images[index] if images else None)
        for overlap in overlaps:
            say(f"{overlap['rows']:,} rows of {overlap['lists'][1]} are in {overlap['lists'][0]}")
    return 1 if faulty else 0


def _print_list(report: Any, images: Any) -> None:
    sizes = ", ".join(f"{count:,} of label {label}" for label, count in report.class_sizes.items())
    say(f"{report.file}: {report.rows:,} rows, {sizes}")
    say(f"  {report.order_note or f'classes mixed: {report.runs:,} stretches'}")
    say(f"  SHA-256 {report.sha256}: {report.release or 'no released list'}")
    say(f"  {_some(report.duplicates)} more than once")
    if images:
        for kind in ("missing", "corrupt", "truncated"):
            say(f"  {_some(getattr(images, kind))} {kind}, of {images.checked:,}")


def _some(names: tuple[str, ...], shown: int = 3) -> str:
    listed = f" ({', '.join(names[:shown])}{', …' if len(names) > shown else ''})" if names else ""
    return f"{len(names):,} image{'s' * (len(names) != 1)}{listed}"


def _check_images(path: str, args: argparse.Namespace) -> Any:
    from ..aesthetics.partition_checks import check_images
    from ..process import tune_process
    from ..reading.image_list import ImageList
    from ._console import progress_bar

    tune_process()
    rows = ImageList(path)
    with progress_bar(f"decoding {path}", len(rows)) as progress:
        return check_images(rows, args.pictures, args.workers, progress)


def _write_bad(path: str, images: list[Any]) -> None:
    from ..files import atomic_file

    # Names byte for byte as the list has them: --exclude reads them again.
    with atomic_file(path) as file:
        file.writelines(
            os.fsencode(f"{name} {kind}\n") for report in images for name, kind in report.bad.items()
        )
