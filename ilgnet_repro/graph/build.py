"""From a modern NetParameter to a Graph: layers chosen by state, in-place tops made unique."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import GraphError, LayerError
from ..schema import caffe_pb2 as pb
from .crops import place_crops
from .fork_fields import check_net_fields, check_rule_fields
from .node import Graph, Node
from .rules import is_included, net_state


def build_graph(
    net: pb.NetParameter,
    phase: str = "TEST",
    *,
    level: int = 0,
    stages: Iterable[str] = (),
    crop: str | None = None,
) -> Graph:
    """Build the graph of ``net`` (modern form, see formats/upgrade.py) in a phase, level and stages.

    Raises GraphError for a bottom nothing wrote, a cycle, a top that two layers write, or a field that no
    schema lists outside the layers; the rules are those of Caffe's `Net::Init`.  ``crop`` is the rule for Crop
    layers without an offset (crops.py).
    """
    stages = tuple(stages)
    check_net_fields(net)
    for layer in net.layer:
        check_rule_fields(layer)
    net = place_crops(net, phase, level=level, stages=stages, crop=crop)
    # Caffe's `Net` takes the phase and level it is told, and adds the stages to those of the text.
    state = net_state(phase, level, (*net.state.stage, *stages))
    layers = [layer for layer in net.layer if is_included(layer, state)]
    if not layers:
        raise GraphError(f"net {net.name!r} has no layer in phase {phase}; check include rules and phase")
    for layer in layers:
        if not layer.type:
            raise GraphError(f'{layer.name or "(unnamed)"}: has no type; write type: "..."')

    names = _unique_names(layers)
    last_writer = {top: index for index, layer in enumerate(layers) for top in layer.top}
    current: dict[str, str] = {}  # blob name -> the value it holds at this point
    unread: dict[str, None] = {}  # blob names nothing has consumed yet
    nodes = []
    for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
        bottoms = []
        for blob in layer.bottom:
            if blob not in current:
                raise GraphError(_missing_bottom(layers, index, blob))
            bottoms.append(current[blob])
        for blob in layer.bottom:
            unread.pop(blob, None)
        tops = []
        if len(set(layer.top)) < len(layer.top):
            raise LayerError(name, layer.type, f"top {_repeated(layer.top)!r} is written twice by one layer")
        for blob in layer.top:
            if blob in current and blob not in layer.bottom:
                raise GraphError(
                    f"{name} ({layer.type}): top {blob!r} is already written by another layer; "
                    "give it another name, or name it as bottom too to write in place"
                )
            value = blob if last_writer[blob] == index else f"{blob}@{name}"
            current[blob] = value
            unread[blob] = None
            tops.append(value)
        nodes.append(Node(name, layer.type, tuple(bottoms), tuple(tops), phase, layer))

    # Caffe keeps the blobs left over in a std::set, so its outputs come in byte order of their names.
    outputs = tuple(sorted(unread, key=lambda blob: blob.encode()))
    return Graph(net.name, phase, tuple(nodes), outputs)


def _unique_names(layers: list[pb.LayerParameter]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for layer in layers:
        seen[layer.name] = seen.get(layer.name, 0) + 1
        names.append(layer.name if seen[layer.name] == 1 else f"{layer.name}#{seen[layer.name]}")
    return names


def _repeated(names: Iterable[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _missing_bottom(layers: list[pb.LayerParameter], index: int, blob: str) -> str:
    layer = layers[index]
    where = f"{layer.name} ({layer.type}): bottom {blob!r}"
    writers = [other for other in layers[index:] if blob in other.top]
    if writers and writers[0] is layer:
        return f"{where} is written only by this layer itself; an in-place layer needs a writer before it"
    if writers:
        return (
            f"{where} is first written later, by {writers[0].name} ({writers[0].type}); "
            "put that layer before this one, or break the cycle"
        )
    return f"{where} is written by no layer of this phase; check the name and the include rules"
