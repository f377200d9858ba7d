#!/usr/bin/env python3
"""What the models of scores cost: the table of docs/aesthetic_systems.md.

    python benchmarks/bench_model_costs.py              measure, and write the table
    python benchmarks/bench_model_costs.py --write      write the table from docs/model_costs.json

Parameters and multiply-adds are counted for one image of 224 x 224 (the Caffe nets: 227 x 227).  The time is that of one
thread's processor time per image, the best of several runs of one image in torch, float32: the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ilgnet_repro as ir  # noqa: E402
from ilgnet_repro.aesthetics import aadb, ilgnet  # noqa: E402
from ilgnet_repro.aesthetics.models import create  # noqa: E402
from ilgnet_repro.web.module_rows import module_rows  # noqa: E402

PAGE, COSTS = ROOT / "docs" / "aesthetic_systems.md", ROOT / "docs" / "model_costs.json"
BEGIN, END = "<!-- measured -->\n", "\n\n"
REPEAT = 5


@dataclass(frozen=True)
class Case:
    """A model by its name and options, or a Caffe net by its builder; ``published`` is as its authors print it."""

    title: str
    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    builder: Callable[[], Any] | None = None
    published: str = ""
    is_training: bool = False  # a forward pass in training, with what inference does not need

    def make(self) -> nn.Module:
        return ir.load_net(self.builder(), seed=1) if self.builder else create(self.name, **self.options)


CASES = (
    Case("NIMA, MobileNet v1", "nima", {"backbone": "mobilenet_v1"}, published="3.22 M"),
    Case("NIMA, MobileNet v2", "nima", {"backbone": "mobilenet_v2"}),
    Case("NIMA, VGG-16", "nima", {"backbone": "vgg16"}, published="134.3 M"),
    Case("NIMA, Inception v2", "nima", {"backbone": "inception_v2"}, published="10.16 M"),
    Case("TANet, TAD66K", "tanet", {}),
    Case("TANet, AVA", "tanet", {"data": "ava"}, published="13.88 M, 2.52 M trained"),
    Case("GSFL-Net's head in training", "gsfl", {}, published="166.6 M with VGG-16's convolutions", is_training=True),
    Case(
        "GSFL-Net's head at inference", "gsfl", {"groups": 1, "is_decomposed": False},
        published="65.9 M with VGG-16's convolutions",
    ),
    Case("attributes network, AADB", "attributes"),
    Case("attributes network, EVA", "attributes", {"data": "eva"}),
    Case("its peer: the ranking network of AADB's authors (Caffe)", builder=aadb.deploy),
    Case("beside them: ILGNet (Caffe)", builder=ilgnet.deploy),
)  # fmt: skip


def parameters(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters, and of those that are trained."""
    held = list(model.parameters())
    return {
        "parameters": sum(one.numel() for one in held),
        "trained": sum(one.numel() for one in held if one.requires_grad),
    }


def measure(case: Case) -> dict[str, Any]:
    """Return what a model costs."""
    model = case.make().eval()
    name = model.inputs[0]
    if case.builder:
        shape = tuple(model.shapes[name])
        adds = sum(model.plan.multiply_adds.values()) // shape[0]
    else:
        shape = (1, *model.row)
        adds = sum(row.multiply_adds for row in module_rows(model, name, shape))
        if case.is_training:
            adds = count_training(model, shape)
            model.train()
    x = torch.randn(1, *shape[1:])
    times = []
    with torch.inference_mode():
        for _ in range(REPEAT):
            start = time.process_time()
            model(x)
            times.append(time.process_time() - start)
    return {**parameters(model), "multiply_adds": adds, "milliseconds": round(1000 * min(times), 1)}


def count_training(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the multiply-adds of a pass in training: each weight of GSFL's dense layers is used once per row."""
    return sum(one.weight.numel() for one in model.modules() if isinstance(one, nn.Linear)) * shape[0]


def table(costs: dict[str, dict[str, Any]]) -> str:
    """Return the table of the page."""
    lines = [
        "| model | parameters | trained | published | multiply-adds, millions | ms per image, one thread |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        one = costs[case.title]
        cells = [
            case.title, f"{one['parameters']:,}", f"{one['trained']:,}", case.published,
            f"{one['multiply_adds'] / 1e6:,.1f}", f"{one['milliseconds']:,.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(costs: dict[str, dict[str, Any]]) -> str:
    """Return the page with its table from ``costs``."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    return before + begin + table(costs) + END + rest.partition(END)[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the table only")
    if not parser.parse_args().write:
        torch.set_num_threads(1)
        costs = {}
        for case in CASES:
            costs[case.title] = measure(case)
            print(f"{case.title}: {costs[case.title]}", file=sys.stderr, flush=True)
        COSTS.write_text(json.dumps(costs, indent=1) + "\n")
    PAGE.write_text(page(json.loads(COSTS.read_text())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
