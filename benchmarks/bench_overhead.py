"""What a net's own bookkeeping costs: a pass of CaffeNet over the same operations in bare torch, in turns in one run.

    python benchmarks/bench_overhead.py [--rounds 9] [--check]

Bare torch is a list of calls of torch.nn.functional, without modules: the same parameters and geometry (rounded-up
pooling too), the same float32 input, one thread, inference mode, and the same answer, which is checked first.
Prints the ratio of the best times for LeNet and SqueezeNet at batch 1; with --check it ends with 1 above 1.2.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ilgnet_repro import tune_process
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.zoo.catalogue import build

LIMIT = 1.2
LENET = """
name: "LeNet"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 28 dim: 28 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 20 kernel_size: 5 weight_filler { type: "xavier" } } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2" convolution_param { num_output: 50 kernel_size: 5 weight_filler { type: "xavier" } } }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool2" top: "ip1" inner_product_param { num_output: 500 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip2" top: "prob" }
"""  # noqa: E501 — one layer per line


def bare(net: CaffeNet) -> Callable[[Tensor], Tensor]:
    """Return the same operations in torch's own functions, one after the other."""
    operations: list[tuple[Callable[..., Tensor], tuple[int, ...], int]] = []
    places: dict[str, int] = {}
    for node, layer in net.steps(net.outputs):
        for value in node.tops:
            places.setdefault(value, len(places))
        if layer.is_input:
            continue
        if node.type == "Convolution":
            run = partial(
                F.conv2d, weight=layer.weight, bias=layer.bias, stride=layer.stride, padding=layer.pad
            )
        elif node.type == "InnerProduct":
            run = partial(_dense, weight=layer.weight, bias=layer.bias)
        elif node.type == "Pooling" and layer.window is None:
            run = partial(F.adaptive_avg_pool2d, output_size=1)
        elif node.type == "Pooling":
            window = layer.window
            run = partial(
                F.max_pool2d,
                kernel_size=window.kernel,
                stride=window.stride,
                padding=window.pad,
                ceil_mode=window.ceil_mode,
            )
        else:
            run = {
                "ReLU": F.relu,
                "Softmax": partial(F.softmax, dim=1),
                "Concat": _concat,
                "Dropout": _identity,
            }[node.type]
        operations.append((run, tuple(places[value] for value in node.bottoms), places[node.tops[0]]))

    def forward(x: Tensor) -> Tensor:
        values: list[Tensor] = [x] * len(places)
        for run, bottoms, top in operations:
            values[top] = run(*[values[place] for place in bottoms])
        return values[operations[-1][2]]

    return forward


def _dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x.flatten(1), weight, bias)


def _concat(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


def _identity(x: Tensor) -> Tensor:
    return x


def seconds(run: Callable[[Tensor], object], x: Tensor, passes: int = 2) -> float:
    """Return the mean time of some passes."""
    started = time.perf_counter()
    for _ in range(passes):
        run(x)
    return (time.perf_counter() - started) / passes


def one_round(net: CaffeNet, other: Callable[[Tensor], Tensor], x: Tensor, turns: int) -> tuple[float, float]:
    """Return the best times of both, from short turns: on a shared machine long ones are always interrupted."""
    times = [(seconds(net, x), seconds(other, x)) for _ in range(turns)]
    ours, theirs = zip(*times, strict=True)
    return min(ours), min(theirs)


def main(argv: list[str] | None = None) -> int:
    """Measure both nets, and print one line for each."""
    tune_process()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="rounds in turns; the best of each counts (9)")
    parser.add_argument("--check", action="store_true", help=f"end with 1 where a ratio is over {LIMIT}")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    worst = 0.0
    for name, text, turns in (("LeNet", parse_net(LENET), 100), ("SqueezeNet", build("squeezenet"), 10)):
        net = CaffeNet(build_graph(text), seed=1)
        x = torch.rand(1, *net.shapes[net.inputs[0]][1:])
        other = bare(net)
        with torch.inference_mode():
            torch.testing.assert_close(other(x), next(iter(net(x).values())))
            times = [one_round(net, other, x, turns) for _ in range(args.rounds)]
        ours, theirs = (min(row[side] for row in times) for side in (0, 1))
        worst = max(worst, ours / theirs)
        print(f"{name}: {ours * 1e6:,.0f} us, bare torch {theirs * 1e6:,.0f} us, ratio {ours / theirs:.3f}")
    return int(args.check and worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
