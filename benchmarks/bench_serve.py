"""`ilgnet serve` under load: many uploads at the same time, their errors, and how far the server's memory grows.

python benchmarks/bench_serve.py                                  # SqueezeNet with seeded weights, 200 uploads
python benchmarks/bench_serve.py --weights ilgnet.caffemodel --engine auto --uploads 50
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil

import ilgnet_repro as ir
from ilgnet_repro import opencv as cv2
from ilgnet_repro.zoo import squeezenet

MOST_GROWTH = (
    400 << 20
)  # bytes: two images of 12 million pixels, their small copies, and the bodies that are read
TEN_SECONDS = 3.0


def main() -> int:
    """Start the server, time ten images, then upload to it from many threads; print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="default: SqueezeNet with seeded weights")
    parser.add_argument("--engine", help="as `ilgnet serve --engine`")
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument(
        "--check", action="store_true", help="fail where an upload fails or memory grows further than stated"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights, options = args.weights, []
        if weights is None:
            weights = str(Path(folder) / "net.caffemodel")
            ir.save(ir.load_net(squeezenet.deploy(), seed=1), weights)
            options = ["--mean-value", "104,117,123"]
        if args.engine:
            options += ["--engine", args.engine]
        command = [
            sys.executable,
            "-m",
            "ilgnet_repro",
            "serve",
            "--port",
            "0",
            "--weights",
            weights,
            *options,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                return measure(server.stdout.readline().strip(), psutil.Process(server.pid), args)
            finally:
                server.terminate()


def photo(seed: int, height: int = 3000, width: int = 4000) -> bytes:
    """A JPEG of 12 million pixels, as phones take them."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 100, width // 100, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(small, (width, height)))[1])


def measure(address: str, server: psutil.Process, args: argparse.Namespace) -> int:
    """Print the time of ten images, the errors of the uploads and the largest growth of memory; return the status."""
    images = [("files", (f"{number}.jpg", photo(number))) for number in range(10)]
    httpx.post(f"{address}api/score", files=images[:1], timeout=600)
    start = time.monotonic()
    httpx.post(f"{address}api/score", files=images, timeout=600).raise_for_status()
    ten = time.monotonic() - start
    before = most = server.memory_info().rss
    is_done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not is_done.wait(0.02):
            most = max(most, server.memory_info().rss)

    def upload(number: int) -> str:
        try:
            answer = httpx.post(f"{address}api/score", files=[images[number % len(images)]], timeout=600)
            return "" if answer.status_code == 200 and "score" in answer.json()[0] else answer.text
        except httpx.HTTPError as error:
            return repr(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    with ThreadPoolExecutor(args.uploads) as pool:
        errors = [error for error in pool.map(upload, range(args.uploads)) if error]
    seconds = time.monotonic() - start
    is_done.set()
    watcher.join()
    growth = most - before
    print(f"ten images of 12 million pixels: {ten:.2f} s")
    print(
        f"{args.uploads} uploads at the same time: {len(errors)} errors, {args.uploads / seconds:.1f} per second"
    )
    print(f"memory: {before >> 20} MiB before, at most {growth >> 20} MiB more")
    for error in errors[:3]:
        print(error, file=sys.stderr)
    return int(args.check and (bool(errors) or growth > MOST_GROWTH))


if __name__ == "__main__":
    sys.exit(main())
