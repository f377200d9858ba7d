"""`cvdnn.readNetFromCaffe`: names, numbers, shapes and outputs are those of OpenCV 4's own reader."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import small_ssd
import torch
from opencv_reference import READS_CAFFE
from zoo_weights import drawn_net, narrow_text

import ilgnet_repro as ir
from ilgnet_repro import cvdnn
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import format_message
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.schema import caffe_pb2 as pb

RANDOM = np.random.default_rng(8)
with_opencv_4 = pytest.mark.skipif(
    not READS_CAFFE, reason="OpenCV 5 has no reader of Caffe nets to compare with"
)

TEXT = b"""
name: "two"
layer { name: "image" type: "Input" top: "data" top: "scale"
  input_param { shape { dim: 2 dim: 3 dim: 6 dim: 5 } shape { dim: 2 dim: 4 dim: 3 dim: 3 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv_top"
  convolution_param { num_output: 4 kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "conv_top" top: "conv_top" }
layer { name: "drop" type: "Dropout" bottom: "scale" top: "scale" }
layer { name: "sum" type: "Eltwise" bottom: "conv_top" bottom: "scale" top: "sum" }
layer { name: "halves" type: "Slice" bottom: "sum" top: "first" top: "second" slice_param { axis: 1 } }
layer { name: "dense" type: "InnerProduct" bottom: "first" top: "dense" inner_product_param { num_output: 7 } }
layer { name: "prob" type: "Softmax" bottom: "dense" top: "prob" }
layer { name: "other" type: "Power" bottom: "second" top: "other" power_param { scale: 2 } }
"""


def weights() -> bytes:
    blobs = {"conv": [(4, 3, 3, 3), (4,)], "dense": [(7, 18), (7,)]}
    net = pb.NetParameter(name="two")
    for name, shapes in blobs.items():
        layer = net.layer.add(name=name, type="Convolution" if name == "conv" else "InnerProduct")
        for shape in shapes:
            values = np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)
            layer.blobs.add(shape=pb.BlobShape(dim=shape), data=values.ravel())
    return net.SerializeToString()


WEIGHTS = weights()
INPUTS = {
    "data": RANDOM.standard_normal((2, 3, 6, 5)).astype(np.float32),
    "scale": RANDOM.standard_normal((2, 4, 3, 3)).astype(np.float32),
}


def both() -> tuple[Any, Any]:
    """The net by OpenCV's reader and by ours, with the same inputs."""
    made = tuple(m.readNetFromCaffe(bytearray(TEXT), bytearray(WEIGHTS)) for m in (cv2.dnn, cvdnn))
    for net in made:
        for name, values in INPUTS.items():
            net.setInput(values, name)
    return made


def own() -> Any:
    net = cvdnn.readNetFromCaffe(TEXT, WEIGHTS)
    for name, values in INPUTS.items():
        net.setInput(values, name)
    return net


# ------------------------------------------------------------------------------------------- as OpenCV


@with_opencv_4
def test_layers_are_numbered_and_named_as_by_opencv() -> None:
    theirs, ours = both()
    assert ours.getLayerNames() == tuple(theirs.getLayerNames())
    assert ours.getLayerTypes() == tuple(theirs.getLayerTypes())
    assert (
        ours.getUnconnectedOutLayersNames()
        == tuple(theirs.getUnconnectedOutLayersNames())
        == ("prob", "other")
    )
    assert ours.getUnconnectedOutLayers().tolist() == theirs.getUnconnectedOutLayers().tolist()
    assert ours.getUnconnectedOutLayers().dtype == theirs.getUnconnectedOutLayers().dtype
    for name in (*ours.getLayerNames(), "nothing"):
        assert ours.getLayerId(name) == theirs.getLayerId(name)
    for number in range(1, 9):
        mine, other = ours.getLayer(number), theirs.getLayer(number)
        assert (mine.name, mine.type) == (other.name, other.type)
        assert [one.size for one in mine.blobs] == [np.size(one) for one in other.blobs]
    assert ours.getLayersCount("ReLU") == theirs.getLayersCount("ReLU") == 1
    assert ours.empty() == theirs.empty() and cvdnn.Net().empty() == cv2.dnn.Net().empty()


def test_the_layers() -> None:
    """What the test before compares with OpenCV, by itself."""
    net = own()
    assert net.getLayerNames() == ("conv_top", "relu", "drop", "sum", "halves", "dense", "prob", "other")
    assert net.getUnconnectedOutLayers().tolist() == [7, 8]
    assert (net.getLayerId("conv"), net.getLayerId("image"), net.getLayersCount("Slice")) == (1, -1, 1)
    assert net.getLayer("halves").outputNameToIndex("second") == 1
    assert net.getLayer(0).type == "__NetInputLayer__"
    assert net.getLayer(0).outputNameToIndex("scale") == 1
    assert net.getLayer("conv").blobs[0].shape == (4, 3, 3, 3)
    assert repr(net.getLayer(2)) == "Layer('relu', 'ReLU')"


@with_opencv_4
@pytest.mark.parametrize("name", ["", "conv_top", "relu", "drop", "sum", "halves", "dense", "prob", "other"])
def test_the_output_of_a_layer_is_opencvs(name: str) -> None:
    theirs, ours = both()
    expected, found = (net.forward(*([name] if name else [])) for net in (theirs, ours))
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@with_opencv_4
def test_several_outputs_at_once_are_opencvs() -> None:
    theirs, ours = both()
    names = ["other", "prob", "dense"]
    for call in (lambda net: net.forward(names), lambda net: net.forward(outBlobNames=names)):
        expected, found = call(theirs), call(ours)
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    expected, found = (net.forwardAndRetrieve(["halves", "prob"]) for net in (theirs, ours))
    assert [[one.shape for one in outs] for outs in found] == [
        [one.shape for one in outs] for outs in expected
    ]


@with_opencv_4
def test_sizes_are_opencvs() -> None:
    theirs, ours = both()
    shapes = [(2, 3, 6, 5), (2, 4, 3, 3)]
    parts = [ours.getMemoryConsumption(number, shapes) for number in range(9)]
    assert parts == [tuple(theirs.getMemoryConsumption(number, shapes)) for number in range(9)]
    assert ours.getMemoryConsumption(shapes) == tuple(map(sum, zip(*parts, strict=True)))
    ids, below, above = theirs.getLayersShapes(shapes)
    mine = ours.getLayersShapes(shapes)
    assert list(mine[0]) == np.ravel(ids).tolist()
    for found, expected in zip(mine[1:], (below, above), strict=True):
        assert [[tuple(shape) for shape in one] for one in found][1:] == [
            [tuple(np.ravel(shape).tolist()) for shape in one] for one in expected
        ][1:]


@with_opencv_4
@pytest.mark.parametrize(("name", "size"), [("squeezenet", 64), ("googlenet", 224), ("mobilenet", 224)])
def test_nets_of_the_zoo_are_opencvs(name: str, size: int, tmp_path: Path) -> None:
    text = narrow_text(name)
    net = drawn_net(text)
    prototxt, caffemodel = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    prototxt.write_text(format_message(text))
    write_caffemodel(
        caffemodel, text, {key: [one.detach().numpy() for one in blobs] for key, blobs in net.params.items()}
    )
    image = RANDOM.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    results = []
    for module in (cv2.dnn, cvdnn):
        read = module.readNet(str(caffemodel), str(prototxt))
        read.setInput(module.blobFromImage(image, 0.017, (size, size), (104, 117, 123)))
        results.append((read.getLayerNames(), read.forward()))
    assert tuple(results[0][0]) == results[1][0]
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------- detections

SSD = {
    "filled up with zeros": (1, {}),
    "two images": (2, {}),
    "cut to the best": (2, {"keep_top_k": 3}),
    "none": (1, {"confidence": 0.999}),
}


@with_opencv_4
@pytest.mark.parametrize("name", SSD)
def test_detection_rows_are_opencvs(name: str, tmp_path: Path) -> None:
    images, options = SSD[name]
    files = small_ssd.write(tmp_path, **options)
    blob = RANDOM.uniform(-1, 1, (images, 3, 32, 40)).astype(np.float32)
    rows = []
    for module in (cv2.dnn, cvdnn):
        net = module.readNetFromCaffe(*files)
        net.setInput(blob)
        rows.append(net.forward())
    assert rows[0].shape == rows[1].shape
    assert bool(rows[1].any()) == (name != "none")
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-4)


def test_detections_are_sorted_by_score_and_filled_up(tmp_path: Path) -> None:
    """Without OpenCV: the rows of `ilgnet_repro.load_net`, which are Caffe's, in the other order."""
    files = small_ssd.write(tmp_path, keep_top_k=60, confidence=0.45)
    blob = RANDOM.uniform(-1, 1, (2, 3, 32, 40)).astype(np.float32)
    net = cvdnn.readNetFromCaffe(*files)
    net.setInput(blob)
    rows = net.forward("detection_out")[0, 0]
    caffes = ir.load_net(*files)(data=blob)["detection_out"].detach().numpy().reshape(-1, 7)
    assert len(rows) == 2 * 60
    assert 20 < len(caffes) < 120
    expected = sorted(caffes.tolist(), key=lambda row: (row[0], -row[2]))
    np.testing.assert_allclose(rows[: len(caffes)], expected, atol=1e-6)
    assert not rows[len(caffes) :].any()


# ------------------------------------------------------------------------------------------- inputs and outputs


def test_an_input_is_scaled_and_its_mean_subtracted() -> None:
    net = own()
    pixels = RANDOM.integers(0, 256, (2, 3, 6, 5), dtype=np.uint8)
    net.setInput(pixels, "data", 0.5, (1, 2, 3))
    found = net.forward("conv")
    net.setInput((pixels.astype(np.float32) - np.array([1, 2, 3])[:, None, None]) * 0.5, "data")
    np.testing.assert_allclose(found, net.forward("conv"), rtol=1e-5, atol=1e-4)


@with_opencv_4
def test_scale_and_mean_are_opencvs() -> None:
    theirs, ours = both()
    pixels = RANDOM.integers(0, 256, (2, 3, 6, 5), dtype=np.uint8)
    for net in (theirs, ours):
        net.setInput(pixels, "data", 0.5, (1, 2, 3))
    np.testing.assert_allclose(ours.forward("conv_top"), theirs.forward("conv_top"), rtol=1e-4, atol=1e-3)


def test_the_first_input_needs_no_name_and_the_array_is_the_callers() -> None:
    net = cvdnn.readNetFromCaffe(TEXT)
    values = np.ones((2, 3, 6, 5), np.float32)
    net.setInput(values)
    values[:] = 0
    assert (net._given["data"] == 1).all()


def test_what_a_layer_passes_on_is_a_copy() -> None:
    net = own()
    found = net.forward("drop")
    found[:] = 9
    assert np.array_equal(net.forward("drop"), INPUTS["scale"])


def test_other_batches_and_sizes() -> None:
    net = own()
    net.setInput(np.ones((5, 3, 6, 5), np.float32), "data")
    net.setInput(np.ones((5, 4, 3, 3), np.float32), "scale")
    assert net.forward().shape == (5, 2, 3, 3)
    assert net.forward("prob").shape == (5, 7)


def test_layers_and_blobs_are_found_by_their_own_names_too() -> None:
    net = own()
    assert np.array_equal(net.forward("conv"), net.forward("conv_top"))
    assert net.forward("conv").min() < 0 <= net.forward("relu").min()
    assert np.array_equal(net.forward("second"), net.forward(outputBlobs=[], outputName="halves")[1])


def test_names_of_inputs() -> None:
    net = own()
    net.setInputsNames(["a", "b"])
    net.setInput(INPUTS["data"], "a")
    net.setInput(INPUTS["scale"], "b")
    assert net.forward().shape == (2, 2, 3, 3)
    net.setInputShape("a", (1, 3, 6, 5))
    assert net._given["data"].shape == (1, 3, 6, 5)


def test_parameters_are_read_and_replaced() -> None:
    net = own()
    weight = net.getParam("dense", 0)
    assert np.array_equal(weight, net.getParam(6)) and np.array_equal(weight, net.getLayer("dense").blobs[0])
    net.setParam("dense", 0, np.zeros((7, 18)))
    bias = net.getParam("dense", 1)
    np.testing.assert_allclose(net.forward("dense"), [bias, bias], rtol=1e-6)


def test_work_and_times() -> None:
    net = own()
    shapes = [(2, 3, 6, 5), (2, 4, 3, 3)]
    # Two images: 3 x 3 x 4 outputs of 3 x 3 x 3 values each, and 7 of 2 x 3 x 3.
    assert net.getFLOPS(shapes) == 2 * (2 * 9 * 4 * 27 + 2 * 7 * 18)
    assert net.getFLOPS(1, shapes) == 2 * (2 * 9 * 4 * 27)
    net.forward()
    total, layers = net.getPerfProfile()
    assert total > 0
    assert layers.shape == (8, 1) and (layers > 0).any()


def test_backends_and_targets_are_accepted() -> None:
    net = own()
    expected = net.forward()
    net.enableFusion(False)
    net.enableWinograd(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.setPreferableBackend(cvdnn.DNN_BACKEND_OPENCV)
        net.setPreferableTarget(cvdnn.DNN_TARGET_CPU)
    with pytest.warns(
        UserWarning, match="DNN_TARGET_OPENCL: not available; the net is computed on the CPU in float32"
    ):
        net.setPreferableTarget(cvdnn.DNN_TARGET_OPENCL)
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="DNN_TARGET_CUDA: not available"):
            net.setPreferableTarget(cvdnn.DNN_TARGET_CUDA)
    assert np.array_equal(net.forward(), expected)


def test_constants_are_opencvs() -> None:
    names = [name for name in dir(cv2.dnn) if name.startswith(("DNN_", "SOFT_NMS", "SoftNMS"))]
    assert len(names) > 20
    for name in names:
        assert getattr(cvdnn, name) == getattr(cv2.dnn, name), name


# ------------------------------------------------------------------------------------------- reading


def test_every_way_to_read(tmp_path: Path) -> None:
    text, caffemodel = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    text.write_bytes(TEXT)
    caffemodel.write_bytes(WEIGHTS)
    buffers = [np.frombuffer(path.read_bytes(), np.uint8) for path in (text, caffemodel)]
    nets = [
        cvdnn.readNetFromCaffe(str(text), str(caffemodel)),
        cvdnn.readNetFromCaffe(text, caffemodel),
        cvdnn.readNetFromCaffe(prototxt=str(text), caffeModel=str(caffemodel)),
        cvdnn.readNetFromCaffe(bufferProto=buffers[0], bufferModel=buffers[1]),
        cvdnn.readNet(str(caffemodel), str(text)),
        cvdnn.readNet(str(text), str(caffemodel)),
        cvdnn.readNet(model=str(caffemodel), config=str(text), framework="caffe"),
        cvdnn.readNet("caffe", buffers[1], buffers[0]),
    ]
    outputs = []
    for net in nets:
        for name, values in INPUTS.items():
            net.setInput(values, name)
        outputs.append(net.forward("prob"))
    assert all(np.array_equal(one, outputs[0]) for one in outputs)


def test_only_the_inputs_that_an_output_needs_are_set() -> None:
    net = cvdnn.readNetFromCaffe(TEXT, WEIGHTS)
    net.setInput(INPUTS["data"])
    assert np.array_equal(net.forward("conv"), own().forward("conv"))
    with pytest.raises(IlgnetError, match="input 'scale' has no value"):
        net.forward("sum")


CROP = b"""
input: "x" input_shape { dim: 1 dim: 1 dim: 8 dim: 6 }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
  convolution_param { num_output: 1 kernel_size: 3 pad: 3 bias_term: false } }
layer { name: "crop" type: "Crop" bottom: "conv" bottom: "x" top: "crop" }
"""


@pytest.mark.parametrize(("rule", "offset"), [("bvlc", 0), ("geometry", 2)])
def test_the_rule_for_crops_is_chosen(rule: str, offset: int) -> None:
    net = cvdnn.readNetFromCaffe(CROP, crop=rule)
    net.setParam("conv", 0, np.eye(3)[1][:, None] * np.eye(3)[1])  # the middle of each window
    image = RANDOM.uniform(1, 2, (1, 1, 8, 6)).astype(np.float32)
    net.setInput(image)
    padded = np.pad(image[0, 0], 2)
    np.testing.assert_allclose(
        net.forward()[0, 0], padded[offset : offset + 8, offset : offset + 6], rtol=1e-6
    )


def test_other_formats_go_to_opencv(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    onnx.save(model, tmp_path / "net.onnx")
    assert isinstance(cvdnn.readNet(str(tmp_path / "net.onnx")), cv2.dnn.Net)
    assert cvdnn.readNetFromONNX is cv2.dnn.readNetFromONNX


def unread() -> Any:
    return cvdnn.readNetFromCaffe(TEXT)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no file": (lambda: cvdnn.readNetFromCaffe("missing.prototxt", "missing.caffemodel"), "missing"),
    "no arguments": (cvdnn.readNetFromCaffe, "readNetFromCaffe: takes prototxt and caffeModel, or bufferProto"),
    "a Crop of two rules": (
        lambda: cvdnn.readNetFromCaffe(CROP), "crop (Crop): has no offset: it is 0 in BVLC Caffe and 2, 2"),
    "text that is none": (lambda: cvdnn.readNetFromCaffe(b"layer {"), "<buffer>"),
    "a buffer of floats": (lambda: cvdnn.readNetFromCaffe(np.zeros(3)), "buffer of float64; give bytes"),
    "weights that are none": (lambda: cvdnn.readNetFromCaffe(TEXT, b"\xff\xff\xff"), "buffer.caffemodel"),
    "no format": (lambda: cvdnn.readNet("missing.xyz"), "readNet: "),
    "without weights": (
        lambda: [net := unread(), net.setInput(INPUTS["data"]), net.setInput(INPUTS["scale"], "scale"), net.forward()],
        "net 'two': was read without weights, which conv needs; give readNetFromCaffe the caffemodel"),
    "an unknown layer": (
        lambda: own().forward("prb"), "layer 'prb' is not in the net (did you mean prob?); it has "),
    "an unknown layer of several": (lambda: own().forward(["prob", "x"]), "layer 'x' is not in the net"),
    "a number beyond the layers": (lambda: own().getLayer(9), "layer 9 is not in the net; it has layers 1 to 8"),
    "an unknown input": (
        lambda: own().setInput(INPUTS["data"], "dta"), "input 'dta' is not in the net (did you mean data?)"),
    "no input": (
        lambda: cvdnn.readNetFromCaffe(TEXT, WEIGHTS).forward(), "input 'data' has no value; call setInput"),
    "a shape beyond any memory": (
        lambda: own().setInputShape("data", (10**6, 10**6, 3, 3)), "(1000000, 1000000, 3, 3) is not the shape of a blob"),
    "text as an input": (lambda: own().setInput("image.png"), "input 'data': is not an array of numbers"),
    "too few means": (
        lambda: own().setInput(INPUTS["data"],
        "data", 1, (1, 2)), "2 means for a blob of (2, 3, 6, 5); give one per channel"),
    "one shape for two inputs": (lambda: own().getMemoryConsumption((2, 3, 6, 5)), "1 shapes for 2 inputs; give one each"),
    "one name for two inputs": (lambda: own().setInputsNames(["a"]), "1 names for 2 inputs; give one each"),
    "a parameter that is not there": (
        lambda: own().getParam("relu"), "relu (ReLU): has 0 parameters, not one of number 0"),
    "a parameter of another size": (
        lambda: own().setParam("dense", 1, [1, 2]), "dense: parameter 1 has shape (7,), not (2,)"),
    "a backend": (lambda: own().setPreferableBackend(99), "backend 99 is not one of OpenCV's; use DNN_BACKEND_"),
    "a target": (lambda: own().setPreferableTarget(-1), "target -1 is not one of OpenCV's; use DNN_TARGET_"),
    "an empty net": (lambda: cvdnn.Net().forward(), "the net is empty; read one with readNetFromCaffe"),
    "a method for nets made in code": (
        lambda: own().addLayer, "Net.addLayer is not supported: layers come from the prototxt; edit that"),
    "a class for other nets": (
        lambda: cvdnn.TextDetectionModel_EAST, "cvdnn.TextDetectionModel_EAST is not supported: its nets are ONNX"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    work, message = REFUSED[name]
    with pytest.raises(IlgnetError, match=re.escape(message)):
        work()


def test_names_that_nothing_has() -> None:
    assert not hasattr(cvdnn, "nothing")
    assert not hasattr(own(), "nothing")
    assert not hasattr(cvdnn, "TextRecognitionModel")
