"""The layers of a pycaffe net, run one by one on its blobs, forward and backward, as Caffe's layers are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ARITHMETIC, unusable
from ..layers.data import DummyData, MemoryData
from ..layers.support.base import Layer
from ..layers.support.fillers import fill
from .blob import Blob, BlobVec
from .python_layer import UserLayer

Blobs = Sequence[Blob]


class Step:
    """A layer with its blobs.  ``bottoms`` and ``tops`` are the net's own; in place a blob is both."""

    def __init__(self, name: str, type_: str, bottoms: Blobs, tops: Blobs, params: BlobVec) -> None:
        self.name, self.type = name, type_
        self.bottoms, self.tops, self.params = list(bottoms), list(tops), params

    def reshape(self) -> None:
        """Give the tops the shapes that follow from those of the bottoms."""

    def forward(self) -> None:
        """Compute the tops' values."""

    def backward(self, propagate: Sequence[bool]) -> None:
        """Compute the gradients of the bottoms with ``propagate``, and add to those of the parameters."""


class SplitStep(Step):
    """A Split: its tops have the values of the bottom, which gets the sum of their gradients."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for top in self.tops:
            top.data_memory = self.bottoms[0].data_memory

    def reshape(self) -> None:
        shape = self.bottoms[0].shape
        for top in self.tops:
            top.set_shape(shape)

    forward = reshape

    def backward(self, propagate: Sequence[bool]) -> None:
        if not propagate[0]:
            return
        parts = [top.gradient() for top in self.tops if not top.diff_memory.is_empty]
        bottom = self.bottoms[0]
        total = parts[0].clone() if parts else torch.zeros(bottom.shape)
        for part in parts[1:]:
            total += part
        bottom.put_gradient(total)


class TorchStep(Step):
    """A layer computed by torch; where it has a backward pass, the forward pass records what that needs."""

    def __init__(
        self, name: str, type_: str, bottoms: Blobs, tops: Blobs, params: BlobVec, layer: Layer, *,
        records: Sequence[bool] | None,
    ) -> None:  # fmt: skip
        """``records`` says to which bottoms gradients go; None for a layer without a backward pass."""
        super().__init__(name, type_, bottoms, tops, params)
        self.layer, self._records = layer, records
        self._tape: tuple[list[Tensor], Sequence[Tensor]] | None = None

    def reshape(self) -> None:
        with self._errors("cannot be planned"):
            made = self.layer.plan(*(blob.shape for blob in self.bottoms))
        for spec, blob in zip(made.blobs, self.params, strict=True):
            if tuple(spec.shape) != blob.shape:
                raise self.layer.error(
                    f"{spec.name} would be {list(spec.shape)} for bottoms of this size, but is {list(blob.shape)}; give "
                    "the blobs the size that the weights were made for"
                )
        for top, shape in zip(self.tops, made.tops, strict=False):
            top.set_shape(tuple(shape))

    def forward(self) -> None:
        bottoms = [blob.tensor() for blob in self.bottoms]
        with self._errors("cannot compute its tops"):
            tops: Sequence[Tensor]
            if self._records is None:
                tops = self.layer.forward(*bottoms)
            else:
                tops = self._record(bottoms, self._records)
        self.store(bottoms, tops)

    def store(self, bottoms: Sequence[Tensor], tops: Sequence[Tensor]) -> None:
        """Give the tops their values."""
        taken = {tensor.untyped_storage().data_ptr() for tensor in bottoms}
        for blob, top in zip(self.tops, tops, strict=False):
            blob.put(_owned(top.data, taken, blob.data_memory.place))

    def _record(self, bottoms: Sequence[Tensor], wanted: Sequence[bool]) -> Sequence[Tensor]:
        # `data` has a counter of changes of its own: writing a blob between the passes is allowed, as in Caffe.
        leaves = [
            (tensor.clone() if self._is_overwritten(blob) else tensor.data).requires_grad_(want)
            for blob, tensor, want in zip(self.bottoms, bottoms, wanted, strict=True)
        ]
        with torch.enable_grad():
            tops = self.layer.forward(*leaves)
        self._tape = leaves, tops
        return tops

    def _is_overwritten(self, blob: Blob) -> bool:
        """Whether the layer writes over a bottom's memory: in place, where an array of it has been handed out."""
        return blob.data_memory.is_seen and any(top is blob for top in self.tops)

    def backward(self, propagate: Sequence[bool]) -> None:
        if not self.layer.has_gradient:
            if any(propagate):
                raise self.layer.error("has no backward pass in Caffe; do not ask it for a gradient")
            return
        if self._tape is None:  # no forward pass yet: from the blobs as they are
            with self._errors("cannot compute its tops"):
                self._record([blob.tensor() for blob in self.bottoms], propagate)
        assert self._tape is not None
        leaves, tops = self._tape
        reached = [
            (top, blob.gradient().view(top.shape))
            for top, blob in zip(tops, self.tops, strict=False)
            if top.requires_grad
        ]
        targets = [leaf for leaf, go in zip(leaves, propagate, strict=True) if go and leaf.requires_grad]
        targets += [parameter for parameter in self.layer.parameters() if parameter.requires_grad]
        for leaf in leaves:
            leaf.grad = None
        if reached and targets:
            values, gradients = zip(*reached, strict=True)
            with self._errors("cannot compute its gradients"):
                torch.autograd.backward(values, gradients, retain_graph=True, inputs=targets)
        taken = {gradient.untyped_storage().data_ptr() for _, gradient in reached}
        for blob, leaf, go in zip(self.bottoms, leaves, propagate, strict=True):
            if go:
                gradient = torch.zeros(blob.shape) if leaf.grad is None else leaf.grad
                gradient = _owned(gradient.data, taken, blob.diff_memory.place)
                taken.add(gradient.untyped_storage().data_ptr())
                blob.put_gradient(gradient)
                leaf.grad = None

    def _errors(self, doing: str) -> _Errors:
        return _Errors(self.name, self.type, doing)


