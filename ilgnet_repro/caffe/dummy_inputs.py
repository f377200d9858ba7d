"""Inputs that the caller states by their shape: tops of DummyData layers, and bottoms that no layer writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..schema import caffe_pb2 as pb
from .graph import unused_name
from .phase_rules import PHASES, is_included, net_state

DUMMY_NOTE = "generates its tops, so it takes no image; give a top's shape to feed it"


def given_to_inputs(
    net: pb.NetParameter,
    input_shapes: Mapping[str, tuple[int, ...]],
    phase: str = "TEST",
    *,
    level: int = 0,
    stages: Iterable[str] = (),
    notes: list[str] | None = None,
) -> pb.NetParameter:
    """Return ``net`` (modern form) with an Input layer for each blob in ``input_shapes`` that needs one.

    These are tops of DummyData layers, and blobs that a layer reads before any layer writes them: the data layer of
    many published prototxts was cut off.
    """
    state = net_state(phase, level, (*net.state.stage, *stages))
    return _unwritten_to_inputs(
        _dummies_to_inputs(net, input_shapes, state, notes), input_shapes, state, notes
    )


def unwritten_bottoms(layers: Iterable[pb.LayerParameter]) -> list[str]:
    """Return the blobs that ``layers`` read and none of them writes, in the order of reading."""
    layers = list(layers)
    written = {top for layer in layers for top in layer.top}
    return list(dict.fromkeys(blob for layer in layers for blob in layer.bottom if blob not in written))


def unwritten_to_inputs(
    net: pb.NetParameter, phase: str = "TEST", *, level: int = 0, stages: Iterable[str] = ()
) -> tuple[pb.NetParameter, tuple[str, ...]]:
    """Return ``net`` with an Input layer without a shape for each blob that no layer of this state writes, and these.

    Left out are blobs that a layer of another level or stage writes, and those that another phase computes.
    """
    state = net_state(phase, level, (*net.state.stage, *stages))
    included = [layer for layer in net.layer if is_included(layer, state)]
    computed = computed_elsewhere(net, state)
    blobs = [blob for blob in unwritten_bottoms(included) if blob not in computed]
    result = pb.NetParameter()
    result.CopyFrom(net)
    del result.layer[:]
    taken = {layer.name for layer in included}  # a layer of another phase may have the blob's name
    for blob in blobs:
        made = result.layer.add(name=unused_name(blob, taken), type="Input", top=[blob])
        taken.add(made.name)
    result.layer.extend(net.layer)
    return result, tuple(blobs)


def computed_elsewhere(net: pb.NetParameter, state: pb.NetState) -> set[str]:
    """Return the tops of the layers that do more than feed one of the phases with the level and stages of ``state``."""
    fed = [
        layer
        for layer in net.layer
        if not layer.bottom and any(is_included(layer, other) for other in _phases(state))
    ]
    return {top for layer in net.layer for top in layer.top if layer not in fed}


def _phases(state: pb.NetState) -> list[pb.NetState]:
    """Return a state in both phases."""
    return [pb.NetState(phase=phase, level=state.level, stage=state.stage) for phase in PHASES.values()]


def _unwritten_to_inputs(
    net: pb.NetParameter, shapes: Mapping[str, tuple[int, ...]], state: pb.NetState, notes: list[str] | None
) -> pb.NetParameter:
    included = [layer for layer in net.layer if is_included(layer, state)]
    added = [blob for blob in unwritten_bottoms(included) if blob in shapes]
    if not added:
        return net
    result = pb.NetParameter()
    result.CopyFrom(net)
    del result.layer[:]
    taken = {layer.name for layer in included}
    written = {top for layer in net.layer for top in layer.top}
    for blob in added:
        made = result.layer.add(name=unused_name(blob, taken), type="Input", top=[blob])
        taken.add(made.name)
        made.input_param.shape.add(dim=shapes[blob])
        if blob in written:  # in another phase
            made.include.add(phase=state.phase)
        if notes is not None:
            notes.append(f"{blob}: is written by no layer and has a given shape, so it is an input")
    result.layer.extend(net.layer)
    return result


def _dummies_to_inputs(
    net: pb.NetParameter,
    input_shapes: Mapping[str, tuple[int, ...]],
    state: pb.NetState,
    notes: list[str] | None,
) -> pb.NetParameter:
    """Return ``net`` (modern form) with each DummyData top in ``input_shapes`` as a top of an Input layer."""
    if not any(layer.type == "DummyData" and set(layer.top) & set(input_shapes) for layer in net.layer):
        return net
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
