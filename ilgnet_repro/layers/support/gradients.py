"""Gradients that a fork's backward pass states, where they are not the derivatives of its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# From the gradient of a top to those of the bottoms; None where a bottom has none.
Rule = Callable[[Tensor], Sequence[Tensor | None]]


class _Stated(torch.autograd.Function):
    """Returns the values; the gradients of the bottoms are what the rule gives."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rule: Rule, *bottoms: Tensor) -> Tensor:
        ctx.rule = rule
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.rule(gradients[0]))


def with_gradient(values: Tensor, rule: Rule, *bottoms: Tensor) -> Tensor:
    """Return ``values``, computed from ``bottoms``, whose gradients are those that ``rule`` returns."""
    if torch.is_grad_enabled() and any(bottom.requires_grad for bottom in bottoms):
        apply: Callable[..., Tensor] = _Stated.apply
        return apply(values.detach(), rule, *bottoms)
    return values
