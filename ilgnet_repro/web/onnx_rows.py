"""An ONNX file's own nodes as rows: shapes by ONNX's shape inference, parameters, multiply-adds of products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from ..errors import excerpt
from .rows import Blob, OpenShape, Row, Rows, shorten

_SHAPE_VALUES = 1024  # elements of an initializer that may be a shape, which inference reads
# Indices, shapes and flags are no parameters.
_NO_PARAMETERS = {getattr(onnx.TensorProto, kind) for kind in ("INT64", "INT32", "BOOL", "STRING")}
_SHOWN = 8  # values of an attribute that is an array


def onnx_rows(model: onnx.ModelProto, path: Path) -> Rows:
    """Return the nodes of a model's main graph; a node with a graph inside (If, Loop, Scan) is one row."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    weights |= {tensor.values.name: tensor.values for tensor in graph.sparse_initializer}
    shapes, notes = _shapes(model)
    shapes |= {name: tuple(tensor.dims) for name, tensor in weights.items()}
    constants = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    rows = [_row(node, weights, constants, shapes) for node in graph.node if node.op_type != "Constant"]
    given = [Blob(one.name, shapes.get(one.name)) for one in graph.input if one.name not in weights]
    entry = [Row(blob.name, "input", _known(blob.shape), writes=(blob.name,)) for blob in given]
    whole = sum(_parameters(tensor) for tensor in weights.values())
    batch = max((blob.shape[0] or 1 for blob in given if blob.shape), default=1) or 1
    return Rows(
        graph.name or path.name, _form(model), (*entry, *rows), whole, sum(row.multiply_adds for row in rows) // batch,
        tuple(given), tuple(one.name for one in graph.output), tuple(notes),
    )  # fmt: skip


def _form(model: onnx.ModelProto) -> str:
    sets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    by = " ".join(filter(None, (model.producer_name, model.producer_version)))
    return excerpt(f"ONNX, opset {sets}" + (f", written by {by}" if by else ""), 200)


def _row(
    node: onnx.NodeProto,
    weights: Mapping[str, onnx.TensorProto],
    constants: set[str],
    shapes: Mapping[str, OpenShape],
) -> Row:
    inside = [name for attribute in node.attribute for name in _read_inside(attribute)]
    named = [name for name in (*node.input, *inside) if name]
    reads = tuple(dict.fromkeys(name for name in named if name not in weights and name not in constants))
    held = [weights[name] for name in dict.fromkeys(named) if name in weights]
    writes = tuple(name for name in node.output if name)
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return Row(
        node.name or (writes[0] if writes else node.op_type), f"{domain}{node.op_type}",
        tuple(shapes[name] for name in writes if name in shapes), sum(map(_parameters, held)),
        _multiply_adds(node, shapes), reads=reads, writes=writes, fields=shorten(_fields(node)),
        bottoms=tuple(shapes.get(name) for name in reads),
        blobs=tuple(Blob(tensor.name, tuple(tensor.dims)) for tensor in held),
    )  # fmt: skip


def _parameters(tensor: onnx.TensorProto) -> int:
    return 0 if tensor.data_type in _NO_PARAMETERS else prod(tensor.dims)


def _known(shape: OpenShape | None) -> tuple[OpenShape, ...]:
    return () if shape is None else (shape,)


def _read_inside(attribute: onnx.AttributeProto) -> Iterator[str]:
    """Yield the values of the outer graph that the graphs inside a node read."""
    left = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
    made: set[str] = set()
    read: list[str] = []
    while left:
        graph = left.pop()
        made.update(one.name for one in graph.input)
        made.update(one.name for one in graph.initializer)
        for node in graph.node:
            made.update(node.output)
            read.extend(node.input)
            for inner in node.attribute:
                left += [*([inner.g] if inner.HasField("g") else []), *inner.graphs]
        read.extend(one.name for one in graph.output)
    yield from (name for name in read if name and name not in made)


# ---------------------------------------------------------------------- shapes


