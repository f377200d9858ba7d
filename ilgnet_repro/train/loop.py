"""The training loop: forward, backward, update, test and snapshot in the order of Caffe's `Solver`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..caffe.graph_build import graph_text
from ..caffe.prototxt import format_message
from ..errors import DivergedError, GraphError, SolverError
from ..reading.data_layer_batches import Feed
from ..runtime.float32_products import float32_products
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from . import snapshot as snapshots
from .debug_info import DebugInfo
from .distributed import ProcessGroup, choose_device, device_line
from .nets import build_net, check_layer_names, check_splitting, learnables
from .observe import Forward, Observer, Output, Updated, log_outputs
from .precision import Precision
from .signals import Requests
from .solver import Settings
from .testing import Tester, output_values
from .updates import Updater


@dataclass(frozen=True)
class Options:
    """Options that a Caffe solver does not have.

    ``accumulate`` splits each batch into that many passes with the same result; ``keep`` is the number of
    snapshots kept (0: all); ``workers`` is the number of threads that read ahead; ``device`` is torch's
    name, by default the solver's choice if there is a GPU.  With ``allow_nonfinite`` a run continues, as in
    Caffe, after a loss that is NaN or infinite; otherwise it stops.  ``gradient_norms`` measures the gradients of every
    iteration for the observers.
    """

    device: str | None = None
    precision: str = "float32"
    accumulate: int = 1
    keep: int = 0
    workers: int = 0
    allow_nonfinite: bool = False
    gradient_norms: bool = False


class _Pass(nn.Module):
    """A forward pass as one module call, which torch's data parallelism wraps."""

    def __init__(self, net: CaffeNet) -> None:
        super().__init__()
        self.net = net
        self.debug: DebugInfo | None = None  # logs this pass

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with as_loaded(self.net):
            if self.debug is None:
                done = self.net.run(batch)
            else:
                done = self.debug.forward(batch, self.net.outputs, backward=torch.is_grad_enabled())
        if done.loss is None:
            raise GraphError(f"net {self.net.graph.name!r} has no loss layer in phase {self.net.graph.phase}")
        return done.loss, done.blobs


