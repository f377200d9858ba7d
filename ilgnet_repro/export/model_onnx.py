"""A model that is not a Caffe net as ONNX: its traced program, each operator of torch as nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import IlgnetError
from ..files import json_text
from ..runtime.model import Model
from .aten_onnx import Call, find_writer
from .model_program import trace
from .model_safetensors import metadata
from .onnx_file import write_onnx
from .onnx_graph import OnnxModel, OnnxWriter, assemble, value_info
from .onnx_opsets import DEFAULT
from .onnx_preprocess import IMAGE_INPUT, add_preprocessing, find_image_input
from .open_shapes import BATCH
from .saving import Options, Progress


def write(model: Model, path: Path, options: Options, progress: Progress = None) -> list[Path]:
    """Write one file (past 2 GB a second one), with the metadata of the model's safetensors file."""
    return write_onnx(path, plan_model(model, options), progress=progress)


def plan_model(model: Model, options: Options | None = None) -> OnnxModel:
    """Return a model as an ONNX model whose batch is open unless the options state one.

    Raises IlgnetError for an operator that has no ONNX form here, by its name.
    """
    options = options or Options()
    program = trace(model, options.batch)
    first = options.batch or BATCH
    dims = {name: (first, *shape[1:]) for name, shape in model.shapes.items()}
    writer = OnnxWriter(dims, model.outputs, opset=options.opset or DEFAULT)
    stated = metadata(model)
    given = value_info(model.input_name, dims[model.input_name])
    source = model.input_name
    if options.with_preprocessing:
        how, blob = find_image_input({source: (1, *model.row)}, model.about.preprocessing, model.name)
        given = add_preprocessing(writer, blob, how, options.input_order)
        source = writer.value_named(blob)
        image = {"name": IMAGE_INPUT, "type": "uint8", "layout": "NHWC", "order": options.input_order}
        stated["picture"] = json_text(image)
    results = _add_nodes(writer, program, model.name, source)
    for name, value in results.items():
        writer.bind(name, value)
    outputs = [value_info(name, dims[name]) for name in results]
    return assemble(writer, model.name, [given], outputs, stated)


def _add_nodes(
    writer: OnnxWriter, program: torch.export.ExportedProgram, model: str, source: str
) -> dict[str, str]:
    """Add the nodes of a program, whose only input is the value ``source``; return its results by their names."""
    signature = program.graph_signature
    held = {**program.state_dict, **program.constants}
    tensors = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values: dict[Any, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = source if node.name not in tensors else _Stored(tensors[node.name], held)
        elif node.op == "call_function":
            values[node] = _call(writer, node, values, model)
        elif node.op == "output":
            names = program.call_spec.out_spec.context  # of a dict: its keys
            (results,) = node.args
            return {
                name: writer.node("Identity", [source]) if values[one] == source else values[one]
                for name, one in zip(names, results, strict=True)
            }
    raise IlgnetError(f"model {model}: its program returns nothing")


class _Stored:
    """A parameter, buffer or constant, which becomes an initializer where an operator reads it."""

    def __init__(self, name: str, held: Any) -> None:
        self.name, self.tensor = name.removeprefix("model."), held[name].detach()

    def handle(self, writer: OnnxWriter) -> str:
        if self.tensor.dtype == torch.float32 and self.tensor.dim():
            return writer.weight(self.name, self.tensor)
        return writer.constant(self.tensor.numpy())


def _call(writer: OnnxWriter, node: torch.fx.Node, values: dict[Any, Any], model: str) -> Any:
    """Add the nodes of one operator of the program and return the handle of its result."""
    name = str(node.target)

    def refused(why: str) -> IlgnetError:
        return IlgnetError(
            f"model {model}: cannot be written as ONNX: {why}; use to='pt2' or to='safetensors'", option="to"
        )

    schema = getattr(node.target, "_schema", None)
    write_nodes = find_writer(name)
    if schema is None or write_nodes is None:
        raise refused(f"it calls {name}, which has no ONNX form here")
    stated: dict[str, Any] = {}
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args):
            stated[argument.name] = node.args[index]
        else:
            stated[argument.name] = node.kwargs.get(argument.name, argument.default_value)

    def handle(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            found = values[value]
            return found.handle(writer) if isinstance(found, _Stored) else found
        if isinstance(value, list | tuple):
            return [handle(one) for one in value]
        return value

    shapes = {
        key: _shape(value.meta["val"])
        for key, value in stated.items()
        if isinstance(value, torch.fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)
    }
    result = node.meta.get("val")
    found = _shape(result) if isinstance(result, torch.Tensor) else ()
    try:
        return write_nodes(Call(writer, {key: handle(value) for key, value in stated.items()}, shapes, found))
    except NotImplementedError as error:
        raise refused(f"{name} with {error} has no ONNX form here") from error


def _shape(value: torch.Tensor) -> tuple[int | None, ...]:
    return tuple(length if isinstance(length, int) else None for length in value.shape)
