#!/usr/bin/env python3
"""Score images: score.py a.jpg --weights ilgnet.safetensors; the same as `ilgnet score`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
