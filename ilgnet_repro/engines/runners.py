"""What computes some blobs of a net: steps that torch runs, or an engine with torch's dense layers after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..caffe.graph import Value
from ..errors import IlgnetError
from ..export.onnx_graph import plan_onnx
from ..layers.lrn import lrn_as_convolution
from ..layers.support.base import OnnxGraph, Shape
from ..process import huge_pages
from ..runtime.net import CaffeNet, float_arrays
from ..runtime.quantize import WEIGHT, attach_quantized, output_axis, quantize_rows, quantized_blob
from ..runtime.rebuild import rebuild
from .device_runner import DeviceRunner
from .onnx_engines import Arrays, CompiledModel, Dims, as_float32, compile_model
from .torch_compiled import compile_steps
from .torch_layers import Conv, Dense, is_large_dense
from .torch_steps import Program, Step, after_large_dense, folded_for, gains_by_packing, plan_steps

TORCH = "torch"
# The engine that multiplies int8 weights with float32 activations itself; the others leave dense layers to torch.
MULTIPLIES_INT8 = "openvino"
Log = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How a fast net computes: engine, precision of large dense weights (on a GPU of layers), threads, torch's device."""

    engine: str
    precision: str
    threads: int
    compile: bool = False
    device: str = "cpu"


Direct = Callable[[np.ndarray], dict[str, Tensor]]


class Runner(Protocol):
    """Computes some blobs from inputs by name, all float32 on its device."""

    modules: list[nn.Module]
    compile_seconds: float

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Return whether it takes inputs of these shapes."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the blobs."""

    @property
    def direct(self) -> Direct | None:
        """What takes the array of the only input straight to the engine, where nothing comes before or after it."""


def make_runner(net: CaffeNet, wanted: tuple[str, ...], settings: Settings, log: Log) -> Runner:
    """Return what computes some blobs of a net.  Raises IlgnetError where the engine cannot."""
    with huge_pages(), torch.no_grad():
        if settings.engine == TORCH and settings.device != "cpu":
            return DeviceRunner(net, wanted, settings.device, settings.precision, log)
        if settings.engine == TORCH:
            planned, needed = folded_for(net, wanted), net.inputs_for(wanted)
            is_plain = settings.precision == "float32" and not settings.compile
            if is_plain and not gains_by_packing(planned, wanted):
                return NetRunner(planned, needed, wanted, settings.threads)
            return TorchRunner(planned, needed, wanted, settings, log)
        if settings.device != "cpu" and settings.precision != "float32":
            raise IlgnetError(
                f"engine={settings.engine!r}: computes in float32 on {settings.device}; leave out "
                f"precision={settings.precision!r}, or use engine='torch'",
                option="engine",
            )
        return EngineRunner(net, wanted, settings)


class NetRunner:
    """A folded net as the exact net runs, where that chooses the faster kernels: those of LeNet's convolutions."""

    compile_seconds = 0.0

    def __init__(self, net: CaffeNet, needed: Sequence[str], wanted: tuple[str, ...], threads: int) -> None:
        self.needed, self.wanted, self.threads = tuple(needed), wanted, threads
        arrays = {name: [blob.copy() for blob in blobs] for name, blobs in float_arrays(net).items()}
        self._net = rebuild(net, net.plan, arrays).eval()
        self.modules: list[nn.Module] = [self._net]

    @property
    def direct(self) -> Direct | None:
        return _from_array(self, self.needed)

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        return True

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name: inputs[name] for name in self.needed}
        with torch.inference_mode(), threads_of_torch(self.threads):
            return self._net.run(given, self.wanted, with_loss=False).blobs


