#!/usr/bin/env python3
"""Caffe's extract_features: extract_features.py WEIGHTS PROTOTXT BLOBS DB_NAMES BATCHES lmdb [CPU/GPU]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["caffe", "extract_features", *sys.argv[1:]]))
