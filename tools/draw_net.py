#!/usr/bin/env python3
"""pycaffe's draw_net: draw_net.py deploy.prototxt net.png."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["caffe", "draw_net", *sys.argv[1:]]))
