"""The losses of the aesthetic models against slow formulas, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilgnet_repro.aesthetics.losses import attributes_loss, decomposition_loss, emd_loss, score_loss
from ilgnet_repro.errors import DataError


@pytest.mark.parametrize("r", [1, 2])
def test_emd_is_the_mean_of_each_images_root(r) -> None:
    random = np.random.default_rng(4)
    p, q = random.dirichlet(np.ones(10), 7), random.dirichlet(np.ones(10), 7)
    wanted = np.mean([
        (sum(abs(p[n, : k + 1].sum() - q[n, : k + 1].sum()) ** r for k in range(10)) / 10) ** (1 / r) for n in range(7)
    ])  # fmt: skip
    assert emd_loss(torch.tensor(p), torch.tensor(q), r).item() == pytest.approx(wanted, rel=1e-12)


def test_emd_of_equal_distributions_has_a_gradient() -> None:
    p = torch.full((2, 10), 0.1, requires_grad=True)
    emd_loss(p, torch.full((2, 10), 0.1)).backward()
    assert torch.equal(p.grad, torch.zeros(2, 10))


def test_attributes_that_a_row_does_not_state_do_not_count() -> None:
    nan = float("nan")
    predicted = {"score": torch.tensor([[0.5], [0.2], [0.9]]), "Light": torch.tensor([[1.0], [0.0], [-1.0]])}
    target = {"score": torch.tensor([[0.1], [nan], [0.3]]), "Light": torch.tensor([[nan], [0.5], [nan]])}
    wanted = ((0.4**2 + 0.6**2) / 2) + 3 * 0.25
    assert attributes_loss(predicted, target, {"Light": 3}).item() == pytest.approx(wanted, rel=1e-6)


def decomposition(**changed) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(2)
    shapes = {
        "logits": (3, 4),
        "decoded": (3, 5),
        "discriminative": (3, 2),
        "shared": (3, 2),
        "x": (3, 5),
        "c": (3, 2),
        "g": (3, 2),
    }
    values = {
        name: torch.tensor(random.standard_normal(changed.get(name, shape))) for name, shape in shapes.items()
    }
    x, c, g = (values.pop(name) for name in ("x", "c", "g"))
    found = decomposition_loss(values, x, torch.tensor([3, 0, 1]), c, g)
    return {**found, **values, "x": x, "c": c, "g": g}


def test_the_terms_of_the_decomposition() -> None:
    found = {name: value.numpy() for name, value in decomposition().items()}
    shares = np.exp(found["logits"]) / np.exp(found["logits"]).sum(1, keepdims=True)
    wanted = {
        "classification": -np.mean([np.log(shares[row, label]) for row, label in enumerate((3, 0, 1))]),
        "reconstruction": 0.01 * np.mean((found["decoded"] - found["x"]) ** 2),
        "class_centres": 0.1
        * sum(np.mean((found["discriminative"][row] - found["c"][row]) ** 2) for row in range(3)),
        "group_centres": 0.1
        * sum(np.mean((found["shared"][row] - found["g"][row]) ** 2) for row in range(3)),
    }
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-12), name


REFUSED = {
    "emd, one axis": (
        lambda: emd_loss(torch.ones(10), torch.ones(10)),
        "emd_loss: distributions have shape [10]; give N x B",
    ),
    "emd, r": (lambda: emd_loss(torch.ones(2, 10), torch.ones(2, 10), 0), "emd_loss: r=0; give 1 or more"),
    "decomposition": (
        lambda: decomposition(shared=(3, 4)),
        "decomposition_loss: shared: predictions have shape [3, 4], targets [3, 2]; they must be equal",
    ),
    "emd": (
        lambda: emd_loss(torch.ones(2, 10), torch.ones(2, 9)),
        "emd_loss: predictions have shape [2, 10], targets [2, 9]; they must be equal",
    ),
    "score": (
        lambda: score_loss(torch.ones(2, 1), torch.ones(2)),
        "score_loss: predictions have shape [2, 1], targets [2]; they must be equal",
    ),
    "no target": (
        lambda: attributes_loss({"a": torch.ones(2, 1)}, {"b": torch.ones(2, 1)}),
        "attributes_loss: no target for 'a'; it has b",
    ),
    "nothing stated": (
        lambda: attributes_loss({"a": torch.ones(2, 1)}, {"a": torch.full((2, 1), float("nan"))}),
        "attributes_loss: no row states a target",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(call, message) -> None:
    with pytest.raises(DataError) as caught:
        call()
    assert str(caught.value) == message
