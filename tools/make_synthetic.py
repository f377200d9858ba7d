#!/usr/bin/env python3
"""Draw the aesthetic task that docs/training.md trains on: make_synthetic.py DIR; the same as `ilgnet synthetic`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["synthetic", *sys.argv[1:]]))
