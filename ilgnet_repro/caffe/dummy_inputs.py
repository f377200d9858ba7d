"""DummyData layers as inputs: a top whose shape the caller gives becomes an input of the net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..schema import caffe_pb2 as pb
from .graph import unused_name
from .phase_rules import is_included, net_state

DUMMY_NOTE = "generates its tops, so it takes no image; give a top's shape to feed it"


def dummies_to_inputs(
    net: pb.NetParameter,
    input_shapes: Mapping[str, tuple[int, ...]],
    phase: str = "TEST",
    *,
    level: int = 0,
    stages: Iterable[str] = (),
    notes: list[str] | None = None,
) -> pb.NetParameter:
    """Return ``net`` (modern form) with each DummyData top in ``input_shapes`` as a top of an Input layer."""
    if not any(layer.type == "DummyData" and set(layer.top) & set(input_shapes) for layer in net.layer):
        return net
    state = net_state(phase, level, (*net.state.stage, *stages))
    result = pb.NetParameter()
    result.CopyFrom(net)
    del result.layer[:]
    taken = {layer.name for layer in net.layer}
    for layer in net.layer:
        fed = [top for top in layer.top if top in input_shapes]
        if layer.type != "DummyData" or not fed or not is_included(layer, state):
            result.layer.add().CopyFrom(layer)
            continue
        rest = _without(layer, fed)
        made = result.layer.add(
            name=layer.name if rest is None else unused_name(f"{layer.name}_input", taken),
            type="Input",
            top=fed,
        )
        taken.add(made.name)
        made.include.extend(layer.include)
        made.exclude.extend(layer.exclude)
        for top in fed:
            made.input_param.shape.add(dim=input_shapes[top])
        if rest is not None:
            result.layer.add().CopyFrom(rest)
        if notes is not None:
            notes.append(f"{layer.name} (DummyData): {', '.join(fed)} has a given shape, so it is an input")
    return result


def _without(layer: pb.LayerParameter, fed: Iterable[str]) -> pb.LayerParameter | None:
    """Return the DummyData layer without the tops ``fed``, each with its own shape and filler; None if no top is left."""
    kept = [index for index, top in enumerate(layer.top) if top not in fed]
    if not kept:
        return None
    rest = pb.LayerParameter()
    rest.CopyFrom(layer)
    del rest.top[:]
    rest.top.extend(layer.top[index] for index in kept)
    param = rest.dummy_data_param
    for name in ("shape", "data_filler", "num", "channels", "height", "width"):
        values = list(getattr(layer.dummy_data_param, name))
        if len(values) == len(layer.top) > 1:  # otherwise one for all tops
            param.ClearField(name)
            getattr(param, name).extend(values[index] for index in kept)
    return rest
