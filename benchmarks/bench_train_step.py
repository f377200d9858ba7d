"""A training step of ours beside torch's own optimiser, on the same net and batch, in the same run.

    python benchmarks/bench_train_step.py [--steps 15] [--json]

Steps of the two alternate, so that other work of the machine slows both.  Prints the median step
(forward, backward and update) and the median of the update only, in milliseconds, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from ilgnet_repro import tune_process
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.schema import caffe_pb2 as pb
from ilgnet_repro.train.nets import learnables
from ilgnet_repro.train.solver import Settings, make_settings
from ilgnet_repro.train.updates import Learnable, Updater
from ilgnet_repro.zoo.catalogue import build

RATE, MOMENTUM, DECAY = 1e-4, 0.9, 2e-4
# Net, batch: one whose weights are few beside its arithmetic, and one of 151 million weights.
CASES = (("googlenet_third_train_val", 8), ("ilgnet_train", 8))


def fed(net: pb.NetParameter, batch: int) -> pb.NetParameter:
    """The net with an Input layer for its databases."""
    result = pb.NetParameter(name=net.name)
    crop = next(layer.transform_param.crop_size for layer in net.layer if layer.type == "Data")
    shapes = [{"dim": [batch, 3, crop, crop]}, {"dim": [batch]}]
    result.layer.add(name="data", type="Input", top=["data", "label"], input_param={"shape": shapes})
    result.layer.extend(layer for layer in net.layer if layer.type != "Data")
    return result


def make_case(name: str, batch: int) -> tuple[CaffeNet, dict[str, torch.Tensor], Settings]:
    message = fed(build(name), batch)
    net = CaffeNet(build_graph(message, "TRAIN"), seed=1)
    generator = torch.Generator().manual_seed(2)
    inputs = {
        "data": torch.randn(net.shapes["data"], generator=generator),
        "label": torch.randint(2, net.shapes["label"], generator=generator).float(),
    }
    solver = pb.SolverParameter(
        net_param=message, base_lr=RATE, lr_policy="fixed", momentum=MOMENTUM, weight_decay=DECAY, max_iter=1
    )
    return net, inputs, make_settings(solver)


def torch_optimiser(rows: list[Learnable]) -> torch.optim.Optimizer:
    """SGD with Caffe's multipliers as parameter groups."""
    groups: dict[tuple[float, float], list[torch.Tensor]] = {}
    for one in rows:
        groups.setdefault((one.lr_mult, one.decay_mult), []).append(one.tensor)
    rows_of = [
        {"params": own, "lr": RATE * lr, "weight_decay": DECAY * decay} for (lr, decay), own in groups.items()
    ]
    return torch.optim.SGD(rows_of, lr=RATE, momentum=MOMENTUM, foreach=True)


def measure(name: str, batch: int, steps: int) -> dict[str, float | str]:
    net, inputs, settings = make_case(name, batch)
    rows = learnables(net)
    updater, optimiser = Updater(settings, rows), torch_optimiser(rows)

    def clear() -> None:
        for one in rows:
            one.tensor.grad = None

    sides: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "ours": (clear, lambda: updater.update(RATE, 0)),
        "torch": (lambda: optimiser.zero_grad(set_to_none=True), optimiser.step),
    }
    whole: dict[str, list[float]] = {side: [] for side in sides}
    update: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(steps + 2):
        for side in sorted(sides, reverse=bool(number % 2)):
            prepare, step = sides[side]
            started = time.perf_counter()
            prepare()
            net.loss(inputs).backward()
            computed = time.perf_counter()
            step()
            ended = time.perf_counter()
            if number >= 2:  # the first two warm up: arrays of both optimisers, torch's kernels
                whole[side].append(1e3 * (ended - started))
                update[side].append(1e3 * (ended - computed))
    medians = {f"{side}_{kind}": statistics.median(times[side])
               for kind, times in (("step", whole), ("update", update)) for side in sides}  # fmt: skip
    ratios = {
        f"{kind}_ratio": medians[f"ours_{kind}"] / medians[f"torch_{kind}"] for kind in ("step", "update")
    }
    return {"net": name, "batch": batch, **medians, **ratios}


def main() -> int:
    tune_process()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [measure(name, batch, args.steps) for name, batch in CASES]
    if args.json:
        print(json.dumps(rows))
        return 0
    print(f"{'net':28} batch  step ours / torch (ms)   ratio   update ours / torch (ms)  ratio")
    for row in rows:
        print(
            f"{row['net']:28} {row['batch']:5}  {row['ours_step']:9.1f} / {row['torch_step']:9.1f}"
            f"  {row['step_ratio']:6.3f}"
            f"   {row['ours_update']:10.2f} / {row['torch_update']:9.2f}  {row['update_ratio']:6.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
