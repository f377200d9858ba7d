"""`CaffeNet`: a Caffe net as a torch module; blobs in, blobs out, by Caffe's names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..about import About, prepare
from ..caffe.graph import Graph, Node, Value
from ..caffe.param_sharing import show_shape
from ..errors import GraphError, did_you_mean, printable
from ..layers.support.base import Layer, Shape
from ..layers.support.fillers import fill, machine_memory
from .calls import Intake, names, shapes_by_name, wanted_blobs
from .origin import Origin
from .placed import Placed
from .plan import NetPlan, plan_net

EXACT = "the exact net"
# How torch calls a module: hooks apart, it only runs `forward`.  Some tracers put a call of their own in its place.
_MODULE_CALL = nn.Module.__call__


@dataclass(frozen=True, slots=True)
class _Step:
    """One layer's turn in a pass: where its bottoms lie and its tops go, and what nothing reads any more after it."""

    key: str
    node: Node
    layer: Layer | None  # the net's own; None where another module was in its place
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]
    fed: tuple[str | None, ...]  # its tops by name; None where neither a layer nor the caller reads it
    is_plain: bool  # its bottoms as they are, and nothing else, make its tops
    parameters: int  # how many blobs it has
    done: tuple[int, ...]
    loss_weights: tuple[tuple[int, float], ...]  # of the tops that count in the loss


@dataclass(frozen=True)
class _Schedule:
    """What a pass for some blobs does, worked out once: values lie in numbered places, not under names."""

    steps: tuple[_Step, ...]
    own: tuple[tuple[_Step, Any], ...]  # each with the net's own layer
    places: int
    wanted: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Pass:
    """One forward pass: the blobs asked for, and the weighted sum of all losses (a scalar tensor)."""

    blobs: dict[str, Tensor]
    loss: Tensor | None


