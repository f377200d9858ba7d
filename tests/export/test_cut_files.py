"""`outputs`, `inputs` and `batch` of `save` and `convert`: every format holds the part, with the numbers of the whole."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_nets import net_of

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.to_python import load_module
from ilgnet_repro.runtime.net import CaffeNet

TEXT = """
name: "detector"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 stride: 2 weight_filler { type: "gaussian" } bias_filler { type: "constant" value: 0.1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "loc" type: "InnerProduct" bottom: "conv" top: "loc" inner_product_param {
  num_output: 16 weight_filler { type: "gaussian" } } }
layer { name: "conf" type: "InnerProduct" bottom: "conv" top: "conf" inner_product_param {
  num_output: 8 weight_filler { type: "gaussian" } } }
layer { name: "rows" type: "Reshape" bottom: "conf" top: "rows" reshape_param { shape { dim: 0 dim: 4 dim: 2 } } }
layer { name: "softmax" type: "Softmax" bottom: "rows" top: "softmax" softmax_param { axis: 2 } }
layer { name: "flat" type: "Flatten" bottom: "softmax" top: "flat" }
layer { name: "prior" type: "PriorBox" bottom: "conv" bottom: "data" top: "prior"
  prior_box_param { min_size: 3 variance: 0.1 } }
layer { name: "find" type: "DetectionOutput" bottom: "loc" bottom: "flat" bottom: "prior" top: "found"
  detection_output_param { num_classes: 2 keep_top_k: 3 nms_param { nms_threshold: 0.5 } } }
