"""The solver runs recorded from Caffe (tests/golden/pipeline/solvers), as values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from places import GOLDEN

from ilgnet_repro.train.loop import Options, Trainer
from ilgnet_repro.train.observe import Forward, Observer, Test, Updated
from ilgnet_repro.train.solver import Settings, read_settings

PIPELINE = GOLDEN / "pipeline"
SOLVERS = PIPELINE / "solvers"
NAMES = sorted(path.stem for path in SOLVERS.glob("*.prototxt"))
WEIGHTS = "tiny_init.caffemodel"
# Runs at rates so high that rounding decides which unit of a ReLU or a pooling window is the greatest: from
# the step given, float32 sums in another order (other libraries, other processors) may diverge.
SENSITIVE = {"sgd_clip": 9, "sgd_l1": 4, "sgd_sigmoid": 13, "nesterov": 6}


@dataclass
class Trace:
    """What a run printed: loss and rate by iteration, the outputs of each test, clip factors."""

    losses: dict[int, float] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    tests: dict[int, list[tuple[str, float]]] = field(default_factory=dict)
    clips: list[float] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    last_loss: float = 0.0


def read_log(path: Path) -> Trace:
    """Read one of Caffe's training logs."""
    trace = Trace()
    tested = 0
    for line in path.read_text().splitlines():
        if found := re.search(r"solver.cpp:239\] Iteration (\d+) .*loss = (\S+)", line):
            trace.losses[int(found[1])] = float(found[2])
        elif found := re.search(r"Iteration (\d+), lr = (\S+)", line):
            trace.rates[int(found[1])] = float(found[2])
        elif found := re.search(r"Iteration (\d+), Testing net", line):
            tested = int(found[1])
            trace.tests[tested] = []
        elif found := re.search(r"Test net output #\d+: (\S+) = (\S+)", line):
            trace.tests[tested].append((found[1], float(found[2])))
        elif found := re.search(r"by scale factor (\S+)", line):
            trace.clips.append(float(found[1]))
        elif found := re.search(r"MultiStep Status: Iteration (\d+), step = (\d+)", line):
            trace.steps.append((int(found[1]), int(found[2])))
        elif found := re.search(r"solver.cpp:327\] Iteration \d+, loss = (\S+)", line):
            trace.last_loss = float(found[1])
    return trace


class Recorder(Observer):
    """Records a run of this package in the same form, unrounded."""

    def __init__(self) -> None:
        self.trace = Trace()

    def log(self, topic: str, text: str) -> None:
        if topic == "last":
            self.trace.last_loss = float(text.rsplit(" ", 1)[1])

    def on_forward(self, trainer: Trainer, forward: Forward) -> None:
        self.trace.losses[forward.iteration] = forward.smoothed

    def on_update(self, trainer: Trainer, updated: Updated) -> None:
        self.trace.rates[updated.iteration] = updated.rate
        if updated.clipping:
            self.trace.clips.append(updated.clipping.factor)
        if updated.new_step is not None:
            self.trace.steps.append((updated.iteration, updated.new_step))

    def on_test(self, trainer: Trainer, test: Test) -> None:
        self.trace.tests[test.iteration] = [(output.name, output.value) for output in test.outputs]


def settings_of(name: str, folder: Path, **changes: object) -> Settings:
    """Read a recorded solver, with its snapshots going to ``folder``."""
    settings = read_settings(SOLVERS / f"{name}.prototxt", PIPELINE, weights=[str(PIPELINE / WEIGHTS)])
    return settings.with_(snapshot_prefix=str(folder / name), **changes)


def run(
    settings: Settings, *, resume: Path | None = None, options: Options | None = None
) -> tuple[Trace, Trainer]:
    """Run a solver to its end and return its trace."""
    recorder = Recorder()
    trainer = Trainer(settings, options, [recorder])
    if resume is not None:
        trainer.restore(resume)
    trainer.solve()
    return recorder.trace, trainer
