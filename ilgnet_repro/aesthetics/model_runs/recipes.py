"""How each model is trained: the published optimizer, rates, batch and image sizes, as far as they are published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ...errors import SolverError


@dataclass(frozen=True)
class Recipe:
    """``rates`` are learning rates by the beginning of the parameters' names; the last, "", is of all others.

    The rate is multiplied by ``decay`` after every ``decay_epochs`` epochs. Training images are resized to ``resize``,
    cropped at random to ``size``, and mirrored at random; with ``whole`` a tested image is resized to ``size`` and not
    cropped.
    """

    optimizer: str
    rates: Mapping[str, float]
    batch: int
    epochs: int
    weight_decay: float = 0.0
    decay: float = 1.0
    decay_epochs: int = 1
    size: int = 224
    resize: int = 256
    whole: bool = False
    source: str = ""

    def with_rate(self, rate: float) -> Recipe:
        """Return the recipe with another rate; the rates of the parts keep their ratios to it."""
        factor = rate / self.rates[""]
        values = {name: value * factor for name, value in self.rates.items()}
        fields = {**vars(self), "rates": values}
        return Recipe(**fields)


RECIPES: Mapping[str, Recipe] = {
    "nima": Recipe(
        "sgd", {"dense": 3e-6, "": 3e-7}, batch=128, epochs=50, decay=0.95, decay_epochs=10,
        source="Talebi and Milanfar, 2018; batch and epochs are not published",
    ),
    "tanet": Recipe(
        "adam", {"": 3e-4}, batch=40, epochs=200, whole=True,
        source="the published code: option.py of github woshidandan/TANet-image-aesthetics-and-quality-assessment",
    ),
    "attributes": Recipe(
        "adam", {"": 1e-4}, batch=32, epochs=30,
        source="not published; then fine-tuned with a lower rate: --weights and --lr of a second run",
    ),
    "gsfl": Recipe("sgd", {"": 1e-3}, batch=32, epochs=50, weight_decay=5e-4, source="not published"),
}  # fmt: skip


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of the model's trained parameters, one group for each rate."""
    groups: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in recipe.rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[next(prefix for prefix in recipe.rates if name.startswith(prefix))].append(parameter)
    settings = [
        {"params": held, "lr": recipe.rates[prefix], "initial_lr": recipe.rates[prefix]}
        for prefix, held in groups.items()
        if held
    ]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(settings, weight_decay=recipe.weight_decay, foreach=False)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            settings, lr=0.0, momentum=0.9, weight_decay=recipe.weight_decay, foreach=False
        )
    raise SolverError(f"optimizer {recipe.optimizer!r} is unknown; use adam or sgd")


def set_epoch(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int) -> None:
    """Set the rates of an epoch, counted from 0."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * recipe.decay ** (epoch // recipe.decay_epochs)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the optimizer's state, a name for each tensor: ``NUMBER.momentum_buffer`` and so on."""
    state = optimizer.state_dict()["state"]
    for number, held in state.items():
        for name, value in held.items():
            if isinstance(value, torch.Tensor):
                yield f"{number}.{name}", value


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load what `optimizer_tensors` gave.  Raises ValueError for tensors that are not of its parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        number, _, field = name.partition(".")
        state.setdefault(int(number), {})[field] = value
    fields = (
        {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"momentum_buffer"}
    )
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    for index, held in state.items():
        if not 0 <= index < len(shapes) or held.keys() != fields:
            raise ValueError(f"optimizer.{index} is of no parameter of this optimizer")
        for name, value in held.items():
            wanted = torch.Size() if name == "step" else shapes[index]
            if value.shape != wanted or value.dtype != torch.float32:
                raise ValueError(f"optimizer.{index}.{name} is not {list(wanted)} float32")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
