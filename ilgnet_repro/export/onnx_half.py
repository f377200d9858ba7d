"""An ONNX model whose chosen layers compute in float16: Cast nodes where the type changes, once per value."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from .onnx_graph import OnnxModel, tensor_header, values_read

# Operators of products and maxima, and those that move values; the others of a layer stay float32.
_HALF_OPERATORS = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sum", "Sub", "Mul", "Neg", "Max", "Min", "Clip", "Relu", "LeakyRelu",
    "PRelu",
    "MaxPool", "GlobalMaxPool", "Concat", "Split", "Slice", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Pad",
    "Identity", "Expand", "Tile",
}  # fmt: skip
_LEAST = float(np.finfo(np.float16).tiny)


def compute_in_float16(model: OnnxModel, layers: Collection[str]) -> OnnxModel:
    """Return the model with the nodes of these layers in float16; its inputs and outputs stay float32."""
    return _Halving(model, layers).result()


class _Halving:
    """Goes through the nodes of a model once.

    A float value has a float32 name, its own, and a float16 name; each exists from the first node that reads it on.
    """

    def __init__(self, model: OnnxModel, layers: Collection[str]) -> None:
        self.model, self.layers = model, layers
        self.weights = dict(model.weights)
        self.constants = {entry.name: entry for entry in model.skeleton.graph.initializer}
        self.types = _element_types(model)
        self.names = set(self.types) | {node.name for node in model.skeleton.graph.node}
        self.half: dict[str, str] = {}  # value -> its name in float16
        self.missing: set[str] = set()  # values that exist in float16 only
        self.nodes: list[onnx.NodeProto] = []

    def result(self) -> OnnxModel:
        skeleton = onnx.ModelProto()
        skeleton.CopyFrom(self.model.skeleton)
        graph = skeleton.graph
        for node in graph.node:
            self._add(node)
        for entry in graph.output:
            self._need_full(entry.name)
        outputs = {entry.name for entry in graph.output}
        used = values_read(self.nodes) | outputs
        # Weights in float16 that a Cast widened for layers that now read them as they are.
        nodes = [node for node in self.nodes if node.op_type != "Cast" or used.intersection(node.output)]
        used = values_read(nodes) | outputs
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(entry for name, entry in self.constants.items() if name in used)
        return OnnxModel(skeleton, {name: value for name, value in self.weights.items() if name in used})

    def _add(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Cast" and self._type(node.input[0]) == TensorProto.FLOAT16:
            self.half[node.output[0]] = node.input[0]  # a weight in float16
            self.nodes.append(node)
            return
        if not self._is_half(node):
            for name in (*node.input, *values_read([node])):
                self._need_full(name)
            self.nodes.append(node)
            return
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.input[:] = [
            self._in_half(name) if self._type(name) == TensorProto.FLOAT else name for name in node.input
        ]
        for index, name in enumerate(node.output):
            if self._type(name) == TensorProto.FLOAT:
                made.output[index] = self.half[name] = self._unused(f"{name}:float16")
                self.missing.add(name)
        self.nodes.append(made)

    def _is_half(self, node: onnx.NodeProto) -> bool:
        return (
            node.op_type in _HALF_OPERATORS
            and node.name.rpartition(":")[0] in self.layers
            and self._type(node.output[0]) == TensorProto.FLOAT
            and all(self._fits(name) for name in node.input)
        )

    def _fits(self, name: str) -> bool:
        """Whether a constant or weight can be rounded to float16: it neither overflows nor becomes 0."""
        if name in self.constants:
            values = numpy_helper.to_array(self.constants[name])
        elif name in self.weights:
            values = self.weights[name].detach().float().numpy()
        else:
            return True
        if values.dtype != np.float32:
            return True
        with np.errstate(over="ignore"):
            is_finite = bool(np.isfinite(values.astype(np.float16)).all())
        # Of weights the small ones may become 0, beside larger ones.
        return is_finite and not (
            name in self.constants and np.any((values != 0) & (np.abs(values) < _LEAST))
        )

    def _in_half(self, name: str) -> str:
        if name not in self.half:
            half = self.half[name] = self._unused(f"{name}:float16")
            if name in self.constants:
                array = numpy_helper.to_array(self.constants[name]).astype(np.float16)
                self.constants[half] = numpy_helper.from_array(array, half)
            elif name in self.weights:
                self.weights[half] = self.weights[name].to(torch.float16)
            else:
                self._cast(name, half, TensorProto.FLOAT16)
        return self.half[name]

    def _need_full(self, name: str) -> None:
        if name in self.missing:
            self.missing.remove(name)
            self._cast(self.half[name], name, TensorProto.FLOAT)

    def _cast(self, given: str, made: str, kind: int) -> None:
        self.nodes.append(
            helper.make_node("Cast", [given], [made], name=self._unused(f"{made}:Cast"), to=kind)
        )

    def _type(self, name: str) -> int:
        return self.types.get(name, 0)

    def _unused(self, name: str) -> str:
        while name in self.names:
            name += "'"
        self.names.add(name)
        return name


def _element_types(model: OnnxModel) -> dict[str, int]:
    """Return the element type of each value of the graph."""
    headed = onnx.ModelProto()
    headed.CopyFrom(model.skeleton)
    headed.graph.initializer.extend(tensor_header(name, tensor) for name, tensor in model.weights.items())
    graph = onnx.shape_inference.infer_shapes(headed).graph
    types = {entry.name: entry.data_type for entry in graph.initializer}
    for entry in (*graph.input, *graph.output, *graph.value_info):
        types[entry.name] = entry.type.tensor_type.elem_type
    return types
