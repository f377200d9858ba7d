"""Caffe's six update rules: clip, normalize, regularize, compute, apply, in Caffe's order.

A rule works on groups of parameters with the same multipliers, so that each of its steps is one torch
call per group (`torch._foreach_*`: one kernel launch for many tensors on a GPU).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from ..runtime.multipliers import Learnable
from .solver import Settings

Tensors = list[Tensor]


@dataclass(frozen=True)
class Clipping:
    """Gradient clipping: the L2 norm before it, the limit, and the factor applied."""

    norm: float
    limit: float
    factor: float


@dataclass(frozen=True)
class _Step:
    """The inputs of a rule in one iteration; ``rate`` is that of the group."""

    settings: Settings
    rate: float
    iteration: int


_LARGEST = float(np.finfo(np.float32).max)


def _single(value: float) -> float:
    """Return a factor, or infinity beyond the greatest C++ float: torch refuses such a number."""
    return value if abs(value) <= _LARGEST or math.isnan(value) else math.copysign(math.inf, value)


Rule = Callable[[_Step, Tensors, Tensors, list[Tensors]], None]


class Updater:
    """An update rule and its state: ``history`` is its arrays in the order of Caffe's solver states."""

    def __init__(
        self, settings: Settings, learnables: Sequence[Learnable], *, keep_updates: bool = False
    ) -> None:
        """With ``keep_updates``, or for snapshot_diff, what an update subtracts is kept in ``updates``."""
        self.settings = settings
        self.learnables = tuple(learnables)
        # What Caffe leaves in the diffs of the parameters: what the last update subtracted.
        keep_updates = keep_updates or settings.snapshot_diff
        self.updates: Tensors | None = (
            [torch.zeros_like(one.tensor) for one in learnables] if keep_updates else None
        )
        self._rule, copies = RULES[settings.type]
        self.history: Tensors = [torch.zeros_like(one.tensor) for _ in range(copies) for one in learnables]
        self._copies = copies
        groups: dict[tuple[float, float], list[int]] = {}
        for index, one in enumerate(self.learnables):
            groups.setdefault((one.lr_mult, one.decay_mult), []).append(index)
        self._groups = groups

    @torch.no_grad()
    def update(self, rate: float, iteration: int) -> Clipping | None:
        """Update every parameter by its gradient, as Caffe's `ApplyUpdate` at ``rate``.

        The gradients are the sums over ``iter_size`` passes and are overwritten.  A parameter without
        a gradient is treated as having 0, as in Caffe.
        """
        settings = self.settings
        params = [one.tensor for one in self.learnables]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        # Caffe clips the sum over iter_size passes before dividing it.
        clipping = self._clip(grads)
        if settings.iter_size != 1:
            torch._foreach_mul_(grads, 1 / settings.iter_size)
        for (lr_mult, decay_mult), indices in self._groups.items():
            own = [params[index] for index in indices]
            diffs = [grads[index] for index in indices]
            history = [
                [self.history[copy * len(params) + index] for index in indices]
                for copy in range(self._copies)
            ]
            decay = _single(settings.weight_decay * decay_mult)
            if decay:
                penalty = own if settings.regularization == "L2" else [torch.sign(p) for p in own]
                torch._foreach_add_(diffs, penalty, alpha=decay)
            step = _Step(settings, _single(rate * lr_mult), iteration)
            if self.updates is None:
                self._rule(step, own, diffs, history)
                continue
            updates = [self.updates[index] for index in indices]
            torch._foreach_zero_(updates)
            self._rule(step, updates, diffs, history)  # 0 - update
            torch._foreach_neg_(updates)
            torch._foreach_add_(updates, 0.0)  # no negative zeros
            torch._foreach_sub_(own, updates)
        return clipping

    @torch.no_grad()
    def norms(self) -> dict[str, float]:
        """Return the L2 norm of each parameter's gradient, the mean over iter_size; 0 where there is none."""
        grads = [(one.name, one.tensor.grad) for one in self.learnables]
        return {
            name: 0.0 if grad is None else float(grad.double().norm()) / self.settings.iter_size
            for name, grad in grads
        }

    def clear_updates(self) -> None:
        """Forget the last update, as Caffe clears the diffs before it computes new gradients."""
        for update in self.updates or ():
            update.zero_()

    def _clip(self, grads: Tensors) -> Clipping | None:
        limit = self.settings.clip_gradients
        if limit < 0:
            return None
        norms = torch._foreach_norm(grads)
        norm = float(torch.linalg.vector_norm(torch.stack([each.double() for each in norms])))
        if norm <= limit:
            return None
        torch._foreach_mul_(grads, limit / norm)
        return Clipping(norm, limit, limit / norm)


