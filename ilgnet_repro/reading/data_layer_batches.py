"""Batches for a net's data layers: lists of positions, which depend on the number of the pass only.

Caffe reads rows in order and wraps after the last one, so the rows of a pass follow from its number.  A
resumed run therefore reads the same rows as an uninterrupted one, and several processes split a batch
without overlap.  (Caffe itself starts at the first row again when it resumes.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice, tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..caffe.graph import Graph, Node
from ..caffe.named_files import NamedFiles
from ..errors import LayerError
from ..layers.support.registry import class_of, layer_types
from .fed_arrays import TYPES as FED
from .fed_arrays import FedStream, fed_streams, feed_streams
from .parallel import ordered_map
from .sources import WINDOWS, Row, Source, open_source
from .windows import Draws, WindowSource, prefetch_seed, samples

Shape = tuple[int, ...]

# Keys of the independent random streams derived from one seed.
_SKIP, _SHUFFLE, _TRANSFORM = range(3)


class Stream:
    """The infinite row sequence of one data layer: ``stream[position]`` is the row that Caffe reads there."""

    def __init__(self, node: Node, files: NamedFiles, seed: int) -> None:
        self.node, self.seed = node, seed
        self.source: Source = open_source(node, files)
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
        return self.source.row(self._index(position), rng)[: len(self.node.tops)]

    def _shuffled(self, epoch: int, index: int) -> int:
        if not self.shuffle:
            return index
        cached = self._order  # read once: another thread may replace it
        if cached is None or cached[0] != epoch:
            order = np.random.default_rng((self.seed, _SHUFFLE, epoch)).permutation(len(self.source))
            self._order = cached = epoch, order
        return int(cached[1][index])

    def shapes(self, rows: int) -> dict[str, Shape]:
        """Return the shape of each top for a batch of ``rows``, taken from the first row."""
        first = self[0]
        return {top: (rows, *np.shape(value)) for top, value in zip(self.node.top_names, first, strict=True)}

    def batches(
        self, batches: Iterable[Sequence[int]], workers: int | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the tops of each batch, a list of positions; ``workers`` threads (default: one per core) read ahead."""
        listed, read = tee(batches)
        rows = ordered_map(
            self.__getitem__, chain.from_iterable(read), 1 if self.source.in_order else workers
        )
        for positions in listed:
            batch = list(islice(rows, len(positions)))
            self._check_shapes(positions, batch)
            columns = zip(*batch, strict=True)
            yield {top: _stack(column) for top, column in zip(self.node.top_names, columns, strict=True)}

    def _check_shapes(self, positions: Sequence[int], batch: Sequence[Row]) -> None:
        """Raise LayerError, by both rows, where two rows of a batch differ in shape."""
        for number, top in enumerate(self.node.top_names):
            shapes = [np.shape(row[number]) for row in batch]
            other = next((index for index, shape in enumerate(shapes) if shape != shapes[0]), None)
            if other is not None:
                first, second = (
                    f"{self.source.where(self._index(positions[index]))} is {_show(shapes[index])}"
                    for index in (0, other)
                )
                raise LayerError(
                    self.node.name,
                    self.node.type,
                    f"rows of one batch differ in shape: {top} of {first}, of {second}; resize or crop them alike",
                )

    def _index(self, position: int) -> int:
        """The source's row at a position."""
        return self._shuffled(*divmod(position + self.skip, len(self.source)))


