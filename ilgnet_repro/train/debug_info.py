"""What Caffe logs for `debug_info`: the mean absolute value of every blob and gradient of a pass (net.cpp)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from ..caffe.graph import Value
from ..runtime.net import CaffeNet, Pass
from .layout import AUTOMATIC, Layout, Place, plan_backward, plan_layout, stated_rates
from .observe import Log

Key = tuple[str, int]  # a layer and one of its blobs


class DebugInfo:
    """Logs the passes of one net as Caffe's `ForwardDebugInfo` and `BackwardDebugInfo` do, its Split layers included.

    Caffe has a gradient for each reader of a blob, in the tops of its Split, and sums them in its bottom.  So every layer
    here gets its own view of its bottoms and parameters, which sees the gradient that this layer gives.
    """

    def __init__(self, net: CaffeNet, log: Log) -> None:
        self._net, self._log = net, log
        self._layout: Layout = plan_layout(net.plan)
        self._backward = plan_backward(net.plan, self._layout)
        self._values = _values(net, self._layout)
        self._readers: dict[int, list[tuple[int, int]]] = {}  # (layer, position) that read a blob
        for number, place in enumerate(self._layout.places):
            for position, bottom in enumerate(place.bottoms):
                self._readers.setdefault(bottom, []).append((number, position))
        self._automatic: dict[str, Tensor] = {}  # the tops of losses that the text gives none
        self._scale = 1.0
        self._grads: dict[Key, Tensor] = {}  # of bottoms, by layer and position
        self._steps: dict[Key, Tensor] = {}  # of parameters, from one layer in one pass
        self._diffs: dict[Key, Tensor] = {}  # of parameters, by owner, since the iteration began

    def start_iteration(self) -> None:
        """Forget the gradients, as Caffe's `ClearParamDiffs`."""
        self._diffs.clear()

    def forward(self, batch: Mapping[str, Tensor], blobs: Iterable[str], *, backward: bool) -> Pass:
        """Run the net for some blobs and log all; with ``backward``, so that its gradients can be logged after them."""
        net = self._net
        self._grads.clear()
        self._steps.clear()
        everything = tuple(net.graph.names.values())
        with self._watched(backward):
            done = net.run(batch, everything)
        for number, place in enumerate(self._layout.places):
            for position, top in enumerate(place.tops):
                blob = self._layout.blobs[top]
                value = self._top(done, number, position)
                self._log(
                    "debug_top", f"    [Forward] Layer {place.name}, top blob {blob} data: {mean_text(value)}"
                )
            for index, name in enumerate(self._parameters(place)):
                assert place.node is not None
                value = net.layer(place.node.name).blobs[index]
                self._log(
                    "debug_param",
                    f"    [Forward] Layer {place.name}, param blob {name} data: {mean_text(value)}",
                )
        return Pass({name: done.blobs[name] for name in blobs}, done.loss)

    def log_backward(self, scale: float = 1.0) -> None:
        """Log the gradients of the last pass, which are ``scale`` times too large."""
        self._scale = scale
        places = self._layout.places
        for number in reversed(range(len(places))):
            if not self._backward.layers[number]:
                continue
            place = places[number]
            for position, bottom in enumerate(place.bottoms):
                if self._backward.bottoms[number][position]:
                    value = self._bottom_grad(number, position)
                    self._log(
                        "debug_bottom_diff",
                        f"    [Backward] Layer {place.name}, bottom blob {self._layout.blobs[bottom]} "
                        f"diff: {self._mean_diff(value)}",
                    )
            self._log_parameters(place)
        self._log_norms()

    def _mean_diff(self, diff: Tensor | None) -> str:
        return "0" if diff is None else mean_text(diff / self._scale)

    def _log_parameters(self, place: Place) -> None:
        if place.node is None:
            return
        forced = self._net.graph.text.force_backward
        for index, rate in enumerate(stated_rates(self._net.plan, place.node)):
            if not rate and not forced:
                continue
            owner = self._owner(place.node.name, index)
            step = self._steps.get((place.node.name, index))
            if step is not None:
                before = self._diffs.get(owner)
                step = step.reshape(-1).double()
                self._diffs[owner] = step if before is None else before + step
            self._log(
                "debug_param_diff",
                f"    [Backward] Layer {place.name}, param blob {index} diff: {self._mean_diff(self._diffs.get(owner))}",
            )

    def _log_norms(self) -> None:
        data = [one.tensor.detach().double() for one in self._net.learnables()]
        diffs = [diff / self._scale for diff in self._diffs.values()]
        self._log("debug_norms", norms_text(data, diffs))

    # ------------------------------------------------------------------ values

    def _top(self, done: Pass, number: int, position: int) -> Tensor:
        value = self._values[number][position]
        if value is None:  # a loss that the text gives no top
            return self._automatic[self._layout.places[number].name]
        return done.blobs[self._net.graph.names[value]]

    def _bottom_grad(self, number: int, position: int) -> Tensor | None:
        """The gradient that a layer gives to a bottom; a Split sums those of all readers, and the loss weight."""
        place = self._layout.places[number]
        if place.node is not None:
            return self._grads.get((place.node.name, position))
        total: Tensor | None = None
        for top, weight in zip(place.tops, place.loss_weights, strict=True):
            for reader, at in self._readers.get(top, ()):
                grad = self._bottom_grad(reader, at) if self._backward.bottoms[reader][at] else None
                if grad is not None:
                    total = grad if total is None else total + grad
            if weight:
                total = (torch.zeros(()) if total is None else total) + weight * self._scale
        return total

    def _parameters(self, place: Place) -> list[str]:
        """Caffe's display name of each blob of a layer: its name in the text, or its number."""
        if place.node is None:
            return []
        rows = place.node.layer.param
        return [
            (rows[index].name if index < len(rows) else "") or str(index)
            for index in range(len(self._net.plan.blobs[place.node.name]))
        ]

    def _owner(self, layer: str, index: int) -> Key:
        owner = self._net.plan.owners.get((layer, index))
        return (owner.layer, owner.index) if owner else (layer, index)

    # ------------------------------------------------------------------ gradients

    @contextmanager
    def _watched(self, backward: bool) -> Iterator[None]:
        """Keep tops without a name and, with ``backward``, give each layer views of its bottoms and parameters."""
        handles: list[Any] = []
        held: list[tuple[Any, str, Any]] = []
        try:
            for number, place in enumerate(self._layout.places):
                if place.node is None:
                    continue
                layer = self._net.layer(place.node.name)
                if None in self._values[number]:
                    handles.append(layer.register_forward_hook(self._keep_top(place.name)))
                if not backward or not self._backward.layers[number]:
                    continue
                handles.append(layer.register_forward_pre_hook(self._views(place.node.name, number)))
                for index, name in enumerate(layer.blob_names):
                    if not self._net.plan.blobs[place.node.name][index].learned:
                        continue
                    owner: Any = layer
                    key = name
                    if parametrize.is_parametrized(layer, name):  # shared with another shape
                        parametrizations: Any = layer.parametrizations
                        owner, key = parametrizations[name], "original"
                    parameter = owner._parameters[key]
                    held.append((owner, key, parameter))
                    owner._parameters[key] = _view(parameter, self._steps, (place.node.name, index))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for owner, key, parameter in held:
                owner._parameters[key] = parameter

    def _keep_top(self, name: str) -> Callable[[Any, Any, tuple[Tensor, ...]], None]:
        def keep(layer: Any, bottoms: Any, tops: tuple[Tensor, ...]) -> None:
            self._automatic[name] = tops[0].detach()

        return keep

    def _views(self, name: str, number: int) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
        needed = self._backward.bottoms[number]

        def views(layer: Any, bottoms: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(
                _view(bottom, self._grads, (name, position)) if needed[position] else bottom
                for position, bottom in enumerate(bottoms)
            )

        return views


def _view(tensor: Tensor, grads: dict[Key, Tensor], key: Key) -> Tensor:
    """A view whose gradient is stored; of a tensor that needs none, one that starts there."""
    view = tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()

    def store(grad: Tensor) -> None:
        grads[key] = grad.detach()

    view.register_hook(store)
    return view


def _values(net: CaffeNet, layout: Layout) -> list[list[Value | None]]:
    """The value in the graph of each top of each layer; a Split's are those of its bottom."""
    latest: dict[int, Value | None] = {}
    values: list[list[Value | None]] = []
    for place in layout.places:
        if place.node is None:
            own = [latest[place.bottoms[0]]] * len(place.tops)
        else:
            own = [
                None if layout.blobs[top] == AUTOMATIC and position >= len(place.node.tops)
                else place.node.tops[position]
                for position, top in enumerate(place.tops)
            ]  # fmt: skip
        latest.update(zip(place.tops, own, strict=True))
        values.append(own)
    return values


def norms_text(data: Sequence[Tensor], diffs: Sequence[Tensor]) -> str:
    """Return Caffe's line of the norms of all parameters and of their gradients, float64."""
    absolute = [sum(float(each.abs().sum()) for each in values) for values in (data, diffs)]
    squares = [math.sqrt(sum(float(each.square().sum()) for each in values)) for values in (data, diffs)]
    return (
        f"    [Backward] All net params (data, diff): L1 norm = ({absolute[0]:g}, {absolute[1]:g}); "
        f"L2 norm = ({squares[0]:g}, {squares[1]:g})"
    )


def mean_text(values: Tensor) -> str:
    """The mean absolute value, as Caffe prints it; that of an empty blob is 0 / 0."""
    if not values.numel():
        return "-nan"
    return f"{float(values.detach().double().abs().sum()) / values.numel():g}"
