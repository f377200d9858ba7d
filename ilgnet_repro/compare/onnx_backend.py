"""An ONNX file for `compare` only: every node's output can be requested from ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from ..runtime.onnx_net import open_session, read_model
from .backend import Arrays, Backend, Input, graph_of


def model_inputs(model: onnx.ModelProto) -> tuple[Input, ...]:
    """Return the graph's inputs without initializers; lengths that are symbols are open."""
    weights = {entry.name for entry in model.graph.initializer}
    inputs = []
    for entry in model.graph.input:
        if entry.name not in weights:
            kind = entry.type.tensor_type
            dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
            inputs.append(Input(entry.name, dims, kind.elem_type == onnx.TensorProto.UINT8))
    return tuple(inputs)


def make_onnx_backend(
    spec: str,
    kind: str,
    path: Path,
    *,
    names: Mapping[str, str] | None = None,
    model: onnx.ModelProto | None = None,
    one_at_a_time: bool = False,
) -> Backend:
    """Open a model for comparison.

    ``names`` maps blobs to the model's own values (default: every value by its own name);
    ``one_at_a_time`` runs each sample separately, for graphs with a fixed batch of 1.
    """
    model = model if model is not None else read_model(path)
    made = [name for node in model.graph.node for name in node.output if name]
    values = names or {name: name for name in made}
    kept = {blob: value for blob, value in values.items() if value in set(made)}

    def run(inputs: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Arrays:
        asked = [kept[blob] for blob in wanted]
        session = open_session(_with_outputs(model, asked), path.parent)

        def call(given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            found: list[np.ndarray] = session.run(asked, dict(given))
            return found

        if not one_at_a_time:
            return dict(zip(wanted, call(inputs), strict=True))
        count = len(next(iter(inputs.values())))
        rows = [
            call({name: value[index : index + 1] for name, value in inputs.items()}) for index in range(count)
        ]
        return {blob: np.concatenate([row[index] for row in rows]) for index, blob in enumerate(wanted)}

    held = {entry.key: entry.value for entry in model.metadata_props}
    return Backend(spec, kind, model_inputs(model), tuple(kept), run, graph_of(held))


def _with_outputs(model: onnx.ModelProto, wanted: Sequence[str]) -> bytes:
    """Return the model with these values as additional outputs; concatenated protobuf messages are merged."""
    more = onnx.ModelProto()
    present = {entry.name for entry in model.graph.output}
    more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    return model.SerializeToString() + more.SerializeToString()
