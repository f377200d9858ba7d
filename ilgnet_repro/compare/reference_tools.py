"""Reference tools, independent readers of Caffe or ONNX: OpenCV 4, caffe2onnx and onnx2torch.

The last two run in separate processes, because they need other settings of Python; `make crosscheck` installs
them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .. import opencv as cv2
from ..caffe.caffemodel import open_caffemodel
from ..caffe.fork_fields import without_marks
from ..caffe.graph import Graph
from ..caffe.graph_build import build_graph
from ..caffe.prototxt import format_message
from ..errors import IlgnetError
from ..files import utf8_path
from ..runtime.find import find_net
from ..runtime.onnx_net import read_model
from ..runtime.plan import plan_net
from ..schema import caffe_pb2 as pb
from .backend import Arrays, Backend, Input, ReferenceToolError, TextChoices, graph_of
from .onnx_backend import make_onnx_backend, model_inputs

SECONDS = 1800  # caffe2onnx takes seven minutes for 600 MB of weights
_INSTALL = "run `make crosscheck`, or pip install --no-deps caffe2onnx==2.0.1 onnx2torch torchvision"


def _read(path: Path, choices: TextChoices) -> tuple[pb.NetParameter, Graph]:
    """Return the net of a caffemodel in the form that old tools read: modern layers of phase TEST only."""
    net = find_net(open_caffemodel(path), choices.prototxt).net
    graph = build_graph(net, level=choices.level, stages=choices.stages)
    text = pb.NetParameter(name=net.name)
    for node in graph.layers:
        text.layer.add().CopyFrom(node.layer)
    return text, graph


def _inputs(graph: Graph) -> tuple[Input, ...]:
    plan = plan_net(graph)
    return tuple(Input(name, (None, *plan.shapes[name][1:])) for name in plan.inputs)


# ---------------------------------------------------------------------- OpenCV


def open_opencv(spec: str, path: Path, choices: TextChoices) -> Backend:
    """Open a caffemodel with OpenCV 4's ``readNetFromCaffe`` (5 has none)."""
    text, graph = _read(path, choices)
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise ReferenceToolError(
            f"{spec}: OpenCV {cv2.__version__} has no readNetFromCaffe; install opencv-python-headless<5"
        )
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "net.prototxt")
        written.write_text(format_message(without_marks(text)))
        try:
            with utf8_path(path) as name:
                net = cv2.dnn.readNetFromCaffe(str(written), name)
        except cv2.error as error:
            raise ReferenceToolError(
                f"{spec}: OpenCV {cv2.__version__} cannot read it ({_reason(error)})"
            ) from error
    net.enableFusion(False)  # so that every layer's values can be read
    known = set(net.getLayerNames())
    blobs = {graph.names[top]: node.name for node in graph for top in node.tops[:1] if node.name in known}
    inputs = _inputs(graph)

    def run(given: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Arrays:
        try:
            for entry in inputs:
                net.setInput(given[entry.name], entry.name)
            found = net.forward([blobs[blob] for blob in wanted])
        except cv2.error as error:
            raise ReferenceToolError(
                f"{spec}: OpenCV {cv2.__version__} cannot run it ({_reason(error)})"
            ) from error
        return {blob: np.array(value) for blob, value in zip(wanted, found, strict=True)}

    return Backend(spec, f"OpenCV {cv2.__version__}", inputs, tuple(blobs), run, graph, reads_text=True)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


# ---------------------------------------------------------------------- caffe2onnx


def open_caffe2onnx(spec: str, path: Path, choices: TextChoices) -> Backend:
    """Open a caffemodel with caffe2onnx 2.0.1 and run its graph in ONNX Runtime.

    caffe2onnx needs protobuf's Python implementation, and declares the newest opset for nodes of opset 11, which is
    corrected here.  Its batch is 1, so samples run one by one.
    """
    _need("caffe2onnx", spec)
    text, graph = _read(path, choices)
    for layer in text.layer:
        if layer.type == "Input":
            for shape in layer.input_param.shape:
                shape.dim[0] = 1
    with tempfile.TemporaryDirectory() as folder:
        written, made = Path(folder, "net.prototxt"), Path(folder, "net.onnx")
        written.write_text(format_message(without_marks(text)))
        _run(
            spec,
            [
                "-m",
                "caffe2onnx.convert",
                f"--prototxt={written}",
                f"--caffemodel={path.resolve()}",
                f"--onnx={made}",
            ],
            {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
        )
        if not made.is_file():
            raise ReferenceToolError(f"{spec}: caffe2onnx wrote no file and gave no reason")
        model = read_model(made)
    model.ir_version = 6
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", 11))
    made_values = {name for node in model.graph.node for name in node.output}
    names = {
        graph.names[top]: node.name for node in graph for top in node.tops[:1] if node.name in made_values
    }
    own = [entry.name for entry in model_inputs(model)]
    backend = make_onnx_backend(spec, "caffe2onnx 2.0.1", path, names=names, model=model, one_at_a_time=True)
    inputs = _inputs(graph)

    def run(given: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Arrays:
        renamed = {name: given[entry.name] for name, entry in zip(own, inputs, strict=True)}
        return _guarded(spec, lambda: backend.run(renamed, wanted))

    return Backend(spec, backend.kind, inputs, backend.blobs, run, graph, reads_text=True)


# ---------------------------------------------------------------------- onnx2torch


def open_onnx2torch(spec: str, path: Path, choices: TextChoices) -> Backend:
    """Open an ONNX file with onnx2torch and run it in torch (run_onnx2torch.py)."""
    _need("onnx2torch", spec)
    _need("torchvision", spec)
    model = read_model(path)
    blobs = tuple(name for node in model.graph.node for name in node.output if name)

    def run(given: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Arrays:
        with tempfile.TemporaryDirectory() as folder:
            inputs, outputs = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
            save_arrays(inputs, {"names": list(given), "wanted": list(wanted), **_numbered(given.values())})
            script = Path(__file__).with_name("run_onnx2torch.py")
            _run(spec, [str(script), str(path.resolve()), str(inputs), str(outputs)], {})
            with np.load(outputs) as file:
                return {name: file[f"value_{index}"] for index, name in enumerate(wanted)}

    held = {entry.key: entry.value for entry in model.metadata_props}
    return Backend(spec, "onnx2torch", model_inputs(model), blobs, run, graph_of(held))


def _numbered(values: Iterable[np.ndarray]) -> dict[str, Any]:
    return {f"value_{index}": value for index, value in enumerate(values)}


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write an npz file."""
    np.savez(path, **arrays)


# ---------------------------------------------------------------------- processes


def _need(package: str, spec: str) -> None:
    if find_spec(package) is None:
        raise ReferenceToolError(f"{spec}: {package} is not installed; {_INSTALL}")


def _run(spec: str, arguments: list[str], environment: Mapping[str, str]) -> None:
    """Run Python in a subprocess; its last line of output is the reason of a failure."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ReferenceToolError(f"{spec}: took more than {SECONDS} seconds") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ReferenceToolError(
            f"{spec}: failed ({lines[-1][:200] if lines else f'exit {done.returncode}'})"
        )


def _guarded(spec: str, call: Callable[[], Arrays]) -> Arrays:
    try:
        return call()
    except IlgnetError as error:
        raise ReferenceToolError(f"{spec}: {error}") from error
    except Exception as error:  # ONNX Runtime's own, which share no base class
        raise ReferenceToolError(f"{spec}: ONNX Runtime cannot run its graph ({_reason(error)})") from error
