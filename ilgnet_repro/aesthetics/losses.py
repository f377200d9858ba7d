"""The losses of the aesthetic models, each of a batch, as a scalar tensor with gradients: formula, shapes, source."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError


def _same_shape(predicted: Tensor, target: Tensor, what: str) -> None:
    if predicted.shape != target.shape:
        raise DataError(
            f"{what}: predictions have shape {list(predicted.shape)}, targets {list(target.shape)}; they must be equal"
        )


def emd_loss(predicted: Tensor, target: Tensor, r: int = 2) -> Tensor:
    """Return the mean over N images of (1/B Σ|CDF_p − CDF_q|^r)^(1/r), for two N x B distributions whose rows sum to 1.

    NIMA (Talebi and Milanfar, 2018), equation 1: r is 2 in training, 1 where the distance is reported; 0 to 1. The root
    is of each image, not of the batch. Raises DataError for other shapes, and an r below 1.
    """
    _same_shape(predicted, target, "emd_loss")
    if predicted.ndim != 2:
        raise DataError(f"emd_loss: distributions have shape {list(predicted.shape)}; give N x B")
    if r < 1:
        raise DataError(f"emd_loss: r={r}; give 1 or more")
    distance = (predicted.cumsum(1) - target.cumsum(1)).abs()
    if r == 1:
        return distance.mean(1).mean()
    mean = distance.pow(r).mean(1)
    # The root has no gradient at 0, where prediction and target are equal.
    exact = mean == 0
    return torch.where(exact, 0.0, torch.where(exact, 1.0, mean).pow(1 / r)).mean()


def score_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return 1/N Σ(p − t)² of N x 1 (or N) scores, both on the model's scale, in its square.

    TANet (He et al., IJCAI 2022): a tenth of TAD66K's scores. Raises DataError for shapes that differ.
    """
    _same_shape(predicted, target, "score_loss")
    return (predicted - target).square().mean()


def attributes_loss(
    predicted: dict[str, Tensor], target: dict[str, Tensor], weights: dict[str, float] | None = None
) -> Tensor:
    """Return Σ_k w_k 1/N_k Σ(p_k − t_k)² of named N x 1 outputs, each over the N_k rows that state it (NaN: not stated).

    Each output is on its data's scale (AADB: −1 to 1; EVA: the score 0 to 10, attributes 1 to 4). The weights w are 1
    where not given; the paper (arXiv 2305.09373) does not publish its own. Raises DataError where the target lacks an
    output, shapes differ, or no row states any.
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


def decomposition_loss(
    found: Mapping[str, Tensor],
    features: Tensor,
    labels: Tensor,
    class_centres: Tensor,
    group_centres: Tensor,
) -> dict[str, Tensor]:
    """Return the terms of GSFL-Net's loss by name, already weighted; their sum is what is trained.

    CE(logits, y) + 0.01 MSE(decoded, x) + 0.1 Σ_n 1/H ‖own_n − c_n‖² + 0.1 Σ_n 1/H ‖shared_n − g_n‖² (Li and Monga, 2020).
    ``found`` has ``logits``, N x classes, ``decoded`` as ``features``, N x F, ``discriminative`` and ``shared``, N x H;
    ``labels`` are N class numbers. ``class_centres`` and ``group_centres``, N x H, are those of each row's own class and
    of that class's group. Raises DataError for shapes that differ.
    """
    own, shared = found["discriminative"], found["shared"]
    for what, values, others in (
        ("decoded", found["decoded"], features), ("discriminative", own, class_centres), ("shared", shared, group_centres),
    ):  # fmt: skip
        _same_shape(values, others, f"decomposition_loss: {what}")
    return {
        "classification": F.cross_entropy(found["logits"], labels),
        "reconstruction": 0.01 * F.mse_loss(found["decoded"], features),
        "class_centres": 0.1 * (own - class_centres).square().mean(1).sum(),
        "group_centres": 0.1 * (shared - group_centres).square().mean(1).sum(),
    }
