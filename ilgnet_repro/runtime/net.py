"""`CaffeNet`: a Caffe net as a torch module, with inputs and outputs by Caffe's blob names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.nn.modules.module import _has_any_global_hook

from ..about import About
from ..caffe.graph import Graph, Node
from ..caffe.param_sharing import show_shape
from ..errors import ARITHMETIC, GraphError, did_you_mean, printable, unusable
from ..layers.support.base import Layer, Shape
from ..prepare_images import PrepareOptions, prepare
from ..signatures import shows_options
from .calls import Intake, Sizes, names, shapes_by_name, wanted_blobs
from .drawn import drawn_by_fillers
from .float32_products import float32_products
from .multipliers import Learnable, learnables, param_groups
from .origin import Origin
from .parameters import check_memory, register_blobs
from .plan import NetPlan, plan_net
from .replaced_layer import Placed
from .runnable import TensorNet, tensor_net
from .schedule import Schedule, make_schedule
from .step import Step

EXACT = "the exact net"
HAS_MKLDNN = torch.backends.mkldnn.is_available()
# Without hooks, torch's call of a module only runs `forward`.  Some tracers replace it by their own.
_MODULE_CALL = nn.Module.__call__


@dataclass(frozen=True)
class Pass:
    """The result of a forward pass: the requested blobs, and the weighted sum of all losses (a scalar tensor)."""

    blobs: dict[str, Tensor]
    loss: Tensor | None


class CaffeNet(nn.Module):
    """A net in one phase.

    Called with its inputs by name (tensors or arrays in Caffe's shape: N×C×H×W) it returns a dict
    of its outputs in Caffe's order.  The phase determines the layers, their blobs, and the initial mode;
    ``train()`` and ``eval()`` switch only dropout, stochastic pooling and batch statistics (unless
    ``use_global_stats`` is stated).  Parameters are `nn.Parameter`s under ``layers.LAYER.BLOB``.
    """

    def __init__(
        self,
        plan: NetPlan | Graph,
        weights: Mapping[str, Sequence[np.ndarray]] | None = None,
        *,
        input_shapes: Mapping[str, Shape] | None = None,
        seed: int | None = None,
        carry_state: bool = False,
    ) -> None:
        """Copy a plan's layers, with blobs from ``weights`` or, where missing, drawn by their fillers.

        A graph is planned first, for ``input_shapes`` where these are given.  With ``carry_state`` each pass of RNN and
        LSTM starts from the final state of the pass before it, as in Caffe.
        """
        super().__init__()
        if isinstance(plan, Graph):
            plan = plan_net(plan, shapes_by_name(input_shapes or {}, plan))
        elif input_shapes:
            plan = plan.at(shapes_by_name(input_shapes, plan.graph))
        self.plan, self.graph = plan, plan.graph
        self.about = About()
        self.origin: Origin | None = None  # the file of its weights
        self.layers = nn.Module()
        self._keys: dict[str, Node] = dict(zip(_module_keys(plan.graph), plan.graph.nodes, strict=True))
        for key, node in self._keys.items():
            # add_module would refuse a layer named like one of Module's own attributes ("data", "type").
            self.layers._modules[key] = plan.layers[node.name].fresh()
        self._schedules: dict[tuple[tuple[str, ...], bool], Schedule] = {}
        self.shapes, self.inputs, self.outputs = plan.shapes, plan.inputs, plan.graph.outputs
        check_memory(plan, weights or {})
        register_blobs(plan, self._sequence, weights or {}, seed)
        self.drawn = drawn_by_fillers(self, weights or ())  # compared when the net is saved
        # Tops of DummyData layers, computed unless the caller gives them.
        self.optional_inputs: tuple[str, ...] = tuple(
            top for node, layer in self._sequence if layer.may_be_fed for top in node.top_names
        )
        self._integers = self._integer_inputs()
        self._intake = self.make_intake()
        # The type and device of a net without parameters: float32 as in Caffe, until `half()`, `to()` and the like.
        self._dtype, self._device = torch.float32, torch.device("cpu")
        for layer in self.stateful_layers:
            layer.carry_state = carry_state
        self.train(self.graph.phase == "TRAIN")

    def __repr__(self) -> str:
        """The net in a few lines: inputs, outputs, and how many layers and parameters."""
        shown = {
            "inputs": (f"{name} {show_shape(self.shapes[name])}" for name in self.inputs),
            "outputs": (f"{name} {show_shape(self.shapes[name])}" for name in self.outputs),
        }
        count = sum(prod(spec.shape) for specs in self.plan.blobs.values() for spec in specs)
        count -= sum(prod(self.plan.blobs[name][index].shape) for name, index in self.plan.owners)
        lines = [f"{type(self).__name__} {self.name!r}, phase {self.graph.phase}"]
        lines += [f"  {what}: {', '.join(blobs) or 'none'}" for what, blobs in shown.items()]
        lines.append(f"  {len(self.graph.layers)} layers, {count:,} parameters")
        return "\n".join(map(printable, lines))

    @property
    def name(self) -> str:
        """The net's name."""
        return self.graph.name

    @property
    def form(self) -> str:
        """What computes it."""
        return EXACT

    # ------------------------------------------------------------------ layers

    @property
    def _layers_now(self) -> Any:
        """The modules of `layers`, without torch's slow attribute lookup."""
        held: Any = self._modules["layers"]
        return held._modules

    @property
    def _sequence(self) -> list[tuple[Node, Any]]:
        """Each node with its present module in `layers`: its layer, or the module that replaced it."""
        held = self.layers._modules
        self._refuse_unknown_modules(held)
        return [(node, self._layer(key, node, held.get(key))) for key, node in self._keys.items()]

    def _refuse_unknown_modules(self, held: Iterable[str]) -> None:
        for key in held:
            if key not in self._keys:
                raise GraphError(
                    f"net {self.graph.name!r}: layers.{key} belongs to no layer of the net and would not run; "
                    "assign it to the name of a layer"
                )

    def _layer(self, key: str, node: Node, module: nn.Module | None) -> Any:
        if module is None:
            raise GraphError(
                f"{node.name} ({node.type}): is missing from the net's layers; "
                f"to pass its bottom on, assign torch.nn.Identity() to layers.{key}"
            )
        if isinstance(module, Layer) and (module.node is node or module.node == node):
            return module
        return Placed(node, module)

    def refuse_changes(self, what: str) -> None:
        """Raise GraphError, by layer name, where `layers` no longer matches the net's text.

        ``what`` completes "the net cannot be ...".
        """
        for change in self._changes():
            raise GraphError(f"{change}, so the net cannot be {what}")
        for _, layer in self._sequence:
            layer.refuse_unread_parameters()

    def _changes(self) -> Iterator[str]:
        for node, layer in self._sequence:
            where = f"{node.name} ({node.type}):"
            if isinstance(layer, Placed):
                yield f"{where} is now a {layer.kind}"
                continue
            for spec in self.plan.blobs[node.name]:
                # A computed blob (int8 weights, weight norm) is not a parameter and keeps its shape.
                blob = layer._parameters.get(spec.name, layer)
                if blob is None:
                    yield f"{where} {spec.name} is None now"
                elif isinstance(blob, Tensor) and tuple(blob.shape) != spec.shape:
                    yield f"{where} {spec.name} is {show_shape(tuple(blob.shape))} now, not {show_shape(spec.shape)}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CaffeNet:
        nn.Module._apply(self, fn, recurse)
        probe = fn(torch.empty(0, dtype=self._dtype, device=self._device))
        self._dtype, self._device = probe.dtype, probe.device
        return self

    # ------------------------------------------------------------------ parameters

    @property
    def params(self) -> dict[str, list[Tensor]]:
        """Each layer's parameter blobs in Caffe's order, by layer name; layers without blobs are left out."""
        return {node.name: layer.blobs for node, layer in self._sequence if layer.blob_names}

    def param_groups(
        self, lr: float | None = None, weight_decay: float | None = None
    ) -> list[dict[str, Any]]:
        """Return the trainable parameters as groups for an optimizer of torch, one per pair of Caffe's multipliers.

        Each has its ``lr_mult`` and ``decay_mult`` (of the net's `param` rows) and, where a base is given, ``lr`` and
        ``weight_decay`` as the base times the multiplier: ``SGD(net.param_groups(lr=0.01, weight_decay=5e-4), lr=0.01)``.
        """
        return param_groups(self.learnables(), lr, weight_decay)

    def learnables(self) -> list[Learnable]:
        """Return the parameters with their multipliers, in the order of Caffe's `learnable_params`."""
        return learnables(self.plan, self._sequence)

    def layers_by_name(self) -> dict[str, Any]:
        """Return all layers by name, those that the graph inserts included."""
        return {node.name: layer for node, layer in self._sequence}

    def layer(self, name: str) -> Layer:
        """Return the layer of that name."""
        layer: Layer
        for node, layer in self._sequence:
            if node.name == name:
                return layer
        known = [node.name for node in self.graph]
        raise GraphError(
            f"layer {name!r} is not in net {self.graph.name!r}{did_you_mean(name, known)}; it has {names(known)}"
        )

    # ------------------------------------------------------------------ state

    @property
    def stateful_layers(self) -> list[Any]:
        """The layers (RNN, LSTM) whose state Caffe carries from pass to pass."""
        return [layer for _, layer in self._sequence if layer.has_state]

    @property
    def carries_state(self) -> bool:
        """Whether a pass starts from the final state of the pass before it."""
        return any(layer.carry_state for layer in self.stateful_layers)

    def reset_state(self) -> None:
        """Start the next pass of RNN and LSTM layers from zeros."""
        for layer in self.stateful_layers:
            layer.reset_state()

    # ------------------------------------------------------------------ running

    def forward(
        self,
        given: Mapping[str, Tensor] | Tensor | None = None,
        *,
        blobs: Iterable[str] | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """Run the net and return its outputs, or the requested blobs, by Caffe's names.

        Inputs are keywords or, where a name is not an identifier, one mapping; the only input of a net may be given
        without a name.  Raises IlgnetError for an input that is missing, unknown, or of another
        rank or layout, and GraphError for an unknown blob.
        """
        return self._run(self._intake.named(given, inputs), blobs, with_loss=False).blobs

    def loss(self, given: Mapping[str, Tensor] | Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Run the net and return the weighted sum of its losses, ready for ``backward()``."""
        loss = self._run(self._intake.named(given, inputs), (), with_loss=True).loss
        if loss is None:
            raise GraphError(f"net {self.graph.name!r} has no loss layer in phase {self.graph.phase}")
        return loss

    def run(
        self, inputs: Mapping[str, Tensor], blobs: Iterable[str] | None = None, *, with_loss: bool = True
    ) -> Pass:
        """Run the net once for some blobs (default: its outputs) and, with ``with_loss``, all its losses."""
        return self._run(self._intake.named(inputs, {}), blobs, with_loss=with_loss)

    def _run(self, given: Mapping[str, Any], blobs: Iterable[str] | None, *, with_loss: bool) -> Pass:
        inputs = self._intake.tensors(given)
        is_compiling = torch.compiler.is_compiling()
        sizes: Sizes = ()
        if not is_compiling:
            sizes = self._intake.check_sizes(inputs, by_plan=lambda: not any(self._changes()))
        schedule = self._schedule(self.outputs if blobs is None else self._wanted(blobs), with_loss)
        is_direct = not is_compiling and self._needs_no_hooks(schedule)
        dtype, device = self.computes_in
        if is_direct and schedule.inference is not None and self._is_inference(dtype, device):
            return Pass(
                schedule.inference(sizes, lambda step: self._fed(step, step.layer, inputs, dtype, device)),
                None,
            )
        if device.type == "cuda" and not is_compiling:
            with float32_products():
                return self._compute(schedule, inputs, is_direct, dtype, device)
        return self._compute(schedule, inputs, is_direct, dtype, device)

    def _compute(
        self,
        schedule: Schedule,
        inputs: Mapping[str, Tensor],
        is_direct: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Pass:
        """Run the steps of a schedule, one after another."""
        work = schedule.own if is_direct else self._current_steps(schedule)
        values: list[Any] = [None] * schedule.slots
        loss: Tensor | None = None
        tops: Sequence[Any]
        step = None
        try:
            for step, layer in work:
                if step.only_forward:
                    run = layer.forward if is_direct else layer
                    bottoms = step.bottoms
                    tops = (
                        run(values[bottoms[0]]) if len(bottoms) == 1 else run(*[values[b] for b in bottoms])
                    )
                elif layer.is_input:
                    tops = self._fed(step, layer, inputs, dtype, device)
                elif layer.may_be_fed and not set(inputs).isdisjoint(step.node.top_names):
                    tops = self._fed_or_computed(step.node, layer, inputs, dtype, device)
                else:
                    read = [values[slot] for slot in step.bottoms]
                    for position in layer.stopped_bottoms:
                        read[position] = read[position].detach()
                    tops = layer(*read)
                    if not read:  # DummyData draws float32, whatever the net computes in
                        tops = tuple(top.to(device, dtype) for top in tops)
                if len(step.tops) == 1:
                    values[step.tops[0]] = tops[0]
                else:
                    for slot, top in zip(step.tops, tops, strict=False):
                        values[slot] = top
                for position, weight in step.loss_weights:
                    term = weight * tops[position].sum()
                    loss = term if loss is None else loss + term
                for slot in step.freed:
                    values[slot] = None
        except ARITHMETIC as error:
            # Hooks and Python layers are the user's own code, and torch's tracing has its own exceptions.
            if not is_direct or step is None or isinstance(error, torch.OutOfMemoryError):
                raise
            raise unusable(step.node.name, step.node.type, "cannot compute its tops", error) from error
        return Pass({name: values[slot] for name, slot in schedule.wanted}, loss)

    @staticmethod
    def _is_inference(dtype: torch.dtype, device: torch.device) -> bool:
        """Return whether a pass may run its schedule's `inference`."""
        return dtype is torch.float32 and device.type == "cpu" and not torch.is_grad_enabled() and HAS_MKLDNN

    def _needs_no_hooks(self, schedule: Schedule) -> bool:
        """Return whether calling `forward` is equivalent to calling each layer, which takes as long as a small layer.

        It is while all layers are the net's own, and there are no hooks and no tracer.
        """
        held = self._layers_now
        if len(held) != len(self._keys) or is_tracing() or _has_any_global_hook():
            return False
        for step in schedule.steps:
            layer = step.layer
            if (
                layer is None
                or layer is not held.get(step.key)
                or len(layer._parameters) != step.parameter_count
                or layer._forward_hooks
                or layer._forward_pre_hooks
                or layer._backward_hooks
                or layer._backward_pre_hooks
                or layer._compiled_call_impl
                or "forward" in layer.__dict__
                or type(layer).__call__ is not _MODULE_CALL
            ):
                return False
        return True

    def _current_steps(self, schedule: Schedule) -> list[tuple[Step, Any]]:
        """Return each step with its present module in `layers`."""
        held = self._layers_now
        if len(held) != len(self._keys):
            self._refuse_unknown_modules(held)
        work: list[tuple[Step, Any]] = []
        for step in schedule.steps:
            layer, module = step.layer, held.get(step.key)
            if layer is None or layer is not module:
                layer = self._layer(step.key, step.node, module)
            elif len(layer._parameters) != step.parameter_count:
                layer.refuse_unread_parameters()
            work.append((step, layer))
        return work

    def _schedule(self, wanted: tuple[str, ...], with_loss: bool) -> Schedule:
        key = (wanted, with_loss)
        found = self._schedules.get(key)
        if found is None:
            found = make_schedule(self.plan, self._keys, self.layers, wanted, with_loss)
            if not torch.compiler.is_compiling():
                self._schedules[key] = found
        return found

    def blob_shapes(self, given: Mapping[str, Shape] | None = None, **shapes: Shape) -> dict[str, Shape]:
        """Return the shape of every blob for inputs of the given shapes (others keep their own).

        Raises LayerError where a layer does not accept that size.
        """
        self.refuse_changes("planned; run it to see its blobs")
        wanted = shapes_by_name({**(given or {}), **shapes}, self.graph)
        return dict(self.plan.at(wanted).shapes)

    def inputs_for(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the inputs that the given blobs depend on."""
        used = {top for node, layer in self.steps(tuple(wanted)) if layer.is_input for top in node.tops}
        used &= {value for node, _ in self.steps(tuple(wanted)) for value in node.bottoms} | {
            self.graph.value(name) for name in wanted
        }
        return tuple(name for name in self.inputs if self.graph.input_value(name) in used)

    def steps(self, wanted: tuple[str, ...], with_loss: bool = False) -> list[tuple[Node, Any]]:
        """Return the layers that some blobs (and, ``with_loss``, all losses) depend on, in order."""
        schedule = self._schedule(self._wanted(wanted), with_loss)
        return [(step.node, layer) for step, layer in self._current_steps(schedule)]

    def _wanted(self, blobs: Any) -> tuple[str, ...]:
        return wanted_blobs(blobs, self.graph.names.values(), self.graph.name)

    def _integer_inputs(self) -> frozenset[str]:
        """Return the inputs that are read only as labels or indices."""
        uses = [
            (bottom, index in layer.index_bottoms)
            for node, layer in self._sequence
            for index, bottom in enumerate(node.bottoms)
        ]
        return frozenset(
            name
            for name in self.inputs
            if all(is_index for bottom, is_index in uses if bottom == self.graph.input_value(name))
        )

    @property
    def fixed_batch(self) -> None:
        """None: it accepts any batch size."""

    def image_input(self) -> str:
        """Return the one input that the outputs depend on.

        Raises GraphError where there are several, or none.
        """
        found = self.inputs_for(self.outputs)
        if not found:
            sources = [
                f"{node.name} ({node.type})" for node, _ in self.steps(self.outputs) if not node.bottoms
            ]
            raise GraphError(
                f"net {self.graph.name!r} takes no input, so no image enters it; its data come from "
                f"{', '.join(sources)}: put an Input layer there, or convert the net with the shape of that top "
                "(input_shapes={'TOP': (N, C, H, W)})",
                option="input_shapes",
            )
        if len(found) > 1:
            raise GraphError(
                f"net {self.graph.name!r} takes {len(found)} inputs ({names(found)}); images fit only a net with one"
            )
        return found[0]

    @shows_options(PrepareOptions, prepare)
    def prepare(self, images: Any, **options: Unpack[PrepareOptions]) -> Tensor:
        """Prepare images (paths, uint8 arrays or PIL images) as ``about.preprocessing`` says: N×3×H×W.

        The options are those of `prepare_images.prepare`.  Raises DataError for anything but images, and
        where the preprocessing is not known.
        """
        return torch.from_numpy(prepare(self.about, images, net=self.name, **options))

    def as_tensor(self, blob: str | None = None) -> TensorNet:
        """Return a module from the net's one input to one blob, both tensors (default: its one output).

        It shares the net's parameters.  Raises GraphError where there are several inputs or outputs.
        """
        return tensor_net(self, blob, self._wanted)

    def make_intake(self) -> Intake:
        """Return an `Intake` with this net's input names and shapes."""
        optional = {
            name: self.shapes[name]
            for node, layer in self._sequence
            if layer.may_be_fed
            for name in node.top_names
        }
        own = {name: self.shapes[name] for name in self.inputs}
        return Intake(self.plan, own, optional)

    @property
    def computes_in(self) -> tuple[torch.dtype, torch.device]:
        """The type and device of the first float parameter; without any, float32 on the CPU unless moved."""
        for layer in self._layers_now.values():  # direct parameters first: `parameters()` is slower
            for parameter in layer._parameters.values() if layer is not None else ():
                if parameter is not None and parameter.is_floating_point():
                    return parameter.dtype, parameter.device
        for parameter in self.parameters():
            if parameter.is_floating_point():
                return parameter.dtype, parameter.device
        return self._dtype, self._device

    def _fed(
        self, step: Step, layer: Any, inputs: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> list[Any]:
        """Return the tops of an input layer; None for those that nothing reads."""
        tops: list[Any] = [
            None if name is None else self._input(inputs, name, dtype, device) for name in step.top_names
        ]
        if isinstance(layer, Placed):
            made = iter(layer(*(top for top in tops if top is not None)))
            tops = [None if top is None else next(made) for top in tops]
        return tops

    def _fed_or_computed(
        self, node: Node, layer: Layer, inputs: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> list[Tensor]:
        """Return the tops of a DummyData layer: those given, the others from the layer."""
        return [
            self._input(inputs, name, dtype, device) if name in inputs else made
            for name, made in zip(node.top_names, layer(), strict=True)
        ]

    def _input(
        self, inputs: Mapping[str, Tensor], name: str, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return self._intake.value(inputs, name, torch.float32 if name in self._integers else dtype, device)


def expect_caffe_net(net: Any, what: str) -> CaffeNet:
    """Return ``net``, a net loaded from Caffe's files.  Raises GraphError for anything else.

    ``what`` completes "it cannot be ...".
    """
    if isinstance(net, CaffeNet):
        return net
    form = getattr(net, "form", None)
    if form is None:
        raise GraphError(
            f"a {type(net).__name__} is not a net, so it cannot be {what}; give the net that load returns"
        )
    raise GraphError(
        f"{net.name}: is computed by {form}, so it cannot be {what}; give the net loaded from Caffe's files"
    )


def float_arrays(net: CaffeNet) -> dict[str, list[np.ndarray]]:
    """Return every blob as a float32 array by layer name, in Caffe's order; float32 blobs are not copied."""
    return {
        name: [blob.detach().to("cpu", torch.float32).numpy() for blob in blobs]
        for name, blobs in net.params.items()
    }


def _module_keys(graph: Graph) -> list[str]:
    """Return layer names as unique module names; those that torch does not allow are changed.

    These are names with a dot, which torch uses for nesting, and "training", which `nn.Module.train` sets.
    """
    taken = {node.name for node in graph if node.name not in ("", "training") and "." not in node.name}
    keys: list[str] = []
    for node in graph:
        key = node.name
        if key not in taken:
            key = key.replace(".", "_") or "_"
            while key in taken or key == "training":
                key += "_"
            taken.add(key)
        keys.append(key)
    return keys
