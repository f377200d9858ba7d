"""From a CaffeNet to ONNX, layer by layer: one walk that hands each layer a writer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ..errors import IlgnetError, LayerError
from ..layers.base import Layer, Shape
from ..net import CaffeNet
from ..version import __version__
from .open_shapes import Dim, Dims, open_shapes
from .precision import Reduced, reduced_blob
from .safetensors_file import tensor_bytes

# Opset 20 is in every release of ONNX Runtime since early 2024; its IR version is 9.
OPSET = 20
IR_VERSION = 9

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


class NeedsFixedSizeError(LayerError):
    """A layer's nodes need a length that is open."""


class OnnxWriter:
    """Collects nodes and initializers; the `OnnxGraph` that a layer's `onnx` speaks to.

    ``dims`` are the shapes of the net's blobs, with open axes as symbols or None.
    """

    def __init__(self, dims: Mapping[str, tuple[Dim, ...]], outputs: Iterable[str] = ()) -> None:
        self.dims: Dims = dict(dims)
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
        self._replaced: set[str] = set()  # values that an in-place layer replaces
        self._names = set(dims)  # those taken, by blobs, nodes' outputs and initializers

    # ------------------------------------------------------------------ what layers call

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.nodes(op, inputs, 1, **attributes)[0]

    def nodes(self, op: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        self._count += 1
        stem = self._unused(f"{self._layer.node.name if self._layer else 'net'}:{op}_{self._count}")
        names = [stem] if outputs == 1 else [f"{stem}.{index}" for index in range(outputs)]
        self.graph_nodes.append(helper.make_node(op, list(inputs), names, name=stem, **attributes))
        return names

    def constant(self, array: np.ndarray | np.generic) -> str:
        array = np.ascontiguousarray(array).reshape(np.shape(array))  # the first alone makes scalars 1-D
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = self._unused(f"const_{len(self._constants)}")
            self._constants[key] = name
            self.constants.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def parameter(self, name: str) -> str:
        if self._layer is None:
            raise IlgnetError("a parameter was asked for outside a layer")
        initializer = f"{self._layer.node.name}.{name}"
        reduced = reduced_blob(self._layer, name)
        if reduced is not None:
            return self._reduced(self._unused(initializer), reduced)
        blob = self._layer.blob(name).detach()
        key = (blob.data_ptr(), tuple(blob.shape))
        if blob.numel() and key in self._parameters:
            return self._parameters[key]
        initializer = self._parameters[key] = self._unused(initializer)
        self.weights[initializer] = blob.float().cpu()
        return initializer

    def shape(self, value: str) -> tuple[int | None, ...]:
        return tuple(length if isinstance(length, int) else None for length in self.dims[value])

    def size(self, value: str, axis: int) -> int:
        length = self.dims[value][axis]
        if not isinstance(length, int):
            raise self._needs_fixed_size()
        return length

    def _needs_fixed_size(self) -> NeedsFixedSizeError:
        name, type_ = (self._layer.node.name, self._layer.node.type) if self._layer else ("net", "ONNX")
        return NeedsFixedSizeError(name, type_, "its ONNX nodes hold the size; export without --dynamic-size")

    def _unused(self, name: str) -> str:
        """Return the name, or one that nothing else has; blobs and layers may be named like our own values."""
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name

    def _reduced(self, name: str, reduced: Reduced) -> str:
        """Keep the values as they are stored, and have the runtime widen them."""
        self.weights[name] = reduced.values
        if reduced.scale is None:
            return self.node("Cast", [name], to=TensorProto.FLOAT)
        scale = self._unused(f"{name}_scale")
        self.weights[scale] = reduced.scale
        return self.node("DequantizeLinear", [name, scale], axis=reduced.axis)

    # ------------------------------------------------------------------ the walk

    @property
    def last_nodes(self) -> list[onnx.NodeProto]:
        """The nodes that the last layer added."""
        return self.graph_nodes[self._first :]

    def add_layer(self, layer: Layer) -> None:
        """Have a layer add its nodes, then give its results the blobs' own names."""
        if layer.no_onnx:
            raise layer.error(f"cannot be written as ONNX: {layer.no_onnx}")
        self._layer, self._first = layer, len(self.graph_nodes)
        bottoms = [self._known(bottom) for bottom in layer.node.bottoms]
        try:
            results = layer.onnx(self, *bottoms)
        except TypeError as error:  # a class of a user's own that takes an open length for a number
            if not any(None in self.shape(bottom) for bottom in bottoms):
                raise
            raise self._needs_fixed_size() from error
        node = layer.node
        self._replaced |= {top for top, blob in zip(node.tops, node.top_names, strict=False) if top != blob}
        for top, result in zip(node.tops, results, strict=False):
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
        takes_name = made_here and result not in self.dims
        goes_on = made and result not in self._outputs and (top in self._outputs or result in self._replaced)
        if takes_name or goes_on:
            _rename(self.last_nodes if takes_name else self.graph_nodes, result, top)
            self._now[result] = top
        elif top in self._outputs:
            self.graph_nodes.append(
                helper.make_node("Identity", [result], [top], name=self._unused(f"{top}:Identity"))
            )
        else:
            self._now[top] = result
            self.dims.setdefault(result, self.dims[top])

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

    Open are the first axis of every input (N, or N_INPUT where lengths differ) and, with ``dynamic_size``, the
    sides of images (H, W), where the net takes other lengths; what layers make of them is declared as it is
    (open_shapes.py).  ``fast_lrn`` writes LRN nodes out (onnx_lrn.py); ``prepare`` makes one input's values
    from pictures.  Raises LayerError where a layer cannot be expressed in ONNX, or needs the size it was given.
    """
    wanted = tuple(outputs if outputs is not None else net.outputs)
    for _, layer in net.steps(wanted):
        if "" in layer.node.tops:
            raise layer.error(
                "cannot be written as ONNX: a blob without a name stands for none there; name its top"
            )
    for name in wanted:
        if net.graph.value(name) != name:
            raise IlgnetError(
                f"net {net.graph.name!r}: {name!r} is an input and, written in place, an output; ONNX needs two "
                "names, so give the in-place layer's top another one"
            )

    def plan(batch: bool) -> OnnxModel:
        dims = open_shapes(net, wanted, batch=batch, dynamic_size=dynamic_size)
        writer = OnnxWriter(dims, wanted)
        inputs = [value_info(name, dims[name]) for name in net.inputs_for(wanted)]
        if prepare is not None:
            inputs = [prepare.add(writer) if entry.name == prepare.blob else entry for entry in inputs]
        for _, layer in net.steps(wanted):
            writer.add_layer(layer)
        if fast_lrn:
            from .onnx_lrn import write_out_lrn

            write_out_lrn(writer)
        return assemble(
            writer, net.graph.name, inputs, [value_info(name, dims[name]) for name in wanted], metadata
        )

    try:
        return plan(batch=True)
    except NeedsFixedSizeError:
        # The batch may have been moved to an axis whose length a layer's nodes hold: then it stays fixed.
        return plan(batch=False)


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


def value_info(
    name: str, dims: Sequence[int | str | None], kind: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    """Describe a graph input or output."""
    return helper.make_tensor_value_info(name, kind, list(dims))


def tensor_header(name: str, tensor: torch.Tensor) -> onnx.TensorProto:
    """An initializer without its values."""
    return TensorProto(name=name, data_type=ELEMENT_TYPES[tensor.dtype], dims=list(tensor.shape))
