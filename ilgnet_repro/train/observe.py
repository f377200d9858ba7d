"""What a run tells as it goes: small frozen values, handed to any number of observers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..runtime.net import CaffeNet
from .solver import Settings
from .updates import Clipping


@dataclass(frozen=True)
class Output:
    """One value of an output blob, and its weight in the loss (0 for what is no loss)."""

    name: str
    value: float
    weight: float = 0.0


@dataclass(frozen=True)
class Forward:
    """An iteration's loss: its own, the mean over `average_loss` iterations, and the outputs."""

    iteration: int
    loss: float
    smoothed: float
    outputs: tuple[Output, ...]
    display: bool


@dataclass(frozen=True)
class Updated:
    """An iteration's update: its rate, whether a multistep policy stepped, whether gradients were clipped."""

    iteration: int
    rate: float
    new_step: int | None
    clipping: Clipping | None
    display: bool


@dataclass(frozen=True)
class Test:
    """Mean outputs of one test of one net; ``loss`` where `test_compute_loss` asks for it.

    ``finite``: every loss was finite, and no score was NaN (Caffe's Accuracy counts NaN scores as right).
    """

    __test__ = False  # no test case of pytest's

    iteration: int
    net: int
    outputs: tuple[Output, ...]
    loss: float | None
    finite: bool = True


Tell = Callable[[str, str], None]  # takes a line of Caffe's log, as `Observer.tell` does


def tell_outputs(net: CaffeNet, tell: Tell) -> None:
    """Tell what a net puts out, as Caffe ends the building of one."""
    for name in net.outputs:
        tell("net_output", f"This network produces output {name}")
    tell("net_done", "Network initialization done.")


class Run(Protocol):
    """What observers may ask of the trainer that they hear from, and what they may have it do."""

    settings: Settings
    net: CaffeNet
    iteration: int

    @property
    def test_nets(self) -> Sequence[CaffeNet]:
        """The nets of the tests, in the solver's order."""

    def stop(self, reason: str) -> None:
        """Have the run end after this iteration, or this test."""

    def save_weights(self, path: Path) -> None:
        """Write the weights of this moment to a file of their own."""


class Observer:
    """Does nothing; subclasses write over what they care about.  Only the first process has observers."""

    def tell(self, topic: str, text: str) -> None:
        """Take a line that Caffe's solver would log; topics are those of caffelog.py."""

    def on_start(self, trainer: Run) -> None:
        """A run is about to begin, perhaps from a snapshot (`trainer.iteration`)."""

    def on_forward(self, trainer: Run, forward: Forward) -> None:
        """The gradients of an iteration are there."""

    def on_update(self, trainer: Run, updated: Updated) -> None:
        """The weights have changed."""

    def on_test(self, trainer: Run, test: Test) -> None:
        """A test net has run; the observer may call `trainer.stop`."""

    def on_finish(self, trainer: Run) -> None:
        """The run is over, or stopped."""
