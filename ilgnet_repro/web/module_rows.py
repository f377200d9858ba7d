"""A torch model as rows: its modules in the order in which they run, and the operators between them.

A pass is recorded function by function; what a module without children computes is one row, as is a function of torch that
is called outside of such modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import excerpt
from .rows import Blob, Row


@dataclass
class _Step:
    """A module's call, or that of a function outside of modules; ``result`` is the shape of what it computes last."""

    name: str
    type: str
    module: nn.Module | None = None
    reads: dict[str, tuple[int, ...]] = field(default_factory=dict)
    result: tuple[int, ...] | None = None
    multiply_adds: int = 0
    value: Tensor | None = None


class Trace(TorchFunctionMode):
    """Records the functions of a pass; ``kept`` is the name of the step whose value is kept."""

    def __init__(self, kept: str | None = None) -> None:
        TorchFunctionMode.__init__(self)
        self.steps: list[_Step] = []
        self._kept = kept
        self._writers: dict[int, _Step] = {}
        self._alive: list[Tensor] = []  # so that no other tensor gets the id of one
        self._calls: list[_Step] = []
        self._names: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch and record what it reads and writes."""
        given = dict(kwargs or {})
        read = list(_tensors((args, given)))
        writers = [self._writers[id(one)] for one in read if id(one) in self._writers]
        found = func(*args, **given)
        made = list(_tensors(found))
        name = str(getattr(func, "__name__", "function"))
        is_same = any(one is other for one in made for other in read) and not name.endswith("_")
        if not made or not (writers or self._calls) or (is_same and not self._calls):
            return found  # a size, a constant, or a tensor that has its type already
        step = self._calls[-1] if self._calls else self.start(name.strip("_"), name.strip("_"))
        for writer in writers:
            if writer is not step:
                step.reads.setdefault(writer.name, writer.result or ())
        step.multiply_adds += _multiply_adds(name, read, made)
        step.result = tuple(made[0].shape)
        if step.name == self._kept:
            step.value = made[0].clone()  # what follows may write over it
        for one in made:
            self._keep(one, step)
        return found

    def enter(self, path: str, module: nn.Module) -> None:
        """Begin the call of a module without children."""
        self._calls.append(self.start(path, type(module).__name__, module))

    def leave(self) -> None:
        """End it."""
        self._calls.pop()

    def start(self, name: str, kind: str, module: nn.Module | None = None) -> _Step:
        """Add a step under a name that no other has."""
        times = self._names[name] = self._names.get(name, 0) + 1
        self.steps.append(_Step(f"{name}#{times}" if times > 1 else name, kind, module))
        return self.steps[-1]

    def given(self, name: str, value: Tensor) -> None:
        """Add an input."""
        step = self.start(name, "input")
        step.result = tuple(value.shape)
        self._keep(value, step)

    def _keep(self, value: Tensor, step: _Step) -> None:
        self._alive.append(value)
        self._writers[id(value)] = step


@contextmanager
def _calls_recorded(trace: Trace, model: nn.Module) -> Iterator[None]:
    """Record the calls of a model's modules without children."""
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if next(module.children(), None) is None and path:
                before = module.register_forward_pre_hook(_entering(trace, path))
                after = module.register_forward_hook(lambda *_: trace.leave(), always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
        yield


def _entering(trace: Trace, path: str) -> Callable[..., None]:
    return lambda module, _: trace.enter(path, module)


def record(model: nn.Module, name: str, value: Tensor, kept: str | None = None) -> Trace:
    """Run a model on one input and return the trace."""
    trace = Trace(kept)
    with torch.no_grad(), _calls_recorded(trace, model), trace:
        trace.given(name, value)
        model(value)
    return trace


def module_rows(model: nn.Module, name: str, shape: tuple[int, ...]) -> tuple[Row, ...]:
    """Return a model's rows for an input of a shape; modules that do not run have none."""
    trace = record(model, name, torch.zeros(shape))
    counted: set[int] = set()
    rows = []
    for step in trace.steps:
        if step.result is None:
            continue
        held = [] if step.module is None else [*step.module.named_parameters(), *step.module.named_buffers()]
        own = [] if step.module is None else list(step.module.parameters())
        new = [one for one in own if id(one) not in counted]
        counted.update(map(id, own))
        rows.append(
            Row(
                step.name, step.type, (step.result,),
                sum(one.numel() for one in new), step.multiply_adds, reads=tuple(step.reads), writes=(step.name,),
                fields="" if step.module is None else excerpt(str(step.module), 400),
                bottoms=tuple(step.reads.values()), blobs=tuple(Blob(key, tuple(one.shape)) for key, one in held),
            )
        )  # fmt: skip
    return tuple(rows)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)


def _multiply_adds(name: str, read: list[Tensor], made: list[Tensor]) -> int:
    """Return the multiply-adds of a convolution, dense layer or product of two tensors, 0 of another function."""
    shapes = [tuple(one.shape) for one in read]
    top = prod(made[0].shape)
    if len(shapes) < 2 or not shapes[0]:
        return 0
    if name in ("conv1d", "conv2d", "conv3d"):
        return top * prod(shapes[1][1:])
    if name.startswith("conv_transpose"):
        return prod(shapes[0]) * prod(shapes[1][1:])
    if name in ("linear", "matmul", "__matmul__", "mm", "bmm"):
        return top * shapes[0][-1]
    return 0
