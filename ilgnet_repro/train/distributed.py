"""Data-parallel training in several processes, started by torchrun: each takes its rows of every batch.

The batch size of the prototxt is that of all processes together (Caffe's `-gpu 0,1` multiplies it
instead), so the losses do not depend on the number of processes.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SolverError


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the run; with one process no method communicates."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process reports tests, logs and writes snapshots."""
        return self.rank == 0

    def wrap(self, module: nn.Module, device: torch.device, *, some_unused: bool = False) -> nn.Module:
        """Wrap the module so that ``backward`` averages the gradients over all processes.

        ``some_unused``: ``backward`` may not reach every parameter; torch then searches the graph in each pass.
        """
        if self.world == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        from torch.nn.parallel import DistributedDataParallel

        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, find_unused_parameters=some_unused)

    def defer_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Return a context whose backward passes do not synchronize gradients."""
        no_sync = getattr(module, "no_sync", None)
        return no_sync() if no_sync and self.world > 1 else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors with those of the first process."""
        if self.world > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), 0)

    def broadcast_object(self, value: Any) -> Any:
        """Return the first process's value (a number, a string or None)."""
        if self.world == 1:
            return value
        objects = [value]
        torch.distributed.broadcast_object_list(objects, 0)
        return objects[0]


@contextmanager
def process_group(device: str | None = None) -> Iterator[ProcessGroup]:
    """Join the process group that torchrun's environment describes, or a group of one process without it.

    The backend is NCCL for GPUs and gloo for CPUs.  Raises SolverError if the environment is incomplete.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup()
        return
    try:
        rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError) as error:
        raise SolverError(
            f"the environment of torchrun is incomplete ({error}); start with torchrun"
        ) from error
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    gpu = device != "cpu" and torch.cuda.is_available()
    store, _, _ = next(rendezvous("env://", rank, world))
    # torchrun keeps its store across restarts; it still has the addresses of the previous attempt.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt_{attempt}", store)
    torch.distributed.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=world)
    try:
        if gpu:
            torch.cuda.set_device(local)
        yield ProcessGroup(rank, world, local)
        # The first process reports while the others have ended: none closes its connections before all are done.
        torch.distributed.barrier()
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise SolverError("another process of this run has ended; its own message says why") from error
        raise
    finally:
        # What still refers to the group, as gradient hooks in cycles do, would keep its threads past the interpreter.
        gc.collect()
        torch.distributed.destroy_process_group()


def choose_device(stated: str | None, solver_gpu: int | None, group: ProcessGroup) -> torch.device:
    """Return the device stated, else the GPU that the solver asks for, else the CPU.

    ``solver_gpu`` is None if the solver asks for the CPU; without any GPU the solver's choice is ignored.
    """
    if stated:
        return named_device(stated)
    found = torch.cuda.device_count()
    if solver_gpu is None or not found:
        return torch.device("cpu")
    number = group.local_rank if group.world > 1 else solver_gpu
    if number >= found:
        raise SolverError(f"solver: device_id {number}: torch finds {found}, numbered from 0; give another")
    return torch.device("cuda", number)


def named_device(stated: str) -> torch.device:
    """Return the device cpu, cuda or cuda:N.  Raises SolverError for any other, and for a GPU that torch does not find."""
    stated = str(stated)  # or a torch.device
    where = f"device={stated!r}"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", stated, re.ASCII):
        raise SolverError(f"{where}: give cpu, cuda or cuda:N", option="device")
    device, found = torch.device(stated), torch.cuda.device_count()
    if device.type == "cuda" and not found:
        raise SolverError(f"{where}: torch finds no CUDA device; use device='cpu'", option="device")
    if device.type == "cuda" and (device.index or 0) >= found:
        raise SolverError(f"{where}: torch finds {found}, numbered from 0; give another", option="device")
    return device


def device_line(device: torch.device, solver_gpu: int | None) -> str:
    """Return Caffe's log line about the device; it mentions a GPU that the solver asked for in vain."""
    if device.type == "cuda":
        return f"Using GPUs {device.index or 0}"
    return "Use CPU." + ("" if solver_gpu is None else " (solver_mode is GPU)")
