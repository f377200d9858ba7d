"""From a CaffeNet to an ONNX model: each layer adds its nodes through an `OnnxWriter`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ..caffe.graph import Value
from ..errors import ARITHMETIC, IlgnetError, LayerError, unusable
from ..layers.lrn import lrn_as_convolution
from ..layers.support.base import Attribute, Layer, Shape
from ..runtime.net import CaffeNet
from ..runtime.quantize import QuantizedWeight, quantized_blob
from ..runtime.safetensors_file import tensor_bytes
from ..version import __version__
from .onnx_opsets import DEFAULT, adapt, ir_version, needed_opset
from .open_shapes import Dim, Dims, open_shapes

ELEMENT_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int8: TensorProto.INT8,
}


@dataclass(frozen=True)
class OnnxModel:
    """A model without its weights, which stay in their memory map until they are written."""

    skeleton: onnx.ModelProto
    weights: dict[str, torch.Tensor]

    def proto(self) -> onnx.ModelProto:
        """Return the model with its weights in memory, for small nets."""
        whole = onnx.ModelProto()
        whole.CopyFrom(self.skeleton)
        for name, tensor in self.weights.items():
            whole.graph.initializer.append(tensor_header(name, tensor))
            whole.graph.initializer[-1].raw_data = bytes(tensor_bytes(tensor))
        return whole


class NeedsFixedSizeError(LayerError):
    """A layer's nodes depend on a length that is open."""


@dataclass(frozen=True)
class _Body:
    """The graph inside a Scan node: its inputs, outputs and nodes."""

    given: tuple[str, ...]
    results: tuple[str, ...]
    nodes: tuple[_Node, ...]


