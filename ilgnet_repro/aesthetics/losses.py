"""The losses of the aesthetic models, each of a batch: formula, shapes, source."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError


def _same_shape(predicted: Tensor, target: Tensor, what: str) -> None:
    if predicted.shape != target.shape:
        raise DataError(
            f"{what}: predictions have shape {list(predicted.shape)}, targets {list(target.shape)}; they must be equal"
        )


def emd_loss(predicted: Tensor, target: Tensor, r: int = 2) -> Tensor:
    """Return the mean over N images of (1/B Σ|CDF_p − CDF_q|^r)^(1/r), for two N x B distributions.

    NIMA (Talebi and Milanfar, 2018), equation 1: r is 2 in training, 1 where the distance is reported. The root is of
    each image, not of the batch. Raises DataError for other shapes.
    """
    _same_shape(predicted, target, "emd_loss")
    distance = (predicted.cumsum(1) - target.cumsum(1)).abs()
    if r == 1:
        return distance.mean(1).mean()
    mean = distance.pow(r).mean(1)
    # The root has no gradient at 0, where prediction and target are equal.
    exact = mean == 0
    return torch.where(exact, 0.0, torch.where(exact, 1.0, mean).pow(1 / r)).mean()


def score_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of N x 1 (or N) scores, both on the model's scale (TANet: score / 10)."""
    _same_shape(predicted, target, "score_loss")
    return (predicted - target).square().mean()


def attributes_loss(
    predicted: dict[str, Tensor], target: dict[str, Tensor], weights: dict[str, float] | None = None
) -> Tensor:
    """Return the weighted sum of each output's mean squared error over the rows that state it (NaN: not stated).

    The weights are 1 where not given; the paper (arXiv 2305.09373) does not publish its own. Raises DataError where the
    target lacks an output, or no row states any.
    """
    weights = weights or {}
    total: Tensor | None = None
    for name, values in predicted.items():
        if name not in target:
            raise DataError(f"attributes_loss: no target for {name!r}; it has {', '.join(target) or 'none'}")
        _same_shape(values, target[name], f"attributes_loss: {name}")
        stated = ~target[name].isnan()
        if stated.any():
            part = weights.get(name, 1.0) * (values[stated] - target[name][stated]).square().mean()
            total = part if total is None else total + part
    if total is None:
        raise DataError("attributes_loss: no row states a target")
    return total
