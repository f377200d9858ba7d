"""Elementwise layers and LRN, compiled by torch.compile; where that cannot be done, run as they are."""

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
from ..layers.support.base import Layer
from ..process import environment
from .fast_layers import LRN, CompiledLRN, Conv, Dense
from .fast_steps import Step, run_steps

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # torch reads the folder from there only


class Run(nn.Module):
    """Several steps in one call, their values by position."""

    def __init__(self, steps: Sequence[Step], bottoms: tuple[Value, ...], tops: tuple[Value, ...]) -> None:
        super().__init__()
        self.steps, self.bottoms, self.tops = tuple(steps), bottoms, tops
        self.parts = nn.ModuleList(step.module for step in steps)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        made = run_steps(self.steps, dict(zip(self.bottoms, values, strict=True)), self.tops)
        return tuple(made[value] for value in self.tops)


def cache_folder() -> Path:
    """Where compiled code is kept: $TORCHINDUCTOR_CACHE_DIR, else below $ILGNET_HOME or ~/.cache/ilgnet_repro."""
    stated = os.environ.get(CACHE_VARIABLE)
    home = Path(os.environ.get("ILGNET_HOME") or Path.home() / ".cache" / "ilgnet_repro")
    return Path(stated) if stated else home / "compiled"


def compile_runs(
    steps: Sequence[Step],
    kept: Collection[Value],
    log: Callable[[str], None],
    warm: Callable[[Sequence[Step]], None],
) -> tuple[list[Step], float]:
    """Return the steps with every LRN and stretch of elementwise layers compiled, and the seconds it took.

    ``warm`` calls them at each size in use, so that no later call waits.  Without a C++ compiler, or where
    torch cannot compile them, a warning says so and the steps come back as they are.
    """
    joined = _joined(steps, kept)
    count = sum(isinstance(step.module, (Run, LRN)) for step in joined)
    if not count:
        log("nothing in this net gains by being compiled")
        return list(steps), 0.0
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return _as_they_are(steps, f"no C++ compiler {compiler!r} on the PATH")
    runs = [Step(_compiled(step.module), step.bottoms, step.tops) for step in joined]
    log(f"compiling {count} groups of elementwise layers and LRN ...")
    start = time.perf_counter()
    try:
        with environment(CACHE_VARIABLE, str(cache_folder())):
            warm(runs)
    except Exception as error:  # torch.compile fails in as many ways as it has parts
        return _as_they_are(steps, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    seconds = time.perf_counter() - start
    log(f"compiled {count} groups in {seconds:.1f} s; kept in {cache_folder()}")
    return runs, seconds


def _compiled(module: nn.Module) -> Any:
    if isinstance(module, Run):
        return torch.compile(module)
    return CompiledLRN(module) if isinstance(module, LRN) else module


def _as_they_are(steps: Sequence[Step], reason: str) -> tuple[list[Step], float]:
    warnings.warn(f"the net runs uncompiled: {reason}", RuntimeWarning, stacklevel=2)
    return list(steps), 0.0


def _joined(steps: Sequence[Step], kept: Collection[Value]) -> list[Step]:
    """Make one step of every stretch that is worth compiling."""
    result: list[Step] = []
    stretch: list[Step] = []
    for index, step in enumerate((*steps, None)):
        if step is not None and _is_worth(step.module):
            stretch.append(step)
            continue
        if stretch:
            made = {value for part in stretch for value in part.tops}
            later = {value for part in steps[index:] for value in part.bottoms}.union(kept)
            bottoms = {value: None for part in stretch for value in part.bottoms if value not in made}
            tops = tuple(value for value in made if value in later)
            result.append(Step(Run(stretch, tuple(bottoms), tops), tuple(bottoms), tops))
            stretch = []
        if step is not None:
            result.append(step)
    return result


def _is_worth(module: nn.Module) -> bool:
    """Whether a stretch gains by it; what reads its neighbourhood is slower compiled than as it is."""
    if isinstance(module, (Conv, Dense, LRN)):
        return False
    return not (isinstance(module, Layer) and module.node.type in ("Pooling", "Concat", "Slice", "Softmax"))
