"""Products in float32 on CUDA devices: cuDNN's default for convolutions is TF32, with 10 bits after the point."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def float32_products() -> Iterator[None]:
    """Let CUDA multiply in float32 within the block; the caller's settings are restored after it."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    # The names of torch 2.9 and later: reading the older ones raises where a user has set these.
    is_new = hasattr(cudnn, "conv") and hasattr(matmul, "fp32_precision")
    name, exact = ("fp32_precision", "ieee") if is_new else ("allow_tf32", False)
    parts: tuple[Any, ...] = (matmul, cudnn.conv, cudnn.rnn) if is_new else (matmul, cudnn)
    before = [getattr(part, name) for part in parts]
    try:
        for part in parts:
            setattr(part, name, exact)
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            setattr(part, name, value)
