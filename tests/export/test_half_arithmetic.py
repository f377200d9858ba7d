"""float16 arithmetic in ONNX files: which layers have it, what it does to the logits, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from small_nets import SMALL_TEXT, net_of, write_weights
from zoo_weights import drawn_net, narrow_text

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.half_arithmetic import LIMIT
from ilgnet_repro.export.verify import seeded_inputs
from ilgnet_repro.runtime.net import CaffeNet


def element_types(model: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """Return each node's layer and operator -> the type of its first output."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {entry.name: entry.type.tensor_type.elem_type for entry in (*graph.value_info, *graph.output)}
    return {
        f"{node.name.rpartition(':')[0]} {node.op_type}": types[node.output[0]]
        for node in graph.node
        if node.op_type != "Cast"
    }


def run(path: Path, inputs: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


@pytest.mark.parametrize("opset", [13, 20])
def test_products_and_maxima_are_float16_and_the_rest_float32(opset: int, tmp_path) -> None:
    net = net_of(SMALL_TEXT)
    ir.save(net, tmp_path / "n.onnx", arithmetic="float16", opset=opset)
    model = onnx.load(str(tmp_path / "n.onnx"))
    onnx.checker.check_model(model, full_check=True)
    half, full = TensorProto.FLOAT16, TensorProto.FLOAT
    found = element_types(model)
    assert {key: found[key] for key in ("conv Conv", "relu Relu", "pool MaxPool", "ip Gemm", "prob Softmax")} == {
        "conv Conv": half, "relu Relu": half, "pool MaxPool": half, "ip Gemm": half, "prob Softmax": full,
    }  # fmt: skip
    kinds = {
        entry.name: entry.type.tensor_type.elem_type for entry in (*model.graph.input, *model.graph.output)
    }
    assert kinds == {"data": full, "prob": full}
    # One Cast in, one out.
    assert [node.op_type for node in model.graph.node].count("Cast") == 2
    inputs = seeded_inputs(net)
    (found,) = run(tmp_path / "n.onnx", inputs)
    assert 0 < np.abs(found - net(inputs)["prob"].detach().numpy()).max() < 5e-3


NETS = {
    "alexnet": ({}, ("norm1 LRN", "norm2 LRN")),
    "mobilenet": ({"fold": True}, ("pool6 GlobalAveragePool",)),
}


@pytest.mark.parametrize(("name", "options", "kept"), [(key, *row) for key, row in NETS.items()], ids=NETS)
def test_nets_of_the_zoo_change_little(name: str, options, kept, tmp_path) -> None:
    net = drawn_net(narrow_text(name))
    ir.save(net, tmp_path / "n.onnx", arithmetic="float16", **options)
    model = onnx.load(str(tmp_path / "n.onnx"))
    types = element_types(model)
    assert all(types[node] == TensorProto.FLOAT for node in kept)
    convolutions = {key: kind for key, kind in types.items() if key.endswith(" Conv")}
    assert set(convolutions.values()) == {TensorProto.FLOAT16}
    inputs = seeded_inputs(net)
    ((found,), (expected,)) = run(tmp_path / "n.onnx", inputs), net(inputs).values()
    assert 0 < np.abs(found - expected.detach().numpy()).max() <= 2 * LIMIT * float(expected.abs().max())


# Twice as large from layer to layer: `b` is past 65504 for images of 100.
LARGE = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }
layer { name: "a" type: "Convolution" bottom: "x" top: "a" convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "b" type: "Convolution" bottom: "a" top: "b" convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "c" type: "Convolution" bottom: "b" top: "c" convolution_param { num_output: 4 kernel_size: 1 } }
layer { name: "flat" type: "Flatten" bottom: "c" top: "flat" }
layer { name: "mean" type: "Reduction" bottom: "flat" top: "mean" reduction_param { axis: 1 operation: MEAN } }
"""


def large() -> CaffeNet:
    net = net_of(LARGE)
    with torch.no_grad():
        for name, value in (("a", 1.0), ("b", 3e3), ("c", 1e-5)):
            net.params[name][0].fill_(value)
    return net


def test_layers_past_the_range_keep_float32_by_name(tmp_path, capsys) -> None:
    net = large()
    ir.save(net, tmp_path / "n.caffemodel")
    given = ["convert", str(tmp_path / "n.caffemodel"), "--to", "onnx", "--arithmetic", "float16", "--verify"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "float16 arithmetic in 1 layers, inputs and outputs stay float32; the logits change by " in shown
    assert "float32 arithmetic is kept: b, c: values past the range of float16 (65504)" in shown
    assert "float32 arithmetic is kept: mean: sums of many values" in shown
    assert "float32 arithmetic is kept: flat: what it reads is float32" in shown
    types = element_types(onnx.load(str(tmp_path / "out" / "n.onnx")))
    assert {key: types[f"{key} Conv"] for key in "abc"} == {
        "a": TensorProto.FLOAT16, "b": TensorProto.FLOAT, "c": TensorProto.FLOAT,
    }  # fmt: skip


REFUSED = {
    "another precision": (
        "n.onnx", {"precision": "int8"}, "arithmetic='float16' takes weights in float16, not int8; omit precision=",
    ),
    "another format": (
        "n.safetensors", {}, "arithmetic= is for onnx files, not safetensors; convert to that separately",
    ),
    "OpenVINO": ("n.xml", {}, "arithmetic= is for onnx files, not openvino; convert to that separately"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_such_arithmetic_is_refused(file, options, message, tmp_path) -> None:
    with pytest.raises(IlgnetError) as error:
        ir.save(net_of(SMALL_TEXT), tmp_path / file, arithmetic="float16", **options)
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_an_unknown_arithmetic_is_refused(tmp_path, capsys) -> None:
    write_weights(tmp_path / "small.caffemodel")
    (tmp_path / "small.prototxt").write_text(SMALL_TEXT)
    with pytest.raises(IlgnetError, match=r"^arithmetic='float8': choose one of float32, float16$"):
        ir.convert(tmp_path / "small.caffemodel", to="onnx", arithmetic="float8")
    given = ["convert", str(tmp_path / "small.caffemodel"), "--to", "onnx", "--arithmetic", "float8"]
    assert main(given) == 1
    assert "invalid choice: 'float8'" in capsys.readouterr().err
