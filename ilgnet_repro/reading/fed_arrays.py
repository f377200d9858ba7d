"""Arrays that a caller feeds to the MemoryData and Input layers of a net: checked, and read row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..caffe.graph import Node
from ..errors import DataError, did_you_mean
from ..layers.support.base import Layer, Shape
from ..layers.support.registry import make_layer

TYPES = ("MemoryData", "Input")


class FedStream:
    """The rows fed to one top: in order, and from the first again after the last, as a MemoryData layer reads them.

    It has the methods of `Stream`, so that a net can have both.  A top without axes is one value for all passes.
    """

    def __init__(self, layer: Layer, top: str, shape: Shape) -> None:
        self.node, self.top, self.shape = layer.node, top, shape
        self.batch_size = shape[0] if shape else 0
        self._layer = layer
        self._array: np.ndarray | None = None
        self._first: int | None = 0  # the position of the array's first row; None until the next pass

    def check(self, array: Any) -> np.ndarray:
        """Return the array as float32.  Raises IlgnetError, by layer, where it does not fit the top."""
        values = as_rows(self._layer, self.top, array, self.shape)
        # As MemoryDataLayer::Reset does: a batch would have rows of both ends.
        if self.node.type == "MemoryData" and len(values) % self.batch_size:
            raise self._layer.error(
                f"array {self.top!r} has {len(values)} rows; give a multiple of batch_size {self.batch_size}"
            )
        return values

    def feed(self, array: np.ndarray, *, at_once: bool) -> None:
        """Take the rows of a checked array from its first on, in the next pass or, ``at_once``, as if from the start."""
        self._array, self._first = array, 0 if at_once else None

    @property
    def is_fed(self) -> bool:
        """Whether an array was given."""
        return self._array is not None

    @property
    def rows(self) -> int:
        """The number of rows, 0 without an array."""
        return 0 if self._array is None or not self.shape else len(self._array)

    def shapes(self, rows: int) -> dict[str, Shape]:
        """Return the shape of the top for a batch of ``rows``."""
        return {self.top: (rows, *self.shape[1:]) if self.shape else ()}

    def batches(
        self, batches: Iterable[Sequence[int]], workers: int | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the rows of each batch, a list of positions; nothing is read ahead."""
        for positions in batches:
            if self._array is None:
                raise self._layer.error(f"nothing feeds {self.top!r}; give an array of that name")
            if not self.shape:
                yield {self.top: torch.from_numpy(self._array.copy())}
                continue
            if self._first is None:
                self._first = positions[0] - positions[0] % self.batch_size
            rows = (np.asarray(positions) - self._first) % len(self._array)
            yield {self.top: torch.from_numpy(self._array[rows])}


def fed_streams(node: Node) -> list[FedStream]:
    """Return a stream for each top of a layer that a caller feeds, of the shapes that its text states."""
    layer = make_layer(node)
    return [
        FedStream(layer, top, shape)
        for top, shape in zip(node.top_names, layer.input_shapes({}), strict=True)
    ]


def feed_streams(streams: Iterable[FedStream], arrays: Mapping[str, Any], *, at_once: bool = False) -> None:
    """Feed arrays to the tops of their names; all are checked before one is taken.

    Raises IlgnetError for a name that no top has, for an array that does not fit, and for data and labels of
    different lengths.
    """
    by_top = {stream.top: stream for stream in streams}
    for name in arrays:
        if name not in by_top:
            raise DataError(
                f"array {name!r}: the net takes {', '.join(by_top) or 'no arrays'}"
                f"{did_you_mean(str(name), list(by_top))}"
            )
    checked = {name: by_top[name].check(array) for name, array in arrays.items()}
    for node in {id(stream.node): stream.node for stream in by_top.values()}.values():
        if node.type != "MemoryData":
            continue
        own = [stream for stream in by_top.values() if stream.node is node]
        counts = {
            stream.top: len(checked[stream.top]) if stream.top in checked else stream.rows for stream in own
        }
        if any(stream.top in checked for stream in own) and len(set(counts.values())) > 1:
            stated = " and ".join(f"{count} rows of {top!r}" for top, count in counts.items())
            raise own[0]._layer.error(f"is fed {stated}; give as many of each")
    for name, array in checked.items():
        by_top[name].feed(array, at_once=at_once)


def as_rows(layer: Layer, top: str, array: Any, shape: Shape) -> np.ndarray:
    """Return an array as float32 rows of a top.  Raises LayerError, by name, for another shape and for no numbers."""
    try:
        values = np.asarray(array.detach().cpu() if isinstance(array, Tensor) else array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise layer.error(f"array {top!r} is not an array of numbers ({error}); give one") from error
    if values.dtype.kind not in "fiub":
        raise layer.error(f"array {top!r} is of type {values.dtype}; give numbers")
    if not shape and not values.ndim:
        return values.astype(np.float32)
    if not shape or not values.ndim or values.shape[1:] != shape[1:] or not len(values):
        wanted = f"rows of shape {shape[1:]}" if shape else "a single value"
        raise layer.error(f"array {top!r} is {values.shape}; it takes {wanted}")
    return values.astype(np.float32, copy=False)
