"""One run in many processes, started by torchrun: each takes its rows of every batch.

The batch of the prototxt is the batch of all processes together (Caffe's `-gpu 0,1` multiplies it
instead), so the losses are those of one process whatever their number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SolverError


@dataclass(frozen=True)
class Group:
    """This process among those of the run; alone, every method is free of cost."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process tests aloud, logs and writes snapshots."""
        return self.rank == 0

    def wrap(self, module: nn.Module, device: torch.device, *, some_unused: bool = False) -> nn.Module:
        """Have ``backward`` average the gradients over all processes.

        ``some_unused`` tells that it may not reach every parameter, which costs torch a search each pass.
        """
        if self.world == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        from torch.nn.parallel import DistributedDataParallel

        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, find_unused_parameters=some_unused)

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Return a context whose backward passes keep their gradients to themselves."""
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

    def same(self, value: Any) -> Any:
        """Return the first process's value (a number, a string or None)."""
        if self.world == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, 0)
        return held[0]


@contextmanager
def joined(device: str | None = None) -> Iterator[Group]:
    """Join the run that torchrun's environment describes; without one this process is alone.

    NCCL joins GPUs, gloo joins CPUs.  Raises SolverError if the environment is incomplete.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    try:
        rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError) as error:
        raise SolverError(
            f"the environment of torchrun is incomplete ({error}); start by torchrun"
        ) from error
    gpu = device != "cpu" and torch.cuda.is_available()
    store, _, _ = next(torch.distributed.rendezvous("env://", rank, world))
    # torchrun keeps its store when it restarts the processes: those of the last attempt left addresses there.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = torch.distributed.PrefixStore(f"attempt_{attempt}", store)
    torch.distributed.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=world)
    try:
        if gpu:
            torch.cuda.set_device(local)
        yield Group(rank, world, local)
    finally:
        torch.distributed.destroy_process_group()


def choose_device(stated: str | None, solver_gpu: int | None, group: Group) -> torch.device:
    """Return the device stated, else the GPU that the solver asks for, else the CPU.

    ``solver_gpu`` is None where the solver says CPU; where there is no GPU at all its wish cannot be met.
    """
    found = torch.cuda.device_count()
    if stated:
        try:
            device = torch.device(stated)
        except RuntimeError as error:
            raise SolverError(f"device {stated!r} is unknown; use cpu or cuda:N") from error
        if device.type == "cuda" and (device.index or 0) >= found:
            raise SolverError(f"device {stated}: there are {found} GPUs here; use cpu or another number")
        return device
    if solver_gpu is None or not found:
        return torch.device("cpu")
    number = group.local_rank if group.world > 1 else solver_gpu
    if number >= found:
        raise SolverError(f"solver: device_id {number}: there are {found} GPUs here; give another")
    return torch.device("cuda", number)


def device_line(device: torch.device, solver_gpu: int | None) -> str:
    """Return what Caffe logs about the device, and why where it is not what the solver asks for."""
    if device.type == "cuda":
        return f"Using GPUs {device.index or 0}"
    return "Use CPU." + ("" if solver_gpu is None else " (solver_mode is GPU)")
