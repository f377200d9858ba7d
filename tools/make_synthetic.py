#!/usr/bin/env python3
"""Draw the aesthetic task that docs/training.md trains on: make_synthetic.py FOLDER."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import guarded
from ilgnet_repro.train.synthetic import make_task


def run() -> int:
    """Write the task and say what to run next."""
    folder = make_task(sys.argv[1] if len(sys.argv) > 1 else "synthetic")
    print(f"ilgnet train --solver {folder}/trunk_solver.prototxt")
    print(f"ilgnet train --solver {folder}/solver.prototxt --weights {folder}/trunk_iter_250.caffemodel")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run))
