#!/usr/bin/env python3
"""Serve a page that scores images: serve.py --weights ilgnet.safetensors; the same as `ilgnet serve`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