@dataclass(frozen=True)
class _Node:
    """A node whose values are handles; they get their names when the model is built."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    body: _Body | None = None


class OnnxWriter:
    """Collects nodes and initializers; the `OnnxGraph` that a layer's `onnx` method writes to.

    Layers refer to a value by its handle, a unique string.  In the file a value is named by its handle, unless it is
    a blob of the net: which blob is known only after the layers that pass it on (Dropout, Split), so
    `protos` creates the nodes with their names at the end.

    ``dims`` are the shapes of the net's blobs, with open axes as symbols or None.  ``expanded`` maps an operator to the
    function that adds other nodes in its place.  ``names`` are the names of the net's values (`Graph.names`).
    Operators get the form that they have in ``opset``.
    """

    def __init__(
        self,
        dims: Mapping[str, tuple[Dim, ...]],
        outputs: Iterable[str] = (),
        expanded: Mapping[str, Callable[..., str]] | None = None,
        names: Mapping[Value, str] | None = None,
        opset: int = DEFAULT,
    ) -> None:
        self.opset = opset
        self.dims: Dims = dict(dims)
        self._value_names = names or {}
        self._outputs = set(outputs)
        self._expanded = dict(expanded or {})
        self._names = set(dims)  # used by inputs, blobs, nodes, handles and initializers
        self._blob_values: dict[
            str, str
        ] = {}  # blob -> the handle of its value, where that is not the blob's name
        self._called: dict[str, str] = {}  # handle -> the blob that names the value in the file
        self._other_names: dict[str, str] = {}  # blobs whose name an input of the file uses
        self._lengths: dict[str, tuple[Dim, ...]] = {}  # by handle
        self._made: set[str] = set()  # the handles of node outputs
        self._made_here: set[str] = set()  # those of the current layer
        self._replaced: set[str] = set()  # blobs that an in-place layer replaces
        self._constants: dict[tuple[str, Shape, bytes], str] = {}
        self._arrays: dict[str, np.ndarray] = {}  # the constants, by name
        self._parameters: dict[tuple[int, Shape], str] = {}  # so that shared blobs stay one
        self._layer: Layer | None = None
        self._count = 0
        self._nodes: list[_Node] = []
        self.constants: list[onnx.TensorProto] = []
        self.weights: dict[str, torch.Tensor] = {}

    # ------------------------------------------------------------------ called by layers

    def node(self, op: str, inputs: Sequence[str], **attributes: Attribute) -> str:
        if op in self._expanded:
            return self._expanded[op](self, *inputs, **attributes)
        return self.nodes(op, inputs, 1, **attributes)[0]

    def nodes(self, op: str, inputs: Sequence[str], outputs: int, **attributes: Attribute) -> list[str]:
        given = list(inputs)
        other = adapt(self, op, given, attributes, self.opset)
        if other is not None:
            return [other]
        needed = needed_opset(op, given, attributes, self.opset)
        if needed != self.opset:
            raise self._error(
                f"its ONNX operator {op} is so from opset {needed} on; write opset={needed}", option="opset"
            )
        return self._add(op, given, outputs, attributes)

    def scan(
        self, states: Sequence[str], sequences: Sequence[str], step: Callable[..., Sequence[str]]
    ) -> list[str]:
        given = tuple(self._unused(f"{self._stem}:Scan_in_{i}") for i in range(len(states) + len(sequences)))
        around, self._nodes = self._nodes, []
        try:
            results = tuple(step(*given))
            body = _Body(given, results, tuple(self._nodes))
        finally:
            self._nodes = around
        attributes = {"num_scan_inputs": len(sequences)}
        return self._add("Scan", [*states, *sequences], len(results), attributes, body)

    def constant(self, array: np.ndarray | np.generic) -> str:
        array = np.ascontiguousarray(array).reshape(np.shape(array))  # ascontiguousarray makes scalars 1-D
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = self._unused(f"const_{len(self._constants)}")
            self._constants[key] = name
            self._arrays[name] = array
            self.constants.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def parameter(self, name: str) -> str:
        if self._layer is None:
            raise IlgnetError("a parameter was asked for outside a layer")
        initializer = f"{self._layer.node.name}.{name}"
        weight = quantized_blob(self._layer, name)
        if weight is not None:
            return self._dequantized(self._unused(initializer), weight)
        return self.weight(initializer, self._layer.blob(name).detach())

    def weight(self, name: str, values: torch.Tensor) -> str:
        """Store weights as an initializer, shared ones once; return its name."""
        key = (values.data_ptr(), tuple(values.shape))
        if values.numel() and key in self._parameters:
            return self._parameters[key]
        initializer = self._parameters[key] = self._unused(name)
        self.weights[initializer] = values.float().cpu()
        return initializer

    def shape(self, value: str) -> tuple[int | None, ...]:
        return tuple(length if isinstance(length, int) else None for length in self._dims_of(value))

    def size(self, value: str, axis: int) -> int:
        length = self._dims_of(value)[axis]
        if not isinstance(length, int):
            raise self._needs_fixed_size()
        return length

    def value_named(self, blob: str) -> str:
        """Return the handle of a blob's value."""
        return self._blob_values.get(blob, blob)

    def value_of(self, name: str) -> np.ndarray | None:
        """Return the constant of that name; None for other values."""
        return self._arrays.get(name)

    # ------------------------------------------------------------------ nodes and names

    @property
    def _stem(self) -> str:
        return self._layer.node.name if self._layer else "net"

    def _add(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: int,
        attributes: Mapping[str, Attribute],
        body: _Body | None = None,
    ) -> list[str]:
        self._count += 1
        name = self._unused(f"{self._stem}:{op}_{self._count}")
        made = [name] if outputs == 1 else [self._unused(f"{name}.{index}") for index in range(outputs)]
        self._nodes.append(_Node(name, op, tuple(inputs), tuple(made), attributes, body))
        self._made.update(made)
        self._made_here.update(made)
        return made

    def _dims_of(self, value: str) -> tuple[Dim, ...]:
        return self._lengths[value] if value in self._lengths else self.dims[value]

    def _error(self, message: str, *, option: str) -> LayerError:
        name, type_ = (self._layer.node.name, self._layer.node.type) if self._layer else ("net", "ONNX")
        return LayerError(name, type_, message, option=option)

    def _needs_fixed_size(self) -> NeedsFixedSizeError:
        name, type_ = (self._layer.node.name, self._layer.node.type) if self._layer else ("net", "ONNX")
        return NeedsFixedSizeError(
            name,
            type_,
            "its ONNX nodes hold the size; export without dynamic_size=True",
            option="dynamic_size",
        )

    def _unused(self, name: str) -> str:
        """Return the name, made unique; blobs and layers may be named like the writer's own values."""
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name

    def _dequantized(self, name: str, weight: QuantizedWeight) -> str:
        """Store the quantized values and add a node that dequantizes them."""
        self.weights[name] = weight.values
        if weight.scale is None:
            return self.node("Cast", [name], to=TensorProto.FLOAT)
        scale = self._unused(f"{name}_scale")
        if (
            weight.scale.dim() == 2
        ):  # as OpenVINO recognizes weights to be dequantized while they are multiplied
            shape = weight.values.shape
            self.weights[name] = weight.values.view(*weight.scale.shape, -1)
            self.weights[scale] = weight.scale[..., None]
            wide = self.node("Mul", [self.node("Cast", [name], to=TensorProto.FLOAT), scale])
            return self.node("Reshape", [wide, self.constant(np.array(shape, np.int64))])
        self.weights[scale] = weight.scale
        return self.node("DequantizeLinear", [name, scale], axis=weight.axis)

    # ------------------------------------------------------------------ layer by layer

    def add_input(self, name: str) -> str:
        """Add an input that the net does not have; a blob of that name gets another one in the file."""
        if name in self._names:
            self._other_names[name] = self._unused(name)
        self._names.add(name)
        return name

    def add_layer(self, layer: Layer) -> None:
        """Let a layer add its nodes, and record which blobs its results are."""
        if layer.no_onnx:
            raise layer.error(f"cannot be written as ONNX: {layer.no_onnx}")
        self._layer = layer
        self._made_here.clear()
        read = [self._value_names[bottom] for bottom in layer.node.bottoms]
        bottoms = [self._blob_values.get(name, name) for name in read]
        try:
            results = layer.onnx(self, *bottoms)
        except TypeError as error:  # a user's layer class that uses an open length as a number
            if not any(None in self.shape(bottom) for bottom in bottoms):
                raise
            raise self._needs_fixed_size() from error
        except ARITHMETIC as error:
            raise unusable(layer.node.name, layer.node.type, "cannot be written as ONNX", error) from error
        for top, result in zip(layer.node.tops, results, strict=False):
            name = self._value_names[top]
            if name != top.blob:
                self._replaced.add(name)
            if not layer.is_input:  # its tops are the model's inputs
                self.bind(name, result)
        self._layer = None

    def bind(self, blob: str, value: str) -> None:
        """Record a blob's value, and name the value after the blob where possible.

        A layer that returns its bottom unchanged (Dropout, Split) adds no node: in place, the value gets the
        last name, otherwise it keeps the first.  An output of the net always has its own name.
        """
        called = self._called.get(value)
        makes = value in self._made_here and called is None
        can_be_renamed = value in self._made and called not in self._outputs
        if makes or (can_be_renamed and (blob in self._outputs or called in self._replaced)):
            self._called[value] = blob
        elif blob in self._outputs:
            self._nodes.append(_Node(self._unused(f"{blob}:Identity"), "Identity", (value,), (blob,), {}))
            self._called[blob] = value = blob
            self._made.add(blob)
        self._blob_values[blob] = value
        self._lengths[value] = self.dims[blob]

    def protos(self) -> list[onnx.NodeProto]:
        """Return the collected nodes with their values' names in the file."""
        return [self._proto(node) for node in self._nodes]

    def _name(self, value: str) -> str:
        blob = self._called.get(value)
        return value if blob is None else self._other_names.get(blob, blob)

    def _proto(self, node: _Node) -> onnx.NodeProto:
        inputs, outputs = ([self._name(value) for value in values] for values in (node.inputs, node.outputs))
        attributes = dict(node.attributes)
        if node.body is not None:
            given, results = (
                [
                    helper.make_tensor_value_info(self._name(value), TensorProto.FLOAT, None)
                    for value in values
                ]
                for values in (node.body.given, node.body.results)
            )
            nodes = [self._proto(inner) for inner in node.body.nodes]
            attributes["body"] = helper.make_graph(nodes, "step", given, results)
        proto = helper.make_node(node.op, inputs, outputs, name=node.name)
        proto.attribute.extend(helper.make_attribute(key, attributes[key]) for key in sorted(attributes))
        return proto


