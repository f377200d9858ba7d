"""Training from Python: `solve` runs a solver, `Solver` steps it, `batches` feeds a loop of the caller's own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from .caffe.named_files import NamedFiles
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


class Solver:
    """A solver that a Python loop drives: ``step``, ``test``, ``snapshot`` and ``restore``, as `solve` does in one call.

    MemoryData and Input layers are fed with arrays by the names of their tops, here or by ``feed``: rows first, of the
    shape that the layer states; they are read in order, and from the first again after the last.
    """

    def __init__(
        self,
        solver: PathLike,
        *,
        weights: PathLike | Iterable[PathLike] = (),
        arrays: Mapping[str, Any] | None = None,
        test_arrays: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
        max_iter: int | None = None,
        device: str | None = None,
        precision: str = "float32",
        accumulate: int = 1,
        keep: int = 0,
        workers: int = 0,
        allow_nonfinite: bool = False,
        ignore_fields: Iterable[str] = (),
        log: TextIO | None = None,
    ) -> None:
        """Build the nets of a solver prototxt; ``arrays`` are for the train net, ``test_arrays`` for each test net.

        The other options are those of `solve`.  Raises IlgnetError in one line.
        """
        files = [weights] if isinstance(weights, str | os.PathLike) else list(weights)
        settings = read_settings(
            solver,
            solver_root(solver),
            weights=[os.fspath(file) for file in files],
            ignore_fields=ignore_fields,
        )
        if max_iter is not None:
            if max_iter < 0:
                raise SolverError(f"max_iter={max_iter}: give 0 or more", option="max_iter")
            settings = settings.with_(max_iter=max_iter)
        self.notes = settings.notes
        self._results = _Results()
        observers: list[Observer] = [self._results, *([] if log is None else [CaffeLog(log)])]
        options = Options(device, precision, accumulate, keep, workers, allow_nonfinite)
        tested = [test_arrays] if isinstance(test_arrays, Mapping) else list(test_arrays)
        if len(tested) > len(settings.test_nets):
            raise SolverError(
                f"test_arrays are for {len(tested)} nets and the solver has {len(settings.test_nets)}; give one per net",
                option="test_arrays",
            )
        self._trainer = Trainer(settings, options, observers, arrays=arrays or {}, test_arrays=tested)

    @property
    def net(self) -> CaffeNet:
        """The net that is trained."""
        return self._trainer.net

    @property
    def test_nets(self) -> Sequence[CaffeNet]:
        """The test nets, which share the trained parameters."""
        return self._trainer.test_nets

    @property
    def iteration(self) -> int:
        """The number of updates made."""
        return self._trainer.iteration

    def feed(
        self, arrays: Mapping[str, Any] | None = None, *, test_net: int | None = None, **named: Any
    ) -> None:
        """Replace arrays of the train net, or of a test net by its number; the next pass starts at their first rows.

        ``feed(data=x, label=y)`` or ``feed({"data": x, "label": y})``; a top that is not named keeps its own.  An array
        of float32 is not copied.  Raises IlgnetError, by layer, where an array does not fit; none is taken then.
        """
        self._check_test_net(test_net or 0, test_net is not None)
        self._trainer.feed_arrays({**(arrays or {}), **named}, test_net)

    def step(self, iterations: int = 1) -> float:
        """Run iterations, with the tests and snapshots due in them; return the mean loss that Caffe displays.

        Raises DivergedError if the loss is not finite, unless ``allow_nonfinite``.
        """
        if iterations < 1:
            raise SolverError(f"iterations={iterations}: give 1 or more", option="iterations")
        self._trainer.step(iterations)
        return self._trainer.smoothed_loss

    def solve(self) -> Solved:
        """Run to the solver's `max_iter`, with the tests and the snapshot at the end."""
        trainer = self._trainer
        trainer.solve()
        return Solved(
            net=trainer.net,
            iterations=trainer.iteration,
            loss=self._results.loss,
            tests=tuple(self._results.tests),
            snapshot=trainer.snapshots.latest(),
            stopped=trainer.reason or ("by request" if trainer.stopped else ""),
            notes=self.notes,
        )

    def test(self, net: int = 0) -> dict[str, float]:
        """Run the `test_iter` batches of a test net and return its mean outputs by name."""
        self._check_test_net(net, True)
        self._trainer.test(net)
        return self._results.tests[-1]

    def snapshot(self) -> Path:
        """Write the weights and the solver state where `snapshot_prefix` says; return the state's path."""
        self._trainer.snapshots.check()
        self._trainer.snapshot()
        return self._trainer.snapshots.path(self._trainer.iteration, "solverstate")

    def restore(self, state: PathLike, *, from_first_row: bool = False) -> None:
        """Resume from a solver state, ours or Caffe's; the data are read on where they were.

        ``from_first_row`` starts the data again, as Caffe does.
        """
        self._trainer.restore(Path(state), from_first_row=from_first_row)

    def _check_test_net(self, number: int, is_given: bool) -> None:
        count = len(self.test_nets)
        if is_given and not 0 <= number < count:
            raise SolverError(f"test net {number}: the solver has {count}; count from 0", option="test_net")


def solve(
    solver: PathLike,
    *,
    weights: PathLike | Iterable[PathLike] = (),
    arrays: Mapping[str, Any] | None = None,
    test_arrays: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
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

    ``weights`` are files to fine-tune from, copied by layer name.  ``arrays`` and ``test_arrays`` feed MemoryData and
    Input layers (see `Solver`).  ``resume`` is a .solverstate, or "latest": the newest of the run's own, if there is
    one; the data are read on where that run stopped.  ``max_iter`` replaces the solver's; ``accumulate`` splits each
    batch into that many passes with the same result; ``keep`` is how many snapshots are kept (0: all); ``workers``
    threads read ahead; ``log`` (such as ``sys.stderr``) receives Caffe's log.  Paths in the solver are relative to the
    current folder, as in Caffe, or to the solver's own if its net is only found there.  Raises IlgnetError in one line,
    and DivergedError if the loss is not finite, unless ``allow_nonfinite``.
    """
    made = Solver(
        solver, weights=weights, arrays=arrays, test_arrays=test_arrays, max_iter=max_iter, device=device,
        precision=precision, accumulate=accumulate, keep=keep, workers=workers, allow_nonfinite=allow_nonfinite,
        ignore_fields=ignore_fields, log=log,
    )  # fmt: skip
    state = made._trainer.snapshots.latest() if resume == "latest" else resume
    if state is not None:
        made.restore(state)
    return made.solve()


def batches(
    net: CaffeNet | FileNet,
    *,
    arrays: Mapping[str, Any] | None = None,
    seed: int = 0,
    root: PathLike = ".",
    start: int = 0,
    workers: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a net's data layers without end, as Caffe reads them: ``net.loss(batch).backward()``.

    Rows are read in order (shuffled where the layer says so) and wrap after the last; ``seed`` determines shuffling,
    random crops and mirroring.  ``arrays`` feed MemoryData and Input layers, by top name.  Files of the layers are
    looked up in ``root``, then beside the net's prototxt.  ``start`` is the first batch, so that a loop can be resumed;
    ``workers`` threads read ahead.  Raises IlgnetError at once where a source cannot be read.
    """
    if start < 0 or workers < 0:
        raise GraphError(f"start={start}, workers={workers}: give 0 or more", option="start workers")
    net = expect_caffe_net(net, "fed by data layers")
    files = NamedFiles(root).beside(net.about.prototxt or "")
    feed = Feed(net.graph, files, seed, arrays=arrays)
    for note in files.notes:
        warnings.warn(note, stacklevel=2)
    return feed.batches(start, workers)
