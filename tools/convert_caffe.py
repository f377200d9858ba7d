#!/usr/bin/env python3
"""Convert Caffe weights: convert_caffe.py ilgnet.caffemodel; the same as `ilgnet convert`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
