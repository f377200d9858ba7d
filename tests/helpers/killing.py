"""A program killed without warning in the middle of its work, however busy the machine is."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

TRIES = 8
PATIENCE = 300.0  # seconds after which a program without progress fails


def kill_midway(
    command: Sequence[Any], is_midway: Callable[[], bool], start_over: Callable[[], None], **options: Any
) -> None:
    """Run ``command`` and kill it once ``is_midway``.

    On a busy machine it may end before this process gets to look again; then ``start_over`` puts everything
    back as it was, and it is run again.
    """
    for _ in range(TRIES):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
        try:
            wait_until(lambda: process.poll() is not None or is_midway())  # noqa: B023 — called at once
        finally:
            process.kill()
            code = process.wait()
        if code == -signal.SIGKILL:
            return
        assert code == 0, f"it failed by itself: exit code {code}"
        start_over()
    raise AssertionError(f"it ended {TRIES} times before it could be killed")


def wait_until(is_so: Callable[[], bool]) -> None:
    """Look every few milliseconds; AssertionError after five minutes."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)
