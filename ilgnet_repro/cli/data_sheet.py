"""``ilgnet sheet``: counts, sizes and sample images of a list or database."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..files import json_text
from ._console import say
from ._options import SEED, Whole, say_notes
from .lmdb import add_db_option

_EPILOG = """examples:
  ilgnet sheet train_lmdb --out train.html
  ilgnet sheet lists/train.txt --root images/ --out train.html --out train.png"""


def add_parser(subparsers: Any) -> None:
    """Add ``sheet``."""
    parser = subparsers.add_parser(
        "sheet",
        description="Write a summary page and contact sheet: rows by label, image sizes, sample images.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="an LMDB or a list file")
    add_db_option(parser)
    parser.add_argument("--root", default="", metavar="DIR/", help="put before the paths of a list")
    parser.add_argument(
        "--out", required=True, action="append", metavar="PAGE", help=".html or .png; may be repeated"
    )
    parser.add_argument(
        "--per-label", type=Whole(most=1000), default=12, metavar="N", help="samples shown (default 12)"
    )
    parser.add_argument(
        "--sizes-of", type=Whole(), default=1000, metavar="N", help="images measured (default 1000)"
    )
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of the samples (default 0)")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def run(args: argparse.Namespace) -> int:
    """Summarize once, write each page."""
    from ..files import check_outputs
    from ..process import tune_process
    from ..reading.image_list import ImageList
    from ..reading.lmdb_read import is_database, join_database
    from ..reading.sheet import make_sheet
    from ..reading.sheet_page import check_page, write_sheet

    tune_process()
    for page in args.out:
        check_page(page)

    check_outputs(args.out, [args.source], "--out")
    if not Path(args.source).is_dir() and not is_database(args.source):
        images = ImageList(args.source)
        for page in args.out:
            images.check_output(page, args.root, "--out")
        say_notes(images.notes())
    sheet = make_sheet(
        join_database(args.source, args.db),
        args.root,
        per_label=args.per_label,
        sizes_of=args.sizes_of,
        seed=args.seed,
    )
    for page in args.out:
        write_sheet(sheet, page)
    if args.json:
        counts = {"rows": sheet.rows, "labels": sheet.labels, "unreadable": sheet.unreadable}
        print(json_text({**counts, "pages": args.out}))
    else:
        for label, count in sheet.labels.items():
            say(f"label {label}: {count:,} rows, {count / sheet.rows:.2%}")
        for page in args.out:
            say(f"{page}: {len(sheet.sizes):,} images measured, {len(sheet.unreadable):,} unreadable")
    return 0