class CaffeNet(nn.Module):
    """A net in one phase.

    Called with its inputs by name (tensors or arrays, as Caffe shapes them: N×C×H×W) it returns a dict
    of its outputs in Caffe's order.  The phase fixes which layers there are and their blobs, and the mode that a
    net begins in; ``train()`` and ``eval()`` switch dropout, stochastic pooling and batch statistics (unless
    ``use_global_stats`` is stated), and nothing else.  Parameters are `nn.Parameter`s under ``layers.LAYER.BLOB``.
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
        """Take copies of a plan's layers, and give them ``weights`` or, where these lack one, what its fillers draw.

        A graph is planned first, for ``input_shapes`` where these are given.  With ``carry_state`` each pass of RNN and
        LSTM starts from the state that the pass before it left, as in Caffe.
        """
        super().__init__()
        if isinstance(plan, Graph):
            plan = plan_net(plan, shapes_by_name(input_shapes or {}, plan))
        elif input_shapes:
            plan = plan.at(shapes_by_name(input_shapes, plan.graph))
        self.plan, self.graph = plan, plan.graph
        self.about = About()
        self.origin: Origin | None = None  # the file that its weights are from
        self.layers = nn.Module()
        self._keys: dict[str, Node] = dict(zip(_module_keys(plan.graph), plan.graph.nodes, strict=True))
        for key, node in self._keys.items():
            # add_module would refuse a layer named like one of Module's own attributes ("data", "type").
            self.layers._modules[key] = plan.layers[node.name].fresh()
        self._schedules: dict[tuple[tuple[str, ...], bool], _Schedule] = {}
        self.shapes, self.inputs, self.outputs = plan.shapes, plan.inputs, plan.graph.outputs
        self._check_memory(weights or {})
        self._fill_blobs(weights or {}, seed)
        # What DummyData layers make up unless the caller gives it.
        self.optional_inputs: tuple[str, ...] = tuple(
            top for node, layer in self._sequence if layer.may_be_fed for top in node.top_names
        )
        self._integers = self._integer_inputs()
        self._intake = self.make_intake()
        # What a net without parameters computes in: float32, as Caffe, until `half()`, `to()` and the like.
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
        """Who computes it."""
        return EXACT

    # ------------------------------------------------------------------ layers

    @property
    def _layers_now(self) -> Any:
        """The modules of `layers`, found without torch's slow look-up of attributes."""
        held: Any = self._modules["layers"]
        return held._modules

    @property
    def _sequence(self) -> list[tuple[Node, Any]]:
        """Each node with what `layers` holds for it now: its layer, or the module that was put in its place."""
        held = self.layers._modules
        self._refuse_others(held)
        return [(node, self._layer(key, node, held.get(key))) for key, node in self._keys.items()]

    def _refuse_others(self, held: Iterable[str]) -> None:
        for key in held:
            if key not in self._keys:
                raise GraphError(
                    f"net {self.graph.name!r}: layers.{key} belongs to no layer of the net and would not run; "
                    "put it in the place of one"
                )

    def _layer(self, key: str, node: Node, module: nn.Module | None) -> Any:
        if module is None:
            raise GraphError(
                f"{node.name} ({node.type}): is gone from the net's layers; "
                f"to pass its bottom on, put torch.nn.Identity() at layers.{key}"
            )
        if isinstance(module, Layer) and (module.node is node or module.node == node):
            return module
        return Placed(node, module)

    def refuse_changes(self, what: str) -> None:
        """Raise GraphError, by layer name, where `layers` no longer holds what the net's text says.

        ``what`` is what cannot be done with such a net.
        """
        for change in self._changes():
            raise GraphError(f"{change}, so the net cannot be {what}")
        for _, layer in self._sequence:
            layer.refuse_unread_parameters()

    def _changes(self) -> Iterator[str]:
        for node, layer in self._sequence:
            where = f"{node.name} ({node.type}):"
            if isinstance(layer, Placed):
                yield f"{where} holds a {layer.kind} now"
                continue
            for spec in self.plan.blobs[node.name]:
                # A blob that is computed (int8 weights, weight norm) is none of the parameters, and keeps its shape.
                blob = layer._parameters.get(spec.name, layer)
                if blob is None:
                    yield f"{where} {spec.name} is None now"
                elif isinstance(blob, Tensor) and tuple(blob.shape) != spec.shape:
                    yield f"{where} {spec.name} is {show_shape(tuple(blob.shape))} now, not {show_shape(spec.shape)}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CaffeNet:
        super()._apply(fn, recurse)
        probe = fn(torch.empty(0, dtype=self._dtype, device=self._device))
        self._dtype, self._device = probe.dtype, probe.device
        return self

    # ------------------------------------------------------------------ parameters

    def _check_memory(self, weights: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Refuse a net whose own blobs, those that no file maps, would not fit the machine's memory."""
        own = {name: specs for name, specs in self.plan.blobs.items() if name not in weights}
        needed = sum(4 * prod(spec.shape) for specs in own.values() for spec in specs)
        held = machine_memory()
        if held is not None and needed > held:
            largest = max(own, key=lambda name: sum(prod(spec.shape) for spec in own[name]))
            raise self.plan.layers[largest].error(
                f"the net's parameters need {needed / 2**30:,.1f} GiB, of which most here; "
                f"the machine has {held / 2**30:,.1f}; check num_output and the input's shape"
            )

    def _fill_blobs(self, weights: Mapping[str, Sequence[np.ndarray]], seed: int | None) -> None:
        generator = torch.Generator()
        if seed is not None:
            generator.manual_seed(seed)
        else:
            generator.seed()
        # A shared blob may be given by a borrower alone; of several copies the last counts, unless the owner has one.
        given: dict[tuple[str, int], np.ndarray] = {}
        for name, arrays in weights.items():
            for index, array in enumerate(arrays):
                owner = self.plan.owners.get((name, index))
                if owner is None or owner.layer not in weights:
                    given[(owner.layer, owner.index) if owner else (name, index)] = array
        made: dict[tuple[str, int], nn.Parameter] = {}
        for node, layer in self._sequence:
            for index, spec in enumerate(self.plan.blobs[node.name]):
                owner = self.plan.owners.get((node.name, index))
                if owner:
                    parameter = made[owner.layer, owner.index]
                else:
                    if (node.name, index) in given:
                        values = _tensor(given[node.name, index]).reshape(spec.shape)
                        if not spec.learned:  # a pass may move statistics: never those of the caller
                            values = values.clone()
                    else:
                        values = fill(spec, generator, layer.error)
                    parameter = nn.Parameter(values, requires_grad=spec.learned)
                made[node.name, index] = parameter
                layer.register_blob(spec, parameter)

    @property
    def params(self) -> dict[str, list[Tensor]]:
        """Each layer's parameter blobs in Caffe's order, by layer name; layers without any are absent."""
        return {node.name: layer.blobs for node, layer in self._sequence if layer.blob_names}

    def layer(self, name: str) -> Layer:
        """Return the layer of that name."""
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
        """Whether a pass starts from the state that the pass before it left."""
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
        """Run the net and return its outputs, or the blobs asked for, by Caffe's names.

        Inputs come by keyword or, where a name is no keyword, in one mapping; the only input of a net may come
        by itself.  Raises IlgnetError for an input that is absent, that the net has not, or that is of another
        rank or layout, and GraphError for a blob the net has not.
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
        if not is_compiling:
            self._intake.check_sizes(inputs, by_plan=lambda: not any(self._changes()))
        schedule = self._schedule(self.outputs if blobs is None else self._wanted(blobs), with_loss)
        is_direct = not is_compiling and self._only_runs(schedule)
        work = schedule.own if is_direct else self._at_work(schedule)
        dtype, device = self.computes_in
        values: list[Any] = [None] * schedule.places
        loss: Tensor | None = None
        tops: Sequence[Any]
        for step, layer in work:
            if step.is_plain:
                run = layer.forward if is_direct else layer
                bottoms = step.bottoms
                tops = run(values[bottoms[0]]) if len(bottoms) == 1 else run(*[values[b] for b in bottoms])
            elif layer.is_input:
                tops = self._fed(step, layer, inputs, dtype, device)
            elif layer.may_be_fed and not set(inputs).isdisjoint(step.node.top_names):
                tops = self._fed_or_made(step.node, layer, inputs, dtype, device)
            else:
                read = [values[place] for place in step.bottoms]
                for position in layer.stopped_bottoms:
                    read[position] = read[position].detach()
                tops = layer(*read)
                if not read:  # DummyData draws float32, whatever the net computes in
                    tops = tuple(top.to(device, dtype) for top in tops)
            if len(step.tops) == 1:
                values[step.tops[0]] = tops[0]
            else:
                for place, top in zip(step.tops, tops, strict=False):
                    values[place] = top
            for position, weight in step.loss_weights:
                term = weight * tops[position].sum()
                loss = term if loss is None else loss + term
            for place in step.done:
                values[place] = None
        return Pass({name: values[place] for name, place in schedule.wanted}, loss)

    def _only_runs(self, schedule: _Schedule) -> bool:
        """Whether `forward` does all that a call of each layer does; torch's calls take as long as small layers.

        It does while all layers are the net's own, and there are no hooks and no tracer.
        """
        held = self._layers_now
        if len(held) != len(self._keys) or torch.jit.is_tracing() or _has_any_global_hook():
            return False
        for step in schedule.steps:
            layer = step.layer
            if (
                layer is None
                or layer is not held.get(step.key)
                or len(layer._parameters) != step.parameters
                or layer._forward_hooks
                or layer._forward_pre_hooks
                or layer._backward_hooks
                or layer._backward_pre_hooks
                or layer._compiled_call_impl
                or type(layer).__call__ is not _MODULE_CALL
            ):
                return False
        return True

    def _at_work(self, schedule: _Schedule) -> list[tuple[_Step, Any]]:
        """Each step with what `layers` holds for it now."""
        held = self._layers_now
        if len(held) != len(self._keys):
            self._refuse_others(held)
        work: list[tuple[_Step, Any]] = []
        for step in schedule.steps:
            layer, module = step.layer, held.get(step.key)
            if layer is None or layer is not module:
                layer = self._layer(step.key, step.node, module)
            elif len(layer._parameters) != step.parameters:
                layer.refuse_unread_parameters()
            work.append((step, layer))
        return work

    def _schedule(self, wanted: tuple[str, ...], with_loss: bool) -> _Schedule:
        key = (wanted, with_loss)
        found = self._schedules.get(key)
        if found is None:
            found = self._make_schedule(wanted, with_loss)
            if not torch.compiler.is_compiling():
                self._schedules[key] = found
        return found

    def _own_layer(self, key: str, node: Node) -> Layer | None:
        layer = self.layers._modules.get(key)
        return layer if isinstance(layer, Layer) and layer.node is node else None

    def _make_schedule(self, wanted: tuple[str, ...], with_loss: bool) -> _Schedule:
        weights = {
            name: layer.loss_weights() if with_loss else () for name, layer in self.plan.layers.items()
        }
        held = {name: self.graph.value(name) for name in wanted}
        needed = set(held.values())
        chosen: list[tuple[str, Node]] = []
        for key, node in reversed(self._keys.items()):
            if needed.intersection(node.tops) or any(weights[node.name]):
                needed.update(node.bottoms)
                chosen.append((key, node))
        places: dict[Value, int] = {}
        for _, node in reversed(chosen):
            for value in node.tops:
                places.setdefault(value, len(places))
        last_use = {value: node.name for _, node in reversed(chosen) for value in node.bottoms}
        kept = set(held.values())
        steps = tuple(
            _Step(
                key, node, self._own_layer(key, node),
                tuple(places[value] for value in node.bottoms),
                tuple(places[value] for value in node.tops),
                tuple(
                    name if value in needed else None
                    for name, value in zip(node.top_names, node.tops, strict=True)
                ),
                _is_plain(self.plan.layers[node.name]),
                len(self.plan.blobs[node.name]),
                tuple({
                    places[value] for value in node.bottoms if last_use[value] == node.name and value not in kept
                }),
                tuple((index, weight) for index, weight in enumerate(weights[node.name]) if weight),
            )
            for key, node in reversed(chosen)
        )  # fmt: skip
        own = tuple((step, step.layer) for step in steps)
        return _Schedule(
            steps, own, len(places), tuple((name, places[value]) for name, value in held.items())
        )

    def blob_shapes(self, given: Mapping[str, Shape] | None = None, **shapes: Shape) -> dict[str, Shape]:
        """Return the shape of every blob for inputs of the given shapes (others keep their own).

        Raises LayerError where a layer cannot take that size.
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
        return tuple(name for name in self.inputs if self.graph.fed_value(name) in used)

    def steps(self, wanted: tuple[str, ...], with_loss: bool = False) -> list[tuple[Node, Any]]:
        """Return the layers that some blobs (and, ``with_loss``, all losses) depend on, in order."""
        schedule = self._schedule(self._wanted(wanted), with_loss)
        return [(step.node, layer) for step, layer in self._at_work(schedule)]

    def _wanted(self, blobs: Any) -> tuple[str, ...]:
        return wanted_blobs(blobs, self.graph.names.values(), self.graph.name)

    def _integer_inputs(self) -> frozenset[str]:
        """The inputs that are read only as labels or indices."""
        uses = [
            (bottom, index in layer.index_bottoms)
            for node, layer in self._sequence
            for index, bottom in enumerate(node.bottoms)
        ]
        return frozenset(
            name
            for name in self.inputs
            if all(whole for bottom, whole in uses if bottom == self.graph.fed_value(name))
        )

    @property
    def fixed_batch(self) -> None:
        """None: it takes any batch."""

    def image_input(self) -> str:
        """Return the one input that the outputs depend on.

        Raises GraphError where there are several, or none: then no image enters the net.
        """
        found = self.inputs_for(self.outputs)
        if not found:
            made = [f"{node.name} ({node.type})" for node, _ in self.steps(self.outputs) if not node.bottoms]
            raise GraphError(
                f"net {self.graph.name!r} takes no input, so no image enters it; its data come from "
                f"{', '.join(made)}: put an Input layer there, or convert the net with the shape of that top "
                "(input_shapes={{'TOP': (N, C, H, W)}})",
                option="input_shapes",
            )
        if len(found) > 1:
            raise GraphError(
                f"net {self.graph.name!r} takes {len(found)} inputs ({names(found)}); images fit only a net with one"
            )
        return found[0]

    def prepare(self, images: Any, **options: Any) -> Tensor:
        """Prepare images (paths, uint8 arrays or PIL images) as ``about.preprocessing`` says: N×3×H×W.

        The options are those of `about.prepare`.  Raises DataError for what is no image, and where it is not known
        how images are prepared.
        """
        return torch.from_numpy(prepare(self.about, images, net=self.name, **options))

    def as_tensor(self, blob: str | None = None) -> TensorNet:
        """Return a module from the net's one input to one blob, both tensors (default: its one output).

        It shares the net's parameters.  Raises GraphError where there are several inputs, or outputs.
        """
        if blob is None and len(self.outputs) != 1:
            raise GraphError(
                f"net {self.name!r} has {len(self.outputs)} outputs ({names(self.outputs)}); name the blob"
            )
        return TensorNet(self, *self._wanted((self.outputs[0] if blob is None else blob,)))

    def make_intake(self) -> Intake:
        """Return what checks a call's inputs by this net's names and shapes."""
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
        for layer in self._layers_now.values():  # one level first: the walk over all of them takes longer
            for parameter in layer._parameters.values() if layer is not None else ():
                if parameter is not None and parameter.is_floating_point():
                    return parameter.dtype, parameter.device
        for parameter in self.parameters():
            if parameter.is_floating_point():
                return parameter.dtype, parameter.device
        return self._dtype, self._device

    def _fed(
        self, step: _Step, layer: Any, inputs: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> list[Any]:
        """The tops of a layer that the caller feeds; None for those that nothing reads."""
        tops: list[Any] = [
            None if name is None else self._input(inputs, name, dtype, device) for name in step.fed
        ]
        if isinstance(layer, Placed):
            made = iter(layer(*(top for top in tops if top is not None)))
            tops = [None if top is None else next(made) for top in tops]
        return tops

    def _fed_or_made(
        self, node: Node, layer: Layer, inputs: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> list[Tensor]:
        """The tops of a DummyData layer: those given, and what the layer makes of the others."""
        return [
            self._input(inputs, name, dtype, device) if name in inputs else made
            for name, made in zip(node.top_names, layer(), strict=True)
        ]

    def _input(
        self, inputs: Mapping[str, Tensor], name: str, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return self._intake.value(inputs, name, torch.float32 if name in self._integers else dtype, device)


class TensorNet(nn.Module):
    """A `CaffeNet` as a module from tensor to tensor, for tools that know no blobs."""

    def __init__(self, net: CaffeNet, blob: str) -> None:
        super().__init__()
        found = net.inputs_for((blob,))
        if len(found) != 1:
            raise GraphError(
                f"net {net.name!r}: {blob!r} depends on {len(found)} inputs ({names(found)}); call the net by names"
            )
        self.net, self.blob, self.input = net, blob, found[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return the blob for this input."""
        return self.net({self.input: x}, blobs=(self.blob,))[self.blob]


def _is_plain(layer: Layer) -> bool:
    return bool(layer.node.bottoms) and not (layer.is_input or layer.may_be_fed or layer.stopped_bottoms)


def _module_keys(graph: Graph) -> list[str]:
    """Layer names as module names; those that torch cannot hold take one that no other layer has.

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


def _tensor(array: np.ndarray) -> Tensor:
    """Wrap an array without a copy where it is float32 already."""
    return torch.from_numpy(np.asarray(array, dtype=np.float32))
