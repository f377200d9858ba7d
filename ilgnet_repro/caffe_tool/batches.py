"""Test batches: each data layer's rows from the first on, wrapping after the last, as Caffe reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..caffe.expected_kind import expect
from ..caffe.graph import Graph, Node
from ..caffe.kinds import Kind
from ..caffe.named_files import NamedFiles
from ..errors import DataError, IlgnetError, LayerError
from ..layers.support.base import Shape
from ..layers.support.registry import class_of, make_layer
from ..reading.arrays import load_npz
from ..reading.data_layer_batches import Stream, WindowStream, open_stream
from ..reading.fed_arrays import as_rows
from ..reading.sources import READING_TYPES
from ..runtime.plan import by_input

Arrays = Mapping[str, np.ndarray]


class _Reader(Protocol):
    """One layer's tops, batch by batch."""

    def shapes(self) -> dict[str, Shape]: ...
    def batches(self, count: int) -> Iterator[dict[str, Tensor]]: ...


class TestFeed:
    """All inputs of a net: the databases, lists and files of its layers; MemoryData and Input from ``arrays``.

    ``arrays`` are by top name, rows first; an Input without one is zeros, as a new blob in Caffe.
    Files are looked up in ``root``. Random mirroring in phase TEST uses ``seed``.
    Raises LayerError or DataError, by layer name, for a source that cannot be read.
    """

    __test__ = False  # not a pytest test class

    def __init__(
        self,
        graph: Graph,
        root: str | os.PathLike[str] | NamedFiles = ".",
        arrays: Arrays | None = None,
        *,
        shapes: Mapping[str, Shape] | None = None,
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        arrays = arrays or {}
        files = NamedFiles.of(root)
        nodes = [node for node in graph if (cls := class_of(node)) and cls.is_input]
        tops = {top for node in nodes for top in node.top_names if node.type not in READING_TYPES}
        for name in arrays:
            if name not in tops:
                raise DataError(f"array {name!r}: the net takes {', '.join(sorted(tops)) or 'no arrays'}")
        by_input(graph, shapes or {})
        for node in nodes:
            for top in node.top_names:
                if node.type in READING_TYPES and top in (shapes or {}):
                    raise LayerError(
                        node.name,
                        node.type,
                        f"the shape of {top!r} is that of its source's rows; omit it",
                    )
        self._readers: list[_Reader] = [
            _SourceReader(open_stream(node, files, seed), workers)
            if node.type in READING_TYPES
            else _ArrayReader(node, arrays, shapes or {})
            for node in nodes
        ]

    def shapes(self) -> dict[str, Shape]:
        """The shape of every data top."""
        return {top: shape for reader in self._readers for top, shape in reader.shapes().items()}

    def batches(self, count: int) -> Iterator[dict[str, Tensor]]:
        """The tops of ``count`` passes; rows are decoded ahead on threads."""
        parts = [reader.batches(count) for reader in self._readers]
        for _ in range(count):
            yield {top: value for part in parts for top, value in next(part).items()}


class _SourceReader:
    """Batches of a layer that reads its own source."""

    def __init__(self, stream: Stream | WindowStream, workers: int | None) -> None:
        self._stream, self._workers = stream, workers

    def shapes(self) -> dict[str, Shape]:
        return self._stream.shapes(self._stream.batch_size)

    def batches(self, count: int) -> Iterator[dict[str, Tensor]]:
        size = self._stream.batch_size
        positions = (range(number * size, (number + 1) * size) for number in range(count))
        return self._stream.batches(positions, self._workers)


class _ArrayReader:
    """Batches of a layer that the caller feeds: Input, MemoryData and the like."""

    def __init__(self, node: Node, arrays: Arrays, shapes: Mapping[str, Shape]) -> None:
        layer = make_layer(node)
        missing = [top for top in node.top_names if top not in arrays]
        if missing and node.type != "Input":
            raise LayerError(
                node.name, node.type, f"nothing feeds {missing[0]!r}; give an array of that name"
            )
        own = layer.input_shapes(shapes)
        self._shapes = dict(zip(node.top_names, own, strict=True))
        self._arrays = {
            top: as_rows(layer, top, arrays[top], self._shapes[top])
            for top in node.top_names
            if top in arrays
        }

    def shapes(self) -> dict[str, Shape]:
        return self._shapes

    def batches(self, count: int) -> Iterator[dict[str, Tensor]]:
        zeros = {top: torch.zeros(shape) for top, shape in self._shapes.items() if top not in self._arrays}
        for number in range(count):
            batch = {}
            for top, array in self._arrays.items():
                size = self._shapes[top][0]
                rows = np.arange(number * size, (number + 1) * size) % len(array)
                batch[top] = torch.from_numpy(array[rows])
            yield {**zeros, **batch}


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name. Raises IlgnetError for other files and for arrays without rows of numbers."""
    expect(path, Kind.NPZ, what="an npz file")
    arrays = load_npz(path)
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" or not array.ndim:
            raise IlgnetError(f"{path}: {name} is {array.dtype} of shape {array.shape}; give rows of numbers")
    return arrays