def _shapes(model: onnx.ModelProto) -> tuple[dict[str, OpenShape], list[str]]:
    """Return the shapes that the file states and those that ONNX infers from them."""
    try:
        inferred = shape_inference.infer_shapes(_without_values(model), data_prop=True).graph
        notes = []
    except Exception as error:  # its exceptions share no base class
        inferred = model.graph
        notes = [
            f"shapes are only those that the file states: ONNX cannot infer them ({excerpt(str(error))})"
        ]
    found = {}
    for entry in (*inferred.value_info, *inferred.input, *inferred.output):
        if entry.type.HasField("tensor_type") and entry.type.tensor_type.HasField("shape"):
            dims = entry.type.tensor_type.shape.dim
            found[entry.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    return found, notes


def _without_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model in which large arrays have no values: a message is limited to 2 GB."""
    made = onnx.ModelProto()
    made.ir_version = model.ir_version
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    graph = made.graph
    graph.name = model.graph.name
    graph.node.extend(node for node in model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _SHAPE_VALUES and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return made


# ---------------------------------------------------------------------- cost and text


def _multiply_adds(node: onnx.NodeProto, shapes: Mapping[str, OpenShape]) -> int:
    """Return the multiply-adds of a convolution or product, 0 of another operator or where shapes are unknown."""
    known = [shapes.get(name) for name in (*node.input[:2], *node.output[:1])]
    if len(known) < 3 or any(shape is None for shape in known):
        return 0
    first, second, top = ([1 if length is None else length for length in shape or ()] for shape in known)
    if node.op_type in ("Conv", "ConvInteger"):
        return prod(top) * prod(second[1:])
    if node.op_type == "ConvTranspose":
        return prod(first) * prod(second[1:])
    if node.op_type in ("MatMul", "MatMulInteger") and first:
        return prod(top) * first[-1]
    if node.op_type == "Gemm" and len(first) == 2:
        transposed = any(one.name == "transA" and one.i for one in node.attribute)
        return prod(top) * first[0 if transposed else 1]
    return 0


def _fields(node: onnx.NodeProto) -> str:
    lines = [f"op_type: {node.op_type}"]
    if node.domain:
        lines.append(f"domain: {node.domain}")
    for what, names in (("input", node.input), ("output", node.output)):
        lines += [f"{what}: {name or '(none)'}" for name in names]
    return "\n".join([*lines, *(f"{one.name} = {_value(one)}" for one in node.attribute)])


def _value(attribute: onnx.AttributeProto) -> str:
    kind = onnx.AttributeProto
    if attribute.type == kind.TENSOR:
        return _tensor_text(attribute.t)
    if attribute.type == kind.STRING:
        return excerpt(attribute.s.decode("utf-8", "replace"))
    if attribute.type == kind.GRAPH:
        return f"graph of {len(attribute.g.node)} nodes"
    plain: dict[int, Any] = {
        kind.FLOAT: attribute.f, kind.INT: attribute.i, kind.FLOATS: attribute.floats, kind.INTS: attribute.ints,
    }  # fmt: skip
    value = plain.get(attribute.type)
    if value is None:
        return kind.AttributeType.Name(attribute.type).lower()
    return (
        f"{value:g}"
        if isinstance(value, float)
        else _listed(value)
        if isinstance(value, Iterable)
        else str(value)
    )


def _tensor_text(tensor: onnx.TensorProto) -> str:
    shape = "x".join(map(str, tensor.dims)) or "scalar"
    if prod(tensor.dims) > _SHOWN or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return f"tensor {shape}"
    try:
        return f"tensor {shape}: {_listed(np.ravel(numpy_helper.to_array(tensor)).tolist())}"
    except Exception:  # a damaged tensor can raise anything
        return f"tensor {shape}"


def _listed(values: Iterable[Any]) -> str:
    listed = list(values)
    shown = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in listed[:_SHOWN])
    return f"[{shown}{', ...' if len(listed) > _SHOWN else ''}]"
