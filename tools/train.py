#!/usr/bin/env python3
"""Train or fine-tune a net: train.py --solver solver.prototxt; the same as `ilgnet train`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