class _Errors:
    """Turns torch's exceptions into one line that names the layer; cheaper than a generator's context."""

    def __init__(self, name: str, type_: str, doing: str) -> None:
        self._name, self._type, self._doing = name, type_, doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ARITHMETIC):
            raise unusable(self._name, self._type, self._doing, error) from error


def _owned(values: Tensor, taken: set[int], own: int) -> Tensor:
    """Return values that no other blob uses: a copy where they lie in memory of one (but the blob's own)."""
    if values.dtype != torch.float32:
        values = values.float()
    if not values.is_contiguous():
        values = values.contiguous()
    place = values.untyped_storage().data_ptr()
    if place in taken and place != own:
        return values.clone()
    return values


class SharedStep(TorchStep):
    """A layer whose top shares the bottom's memory: Flatten, Reshape, and Concat and Slice of one blob.

    With ``takes_gradient`` (Flatten) the bottom's gradient becomes the top's memory in the backward pass; the others
    share it from the start.  Caffe loses gradients where the two follow each other, and so does this.
    """

    def __init__(self, *arguments: Any, takes_gradient: bool) -> None:
        super().__init__(*arguments, records=None)
        self._takes_gradient = takes_gradient
        self._share()

    def _share(self) -> None:
        bottom, top = self.bottoms[0], self.tops[0]
        top.data_memory = bottom.data_memory
        if not self._takes_gradient:
            top.diff_memory = bottom.diff_memory

    def reshape(self) -> None:
        super().reshape()
        self._share()

    def forward(self) -> None:
        with self._errors("cannot compute its tops"):
            (top,) = self.layer.forward(*(blob.tensor() for blob in self.bottoms))
        self.tops[0].set_shape(top.shape)
        self._share()

    def backward(self, propagate: Sequence[bool]) -> None:
        if self._takes_gradient and propagate[0]:
            self.bottoms[0].diff_memory = self.tops[0].diff_memory


