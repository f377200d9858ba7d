"""SIGINT and SIGHUP as in Caffe: stop, or take a snapshot, at the end of an iteration."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import SolverError

EFFECTS = ("stop", "snapshot", "none")
_SIGNALS = {"sigint_effect": "SIGINT", "sighup_effect": "SIGHUP"}


class Requests:
    """Requests of signals that have not been acted on yet."""

    def __init__(self) -> None:
        self.stop = False
        self.snapshot = False

    def take(self) -> tuple[bool, bool]:
        """Return (stop, snapshot), and clear the snapshot."""
        taken = self.stop, self.snapshot
        self.snapshot = False
        return taken


@contextmanager
def catch_signals(
    requests: Requests, sigint_effect: str = "stop", sighup_effect: str = "snapshot"
) -> Iterator[Requests]:
    """Record signals in ``requests`` within the block; a second SIGINT to stop interrupts at once."""
    effects = {"sigint_effect": sigint_effect, "sighup_effect": sighup_effect}
    for flag, effect in effects.items():
        if effect not in EFFECTS:
            raise SolverError(f"{flag} {effect!r} is unknown; use {', '.join(EFFECTS)}")
    by_number = {
        getattr(signal, _SIGNALS[flag]): effect
        for flag, effect in effects.items()
        if hasattr(signal, _SIGNALS[flag])
    }

    def handle(number: int, frame: FrameType | None) -> None:
        effect = by_number[signal.Signals(number)]
        if effect == "stop":
            if requests.stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            requests.stop = True
        elif effect == "snapshot":
            requests.snapshot = True

    before = {number: signal.signal(number, handle) for number in by_number}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
