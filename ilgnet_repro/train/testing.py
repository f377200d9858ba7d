"""The tests during training: mean outputs of some batches, on nets that share the train net's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count

import torch
from torch import Tensor

from ..reading.feed import Feed
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from .distributed import Group
from .nets import build_test_net, check_splitting
from .observe import Output, Tell, Test, tell_outputs
from .precision import Precision
from .solver import Settings, net_text


class Tester:
    """All test nets of a solver.  Processes share the batches of a test between them."""

    def __init__(
        self,
        settings: Settings,
        train_net: CaffeNet,
        *,
        seed: int,
        device: torch.device,
        precision: Precision,
        group: Group,
        tell: Tell,
    ) -> None:
        self.nets: list[CaffeNet] = []
        self._settings, self._group = settings, group
        self._device, self._precision = device, precision
        self._feeds: list[Feed] = []
        for index, test_net in enumerate(settings.test_nets):
            source = test_net.source
            tell("test_net", f"Creating test net (#{index}) specified by {source.label}")
            tell("net", "Initializing net from parameters: \n" + net_text(source))
            feed = Feed(source.graph, settings.root, seed)
            self.nets.append(
                build_test_net(source.graph, feed.shapes(), train_net).to(device, precision.dtype)
            )
            check_splitting(self.nets[-1], group.world)
            self._feeds.append(feed)
            tell_outputs(self.nets[-1], tell)
            for file in settings.weights:
                tell("weights", f"Finetuning from {file}")
        self._batches: list[Iterator[dict[str, Tensor]]] = []

    def go_to(self, iteration: int, workers: int) -> None:
        """Put the data where they are after all tests of the iterations before this one; ``workers`` read ahead."""
        settings = self._settings
        done = -(-iteration // settings.test_interval) if settings.test_interval else 0
        if iteration and not settings.test_initialization:
            done -= 1
        group = self._group
        self._batches = [
            feed.batches(_own_passes(done, test_net.test_iter, group.rank, group.world), workers)
            for feed, test_net in zip(self._feeds, settings.test_nets, strict=True)
        ]

    @torch.no_grad()
    def run(self, index: int, iteration: int, is_stopped: Callable[[], bool]) -> Test | None:
        """Test one net and return its results; None where ``is_stopped``, asked before each batch, cuts it short."""
        net, group = self.nets[index], self._group
        times = self._settings.test_nets[index].test_iter
        names = net.outputs
        scores = _scores(net)
        sums: Tensor | None = None
        sizes: dict[str, Tensor] = {}
        for _ in range(group.rank, times, group.world):
            if group.world == 1 and is_stopped():  # between batches it would part the processes of a group
                return None
            batch = next(self._batches[index])
            batch = {top: value.to(self._device, self._precision.dtype) for top, value in batch.items()}
            with as_loaded(net):
                done = net.run(batch, (*names, *scores))
            sizes = {name: done.blobs[name].reshape(-1) for name in names}
            loss = torch.zeros(1, device=self._device) if done.loss is None else done.loss.view(1)
            unsound = ~loss.isfinite() | any(bool(done.blobs[name].isnan().any()) for name in scores)
            values = torch.cat(
                [loss.double(), unsound.double(), *(value.double() for value in sizes.values())]
            )
            sums = values if sums is None else sums + values
        if sums is None:  # more processes than batches: the outputs' sizes, at least
            sizes = {name: torch.zeros(net.shapes[name]).reshape(-1) for name in names}
            sums = torch.zeros(2 + sum(map(len, sizes.values())), dtype=torch.float64, device=self._device)
        loss, unsound_share, *means = (group.sum(sums) / times).tolist()
        return Test(
            iteration, index, output_values(net, sizes, means),
            loss if self._settings.test_compute_loss else None, finite=not unsound_share,
        )  # fmt: skip


def _scores(net: CaffeNet) -> tuple[str, ...]:
    """The blobs that outputs without a gradient are made of: an accuracy does not show that they are NaN."""
    steps, outputs = net.steps(net.outputs), set(map(net.graph.value, net.outputs))
    read = [
        node.bottoms
        for node, layer in steps
        if not layer.has_gradient and not layer.is_input and outputs.intersection(node.tops)
    ]
    return tuple(dict.fromkeys(net.graph.names[value] for bottoms in read for value in bottoms))


def _own_passes(first_test: int, test_iter: int, rank: int, world: int) -> Iterable[int]:
    """The numbers of the passes that one process makes, from a test on, for ever."""
    for test in count(first_test):
        yield from range(test * test_iter + rank, (test + 1) * test_iter, world)


def output_values(net: CaffeNet, blobs: Mapping[str, Tensor], values: Sequence[float]) -> tuple[Output, ...]:
    """Name each of the values that the blobs hold, one behind the other, with its weight in the loss."""
    weights = {
        top: weight
        for node in net.graph
        for top, weight in zip(node.tops, net.layer(node.name).loss_weights(), strict=False)
    }
    rest = iter(values)
    return tuple(
        Output(name, next(rest), weights.get(net.graph.value(name), 0.0))
        for name, blob in blobs.items()
        for _ in range(blob.numel())
    )
