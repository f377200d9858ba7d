#!/usr/bin/env python3
"""Make an LMDB with convert_imageset's own flags: make_lmdb.py [FLAGS] ROOTFOLDER/ LISTFILE DB_NAME."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

from ilgnet_repro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["lmdb", "make", *sys.argv[1:]]))
