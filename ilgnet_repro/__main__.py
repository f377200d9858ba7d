"""``python -m ilgnet_repro COMMAND``: the same as ``ilgnet COMMAND``."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
