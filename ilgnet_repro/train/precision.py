"""The numbers a run computes in: float32 as Caffe, Caffe's very sums, float64, bfloat16 or float16."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import precisions
from ..errors import SolverError
from .caffe_sums import CaffeSums

# Small float16 gradients vanish, so the loss is scaled up and the gradients down again.
_FIRST_SCALE = 2.0**16
_GROW_AFTER = 2000


class Precision:
    """How a run computes.

    Mixed precision makes the matrix products of a pass in bfloat16 or float16 and keeps weights and
    updates in float32.  In float16 an update whose gradients overflowed is left out.  "caffe" is float32
    with the sums in the order of Caffe's CPU code, slower, for runs that must go Caffe's way to the last
    near-tie.  float64 leaves no rounding of our own.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name not in precisions.TRAINING:
            raise SolverError(f"precision {name!r} is unknown; use {', '.join(precisions.TRAINING)}")
        if name == "float16" and device.type != "cuda":
            raise SolverError("precision float16 needs a GPU; use bfloat16, or float32")
        if name == "caffe" and device.type != "cpu":
            raise SolverError(
                f"precision caffe is that of Caffe's CPU code; leave out device={device.type!r}",
                option="device",
            )
        self.name, self.device = name, device
        self.dtype = torch.float64 if name == "float64" else torch.float32
        self._scale = _FIRST_SCALE if name == "float16" else 1.0
        self._good = 0

    def context(self) -> AbstractContextManager[Any]:
        """Return the context in which a forward pass runs."""
        if self.name in ("float32", "float64"):
            return nullcontext()
        if self.name == "caffe":
            return CaffeSums()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.name))

    def scaled(self, loss: Tensor) -> Tensor:
        """Return what to call ``backward`` on."""
        return loss * self._scale if self._scale != 1 else loss

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> bool:
        """Bring the gradients to their size; False where one is not finite, so there is no update."""
        if self.name != "float16":
            return True
        grads = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(grads, 1 / self._scale)
        finite = bool(torch.isfinite(torch.stack(torch._foreach_norm(grads))).all())
        if not finite:
            self._scale, self._good = max(self._scale / 2, 1.0), 0
        else:
            self._good += 1
            if self._good == _GROW_AFTER:
                self._scale, self._good = self._scale * 2, 0
        return finite
