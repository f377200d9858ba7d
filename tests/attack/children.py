"""Children at work: the memory and processor time of one, and whether it hangs or is not given a processor."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

SECONDS = 10.0  # of the processor
WALL = 60.0  # for a child that waits for something
STARVED = 600.0  # for one that is ready to run: other processes may have the machine


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def processor_seconds(process: int) -> float:
    """Return the time that a process and the children it has waited for took of a processor."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def hangs(child: int, waited: float, used: float) -> bool:
    """Return whether a child that gave no sign of life for ``waited`` seconds is beyond hope.

    It is if it took too much of a processor, over ``used`` seconds, or if it waits for what does not come.  One
    that is ready to run and gets no processor is given ten times as long: a loaded machine is no fault of the child.
    """
    if waited <= WALL:
        return False
    return waited > STARVED or processor_seconds(child) - used > SECONDS or not _is_ready(child)


def _is_ready(child: int) -> bool:
    """Return whether a thread of the child, or of its descendants, runs, may run or waits for a disk."""
    for _ in range(20):
        for process in _family(child):
            for status in Path(f"/proc/{process}/task").glob("*/stat"):
                try:
                    if status.read_text().rpartition(")")[2].split()[0] in "RD":
                        return True
                except OSError:  # the thread has ended: the child is at work
                    return True
        time.sleep(0.1)
    return False


def _family(child: int) -> list[int]:
    found = [child]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def place_in(text: str) -> str:
    """Return the innermost line of the package in a stack that faulthandler printed, or "?"."""
    frames = re.findall(r'File "[^"]*?/ilgnet_repro/([^"]+)", line (\d+)', text)
    return ":".join(frames[0]) if frames else "?"
