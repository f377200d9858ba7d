"""``ilgnet demo``: the main job from end to end, on a full-size ILGNet with random weights."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

_EPILOG = """examples:
  ilgnet demo --out demo

needs 1.3 GB of disk and about a minute; the weights are random, so the scores mean nothing."""


def add_parser(subparsers: Any) -> None:
    """Add ``demo``."""
    parser = subparsers.add_parser(
        "demo", help="convert, verify and score a full-size ILGNet with random weights",
        description="Show the main job on real sizes: weights made on the spot, converted, verified, scored.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder of all it makes (default demo)")


def run(args: argparse.Namespace) -> int:
    """Run each step through the command line itself, printing the command first."""
    from ..demo import LABEL, draw_pictures, make_random_ilgnet
    from ._progress import progress_bar

    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "ilgnet_random.caffemodel"
    if not weights.is_file():
        with progress_bar("drawing random weights", 603_752_328, unit="bytes") as progress:
            make_random_ilgnet(weights, progress=progress)
    print(f"# {weights}: {weights.stat().st_size:,} bytes.\n# {LABEL}.")
    pictures = [str(path) for path in draw_pictures(folder)]
    _step(["convert", str(weights), "--verify", "--out", str(folder)])
    _step(["score", *pictures, "--weights", str(weights.with_suffix(".safetensors"))])
    print(f"\n# {LABEL}.")
    return 0


def _step(arguments: list[str]) -> None:
    """Run one command as a user would, and stop the demo where it fails."""
    from ..errors import IlgnetError
    from .main import main

    print(f"\n$ ilgnet {shlex.join(arguments)}", flush=True)
    status = main(arguments)
    sys.stdout.flush()
    if status:
        raise IlgnetError(f"the demo stopped: `ilgnet {arguments[0]}` ended with {status}")
