"""Trains GSFL without dropout, in as many processes as torchrun started, and writes its weights: FEATURES OUT."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ilgnet_repro.aesthetics.datasets import read_dataset
from ilgnet_repro.aesthetics.model_runs.recipes import Recipe
from ilgnet_repro.aesthetics.model_runs.tasks import make_task
from ilgnet_repro.aesthetics.model_runs.train import ModelTrainer, Settings
from ilgnet_repro.train.distributed import process_group


def main() -> None:
    features, out = map(Path, sys.argv[1:])
    data = read_dataset("features", features)
    task = make_task("gsfl", data, {"hidden": 16, "groups": 3})
    with process_group("cpu") as group:
        trainer = ModelTrainer(
            task,
            data,
            Recipe("sgd", {"": 0.01}, 9, 4),
            Settings(out, 4, 9, seed=5),
            torch.device("cpu"),
            group=group,
        )
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):  # draws by process
                module.p = 0.0
        trainer.train(resume=False)


if __name__ == "__main__":
    main()
