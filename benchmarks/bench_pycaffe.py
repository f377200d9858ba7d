"""What pycaffe's interface costs: `net.forward()` of `ilgnet_repro.pycaffe` over CaffeNet called directly, in turns.

    python benchmarks/bench_pycaffe.py [--rounds 9] [--check]

The same weights and input, one thread, whose CPU time is taken, and no gradient; the answers are compared first.
Prints the ratio of the best times for SqueezeNet and GoogLeNet at batch 1; with --check it ends with 1 if one is
above 1.05.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import ilgnet_repro.pycaffe as caffe
from ilgnet_repro import tune_process
from ilgnet_repro.caffe.prototxt import format_message
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.zoo.catalogue import build

LIMIT = 1.05
NETS = {"squeezenet": 10, "googlenet": 4}


def seconds(run: Callable[[], object], passes: int = 2) -> float:
    """Return the mean time of some passes."""
    started = time.process_time()
    for _ in range(passes):
        run()
    return (time.process_time() - started) / passes


def measure(name: str, turns: int, rounds: int) -> tuple[float, float]:
    """Return the best times of `net.forward()` and of the CaffeNet."""
    with tempfile.TemporaryDirectory() as folder:
        prototxt = Path(folder, "net.prototxt")
        prototxt.write_text(format_message(build(name)))
        net = caffe.Net(str(prototxt), caffe.TEST)
    direct: CaffeNet = net.caffe_net
    x = torch.rand(net.blobs[net.inputs[0]].shape)
    net.blobs[net.inputs[0]].data[...] = x.numpy()
    with torch.inference_mode():
        expected = next(iter(direct(x).values())).numpy()
    np.testing.assert_allclose(next(iter(net.forward().values())), expected, rtol=1e-5, atol=1e-7)
    best = [float("inf")] * 2
    with torch.inference_mode():
        for _ in range(rounds * turns):
            best = [
                min(held, seconds(run))
                for held, run in zip(best, (net.forward, lambda: direct(x)), strict=True)
            ]
    return best[0], best[1]


def main(argv: list[str] | None = None) -> int:
    """Measure each net, and print one line for it."""
    tune_process()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="rounds in turns; the best of each counts (9)")
    parser.add_argument("--check", action="store_true", help=f"end with 1 where a ratio is over {LIMIT}")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    worst = 0.0
    for name, turns in NETS.items():
        ours, direct = measure(name, turns, args.rounds)
        worst = max(worst, ours / direct)
        print(
            f"{name}: net.forward() {ours * 1e3:.3f} ms, CaffeNet {direct * 1e3:.3f} ms, ratio {ours / direct:.3f}"
        )
    return int(args.check and worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
