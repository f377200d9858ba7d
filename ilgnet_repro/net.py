"""`CaffeNet`: a Caffe net as a torch module; blobs in, blobs out, by Caffe's names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .calls import Intake, names, shapes_by_name, wanted_blobs
from .errors import GraphError, did_you_mean
from .graph.node import Graph, Node
from .graph.sharing import show_shape
from .layers.base import Layer, Shape
from .layers.fillers import fill
from .memory import keep_freed_memory
from .placed import Placed
from .plan import Plan, plan_net

if TYPE_CHECKING:
    from .fast.net import FastNet


@dataclass(frozen=True)
class Pass:
    """One forward pass: the blobs asked for, and the weighted sum of all losses (a scalar tensor)."""

    blobs: dict[str, Tensor]
    loss: Tensor | None


class CaffeNet(nn.Module):
    """A net in one phase.

    Called with its inputs by name (tensors or arrays, as Caffe shapes them: N×C×H×W) it returns a dict
    of its outputs in Caffe's order.  The phase is the net's, as in Caffe: ``train()`` and ``eval()``
    change nothing.  Parameters are `nn.Parameter`s under ``layers.LAYER.BLOB``.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Sequence[np.ndarray]] | None = None,
        *,
        input_shapes: Mapping[str, Shape] | None = None,
        seed: int | None = None,
        carry_state: bool = False,
    ) -> None:
        """Build every layer, and give it ``weights`` or, where these lack it, what its fillers draw.

        ``carry_state``: each pass of RNN and LSTM starts from the state that the pass before it left, as in Caffe.
        """
        super().__init__()
        keep_freed_memory()
        self.graph = graph
        self.converted: Any = None  # what a converted file says of itself (convert/load.py)
        self.layers = nn.Module()
        self._keys: dict[str, Node] = dict(zip(_module_keys(graph), graph.nodes, strict=True))
        plan = plan_net(graph, shapes_by_name(input_shapes or {}, graph))
        for key, node in self._keys.items():
            # add_module would refuse a layer named like one of Module's own attributes ("data", "type").
            self.layers._modules[key] = plan.layers[node.name]
        self.shapes = plan.shapes
        self.blob_specs = plan.specs
        self.owners = plan.owners
        self._check_memory(plan, weights or {})
        self._fill_blobs(plan, weights or {}, seed)
        self.inputs: tuple[str, ...] = tuple(
            top for node, layer in self._sequence if layer.is_input for top in node.tops
        )
        self.outputs: tuple[str, ...] = graph.outputs
        # What DummyData layers make up unless the caller gives it.
        self.optional_inputs: tuple[str, ...] = tuple(
            top for node, layer in self._sequence if layer.may_be_fed for top in node.top_names
        )
        self._whole_numbers = self._find_whole_numbers()
        self._intake = self.make_intake()
        # What a net without parameters computes in: float32, as Caffe, until `half()`, `to()` and the like.
        self._dtype, self._device = torch.float32, torch.device("cpu")
        for layer in self.stateful_layers:
            layer.carry_state = carry_state

    # ------------------------------------------------------------------ layers

    @property
    def _sequence(self) -> list[tuple[Node, Any]]:
        """Each node with what `layers` holds for it now: its layer, or the module that was put in its place."""
        held = self.layers._modules
        if len(held) != len(self._keys):
            for key in held:
                if key not in self._keys:
                    raise GraphError(
                        f"net {self.graph.name!r}: layers.{key} belongs to no layer of the net and would not run; "
                        "put it in the place of one"
                    )
        return [(node, self._layer(key, node, held.get(key))) for key, node in self._keys.items()]

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
            for spec in self.blob_specs[node.name]:
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

    def _check_memory(self, plan: Plan, weights: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Refuse a net whose own blobs, those that no file maps, would not fit the machine's memory."""
        own = {name: specs for name, specs in plan.specs.items() if name not in weights}
        needed = sum(4 * prod(spec.shape) for specs in own.values() for spec in specs)
        held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
        if needed > held:
            largest = max(own, key=lambda name: sum(prod(spec.shape) for spec in own[name]))
            raise plan.layers[largest].error(
                f"the net's parameters need {needed / 2**30:,.1f} GiB, of which most here; "
                f"the machine has {held / 2**30:,.1f}; check num_output and the input's shape"
            )

    def _fill_blobs(self, plan: Plan, weights: Mapping[str, Sequence[np.ndarray]], seed: int | None) -> None:
        generator = torch.Generator()
        if seed is not None:
            generator.manual_seed(seed)
        else:
            generator.seed()
        made: dict[tuple[str, int], nn.Parameter] = {}
        for node, layer in self._sequence:
            specs = plan.specs[node.name]
            for index, spec in enumerate(specs):
                owner = plan.owners.get((node.name, index))
                if owner:
                    parameter = made[owner.layer, owner.index]
                    if tuple(parameter.shape) != spec.shape:  # PERMISSIVE: the same values in another shape
                        layer.borrow(spec.name, plan.layers[owner.layer], owner.index, spec.shape)
                        continue
                else:
                    if node.name in weights:
                        values = _tensor(weights[node.name][index])
                        if not spec.learned:  # a pass may move statistics: never those of the caller
                            values = values.clone()
                    else:
                        values = fill(spec, generator, layer.error)
                    parameter = nn.Parameter(values, requires_grad=spec.learned)
                made[node.name, index] = parameter
                layer.register_blob(spec.name, parameter)

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

    def fast(
        self, precision: str = "float32", *, compile: bool = False, tell: Callable[[str], None] | None = None
    ) -> FastNet:
        """Return this net laid out for fast inference on the CPU, called as this one is (docs/speed.md).

        ``precision`` is that of the large dense weights: float32, float16, bfloat16 or int8.  ``compile`` has
        torch compile what lies between the layers laid out; ``tell`` hears how long that takes.
        """
        from .fast.net import make_fast

        return make_fast(self, precision, compile=compile, tell=tell)

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
        return self.run(self._intake.named(given, inputs), blobs, with_loss=False).blobs

    def loss(self, given: Mapping[str, Tensor] | Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Run the net and return the weighted sum of its losses, ready for ``backward()``."""
        loss = self.run(self._intake.named(given, inputs), ()).loss
        if loss is None:
            raise GraphError(f"net {self.graph.name!r} has no loss layer in phase {self.graph.phase}")
        return loss

    def run(
        self, inputs: Mapping[str, Tensor], blobs: Iterable[str] | None = None, *, with_loss: bool = True
    ) -> Pass:
        """Run the net once for some blobs (default: its outputs) and, with ``with_loss``, all its losses."""
        inputs = self._intake.tensors(self._intake.named(inputs, {}))
        if not torch.compiler.is_compiling():
            self._intake.check_sizes(inputs, by_plan=lambda: not any(self._changes()))
        wanted = self.outputs if blobs is None else self._wanted(blobs)
        steps = self.steps(wanted, with_loss)
        held = {name: self.graph.value(name) for name in wanted}
        last_use = {value: index for index, (node, _) in enumerate(steps) for value in node.bottoms}
        keep = set(held.values())
        read = keep.union(last_use)
        values: dict[str, Tensor] = {}
        loss: Tensor | None = None
        for index, (node, layer) in enumerate(steps):
            if layer.is_input:
                values.update((top, self._input(inputs, top)) for top in node.tops if top in read)
                if isinstance(layer, Placed):
                    fed = [top for top in node.tops if top in values]
                    values.update(zip(fed, layer(*(values[top] for top in fed)), strict=True))
                continue
            if layer.may_be_fed and not set(inputs).isdisjoint(node.top_names):
                values.update(self._fed_or_made(node, layer, inputs))
                continue
            bottoms = [values[name] for name in node.bottoms]
            for position in layer.stopped_bottoms:
                bottoms[position] = bottoms[position].detach()
            layer.refresh_borrowed()
            layer.refuse_unread_parameters()
            tops = layer(*bottoms)
            if not bottoms:  # DummyData draws float32, whatever the net computes in
                tops = tuple(self._as_computed(top) for top in tops)
            values.update(zip(node.tops, tops, strict=False))
            if with_loss:
                for weight, top in zip(layer.loss_weights(), tops, strict=False):
                    if weight:
                        term = weight * top.sum()
                        loss = term if loss is None else loss + term
            for name in node.bottoms:
                if last_use[name] == index and name not in keep:
                    values.pop(name, None)
        return Pass({name: values[value] for name, value in held.items()}, loss)

    def blob_shapes(self, given: Mapping[str, Shape] | None = None, **shapes: Shape) -> dict[str, Shape]:
        """Return the shape of every blob for inputs of the given shapes (others keep their own).

        Raises LayerError where a layer cannot take that size.
        """
        self.refuse_changes("planned; run it to see its blobs")
        wanted = shapes_by_name({**(given or {}), **shapes}, self.graph)
        return plan_net(self.graph, {**{n: self.shapes[n] for n in self.inputs}, **wanted}).shapes

    def inputs_for(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the inputs that the given blobs depend on."""
        used = {top for node, layer in self.steps(tuple(wanted)) if layer.is_input for top in node.tops}
        used &= {name for node, _ in self.steps(tuple(wanted)) for name in node.bottoms} | {
            self.graph.value(name) for name in wanted
        }
        return tuple(name for name in self.inputs if name in used)

    def steps(self, wanted: tuple[str, ...], with_loss: bool = False) -> list[tuple[Node, Layer]]:
        """Return the layers that some blobs (and, ``with_loss``, all losses) depend on, in order."""
        self._wanted(wanted)
        needed = {self.graph.value(name) for name in wanted}
        steps = []
        for node, layer in reversed(self._sequence):
            if needed.intersection(node.tops) or (with_loss and any(layer.loss_weights())):
                needed.update(node.bottoms)
                steps.append((node, layer))
        return steps[::-1]

    def _wanted(self, blobs: Any) -> tuple[str, ...]:
        return wanted_blobs(blobs, (top for node in self.graph for top in node.tops), self.graph.name)

    def _find_whole_numbers(self) -> frozenset[str]:
        """The inputs that are read only as labels or indices."""
        uses = [
            (bottom, index in layer.index_bottoms)
            for node, layer in self._sequence
            for index, bottom in enumerate(node.bottoms)
        ]
        return frozenset(
            name for name in self.inputs if all(whole for bottom, whole in uses if bottom == name)
        )

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
                "(--shape TOP=N,C,H,W)"
            )
        if len(found) > 1:
            raise GraphError(
                f"net {self.graph.name!r} takes {len(found)} inputs ({names(found)}); images fit only a net with one"
            )
        return found[0]

    def make_intake(self) -> Intake:
        """Return what checks a call's inputs by this net's names and shapes."""
        optional = {
            name: self.shapes[value]
            for node, layer in self._sequence
            if layer.may_be_fed
            for value, name in zip(node.tops, node.top_names, strict=True)
        }
        own = {name: self.shapes[name] for name in self.inputs}
        return Intake(self.graph, own, self.blob_specs, optional)

    @property
    def computes_in(self) -> tuple[torch.dtype, torch.device]:
        """The type and device of the first float parameter; without any, float32 on the CPU unless moved."""
        for parameter in self.parameters():
            if parameter.is_floating_point():
                return parameter.dtype, parameter.device
        return self._dtype, self._device

    def _as_computed(self, value: Tensor) -> Tensor:
        dtype, device = self.computes_in
        return value if value.dtype == dtype and value.device == device else value.to(device, dtype)

    def _fed_or_made(
        self, node: Node, layer: Layer, inputs: Mapping[str, Tensor]
    ) -> Iterable[tuple[str, Tensor]]:
        """The tops of a DummyData layer: those given, and what the layer makes of the others."""
        for value, name, made in zip(node.tops, node.top_names, layer(), strict=True):
            yield value, self._input(inputs, name) if name in inputs else made

    def _input(self, inputs: Mapping[str, Tensor], name: str) -> Tensor:
        dtype, device = self.computes_in
        return self._intake.value(
            inputs, name, torch.float32 if name in self._whole_numbers else dtype, device
        )


def _module_keys(graph: Graph) -> list[str]:
    """Layer names as module names: torch uses the dot for nesting."""
    keys: list[str] = []
    for node in graph:
        key = node.name.replace(".", "_") or "_"
        while key in keys:
            key += "_"
        keys.append(key)
    return keys


def _tensor(array: np.ndarray) -> Tensor:
    """Wrap an array without a copy where it is float32 already."""
    return torch.from_numpy(np.asarray(array, dtype=np.float32))