def _sgd(step: _Step, params: Tensors, grads: Tensors, history: list[Tensors]) -> None:
    (velocity,) = history
    torch._foreach_mul_(velocity, step.settings.momentum)
    torch._foreach_add_(velocity, grads, alpha=step.rate)
    torch._foreach_sub_(params, velocity)


def _nesterov(step: _Step, params: Tensors, grads: Tensors, history: list[Tensors]) -> None:
    (velocity,) = history
    momentum = step.settings.momentum
    # The update is (1 + momentum) × new velocity - momentum × old velocity.
    torch._foreach_add_(params, velocity, alpha=momentum)
    torch._foreach_mul_(velocity, momentum)
    torch._foreach_add_(velocity, grads, alpha=step.rate)
    torch._foreach_sub_(params, velocity, alpha=1 + momentum)


def _adagrad(step: _Step, params: Tensors, grads: Tensors, history: list[Tensors]) -> None:
    (squares,) = history
    torch._foreach_addcmul_(squares, grads, grads)
    _divide_by_root(step, params, grads, squares, step.rate)


def _rmsprop(step: _Step, params: Tensors, grads: Tensors, history: list[Tensors]) -> None:
    (squares,) = history
    decay = step.settings.rms_decay
    torch._foreach_mul_(squares, decay)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - decay)
    _divide_by_root(step, params, grads, squares, step.rate)


def _adadelta(step: _Step, params: Tensors, grads: Tensors, history: list[Tensors]) -> None:
    squares, updates = history
    momentum, delta = step.settings.momentum, step.settings.delta
    torch._foreach_mul_(squares, momentum)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - momentum)
    ratio = torch._foreach_add(updates, delta)
    torch._foreach_div_(ratio, torch._foreach_add(squares, delta))
    torch._foreach_sqrt_(ratio)
    torch._foreach_mul_(grads, ratio)
    torch._foreach_mul_(updates, momentum)
    torch._foreach_addcmul_(updates, grads, grads, value=1 - momentum)
    torch._foreach_sub_(params, grads, alpha=step.rate)


def _adam(step: _Step, params: Tensors, grads: Tensors, history: list[Tensors]) -> None:
    means, squares = history
    beta1, beta2 = step.settings.momentum, step.settings.momentum2
    torch._foreach_mul_(means, beta1)
    torch._foreach_add_(means, grads, alpha=1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
    # Caffe applies the bias correction to the rate, not to the moments, so delta is not corrected.
    steps = step.iteration + 1
    correction = sqrt(1 - beta2**steps) / (1 - beta1**steps)
    _divide_by_root(step, params, means, squares, step.rate * correction)


def _divide_by_root(step: _Step, params: Tensors, values: Tensors, squares: Tensors, rate: float) -> None:
    root = torch._foreach_sqrt(squares)
    torch._foreach_add_(root, step.settings.delta)
    torch._foreach_addcdiv_(params, values, root, value=-_single(rate))


# Each rule, and the number of history arrays per parameter.
RULES: dict[str, tuple[Rule, int]] = {
    "SGD": (_sgd, 1),
    "Nesterov": (_nesterov, 1),
    "AdaGrad": (_adagrad, 1),
    "RMSProp": (_rmsprop, 1),
    "AdaDelta": (_adadelta, 2),
    "Adam": (_adam, 2),
}
