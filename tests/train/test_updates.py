"""Update rules against their formulas in float64, one value at a time; the traces compare them with Caffe."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from train_cases import PIPELINE, SOLVERS

from ilgnet_repro.train.solver import TYPES, read_settings
from ilgnet_repro.train.updates import Learnable, Updater

STEPS, RATE, LIMIT = 4, 0.05, 0.3


def settings(**changes):
    base = read_settings(SOLVERS / "sgd_fixed.prototxt", PIPELINE)
    fields = {
        "momentum": 0.9,
        "momentum2": 0.99,
        "rms_decay": 0.8,
        "delta": 1e-3,
        "weight_decay": 0.1,
    } | changes
    return replace(base, **fields)


def by_hand(solver, values, grads, lr_mult, decay_mult, scale, iteration, state):
    """One step of one parameter, value by value."""
    for at, (w, g) in enumerate(zip(list(values), grads, strict=True)):
        g = g * scale / solver.iter_size
        decay = solver.weight_decay * decay_mult
        g += decay * (w if solver.regularization == "L2" else np.sign(w))
        rate, m, h = RATE * lr_mult, solver.momentum, state[at]
        if solver.type == "SGD":
            h[0] = m * h[0] + rate * g
            step = h[0]
        elif solver.type == "Nesterov":
            old, h[0] = h[0], m * h[0] + rate * g
            step = (1 + m) * h[0] - m * old
        elif solver.type == "AdaGrad":
            h[0] += g * g
            step = rate * g / (math.sqrt(h[0]) + solver.delta)
        elif solver.type == "RMSProp":
            h[0] = solver.rms_decay * h[0] + (1 - solver.rms_decay) * g * g
            step = rate * g / (math.sqrt(h[0]) + solver.delta)
        elif solver.type == "AdaDelta":
            h[0] = m * h[0] + (1 - m) * g * g
            step = g * math.sqrt((h[1] + solver.delta) / (h[0] + solver.delta))
            h[1] = m * h[1] + (1 - m) * step * step
            step *= rate
        else:
            h[0] = m * h[0] + (1 - m) * g
            h[1] = solver.momentum2 * h[1] + (1 - solver.momentum2) * g * g
            t = iteration + 1
            step = (
                rate
                * math.sqrt(1 - solver.momentum2**t)
                / (1 - m**t)
                * h[0]
                / (math.sqrt(h[1]) + solver.delta)
            )
        values[at] = w - step


@pytest.mark.parametrize("regularization", ["L1", "L2"])
@pytest.mark.parametrize("type_", TYPES)
def test_rules(type_, regularization):
    """Clipping, iter_size, both multipliers and a parameter without a gradient, all at once."""
    solver = settings(type=type_, regularization=regularization, clip_gradients=LIMIT, iter_size=3)
    rng = np.random.default_rng(11)
    multipliers = [(1.0, 1.0), (2.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    values = [rng.normal(size=size) for size in (5, 2, 3, 4)]
    learnables = [
        Learnable(str(index), torch.nn.Parameter(torch.tensor(value)), *both)
        for index, (value, both) in enumerate(zip(values, multipliers, strict=True))
    ]
    updater = Updater(solver, learnables)
    states = [[[0.0, 0.0] for _ in value] for value in values]
    for iteration in range(STEPS):
        grads = [rng.normal(size=value.shape) * (0.01 if iteration == 2 else 1) for value in values]
        grads[2][:] = 0
        norm = math.sqrt(sum((g**2).sum() for g in grads))
        scale = min(1.0, LIMIT / norm)
        for index, (one, grad) in enumerate(zip(learnables, grads, strict=True)):
            one.tensor.grad = None if index == 2 else torch.tensor(grad)
        clipping = updater.update(RATE, iteration)
        assert (clipping is None) == (norm <= LIMIT)
        if clipping:
            assert (clipping.norm, clipping.factor) == (pytest.approx(norm), pytest.approx(scale))
        for value, grad, both, state in zip(values, grads, multipliers, states, strict=True):
            by_hand(solver, value, grad, *both, scale, iteration, state)
    for one, value in zip(learnables, values, strict=True):
        np.testing.assert_allclose(one.tensor.detach().numpy(), value, rtol=1e-10)
    copies = len(updater.history) // len(values)
    for copy in range(copies):
        for index, state in enumerate(states):
            held = updater.history[copy * len(values) + index].numpy()
            np.testing.assert_allclose(held, [h[copy] for h in state], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("type_", TYPES)
def test_the_last_update_is_kept_for_snapshot_diff(type_):
    """What is subtracted from each parameter, as Caffe leaves it in the diffs; nothing else changes."""
    rng = np.random.default_rng(12)
    values = [rng.normal(size=size) for size in (3, 4)]
    kept, plain = (
        Updater(settings(type=type_, snapshot_diff=keeps), [
            Learnable(str(index), torch.nn.Parameter(torch.tensor(value)), lr_mult)
            for index, (value, lr_mult) in enumerate(zip(values, (2.0, 0.0), strict=True))
        ])
        for keeps in (True, False)
    )  # fmt: skip
    assert plain.updates is None
    for iteration in range(STEPS):
        before = [one.tensor.detach().clone() for one in kept.learnables]
        grads = [torch.tensor(rng.normal(size=value.shape)) for value in values]
        for updater in (kept, plain):
            for one, grad in zip(updater.learnables, grads, strict=True):
                one.tensor.grad = grad.clone()
            updater.update(RATE, iteration)
        for update, old, one, other in zip(
            kept.updates, before, kept.learnables, plain.learnables, strict=True
        ):
            torch.testing.assert_close(update, old - one.tensor, rtol=1e-10, atol=1e-14)
            torch.testing.assert_close(one.tensor, other.tensor, rtol=1e-12, atol=1e-14)
        assert not kept.updates[1].any() and not torch.signbit(kept.updates[1]).any()
    kept.clear_updates()
    assert not any(update.any() for update in kept.updates)


@pytest.mark.parametrize("rate", [math.inf, 1e38, 3e38])
@pytest.mark.parametrize("type_", TYPES)
def test_a_rate_beyond_float32_diverges_as_in_caffe(type_, rate):
    """Rate times lr_mult is infinite, and infinity times 0 is NaN; torch would refuse the number."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    updater = Updater(settings(type=type_, momentum=0.5, weight_decay=0.0), [Learnable("x", parameter, 10.0)])
    parameter.grad = torch.tensor([1.0, 0.0])
    updater.update(rate, 0)
    assert parameter.detach()[0] == -math.inf and math.isnan(parameter.detach()[1])
