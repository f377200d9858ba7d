"""``ilgnet report``: make a page of a test's result."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import json_text
from ._console import say

if TYPE_CHECKING:
    from ..aesthetics.report_page import ImageLoader
    from ..aesthetics.results import RunResult

_EPILOG = """examples:
  ilgnet report ava1_full/run.json --log AVA1_result.txt
  ilgnet report a/run.json --other b/run.json --pictures images --out compared.html

The page needs no other file; the same figures are written as JSON next to it. --log compares the batches
with those of a `caffe test` log, in the list's order and as its candidate shuffle permutes it."""


def add_parser(subparsers: Any) -> None:
    """Add ``report``."""
    parser = subparsers.add_parser(
        "report", description="Make a page and a JSON of a run of `ilgnet test`.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN.json", help="what `ilgnet test` wrote")
    parser.add_argument("--other", metavar="RUN2.json", help="another run on the same images: McNemar's test")
    parser.add_argument("--log", metavar="LOG", help="a `caffe test` log, such as the authors'")
    parser.add_argument(
        "--search-seeds", action="store_true",
        help="try every seed of Caffe's shuffle on the log (minutes for a whole list; docs/reproducing.md)",
    )  # fmt: skip
    parser.add_argument("--pictures", metavar="DIR", help="folder of the images, for thumbnails")
    parser.add_argument("--lmdb", metavar="DB", help="database of the images, for thumbnails")
    parser.add_argument("--out", metavar="PAGE", help="default: report.html beside RUN.json")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the page and its JSON, and print the figures."""
    from ..aesthetics.author_logs import read_test_log
    from ..aesthetics.report_data import build_report, report_values
    from ..aesthetics.report_page import is_report_page, is_report_values, write_report
    from ..aesthetics.results import RunResult
    from ..files import check_outputs, check_replaced
    from ._figures import print_report

    page = Path(args.out) if args.out else Path(args.run).with_name("report.html")
    values = page.with_suffix(".json")
    check_outputs([page, values], [args.run, args.other, args.log, args.pictures, args.lmdb], "--out")
    if not args.out:
        check_replaced(page, is_report_page, "`ilgnet report`", "give another name with --out")
    check_replaced(values, is_report_values, "`ilgnet report`", "give another name with --out")
    result = RunResult.read(args.run)
    log = read_test_log(args.log) if args.log else None
    other = RunResult.read(args.other) if args.other else None
    report = build_report(
        result, log, other, other_name=args.other or "other run", search_seeds=args.search_seeds
    )
    if args.pictures:
        _check_images(page, result, args.pictures)
    write_report(report, page, images=_images(args))
    if args.json:
        print(json_text(report_values(report)))
        return 0
    print_report(report)
    say(f"{page} and {page.with_suffix('.json')} written")
    return 0


def _check_images(page: Path, result: RunResult, folder: str) -> None:
    """Raise IlgnetError where the page would replace an image that the report shows."""
    from ..files import check_output
    from ..reading.image_list import image_path

    name = Path(os.path.realpath(page)).name
    names = (text for text in result.images.names.tolist() if os.path.basename(text) == name)
    check_output(page, [image_path(folder, text) for text in names], "--out")


def _images(args: argparse.Namespace) -> ImageLoader | None:
    from ..aesthetics.labelled_images import StoredImages
    from ..aesthetics.report_page import folder, stored

    if args.lmdb:
        return stored(StoredImages(args.lmdb))
    return folder(args.pictures) if args.pictures else None
