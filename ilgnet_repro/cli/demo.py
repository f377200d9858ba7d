"""``ilgnet demo``: convert, verify, score and test a full-size ILGNet with random weights."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from ._console import say

_EPILOG = """examples:
  ilgnet demo --out demo
  ilgnet demo --small --out demo_small

needs 1.9 GB of disk and about two minutes (--small: seconds and a few megabytes); the weights are random, so
the scores and accuracies mean nothing."""


def add_parser(subparsers: Any) -> None:
    """Add ``demo``."""
    parser = subparsers.add_parser(
        "demo", description="Show the main job on real sizes: weights made on the spot, converted, verified, scored; "
        "labelled images drawn, stored, tested, and the report of it.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder of all it makes (default demo)")
    parser.add_argument("--small", action="store_true", help="a net of two layers instead of ILGNet's 604 MB")


def run(args: argparse.Namespace) -> int:
    """Run each step through the command line itself, printing the command first."""
    from ..aesthetics.demo_inputs import LABEL, SMALL_LABEL, check_folder, draw_images, draw_labelled_set
    from ..errors import IlgnetError

    folder = Path(args.out)
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IlgnetError(f"{folder}: cannot be made ({error.strerror}); give another --out") from error
    label = SMALL_LABEL if args.small else LABEL
    weights = _make_weights(folder, args.small)
    say(f"# {weights}: {weights.stat().st_size:,} bytes.")
    say(f"# {label}.")
    # Of ILGNet the preprocessing is known; for any other net it has to be given.
    stated = ["--path", "whole", "--mean-value", "91,99.46,107.85"] if args.small else []
    converted = str(weights.with_suffix(".safetensors"))
    images = [str(path) for path in draw_images(folder)]
    _step(["convert", str(weights), "--to", "safetensors,onnx", "--verify", "--out", str(folder), *stated])
    _step(["score", *images, "--weights", converted])

    listed, drawn = draw_labelled_set(folder)
    print()
    say(f"# {listed}: labelled images, drawn for this demo.")
    database, mean = str(folder / "lmdb"), str(folder / "mean.binaryproto")
    if not Path(database).is_dir():
        _step(
            ["lmdb", "make", "--resize_height=256", "--resize_width=256", f"{drawn}/", str(listed), database]
        )
    _step(["mean", database, mean])
    test = ["test", "own", "--lmdb", database, "--mean", mean]
    published, full = str(folder / "published"), str(folder / "full")
    few = ["--batches", "2", "--batch-size", "20"]
    _step([*test, "--weights", str(weights), "--protocol", "published", *few, "--out", published])
    _step([*test, "--weights", converted, "--protocol", "full", "--out", full])
    page = str(folder / "report.html")
    _step(
        ["report", f"{full}/run.json", "--other", f"{published}/run.json", "--lmdb", database, "--out", page]
    )
    print()
    say(f"# {label}.")
    return 0


def _make_weights(folder: Path, small: bool) -> Path:
    from ..aesthetics.demo_inputs import (
        ILGNET_BYTES,
        SMALL_WEIGHTS,
        WEIGHTS,
        make_random_ilgnet,
        make_random_small_net,
    )
    from ._console import progress_bar

    if small:
        weights = folder / SMALL_WEIGHTS
        make_random_small_net(weights)
        return weights
    weights = folder / WEIGHTS
    if not weights.is_file():
        with progress_bar("drawing random weights", ILGNET_BYTES, unit="bytes") as progress:
            make_random_ilgnet(weights, progress=progress)
    return weights


def _step(arguments: list[str]) -> None:
    """Run one command as a user would, and stop the demo where it fails."""
    from ..errors import IlgnetError
    from .main import run_command

    print()
    say(f"$ ilgnet {shlex.join(arguments)}", flush=True)
    status = run_command(arguments)
    sys.stdout.flush()
    if status:
        raise IlgnetError(f"the demo stopped: `ilgnet {arguments[0]}` ended with {status}")
