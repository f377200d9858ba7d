"""Learning-rate policies: the rate of an iteration, as Caffe's `GetLearningRate`.

Caffe's numbers are float32 (only `exp` and a power with an integer exponent are doubles): a rate beyond them is infinite
or 0, and near the end of `poly` the rounding of iter / max_iter shows in the digits that are logged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import SolverError
from ..schema import caffe_pb2 as pb


class Rate(NamedTuple):
    """The rate of one iteration, and the number of steps the policy has taken (stored in solver states)."""

    value: float
    current_step: int


@dataclass(frozen=True)
class WarmUp:
    """A rate that rises by a line before the policy starts: Caffe's `inv` of power -1, base_lr (1 + gamma iter)."""

    iterations: int
    base_lr: float
    gamma: float


@dataclass(frozen=True)
class Policy:
    """A policy with its parameters; those it does not use are 0.  ``warm_up`` precedes it."""

    name: str
    base_lr: float
    gamma: float = 0.0
    power: float = 0.0
    stepsize: int = 0
    stepvalue: tuple[int, ...] = ()
    max_iter: int = 0
    warm_up: WarmUp | None = None

    def at(self, iteration: int, current_step: int = 0) -> Rate:
        """Return the rate of ``iteration`` (from 0); ``current_step`` is that of the previous iteration."""
        warm = self.warm_up
        if warm is not None and iteration < warm.iterations:
            return Policy("inv", warm.base_lr, warm.gamma, -1).at(iteration, current_step)
        with np.errstate(all="ignore"):
            factor, current_step = _FACTORS[self.name](self, iteration, current_step)
            return Rate(float(_single(np.float64(_single(self.base_lr)) * factor)), current_step)


def _single(value: float) -> np.float32:
    """As a C++ float: infinite where it is beyond the greatest."""
    return np.float32(value)


def _power(base: float | np.float32, exponent: float) -> float:
    """As C's `pow`: infinite or NaN where Python raises or returns a complex number."""
    return float(np.float64(base) ** np.float64(exponent))


def _fixed(policy: Policy, iteration: int, step: int) -> Rate:
    return Rate(1.0, step)


def _step(policy: Policy, iteration: int, step: int) -> Rate:
    step = iteration // policy.stepsize
    return Rate(_power(policy.gamma, step), step)


def _exp(policy: Policy, iteration: int, step: int) -> Rate:
    return Rate(_power(policy.gamma, iteration), step)


def _inv(policy: Policy, iteration: int, step: int) -> Rate:
    base = np.float32(1) + _single(policy.gamma) * _single(iteration)
    return Rate(float(_single(_power(base, -policy.power))), step)


def _multistep(policy: Policy, iteration: int, step: int) -> Rate:
    # At most one step per iteration, even if two stepvalues are equal.
    if step < len(policy.stepvalue) and iteration >= policy.stepvalue[step]:
        step += 1
    return Rate(_power(policy.gamma, step), step)


def _poly(policy: Policy, iteration: int, step: int) -> Rate:
    left = np.float32(1) - _single(iteration) / _single(policy.max_iter)
    return Rate(float(_single(_power(left, policy.power))), step)


def _sigmoid(policy: Policy, iteration: int, step: int) -> Rate:
    exponent = -_single(policy.gamma) * (_single(iteration) - _single(policy.stepsize))
    return Rate(float(1 / (1 + np.exp(np.float64(exponent)))), step)


_FACTORS: dict[str, Callable[[Policy, int, int], Rate]] = {
    "fixed": _fixed,
    "step": _step,
    "exp": _exp,
    "inv": _inv,
    "multistep": _multistep,
    "poly": _poly,
    "sigmoid": _sigmoid,
}

# The fields that each policy requires.
_REQUIRED = {
    "step": ("gamma", "stepsize"),
    "exp": ("gamma",),
    "inv": ("gamma", "power"),
    "multistep": ("gamma", "stepvalue"),
    "poly": ("power", "max_iter"),
    "sigmoid": ("gamma", "stepsize"),
}
_POLICY_FIELDS = ("gamma", "power", "stepsize", "stepvalue")


def make_policy(param: pb.SolverParameter) -> Policy:
    """Return the policy of a solver.  Raises SolverError for one that is unknown or incomplete."""
    name = param.lr_policy
    if name not in _FACTORS:
        raise SolverError(f"solver: lr_policy {name!r} is unknown; use one of {', '.join(_FACTORS)}")
    if not param.HasField("base_lr"):
        raise SolverError("solver: base_lr is missing; set the initial learning rate")
    for field in _REQUIRED.get(name, ()):
        present = param.stepvalue if field == "stepvalue" else param.HasField(field)
        if not present:
            raise SolverError(f"solver: lr_policy {name} needs {field}; set it")
    if param.gamma < 0:
        raise SolverError(f"solver: gamma {param.gamma:g} is negative; set 0 or more")
    if "stepsize" in _REQUIRED.get(name, ()) and param.stepsize < 1:
        raise SolverError(f"solver: stepsize {param.stepsize} must be over 0")
    if list(param.stepvalue) != sorted(param.stepvalue):
        raise SolverError(
            f"solver: stepvalue {', '.join(map(str, param.stepvalue))} must increase; put them in order"
        )
    return Policy(
        name, param.base_lr, param.gamma, param.power, param.stepsize, tuple(param.stepvalue), param.max_iter
    )


def unused_fields(param: pb.SolverParameter) -> tuple[str, ...]:
    """Return the policy fields that are set but that this policy does not read."""
    required = _REQUIRED.get(param.lr_policy, ())
    present = {field.name for field, _ in param.ListFields()}
    return tuple(field for field in _POLICY_FIELDS if field in present and field not in required)
