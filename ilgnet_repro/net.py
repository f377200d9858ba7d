"""`CaffeNet`: a Caffe net as a torch module; blobs in, blobs out, by Caffe's names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import GraphError, IlgnetError
from .graph.node import Graph, Node
from .graph.sharing import show_shape
from .layers.base import Layer, Shape
from .layers.fillers import fill
from .memory import keep_freed_memory
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
        self._sequence: list[tuple[Node, Layer]] = []
        plan = plan_net(graph, input_shapes)
        for key, node in zip(_module_keys(graph), graph.nodes, strict=True):
            layer = plan.layers[node.name]
            # add_module would refuse a layer named like one of Module's own attributes ("data", "type").
            self.layers._modules[key] = layer
            self._sequence.append((node, layer))
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
        self._accepted: set[tuple[tuple[str, Shape], ...]] = set()
        for layer in self.stateful_layers:
            layer.carry_state = carry_state

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
        raise GraphError(f"layer {name!r} is not in net {self.graph.name!r}")

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
        given: Mapping[str, Tensor] | None = None,
        *,
        blobs: Iterable[str] | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """Run the net and return its outputs, or the blobs asked for, by Caffe's names.

        Inputs come by keyword or, where a name is no keyword, in one mapping.  Raises IlgnetError for an
        input that is absent, and GraphError for a blob the net has not.
        """
        return self.run({**(given or {}), **inputs}, blobs, with_loss=False).blobs

    def loss(self, given: Mapping[str, Tensor] | None = None, **inputs: Tensor) -> Tensor:
        """Run the net and return the weighted sum of its losses, ready for ``backward()``."""
        loss = self.run({**(given or {}), **inputs}, ()).loss
        if loss is None:
            raise GraphError(f"net {self.graph.name!r} has no loss layer in phase {self.graph.phase}")
        return loss

    def run(
        self, inputs: Mapping[str, Tensor], blobs: Iterable[str] | None = None, *, with_loss: bool = True
    ) -> Pass:
        """Run the net once for some blobs (default: its outputs) and, with ``with_loss``, all its losses."""
        if not torch.compiler.is_compiling():
            self._check_sizes(inputs)
        wanted = self.outputs if blobs is None else tuple(blobs)
        steps = self.steps(wanted, with_loss)
        last_use = {value: index for index, (node, _) in enumerate(steps) for value in node.bottoms}
        keep = set(wanted)
        read = keep.union(last_use)
        values: dict[str, Tensor] = {}
        loss: Tensor | None = None
        for index, (node, layer) in enumerate(steps):
            if layer.is_input:
                values.update((top, self._input(inputs, top)) for top in node.tops if top in read)
                continue
            if layer.may_be_fed and not set(inputs).isdisjoint(node.top_names):
                values.update(self._fed_or_made(node, layer, inputs))
                continue
            bottoms = [values[name] for name in node.bottoms]
            for position in layer.stopped_bottoms:
                bottoms[position] = bottoms[position].detach()
            layer.refresh_borrowed()
            tops = layer(*bottoms)
            values.update(zip(node.tops, tops, strict=False))
            if with_loss:
                for weight, top in zip(layer.loss_weights(), tops, strict=False):
                    if weight:
                        term = weight * top.sum()
                        loss = term if loss is None else loss + term
            for name in node.bottoms:
                if last_use[name] == index and name not in keep:
                    values.pop(name, None)
        return Pass({name: values[name] for name in wanted}, loss)

    def blob_shapes(self, given: Mapping[str, Shape] | None = None, **shapes: Shape) -> dict[str, Shape]:
        """Return the shape of every blob for inputs of the given shapes (others keep their own).

        Raises LayerError where a layer cannot take that size.
        """
        wanted = {**(given or {}), **shapes}
        for name in wanted:
            if name not in (*self.inputs, *self.optional_inputs):
                raise GraphError(
                    f"{name!r} is no input of net {self.graph.name!r}; it has {_names(self.inputs)}"
                )
        return plan_net(self.graph, {**{n: self.shapes[n] for n in self.inputs}, **wanted}).shapes

    def inputs_for(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the inputs that the given blobs depend on."""
        used = {top for node, layer in self.steps(tuple(wanted)) if layer.is_input for top in node.tops}
        used &= {name for node, _ in self.steps(tuple(wanted)) for name in node.bottoms} | set(wanted)
        return tuple(name for name in self.inputs if name in used)

    def steps(self, wanted: tuple[str, ...], with_loss: bool = False) -> list[tuple[Node, Layer]]:
        """Return the layers that some blobs (and, ``with_loss``, all losses) depend on, in order."""
        known = {top for node, _ in self._sequence for top in node.tops}
        for name in wanted:
            if name not in known:
                raise GraphError(f"blob {name!r} is not in net {self.graph.name!r}; see blob_shapes()")
        needed = set(wanted)
        steps = []
        for node, layer in reversed(self._sequence):
            if needed.intersection(node.tops) or (with_loss and any(layer.loss_weights())):
                needed.update(node.bottoms)
                steps.append((node, layer))
        return steps[::-1]

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
        names = self.inputs_for(self.outputs)
        if not names:
            made = [f"{node.name} ({node.type})" for node, _ in self.steps(self.outputs) if not node.bottoms]
            raise GraphError(
                f"net {self.graph.name!r} takes no input, so no image enters it; its data come from "
                f"{', '.join(made)}: put an Input layer there, or convert the net with the shape of that top "
                "(--shape TOP=N,C,H,W)"
            )
        if len(names) > 1:
            raise GraphError(
                f"net {self.graph.name!r} takes {len(names)} inputs ({_names(names)}); images fit only a net with one"
            )
        return names[0]

    def take_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs that the outputs depend on, as tensors of the net's own kind, their sizes checked."""
        self._check_sizes(inputs)
        return {name: self._input(inputs, name) for name in self.inputs_for(self.outputs)}

    def _check_sizes(self, inputs: Mapping[str, Tensor]) -> None:
        """Refuse, by layer name, inputs of a size that the weights do not fit; each size is checked once."""
        names = (*self.inputs, *self.optional_inputs)
        sizes = {name: tuple(inputs[name].shape) for name in names if name in inputs}
        key = tuple(sizes.items())
        if key in self._accepted:
            return
        plan = plan_net(self.graph, {**{name: self.shapes[name] for name in self.inputs}, **sizes})
        for name, specs in plan.specs.items():
            for spec, own in zip(specs, self.blob_specs[name], strict=True):
                if spec.shape != own.shape:
                    raise plan.layers[name].error(
                        f"{spec.name} would be {show_shape(spec.shape)} for inputs of this size "
                        f"({', '.join(f'{key} {show_shape(size)}' for key, size in sizes.items())}), "
                        f"but is {show_shape(own.shape)}; give the size the net was made for"
                    )
        self._accepted.add(key)

    def _fed_or_made(
        self, node: Node, layer: Layer, inputs: Mapping[str, Tensor]
    ) -> Iterable[tuple[str, Tensor]]:
        """The tops of a DummyData layer: those given, and what the layer makes of the others."""
        for value, name, made in zip(node.tops, node.top_names, layer(), strict=True):
            yield value, self._input(inputs, name) if name in inputs else made

    def _input(self, inputs: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in inputs:
            raise IlgnetError(f"input {name!r} is missing; the net takes {_names(self.inputs)}")
        value = inputs[name]
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value)
        parameter = next(self.parameters(), None)
        if parameter is None:
            return value
        dtype = torch.float32 if name in self._whole_numbers else parameter.dtype
        if value.dtype != dtype or value.device != parameter.device:
            value = value.to(device=parameter.device, dtype=dtype)
        return value


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


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
