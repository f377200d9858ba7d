#!/usr/bin/env python3
"""Caffe's upgrade_net_proto_text: upgrade_net_proto_text.py OLD NEW."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["caffe", "upgrade_net_proto_text", *sys.argv[1:]]))
