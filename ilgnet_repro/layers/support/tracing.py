"""Where values decide what is computed: torch.jit.trace, which would keep what they decided for its example, is refused."""

from __future__ import annotations

import torch


def refuse_tracing() -> None:
    """Refuse torch.jit.trace: it would keep what the values of its example decided."""
    if torch.jit.is_tracing():
        raise RuntimeError("torch.jit.trace cannot record what is decided by values; run the module itself")
