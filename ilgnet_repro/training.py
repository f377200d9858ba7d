"""Training from Python: `solve` runs a solver, `batches` feeds a loop of the caller's own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from torch import Tensor

from .caffe_tool.log import CaffeLog
from .errors import GraphError, SolverError
from .reading.data_layer_batches import Feed
from .runtime.net import CaffeNet, expect_caffe_net
from .runtime.runnable import FileNet
from .train.loop import Options, Trainer
from .train.observe import Forward, Observer, Run, Test
from .train.solver import read_settings, solver_root

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Solved:
    """A run of a solver: the trained net, the iterations made, and the mean loss that Caffe displays.

    ``tests`` are the mean outputs of each test by name, ``snapshot`` is the newest solver state, ``stopped`` why the
    run ended early, or "".
    """

    net: CaffeNet
    iterations: int
    loss: float | None
    tests: tuple[dict[str, float], ...]
    snapshot: Path | None
    stopped: str
    notes: tuple[str, ...]


class _Results(Observer):
    def __init__(self) -> None:
        self.loss: float | None = None
        self.tests: list[dict[str, float]] = []

    def on_forward(self, trainer: Run, forward: Forward) -> None:
        self.loss = forward.smoothed

    def on_test(self, trainer: Run, test: Test) -> None:
        self.tests.append({output.name: output.value for output in test.outputs})


def solve(
    solver: PathLike,
    *,
    weights: PathLike | Iterable[PathLike] = (),
    resume: PathLike | None = None,
    max_iter: int | None = None,
    device: str | None = None,
    precision: str = "float32",
    accumulate: int = 1,
    keep: int = 0,
    workers: int = 0,
    allow_nonfinite: bool = False,
    ignore_fields: Iterable[str] = (),
    log: TextIO | None = None,
) -> Solved:
    """Train a net as Caffe's solver prototxt says, step for step; snapshots are written where it says.

    ``weights`` are files to fine-tune from, copied by layer name.  ``resume`` is a .solverstate, or "latest": the newest
    of the run's own, if there is one.  ``max_iter`` replaces the solver's; ``accumulate`` splits each batch into that
    many passes with the same result; ``keep`` is how many snapshots are kept (0: all); ``workers`` threads read ahead;
    ``log`` (such as ``sys.stderr``) receives Caffe's log.  Paths in the solver are relative to the current folder, as
    in Caffe, or to the solver's own if its net is only found there.  Raises IlgnetError in one line, and DivergedError
    if the loss is not finite, unless ``allow_nonfinite``.
    """
    files = [weights] if isinstance(weights, str | os.PathLike) else list(weights)
    settings = read_settings(
        solver, solver_root(solver), weights=[os.fspath(file) for file in files], ignore_fields=ignore_fields
    )
    if max_iter is not None:
        if max_iter < 0:
            raise SolverError(f"max_iter={max_iter}: give 0 or more", option="max_iter")
        settings = settings.with_(max_iter=max_iter)
    results = _Results()
    observers: list[Observer] = [results, *([] if log is None else [CaffeLog(log)])]
    options = Options(device, precision, accumulate, keep, workers, allow_nonfinite)
    trainer = Trainer(settings, options, observers)
    state = trainer.snapshots.latest() if resume == "latest" else resume
    if state is not None:
        trainer.restore(Path(state))
    trainer.solve()
    return Solved(
        net=trainer.net,
        iterations=trainer.iteration,
        loss=results.loss,
        tests=tuple(results.tests),
        snapshot=trainer.snapshots.latest(),
        stopped=trainer.reason or ("by request" if trainer.stopped else ""),
        notes=settings.notes,
    )


def batches(
    net: CaffeNet | FileNet, *, seed: int = 0, root: PathLike = ".", start: int = 0, workers: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a net's data layers without end, as Caffe reads them: ``net.loss(batch).backward()``.

    Rows are read in order (shuffled where the layer says so) and wrap after the last; ``seed`` determines shuffling,
    random crops and mirroring.  Paths in the layers are relative to ``root``.  ``start`` is the first batch, so that a
    loop can be resumed; ``workers`` threads read ahead.  Raises IlgnetError at once where a source cannot be read.
    """
    if start < 0 or workers < 0:
        raise GraphError(f"start={start}, workers={workers}: give 0 or more", option="start workers")
    net = expect_caffe_net(net, "fed by data layers")
    feed = Feed(net.graph, Path(root), seed)
    if net.inputs and not feed.streams:
        raise GraphError(f"net {net.name!r}: no layer of it reads data; give its inputs to net.loss")
    return feed.batches(start, workers)
