"""`FastNet`: a net called like `CaffeNet`, optimized for inference on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import nan
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from ..caffe.graph import Value
from ..errors import GraphError
from ..precisions import check_weights_precision
from ..prepare_images import PrepareOptions, prepare
from ..process import huge_pages
from ..signatures import shows_options
from .calls import wanted_blobs
from .difference import differ
from .fast_compiled import compile_steps
from .fast_steps import Step, folded, plan_steps, run_steps, split_per_image
from .modes import as_loaded
from .net import CaffeNet, expect_caffe_net
from .runnable import FileNet, TensorNet, tensor_net

_CPU = torch.device("cpu")
_NOT_COMPILED = "a fast net runs uncompiled; compile the exact net, or use fast(net, compile=True)"
Log = Callable[[str], None]


def fast(
    net: CaffeNet | FileNet, precision: str = "float32", *, compile: bool = False, log: Log | None = None
) -> FastNet:
    """Return ``net`` optimized for inference; see `FastNet`.

    ``compile`` compiles elementwise layers and LRN with torch.compile; ``log`` receives its progress.

    Raises GraphError for a net in phase TRAIN or on another device than the CPU, IlgnetError for an
    unknown precision.
    """
    check_weights_precision(precision)
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
    with huge_pages():
        return FastNet(net, precision, compile, log or (lambda message: None))


def slice_size() -> int:
    """Return how many images the trunk computes at a time: two per thread fit the caches and keep it busy."""
    return 2 * torch.get_num_threads()


class FastNet(nn.Module):
    """A net called like the `CaffeNet` it was made from (``exact``), for inference on the CPU only.

    Convolutions run in float32 on packed channels-last weights.  ``precision`` applies to large dense
    weights only: float32 differs from the exact net by the order of its sums; float16 and bfloat16 halve, int8
    quarters the weight bytes read per image.  float16 rounds only the weights; the other two also round
    those layers' activations and sums.  Layers that process each image separately run on a
    few images at a time, so that their blobs stay in the processor's caches; dense layers on the whole batch.
    The weights are packed copies: later changes to the exact net have no effect, and a fast net cannot be moved,
    converted, copied or saved; do that with the exact net and make it fast again.
    RNN and LSTM start each pass from zeros.
    """

    exact: CaffeNet

    def __init__(self, net: CaffeNet, precision: str, compile: bool, log: Log) -> None:
        super().__init__()
        # Bypasses Module.__setattr__: the exact net is kept for comparison and is not a submodule.
        object.__setattr__(self, "exact", net)
        self.graph, self.about, self.precision = net.graph, net.about, precision
        self.inputs, self.outputs, self.shapes = net.inputs, net.outputs, net.shapes
        self.compile_seconds = 0.0
        self._needed = net.inputs_for(net.outputs)
        self._inputs_for = {name: net.inputs_for((name,)) for name in net.outputs}
        self._intake = net.make_intake()
        with torch.no_grad():
            planned = folded(net)
            steps = plan_steps(planned, precision)
        # Values of the folded net: folding changes which layer writes a blob.
        self._fed = {name: planned.graph.input_value(name) for name in self._needed}
        self._trunk, self._heads = split_per_image(steps, self._fed.values())
        self._output_values = {name: planned.graph.value(name) for name in net.outputs}
        self._trunk_tops = {value for step in self._heads for value in step.bottoms}.union(
            self._output_values.values()
        )
        if compile:
            self._trunk, self.compile_seconds = compile_steps(self._trunk, self._trunk_tops, log, self._warm)
        self.parts = nn.ModuleList(step.module for step in (*self._trunk, *self._heads))
        super().train(False)

    @property
    def name(self) -> str:
        """The net's name."""
        return self.graph.name

    @property
    def form(self) -> str:
        """What computes it."""
        return f"fast path, large dense weights in {self.precision}"

    @shows_options(PrepareOptions, prepare)
    def prepare(self, images: Any, **options: Unpack[PrepareOptions]) -> Tensor:
        """Prepare images as `CaffeNet.prepare`."""
        return self.exact.prepare(images, **options)

    def as_tensor(self, blob: str | None = None) -> TensorNet:
        """Return a module from the net's one input to one output, as `CaffeNet.as_tensor`."""
        return tensor_net(self, blob, self._wanted)

    def forward(
        self,
        given: Mapping[str, Tensor] | Tensor | None = None,
        *,
        blobs: Iterable[str] | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """Run the net and return its outputs, or the requested ones, by Caffe's names.

        Raises IlgnetError for a missing or unknown input, GraphError for a blob that is not an
        output: the fast path does not compute every intermediate blob.
        """
        if torch.compiler.is_exporting() or is_tracing():
            raise self._refusal("exported or traced")
        if torch.compiler.is_compiling():  # packed weights are opaque to torch.compile: the net runs as it is
            torch._dynamo.graph_break(msg=_NOT_COMPILED)
            found: dict[str, Tensor] = torch.compiler.disable(self._run)(given, blobs, inputs)
            return found
        return self._run(given, blobs, inputs)

    def _run(
        self,
        given: Mapping[str, Tensor] | Tensor | None,
        blobs: Iterable[str] | None,
        inputs: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        wanted = self.outputs if blobs is None else self._wanted(blobs)
        inputs = self._intake.tensors(self._intake.named(given, inputs))
        if torch.is_grad_enabled() and any(value.requires_grad for value in inputs.values()):
            raise self._refusal("differentiated")
        with torch.inference_mode():
            self._intake.check_sizes(inputs, by_plan=lambda: True)
            values = {}
            for name, fed in self._fed.items():
                tensor = self._intake.value(inputs, name, torch.float32, _CPU)
                values[fed] = (
                    tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
                )
            values = run_steps(self._heads, self._in_slices(values), set(self._output_values.values()))
            return {name: values[self._output_values[name]].contiguous() for name in wanted}

    def inputs_for(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the inputs that the given blobs depend on."""
        used = {name for blob in self._wanted(wanted) for name in self._inputs_for[blob]}
        return tuple(name for name in self.inputs if name in used)

    @property
    def fixed_batch(self) -> None:
        """None: it accepts any batch size."""

    def image_input(self) -> str:
        """Return the one input that the outputs depend on, as `CaffeNet.image_input`."""
        return self.exact.image_input()

    def _wanted(self, blobs: Iterable[str]) -> tuple[str, ...]:
        listed = "ask the exact net for it; the outputs are"
        return wanted_blobs(blobs, self.outputs, self.graph.name, "no output of net", listed)

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

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise self._refusal("copied or pickled")

    def _refusal(self, what: str) -> GraphError:
        return GraphError(
            f"net {self.graph.name!r}: a fast net cannot be {what}; do it with the exact net, and make that fast"
        )

    def deviation(
        self, given: Mapping[str, Tensor] | Tensor | None = None, **inputs: Tensor
    ) -> dict[str, float]:
        """Return each output's largest absolute difference from the exact net's, for these inputs.

        It is infinite where the shapes differ or only one of two values is finite, and NaN
        where there is no finite value to compare.
        """
        with torch.inference_mode(), as_loaded(self.exact):
            exact = self.exact(given, **inputs)
        apart = {
            name: differ(exact[name].float().cpu().numpy(), blob.float().cpu().numpy())
            for name, blob in self(given, **inputs).items()
        }
        return {name: one.largest if one.is_compared else nan for name, one in apart.items()}

    def _in_slices(self, values: dict[Value, Tensor]) -> dict[Value, Tensor]:
        """Run the trunk on a few images at a time."""
        counts = {tensor.shape[:1] for tensor in values.values()}
        size = slice_size()
        if len(counts) != 1 or not self._trunk or sum(next(iter(counts))) <= size:
            return run_steps(self._trunk, values, self._trunk_tops)
        pieces = [tensor.split(size) for tensor in values.values()]
        parts = [
            run_steps(self._trunk, dict(zip(values, piece, strict=True)), self._trunk_tops)
            for piece in zip(*pieces, strict=True)
        ]
        return {value: torch.cat([part[value] for part in parts]) for value in parts[0]}

    def _warm(self, trunk: Sequence[Step]) -> None:
        """Run a trunk once for each slice size, so that torch compiles it for them."""
        for count in {1, slice_size()}:
            values = {}
            for name, fed in self._fed.items():
                blank = torch.zeros(count, *self.shapes[name][1:])
                values[fed] = (
                    blank.contiguous(memory_format=torch.channels_last) if blank.dim() == 4 else blank
                )
            with torch.inference_mode():
                run_steps(trunk, values, self._trunk_tops)
