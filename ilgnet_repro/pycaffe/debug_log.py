"""What Caffe logs of a net's passes for `debug_info`, read from the blobs of a pycaffe net."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..train.debug_info import mean_text, norms_text
from ..train.layout import stated_rates
from ..train.observe import Log
from .net import Net


class DebugLog:
    """Logs the mean absolute value of each blob and gradient, after the layer that computed it."""

    def __init__(self, net: Net, log: Log) -> None:
        self._net, self._log = net, log

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Log the passes of the net for a while."""
        with self._net.watched(self._forward, self._backward):
            yield

    def _forward(self, number: int) -> None:
        net, place = self._net, self._net.layout.places[number]
        for top in place.tops:
            value = mean_text(net._blobs[top].tensor())
            self._log(
                "debug_top",
                f"    [Forward] Layer {place.name}, top blob {net._blob_names[top]} data: {value}",
            )
        rows = place.text.param
        for index, blob in enumerate(net.layers[number].blobs):
            name = (rows[index].name if index < len(rows) else "") or str(index)
            value = mean_text(blob.tensor())
            self._log("debug_param", f"    [Forward] Layer {place.name}, param blob {name} data: {value}")

    def _backward(self, number: int) -> None:
        net, place = self._net, self._net.layout.places[number]
        if net.backward_plan.layers[number]:
            for bottom, goes in zip(place.bottoms, net.backward_plan.bottoms[number], strict=True):
                if goes:
                    name, value = net._blob_names[bottom], mean_text(net._blobs[bottom].gradient())
                    text = f"    [Backward] Layer {place.name}, bottom blob {name} diff: {value}"
                    self._log("debug_bottom_diff", text)
            plan = net.caffe_net.plan
            learned = [] if place.node is None else stated_rates(plan, place.node)
            for index, (blob, rate) in enumerate(zip(net.layers[number].blobs, learned, strict=True)):
                if rate or plan.graph.text.force_backward:
                    text = f"    [Backward] Layer {place.name}, param blob {index} diff: {mean_text(blob.gradient())}"
                    self._log("debug_param_diff", text)
        if not number:
            self._log_norms()

    def _log_norms(self) -> None:
        tensors = [one.tensor for one in self._net.caffe_net.learnables()]
        data = [tensor.detach().double() for tensor in tensors]
        diffs = [tensor.grad.double() for tensor in tensors if tensor.grad is not None]
        self._log("debug_norms", norms_text(data, diffs))
