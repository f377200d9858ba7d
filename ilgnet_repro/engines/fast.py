"""`fast` and `FastNet`: a net called like `CaffeNet`, computed by the fastest engine on this machine."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from ..errors import GraphError, IlgnetError, printable
from ..layers.support.base import Shape
from ..precisions import check_engine, check_weights_precision
from ..prepare_images import PrepareOptions, prepare
from ..runtime.calls import check_batch, wanted_blobs
from ..runtime.drawn import about_now
from ..runtime.model import Model
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet, expect_caffe_net
from ..runtime.runnable import FileNet, TensorNet, tensor_net
from ..runtime.seeded_inputs import draw_inputs
from ..signatures import shows_options
from .arguments import checked_device, thread_count
from .choice import choose
from .deviation import Deviation, deviations, shown
from .runners import TORCH, Direct, Log, Runner, Settings, make_runner, net_at

_CPU = torch.device("cpu")
_FLOAT32 = np.dtype(np.float32)
_NOT_COMPILED = "a fast net runs uncompiled; compile the exact net, or use fast(net, compile=True)"
OTHER_RUNNERS = 4  # kept for blobs other than the outputs, and for sizes other than the net's


def fast(
    net: CaffeNet | FileNet | Model,
    precision: str = "float32",
    *,
    engine: str = "auto",
    threads: int | None = None,
    device: str = "cpu",
    batch: int | None = None,
    inputs: Mapping[str, Any] | Any = None,
    compile: bool = False,
    log: Log | None = None,
) -> FastNet:
    """Return ``net`` optimized for inference; see `FastNet`.

    ``engine`` is "torch", "onnxruntime" (pip install 'ilgnet_repro[runtime]'), "openvino" (ilgnet_repro[openvino]), or
    "auto": the fastest that is installed, by a short measurement on ``batch`` images (default: as many as the net
    states), which is kept for the net and the machine.  The difference from the exact net is measured on ``inputs``, as
    many as are given, or on seeded ones, and that of the logits where an output is a softmax.  ``threads`` are those of
    one call (default: $ILGNET_THREADS, else as many as torch uses).  ``device`` is "cpu", "cuda" or "cuda:N": a copy of
    the net computes there, in float32 without TF32, by torch or ONNX Runtime's CUDA provider, or with all layers that
    multiply in float16 or bfloat16, by torch; its outputs stay there.
    ``compile`` compiles elementwise layers and LRN with torch.compile, for the engine torch.  ``log`` receives what is
    chosen and measured (default: "auto" says it on stderr).

    Raises GraphError for a net in phase TRAIN or on another device than the CPU, IlgnetError for an unknown precision
    or engine, one that is not installed, one that cannot run the net, and a device that torch does not find.
    """
    check_weights_precision(precision)
    check_engine(engine)
    device = checked_device(device, precision, compile)
    net = _expect_fit(net)
    if compile:
        if engine not in ("auto", TORCH):
            raise IlgnetError(
                f"compile=True: goes with the engine torch, not {engine}; leave one out", option="compile"
            )
        engine = TORCH
    settings = Settings(engine, precision, thread_count(threads), compile, device)
    if engine == TORCH:
        return FastNet(net, settings, make_runner(net, net.outputs, settings, log or _say_nothing))
    log = log or _say_on_stderr
    batches = [_seeded(net, batch)] if inputs is None else _given(net, inputs, batch)
    runner = None
    if engine == "auto":
        choice = choose(net, settings, batches, log)
        settings = replace(settings, engine=choice.best.engine, precision=choice.best.precision)
        runner = choice.runner
    try:
        runner = runner or make_runner(net, net.outputs, settings, log)
    except IlgnetError as error:
        if "engine" in error.option.split():
            raise
        raise IlgnetError(f"engine={engine!r}: {error}; use engine='torch'", option="engine") from error
    made = FastNet(net, settings, runner)
    if settings.engine != TORCH or settings.precision != "float32":
        apart = shown([made._deviations(one, {}) for one in batches])
        which = "seeded" if inputs is None else "the given"
        log(f"{made.form}: {apart} from the exact net on {which} inputs")
    return made


def _expect_fit(net: CaffeNet | FileNet | Model) -> CaffeNet:
    """Return a net that can be made fast.  Raises GraphError for any other."""
    if isinstance(net, Model):
        raise GraphError(
            f"model {net.name}: is not a Caffe net, so it cannot be made fast; save it as .onnx, which ONNX Runtime computes"
        )
    net = expect_caffe_net(net, "made fast")
    if net.graph.phase != "TEST":
        raise GraphError(
            f"net {net.graph.name!r} is in phase {net.graph.phase}; only phase TEST can be made fast"
        )
    if net.carries_state:
        raise GraphError(
            f"net {net.graph.name!r} was loaded with carry_state; a fast net starts each pass of RNN and LSTM "
            "from zeros; load it without, or run the exact net"
        )
    net.refuse_changes("made fast")
    for name, blobs in net.params.items():
        if any(blob.device.type != "cpu" or blob.dtype != torch.float32 for blob in blobs):
            raise GraphError(
                f"net {net.graph.name!r}: blobs of {name} are {blobs[0].dtype} on {blobs[0].device}; "
                "the fast path takes float32 on the CPU"
            )
    dtype, device = net.computes_in
    if (dtype, device.type) != (torch.float32, "cpu"):
        raise GraphError(
            f"net {net.graph.name!r} computes in {dtype} on {device}; the fast path takes float32 on the CPU"
        )
    return net


def _given(net: CaffeNet, inputs: Any, batch: int | None) -> list[dict[str, Tensor]]:
    """Return the caller's inputs in batches: ``batch`` rows each, or all rows as one."""
    intake = net.make_intake()
    tensors = intake.tensors(intake.named(inputs, {}))
    intake.check_sizes(tensors, by_plan=lambda: True)
    needed = net.inputs_for(net.outputs)
    values = {name: intake.value(tensors, name, torch.float32, _CPU).detach() for name in needed}
    if batch is None or not values:
        return [values]
    check_batch(batch)
    counts = {len(value) if value.dim() else 0 for value in values.values()}
    if len(counts) != 1 or 0 in counts:
        raise IlgnetError(
            "inputs=: give the same number of rows, one or more, for each input", option="inputs"
        )
    parts = {name: value.split(batch) for name, value in values.items()}
    return [{name: part[index] for name, part in parts.items()} for index in range(-(-counts.pop() // batch))]


def _seeded(net: CaffeNet, batch: int | None) -> dict[str, Tensor]:
    """Return seeded inputs of the net, with ``batch`` images where that is stated."""
    needed = net.inputs_for(net.outputs)
    if batch is None:
        return draw_inputs(net.plan, net.graph, needed)
    check_batch(batch)
    shapes = {name: (batch, *net.shapes[name][1:]) if net.shapes[name] else () for name in net.inputs}
    return draw_inputs(net.plan.at(shapes), net.graph, needed)


def _say_nothing(message: str) -> None:
    pass


def _say_on_stderr(message: str) -> None:
    print(printable(message), file=sys.stderr)


class FastNet(nn.Module):
    """A net called like the `CaffeNet` it was made from (``exact``), for inference only, on the device it was made for.

    ``engine`` computes it: torch, ONNX Runtime or OpenVINO.  ``precision`` applies to large dense weights only:
    float32 differs from the exact net by the order of its sums; float16 and bfloat16 halve, int8
    quarters the weight bytes read per image.  float16 rounds only the weights; so does int8 in OpenVINO; elsewhere
    int8, and bfloat16, also round those layers' activations and sums.  On a GPU float16 and bfloat16 are those of all
    layers that multiply: what they read and compute is rounded, sums are float32, and other layers compute in float32.
    There torch launches a pass as a CUDA graph from the second call of a size, unless a layer reads values on the CPU.
    Any batch, any size that the net's weights take, and any of its blobs can be asked for: what the engine was not
    prepared for is prepared on the first call that asks.
    The weights are copies: later changes to the exact net have no effect, and a fast net cannot be moved, converted
    or saved; do that with the exact net and make it fast again.  Pickled, it holds the exact net and its settings.
    RNN and LSTM start each pass from zeros.
    """

    exact: CaffeNet

    def __init__(self, net: CaffeNet, settings: Settings, runner: Runner) -> None:
        super().__init__()
        # Bypasses Module.__setattr__: the exact net is kept for comparison and is not a submodule.
        object.__setattr__(self, "exact", net)
        self.graph, self.about, self.settings = net.graph, about_now(net), settings
        self.inputs, self.outputs, self.shapes = net.inputs, net.outputs, net.shapes
        self.compile_seconds = runner.compile_seconds
        self._needed = net.inputs_for(net.outputs)
        self._intake = net.make_intake()
        self._optional = frozenset(net.optional_inputs)
        self._device = torch.device(settings.device)
        self._runner, self._process = runner, os.getpid()
        # Takes tensors like that of a call that its runner took.
        self._shortcut: Callable[[Any], dict[str, Tensor] | None] | None = None
        self._others: OrderedDict[tuple[tuple[str, ...], tuple[Shape, ...]], Runner | None] = OrderedDict()
        self._weights = weight_sums(net)
        self.parts = nn.ModuleList(runner.modules)
        super().train(False)

    @property
    def name(self) -> str:
        """The net's name."""
        return self.graph.name

    @property
    def engine(self) -> str:
        """The engine that computes it."""
        return self.settings.engine

    @property
    def precision(self) -> str:
        """The precision of its large dense weights."""
        return self.settings.precision

    @property
    def form(self) -> str:
        """What computes it."""
        where = "" if self.settings.device == "cpu" else f" on {self.settings.device}"
        what = "large dense weights" if self.settings.device == "cpu" else "layers"
        return f"fast path in {self.engine}{where}, {what} in {self.precision}"

    @shows_options(PrepareOptions, prepare)
    def prepare(self, images: Any, **options: Unpack[PrepareOptions]) -> Tensor:
        """Prepare images as `CaffeNet.prepare`."""
        return self.exact.prepare(images, **options)

    def as_tensor(self, blob: str | None = None) -> TensorNet:
        """Return a module from the net's one input to one blob, as `CaffeNet.as_tensor`."""
        return tensor_net(self, blob, self._wanted)

    def forward(
        self,
        given: Mapping[str, Tensor] | Tensor | None = None,
        *,
        blobs: Iterable[str] | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """Run the net and return its outputs, or the requested blobs, by Caffe's names.

        Raises IlgnetError for a missing or unknown input, GraphError for an unknown blob.
        """
        if torch.compiler.is_exporting() or is_tracing():
            raise self._refusal("exported or traced")
        if torch.compiler.is_compiling():  # the engine is opaque to torch.compile: the net runs as it is
            torch._dynamo.graph_break(msg=_NOT_COMPILED)
            found: dict[str, Tensor] = torch.compiler.disable(self._run)(given, blobs, inputs)
            return found
        return self._run(given, blobs, inputs)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call `forward`; a tensor like that of the call before it, which was checked, goes to the engine at once.

        Beside a small net every line counts, those of nn.Module included: LeNet takes 120 us, and after it little of
        Python is left in the processor's caches.
        """
        shortcut = self._shortcut
        if shortcut is not None and len(arguments) == 1 and not options:
            found = shortcut(arguments[0])
            if found is not None:
                return found
        return super().__call__(*arguments, **options)

    def _make_shortcut(self, direct: Direct, accepted: Shape) -> Callable[[Any], dict[str, Tensor] | None]:
        """Return what takes a tensor of the size that was accepted to the engine, and returns None for any other."""
        process, hooks, pre_hooks = self._process, self._forward_hooks, self._forward_pre_hooks

        def shortcut(given: Any) -> dict[str, Tensor] | None:
            if (
                type(given) is not Tensor
                or hooks
                or pre_hooks
                or process != os.getpid()
                or torch.compiler.is_compiling()
                or is_tracing()
            ):
                return None
            try:
                array: np.ndarray = given.numpy()
            except (TypeError, RuntimeError):  # of another device or layout, or part of a graph of gradients
                return None
            if array.dtype is _FLOAT32 and array.shape == accepted and given.is_contiguous():
                return direct(array)
            return None

        return shortcut

    def _run(
        self,
        given: Mapping[str, Tensor] | Tensor | None,
        blobs: Iterable[str] | None,
        inputs: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        if self._process != os.getpid():
            self._prepare_after_fork()
        tensors = self._intake.tensors(self._intake.named(given, inputs))
        if torch.is_grad_enabled() and any(value.requires_grad for value in tensors.values()):
            raise self._refusal("differentiated")
        self._intake.check_sizes(tensors, by_plan=lambda: True)
        wanted = self.outputs if blobs is None else self._wanted(blobs)
        is_prepared = blobs is None or set(wanted) <= set(self.outputs)
        needed = self._needed if is_prepared else self.exact.inputs_for(wanted)
        values = {name: self._intake.value(tensors, name, torch.float32, self._device) for name in needed}
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        runner: Runner | None = self._runner
        if not self._optional.isdisjoint(tensors) or any(0 in shape for shape in shapes.values()):
            runner = None  # the exact net takes tops of DummyData as inputs, and batches of no images
        elif not (is_prepared and self._runner.fits(shapes)):
            runner = self._other(self.outputs if is_prepared else tuple(dict.fromkeys(wanted)), shapes)
        if runner is None:
            with torch.inference_mode(), as_loaded(self._unchanged()):
                found = self.exact({name: value.cpu() for name, value in tensors.items()}, blobs=wanted)
                found = {name: value.to(self._device) for name, value in found.items()}
        else:
            found = runner(values)
            if runner is self._runner and runner.direct and len(self.inputs) == 1 and blobs is None:
                (value,) = tensors.values()
                self._shortcut = self._make_shortcut(runner.direct, tuple(value.shape))
        return {name: found[name] for name in wanted}

    def can_compute(self, blobs: Iterable[str], shapes: Mapping[str, Shape]) -> bool:
        """Return whether the engine computes these blobs for inputs of these shapes, not the exact net."""
        wanted = tuple(dict.fromkeys(self._wanted(blobs)))
        if set(wanted) <= set(self.outputs) and self._runner.fits(shapes):
            return True
        return self._other(wanted, {name: shapes[name] for name in self.exact.inputs_for(wanted)}) is not None

    def _other(self, wanted: tuple[str, ...], shapes: Mapping[str, Shape]) -> Runner | None:
        """Return what computes these blobs for inputs of these shapes; None where only the exact net can."""
        for (kept, _), runner in self._others.items():
            if kept == wanted and runner is not None and runner.fits(shapes):
                return runner
        key = (wanted, tuple(shapes.values()))
        if key not in self._others:
            self._others[key] = self._make(wanted, shapes)
            if len(self._others) > OTHER_RUNNERS:
                self._others.popitem(last=False)
        return self._others[key]

    def _make(self, wanted: tuple[str, ...], shapes: Mapping[str, Shape]) -> Runner | None:
        net = self._unchanged()
        settings = replace(self.settings, compile=False)
        try:
            runner = make_runner(net, wanted, settings, _say_nothing)
            if not runner.fits(shapes):
                runner = make_runner(net_at(net, shapes), wanted, settings, _say_nothing)
        except IlgnetError:  # the exact net computes what the engine cannot
            return None
        return runner if runner.fits(shapes) else None

    def _prepare_after_fork(self) -> None:
        """Prepare again in a forked process, which has none of the threads that were started before.

        OpenVINO does not start there: torch computes in its place, whose OpenMP takes one thread only.
        """
        before = self.settings
        if before.device != "cpu":
            raise self._refusal("used in a process forked after it was made, which CUDA does not take")
        uses_torch = before.engine != "onnxruntime" or before.precision != "float32"
        self.settings = replace(
            before,
            engine=TORCH if before.engine == "openvino" else before.engine,
            threads=1 if uses_torch else before.threads,
        )
        _of_other_process.append((self._runner, dict(self._others)))
        self._others.clear()
        self._shortcut = None
        self._runner = make_runner(self._unchanged(), self.outputs, self.settings, _say_nothing)
        self._process = os.getpid()

    def _unchanged(self) -> CaffeNet:
        """Return the exact net.  Raises GraphError where its weights are no longer those of the fast one."""
        if weight_sums(self.exact) != self._weights:
            raise GraphError(
                f"net {self.graph.name!r}: its weights have changed since it was made fast, and this call or copy "
                "needs them; make it fast again"
            )
        return self.exact

    def inputs_for(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the inputs that the given blobs depend on."""
        return self.exact.inputs_for(self._wanted(wanted))

    @property
    def fixed_batch(self) -> None:
        """None: it accepts any batch size."""

    def image_input(self) -> str:
        """Return the one input that the outputs depend on, as `CaffeNet.image_input`."""
        return self.exact.image_input()

    def _wanted(self, blobs: Iterable[str]) -> tuple[str, ...]:
        return wanted_blobs(blobs, self.graph.names.values(), self.graph.name)

    # ------------------------------------------------------------------ what packed weights do not allow

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FastNet:
        """Accept what changes nothing (``float()``, ``cpu()``); refuse any other move or conversion."""
        probe = fn(torch.empty(0))
        if probe.dtype != torch.float32 or probe.device != _CPU or probe.is_shared():
            raise self._refusal("converted, moved or shared")
        return self

    def train(self, mode: bool = True) -> FastNet:
        """Refuse ``True``: a fast net is for inference only."""
        if mode:
            raise self._refusal("put into training mode")
        return self

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Refused: the weights are packed."""
        raise self._refusal("saved as a state_dict")

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Refused: the weights are packed."""
        raise self._refusal("given a state_dict")

    def register_full_backward_hook(self, *arguments: Any, **options: Any) -> Any:
        """Refused: it computes no gradients."""
        raise self._refusal("given backward hooks")

    register_full_backward_pre_hook = register_backward_hook = register_full_backward_hook

    def __copy__(self) -> FastNet:
        return self  # it never changes

    def __deepcopy__(self, memo: Any) -> FastNet:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the exact net and the settings: an engine's own state is prepared again where it is loaded."""
        return _restore, (self._unchanged(), self.settings)

    def _refusal(self, what: str) -> GraphError:
        return GraphError(
            f"net {self.graph.name!r}: a fast net cannot be {what}; do it with the exact net, and make that fast"
        )

    def deviation(
        self, given: Mapping[str, Tensor] | Tensor | None = None, **inputs: Tensor
    ) -> dict[str, float]:
        """Return each output's largest absolute difference from the exact net's, for these or for seeded inputs.

        It is infinite where the shapes differ or only one of two values is finite, and NaN
        where there is no finite value to compare.
        """
        return {name: one.largest for name, one in self._deviations(given, inputs).items()}

    def _deviations(self, given: Any, inputs: Mapping[str, Tensor]) -> dict[str, Deviation]:
        if given is None and not inputs:
            given = _seeded(self.exact, None)
        with torch.inference_mode(), as_loaded(self.exact):
            on_cpu = self._intake.tensors(self._intake.named(given, inputs))
            exact = self.exact({name: value.cpu() for name, value in on_cpu.items()})
        return deviations(self.graph, exact, self(given, **inputs))


# Engines of the process that this one was forked from: to free one would wait for its threads.
_of_other_process: list[Any] = []


def _restore(net: CaffeNet, settings: Settings) -> FastNet:
    return FastNet(net, settings, make_runner(net, net.outputs, settings, _say_nothing))


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weight_sums(net: CaffeNet) -> tuple[Any, ...]:
    """Return the shape of each stored tensor of a net, and the sum of its bits read as integers."""
    return tuple(
        (tuple(value.shape), int(value.detach().contiguous().view(_INTEGERS[value.element_size()]).sum()))
        if value.device == _CPU
        else (str(value.device),)
        for value in (*net.parameters(), *net.buffers())
    )
