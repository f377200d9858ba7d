"""The events of a run, as frozen values passed to any number of observers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..runtime.net import CaffeNet
from .solver import Settings
from .updates import Clipping


@dataclass(frozen=True)
class Output:
    """One value of an output blob, and its loss weight (0 if it is not a loss)."""

    name: str
    value: float
    weight: float = 0.0


@dataclass(frozen=True)
class Forward:
    """An iteration's loss, the mean over `average_loss` iterations, and the outputs."""

    iteration: int
    loss: float
    smoothed: float
    outputs: tuple[Output, ...]
    display: bool


@dataclass(frozen=True)
class Updated:
    """An iteration's update: learning rate, the new step of a multistep policy, and gradient clipping.

    ``norms`` are the L2 norms of the gradients by parameter, before clipping and decay, where the options ask for them.
    """

    iteration: int
    rate: float
    new_step: int | None
    clipping: Clipping | None
    display: bool
    norms: Mapping[str, float] | None = None

    @property
    def norm(self) -> float:
        """The L2 norm of all gradients."""
        return math.hypot(*(self.norms or {}).values())


@dataclass(frozen=True)
class Test:
    """Mean outputs of one test of one net; ``loss`` if `test_compute_loss` is set.

    ``finite``: every loss was finite, and no score was NaN (Caffe's Accuracy counts NaN scores as correct).
    """

    __test__ = False  # not a pytest test class

    iteration: int
    net: int
    outputs: tuple[Output, ...]
    loss: float | None
    finite: bool = True


Log = Callable[[str, str], None]  # takes a topic and a line of Caffe's log, as `Observer.log` does


def log_outputs(net: CaffeNet, log: Log) -> None:
    """Log the outputs of a net that was built, as Caffe does."""
    for name in net.outputs:
        log("net_output", f"This network produces output {name}")
    log("net_done", "Network initialization done.")


class Run(Protocol):
    """The interface of a trainer for its observers."""

    settings: Settings
    net: CaffeNet
    iteration: int

    @property
    def test_nets(self) -> Sequence[CaffeNet]:
        """The nets of the tests, in the solver's order."""

    def stop(self, reason: str) -> None:
        """Stop the run after this iteration or test."""

    def save_weights(self, path: Path) -> None:
        """Write the current weights to a file."""


class Observer:
    """Does nothing; subclasses override what they need.  Only the first process has observers."""

    def log(self, topic: str, text: str) -> None:
        """Receive a line that Caffe's solver would log; topics are the keys of `caffe_tool.log.LOCATIONS`."""

    def on_start(self, trainer: Run) -> None:
        """A run is about to start, or to resume at `trainer.iteration`."""

    def on_forward(self, trainer: Run, forward: Forward) -> None:
        """The gradients of an iteration have been computed."""

    def on_update(self, trainer: Run, updated: Updated) -> None:
        """The weights have been updated."""

    def on_test(self, trainer: Run, test: Test) -> None:
        """A test net has been evaluated; the observer may call `trainer.stop`."""

    def on_finish(self, trainer: Run) -> None:
        """The run is over, or stopped."""
