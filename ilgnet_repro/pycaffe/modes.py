"""pycaffe's functions of the module: mode, device, random seed, log, types of layers, and what is of one process only."""

from __future__ import annotations

import sys

import torch

from ..caffe_tool.log import glog
from ..errors import IlgnetError
from ..layers.support.registry import layer_types


class _State:
    """What the functions set, for the process."""

    def __init__(self) -> None:
        self.is_seeded = False
        self.said_cpu = False
        self.solvers, self.rank, self.multiprocess = 1, 0, False


_state = _State()


def log(message: str) -> None:
    """Write a line to stderr, as Caffe's log does."""
    print(glog("_caffe.cpp:91", message), file=sys.stderr)


def init_log(level: int = 0, stderr: bool = False) -> None:
    """Accept a level and a target: the log goes to stderr, with what solvers do and what a net ignores."""


def set_mode_cpu() -> None:
    """Compute on the CPU, as is always done here."""


def set_mode_gpu() -> None:
    """Say, once, that nets of this interface compute on the CPU; the results are the same."""
    if not _state.said_cpu:
        _state.said_cpu = True
        log("set_mode_gpu: this interface computes on the CPU; `ilgnet caffe train` and test use a GPU")


def set_device(device_id: int) -> None:
    """Accept the number of a GPU (see `set_mode_gpu`)."""
    if not isinstance(device_id, int) or device_id < 0:
        raise IlgnetError(f"set_device({device_id!r}): give the number of a GPU, 0 or more")


def set_random_seed(seed: int) -> None:
    """Make fillers, dropout and shuffling repeat their draws; they differ from Caffe's, which its generator determines."""
    torch.manual_seed(seed)
    _state.is_seeded = True


def next_seed() -> int | None:
    """Return the seed of a new net's fillers; None, before `set_random_seed`, draws from the system."""
    return int(torch.randint(2**31, (1,))) if _state.is_seeded else None


def layer_type_list() -> list[str]:
    """Return the names of all layer types, in alphabetical order."""
    return list(layer_types())


def solver_count() -> int:
    """Return what `set_solver_count` set."""
    return _state.solvers


def set_solver_count(count: int) -> None:
    """State how many solvers work together; data layers of one process are not divided (use `ilgnet train`)."""
    _state.solvers = count


def solver_rank() -> int:
    """Return what `set_solver_rank` set."""
    return _state.rank


def set_solver_rank(rank: int) -> None:
    """State which of the solvers this one is."""
    _state.rank = rank


def set_multiprocess(is_multiprocess: bool) -> None:
    """State whether the solvers are processes."""
    _state.multiprocess = is_multiprocess


def has_nccl() -> bool:
    """Return False: several GPUs train together by `ilgnet train`, not through this interface."""
    return False
