"""A net made again from another: with other arrays or shapes, or the part of it between some blobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..about import About, Drawn
from ..caffe.cut import cut
from ..caffe.states import expose_states
from .net import CaffeNet, float_arrays
from .plan import NetPlan, plan_net
from .quantize import WEIGHT, QuantizedWeight, attach_quantized, quantized_blob


def rebuild(net: CaffeNet, plan: NetPlan, arrays: Mapping[str, list[np.ndarray]]) -> CaffeNet:
    """Return a net with these arrays, and with the layers' other buffers from ``net``."""
    made = CaffeNet(plan, arrays)
    made.about = net.about
    made.drawn = net.drawn.within(made.drawn, plan.layers)
    for node in plan.graph:
        if net.graph.node(node.name) is None:
            continue
        layer, own = made.layer(node.name), net.layer(node.name)
        for name, value in own._buffers.items():
            if name in layer._buffers and name not in layer.blob_names:
                layer._buffers[name] = None if value is None else value.cpu()
    return made


def quantized_layers(net: CaffeNet) -> dict[str, QuantizedWeight]:
    """Return the quantized weights of a net, by layer name: of dense layers, and in float16 of any."""
    found = {}
    for node in net.graph:
        if WEIGHT in net.layer(node.name).blob_names:
            one = quantized_blob(net.layer(node.name), WEIGHT)
            if one is not None:
                found[node.name] = one
    return found


def cut_net(net: CaffeNet, outputs: Sequence[str] = (), inputs: Sequence[str] = ()) -> CaffeNet:
    """Return the part of ``net`` that computes the blobs ``outputs`` from the blobs ``inputs`` (`caffe.cut.cut`).

    Inputs that are still needed stay; the shape of a new one is the one that the net was planned for.  The part has the
    values of the net's parameters, and of what is known of the net that which still applies.  Raises GraphError for an
    unknown name, and where the part is no net.
    """
    net.refuse_changes("cut")
    found = cut(net.graph, outputs, inputs, net.plan.value_shapes)
    plan = plan_net(found.graph, {name: net.shapes[name] for name in found.remaining_inputs})
    made = _with_plan(net, plan)
    made.about = about_part(net.about, net, made)
    return made


def with_states(net: CaffeNet) -> CaffeNet:
    """Return ``net`` with the states of RNN and LSTM as inputs and outputs (`caffe.states.expose_states`)."""
    stateful = tuple(layer.node.name for layer in net.stateful_layers if layer.is_unrolled)
    graph = expose_states(net.graph, net.plan.value_shapes, stateful)
    return _with_plan(net, plan_net(graph, {name: net.shapes[name] for name in net.inputs}))


def planned_for(net: CaffeNet, shapes: Mapping[str, tuple[int, ...]]) -> CaffeNet:
    """Return ``net`` planned for inputs of other shapes."""
    return _with_plan(net, net.plan.at(shapes))


def _with_plan(net: CaffeNet, plan: NetPlan) -> CaffeNet:
    arrays = float_arrays(net)
    made = rebuild(net, plan, {name: arrays[name] for name, specs in plan.blobs.items() if specs})
    for name, weight in quantized_layers(net).items():
        if name in plan.layers:
            attach_quantized(made.layer(name), weight)
    return made


def about_part(about: About, net: CaffeNet, part: CaffeNet) -> About:
    """Return what is known of a net as far as it is true of a part of it.

    The preprocessing is that of the images that enter it, labels and score are those of its outputs.
    """
    if not set(part.inputs) <= set(net.inputs):
        about = replace(about, preprocessing=None)
    if not set(net.outputs).intersection(part.outputs):
        about = replace(about, labels=())
    if about.score and about.score.output not in part.outputs:
        about = replace(about, score=None)
    if about.drawn is not None:
        layers = tuple(name for name in about.drawn.layers if name in part.plan.layers)
        about = replace(about, drawn=Drawn(layers, part.drawn.of) if layers else None)
    return replace(about, source=about.source and about.source.after("cut"))
