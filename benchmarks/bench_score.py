"""`ilgnet score` over a folder of JPEGs, beside the net alone on prepared images, by the same engine in one run.

    python benchmarks/bench_score.py [--images 2000] [--size 640x480] [--engine onnxruntime] [--seconds 20]

The net is ILGNet with random weights, batches of 16.  Prints images per second of both, their ratio (wanted: 0.9), and
the seconds of a second run whose scores are all in the cache (wanted: under 2).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import ilgnet_repro as ir
from ilgnet_repro.aesthetics.demo_inputs import make_random_ilgnet
from ilgnet_repro.scoring import Scorer

BATCH = 16


def write_images(folder: Path, count: int, width: int, height: int) -> None:
    """Write seeded JPEGs with structure of several sizes, as photographs have."""
    random = np.random.default_rng(7)
    for number in range(count):
        image = np.zeros((height, width, 3), np.float32)
        for cells in (4, 16, 64):
            coarse = random.normal(0, 60, (cells * 3 // 4, cells, 3)).astype(np.float32)
            image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number:05}.jpg"), (image + 128).clip(0, 255).astype(np.uint8))


def bare_rate(net: Any, x: torch.Tensor, seconds: float) -> float:
    """Return images per second of the net alone."""
    with torch.inference_mode():
        net(x)
        start, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds:
            net(x)
            done += len(x)
    return done / spent


def main(argv: list[str] | None = None) -> int:
    """Make the images, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", default="640x480", help="width x height")
    parser.add_argument("--engine", help="as `ilgnet score --engine`; default the exact net")
    parser.add_argument("--seconds", type=float, default=20, help="of the net alone, before and after")
    args = parser.parse_args(argv)
    width, height = map(int, args.size.split("x"))
    ir.tune_process()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "images")
        folder.mkdir()
        write_images(folder, args.images, width, height)
        weights = Path(made, "ilgnet_random.caffemodel")
        make_random_ilgnet(weights)
        net: Any = ir.load(weights)
        if args.engine:
            net = ir.fast(net, engine=args.engine, batch=BATCH)
        scorer = Scorer(net, batch=BATCH)
        paths = sorted(folder.iterdir())
        x = torch.from_numpy(np.stack([scorer.read(path).values for path in paths[:BATCH]]))
        before = bare_rate(net, x, args.seconds)
        start = time.perf_counter()
        assert not any(row.error for row in scorer.score(paths))
        rate = args.images / (time.perf_counter() - start)
        bare = max(before, bare_rate(net, x, args.seconds))
        print(f"{args.images} images of {args.size}, {args.engine or 'exact net'}")
        print(f"net alone {bare:.1f} images/s, folder {rate:.1f} images/s, ratio {rate / bare:.2f}")
        command = [sys.executable, "-m", "ilgnet_repro", "score", str(folder), "--weights", str(weights)]
        command += ["--csv", "--out", str(Path(made, "scores.csv")), "--cache", str(Path(made, "scores.db"))]
        for run in ("first", "second"):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            print(f"{run} run with a cache: {time.perf_counter() - start:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
