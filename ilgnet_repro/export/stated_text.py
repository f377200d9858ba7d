"""A net's text with its input shapes, for formats that store them nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import IlgnetError
from ..layers.support.base import Layer, Shape
from ..layers.support.registry import make_layer
from ..runtime.net import CaffeNet
from ..schema import caffe_pb2 as pb


def stated_text(net: CaffeNet) -> pb.NetParameter:
    """Return the net's text with the shapes of its present inputs; layers of other phases are unchanged."""
    return _state_shapes(net)[0]


def shape_notes(net: CaffeNet) -> tuple[str, ...]:
    """Return what `stated_text` changed besides shapes, one line each."""
    return _state_shapes(net)[1]


def _state_shapes(net: CaffeNet) -> tuple[pb.NetParameter, tuple[str, ...]]:
    text, notes = pb.NetParameter(), []
    text.CopyFrom(net.graph.text)
    nodes = list(net.graph.layers)
    for stated in text.layer:
        if not nodes or stated != nodes[0].layer:
            continue  # of another phase
        node = nodes.pop(0)
        layer = net.plan.layers[node.name]
        shapes = [net.plan.value_shapes[top] for top in node.tops]
        if not layer.is_input or _own_shapes(layer) == shapes:
            continue
        if stated.type != "Input":
            if _takes_batch(layer, stated, shapes):
                continue
            notes.append(
                f"{node.name} ({node.type}): its text does not state the shapes it was given, so an Input layer replaces "
                "it in the prototxt"
            )
            _become_input(stated)
        stated.input_param.ClearField("shape")
        for shape in shapes:
            stated.input_param.shape.add(dim=shape)
    return text, tuple(notes)


def _own_shapes(layer: Layer) -> list[Shape] | None:
    """Return the shapes that a layer's text states, or None."""
    try:
        return [tuple(shape) for shape in layer.plan().tops]
    except IlgnetError:
        return None


def _takes_batch(layer: Layer, stated: pb.LayerParameter, shapes: Sequence[Shape]) -> bool:
    """Whether the shapes differ from the layer's own only in the batch, which is then written into the text."""
    other = pb.LayerParameter()
    other.CopyFrom(stated)
    getattr(other, layer.message).batch_size = shapes[0][0]
    if _own_shapes(make_layer(replace(layer.node, layer=other))) != list(shapes):
        return False
    stated.CopyFrom(other)
    return True


def _become_input(stated: pb.LayerParameter) -> None:
    """Turn a layer that reads a source into an Input layer; a Data layer keeps its transform_param."""
    kept = [
        "name",
        "type",
        "top",
        "include",
        "exclude",
        *(["transform_param"] if stated.type == "Data" else []),
    ]
    for field, _ in stated.ListFields():
        if field.name not in kept:
            stated.ClearField(field.name)
    stated.type = "Input"
