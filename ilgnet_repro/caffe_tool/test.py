"""`caffe test`: run batches through a net, log each output, and the means at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..caffe.graph import Value
from ..errors import GraphError
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet, Pass
from ..runtime.runnable import Runnable
from ..train.debug_info import DebugInfo
from .log import LOCATIONS, Log, batch_line, mean_line, ostream

DEFAULT_ITERATIONS = 50


class Feed(Protocol):
    """The inputs of a net, pass by pass."""

    def batches(self, count: int) -> Iterator[dict[str, torch.Tensor]]: ...


@dataclass(frozen=True)
class OutputMean:
    """One value of an output blob over all batches; ``weight`` and ``weighted`` are 0 if it is not a loss."""

    blob: str
    mean: float
    weight: float
    weighted: float


@dataclass(frozen=True)
class CaffeTest:
    """Result of `caffe test`: ``batches[blob][k]`` are the values of batch k, ``loss`` the mean loss."""

    iterations: int
    loss: float
    batches: dict[str, tuple[tuple[float, ...], ...]]
    means: tuple[OutputMean, ...]

    def to_dict(self) -> dict[str, Any]:
        """The result as a dictionary for JSON."""
        return asdict(self)


def caffe_test(
    net: CaffeNet,
    feed: Feed,
    iterations: int = DEFAULT_ITERATIONS,
    log: Log = lambda location, message: None,
    progress: Callable[[int], None] = lambda done: None,
    *,
    fast: Runnable | None = None,
) -> CaffeTest:
    """Run ``iterations`` batches; sums are kept in float32, added in batch order, as in Caffe.

    ``fast``, the net's fast form, computes in its place where it is given.  Raises GraphError if ``iterations`` is below 1.
    """
    if iterations < 1:
        raise GraphError(f"iterations {iterations}: must be 1 or more")
    weights = output_weights(net)
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    rows: dict[str, list[np.ndarray]] = {name: [] for name in net.outputs}
    loss = np.float32(0)
    log("caffe.cpp:281", f"Running for {iterations} iterations.")
    wants_debug = net.graph.text.debug_info  # the net's own; a solver states it for its nets
    if wants_debug and fast is not None:
        raise GraphError(
            f"net {net.graph.name!r} states debug_info, which the exact net prints; remove it, or omit the engine"
        )
    debug = DebugInfo(net, lambda topic, text: log(LOCATIONS[topic], text)) if wants_debug else None
    for number, batch in enumerate(feed.batches(iterations)):
        with torch.inference_mode(), as_loaded(net):
            inputs = {name: value.to(device) for name, value in batch.items()}
            if debug is not None:
                done = debug.forward(inputs, net.outputs, backward=False)
            else:
                done = net.run(inputs) if fast is None else _run_fast(fast, inputs, net, weights)
        if done.loss is not None:
            loss += np.float32(done.loss.item())
        for name in net.outputs:
            values = done.blobs[name].float().cpu().numpy().reshape(-1)
            rows[name].append(values)
            for value in values:
                log("caffe.cpp:304", batch_line(number, name, float(value)))
        progress(number + 1)
    loss /= np.float32(iterations)
    log("caffe.cpp:309", f"Loss: {ostream(float(loss))}")
    means = []
    for name in net.outputs:
        weight = weights.get(net.graph.value(name), 0.0)
        for total in _sum(rows[name]):
            mean = total / np.float32(iterations)
            one = OutputMean(name, float(mean), weight, float(np.float32(weight) * mean))
            log("caffe.cpp:321", mean_line(one.blob, one.mean, one.weight, one.weighted))
            means.append(one)
    batches = {name: tuple(tuple(row.tolist()) for row in values) for name, values in rows.items()}
    return CaffeTest(iterations, float(loss), batches, tuple(means))


def _run_fast(
    fast: Runnable, given: Mapping[str, torch.Tensor], net: CaffeNet, weights: Mapping[Value, float]
) -> Pass:
    """Run a fast net for the outputs, and the weighted sum of all losses."""
    losses = {net.graph.names[top]: weight for top, weight in weights.items()}
    blobs = fast(given, blobs=tuple(dict.fromkeys([*net.outputs, *losses])))
    total = None
    for name, weight in losses.items():
        term = weight * blobs[name].sum()
        total = term if total is None else total + term
    return Pass(blobs, total)


def output_weights(net: CaffeNet) -> dict[Value, float]:
    """The loss weight of each top that has one."""
    return {
        top: weight
        for node in net.graph
        for top, weight in zip(node.tops, net.layer(node.name).loss_weights(), strict=False)
        if weight
    }


def _sum(rows: list[np.ndarray]) -> np.ndarray:
    total = np.zeros_like(rows[0], np.float32)
    for row in rows:
        total += row
    return total
