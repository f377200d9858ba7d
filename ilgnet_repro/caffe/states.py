"""`expose_states`: RNN and LSTM whose initial states are inputs and whose final states are outputs, by `expose_hidden`."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import GraphError, LayerError
from ..schema import caffe_pb2 as pb
from .graph import Graph, Value, unused_name
from .graph_build import build_graph

# The states of each type, as Caffe names their blobs: h_0 is the first, h_T the last.
STATES = {"RNN": ("h",), "LSTM": ("h", "c")}


def expose_states(
    graph: Graph, shapes: Mapping[Value, tuple[int, ...]], stateful: tuple[str, ...] = ()
) -> Graph:
    """Return ``graph`` with inputs LAYER_h_0 (LAYER_c_0) and outputs LAYER_h_T (LAYER_c_T), each 1 x streams x outputs.

    A layer that exposes its states already stays as it is.  ``shapes`` are those of the graph's values, ``stateful`` the
    layers that carry a state.  Raises LayerError for one of these that is no RNN or LSTM, and GraphError where there is
    none.
    """
    recurrent = [node for node in graph.layers if node.type in STATES]
    for node in graph.layers:
        if node.name in stateful and node.type not in STATES:
            raise LayerError(
                node.name,
                node.type,
                "Caffe cannot take its state as an input; omit states=True",
                option="states",
            )
    if not recurrent:
        raise GraphError(
            f"net {graph.name!r} has no RNN or LSTM layer, whose states could be inputs and outputs; omit states=True",
            option="states",
        )
    text = pb.NetParameter()
    text.CopyFrom(graph.text)
    text.ClearField("layer")
    names = {node.name for node in graph}
    blobs = {value.blob for value in graph.names} | set(graph.names.values())
    for node in graph.layers:
        layer = pb.LayerParameter()
        layer.CopyFrom(node.layer)
        layer.name = node.name
        for rules in ("include", "exclude"):  # the phase rules have been applied
            layer.ClearField(rules)
        if node in recurrent and not layer.recurrent_param.expose_hidden:
            layer.recurrent_param.expose_hidden = True
            streams = shapes[node.bottoms[0]][1]
            for state in STATES[node.type]:
                first = unused_name(f"{node.name}_{state}_0", blobs)
                last = unused_name(f"{node.name}_{state}_T", blobs)
                blobs |= {first, last}
                made = text.layer.add(name=unused_name(first, names), type="Input", top=[first])
                names.add(made.name)
                made.input_param.shape.add(dim=(1, streams, layer.recurrent_param.num_output))
                layer.bottom.append(first)
                layer.top.append(last)
        text.layer.append(layer)
    return build_graph(text, graph.phase)
