"""A net on a GPU, by torch: float32 without TF32, or layers in float16 or bfloat16, as a CUDA graph where it can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..caffe.graph import Value
from ..layers.support.base import Shape
from ..runtime.float32_products import float32_products
from ..runtime.net import CaffeNet, float_arrays
from ..runtime.rebuild import rebuild
from .cuda_graphs import Replays, Run, Tensors, record_graph, watched
from .device_steps import device_steps
from .torch_steps import Program, folded_for


@dataclass(frozen=True)
class DeviceOptions:
    """How a net runs on a GPU: what `fast` chooses, and what a benchmark compares it with."""

    graphs: bool = True
    channels_last: bool | None = None  # None: in 16 bits, which tensor cores take in that order
    fused: bool = True  # cuDNN applies a ReLU
    tuned: bool = True  # cuDNN measures its kernels for a graph


@dataclass(frozen=True, eq=False)
class _Pass:
    """What computes the blobs: a program, the values fed and wanted; ``tuned``: cuDNN measures its kernels."""

    program: Program
    fed: Sequence[Value]
    wanted: Sequence[Value]
    tuned: bool

    def compute(self, given: Sequence[Tensor]) -> Tensors:
        with float32_products():
            values = self.program(dict(zip(self.fed, given, strict=True)))
        found = (values[value] for value in self.wanted)
        return [value.float().contiguous() if value.is_floating_point() else value for value in found]

    def record(self, given: Sequence[Tensor]) -> Run:
        """Return the same as a graph: its kernels are used often, so cuDNN may measure which are fastest."""
        cudnn: Any = torch.backends.cudnn
        before, cudnn.benchmark = cudnn.benchmark, self.tuned
        try:
            return record_graph(self.compute, given)
        finally:
            cudnn.benchmark = before


class DeviceRunner:
    """The folded net on a CUDA device."""

    compile_seconds = 0.0
    direct = None

    def __init__(
        self,
        net: CaffeNet,
        wanted: tuple[str, ...],
        device: str,
        precision: str,
        log: Callable[[str], None],
        options: DeviceOptions | None = None,
    ) -> None:
        options = options or DeviceOptions()
        self.wanted, self._device, self._log = wanted, torch.device(device), log
        planned = folded_for(net, wanted)
        # Of its own: `to` changes a module, and the exact net stays where it is.
        moved = rebuild(planned, planned.plan, float_arrays(planned)).to(self._device).eval()
        dtype: torch.dtype = getattr(torch, precision)
        last = dtype != torch.float32 if options.channels_last is None else options.channels_last
        steps = device_steps(moved, wanted, self._device, dtype, channels_last=last, fused=options.fused)
        self._needed = net.inputs_for(wanted)
        fed = [moved.graph.input_value(name) for name in self._needed]
        values = [moved.graph.value(name) for name in wanted]
        self._steps = steps
        self._pass = one = _Pass(Program(steps, values), fed, values, options.tuned)
        # None before the first call, which looks for layers that no graph can record.
        self._can_record: bool | None = None if options.graphs and self._needed else False
        # Neither refers to this object: with it a graph's memory is given back, without waiting for Python's collector.
        self._replays = Replays(one.compute, one.record)
        self.modules: list[nn.Module] = [step.module for step in steps]

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        return True

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = [inputs[name].to(self._device) for name in self._needed]
        with torch.inference_mode():
            if self._can_record is None:
                found = self._look_for_reasons(given)
            elif self._can_record:
                found = self._replay(given)
            else:
                found = self._pass.compute(given)
        return dict(zip(self.wanted, found, strict=True))

    def _look_for_reasons(self, given: Sequence[Tensor]) -> Tensors:
        """Compute the blobs, and find out whether a graph can record the steps."""
        steps, reasons = watched(self._steps)
        found = replace(self._pass, program=Program(steps, self._pass.wanted)).compute(given)
        self._can_record = not reasons
        self._replays.note(given)
        if reasons:
            self._log(
                f"no CUDA graph, so each layer is launched by itself: {', '.join(dict.fromkeys(reasons))} "
                "reads values on the CPU"
            )
        return found

    def _replay(self, given: Sequence[Tensor]) -> Tensors:
        try:
            return self._replays(given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._can_record = False
            self._log(f"no CUDA graph, so each layer is launched by itself: {str(error).splitlines()[0]}")
        return self._pass.compute(given)
