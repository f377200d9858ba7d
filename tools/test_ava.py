#!/usr/bin/env python3
"""Test a net on AVA: test_ava.py ava1 --weights W --pictures images; the same as `ilgnet test`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["test", *sys.argv[1:]]))
