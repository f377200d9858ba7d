"""From a CaffeNet to ONNX, layer by layer: one walk that hands each layer a writer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ..errors import IlgnetError
from ..layers.base import Layer, Shape, emit_onnx
from ..net import CaffeNet
from ..version import __version__
from .precision import Reduced, reduced_blob
from .safetensors_file import tensor_bytes

# Opset 20 is the first whose AveragePool ONNX Runtime's CPU kernel computes rightly with ceil_mode
# and padding counted (FACTS §5 says 19; 20 is in every release since early 2024); its IR version is 9.
OPSET = 20
IR_VERSION = 9
BATCH = "N"
# Sides of a picture, for nets that take any; a side that a layer changes has no name.
SIDES = ("H", "W")

ELEMENT_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int8: TensorProto.INT8,
}


@dataclass(frozen=True)
class OnnxModel:
    """A model apart from its weights: these stay where they are (in a memory map) until they are written."""

    skeleton: onnx.ModelProto
    weights: dict[str, torch.Tensor]

    def proto(self) -> onnx.ModelProto:
        """The whole model in memory, for nets small enough."""
        whole = onnx.ModelProto()
        whole.CopyFrom(self.skeleton)
        for name, tensor in self.weights.items():
            whole.graph.initializer.append(tensor_header(name, tensor))
            whole.graph.initializer[-1].raw_data = bytes(tensor_bytes(tensor))
        return whole


class OnnxWriter:
    """Collects nodes and initializers; the `OnnxGraph` that a layer's `onnx` speaks to."""

    def __init__(
        self, shapes: Mapping[str, Shape], outputs: Iterable[str] = (), *, dynamic_size: bool = False
    ) -> None:
        self.dynamic_size = dynamic_size
        self._shapes = dict(shapes)
        self._outputs = set(outputs)
        self._now: dict[str, str] = {}  # a value that goes by another name: what that is
        self._constants: dict[tuple[str, Shape, bytes], str] = {}
        self._parameters: dict[tuple[int, Shape], str] = {}  # so that shared blobs stay one
        self._layer: Layer | None = None
        self._first = 0  # where the nodes of the current layer begin
        self._count = 0
        self.graph_nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.weights: dict[str, torch.Tensor] = {}

    # ------------------------------------------------------------------ what layers call

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.nodes(op, inputs, 1, **attributes)[0]

    def nodes(self, op: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        self._count += 1
        stem = f"{self._layer.node.name if self._layer else 'net'}:{op}_{self._count}"
        names = [stem] if outputs == 1 else [f"{stem}.{index}" for index in range(outputs)]
        self.graph_nodes.append(helper.make_node(op, list(inputs), names, name=stem, **attributes))
        return names

    def constant(self, array: np.ndarray | np.generic) -> str:
        array = np.ascontiguousarray(array).reshape(np.shape(array))  # the first alone makes scalars 1-D
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"const_{len(self._constants)}"
            self._constants[key] = name
            self.constants.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def parameter(self, name: str) -> str:
        if self._layer is None:
            raise IlgnetError("a parameter was asked for outside a layer")
        initializer = f"{self._layer.node.name}.{name}"
        while initializer in self._shapes:  # a blob may be named like a parameter
            initializer += "'"
        reduced = reduced_blob(self._layer, name)
        if reduced is not None:
            return self._reduced(initializer, reduced)
        blob = self._layer.blob(name).detach()
        key = (blob.data_ptr(), tuple(blob.shape))
        if blob.numel() and key in self._parameters:
            return self._parameters[key]
        self._parameters[key] = initializer
        self.weights[initializer] = blob.float().cpu()
        return initializer

    def shape(self, value: str) -> Shape:
        return self._shapes[value]

    def _reduced(self, name: str, reduced: Reduced) -> str:
        """Keep the values as they are stored, and have the runtime widen them."""
        self.weights[name] = reduced.values
        if reduced.scale is None:
            return self.node("Cast", [name], to=TensorProto.FLOAT)
        self.weights[f"{name}_scale"] = reduced.scale
        return self.node("DequantizeLinear", [name, f"{name}_scale"], axis=reduced.axis)

    # ------------------------------------------------------------------ the walk

    @property
    def last_nodes(self) -> list[onnx.NodeProto]:
        """The nodes that the last layer added."""
        return self.graph_nodes[self._first :]

    def add_layer(self, layer: Layer) -> None:
        """Have a layer add its nodes, then give its results the blobs' own names."""
        self._layer, self._first = layer, len(self.graph_nodes)
        results = emit_onnx(layer, self, [self._known(bottom) for bottom in layer.node.bottoms])
        for top, result in zip(layer.node.tops, results, strict=False):
            self.name(result, top)
        self._layer = None

    def name(self, result: str, top: str) -> None:
        """Have a result be the blob ``top``.

        A layer that only passes its bottom on (Dropout, Split) adds no node: an in-place one gives the
        value its last name, another leaves it the first.  An output of the net always has its own name.
        """
        result = self._known(result)
        if result == top:
            return
        made_here = any(result in node.output for node in self.last_nodes)
        made = made_here or any(result in node.output for node in self.graph_nodes)
        takes_name = made_here and result not in self._shapes
        goes_on = made and result not in self._outputs and (top in self._outputs or "@" in result)
        if takes_name or goes_on:
            _rename(self.last_nodes if takes_name else self.graph_nodes, result, top)
            self._now[result] = top
        elif top in self._outputs:
            self.graph_nodes.append(helper.make_node("Identity", [result], [top], name=f"{top}:Identity"))
        else:
            self._now[top] = result
            self._shapes.setdefault(result, self._shapes[top])

    def _known(self, value: str) -> str:
        while value in self._now:
            value = self._now[value]
        return value


def _rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Rename a value wherever nodes and their inner graphs make or read it."""
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _rename(inner.node, old, new)


@dataclass(frozen=True)
class Prepare:
    """An input that the graph makes itself: the nodes are added by ``add``, which returns what they read."""

    blob: str
    add: Callable[[OnnxWriter], onnx.ValueInfoProto]


def plan_onnx(
    net: CaffeNet,
    *,
    outputs: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    dynamic_size: bool = False,
    fast_lrn: bool = False,
    prepare: Prepare | None = None,
) -> OnnxModel:
    """Return ``net`` as an ONNX model with a dynamic batch, its weights not copied.

    Every input's and output's first axis is the symbol N; with ``dynamic_size`` the sides of pictures are
    H and W; ``fast_lrn`` writes LRN nodes out (onnx_lrn.py); ``prepare`` makes one input's values from
    pictures.  Raises LayerError where a layer cannot be expressed in ONNX, or needs the size it was given.
    """
    if dynamic_size:
        from .onnx_size import check_size_is_free

        check_size_is_free(net, outputs)
    wanted = tuple(outputs if outputs is not None else net.outputs)
    writer = OnnxWriter(net.shapes, wanted, dynamic_size=dynamic_size)
    inputs = [value_info(name, input_dims(net.shapes[name], dynamic_size)) for name in net.inputs_for(wanted)]
    if prepare is not None:
        inputs = [prepare.add(writer) if entry.name == prepare.blob else entry for entry in inputs]
    for _, layer in net.steps(wanted):
        layer.refresh_borrowed()
        writer.add_layer(layer)
    open_sized = {top for node, layer in net.steps(wanted) if layer.shaped_by_values for top in node.tops}
    if fast_lrn:
        from .onnx_lrn import write_out_lrn

        write_out_lrn(writer)
    results = [
        value_info(name, [None] * len(shape) if name in open_sized else output_dims(shape, dynamic_size))
        for name, shape in ((name, net.shapes[name]) for name in wanted)
    ]
    return assemble(writer, net.graph.name, inputs, results, metadata)


def build_onnx(
    net: CaffeNet,
    *,
    outputs: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    dynamic_size: bool = False,
) -> onnx.ModelProto:
    """Return ``net`` as an ONNX model in memory; see `plan_onnx`."""
    return plan_onnx(net, outputs=outputs, metadata=metadata, dynamic_size=dynamic_size).proto()


def assemble(
    writer: OnnxWriter,
    name: str,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    metadata: Mapping[str, str] | None = None,
) -> OnnxModel:
    """Make a model of what a writer has collected; values no node reads are left out."""
    used = values_read(writer.graph_nodes) | {entry.name for entry in outputs}
    constants = [tensor for tensor in writer.constants if tensor.name in used]
    graph = helper.make_graph(writer.graph_nodes, name or "net", list(inputs), list(outputs), constants)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ilgnet_repro",
        producer_version=__version__,
    )
    helper.set_model_props(model, dict(metadata or {}))
    return OnnxModel(model, {key: tensor for key, tensor in writer.weights.items() if key in used})


def values_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """The names that nodes read, those of their inner graphs (Scan, Loop, If) included."""
    read = set()
    for node in nodes:
        read.update(node.input)
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                read |= values_read(inner.node) | {entry.name for entry in inner.output}
    return read


def input_dims(shape: Shape, dynamic_size: bool) -> list[int | str | None]:
    """The batch is open; with ``dynamic_size`` so are a picture's sides."""
    sides = SIDES if dynamic_size and len(shape) == 4 else shape[2:]
    return [BATCH, *shape[1:2], *sides] if shape else []


def output_dims(shape: Shape, dynamic_size: bool) -> list[int | str | None]:
    """As `input_dims`, with the sides unnamed: what layers make of H and W has no symbol."""
    if dynamic_size and len(shape) > 1:
        return [BATCH, *([None] * (len(shape) - 1) if len(shape) < 4 else [shape[1], None, None])]
    return [BATCH, *shape[1:]] if shape else []


def value_info(
    name: str, dims: Sequence[int | str | None], kind: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    """Describe a graph input or output."""
    return helper.make_tensor_value_info(name, kind, list(dims))


def tensor_header(name: str, tensor: torch.Tensor) -> onnx.TensorProto:
    """An initializer without its values."""
    return TensorProto(name=name, data_type=ELEMENT_TYPES[tensor.dtype], dims=list(tensor.shape))
