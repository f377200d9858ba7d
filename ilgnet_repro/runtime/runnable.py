"""What can be run: one protocol for Caffe nets, fast nets, and the files of other engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..about import About, prepare
from ..errors import GraphError, IlgnetError, did_you_mean
from .calls import as_tensor, names, wanted_blobs

OpenShape = tuple[int | None, ...]  # None where any length goes


class Runnable(Protocol):
    """A net, whoever computes it: blobs in and out by Caffe's names."""

    @property
    def name(self) -> str:
        """The net's name, or that of its file."""

    @property
    def form(self) -> str:
        """Who computes it, in a few words."""

    @property
    def about(self) -> About:
        """What is known of it beside its layers."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The blobs that the caller feeds."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The blobs that a call returns."""

    @property
    def shapes(self) -> Mapping[str, OpenShape]:
        """The shapes of its inputs, and of other blobs where they are known."""

    def inputs_for(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the inputs that the given blobs depend on."""

    def image_input(self) -> str:
        """Return the one input that the outputs depend on.  Raises GraphError where there is not one."""

    def __call__(
        self, given: Any = None, *, blobs: Iterable[str] | None = None, **inputs: Any
    ) -> dict[str, Tensor]:
        """Run it and return its outputs, or those blobs."""


@dataclass(frozen=True)
class FileNet:
    """A file that another engine runs: ONNX Runtime, torch.export, or the source that was written.

    Every input is needed, and only the outputs are given.
    """

    name: str
    form: str
    about: About
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, OpenShape]
    engine: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]

    def inputs_for(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the inputs that the given blobs depend on: all of them."""
        self._wanted(wanted)
        return self.inputs

    def image_input(self) -> str:
        """Return the one input.  Raises GraphError where there are several, or none."""
        if len(self.inputs) != 1:
            raise GraphError(
                f"{self.name}: takes {len(self.inputs)} inputs ({names(self.inputs)}); images fit only a net with one"
            )
        return self.inputs[0]

    def prepare(self, images: Any, **options: Any) -> Tensor:
        """Prepare images as the file takes them; see `about.prepare`."""
        return torch.from_numpy(prepare(self.about, images, net=self.name, **options))

    def __call__(
        self, given: Any = None, *, blobs: Iterable[str] | None = None, **inputs: Any
    ) -> dict[str, Tensor]:
        """Run the file and return its outputs, or those of them asked for.

        Raises IlgnetError for an input that is absent, or that the file has not, or that its engine does not take.
        """
        wanted = self.outputs if blobs is None else self._wanted(blobs)
        tensors = {name: as_tensor(name, value) for name, value in self._named(given, inputs).items()}
        found = self.engine(tensors)
        return {name: found[name] for name in wanted}

    def _named(self, given: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if given is None:
            given = {}
        elif not isinstance(given, Mapping):
            if len(self.inputs) != 1:
                raise GraphError(f"{self.name}: has {len(self.inputs)} inputs; give each by its name")
            given = {self.inputs[0]: given}
        merged = {**given, **inputs}
        for name in merged:
            if name not in self.inputs:
                hint = did_you_mean(name, self.inputs) if isinstance(name, str) else ""
                raise GraphError(f"{self.name}: has no input {name!r}{hint}; it has {names(self.inputs)}")
            if name in given and name in inputs:
                raise GraphError(f"input {name!r} is given twice; give it once")
        for name in self.inputs:
            if name not in merged:
                raise IlgnetError(f"{self.name}: input {name!r} is missing; it takes {names(self.inputs)}")
        return merged

    def _wanted(self, blobs: Iterable[str]) -> tuple[str, ...]:
        return wanted_blobs(blobs, self.outputs, self.name, "no output of", "a file gives only its outputs:")
