"""pycaffe's names for training with several GPUs, and its timer."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from .failures import Failure

_REMEDY = "train with several processes by `ilgnet train` under torchrun (docs/training.md)"


class NCCL:
    """Refused: one process trains here."""

    def __init__(self, solver: Any, uid: Any) -> None:
        raise Failure(f"NCCL is not supported by this interface; {_REMEDY}")

    @staticmethod
    def new_uid() -> bytes:
        """Refuse."""
        raise Failure(f"NCCL is not supported by this interface; {_REMEDY}")


class Timer:
    """Milliseconds between ``start()`` and ``stop()``."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._spent = 0.0

    def start(self) -> None:
        """Start to count."""
        self._started = perf_counter()

    def stop(self) -> None:
        """Stop to count."""
        if self._started is not None:
            self._spent = 1000 * (perf_counter() - self._started)
            self._started = None

    @property
    def ms(self) -> float:
        """The milliseconds counted; reading it stops the timer."""
        self.stop()
        return self._spent
