"""Seconds and memory that each format takes to write, above what the weights and the imports take.

    python benchmarks/bench_export.py ilgnet.caffemodel [--to onnx pt2 python safetensors]

Each format is written by a separate process.  Memory is anonymous memory (what a memory map of the weights
takes can be released at any time, and is not counted), sampled every 5 ms, less what the imports took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

FORMATS = ("safetensors", "onnx", "python", "pt2", "caffemodel")


def anonymous_mb() -> float:
    """This process's own memory, without mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not report anonymous memory")


def measure(weights: str, name: str, folder: str) -> dict[str, float]:
    """Write one format and watch."""
    import onnx  # noqa: F401
    import torch  # noqa: F401

    import ilgnet_repro as ir
    from ilgnet_repro.export import convert as _convert  # noqa: F401

    before = peak = anonymous_mb()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    report = ir.convert(weights, to=(name,), out=folder)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return {"seconds": seconds, "mb": peak - before, "bytes": sum(file.bytes for file in report.written)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights")
    parser.add_argument("--to", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with tempfile.TemporaryDirectory(dir=args.one.partition("@")[2]) as folder:
            print(json.dumps(measure(args.weights, args.one.partition("@")[0], folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in args.to:
            command = [sys.executable, __file__, args.weights, "--one", f"{name}@{folder}"]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{name:12} {found['seconds']:6.2f} s  {found['mb']:6.0f} MB  {found['bytes']:,} bytes")


if __name__ == "__main__":
    main()