class Trainer:
    """Runs a solver; ``iteration`` is the number of updates made, ``net`` is the net being trained."""

    def __init__(
        self,
        settings: Settings,
        options: Options | None = None,
        observers: Sequence[Observer] = (),
        group: ProcessGroup | None = None,
        requests: Requests | None = None,
        *,
        arrays: Mapping[str, Any] | None = None,
        test_arrays: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Build the nets and copy the weights that the settings name.  Raises IlgnetError in one line.

        ``arrays`` are fed to MemoryData and Input layers of the train net, ``test_arrays`` to those of each test net;
        with None such layers are refused.
        """
        self.settings = settings
        self.options = options or Options()
        self.group = group or ProcessGroup()
        self.observers = tuple(observers) if self.group.is_first else ()
        self.requests = requests or Requests()
        if self.options.accumulate < 1 or self.options.workers < 0 or self.options.keep < 0:
            raise SolverError("accumulate must be 1 or more, workers and keep 0 or more")
        self.device = choose_device(self.options.device, settings.gpu, self.group)
        self.log("mode", device_line(self.device, settings.gpu))
        self.precision = Precision(self.options.precision, self.device)
        seed = settings.random_seed
        self.seed = int(self.group.broadcast_object(seed if seed >= 0 else torch.Generator().seed() % 2**31))
        self.snapshots = snapshots.Snapshots(
            settings.snapshot_prefix, settings.root, settings.snapshot_hdf5, self.options.keep
        )
        if self.group.is_first and (settings.snapshot or settings.snapshot_after_train):
            self.snapshots.check()
            weights = [settings.files.find(name) for name in settings.weights]
            self.snapshots.check_inputs([*settings.weights, *weights], self._takes_snapshot)
        self.log(
            "settings", "Initializing solver from parameters: \n" + format_message(settings.message).rstrip()
        )
        self._build(arrays, test_arrays)
        self.iteration = 0
        self.current_step = 0
        self.stopped = False
        self.reason = ""
        self._pending_snapshot: int | None = None  # the last snapshot, until the loss of its weights is known
        self._was_finite = True
        self._rows_from = 0  # the iteration whose batch starts at the first row
        self._batches: Iterator[dict[str, Tensor]] | None = None  # opened by the first step

    def _build(
        self, arrays: Mapping[str, Any] | None, test_arrays: Sequence[Mapping[str, Any]] | None
    ) -> None:
        settings, group = self.settings, self.group
        source = settings.train_net
        self.log("train_net", f"Creating training net {source.label}")
        self.log("net", "Initializing net from parameters: \n" + graph_text(source.graph, source.state))
        accumulate = self.options.accumulate
        self.feed = Feed(
            source.graph, source.files, self.seed, rank=group.rank, world=group.world, accumulate=accumulate,
            arrays=arrays,
        )  # fmt: skip
        ignored_layers: list[str] = []
        weights = [settings.files.find(name) for name in settings.weights]
        net = build_net(
            source.graph,
            self.feed.shapes(),
            weights,
            seed=self.seed,
            note=ignored_layers.append,
            files=source.files,
        )
        check_splitting(net, group.world, accumulate)
        check_layer_names(net)
        for note in self.snapshots.check_names(net):
            self.log("note", note)
        self.net = net.to(self.device, self.precision.dtype)
        log_outputs(self.net, self.log)
        for file in settings.weights:
            self.log("weights", f"Finetuning from {file}")
        for text in ignored_layers:
            self.log("ignored", text)
        steps = self.net.steps((), with_loss=True)
        self.learnables = learnables(self.net)
        # Parameters that the loss does not depend on have a gradient of 0 in Caffe; here they have none.
        reached = {id(blob) for _, layer in steps for blob in layer.blobs}
        for one in self.learnables:
            if id(one.tensor) not in reached and one.tensor.is_leaf:
                one.tensor.requires_grad_(False)
        cut = any(
            node.layer.propagate_down or not (layer.has_gradient or layer.is_input) for node, layer in steps
        )
        self._own_pass = _Pass(self.net)
        self._pass = group.wrap(self._own_pass, self.device, some_unused=cut)
        self._debug = DebugInfo(self.net, self.log) if settings.debug_info and self.observers else None
        self.updater = Updater(settings, self.learnables)
        self.tester = Tester(
            settings, self.net, seed=self.seed, device=self.device, precision=self.precision, group=group,
            log=self.log, arrays=test_arrays,
        )  # fmt: skip
        for note in settings.files.notes:
            if note not in settings.notes:
                self.log("note", note)
        self.log("built", "Solver scaffolding done.")

    @property
    def test_nets(self) -> Sequence[CaffeNet]:
        """The nets of the tests, in the solver's order."""
        return self.tester.nets

    # ------------------------------------------------------------------ running

    def _takes_snapshot(self, iteration: int) -> bool:
        settings = self.settings
        regular = settings.snapshot and iteration % settings.snapshot == 0 and iteration <= settings.max_iter
        return bool(regular) or (settings.snapshot_after_train and iteration == settings.max_iter)

    def restore(
        self, state: str | Path, *, from_first_row: bool = False, unless_killed: bool = False
    ) -> None:
        """Resume from a snapshot, ours or Caffe's: weights, solver history, iteration, data position.

        ``from_first_row`` starts the data again, train and test nets, as Caffe does; with ``unless_killed`` a run that
        was killed, and has left its claim of the prefix, reads on.
        """
        iteration, step, rows_from = self.iteration, self.current_step, 0
        if self.group.is_first:
            files = self.settings.files
            said = len(files.notes)
            restored = snapshots.restore(
                Path(state), files, self.net, self.updater.history,
                allow_nonfinite=self.options.allow_nonfinite,
            )  # fmt: skip
            iteration, step = restored.iter, restored.current_step
            for note in files.notes[said:]:
                self.log("note", note)
            self.snapshots.resume(iteration)
            if from_first_row:
                known = self.snapshots.rows_from(Path(state), iteration) if unless_killed else None
                rows_from = iteration if known is None else known
        self.iteration, self.current_step, self._rows_from = self.group.broadcast_object(
            (iteration, step, rows_from)
        )
        self.group.broadcast([*self.net.parameters(), *self.updater.history])
        self.log("restored", "SGDSolver: restoring history")
        self.updater.clear_updates()
        self._batches = None
        if from_first_row and self._rows_from == self.iteration:
            self.log("rows", "Data are read from the first row again, as Caffe does")
        elif self.iteration:
            self.log(
                "rows",
                f"Data are read on from iteration {self.iteration}, as if the run had not stopped",
            )
        for net in (self.net, *self.tester.nets):
            net.reset_state()
        for layer in self.net.stateful_layers:
            self.log(
                "restored",
                f"{layer.node.name}: snapshots do not store its state; it starts from zeros, as in Caffe",
            )

    def solve(self) -> None:
        """Train to `max_iter`, or to a request to stop, with the tests and snapshots due.

        Raises DivergedError if the loss is not finite, unless the options allow it.
        """
        writes = self.settings.snapshot or self.settings.snapshot_after_train
        with self.snapshots.claimed(self._rows_from) if self.group.is_first and writes else nullcontext():
            try:
                self._solve()
            finally:
                for observer in self.observers:
                    observer.on_finish(self)

    def _solve(self) -> None:
        settings = self.settings
        self.log("solve", f"Solving {self.net.graph.name}")
        self.log("policy", f"Learning Rate Policy: {settings.policy.name}")
        self.stopped = False
        for observer in self.observers:
            observer.on_start(self)
        self.step(settings.max_iter - self.iteration)
        if settings.snapshot_after_train and not (
            settings.snapshot and self.iteration % settings.snapshot == 0
        ):
            self.snapshot()
        shown = not self.stopped and settings.display and self.iteration % settings.display == 0
        if shown:
            loss = self._last_loss()
            self._smooth(loss)
            self.log("last", f"Iteration {self.iteration}, loss = {self._smoothed:g}")
            self._check_loss(loss)
        elif self.options.keep and self._pending_snapshot is not None:
            statistics = [
                blob
                for name, blobs in self.net.params.items()
                for spec, blob in zip(self.net.plan.blobs[name], blobs, strict=True)
                if not spec.learned
            ]
            saved = [blob.detach().clone() for blob in statistics]
            self._own_pass.debug = None  # Caffe has no such pass
            loss = self._last_loss()
            with torch.no_grad():
                for blob, value in zip(statistics, saved, strict=True):
                    blob.copy_(value)
            self._check_loss(loss)
        elif not snapshots.all_finite(self.net.parameters()):
            self._diverged("the weights are not finite")
        if self.stopped:
            self.log("done", "Optimization stopped early.")
        else:
            if settings.test_interval and self.iteration % settings.test_interval == 0:
                self._test()
            self.log("done", "Optimization Done.")

    def step(self, iterations: int) -> None:
        """Run a number of iterations, with the tests and snapshots due in them."""
        settings = self.settings
        self._start_iteration = self.iteration
        self._losses: list[float] = []
        self._smoothed = 0.0
        passes = settings.iter_size * self.options.accumulate
        try:
            self._open_data()
            for _ in range(iterations):
                self.updater.clear_updates()
                due = settings.test_interval and self.iteration % settings.test_interval == 0
                if due and (self.iteration or settings.test_initialization):
                    self._test()
                    if self.stopped:
                        break
                self._iterate(passes)
                self.handle_signals()
                if settings.snapshot and self.iteration % settings.snapshot == 0:
                    self.snapshot()
                if self.stopped:
                    break
        except BaseException:
            self._batches = None  # an iterator that has raised yields nothing more
            raise

    def _open_data(self) -> None:
        """Open the data where this iteration reads on, unless the step before left them open there."""
        if self._batches is not None:
            return
        workers = self.options.workers
        passes = self.settings.iter_size * self.options.accumulate
        self._batches = self.feed.batches((self.iteration - self._rows_from) * passes, workers)
        tests = self.tester.tests_before(self.iteration) - self.tester.tests_before(self._rows_from)
        self.tester.seek(tests, workers)

    def _next_batch(self) -> dict[str, Tensor]:
        assert self._batches is not None, "step opens the data"
        return {
            top: value.to(self.device, self.precision.dtype) for top, value in next(self._batches).items()
        }

    def _test(self) -> None:
        """Test every test net and report the results."""
        for index in range(len(self.tester.nets)):
            if not self._test_net(index):
                return
        self.handle_signals()

    def test(self, index: int) -> None:
        """Test one test net and report the result."""
        self._open_data()
        self._test_net(index)

    def _test_net(self, index: int) -> bool:
        """Test one net and report the result; False if a request to stop interrupted it."""
        self.log("testing", f"Iteration {self.iteration}, Testing net (#{index})")
        test = self.tester.run(index, self.iteration, self._is_stopped)
        if test is None:
            self.log("test_cut", "Test interrupted.")
            return False
        for observer in self.observers:
            observer.on_test(self, test)
        return True

    def _is_stopped(self) -> bool:
        self.handle_signals()
        return self.stopped

    def _iterate(self, passes: int) -> None:
        settings = self.settings
        display = bool(settings.display) and self.iteration % settings.display == 0
        self._begin_iteration(display)
        # The backward passes are outside the net's own pass, which computes without TF32.
        exact = float32_products() if self.device.type == "cuda" else nullcontext()
        with self._seeded(), exact:
            loss, outputs = self._passes(passes, backward=True)
        self._smooth(loss)
        forward = Forward(self.iteration, loss, self._smoothed, outputs, display)
        for observer in self.observers:
            observer.on_forward(self, forward)
        self._check_loss(loss)
        self._update(display)
        self.iteration += 1

    def _begin_iteration(self, display: bool) -> None:
        """Clear the gradients; the passes of an iteration that is displayed are logged for debug_info."""
        for one in self.learnables:
            one.tensor.grad = None
        self._own_pass.debug = self._debug if display else None
        if self._debug is not None:
            self._debug.start_iteration()

    def _update(self, display: bool) -> None:
        """Update the parameters by their gradients, at the rate of this iteration."""
        settings = self.settings
        rate, step = settings.policy.at(self.iteration, self.current_step)
        new_step = step if step != self.current_step and settings.policy.name == "multistep" else None
        self.current_step = step
        finite = self.precision.unscale(one.tensor for one in self.learnables)
        norms = self.updater.norms() if self.options.gradient_norms else None
        clipping = self.updater.update(rate, self.iteration) if finite else None
        updated = Updated(self.iteration, rate, new_step, clipping, display, norms)
        for observer in self.observers:
            observer.on_update(self, updated)

    def _passes(self, count: int, *, backward: bool) -> tuple[float, tuple[Output, ...]]:
        """Run ``count`` passes; return the mean loss, and the outputs of the last batch."""
        accumulate = self.options.accumulate
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        outputs: dict[str, Tensor] = {}
        for number in range(count):
            batch = self._next_batch()
            defer_sync = number < count - 1  # gradients are exchanged once per iteration
            with self.group.defer_sync(self._pass) if defer_sync else nullcontext():
                with self.precision.context():
                    loss, blobs = self._pass(batch)
                if backward and loss.requires_grad:
                    torch.autograd.backward(self.precision.scaled(loss) / accumulate)
                if backward and self._own_pass.debug is not None:
                    self._own_pass.debug.log_backward(self.precision.scale)
            total += loss.detach()
            for name, value in blobs.items():
                value = value.detach().double().reshape(-1) / accumulate
                outputs[name] = value if number % accumulate == 0 else outputs[name] + value
        mean = self.group.sum(torch.cat([(total / count).view(1), *outputs.values()])) / self.group.world
        loss, *values = mean.tolist()
        return loss, output_values(self.net, outputs, values)

    def _last_loss(self) -> float:
        """Compute the loss of the final weights."""
        with self._seeded(), torch.no_grad():
            return self._passes(self.options.accumulate, backward=False)[0]

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed per iteration, so that dropout draws the same numbers after a restart; restore torch's random state."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            seed = (self.seed << 32) + self.iteration * self.group.world + self.group.rank
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield

    def _smooth(self, loss: float) -> None:
        """Update the mean over the last `average_loss` iterations, as Caffe's `UpdateSmoothedLoss` does."""
        window = self.settings.average_loss
        if len(self._losses) < window:
            self._losses.append(loss)
            self._smoothed += (loss - self._smoothed) / len(self._losses)
        else:
            slot = (self.iteration - self._start_iteration) % window
            self._smoothed += (loss - self._losses[slot]) / window
            self._losses[slot] = loss

    def _check_loss(self, loss: float) -> None:
        """Judge the current weights by their loss: the last snapshot is good, or the run has diverged."""
        finite = math.isfinite(loss)
        if self._pending_snapshot is not None and self.group.is_first:
            if not finite:
                self.snapshots.nonfinite.add(self._pending_snapshot)
            self.snapshots.prune(self._pending_snapshot)
        self._pending_snapshot = None
        if not finite and self._was_finite:
            self._diverged(f"the loss is {loss:g}")
        self._was_finite = finite

    def _diverged(self, what: str) -> None:
        """Log that the run has diverged, and stop it unless the options allow it to continue."""
        what = f"iteration {self.iteration}: {what}"
        self.log("diverged", what)
        if self.options.allow_nonfinite:
            return
        self.reason = what
        latest = self.snapshots.latest()
        resume = f" and resume from {latest}" if latest else ""
        raise DivergedError(
            f"{what}; check the data, lower base_lr{resume}, or continue as Caffe does with allow_nonfinite=True",
            option="allow_nonfinite",
        )

    # ------------------------------------------------------------------ stopping, snapshots, logging

    def stop(self, reason: str) -> None:
        """Stop the run after this iteration or test."""
        self.requests.stop = True
        self.reason = reason

    def handle_signals(self) -> None:
        """Act on what signals or observers of any process have requested."""
        stop, snapshot = self.requests.take()
        if self.group.world > 1:
            requested = torch.tensor([float(stop), float(snapshot)], device=self.device)
            stop, snapshot = (value > 0 for value in self.group.sum(requested).tolist())
        if snapshot:
            self.snapshot()
        self.stopped = bool(stop)

    @property
    def smoothed_loss(self) -> float:
        """The mean loss that Caffe displays, over `average_loss` iterations of the last step."""
        return self._smoothed

    def feed_arrays(self, arrays: Mapping[str, Any], test_net: int | None = None) -> None:
        """Feed arrays to MemoryData and Input layers of the train net or a test net, from their first rows on."""
        self.feed.feed(arrays) if test_net is None else self.tester.feeds[test_net].feed(arrays)

    def snapshot(self) -> None:
        """Write a snapshot; older ones are removed once the next loss is known to be finite."""
        self._pending_snapshot = self.iteration
        if not self.group.is_first:
            return
        kind = "HDF5" if self.settings.snapshot_hdf5 else "binary proto"
        names = [self.snapshots.name(self.iteration, kind_) for kind_ in ("caffemodel", "solverstate")]
        self.log("snapshot_weights", f"Snapshotting to {kind} file {names[0]}")
        self.log("snapshot_state", f"Snapshotting solver state to {kind} file {names[1]}")
        self.snapshots.save(
            self.net,
            self.iteration,
            self.updater.history,
            self.current_step,
            self.updater.updates if self.settings.snapshot_diff else None,
        )

    def save_weights(self, path: Path) -> None:
        """Write the current weights to a file."""
        snapshots.save_weights(self.net, path)

    def log(self, topic: str, text: str) -> None:
        """Pass a line of Caffe's log to every observer."""
        for observer in self.observers:
            observer.log(topic, text)
