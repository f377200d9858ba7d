"""Caffe's `device_query`: what is known of the GPUs that torch can use."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import IlgnetError
from .log import Log


def query_devices(gpu: str, log: Log) -> None:
    """Log the properties of the GPUs that ``gpu`` names, as in Caffe: numbers with commas, or ``all``.

    Without a name none is asked for, and only what torch computes on is logged.
    """
    count = torch.cuda.device_count()
    numbers = list(range(count)) if gpu == "all" else [_number(one, count) for one in gpu.split(",") if one]
    log("caffe.cpp:138", f"Querying GPUs {','.join(map(str, numbers))}")
    for number in numbers:
        _log_gpu(number, log)
    if not numbers:
        found = f"{count} GPUs; -gpu all queries them" if count else "no GPU that torch can use"
        log("caffe.cpp:138", f"CPU with {torch.get_num_threads()} threads, {found}")


def _number(text: str, count: int) -> int:
    known: Sequence[str] = [str(number) for number in range(count)]
    if text.strip() not in known:
        there = f"are GPUs 0 to {count - 1}" if count else "is no GPU that torch can use"
        raise IlgnetError(f"device_query: -gpu {text}: there {there}; give a number of a GPU, or all")
    return int(text)


def _log_gpu(number: int, log: Log) -> None:
    properties = torch.cuda.get_device_properties(number)
    rows = {
        "Device id": number,
        "Major revision number": properties.major,
        "Minor revision number": properties.minor,
        "Name": properties.name,
        "Total global memory": properties.total_memory,
        "Number of multiprocessors": properties.multi_processor_count,
    }
    for name, value in rows.items():
        log("common.cpp:168", f"{name + ':':<31}{value}")
