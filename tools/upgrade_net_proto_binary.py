#!/usr/bin/env python3
"""Caffe's upgrade_net_proto_binary: upgrade_net_proto_binary.py OLD NEW."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["caffe", "upgrade_net_proto_binary", *sys.argv[1:]]))