class WindowStream:
    """The sampled windows of a WindowData layer, with the methods of `Stream`."""

    def __init__(self, node: Node, files: NamedFiles, seed: int, *, is_first: bool) -> None:
        self.node = node
        self.batch_size: int = node.layer.window_data_param.batch_size
        if self.batch_size < 1:
            raise LayerError(
                node.name, node.type, "batch_size is 0 or absent; set the number of rows per batch"
            )
        self.source = WindowSource(node, files)
        self._draws = Draws(prefetch_seed(node, seed, is_first=is_first))

    def shapes(self, rows: int) -> dict[str, Shape]:
        """Return the shape of each top for a batch of ``rows``."""
        size = self.source.size
        tops = [(rows, self.source.windows.channels, size, size), (rows,)]
        return dict(zip(self.node.top_names, tops, strict=False))

    def batches(
        self, batches: Iterable[Sequence[int]], workers: int | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the tops of each batch, a list of positions; ``workers`` threads (default: one per core) read ahead."""
        listed, read = tee(batches)
        drawn = samples(self.source, self.batch_size, self._draws, chain.from_iterable(read))
        rows = ordered_map(self.source.row, drawn, workers)
        for positions in listed:
            columns = zip(*islice(rows, len(positions)), strict=True)
            yield {top: _stack(column) for top, column in zip(self.node.top_names, columns, strict=False)}


def open_stream(node: Node, files: NamedFiles, seed: int, *, is_first: bool = False) -> Stream | WindowStream:
    """Open the rows of a data layer that reads its source; ``is_first``: no layer of the net comes before it."""
    if node.type == WINDOWS:
        return WindowStream(node, files, seed, is_first=is_first)
    return Stream(node, files, seed)


def _stack(rows: Sequence[np.ndarray | float]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(row, np.float32) for row in rows]))


def _show(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"


class Feed:
    """All data layers of a net, their files looked up in ``root``.

    ``accumulate`` splits each batch into that many passes (gradient accumulation). ``arrays`` are fed to MemoryData and
    Input layers, by top name; with None a net that has such layers is refused, and with an empty mapping they are fed
    later.
    """

    def __init__(
        self,
        graph: Graph,
        root: Path | NamedFiles,
        seed: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        arrays: Mapping[str, Any] | None = None,
    ) -> None:
        self.files = NamedFiles.of(root)
        # A type without a class is reported when the net is built.
        data_layers = [node for node in graph if (cls := class_of(node)) is not None and cls.is_input]
        self.streams: list[Stream | WindowStream | FedStream] = []
        for node in data_layers:
            if arrays is not None and node.type in FED:
                self.streams += fed_streams(node)
            else:
                is_first = node is graph.nodes[0]
                self.streams.append(open_stream(node, self.files, seed, is_first=is_first))
        self.rank, self.world, self.accumulate = rank, world, accumulate
        for stream in self.streams:
            if stream.batch_size % (world * accumulate):
                raise LayerError(
                    stream.node.name,
                    stream.node.type,
                    f"batch_size {stream.batch_size} is not a multiple of {world * accumulate} "
                    f"({world} processes of {accumulate} passes each); change one of them",
                )
        if arrays:
            feed_streams(self._fed, arrays, at_once=True)

    @property
    def _fed(self) -> list[FedStream]:
        return [stream for stream in self.streams if isinstance(stream, FedStream)]

    def feed(self, arrays: Mapping[str, Any]) -> None:
        """Feed arrays to MemoryData and Input layers, by top name; the next pass starts at their first rows.

        A top that is not named keeps its own.  Raises IlgnetError where an array does not fit.
        """
        feed_streams(self._fed, arrays)

    def shapes(self) -> dict[str, Shape]:
        """Return the shape of every data top in one pass of one process."""
        shapes: dict[str, Shape] = {}
        for stream in self.streams:
            shapes.update(stream.shapes(stream.batch_size // (self.world * self.accumulate)))
        return shapes

    def batches(self, passes: Iterable[int] | int = 0, workers: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the tops of each pass: of those listed, or of all passes from a number on.

        ``workers`` threads read ahead if there are two or more; it affects the speed only.
        """
        if isinstance(passes, int):
            passes = count(passes)
        if not self.streams:  # only DummyData
            yield from ({} for _ in passes)
            return
        numbers = tee(passes, len(self.streams))
        parts = [
            stream.batches(map(self._positions(stream), own), max(workers, 1))
            for stream, own in zip(self.streams, numbers, strict=True)
        ]
        for tops in zip(*parts, strict=True):
            yield {top: value for part in tops for top, value in part.items()}

    def _positions(self, stream: Stream | WindowStream | FedStream) -> Callable[[int], Sequence[int]]:
        """For the number of a pass, the positions of this rank's rows: every ``world``-th row of the batch."""
        size = stream.batch_size // self.accumulate
        return lambda number: range(number * size + self.rank, (number + 1) * size, self.world)
