"""``python -m ilgnet_repro.pycaffe SCRIPT ARGS...``: the same as ``ilgnet caffe run SCRIPT ARGS...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..errors import IlgnetError
from .run import run_module, run_script

USAGE = "usage: python -m ilgnet_repro.pycaffe (SCRIPT | -m MODULE) [ARGUMENTS ...]"


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments name, and return its exit status."""
    is_module = arguments[:1] == ["-m"]
    named = arguments[is_module:]
    if not named or named[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        return (run_module if is_module else run_script)(named[0], named[1:])
    except IlgnetError as error:
        print(f"ilgnet: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