class TorchRunner:
    """Steps of torch, each on the whole batch."""

    def __init__(
        self, net: CaffeNet, needed: Sequence[str], wanted: tuple[str, ...], settings: Settings, log: Log
    ) -> None:
        """Take a folded net, whose values these are: folding changes which layer writes a blob."""
        self.wanted, self.threads, self.compile_seconds = wanted, settings.threads, 0.0
        shapes = {name: net.shapes[name] for name in needed}
        self._fed = {name: net.graph.input_value(name) for name in needed}
        self._values = {name: net.graph.value(name) for name in wanted}
        kept = set(self._values.values())
        steps = plan_steps(net, wanted, settings.precision)
        self._is_channels_last = any(isinstance(step.module, Conv) for step in steps)
        if settings.compile:
            with threads_of_torch(self.threads):
                steps, self.compile_seconds = compile_steps(
                    steps, kept, log, lambda steps: self._warm(Program(steps, kept), shapes)
                )
        self._program = Program(steps, kept)
        self.modules: list[nn.Module] = [step.module for step in steps]

    @property
    def direct(self) -> Direct | None:
        return _from_array(self, tuple(self._fed))

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        return True

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode(), threads_of_torch(self.threads):
            values = self._program(self._given(inputs))
            return {name: values[value].contiguous() for name, value in self._values.items()}

    def _given(self, inputs: Mapping[str, Tensor]) -> dict[Value, Tensor]:
        if not self._is_channels_last:
            return {value: inputs[name].contiguous() for name, value in self._fed.items()}
        return {value: _channels_last(inputs[name]) for name, value in self._fed.items()}

    def _warm(self, program: Program, shapes: Mapping[str, Shape]) -> None:
        """Run a program on one image, which torch compiles apart, and on two, which it then compiles for any number."""
        for count in (1, 2):
            inputs = {name: torch.zeros(count, *shape[1:]) for name, shape in shapes.items()}
            with torch.inference_mode():
                program(self._given(inputs))


class EngineRunner:
    """ONNX Runtime or OpenVINO; large dense layers in fewer bits, and what follows them, by torch or by OpenVINO.

    ONNX Runtime widens small weights before it multiplies, so it gains nothing by them.
    """

    compile_seconds = 0.0

    def __init__(self, net: CaffeNet, wanted: tuple[str, ...], settings: Settings) -> None:
        self.wanted, self.threads, self._device = wanted, settings.threads, settings.device
        self._heads: list[Step] = []
        self._rows: dict[str, Value] = {}
        outputs = wanted
        if settings.precision == "int8" and settings.engine == MULTIPLIES_INT8:
            net = _with_int8(net, wanted)
        elif settings.precision != "float32":
            net = folded_for(net, wanted)
            later = after_large_dense(net, wanted)
            self._heads = plan_steps(net, wanted, settings.precision, later)
            made = {top for step in self._heads for top in step.tops}
            read = {value for step in self._heads for value in step.bottoms if value not in made}
            self._rows = {net.graph.names[value]: value for value in read}
            names = [name for name in wanted if net.graph.value(name) not in made]
            outputs = tuple(dict.fromkeys([*names, *self._rows]))
        self._values = {name: net.graph.value(name) for name in wanted}
        self._program = Program(self._heads, self._values.values())
        self._given = tuple(name for name in net.inputs_for(wanted) if name in outputs)
        outputs = tuple(name for name in outputs if name not in self._given)
        self._model = self._compile(net, outputs, settings) if outputs else None
        self._inputs = net.inputs_for(wanted)
        self.modules: list[nn.Module] = [step.module for step in self._heads]
        self.direct: Direct | None = None
        is_whole = self._model is not None and not self._heads and not self._given
        is_single = len(outputs) == len(self._inputs) == 1
        if self._model is not None and is_whole and is_single and self._device == "cpu":
            self.direct = _direct(self._model.run, self._inputs[0], outputs[0])

    def _compile(self, net: CaffeNet, outputs: tuple[str, ...], settings: Settings) -> CompiledModel:
        model = plan_onnx(net, outputs=outputs, expanded=_EXPANDED[settings.engine])
        return compile_model(
            settings.engine, model, settings.threads, settings.device, is_whole=not self._heads
        )

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        return self._model is None or fits(self._model.inputs, shapes)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self._model is not None:
            given = {name: inputs[name] for name in self._model.inputs}
            found = dict(zip(self._model.outputs, self._results(self._model, given), strict=True))
        found.update((name, inputs[name]) for name in self._given)
        if not self._heads:
            return found if not self._given else {name: found[name] for name in self.wanted}
        with torch.inference_mode(), threads_of_torch(self.threads):
            rows = {value: found[name] for name, value in self._rows.items()}
            values = self._program(rows)
            made = {name: values[value] for name, value in self._values.items() if value in values}
            return {name: made[name].contiguous() if name in made else found[name] for name in self.wanted}

    @staticmethod
    def _results(model: CompiledModel, given: Mapping[str, Tensor]) -> Iterable[Tensor]:
        if model.on_device is not None:
            return model.on_device(given)
        arrays: Arrays = {name: as_float32(value) for name, value in given.items()}
        return map(torch.from_numpy, model.run(arrays))