class ParameterStep(Step):
    """A Parameter layer: its top is its parameter."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        (top,), (param,) = self.tops, self.params
        top.data_memory, top.diff_memory = param.data_memory, param.diff_memory


class DummyStep(Step):
    """DummyData: constant tops are filled once, so that a script may set them; the others are drawn in each pass."""

    def __init__(
        self, name: str, type_: str, bottoms: Blobs, tops: Blobs, params: BlobVec, layer: DummyData
    ) -> None:
        super().__init__(name, type_, bottoms, tops, params)
        self._layer = layer
        self._drawn = [spec.filler is not None and spec.filler.type != "constant" for spec in layer.specs]
        for blob, spec, drawn in zip(self.tops, layer.specs, self._drawn, strict=True):
            if not drawn and spec.filler is not None and spec.filler.value:
                blob.put(fill(spec, torch.default_generator, layer.error))

    def forward(self) -> None:
        for blob, spec, drawn in zip(self.tops, self._layer.specs, self._drawn, strict=True):
            if drawn:
                shaped = replace(spec, shape=blob.shape)
                blob.put(fill(shaped, torch.default_generator, self._layer.error))


class DataStep(Step):
    """A layer that reads its source, one batch in each pass; it wraps after the last row, as Caffe's do."""

    def __init__(
        self, name: str, type_: str, bottoms: Blobs, tops: Blobs, params: BlobVec,
        batches: Callable[[], Iterator[dict[str, Tensor]]], names: Sequence[str],
    ) -> None:  # fmt: skip
        super().__init__(name, type_, bottoms, tops, params)
        self._open, self._names = batches, names
        self._batches: Iterator[dict[str, Tensor]] | None = None

    def forward(self) -> None:
        if self._batches is None:
            self._batches = self._open()
        try:
            batch = next(self._batches)
        except BaseException:
            self._batches = None  # an iterator that has raised yields nothing more
            raise
        for blob, name in zip(self.tops, self._names, strict=True):
            blob.put(batch[name])


class MemoryStep(Step):
    """MemoryData: rows of the arrays that `Net.set_input_arrays` gave."""

    def __init__(
        self, name: str, type_: str, bottoms: Blobs, tops: Blobs, params: BlobVec, layer: MemoryData
    ) -> None:
        super().__init__(name, type_, bottoms, tops, params)
        self._layer = layer
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None
        self._position = 0

    @property
    def batch(self) -> tuple[int, ...]:
        """Rows of a batch, channels, height and width."""
        param = self._layer.param
        return (param.batch_size, param.channels, param.height, param.width)

    def set_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Read from these arrays, from their first row on; they are not copied."""
        self._arrays, self._position = (data, labels), 0

    def forward(self) -> None:
        if self._arrays is None:
            raise self._layer.error("has no data; give them by net.set_input_arrays(data, labels)")
        size, start = self.batch[0], self._position
        for blob, rows in zip(self.tops, self._arrays, strict=True):
            # The script's own memory, as in Caffe, so that nothing may be copied into it.
            blob.data_memory.replace(torch.from_numpy(rows[start : start + size]).view(blob.shape))
        self._position = (start + size) % len(self._arrays[0])


class PythonStep(Step):
    """A layer that a script wrote: its methods get the net's own blobs, and its exceptions reach the caller."""

    def __init__(
        self, name: str, type_: str, bottoms: Blobs, tops: Blobs, params: BlobVec, layer: UserLayer
    ) -> None:
        super().__init__(name, type_, bottoms, tops, params)
        # The lists that `setup` got: a script's layer may have kept them.
        layer.bottoms[:], layer.tops[:] = bottoms, tops
        self.bottoms, self.tops = layer.bottoms, layer.tops
        self.user = layer.user

    def reshape(self) -> None:
        self.user.reshape(self.bottoms, self.tops)

    def forward(self) -> None:
        self.user.reshape(self.bottoms, self.tops)
        self.user.forward(self.bottoms, self.tops)

    def backward(self, propagate: Sequence[bool]) -> None:
        self.user.backward(self.tops, list(propagate), self.bottoms)
