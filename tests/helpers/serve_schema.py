"""`ilgnet serve` under schemathesis: requests made from its own OpenAPI text, valid ones and others, find no fault.

python tests/helpers/serve_schema.py .make/schemathesis/bin/schemathesis [--max-examples N]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from small_nets import write_net

from ilgnet_repro import opencv as cv2

TOKEN = "a-token-of-schemathesis"
# What no schema can say of bytes: that they are an image.  Such bytes are answered 422.
CONFIGURATION = """
[[operations]]
include-path = ["/api/heat", "/api/folder/heat", "/api/folder/image", "/api/view/blob"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "422"]
"""
HOW = ("--mean-value", "104,117,123")


def main() -> int:
    """Serve a small net, run schemathesis against it, and return its status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("schemathesis", help="the program")
    parser.add_argument("--max-examples", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_net(folder, "small")
        (folder / "images").mkdir()
        pixels = np.random.default_rng(1).integers(0, 256, (11, 13, 3), np.uint8)
        (folder / "images" / "a.png").write_bytes(bytes(cv2.imencode(".png", pixels)[1]))
        (folder / "schemathesis.toml").write_text(CONFIGURATION)
        command = [
            sys.executable, "-m", "ilgnet_repro", "serve", "--weights", str(folder / "small.caffemodel"), *HOW,
            "--folder", str(folder / "images"), "--port", "0", "--token", TOKEN,
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().partition("#")[0]
                return subprocess.run(
                    [
                        str(Path(args.schemathesis).absolute()), "run", f"{address}openapi.json", "--header",
                        f"Authorization: Bearer {TOKEN}", "--checks", "all", "--max-examples", str(args.max_examples),
                        "--seed", "1", "--request-timeout", "60", "--continue-on-failure", "--suppress-health-check", "all",
                    ],
                    cwd=folder, check=False,
                ).returncode  # fmt: skip
            finally:
                server.terminate()


if __name__ == "__main__":
    sys.exit(main())
