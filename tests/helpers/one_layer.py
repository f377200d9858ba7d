"""One layer as a net: run in torch, through ONNX and as written source, and its refusals."""

from __future__ import annotations

import importlib.util
import inspect
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.layers.support.base import Layer
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet

Shape = tuple[int, ...]
Arrays = Sequence[np.ndarray]


def layer_text(type_: str, shapes: Sequence[Shape], params: str = "", tops: int = 1) -> str:
    """Write a net of inputs in0, in1, ... and the layer ``op`` with tops top0, top1, ..."""
    lines = []
    for index, shape in enumerate(shapes):
        dims = " ".join(f"dim: {length}" for length in shape)
        name = f"in{index}"
        lines.append(
            f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}'
        )
    bottoms = " ".join(f'bottom: "in{index}"' for index in range(len(shapes)))
    names = " ".join(f'top: "top{index}"' for index in range(tops))
    lines.append(f'layer {{ name: "op" type: "{type_}" {bottoms} {names} {params} }}')
    return "\n".join(lines)


def build(type_: str, shapes: Sequence[Shape], params: str = "", tops: int = 1) -> CaffeNet:
    """Build that net with seeded weights."""
    return CaffeNet(load_graph(parse_net(layer_text(type_, shapes, params, tops))), seed=3)


def draw(seed: int, *shape: int) -> np.ndarray:
    """Draw float32 values of that shape; all are distinct, except by chance."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(net: CaffeNet, arrays: Arrays) -> list[np.ndarray]:
    """Run the net and return its tops."""
    with torch.no_grad():
        outputs = net({f"in{index}": torch.from_numpy(array) for index, array in enumerate(arrays)})
    return [outputs[f"top{index}"].numpy() for index in range(len(outputs))]


def run_onnx(net: CaffeNet, arrays: Arrays, *, dynamic_size: bool = False) -> list[np.ndarray]:
    """Run the net in ONNX Runtime; with ``dynamic_size`` only the channels are fixed."""
    model = build_onnx(net, dynamic_size=dynamic_size)
    if dynamic_size:
        for value in (*model.graph.input, *model.graph.output):
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if axis != 1:
                    dim.dim_param = f"{value.name}_{axis}"
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {entry.name: arrays[int(entry.name[2:])] for entry in session.get_inputs()}
    names = sorted((entry.name for entry in session.get_outputs()), key=lambda name: int(name[3:]))
    return session.run(names, given)


def run_source(net: CaffeNet, arrays: Arrays) -> list[np.ndarray]:
    """Run the net as written Python."""
    source = build_source(net, class_name="Written")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.py"
        path.write_text(source.text)
        spec = importlib.util.spec_from_file_location("written", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    written = module.Written()
    written.load_state_dict(source.state)
    inputs = net.inputs_for(net.outputs)
    with torch.no_grad():
        outputs = written(*(torch.from_numpy(arrays[int(name[2:])]) for name in inputs))
    return [outputs[f"top{index}"].numpy() for index in range(len(outputs))]


def assert_all_uses(
    net: CaffeNet, arrays: Arrays, expected: Arrays, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Check that torch, ONNX and written source give the expected tops, and the shape rule their shapes."""
    for use in (run, run_onnx, run_source):
        found = use(net, arrays)
        assert len(found) == len(expected)
        for index, (value, wanted) in enumerate(zip(found, expected, strict=True)):
            assert value.shape == wanted.shape == net.shapes[f"top{index}"]
            np.testing.assert_allclose(value, wanted, rtol=rtol, atol=atol, err_msg=use.__name__)


def dynamic_shapes(layer: Layer, axes: Sequence[dict[int, object]]) -> dict[str, object]:
    """Return each bottom's open axes by the name that the layer's `forward` gives it, as torch.export wants them."""
    left = list(axes)
    named: dict[str, object] = {}
    for name, parameter in inspect.signature(layer.forward).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            if left:  # without any torch.export does not know the name
                named[name], left = tuple(left), []
        else:
            named[name] = left.pop(0)
    assert not left
    return named


def gradients(net: CaffeNet, arrays: Arrays, *diffs: np.ndarray) -> list[np.ndarray | None]:
    """Return the inputs' gradients for gradients given to the tops."""
    inputs = [torch.from_numpy(array).requires_grad_() for array in arrays]
    outputs = net({f"in{index}": value for index, value in enumerate(inputs)})
    torch.autograd.backward(list(outputs.values()), [torch.from_numpy(diff) for diff in diffs])
    return [None if value.grad is None else value.grad.numpy() for value in inputs]
