#!/usr/bin/env python3
"""The mean of a database beside a bare loop of LMDB's get and NumPy's add over the same rows.

    python benchmarks/bench_mean.py [--rows 20000] [--side 256] [--rounds 5]

Rounds alternate and the best of each counts.  The first ratio is of wall time, with as many threads as `ilgnet mean`
uses; the second of CPU time on one thread, which other programs on the machine change little.  20,000 rows of 256x256
take 4 GB below $TMPDIR.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ilgnet_repro.reading.lmdb_write import LmdbWriter
from ilgnet_repro.reading.mean import compute_mean
from ilgnet_repro.schema import caffe_pb2


def write(folder: str, rows: int, side: int) -> int:
    """Write raw rows of one size; return where their pixels start."""
    random = np.random.default_rng(1)
    pixels = [random.integers(0, 256, 3 * side * side, np.uint8).tobytes() for _ in range(16)]

    def values() -> Iterator[tuple[bytes, bytes]]:
        for number in range(rows):
            datum = caffe_pb2.Datum(
                channels=3, height=side, width=side, data=pixels[number % 16], label=number % 2
            )
            yield b"%08d_x" % number, datum.SerializeToString()

    writer = LmdbWriter(folder)
    batch: list[tuple[bytes, bytes]] = []
    for row in values():
        batch.append(row)
        if len(batch) == 1000:
            writer.write(batch)
            batch = []
    writer.write(batch)
    first = writer.first()
    writer.close()
    assert first is not None
    return first[1].index(pixels[0])


def bare(folder: str, keys: list[bytes], start: int, side: int) -> np.ndarray:
    """The loop that anyone would write: no row is checked."""
    total = np.zeros(3 * side * side, np.uint32)
    with lmdb.open(folder, readonly=True, lock=False) as opened, opened.begin(buffers=True) as transaction:
        for key in keys:
            np.add(total, np.frombuffer(transaction.get(key), np.uint8, len(total), start), out=total)
    return (total / len(keys)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = write(folder, args.rows, args.side)
        keys = [b"%08d_x" % number for number in range(args.rows)]
        works: dict[str, Callable[[], np.ndarray]] = {
            "bare loop": lambda: bare(folder, keys, start, args.side),
            "mean": lambda: compute_mean(folder).image.reshape(-1),
            "mean, one thread": lambda: compute_mean(folder, workers=1).image.reshape(-1),
        }
        assert np.array_equal(works["bare loop"](), works["mean"]())
        best = {name: [float("inf"), float("inf")] for name in works}
        for _ in range(args.rounds):
            for name, work in works.items():
                wall, processor = time.perf_counter(), time.process_time()
                work()
                spent = time.perf_counter() - wall, time.process_time() - processor
                best[name] = [min(pair) for pair in zip(best[name], spent, strict=True)]
    for name, (wall, processor) in best.items():
        print(f"{name}: {wall:.2f} s, {processor:.2f} s of CPU, {args.rows / wall:.0f} rows/s")
    ratios = best["mean"][0] / best["bare loop"][0], best["mean, one thread"][1] / best["bare loop"][1]
    print(f"mean over the bare loop: {ratios[0]:.2f} in time, {ratios[1]:.2f} in CPU time on one thread")


if __name__ == "__main__":
    main()
