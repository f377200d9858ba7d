#!/usr/bin/env python3
"""Caffe's convert_imageset: convert_imageset.py [FLAGS] ROOTFOLDER/ LISTFILE DB_NAME."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["caffe", "convert_imageset", *sys.argv[1:]]))
