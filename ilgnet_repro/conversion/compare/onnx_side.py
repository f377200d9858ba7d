"""An ONNX file as a side of a comparison: ONNX Runtime runs it, and every node's output can be asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from ...errors import IlgnetError
from ...formats.kinds import Kind, expect
from ..export_onnx import open_session
from .side import Arrays, Input, Side, graph_of


def read_model(path: Path) -> onnx.ModelProto:
    """Parse a model; external weights stay outside.  Raises IlgnetError if the file is none."""
    expect(path, Kind.ONNX, Kind.UNKNOWN, what="an ONNX model")
    try:
        # The form is stated: onnx would choose it by the suffix.
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise IlgnetError(f"{path}: is no ONNX file ({str(error).splitlines()[0]})") from error
    if not model.graph.node:
        raise IlgnetError(f"{path}: is no ONNX file (it holds no nodes)")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_location(path, tensor)
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph and of those inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _check_location(path: Path, tensor: onnx.TensorProto) -> None:
    """Refuse weights that are not in a file beside the model: older runtimes read any file, or memory, as such."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    folder = path.parent.resolve()
    try:
        target = (folder / location).resolve()
        is_beside = target.is_relative_to(folder) and target.is_file()
    except (OSError, ValueError):
        is_beside = False
    if not is_beside or Path(location).is_absolute():
        raise IlgnetError(f"{path}: keeps {tensor.name!r} in {location!r}, which is no file beside it")


def model_inputs(model: onnx.ModelProto) -> tuple[Input, ...]:
    """The graph's inputs, weights apart; lengths that are symbols are open."""
    weights = {entry.name for entry in model.graph.initializer}
    inputs = []
    for entry in model.graph.input:
        if entry.name not in weights:
            kind = entry.type.tensor_type
            dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
            inputs.append(Input(entry.name, dims, kind.elem_type == onnx.TensorProto.UINT8))
    return tuple(inputs)


def onnx_side(
    spec: str,
    kind: str,
    path: Path,
    *,
    names: Mapping[str, str] | None = None,
    model: onnx.ModelProto | None = None,
    one_at_a_time: bool = False,
) -> Side:
    """Open a model for comparison.

    ``names`` maps blobs to the model's own values (default: every value by its own name);
    ``one_at_a_time`` runs each sample apart, for graphs with a fixed batch of 1.
    """
    model = model if model is not None else read_model(path)
    made = [name for node in model.graph.node for name in node.output if name]
    values = names or {name: name for name in made}
    kept = {blob: value for blob, value in values.items() if value in set(made)}

    def run(inputs: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Arrays:
        asked = [kept[blob] for blob in wanted]
        session = open_session(_with_outputs(model, asked), path.parent)

        def call(given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            return session.run(asked, dict(given))

        if not one_at_a_time:
            return dict(zip(wanted, call(inputs), strict=True))
        count = len(next(iter(inputs.values())))
        rows = [
            call({name: value[index : index + 1] for name, value in inputs.items()}) for index in range(count)
        ]
        return {blob: np.concatenate([row[index] for row in rows]) for index, blob in enumerate(wanted)}

    held = {entry.key: entry.value for entry in model.metadata_props}
    return Side(spec, kind, model_inputs(model), tuple(kept), run, graph_of(held))


def _with_outputs(model: onnx.ModelProto, wanted: Sequence[str]) -> bytes:
    """The model with these values as its outputs: appended, since protobuf merges what comes twice."""
    more = onnx.ModelProto()
    present = {entry.name for entry in model.graph.output}
    more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    return model.SerializeToString() + more.SerializeToString()
