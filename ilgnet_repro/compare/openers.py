"""Opening a file as a backend: by its content, or by the reference tool named before a colon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..caffe.expected_kind import expect_or_named
from ..caffe.kinds import Kind
from ..engines.fast import fast
from ..errors import IlgnetError
from ..runtime.load import is_model_file, load_caffe, load_model_file
from ..runtime.net import CaffeNet
from ..runtime.pt2_file import read_pt2
from ..runtime.python_names import argument_name
from .backend import Arrays, Backend, Input, TextChoices, graph_of
from .onnx_backend import make_onnx_backend
from .reference_tools import open_caffe2onnx, open_onnx2torch, open_opencv


def open_backend(spec: str, choices: TextChoices | None = None) -> Backend:
    """Open weights (``.caffemodel``, ``.caffemodel.h5``, ``.safetensors``), ``.onnx`` or ``.pt2``, detected by content.

    A prefix selects a reference tool: ``opencv:``, ``caffe2onnx:`` (both for a caffemodel) and ``onnx2torch:``.
    Raises IlgnetError for a file that cannot be used, ReferenceToolError where the tool fails.
    ``choices`` are for Caffe weights.
    """
    tool, colon, rest = spec.partition(":")
    is_tool = bool(colon) and tool in _REFERENCE_TOOLS
    path = Path(rest if is_tool else spec)
    if not path.is_file():
        named = f", or name a reference tool ({', '.join(f'{name}:FILE' for name in _REFERENCE_TOOLS)})"
        what = "is a folder" if (rest or not is_tool) and path.is_dir() else "no such file"
        raise IlgnetError(f"{spec}: {what}; give the path of a file{named if colon else ''}")
    opener = _REFERENCE_TOOLS[tool] if is_tool else _opener(path)
    if opener is _open_caffe and is_model_file(path):
        opener = _open_model
    choices = choices or TextChoices()
    if choices.engine is not None and opener is not _open_caffe:
        raise IlgnetError(
            f"engine={choices.engine!r}: goes with Caffe weights, which {spec} is not; leave it out",
            option="engine",
        )
    return opener(spec, path, choices)


def _opener(path: Path) -> Callable[[str, Path, TextChoices], Backend]:
    return _OPENERS[expect_or_named(path, *_OPENERS, what=_WHAT)]


def make_net_backend(spec: str, kind: str, net: CaffeNet) -> Backend:
    """Return the backend of a net that this package runs, with every value as a blob."""

    def run(inputs: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Arrays:
        given = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
        with torch.inference_mode():
            return {name: value.numpy() for name, value in net(given, blobs=wanted).items()}

    steps = net.steps(net.outputs)
    inputs = tuple(Input(name, _open(net.shapes[name])) for name in net.inputs_for(net.outputs))
    tops = tuple(net.graph.names[top] for _, layer in steps if not layer.is_input for top in layer.node.tops)
    return Backend(spec, kind, inputs, tops, run, net.graph)


def _open(shape: Sequence[int]) -> tuple[int | None, ...]:
    """Return a net's input shape, with the batch open where it is stated as 1."""
    return tuple(None if index == 0 and length == 1 else length for index, length in enumerate(shape))


def _open_caffe(spec: str, path: Path, choices: TextChoices) -> Backend:
    net = load_caffe(
        path,
        prototxt=choices.prototxt,
        allow_missing=choices.allow_missing,
        level=choices.level,
        stages=choices.stages,
        input_shapes=choices.input_shapes,
        ignore_fields=choices.ignore_fields,
    )
    backend = replace(make_net_backend(spec, path.name.rpartition(".")[2], net), reads_text=True)
    return backend if choices.engine is None else _in_engine(backend, net, choices.engine, choices.device)


def _open_model(spec: str, path: Path, choices: TextChoices) -> Backend:
    model = load_model_file(path)
    inputs = tuple(Input(name, model.shapes[name]) for name in model.inputs)

    def run(given: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Arrays:
        with torch.inference_mode():
            found = model(
                {name: torch.from_numpy(np.asarray(value)) for name, value in given.items()}, blobs=wanted
            )
        return {name: value.numpy() for name, value in found.items()}

    return Backend(spec, "safetensors", inputs, model.outputs, run)


def _in_engine(backend: Backend, net: CaffeNet, engine: str, device: str) -> Backend:
    """Return the backend of a net that an engine computes."""
    made = fast(net, engine=engine, device=device)

    def run(inputs: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Arrays:
        given = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
        if not made.can_compute(wanted, {name: tuple(value.shape) for name, value in given.items()}):
            raise IlgnetError(f"engine={engine!r}: {made.engine} cannot compute these blobs", option="engine")
        return {name: value.cpu().numpy() for name, value in made(given, blobs=wanted).items()}

    return replace(backend, kind=f"{backend.kind} in {made.engine}", run=run)


def _open_pt2(spec: str, path: Path, choices: TextChoices) -> Backend:
    program = read_pt2(path)
    inputs = tuple(Input(name, lengths) for name, lengths in program.inputs.items())

    def run(given: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Arrays:
        found = program.run({argument_name(name): torch.from_numpy(value) for name, value in given.items()})
        return {name: found[name].numpy() for name in wanted}

    return Backend(spec, "pt2", inputs, program.outputs, run, graph_of(program.metadata))


def _open_onnx(spec: str, path: Path, choices: TextChoices) -> Backend:
    return make_onnx_backend(spec, "onnx", path)


_OPENERS: dict[Kind, Callable[[str, Path, TextChoices], Backend]] = {
    Kind.CAFFEMODEL: _open_caffe,
    Kind.CAFFEMODEL_H5: _open_caffe,
    Kind.SAFETENSORS: _open_caffe,
    Kind.ONNX: _open_onnx,
    Kind.PT2: _open_pt2,
}
_REFERENCE_TOOLS: dict[str, Callable[[str, Path, TextChoices], Backend]] = {
    "opencv": open_opencv,
    "caffe2onnx": open_caffe2onnx,
    "onnx2torch": open_onnx2torch,
}
_WHAT = (
    "a net that can be compared (.caffemodel, .caffemodel.h5, .safetensors, .onnx, .pt2, "
    f"or {', '.join(f'{name}:FILE' for name in _REFERENCE_TOOLS)})"
)
