"""Is our ILGNet in ONNX Runtime as fast as the same net written by hand in torch and exported?

    python benchmarks/bench_onnx.py ilgnet.caffemodel [--batches 1 16] [--seconds 10]

The three sessions (ours, ours with --fast-lrn, the handwritten one) take turns, so that a machine with
other work slows all alike; printed are the median times and their ratio to the handwritten net's (over 1:
ours is faster).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from handwritten_ilgnet import HandwrittenILGNet

import ilgnet_repro as ir


def main() -> None:
    ir.tune_process()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=10, help="for each batch size")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        ir.convert(args.weights, to=("onnx", "safetensors"), out=folder)
        ours = Path(folder, f"{Path(args.weights).stem}.onnx")
        fast = Path(folder, "fast")
        fast.mkdir()
        ir.convert(args.weights, to=("onnx",), out=fast, fast_lrn=True)
        print(f"ours written in {time.perf_counter() - started:.1f} s (twice, with safetensors)")
        net = ir.load(ours.with_suffix(".safetensors"))
        hand = HandwrittenILGNet().take([blob for blobs in net.params.values() for blob in blobs])
        written = Path(folder, "handwritten.onnx")
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                hand, (torch.zeros(2, 3, 227, 227),), str(written), dynamo=False, input_names=["data"],
                output_names=["prob"], dynamic_axes={"data": {0: "N"}, "prob": {0: "N"}},
            )  # fmt: skip
        print(f"torch.onnx.export took {time.perf_counter() - started:.1f} s")
        sessions = [
            onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            for path in (ours, fast / ours.name, written)
        ]
        random = np.random.default_rng(7)
        for batch in args.batches:
            x = random.uniform(-120, 135, (batch, 3, 227, 227)).astype(np.float32)
            results = [session.run(None, {"data": x})[0] for session in sessions]
            times = take_turns(sessions, x, args.seconds)
            medians = [1000 * statistics.median(values) for values in times]
            for name, result, median in zip(("LRN nodes", "--fast-lrn"), results, medians, strict=False):
                print(
                    f"batch {batch:3}, {name:10}: ours {median:7.1f} ms ({1000 * batch / median:.1f}/s), by hand "
                    f"{medians[-1]:7.1f} ms ({1000 * batch / medians[-1]:.1f}/s), ratio {medians[-1] / median:.2f}, "
                    f"largest difference {np.abs(result - results[-1]).max():.2g}"
                )


def take_turns(sessions: list, x: np.ndarray, seconds: float) -> list[list[float]]:
    """Time each session in turn until the time is up."""
    times: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for session, found in zip(sessions, times, strict=True):
            started = time.perf_counter()
            session.run(None, {"data": x})
            found.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
