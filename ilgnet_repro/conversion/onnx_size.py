"""Does a net take pictures of any size?  Its ONNX nodes are made at two sizes and must be the same."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import IlgnetError
from ..net import CaffeNet, Plan, plan_net
from .onnx_writer import OnnxWriter, values_read

# Added to the sides for the second size: odd halves and unlike each other, so that no rounding hides a size.
GROWTH = (37, 58)


def plan_grown(net: CaffeNet, wanted: tuple[str, ...]) -> Plan:
    """Plan the net for larger pictures.  Raises LayerError for a layer whose weights fit one size only."""
    pictures = [name for name in net.inputs_for(wanted) if len(net.shapes[name]) == 4]
    if not pictures:
        raise IlgnetError(f"net {net.graph.name!r}: no input is a picture (N, C, H, W); drop --dynamic-size")
    grown = {name: net.shapes[name] for name in net.inputs}
    for name in pictures:
        count, channels, *sides = net.shapes[name]
        grown[name] = (count, channels, *(side + more for side, more in zip(sides, GROWTH, strict=True)))
    plan = plan_net(net.graph, grown)
    for node, layer in net.steps(wanted):
        if [spec.shape for spec in plan.specs[node.name]] != [
            spec.shape for spec in net.blob_specs[node.name]
        ]:
            raise layer.error("its weights fit one size of picture only; export without --dynamic-size")
    return plan


def check_size_is_free(net: CaffeNet, outputs: Sequence[str] | None = None) -> None:
    """Raise LayerError for the first layer whose weights or ONNX nodes depend on the pictures' size."""
    wanted = tuple(outputs if outputs is not None else net.outputs)
    plan = plan_grown(net, wanted)
    first = OnnxWriter(net.shapes, wanted, dynamic_size=True)
    second = OnnxWriter(plan.shapes, wanted, dynamic_size=True)
    for node, layer in net.steps(wanted):
        other = plan.layers[node.name]
        for name in layer.blob_names:
            object.__setattr__(other, name, layer.blob(name))
        other.blob_names = list(layer.blob_names)
        first.add_layer(layer)
        second.add_layer(other)
        if _since(first) != _since(second):
            raise layer.error("its ONNX nodes hold the size; export without --dynamic-size")


def _since(writer: OnnxWriter) -> list[bytes]:
    """What the last layer added: its nodes, and the constants these read."""
    read = values_read(writer.last_nodes)
    constants = [constant for constant in writer.constants if constant.name in read]
    return [node.SerializeToString() for node in writer.last_nodes] + [
        c.SerializeToString() for c in constants
    ]