def _from_array(
    run: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], needed: Sequence[str]
) -> Direct | None:
    """Return what takes the array of the only input; None where a net has several."""
    if len(needed) != 1:
        return None
    (name,) = needed
    return lambda array: run({name: torch.from_numpy(array)})


def _direct(run: Callable[[Arrays], list[np.ndarray]], name: str, output: str) -> Direct:
    def call(array: np.ndarray) -> dict[str, Tensor]:
        return {output: torch.from_numpy(run({name: array})[0])}

    return call


# Beyond it, squares that outweigh k, OpenVINO 2026.4 is off by up to 0.7 %: its window of squares loses small ones
# beside large ones.  Nets state 1e-4 or less.
_LARGEST_ALPHA = 1e-3


def _lrn_of_small_alpha(graph: OnnxGraph, x: str, *, alpha: float, **attributes: Any) -> str:
    """Add an LRN node where OpenVINO computes it well, and a convolution elsewhere."""
    if alpha <= _LARGEST_ALPHA:
        return graph.nodes("LRN", [x], 1, alpha=alpha, **attributes)[0]
    return lrn_as_convolution(graph, x, alpha=alpha, **attributes)


# Operators that an engine computes slowly or wrongly.  ONNX Runtime's LRN takes half of GoogLeNet's time, as a
# convolution it takes a tenth; OpenVINO's is as fast as the convolution.
_EXPANDED: dict[str, dict[str, Callable[..., str]]] = {
    "onnxruntime": {"LRN": lrn_as_convolution},
    "openvino": {"LRN": _lrn_of_small_alpha},
}


def fits(stated: Mapping[str, Dims], shapes: Mapping[str, Shape]) -> bool:
    """Return whether shapes fit the dims of a model; one symbol stands for one length."""
    lengths: dict[int | str, int] = {}
    for name, dims in stated.items():
        shape = shapes[name]
        if len(dims) != len(shape):
            return False
        for dim, length in zip(dims, shape, strict=True):
            if (lengths.setdefault(dim, length) if isinstance(dim, str) else dim) != length:
                return False
    return True


@contextmanager
def threads_of_torch(threads: int) -> Iterator[None]:
    """Let torch use this many threads within the block."""
    before = torch.get_num_threads()
    if before == threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def net_at(net: CaffeNet, shapes: Mapping[str, Shape]) -> CaffeNet:
    """Return a net with the same weights for inputs of other shapes."""
    return rebuild(net, net.plan.at(shapes), float_arrays(net))


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def _with_int8(net: CaffeNet, wanted: tuple[str, ...]) -> CaffeNet:
    """Return a net whose large dense weights are int8, with errors diffused over the plane that each reads.

    Each channel of a plane has a scale of its own: at batch 1 OpenVINO multiplies by groups of scales at the same speed.
    """
    large = [(node, layer) for node, layer in net.steps(wanted) if is_large_dense(layer)]
    made = rebuild(net, net.plan, float_arrays(net)) if large else net
    for node, layer in large:
        stored = quantized_blob(layer, WEIGHT)
        if stored is None or stored.scale is None:
            transposed = output_axis(node.layer) == 1
            weight = layer.blob(WEIGHT).detach()
            bottom = net.plan.value_shapes[node.bottoms[0]]
            plane = Dense.plane_of(layer, bottom)
            rows = weight.t().contiguous() if transposed else weight
            stored = quantize_rows(rows, "int8", plane, by_channel=not transposed)
            if transposed:
                stored = type(stored)(stored.values.t().contiguous(), stored.scale, 1)
        attach_quantized(made.layer(node.name), stored)
    return made
