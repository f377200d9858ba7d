"""The threads and the device of a fast net, as the caller, the environment or torch state them."""

from __future__ import annotations

import os
import re
from typing import Any

import torch

from ..errors import IlgnetError

THREADS_VARIABLE = "ILGNET_THREADS"
MOST_THREADS = 1024


def thread_count(threads: int | None) -> int:
    """Return the number of threads that the caller, the environment, or torch states."""
    stated: Any = threads
    where, option = f"threads={threads!r}", "threads"
    if threads is None:
        text = os.environ.get(THREADS_VARIABLE, "")
        if not text:
            return torch.get_num_threads()
        where, option = f"${THREADS_VARIABLE} is {text!r}", ""
        stated = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    if isinstance(stated, bool) or not isinstance(stated, int) or not 1 <= stated <= MOST_THREADS:
        raise IlgnetError(f"{where}: give a number from 1 to {MOST_THREADS}", option=option)
    return stated


def checked_device(device: Any, precision: str, compile: bool) -> str:
    """Return the name of a device that torch finds.  Raises IlgnetError for any other, and for CPU-only settings."""
    if device == "cpu":
        return "cpu"
    where = f"device={device!r}"
    if not isinstance(device, str) or not re.fullmatch(r"cuda(:\d{1,3})?", device, re.ASCII):
        raise IlgnetError(f"{where}: give cpu, cuda or cuda:N", option="device")
    if not torch.cuda.is_available():
        reason = (
            "finds no CUDA device"
            if torch.backends.cuda.is_built()
            else f"is built without CUDA ({torch.__version__})"
        )
        raise IlgnetError(f"{where}: torch {reason}; use device='cpu'", option="device")
    count, number = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
    if number >= count:
        raise IlgnetError(f"{where}: torch finds {count}, numbered from 0", option="device")
    if precision == "int8":
        raise IlgnetError(
            f"{where}: computes in float32, float16 or bfloat16; give one of them, or leave out device",
            option="precision",
        )
    if compile:
        raise IlgnetError(f"{where}: computes uncompiled; leave out compile=True", option="device")
    return f"cuda:{number}"