@dataclass(frozen=True)
class Prepare:
    """An input that the graph computes: ``add`` adds the nodes and returns the graph input that they read."""

    blob: str
    add: Callable[[OnnxWriter], onnx.ValueInfoProto]


def plan_onnx(
    net: CaffeNet,
    *,
    outputs: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    dynamic_size: bool = False,
    fast_lrn: bool = False,
    expanded: Mapping[str, Callable[..., str]] | None = None,
    prepare: Prepare | None = None,
    open_batch: bool = True,
    opset: int = DEFAULT,
) -> OnnxModel:
    """Return ``net`` as an ONNX model with a dynamic batch (unless not ``open_batch``), its weights not copied.

    The first axis of every input is open (N, or N_INPUT where lengths differ) and, with ``dynamic_size``, also
    height and width of images (H, W), where the net accepts other lengths; the other blobs follow
    (open_shapes.py).  ``opset`` is the file's (onnx_opsets.py).  ``fast_lrn`` replaces LRN nodes by a convolution,
    ``expanded`` any operator by the nodes that its function adds; ``prepare`` computes one input from images.  Raises
    LayerError where a layer cannot be expressed in ONNX, or needs the size it was given.
    """
    wanted = tuple(outputs if outputs is not None else net.outputs)
    for _, layer in net.steps(wanted):
        if "" in layer.node.top_names:
            raise layer.error(
                "cannot be written as ONNX: a blob without a name stands for none there; name its top"
            )
    for name in wanted:
        if net.graph.names[net.graph.value(name)] != name:
            raise IlgnetError(
                f"net {net.graph.name!r}: {name!r} is an input and, written in place, an output; ONNX needs two "
                "names, so give the in-place layer's top another one"
            )

    instead = {**({"LRN": lrn_as_convolution} if fast_lrn else {}), **(expanded or {})}

    def plan(batch: bool) -> OnnxModel:
        dims = open_shapes(net, wanted, batch=batch, dynamic_size=dynamic_size)
        writer = OnnxWriter(dims, wanted, instead, net.graph.names, opset)
        inputs = {name: value_info(name, dims[name]) for name in net.inputs_for(wanted)}
        if prepare is not None and prepare.blob in inputs:
            inputs[prepare.blob] = given = prepare.add(writer)
            if given.name in (*wanted, *(name for name in inputs if name != prepare.blob)):
                raise IlgnetError(
                    f"net {net.graph.name!r}: an input or output is called {given.name!r}, as the input that takes "
                    "images; give it another name in the prototxt, or drop with_preprocessing=True",
                    option="with_preprocessing",
                )
        for _, layer in net.steps(wanted):
            writer.add_layer(layer)
        return assemble(
            writer,
            net.graph.name,
            list(inputs.values()),
            [value_info(name, dims[name]) for name in wanted],
            metadata,
        )

    try:
        return plan(batch=open_batch)
    except NeedsFixedSizeError:
        # The batch may have been moved to an axis whose length a layer's nodes hold: then it stays fixed.
        return plan(batch=False)


