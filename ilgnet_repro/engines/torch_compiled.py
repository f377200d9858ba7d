"""Compiling elementwise layers and LRN with torch.compile, with a fallback where it is not possible."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..caffe.graph import Value
from ..layers.lrn import CompiledLRN, FastLRN
from ..layers.support.base import Layer
from ..process import environment
from .torch_layers import ChannelAffine, ThenReLU
from .torch_steps import Program, Step

_ELEMENTWISE = {
    *("Eltwise", "AbsVal", "BNLL", "ELU", "Exp", "Log", "Power", "PReLU", "ReLU", "ReLU6", "Sigmoid", "TanH"),
    "Swish",
}
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # torch reads the folder from there only


class StepGroup(nn.Module):
    """Several consecutive steps as one module, its inputs and outputs by position."""

    def __init__(self, steps: Sequence[Step], bottoms: tuple[Value, ...], tops: tuple[Value, ...]) -> None:
        super().__init__()
        self.program, self.bottoms, self.tops = Program(steps, tops), bottoms, tops
        self.parts = nn.ModuleList(step.module for step in steps)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        made = self.program(dict(zip(self.bottoms, values, strict=True)))
        return tuple(made[value] for value in self.tops)


def cache_folder() -> Path:
    """Return the cache of compiled code: $TORCHINDUCTOR_CACHE_DIR, else below $ILGNET_HOME or ~/.cache/ilgnet_repro."""
    stated = os.environ.get(CACHE_VARIABLE)
    home = Path(os.environ.get("ILGNET_HOME") or Path.home() / ".cache" / "ilgnet_repro")
    return Path(stated) if stated else home / "compiled"


def compile_steps(
    steps: Sequence[Step],
    kept: Collection[Value],
    log: Callable[[str], None],
    warm: Callable[[Sequence[Step]], None],
) -> tuple[list[Step], float]:
    """Compile every LRN and every group of consecutive elementwise layers; return the steps and the seconds it took.

    ``warm`` runs them at each size in use, so that no later call waits for the compiler.  Without a C++ compiler,
    or where torch cannot compile them, a warning gives the reason and the steps are returned unchanged.
    ``log`` receives progress.
    """
    grouped = _group(steps, kept)
    count = sum(isinstance(step.module, (StepGroup, FastLRN)) for step in grouped)
    if not count:
        log("nothing in this net gains by being compiled")
        return list(steps), 0.0
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return _uncompiled(steps, f"no C++ compiler {compiler!r} on the PATH")
    compiled = [Step(_compiled(step.module), step.bottoms, step.tops) for step in grouped]
    log(f"compiling {count} groups of elementwise layers and LRN ...")
    start = time.perf_counter()
    try:
        with environment(CACHE_VARIABLE, str(cache_folder())):
            warm(compiled)
    except Exception as error:  # torch.compile raises many kinds of exception
        return _uncompiled(steps, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    seconds = time.perf_counter() - start
    log(f"compiled {count} groups in {seconds:.1f} s; kept in {cache_folder()}")
    return compiled, seconds


def _compiled(module: nn.Module) -> Any:
    if isinstance(module, StepGroup):
        return torch.compile(module)
    return CompiledLRN(module) if isinstance(module, FastLRN) else module


def _uncompiled(steps: Sequence[Step], reason: str) -> tuple[list[Step], float]:
    warnings.warn(f"the net runs uncompiled: {reason}", RuntimeWarning, stacklevel=2)
    return list(steps), 0.0


def _group(steps: Sequence[Step], kept: Collection[Value]) -> list[Step]:
    """Combine consecutive steps that are worth compiling into one step each."""
    result: list[Step] = []
    group: list[Step] = []
    for index, step in enumerate((*steps, None)):
        if step is not None and _is_worth_compiling(step.module):
            group.append(step)
            continue
        if group:
            made = {value for part in group for value in part.tops}
            later = {value for part in steps[index:] for value in part.bottoms}.union(kept)
            bottoms = {value: None for part in group for value in part.bottoms if value not in made}
            tops = tuple(value for value in made if value in later)
            result.append(Step(StepGroup(group, tuple(bottoms), tops), tuple(bottoms), tops))
            group = []
        if step is not None:
            result.append(step)
    return result


def _is_worth_compiling(module: nn.Module) -> bool:
    """Whether compiling makes a module faster; layers that read neighbouring values become slower."""
    if isinstance(module, ThenReLU):
        module = module.layer
    return isinstance(module, ChannelAffine) or (
        isinstance(module, Layer) and module.node.type in _ELEMENTWISE
    )
