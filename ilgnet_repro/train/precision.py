"""The precision of a run: float32 as Caffe, Caffe's own order of summation, float64, bfloat16 or float16."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import precisions
from ..errors import SolverError
from .caffe_sums import CaffeSums

# Small float16 gradients underflow, so the loss is scaled up and the gradients down again.
_INITIAL_SCALE = 2.0**16
_GROWTH_INTERVAL = 2000


class Precision:
    """Precision of the passes and loss scaling.

    Mixed precision computes the matrix products of a pass in bfloat16 or float16 and keeps weights and
    updates in float32.  In float16 an update whose gradients overflowed is skipped.  "caffe" is float32
    with sums in the order of Caffe's CPU code, slower, for runs that must follow Caffe's through near-ties.
    float64 makes rounding negligible.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name not in precisions.TRAINING:
            raise SolverError(f"precision {name!r} is unknown; use {', '.join(precisions.TRAINING)}")
        if name == "float16" and device.type != "cuda":
            raise SolverError("precision float16 needs a GPU; use bfloat16, or float32")
        if name == "caffe" and device.type != "cpu":
            raise SolverError(
                f"precision caffe is that of Caffe's CPU code; omit device={device.type!r}",
                option="device",
            )
        self.name, self.device = name, device
        self.dtype = torch.float64 if name == "float64" else torch.float32
        self._scale = _INITIAL_SCALE if name == "float16" else 1.0
        self._finite_steps = 0

    def context(self) -> AbstractContextManager[Any]:
        """Return the context in which a forward pass runs."""
        if self.name in ("float32", "float64"):
            return nullcontext()
        if self.name == "caffe":
            return CaffeSums()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.name))

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the scaled loss, on which to call ``backward``."""
        return loss * self._scale if self._scale != 1 else loss

    @property
    def scale(self) -> float:
        """The factor of the loss, and so of its gradients."""
        return self._scale

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> bool:
        """Unscale the gradients; return False if one is not finite, so that the update is skipped."""
        if self.name != "float16":
            return True
        grads = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(grads, 1 / self._scale)
        finite = bool(torch.isfinite(torch.stack(torch._foreach_norm(grads))).all())
        if not finite:
            self._scale, self._finite_steps = max(self._scale / 2, 1.0), 0
        else:
            self._finite_steps += 1
            if self._finite_steps == _GROWTH_INTERVAL:
                self._scale, self._finite_steps = self._scale * 2, 0
        return finite