def build_onnx(
    net: CaffeNet,
    *,
    outputs: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    dynamic_size: bool = False,
    opset: int = DEFAULT,
) -> onnx.ModelProto:
    """Return ``net`` as an ONNX model in memory; see `plan_onnx`."""
    model = plan_onnx(net, outputs=outputs, metadata=metadata, dynamic_size=dynamic_size, opset=opset)
    return model.proto()


def assemble(
    writer: OnnxWriter,
    name: str,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    metadata: Mapping[str, str] | None = None,
) -> OnnxModel:
    """Return the model that a writer has collected, without values that no node reads."""
    nodes = writer.protos()
    used = values_read(nodes) | {entry.name for entry in outputs}
    constants = [tensor for tensor in writer.constants if tensor.name in used]
    graph = helper.make_graph(nodes, name or "net", list(inputs), list(outputs), constants)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", writer.opset)],
        ir_version=ir_version(writer.opset),
        producer_name="ilgnet_repro",
        producer_version=__version__,
    )
    helper.set_model_props(model, dict(metadata or {}))
    return OnnxModel(model, {key: tensor for key, tensor in writer.weights.items() if key in used})


def values_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the names that nodes read, including those in their inner graphs (Scan, Loop, If)."""
    read: set[str] = set()
    for node in nodes:
        read.update(node.input)
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                read |= values_read(inner.node) | {entry.name for entry in inner.output}
    return read


def value_info(
    name: str, dims: Sequence[int | str | None], kind: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    """Describe a graph input or output."""
    return helper.make_tensor_value_info(name, kind, list(dims))


def tensor_header(name: str, tensor: torch.Tensor) -> onnx.TensorProto:
    """Return an initializer without its values."""
    return TensorProto(name=name, data_type=ELEMENT_TYPES[tensor.dtype], dims=list(tensor.shape))
