"""Tests during training: mean outputs over batches, on nets that share the train net's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..caffe.graph_build import graph_text
from ..reading.data_layer_batches import Feed
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from .debug_info import DebugInfo
from .distributed import ProcessGroup
from .nets import build_test_net, check_splitting
from .observe import Log, Output, Test, log_outputs
from .precision import Precision
from .solver import Settings


class Tester:
    """All test nets of a solver.  The processes split the batches of a test."""

    def __init__(
        self,
        settings: Settings,
        train_net: CaffeNet,
        *,
        seed: int,
        device: torch.device,
        precision: Precision,
        group: ProcessGroup,
        log: Log,
        arrays: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.nets: list[CaffeNet] = []
        self._settings, self._group = settings, group
        self._device, self._precision = device, precision
        self.feeds: list[Feed] = []
        for index, test_net in enumerate(settings.test_nets):
            source = test_net.source
            log("test_net", f"Creating test net (#{index}) specified by {source.label}")
            log("net", "Initializing net from parameters: \n" + graph_text(source.graph, source.state))
            fed = None if arrays is None else arrays[index] if index < len(arrays) else {}
            feed = Feed(source.graph, source.files, seed, arrays=fed)
            self.nets.append(
                build_test_net(source.graph, feed.shapes(), train_net, source.files).to(
                    device, precision.dtype
                )
            )
            check_splitting(self.nets[-1], group.world)
            self.feeds.append(feed)
            log_outputs(self.nets[-1], log)
            for file in settings.weights:
                log("weights", f"Finetuning from {file}")
        self._batches: list[Iterator[dict[str, Tensor]]] = []
        wants_debug = settings.debug_info and group.is_first
        self._debugs = [DebugInfo(net, log) for net in self.nets] if wants_debug else []

    def seek(self, tests: int, workers: int) -> None:
        """Move the data to the position after a number of tests; ``workers`` threads read ahead."""
        group = self._group
        self._batches = [
            feed.batches(_own_passes(tests, test_net.test_iter, group.rank, group.world), workers)
            for feed, test_net in zip(self.feeds, self._settings.test_nets, strict=True)
        ]

    def tests_before(self, iteration: int) -> int:
        """Return how many tests a run has made when it comes to ``iteration``."""
        settings = self._settings
        done = -(-iteration // settings.test_interval) if settings.test_interval else 0
        return done - 1 if iteration and not settings.test_initialization else done

    @torch.no_grad()
    def run(self, index: int, iteration: int, is_stopped: Callable[[], bool]) -> Test | None:
        """Test one net and return its results; None if ``is_stopped``, called before each batch, stopped it."""
        net, group = self.nets[index], self._group
        iterations = self._settings.test_nets[index].test_iter
        with_loss = self._settings.test_compute_loss
        if not iterations:  # Caffe divides 0 by 0 for the loss, and has no outputs
            return Test(iteration, index, (), -math.nan if with_loss else None)
        names = net.outputs
        scores = _score_blobs(net)
        sums: Tensor | None = None
        sizes: dict[str, Tensor] = {}
        for _ in range(group.rank, iterations, group.world):
            if group.world == 1 and is_stopped():  # in a group, processes would stop at different batches
                return None
            batch = next(self._batches[index])
            batch = {top: value.to(self._device, self._precision.dtype) for top, value in batch.items()}
            with as_loaded(net):
                if self._debugs:
                    done = self._debugs[index].forward(batch, (*names, *scores), backward=False)
                else:
                    done = net.run(batch, (*names, *scores))
            sizes = {name: done.blobs[name].reshape(-1) for name in names}
            loss = torch.zeros(1, device=self._device) if done.loss is None else done.loss.view(1)
            nonfinite = ~loss.isfinite() | any(bool(done.blobs[name].isnan().any()) for name in scores)
            values = torch.cat(
                [loss.double(), nonfinite.double(), *(value.double() for value in sizes.values())]
            )
            sums = values if sums is None else sums + values
        if sums is None:  # more processes than batches: zeros of the right size
            sizes = {name: torch.zeros(net.shapes[name]).reshape(-1) for name in names}
            sums = torch.zeros(2 + sum(map(len, sizes.values())), dtype=torch.float64, device=self._device)
        loss, nonfinite_mean, *means = (group.sum(sums) / iterations).tolist()
        return Test(
            iteration, index, output_values(net, sizes, means),
            loss if with_loss else None, finite=not nonfinite_mean,
        )  # fmt: skip


def _score_blobs(net: CaffeNet) -> tuple[str, ...]:
    """The bottoms of outputs without a gradient: an accuracy does not show whether its scores are NaN."""
    steps, outputs = net.steps(net.outputs), set(map(net.graph.value, net.outputs))
    read = [
        node.bottoms
        for node, layer in steps
        if not layer.has_gradient and not layer.is_input and outputs.intersection(node.tops)
    ]
    return tuple(dict.fromkeys(net.graph.names[value] for bottoms in read for value in bottoms))


def _own_passes(first_test: int, test_iter: int, rank: int, world: int) -> Iterable[int]:
    """Yield the pass numbers of one process, from a test on, without end; none where a test has no passes."""
    for test in count(first_test) if test_iter else ():
        yield from range(test * test_iter + rank, (test + 1) * test_iter, world)


def output_values(net: CaffeNet, blobs: Mapping[str, Tensor], values: Sequence[float]) -> tuple[Output, ...]:
    """Pair the concatenated values of the blobs with their names and loss weights."""
    weights = {
        top: weight
        for node in net.graph
        for top, weight in zip(node.tops, net.layer(node.name).loss_weights(), strict=False)
    }
    remaining = iter(values)
    return tuple(
        Output(name, next(remaining), weights.get(net.graph.value(name), 0.0))
        for name, blob in blobs.items()
        for _ in range(blob.numel())
    )
