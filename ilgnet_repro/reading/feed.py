"""Batches for a net's data layers, by the number of the pass: what a pass reads depends on nothing else.

Caffe's readers go on from where they are and start over after the last row; a pass's rows are therefore
known from its number, so a run that was interrupted reads what it would have read, and several processes
share a batch without overlap.  (Caffe itself starts at the first row again when it resumes.)
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

# Streams of numbers drawn from one seed, kept apart by these.
_SKIP, _SHUFFLE, _TRANSFORM = range(3)


class Stream(Dataset[Row]):
    """The endless rows of one data layer: ``stream[position]`` is what Caffe would read there."""

    def __init__(self, node: Node, root: Path, seed: int) -> None:
        self.node, self.seed = node, seed
        self.source: Source = open_source(node, root)
        param = getattr(node.layer, layer_types()[node.type].message)
        self.batch_size: int = param.batch_size
        if self.batch_size < 1:
            raise LayerError(
                node.name, node.type, "batch_size is 0 or absent; state how many rows make a batch"
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
        """Return the shape of each top for a batch of ``rows``, read off the first row."""
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
    """All data layers of a net.  ``pieces`` splits each batch into so many passes (gradient accumulation)."""

    def __init__(
        self, graph: Graph, root: Path, seed: int = 0, *, rank: int = 0, world: int = 1, pieces: int = 1
    ) -> None:
        types = layer_types()  # an unknown type is told when the net is built
        fed = [node for node in graph if node.type in types and types[node.type].is_input]
        self.streams = [Stream(node, root, seed) for node in fed]
        self.rank, self.world, self.pieces = rank, world, pieces
        for stream in self.streams:
            if stream.batch_size % (world * pieces):
                raise LayerError(
                    stream.node.name,
                    stream.node.type,
                    f"batch_size {stream.batch_size} is no multiple of {world * pieces} "
                    f"({world} processes of {pieces} passes each); change one of them",
                )

    def shapes(self) -> dict[str, Shape]:
        """Return the shape of every fed top, as one process sees it in one pass."""
        shapes: dict[str, Shape] = {}
        for stream in self.streams:
            shapes.update(stream.shapes(stream.batch_size // (self.world * self.pieces)))
        return shapes

    def batches(self, passes: Iterable[int] | int = 0, workers: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the tops of each pass: of those listed, or of all from a number on.

        ``workers`` processes read ahead; how many there are changes nothing but the speed.
        """
        if isinstance(passes, int):
            passes = count(passes)
        if not self.streams:  # a net of DummyData alone
            yield from ({} for _ in passes)
            return
        loaders: list[Any] = []
        for stream, numbers in zip(self.streams, tee(passes, len(self.streams)), strict=True):
            positions = _Positions(numbers, stream.batch_size // self.pieces, self.rank, self.world)
            # Its own generator: a loader draws a seed for its workers, by default from torch's random state.
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
