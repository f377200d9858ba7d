"""pycaffe's solvers: Caffe's training loop over nets whose blobs and layers scripts reach."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..caffe.graph_build import graph_text
from ..caffe_tool.log import CaffeLog
from ..errors import SolverError
from ..runtime.net import CaffeNet
from ..schema import caffe_pb2 as pb
from ..train.loop import Options, Trainer
from ..train.nets import check_layer_names
from ..train.observe import Log, Output, Test, log_outputs
from ..train.solver import Settings, read_settings, solver_root
from ..train.testing import Tester, output_values
from ..train.updates import Updater
from .debug_log import DebugLog
from .failures import Failure
from .net import Net

PathLike = str | os.PathLike[str]


class _Tester(Tester):
    """Tests on pycaffe nets, which read their own data."""

    def __init__(self, settings: Settings, train_net: Net, seed: int, log: Log) -> None:
        self._settings, self._log = settings, log
        self.feeds = []
        self.pycaffe_nets: list[Net] = []
        for index, test_net in enumerate(settings.test_nets):
            source = test_net.source
            log("test_net", f"Creating test net (#{index}) specified by {source.label}")
            log("net", "Initializing net from parameters: \n" + graph_text(source.graph, source.state))
            self.pycaffe_nets.append(Net.of_graph(source.graph, settings.root, seed=seed, share=train_net))
            log_outputs(self.pycaffe_nets[-1].caffe_net, log)
        self.nets = [net.caffe_net for net in self.pycaffe_nets]

    def run(self, index: int, iteration: int, is_stopped: Callable[[], bool]) -> Test | None:
        """Test one net: the means of its outputs over `test_iter` passes."""
        net, iterations = self.pycaffe_nets[index], self._settings.test_nets[index].test_iter
        total, sums, sizes = 0.0, torch.zeros(0, dtype=torch.float64), dict[str, Tensor]()
        for number in range(iterations):
            if is_stopped():
                return None
            with DebugLog(net, self._log).logged() if self._settings.debug_info else nullcontext():
                total += net._forward(0, len(net.layers) - 1)
            sizes = _outputs(net)
            values = _concatenated(sizes)
            sums = sums + values if number else values
        loss = (
            (total / iterations if iterations else float("nan")) if self._settings.test_compute_loss else None
        )
        means = (sums / max(iterations, 1)).tolist()
        return Test(iteration, index, output_values(net.caffe_net, sizes, means), loss)


def _outputs(net: Net) -> dict[str, Tensor]:
    return {name: net.blobs[name].tensor().reshape(-1) for name in net.outputs}


def _concatenated(outputs: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(value.double() for value in outputs.values())])


class _Trainer(Trainer):
    """The training loop over a pycaffe net: its layers run one by one, and its blobs keep what they computed."""

    pycaffe_net: Net
    callbacks: tuple[tuple[Callable[[], object], Callable[[], object]], ...] = ()
    tester: _Tester
    _is_logged = False  # for debug_info

    def _build(
        self, arrays: Mapping[str, Any] | None, test_arrays: Sequence[Mapping[str, Any]] | None
    ) -> None:
        settings = self.settings
        source = settings.train_net
        self.log("train_net", f"Creating training net {source.label}")
        self.log("net", "Initializing net from parameters: \n" + graph_text(source.graph, source.state))
        files = [settings.root / file for file in settings.weights]
        self.pycaffe_net = Net.of_graph(source.graph, settings.root, files, seed=self.seed)
        self.net: CaffeNet = self.pycaffe_net.caffe_net
        check_layer_names(self.net)
        for note in self.snapshots.check_names(self.net):
            self.log("note", note)
        log_outputs(self.net, self.log)
        for file in settings.weights:
            self.log("weights", f"Finetuning from {file}")
        self.learnables = self.net.learnables()
        self.updater = Updater(settings, self.learnables, keep_updates=True)
        self.tester = _Tester(settings, self.pycaffe_net, self.seed, self.log)
        self.log("built", "Solver scaffolding done.")

    def _open_data(self) -> None:
        """Nothing: the nets read their data themselves, in every pass."""

    def _begin_iteration(self, display: bool) -> None:
        self.pycaffe_net.clear_param_diffs()
        self._is_logged = display and self.settings.debug_info

    def _passes(self, count: int, *, backward: bool) -> tuple[float, tuple[Output, ...]]:
        net = self.pycaffe_net
        if backward:
            for on_start, _ in self.callbacks:
                on_start()
        total = 0.0
        with DebugLog(net, self.log).logged() if self._is_logged and backward else nullcontext():
            for _ in range(count):
                total += net.forward_backward() if backward else net._forward(0, len(net.layers) - 1)
        outputs = _outputs(net)
        if backward:
            for _, on_gradients in self.callbacks:
                on_gradients()
        return total / count, output_values(self.net, outputs, _concatenated(outputs).tolist())

    def _update(self, display: bool) -> None:
        super()._update(display)
        # Caffe computes the update in the gradients' memory and leaves it there.
        for one, update in zip(self.learnables, self.updater.updates or (), strict=True):
            if one.tensor.grad is not None:
                one.tensor.grad.copy_(update)

    def apply_update(self) -> None:
        """Update the parameters by the gradients that they hold; the iteration stays."""
        self._update(False)


class Solver:
    """A solver prototxt, built: ``net`` and ``test_nets`` are `Net`s, ``step(n)`` and ``solve()`` train.

    As Caffe's, it writes its log to stderr and continues after a loss that is not finite.
    """

    _type: ClassVar[str | None] = None  # the update rule, whatever the prototxt says

    def __init__(self, solver_file: PathLike) -> None:
        """Read a solver prototxt; paths in it are relative to the current folder, or its own if the net is only there."""
        path = os.fspath(solver_file)
        if not os.access(path, os.R_OK):
            raise Failure(f"Could not open file {path}; check the path")
        settings = read_settings(path, solver_root(path))
        if self._type is not None and settings.type != self._type:
            settings = settings.with_(type=self._type)
        options = Options(device="cpu", allow_nonfinite=True)
        self._trainer = _Trainer(settings, options, [CaffeLog(sys.stderr)])

    @property
    def net(self) -> Net:
        """The net that is trained."""
        return self._trainer.pycaffe_net

    @property
    def test_nets(self) -> list[Net]:
        """The test nets; their weights are the trained net's."""
        return self._trainer.tester.pycaffe_nets

    @property
    def iter(self) -> int:
        """The number of updates made."""
        return self._trainer.iteration

    @property
    def lr(self) -> float:
        """The rate of the next update."""
        trainer = self._trainer
        return trainer.settings.policy.at(trainer.iteration, trainer.current_step)[0]

    @property
    def type(self) -> str:
        """The update rule, as the prototxt names it."""
        return self._trainer.settings.type

    @property
    def param(self) -> pb.SolverParameter:
        """A copy of the solver's message."""
        copy = pb.SolverParameter()
        copy.CopyFrom(self._trainer.settings.message)
        return copy

    def step(self, iterations: int) -> None:
        """Run iterations, with the tests and snapshots due in them."""
        self._trainer.step(iterations)

    def solve(self, resume_file: PathLike | None = None) -> None:
        """Train to `max_iter`, from a solver state if one is given."""
        if resume_file is not None:
            self.restore(resume_file)
        self._trainer.solve()

    def apply_update(self) -> None:
        """Update the parameters once by the gradients that they hold, without a pass."""
        self._trainer.apply_update()

    def snapshot(self) -> None:
        """Write the weights and the solver state where `snapshot_prefix` says."""
        self._trainer.snapshots.check()
        self._trainer.snapshot()

    def restore(self, state_file: PathLike) -> None:
        """Resume from a solver state, this package's or Caffe's; data are read on from where the nets are."""
        self._trainer.restore(Path(state_file), from_first_row=True)

    def share_weights(self, net: Net) -> None:
        """Let another net use the weights of this solver's net."""
        net.share_with(self.net)

    def add_callback(
        self, on_start: Callable[[], object], on_gradients_ready: Callable[[], object] | None = None
    ) -> None:
        """Call ``on_start()`` before the passes of each iteration, and ``on_gradients_ready()`` before its update."""
        if not callable(on_start) or not callable(on_gradients_ready):
            raise SolverError(
                "add_callback: give two functions, for the start and for the gradients of an iteration; NCCL is not "
                "supported, train with several GPUs by `ilgnet train`"
            )
        self._trainer.callbacks += ((on_start, on_gradients_ready),)


class SGDSolver(Solver):
    """Stochastic gradient descent with momentum."""

    _type = "SGD"


class NesterovSolver(Solver):
    """Nesterov's accelerated gradient."""

    _type = "Nesterov"


class AdaGradSolver(Solver):
    """AdaGrad."""

    _type = "AdaGrad"


class RMSPropSolver(Solver):
    """RMSProp."""

    _type = "RMSProp"


class AdaDeltaSolver(Solver):
    """AdaDelta."""

    _type = "AdaDelta"


class AdamSolver(Solver):
    """Adam."""

    _type = "Adam"


_CLASSES = {cls._type: cls for cls in Solver.__subclasses__()}


def get_solver(solver_file: PathLike) -> Solver:
    """Return the solver of a prototxt, of the class that its `type` names."""
    solver = Solver(solver_file)
    solver.__class__ = _CLASSES[solver.type]
    return solver