"""
NEEDS = {".xml": "openvino", ".tflite": "litert_torch"}
SUFFIXES = [
    *(".safetensors", ".caffemodel", ".caffemodel.h5", ".onnx", ".pt2", ".py"),
    *(
        pytest.param(
            suffix, marks=pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")
        )
        for suffix, module in NEEDS.items()
    ),
]
# Outputs, inputs, the batch, the inputs' shapes at which the file is run.
CASES = {
    "before DetectionOutput": (["loc", "flat"], [], None, {"data": (3, 3, 9, 7)}),
    "features that others read": (["conv", "loc"], [], None, {"data": (2, 3, 9, 7)}),
    "before the ReLU in place": (["conv@conv"], [], None, {"data": (2, 3, 9, 7)}),
    "the front cut off": (["loc", "flat"], ["conv"], None, {"conv": (2, 4, 4, 3)}),
    "a fixed batch": (["loc"], [], 3, {"data": (3, 3, 9, 7)}),
    "between two blobs, fixed": (["softmax"], ["conv"], 2, {"conv": (2, 4, 4, 3)}),
}


def detector() -> CaffeNet:
    text = TEXT.replace("num_output: 16", "num_output: 48").replace("num_output: 8", "num_output: 24")
    return net_of(text.replace("dim: 4 dim: 2 }", "dim: 12 dim: 2 }"))


def run_file(path: Path, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    if path.suffix == ".py":
        net = load_module(path, path.with_name(f"{path.stem}.weights.safetensors"), "Detector")
        found = net(*inputs.values())
    elif path.suffix == ".xml":
        compiled = (
            import_module("openvino").Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        )
        found = {port.get_any_name(): value for port, value in compiled(inputs).items()}
    elif path.suffix == ".tflite":
        interpreter = import_module("ai_edge_litert.interpreter").Interpreter(str(path))
        found = interpreter.get_signature_runner()(**{name: value.numpy() for name, value in inputs.items()})
    elif path.suffix == ".pt2":
        found = torch.export.load(path).module()(**inputs)
    else:
        prototxt = {"prototxt": path.with_name("part.prototxt")} if ".caffemodel" in path.name else {}
        found = ir.load(path, **prototxt)(inputs)
    return {
        name: np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
        for name, value in found.items()
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("outputs", "inputs", "batch", "shapes"), CASES.values(), ids=CASES)
def test_each_format_holds_the_part(tmp_path, suffix, outputs, inputs, batch, shapes) -> None:
    whole = detector()
    draw = np.random.default_rng(4)
    images = torch.from_numpy(draw.standard_normal((next(iter(shapes.values()))[0], 3, 9, 7)).astype("f"))
    with torch.no_grad():
        blobs = whole({"data": images}, blobs=[*outputs, *(name for name in inputs)])
    given = {name: images if name == "data" else blobs[name] for name in shapes}
    path = tmp_path / f"part{suffix}"
    if suffix == ".tflite":
        batch = len(next(iter(given.values())))  # its sizes are fixed
    ir.save(whole, path, outputs=outputs, inputs=inputs, batch=batch)
    found = run_file(path, given)
    assert set(found) == set(outputs)
    for name in outputs:
        np.testing.assert_allclose(found[name], blobs[name].numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("batch", "stated"), [(None, "N"), (3, 3)], ids=["open", "fixed"])
def test_onnx_states_the_batch(tmp_path, batch, stated) -> None:
    ir.save(detector(), tmp_path / "part.onnx", outputs=["loc"], batch=batch)
    dims = onnx.load(tmp_path / "part.onnx").graph.input[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param or dims[0].dim_value) == stated


def test_the_prototxt_states_the_batch_and_only_what_is_needed(tmp_path) -> None:
    ir.save(detector(), tmp_path / "part.caffemodel", outputs=["conv"], batch=5)
    text = parse_net((tmp_path / "part.prototxt").read_text())
    assert [layer.name for layer in text.layer] == ["data", "conv", "relu"]
    assert list(text.layer[0].input_param.shape[0].dim) == [5, 3, 9, 7]


def test_a_fixed_batch_refuses_another(tmp_path) -> None:
    ir.save(detector(), tmp_path / "part.pt2", outputs=["loc"], batch=2)
    with pytest.raises(Exception, match=r"2"):
        torch.export.load(tmp_path / "part.pt2").module()(data=torch.zeros(3, 3, 9, 7))


def test_what_is_known_of_a_net_stays_where_it_is_true(tmp_path) -> None:
    net = detector()
    net.about = replace(
        net.about, preprocessing=ir.Preprocessing(size=(9, 7), mean_value=(1.0, 2.0, 3.0)), labels=("a", "b")
    )
    kept = ir.load(ir.save(net, tmp_path / "a.safetensors", outputs=["found", "conv"])[0]).about
    assert (repr(kept.preprocessing), kept.labels) == (repr(net.about.preprocessing), ("a", "b"))
    features = ir.load(ir.save(net, tmp_path / "b.safetensors", outputs=["conv"])[0]).about
    assert (repr(features.preprocessing), features.labels) == (repr(net.about.preprocessing), ())
    rest = ir.load(ir.save(net, tmp_path / "c.safetensors", inputs=["conv@conv", "prior"])[0]).about
    assert (rest.preprocessing, rest.labels) == (None, ("a", "b"))


REFUSED = {
    "a name": (
        {"outputs": ["locc"]},
        "blob 'locc' is not in net 'detector' (did you mean loc?); it has data, ",
    ),
    "twice": ({"outputs": ["loc", "loc"]}, "outputs: blob 'loc' is given twice; give it once"),
    "no name": ({"outputs": [""]}, "outputs=['']: give names of blobs"),
    "a number": ({"inputs": 3}, "inputs=3: give names of blobs"),
    "no batch": ({"batch": 0}, "batch=0: give an integer from 1 to 65536"),
    "half a batch": ({"batch": 1.5}, "batch=1.5: give an integer from 1 to 65536"),
    "an input nothing reads": (
        {"outputs": ["loc"], "inputs": ["rows"]},
        "blob 'rows' is not needed: no output depends on it; omit it from the inputs",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(tmp_path, options, message) -> None:
    with pytest.raises(IlgnetError) as error:
        ir.save(detector(), tmp_path / "part.onnx", **options)
    assert str(error.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_a_layer_states_is_refused(tmp_path) -> None:
    net = net_of(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 } } }\n'
        'layer { name: "r" type: "Reshape" bottom: "x" top: "r" reshape_param { shape { dim: 2 dim: 12 } } }\n'
    )
    with pytest.raises(IlgnetError) as error:
        ir.save(net, tmp_path / "r.onnx", batch=3)
    assert str(error.value) == "batch=3: net '' takes one batch only (x 2x3x4); omit it"
    ir.save(net, tmp_path / "r.onnx", batch=2)


def test_the_command_cuts(tmp_path, capsys) -> None:
    net = detector()
    ir.save(net, tmp_path / "net.caffemodel")
    out = tmp_path / "out"
    given = [
        str(tmp_path / "net.caffemodel"),
        "--to",
        "onnx,pt2,python,safetensors,caffemodel,hdf5",
        "--out",
        str(out),
    ]
    assert (
        main(["convert", *given, "--outputs", "loc, flat", "--inputs", "conv", "--batch", "2", "--verify"])
        == 0
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert "cut: 5 of 10 layers, from conv to flat, loc" in shown
    assert main(["convert", *given, "--outputs", "locc"]) == 1
    assert "blob 'locc' is not in net 'detector' (did you mean loc?)" in capsys.readouterr().err
    assert main(["convert", *given, "--batch", "0"]) == 1
    assert "--batch: '0': give an integer from 1 to" in capsys.readouterr().err


def test_a_part_is_folded(tmp_path) -> None:
    net = net_of(
        TEXT.replace(
            'layer { name: "relu"',
            'layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { filler { type: "gaussian" } } }\n'
            'layer { name: "relu"',
        )
        .replace("num_output: 16", "num_output: 48")
        .replace("num_output: 8", "num_output: 24")
        .replace("dim: 4 dim: 2 }", "dim: 12 dim: 2 }")
    )
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 3, 9, 7)).astype("f"))
    made = ir.load(ir.save(net, tmp_path / "a.safetensors", outputs=["conv", "loc"], fold=True)[0])
    assert "scale" not in [node.name for node in made.graph]
    expected = net(x, blobs=["conv", "loc"])
    for name, value in made(x).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)
