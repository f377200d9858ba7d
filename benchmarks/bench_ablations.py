"""Parameters, multiply-adds and measured times of ILGNet, its ablations and the nets it is compared with.

    python benchmarks/bench_ablations.py [--batch 8] [--repeat 5] [--json]

Times are milliseconds of one core's time per image (not of the clock, which other programs would lengthen),
the least of ``--repeat`` passes of one batch, weights from the fillers: test is a forward pass of the deploy
net, train a forward and a backward pass of the training net.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from bench_train_step import fed

from ilgnet_repro import tune_process
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.zoo.catalogue import build

# What is compared -> the deploy net, the training net.
ROWS = {
    "ILGNet": ("ilgnet", "ilgnet_train"),
    "ILGNet without local connections": ("ilgnet_without_local", "ilgnet_without_local_train_val"),
    "ILGNet without Inception": ("ilgnet_without_inception", "ilgnet_without_inception_train_val"),
    "GoogLeNet, first third": ("googlenet_third", "googlenet_third_train_val"),
    "GoogLeNet, two thirds": ("googlenet_two_thirds", "googlenet_two_thirds_train_val"),
    "GoogLeNet, whole": ("googlenet_whole", "googlenet_whole_train_val"),
    "resnet_inception": ("resnet_inception", "resnet_inception_train_val"),
}


def timed(work: Callable[[], object], repeat: int) -> float:
    """Least processor seconds of a call, after one to warm up."""
    work()
    times = []
    for _ in range(repeat):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def measure(label: str, deploy: str, train: str, batch: int, repeat: int) -> dict[str, float | str]:
    found = audit(build(deploy))
    shape = (batch, *next(iter(found.inputs.values()))[1:])
    net = CaffeNet(build_graph(build(deploy), "TEST"), input_shapes={"data": shape}, seed=1)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        test = timed(lambda: net(data=images), repeat)
    trained = CaffeNet(build_graph(fed(build(train), batch), "TRAIN"), seed=1)
    inputs = {"data": images, "label": torch.arange(batch).remainder(2).float()}

    def pass_() -> None:
        trained.zero_grad(set_to_none=True)
        trained.loss(inputs).backward()

    step = timed(pass_, repeat)
    return {
        "net": label, "parameters": found.parameters, "multiply_adds": found.multiply_adds,
        "test_ms": 1e3 * test / batch, "train_ms": 1e3 * step / batch,
    }  # fmt: skip


def main() -> int:
    tune_process()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(label, *nets, args.batch, args.repeat) for label, nets in ROWS.items()]
    if args.json:
        print(json.dumps(rows))
        return 0
    print("| net | parameters | multiply-adds | test, ms per image | train, ms per image |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['net']} | {row['parameters']:,} | {row['multiply_adds'] / 1e6:,.0f} M "
            f"| {row['test_ms']:.1f} | {row['train_ms']:.1f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
