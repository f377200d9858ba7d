"""CUDA graphs: the kernels of a pass, recorded once for a size of its inputs and launched together from then on.

A small net's layers take less time on a GPU than Python takes to launch them one by one.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..layers.support.base import Layer, Shape
from .torch_steps import Step

MOST_GRAPHS = 4  # each holds the memory of all blobs of a pass
_READS_BACK = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::copy")
_INDEXES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")

_FROM_PYTHON = "aten::lift_fresh"  # torch.tensor(numbers)

Tensors = list[Tensor]
Run = Callable[[Sequence[Tensor]], Tensors]


class Replays:
    """A function of tensors on a device, run as a CUDA graph for each size of its inputs.

    The first call of a size runs the function, the second records it by ``record``.  Calls from several threads take
    turns, and a call on another stream waits for the one before it: a graph has its inputs and outputs at fixed places.
    """

    def __init__(self, run: Run, record: Callable[[Sequence[Tensor]], Run]) -> None:
        self._run, self._record, self._lock = run, record, Lock()
        self._kept: OrderedDict[tuple[Shape, ...], Run | None] = OrderedDict()
        self._stream: Any = None

    def note(self, given: Sequence[Tensor]) -> bool:
        """Return whether a size is new, and keep it."""
        key = _sizes(given)
        is_new = key not in self._kept
        if is_new:
            self._kept[key] = None
            if len(self._kept) > MOST_GRAPHS:
                self._kept.popitem(last=False)
        return is_new

    def __call__(self, given: Sequence[Tensor]) -> Tensors:
        with self._lock:
            if self.note(given):
                return self._run(given)
            key = _sizes(given)
            self._kept.move_to_end(key)
            self._follow_stream(given[0].device)
            replay = self._kept[key]
            if replay is None:
                replay = self._kept[key] = self._record(given)
            return replay(given)

    def _follow_stream(self, device: torch.device) -> None:
        """Let this call's stream wait for that of the call before it."""
        if device.type != "cuda":
            return
        stream = torch.cuda.current_stream(device)
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
        self._stream = stream


def _sizes(given: Sequence[Tensor]) -> tuple[Shape, ...]:
    return tuple(tuple(value.shape) for value in given)


class Graph:
    """A recorded pass: copies its inputs to their places, launches the kernels, and copies the outputs."""

    def __init__(self, replay: Callable[[], None], inputs: Tensors, outputs: Tensors) -> None:
        self.replay, self.inputs, self.outputs = replay, inputs, outputs

    def __call__(self, given: Sequence[Tensor]) -> Tensors:
        for place, value in zip(self.inputs, given, strict=True):
            place.copy_(value)
        self.replay()
        return [value.clone() for value in self.outputs]


def record_graph(run: Run, given: Sequence[Tensor]) -> Graph:
    """Record a function of tensors on a CUDA device as a graph; it must have run with these sizes before."""
    device = given[0].device
    places = [value.clone() for value in given]
    with torch.cuda.device(device), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The CUDA Graph is empty"
        )  # layers that only view their bottoms
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # cuDNN measures its kernels here: while recording it cannot
            run(places)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # cuBLAS's workspaces belong to no graph, and torch.compile frees them when it records its own: each graph takes
        # new ones, of its own memory.
        torch._C._cuda_clearCublasWorkspaces()
        # Other threads may allocate memory meanwhile.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            outputs = run(places)
        torch._C._cuda_clearCublasWorkspaces()
    return Graph(graph.replay, places, outputs)


# ---------------------------------------------------------------------- what cannot be recorded


def watched(steps: Sequence[Step]) -> tuple[list[Step], list[str]]:
    """Return steps that compute the same, and a list to which they add the layers that no graph can record.

    These read values back to the CPU, or from it.
    """
    found: list[str] = []
    return [Step(_Watched(step.module, found), step.bottoms, step.tops) for step in steps], found


class _Watched(nn.Module):
    def __init__(self, module: nn.Module, found: list[str]) -> None:
        super().__init__()
        self.module, self.found = module, found

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        watch = _Watch(bottoms[0].device if bottoms else None)
        with watch:
            tops: tuple[Tensor, ...] = self.module(*bottoms)
        if watch.has_found or not bottoms:
            layer: Any = getattr(self.module, "layer", self.module)
            is_layer = isinstance(layer, Layer)
            self.found.append(f"{layer.node.name} ({layer.node.type})" if is_layer else type(layer).__name__)
        return tops


class _Watch(TorchDispatchMode):
    """Notices operators whose kernels need values on the CPU."""

    def __init__(self, device: torch.device | None) -> None:
        mode: Any = super()  # torch gives it no types
        mode.__init__()
        self.device, self.has_found = device, False

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:  # the names are torch's order
        options = options or {}
        made = function(*arguments, **options)
        name = function._schema.name
        if name in _INDEXES:
            self.has_found |= any(value is not None and self._is_read(value) for value in arguments[1])
        elif name == _FROM_PYTHON:
            self.has_found |= made.device == self.device
        elif name in _COPIES:
            values = [value for value in (*arguments, made) if isinstance(value, Tensor)]
            self.has_found |= len({value.device for value in values}) > 1
        elif any(tag in function.tags for tag in _READS_BACK):
            self.has_found = True
        return made

    def _is_read(self, index: Tensor) -> bool:
        """Whether indexing by a tensor waits for its values."""
        return index.dtype in (torch.bool, torch.uint8) or index.device != self.device
