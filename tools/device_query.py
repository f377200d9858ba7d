#!/usr/bin/env python3
"""Caffe's device_query: device_query.py -gpu all."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["caffe", "device_query", *sys.argv[1:]]))
