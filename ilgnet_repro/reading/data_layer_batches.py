"""Training batches for a net's data layers; the rows of a pass depend on its number only.

Caffe reads rows in order and wraps after the last one, so the rows of a pass follow from its number.  A
resumed run therefore reads the same rows as an uninterrupted one, and several processes split a batch
without overlap.  (Caffe itself starts at the first row again when it resumes.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..caffe.graph import Graph, Node
from ..errors import LayerError
from ..layers.support.registry import layer_types
from .sources import Row, Source, open_source

Shape = tuple[int, ...]

# Keys of the independent random streams derived from one seed.
_SKIP, _SHUFFLE, _TRANSFORM = range(3)


class Stream(Dataset[Row]):
    """The infinite row sequence of one data layer: ``stream[position]`` is the row that Caffe reads there."""

    def __init__(self, node: Node, root: Path, seed: int) -> None:
        self.node, self.seed = node, seed
        self.source: Source = open_source(node, root)
        param = getattr(node.layer, layer_types()[node.type].message)
        self.batch_size: int = param.batch_size
        if self.batch_size < 1:
            raise LayerError(
                node.name, node.type, "batch_size is 0 or absent; set the number of rows per batch"
            )
        self.shuffle = bool(getattr(param, "shuffle", False))
        skip = getattr(param, "rand_skip", 0)
        self.skip = int(np.random.default_rng((seed, _SKIP)).integers(skip)) if skip else 0
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, position: int) -> Row:
        rng = np.random.default_rng((self.seed, _TRANSFORM, position)) if self.source.draws else None
        epoch, index = divmod(position + self.skip, len(self.source))
        return self.source.row(self._shuffled(epoch, index), rng)[: len(self.node.tops)]

    def _shuffled(self, epoch: int, index: int) -> int:
        if not self.shuffle:
            return index
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, _SHUFFLE, epoch)).permutation(len(self.source))
            self._order = epoch, order
        return int(self._order[1][index])

    def shapes(self, rows: int) -> dict[str, Shape]:
        """Return the shape of each top for a batch of ``rows``, taken from the first row."""
        first = self[0]
        return {top: (rows, *np.shape(value)) for top, value in zip(self.node.top_names, first, strict=True)}


class _Positions(Sampler[list[int]]):
    """For each pass, the positions of this rank's rows: every ``world``-th row of the batch."""

    def __init__(self, passes: Iterable[int], batch: int, rank: int, world: int) -> None:
        self.passes, self.batch, self.rank, self.world = passes, batch, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.passes:
            yield list(range(number * self.batch + self.rank, (number + 1) * self.batch, self.world))


class Feed:
    """All data layers of a net.  ``accumulate`` splits each batch into that many passes (gradient accumulation)."""

    def __init__(
        self, graph: Graph, root: Path, seed: int = 0, *, rank: int = 0, world: int = 1, accumulate: int = 1
    ) -> None:
        types = layer_types()  # an unknown type is reported when the net is built
        fed = [node for node in graph if node.type in types and types[node.type].is_input]
        self.streams = [Stream(node, root, seed) for node in fed]
        self.rank, self.world, self.accumulate = rank, world, accumulate
        for stream in self.streams:
            if stream.batch_size % (world * accumulate):
                raise LayerError(
                    stream.node.name,
                    stream.node.type,
                    f"batch_size {stream.batch_size} is not a multiple of {world * accumulate} "
                    f"({world} processes of {accumulate} passes each); change one of them",
                )

    def shapes(self) -> dict[str, Shape]:
        """Return the shape of every data top in one pass of one process."""
        shapes: dict[str, Shape] = {}
        for stream in self.streams:
            shapes.update(stream.shapes(stream.batch_size // (self.world * self.accumulate)))
        return shapes

    def batches(self, passes: Iterable[int] | int = 0, workers: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the tops of each pass: of those listed, or of all passes from a number on.

        ``workers`` is the number of processes that read ahead; it affects the speed only.
        """
        if isinstance(passes, int):
            passes = count(passes)
        if not self.streams:  # only DummyData
            yield from ({} for _ in passes)
            return
        loaders: list[Any] = []
        for stream, numbers in zip(self.streams, tee(passes, len(self.streams)), strict=True):
            positions = _Positions(numbers, stream.batch_size // self.accumulate, self.rank, self.world)
            # By default a loader draws its workers' seed from torch's global random state; it must stay untouched.
            loader = DataLoader(
                stream, batch_sampler=positions, num_workers=workers, generator=torch.Generator()
            )
            loaders.append(iter(loader))
        for parts in zip(*loaders, strict=True):
            yield {
                top: value
                for stream, values in zip(self.streams, parts, strict=True)
                for top, value in zip(stream.node.top_names, values, strict=True)
            }
