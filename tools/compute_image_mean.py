#!/usr/bin/env python3
"""Caffe's compute_image_mean: compute_image_mean.py [FLAGS] INPUT_DB [OUTPUT_FILE]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["caffe", "compute_image_mean", *sys.argv[1:]]))
