"""`Backend`: anything that computes a net's blobs from inputs, for a comparison."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..caffe.graph import Graph
from ..caffe.graph_build import build_graph
from ..caffe.prototxt import parse_net
from ..errors import IlgnetError

Arrays = dict[str, np.ndarray]
Dims = tuple[int | None, ...]  # None where the length is open


class ReferenceToolError(IlgnetError):
    """A reference tool could not convert or run the net; the comparison reports it and never counts it as agreement."""


@dataclass(frozen=True)
class Input:
    """One input: its name, shape, and whether it takes bytes (images) rather than floats."""

    name: str
    dims: Dims
    is_bytes: bool = False


@dataclass(frozen=True)
class Backend:
    """One file of a net, opened by the package or by a reference tool.

    ``blobs`` are the names it can compute, in order; ``run`` takes inputs by name and
    the blobs to return.  Names are Caffe's; ``blob@layer`` is a blob before an in-place layer replaced it.
    ``graph`` is the net, where its text is known; ``reads_text`` states whether it was built from `TextChoices`.
    """

    spec: str
    kind: str
    inputs: tuple[Input, ...]
    blobs: tuple[str, ...]
    run: Callable[[Mapping[str, np.ndarray], Sequence[str]], Arrays]
    graph: Graph | None = None
    reads_text: bool = False


@dataclass(frozen=True)
class TextChoices:
    """The caller's options for Caffe weights: their prototxt, and the engine and device that compute the net."""

    prototxt: Path | None = None
    allow_missing: Collection[str] = ()
    level: int = 0
    stages: tuple[str, ...] = ()
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    ignore_fields: tuple[str, ...] = ()
    engine: str | None = None
    device: str = ""

    def refuse(self, where: str) -> None:
        """Raise IlgnetError where any option is set."""
        for name, value in vars(self).items():
            if value:
                raise IlgnetError(f"{where}, so {name}= does not apply; leave it out", option=name)


def graph_of(metadata: Mapping[str, str]) -> Graph | None:
    """Return the net in the metadata of a file written by `ilgnet convert`; None for other files."""
    try:
        net = parse_net(metadata["caffe.net"], file="caffe.net")
        return build_graph(net, metadata.get("caffe.phase", "TEST"))
    except (KeyError, IlgnetError):
        return None
