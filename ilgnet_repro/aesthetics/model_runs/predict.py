"""A model's predictions of a split, and the loss of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from .batches import Inputs
from .tasks import Task


def predict(
    model: nn.Module,
    task: Task,
    inputs: Inputs,
    batch: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, np.ndarray], float]:
    """Return the predictions of every row, on the data's scale, and the mean loss. The model's mode is as before."""
    rows = inputs.rows
    batches = np.array_split(np.arange(len(rows)), -(-len(rows) // batch))
    parts: list[dict[str, np.ndarray]] = []
    total, done = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for numbers, x in zip(batches, inputs.testing(batches), strict=True):
                x = x.to(device)
                found = model(x)
                target = {name: value.to(device) for name, value in task.targets(rows, numbers).items()}
                if not any(bool(torch.isfinite(value).any()) for value in target.values()):
                    target = {}  # EVA: no row of this batch states any
                if target:
                    total += sum(map(float, task.loss(model, found, x, target).values())) * len(numbers)
                parts.append(task.predictions(found))
                done += len(numbers)
                progress(done)
    finally:
        model.train(was_training)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, total / len(rows)
