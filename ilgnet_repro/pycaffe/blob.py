"""`Blob`: values and gradients of one shape, as arrays that scripts read and write."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from math import prod

import numpy as np
from torch import Tensor

from ..caffe.param_sharing import show_shape
from ..errors import IlgnetError
from .memory import Memory, Shape

LARGEST = 2**31 - 1  # Caffe counts in a signed 32-bit integer
_LEGACY_AXES = 4


class Blob:
    """A blob of a net or a layer; it lives as long as it is used, whatever becomes of its net.

    ``data`` and ``diff`` are arrays on the blob's own memory: what is written there, the next pass reads, and after a
    pass they show what it computed.
    """

    __slots__ = ("__weakref__", "_shape", "data_memory", "diff_memory")

    def __init__(
        self, shape: Iterable[int] = (), data: Memory | None = None, diff: Memory | None = None
    ) -> None:
        self._shape: Shape = tuple(shape)
        self.data_memory = Memory() if data is None else data
        self.diff_memory = Memory() if diff is None else diff

    def __repr__(self) -> str:
        return f"<Blob {show_shape(self._shape) or 'scalar'}>"

    # ------------------------------------------------------------------ for scripts

    @property
    def data(self) -> np.ndarray:
        """The values, as a writable array on the blob's memory."""
        return self.data_memory.array(self._shape)

    @property
    def diff(self) -> np.ndarray:
        """The gradient, as a writable array on the blob's memory."""
        return self.diff_memory.array(self._shape)

    @property
    def shape(self) -> Shape:
        """The lengths of its axes."""
        return tuple(self._shape)

    @property
    def count(self) -> int:
        """The number of values."""
        return prod(self._shape)

    @property
    def num(self) -> int:
        """The length of axis 0; 1 where there is none."""
        return self._legacy(0)

    @property
    def channels(self) -> int:
        """The length of axis 1; 1 where there is none."""
        return self._legacy(1)

    @property
    def height(self) -> int:
        """The length of axis 2; 1 where there is none."""
        return self._legacy(2)

    @property
    def width(self) -> int:
        """The length of axis 3; 1 where there is none."""
        return self._legacy(3)

    def reshape(self, *shape: int) -> None:
        """Give it other lengths; memory is only taken where the blob grows, and values keep their order."""
        try:
            wanted = tuple(operator.index(length) for length in shape)
        except TypeError:
            raise ShapeError(f"blob.reshape{shape}: give integers, as blob.reshape(1, 3, 227, 227)") from None
        if any(length < 0 for length in wanted):
            raise ShapeError(f"blob.reshape{wanted}: a length is negative; give 0 or more")
        if prod(wanted) > LARGEST:
            raise ShapeError(
                f"blob.reshape{wanted}: {prod(wanted):,} values, more than Caffe's limit of {LARGEST:,}; "
                "give smaller lengths"
            )
        self._shape = wanted

    def _legacy(self, axis: int) -> int:
        if len(self._shape) > _LEGACY_AXES:
            raise ShapeError(
                f"a blob of {len(self._shape)} axes has no num, channels, height and width; use blob.shape"
            )
        return self._shape[axis] if axis < len(self._shape) else 1

    # ------------------------------------------------------------------ for the net

    def tensor(self) -> Tensor:
        """The values as a tensor on the blob's memory."""
        return self.data_memory.tensor(self._shape)

    def gradient(self) -> Tensor:
        """The gradient as a tensor on the blob's memory."""
        return self.diff_memory.tensor(self._shape)

    def set_shape(self, shape: Shape) -> None:
        """Give it the lengths of what was computed."""
        self._shape = shape

    def put(self, values: Tensor) -> None:
        """Take over the result of a layer: its values and its shape (see `Memory.put`)."""
        self._shape = values.shape
        self.data_memory.put(values)

    def put_gradient(self, values: Tensor) -> None:
        """Take over a gradient."""
        self.diff_memory.put(values)


class ShapeError(IlgnetError, TypeError, ValueError):
    """Lengths that no blob can have."""


class BlobVec(list[Blob]):
    """The blobs of a layer, in Caffe's order."""

    def add_blob(self, *shape: int) -> None:
        """Append a parameter of these lengths, of zeros; a Python layer calls it in `setup`."""
        blob = Blob()
        blob.reshape(*shape)
        self.append(blob)
