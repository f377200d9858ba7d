"""What every form of a net can do for a comparison: say its blobs and inputs, and give blobs for inputs."""

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
Dims = tuple[int | None, ...]  # None where any length goes


class ReferenceToolError(IlgnetError):
    """Another tool could not convert or run the net; the comparison reports it, never as agreement."""


@dataclass(frozen=True)
class Input:
    """One input: its name, lengths, and whether it takes bytes (images) rather than floats."""

    name: str
    dims: Dims
    is_bytes: bool = False


@dataclass(frozen=True)
class Backend:
    """One form of a net, opened.

    ``blobs`` are the names it can give, in the order they are computed; ``run`` takes inputs by name and
    the blobs wanted.  Names are Caffe's; ``blob@layer`` is a blob before an in-place layer replaced it.
    ``graph`` is the net, where its text is known; ``reads_text`` where it was made of the caller's choices.
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
    """What the caller says of the text of Caffe weights: which it is, and what its rules leave open."""

    prototxt: Path | None = None
    allow_missing: Collection[str] = ()
    level: int = 0
    stages: tuple[str, ...] = ()

    def refuse(self, where: str) -> None:
        """Raise IlgnetError where anything is said."""
        for name, value in vars(self).items():
            if value:
                raise IlgnetError(f"{where}, so {name}= does not apply; leave it out", option=name)


def graph_of(metadata: Mapping[str, str]) -> Graph | None:
    """The net that a file written by `ilgnet convert` names in its metadata; None for other files."""
    try:
        net = parse_net(metadata["caffe.net"], file="caffe.net")
        return build_graph(net, metadata.get("caffe.phase", "TEST"))
    except (KeyError, IlgnetError):
        return None
