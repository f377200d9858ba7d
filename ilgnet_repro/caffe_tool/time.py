"""`caffe time`: forward and backward time of each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..caffe.graph import Graph, Node, Value
from ..errors import GraphError
from ..layers.support.base import Layer
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from ..train.debug_info import DebugInfo
from .log import LOCATIONS, Log, ostream


@dataclass(frozen=True)
class LayerTime:
    """Mean milliseconds of one layer per pass."""

    layer: str
    type: str
    forward: float
    backward: float


@dataclass(frozen=True)
class CaffeTime:
    """Mean milliseconds of each layer and of whole passes; ``total`` is the sum over all iterations."""

    iterations: int
    layers: tuple[LayerTime, ...]
    forward: float
    backward: float
    forward_backward: float
    total: float

    def to_dict(self) -> dict[str, Any]:
        """The result as a dictionary for JSON."""
        return asdict(self)


class _Clock:
    """Milliseconds per layer; synchronizes with the GPU, which runs asynchronously."""

    def __init__(self, layers: int, device: torch.device) -> None:
        self.spent = [0.0] * layers
        self._device = device

    def time(self, index: int, work: Callable[..., Any], *arguments: Any) -> Any:
        started = perf_counter()
        result = work(*arguments)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.spent[index] += 1000 * (perf_counter() - started)
        return result


def caffe_time(
    net: CaffeNet,
    batch: Mapping[str, Tensor],
    iterations: int = 50,
    log: Log = lambda location, message: None,
) -> CaffeTime:
    """Time ``iterations`` passes over one batch, after a warm-up pass that is not counted.

    Raises GraphError if ``iterations`` is below 1.
    """
    if iterations < 1:
        raise GraphError(f"iterations {iterations}: must be 1 or more")
    with as_loaded(net):
        return _timed(net, batch, iterations, log)


def _timed(net: CaffeNet, batch: Mapping[str, Tensor], iterations: int, log: Log) -> CaffeTime:
    steps = [(node, net.layer(node.name)) for node in net.graph]
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    batch = {name: value.to(device) for name, value in batch.items()}
    log("caffe.cpp:352", "Performing Forward")
    wants_debug = net.graph.text.debug_info  # of the first pass; the timed ones call the layers themselves
    debug = DebugInfo(net, lambda topic, text: log(LOCATIONS[topic], text)) if wants_debug else None
    first = net.run(batch, ()) if debug is None else debug.forward(batch, (), backward=True)
    log("caffe.cpp:357", f"Initial loss: {ostream(0.0 if first.loss is None else first.loss.item())}")
    log("caffe.cpp:358", "Performing Backward")
    if debug is not None:
        if first.loss is not None and first.loss.requires_grad:
            torch.autograd.backward(first.loss)
        debug.log_backward()
        net.zero_grad()
    _backward(
        steps, _forward(net.graph, steps, batch, _Clock(len(steps), device)), _Clock(len(steps), device)
    )
    forward, backward = _Clock(len(steps), device), _Clock(len(steps), device)
    log("caffe.cpp:366", "*** Benchmark begins ***")
    log("caffe.cpp:367", f"Testing for {iterations} iterations.")
    both = 0.0
    for number in range(iterations):
        started = perf_counter()
        _backward(steps, _forward(net.graph, steps, batch, forward), backward)
        spent = 1000 * (perf_counter() - started)
        both += spent
        log("caffe.cpp:395", f"Iteration: {number + 1} forward-backward time: {ostream(spent)} ms.")
    rows = tuple(
        LayerTime(node.name, node.type, f / iterations, b / iterations)
        for (node, _), f, b in zip(steps, forward.spent, backward.spent, strict=True)
    )
    log("caffe.cpp:398", "Average time per layer: ")
    for row in rows:
        log("caffe.cpp:401", f"{row.layer:>10}\tforward: {ostream(row.forward)} ms.")
        log("caffe.cpp:404", f"{row.layer:>10}\tbackward: {ostream(row.backward)} ms.")
    result = CaffeTime(
        iterations,
        rows,
        sum(row.forward for row in rows),
        sum(row.backward for row in rows),
        both / iterations,
        both,
    )
    log("caffe.cpp:409", f"Average Forward pass: {ostream(result.forward)} ms.")
    log("caffe.cpp:411", f"Average Backward pass: {ostream(result.backward)} ms.")
    log("caffe.cpp:413", f"Average Forward-Backward: {ostream(result.forward_backward)} ms.")
    log("caffe.cpp:415", f"Total Time: {ostream(result.total)} ms.")
    log("caffe.cpp:416", "*** Benchmark ends ***")
    return result


_Steps = list[tuple[Node, Layer]]
_Tape = list[tuple[list[Tensor], tuple[Tensor, ...]]]


def _forward(graph: Graph, steps: _Steps, batch: Mapping[str, Tensor], clock: _Clock) -> _Tape:
    """Run layer by layer, each detached from the previous one so that its backward pass can be timed separately."""
    values = {graph.input_value(name): value for name, value in batch.items()}
    tape: _Tape = []
    for index, (node, layer) in enumerate(steps):
        if layer.is_input:
            tape.append(([], ()))
            continue
        bottoms = []
        for position, bottom in enumerate(node.bottoms):
            value = values[bottom]
            bottom_tensor = value.detach()
            if value.requires_grad and position not in layer.stopped_bottoms:
                bottom_tensor.requires_grad_()
            bottoms.append(bottom_tensor)
        tops = clock.time(index, layer, *bottoms)
        values.update(zip(node.tops, tops, strict=False))
        tape.append((bottoms, tuple(tops)))
    return tape


def _backward(steps: _Steps, tape: _Tape, clock: _Clock) -> None:
    gradients: dict[Value | None, Tensor] = {}
    for index in reversed(range(len(steps))):
        node, layer = steps[index]
        bottoms, tops = tape[index]
        weights = (*layer.loss_weights(), *[0.0] * len(tops))
        values = (*node.tops, *[None] * len(tops))  # a loss layer may have no named top
        seeds = []
        for top, value, weight in zip(tops, values, weights, strict=False):
            seed = gradients.get(value)
            if weight:
                seed = torch.full_like(top, weight) if seed is None else seed + weight
            seeds.append(seed)
        reached = [
            (top, seed)
            for top, seed in zip(tops, seeds, strict=True)
            if seed is not None and top.requires_grad
        ]
        inputs = [bottom for bottom in bottoms if bottom.requires_grad]
        learned = [blob for blob in layer.blobs if blob.requires_grad]
        if not reached or not (inputs or learned):
            continue
        found = clock.time(index, _gradients, reached, [*inputs, *learned])
        read = [value for value, bottom in zip(node.bottoms, bottoms, strict=True) if bottom.requires_grad]
        for value, gradient in zip(read, found, strict=False):
            if gradient is not None:
                gradients[value] = gradients[value] + gradient if value in gradients else gradient


def _gradients(reached: list[tuple[Tensor, Tensor]], targets: list[Tensor]) -> tuple[Tensor | None, ...]:
    tops, seeds = zip(*reached, strict=True)
    return torch.autograd.grad(tops, targets, seeds, allow_unused=True)
