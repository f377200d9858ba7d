"""The values of blobs: memory that keeps its place as long as anyone looks at it."""

from __future__ import annotations

import weakref
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


class Memory:
    """Float32 values in one piece; blobs that share memory in Caffe have the same `Memory`.

    Results are taken over without a copy, unless an array of the values has been handed out and still exists: Caffe
    computes into the same memory in every pass, so such an array must show the new values.
    """

    __slots__ = ("_array", "_tensor")

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._array: weakref.ref[np.ndarray] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no values were stored yet; they read as zeros."""
        return self._tensor is None

    @property
    def place(self) -> int:
        """The address of its storage; 0 where it is empty."""
        return 0 if self._tensor is None else self._tensor.untyped_storage().data_ptr()

    def tensor(self, shape: Shape) -> Tensor:
        """The values as a tensor of this shape, on the same memory.  It grows, with zeros, if it holds fewer values."""
        held = self._tensor
        if held is not None and held.shape == shape:
            return held
        return self._flat(prod(shape)).view(shape)

    def array(self, shape: Shape) -> np.ndarray:
        """The values as a writable array of this shape, on the same memory."""
        flat = self._flat(prod(shape))
        base = None if self._array is None else self._array()
        if base is None:
            base = self._whole().numpy()
            self._array = weakref.ref(base)
        # numpy gives every view of a view the same base, so the base lives as long as any of them.
        return base[: flat.numel()].reshape(shape)

    def put(self, values: Tensor) -> None:
        """Replace the values by those of a tensor that nothing else uses, contiguous and without gradient."""
        base = None if self._array is None else self._array()
        if base is None or values.numel() > base.size:
            self.replace(values)
        elif self._whole().data_ptr() != values.data_ptr():
            # By numpy: a copy by torch would be counted as a change of what the backward pass has saved.
            np.copyto(base[: values.numel()], values.view(-1).numpy())

    def replace(self, values: Tensor) -> None:
        """Use the memory of a tensor from now on; arrays that were handed out keep showing the old one."""
        self._hold(values)
        self._array = None

    @property
    def is_seen(self) -> bool:
        """Whether an array of the values has been handed out and still exists."""
        return self._array is not None and self._array() is not None

    def share(self, other: Memory, shape: Shape) -> None:
        """Use the values of another memory from now on, which must be as many."""
        self.replace(other.tensor(shape))

    def _flat(self, count: int) -> Tensor:
        whole = self._tensor
        if whole is None or whole.numel() < count:
            self.replace(torch.zeros(count))
        whole = self._whole()
        return whole if whole.numel() == count else whole[:count]

    def _whole(self) -> Tensor:
        held = self._tensor
        assert held is not None
        return held.view(-1)

    def _hold(self, values: Tensor) -> None:
        self._tensor = values


class ParameterValues(Memory):
    """The values of a layer's parameter."""

    __slots__ = ("_parameter",)

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self._parameter = parameter
        self._tensor = parameter.data

    def _hold(self, values: Tensor) -> None:
        self._tensor = values
        self._parameter.data = values.view(self._parameter.shape)


class ParameterGradient(Memory):
    """The gradient of a layer's parameter: the passes add to it until it is cleared."""

    __slots__ = ("_parameter",)

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self._parameter = parameter

    @property
    def is_empty(self) -> bool:
        return self._parameter.grad is None

    def tensor(self, shape: Shape) -> Tensor:
        self._refresh()
        return super().tensor(shape)

    def array(self, shape: Shape) -> np.ndarray:
        self._refresh()
        return super().array(shape)

    def clear(self) -> None:
        """Set the gradient to zero, in place."""
        if self._parameter.grad is not None:
            self._parameter.grad.zero_()

    def _refresh(self) -> None:
        gradient = self._parameter.grad
        if gradient is None:
            gradient = self._parameter.grad = torch.zeros_like(
                self._parameter, memory_format=torch.contiguous_format
            )
        elif not gradient.is_contiguous():
            gradient = self._parameter.grad = gradient.contiguous()
        if self._tensor is None or self._tensor.data_ptr() != gradient.data_ptr():
            self._tensor, self._array = gradient, None

    def _hold(self, values: Tensor) -> None:
        self._tensor = values
        self._parameter.grad = values.view(self._parameter.shape)
