"""Graphs that take images: the same pixels as `Preprocessing`, whatever the image's size."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from small_nets import SMALL_TEXT, write_weights

import ilgnet_repro as ir
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.onnx_graph import OnnxWriter, Prepare, assemble, plan_onnx, value_info
from ilgnet_repro.export.onnx_preprocess import add_preprocessing, find_image_input
from ilgnet_repro.reading.preprocessing import Preprocessing
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.onnx_net import open_session

MEAN = np.random.default_rng(2).uniform(80, 120, (3, 64, 64)).astype(np.float32)
# OpenCV's resize is fixed-point and so are the nodes: no difference.  pycaffe's is float64, the nodes' float32.
EXACT, FLOAT32 = 0.0, 1e-3

PATHS = {
    "whole": (Preprocessing(size=(57, 49), mean_value=(91.0, 99.46, 107.85)), FLOAT32),
    "whole, scaled RGB": (Preprocessing(size=(41, 57), mean_value=(127.5,), scale=0.0078125, order="RGB"), FLOAT32),
    "crop of a mean image": (
        Preprocessing(size=(57, 57), path="crop", resize=(64, 64), mean_image=MEAN, order="RGB"), EXACT,
    ),
    "crop, one mean, scaled": (
        Preprocessing(size=(57, 57), path="crop", resize=(60, 71), mean_value=(100.0,), scale=0.5), EXACT,
    ),
    "no crop, not square": (
        Preprocessing(size=(57, 49), path="crop", resize=(57, 49), mean_value=(1.0, 2.0, 3.0)), EXACT,
    ),
    "crop of the image's own size": (Preprocessing(size=(24, 24), path="crop", mean_value=(1.0, 2.0, 3.0)), EXACT),
}  # fmt: skip
SIZES = [(200, 300), (57, 49), (128, 128), (64, 64), (33, 41), (120, 25)]


def graph_of(how: Preprocessing, order: str) -> onnx.ModelProto:
    writer = OnnxWriter({"data": ("N", 3, *how.size)}, ["data"])
    image = add_preprocessing(writer, "data", how, order)
    return assemble(writer, "p", [image], [value_info("data", ["N", 3, *how.size])]).proto()


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("name", PATHS)
def test_the_pixels_are_those_of_preprocessing(name: str, order: str) -> None:
    how, bound = PATHS[name]
    model = graph_of(how, order)
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString())
    random = np.random.default_rng(5)
    for height, width in SIZES:
        images = random.integers(30, 256, (2, height, width, 3), dtype=np.uint8)
        bgr = images if order == "BGR" else images[..., ::-1]
        expected = np.stack([how(np.ascontiguousarray(image)) for image in bgr])
        found = session.run(None, {"picture": images})[0]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= bound * max(how.scale, 1e-9), (height, width)


def test_a_mean_image_without_a_resize_fixes_the_size() -> None:
    how = Preprocessing(size=(57, 57), path="crop", mean_image=MEAN)
    model = graph_of(how, "BGR")
    dims = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["N", 64, 64, 3]
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    found = open_session(model.SerializeToString()).run(None, {"picture": image})[0]
    np.testing.assert_array_equal(found[0], how(image[0]))


def test_the_converted_file_states_its_input(tmp_path) -> None:
    write_weights(tmp_path / "small.caffemodel")
    (tmp_path / "small.prototxt").write_text(SMALL_TEXT)
    how = Preprocessing(size=(9, 7), mean_value=(1.0, 2.0, 3.0))
    report = ir.convert(
        tmp_path / "small.caffemodel", to=("onnx",), verify=True, preprocessing=how,
        with_preprocessing=True, input_order="BGR",
    )  # fmt: skip
    assert "picture 2x240x320x3" in report.verified[0].inputs
    model = onnx.load(str(tmp_path / "small.onnx"))
    assert [entry.name for entry in model.graph.input] == ["picture"]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["picture"]) == {
        "name": "picture",
        "type": "uint8",
        "layout": "NHWC",
        "order": "BGR",
    }
    assert json.loads(metadata["preprocessing"])["mean_value"] == [1.0, 2.0, 3.0]


# ---------------------------------------------------------------------- a net with a blob called picture

CALLED_PICTURE = """
layer {{ name: "in" type: "Input" top: "{given}" input_param {{ shape {{ dim: 1 dim: 3 dim: 24 dim: 24 }} }} }}
layer {{ name: "more" type: "Input" top: "{other}" input_param {{ shape {{ dim: 1 dim: 3 dim: 2 dim: 4 }} }} }}
layer {{ name: "double" type: "Power" bottom: "{given}" top: "{between}" power_param {{ scale: 2 }} }}
layer {{ name: "shift" type: "Power" bottom: "{between}" top: "{last}" power_param {{ shift: 7 }} }}
layer {{ name: "abs" type: "AbsVal" bottom: "{other}" top: "spare" }}
"""
NAMED = {"given": "data", "other": "extra", "between": "a", "last": "b"}


def with_images(place: str) -> onnx.ModelProto:
    net = CaffeNet(build_graph(parse_net(CALLED_PICTURE.format(**NAMED | {place: "picture"}))))
    how = Preprocessing(size=(24, 24), path="crop", mean_value=(1.0, 2.0, 3.0))
    _, blob = find_image_input({name: net.shapes[name] for name in net.inputs}, how, "n")
    prepare = Prepare(blob, lambda writer: add_preprocessing(writer, blob, how, "BGR"))
    return plan_onnx(net, prepare=prepare).proto()


@pytest.mark.parametrize("place", ["given", "between"])
def test_an_inner_blob_may_be_called_picture(place: str) -> None:
    model = with_images(place)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.name for entry in model.graph.input] == ["picture", "extra"]
    image = np.random.default_rng(6).integers(0, 256, (2, 30, 33, 3), dtype=np.uint8)
    extra = np.zeros((1, 3, 2, 4), np.float32)
    found = open_session(model.SerializeToString()).run(["b"], {"picture": image, "extra": extra})[0]
    centre = image[:, 3:27, 4:28].astype(np.float32) - np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(found, centre.transpose(0, 3, 1, 2) * 2 + 7)


@pytest.mark.parametrize("place", ["other", "last"])
def test_an_input_or_output_called_picture_is_refused(place: str) -> None:
    with pytest.raises(IlgnetError) as caught:
        with_images(place)
    assert str(caught.value) == (
        "net '': an input or output is called 'picture', as the input that takes images; "
        "give it another name in the prototxt, or drop with_preprocessing=True"
    )


REFUSED = [
    ("unknown", {"data": (1, 3, 9, 7)}, None, "net 'n': its preprocessing is unknown; state it as preprocessing="),
    (
        "another size", {"data": (1, 3, 9, 7)}, Preprocessing(size=(8, 8)),
        "net 'n': no inputs take images of 3x8x8; with_preprocessing=True needs one",
    ),
    (
        "two images", {"a": (1, 3, 8, 8), "b": (1, 3, 8, 8)}, Preprocessing(size=(8, 8)),
        "net 'n': 2 inputs take images of 3x8x8; with_preprocessing=True needs one",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "how", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_net_that_does_not_accept_the_image_is_refused(shapes, how, message) -> None:
    with pytest.raises(IlgnetError) as caught:
        find_image_input(shapes, how, "n")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("how", "order", "message"),
    [
        (Preprocessing(size=(8, 8)), "GBR", "input_order='GBR': choose one of RGB, BGR"),
        (
            Preprocessing(size=(8, 8), path="crop", resize=(32, 32), mean_image=MEAN), "RGB",
            "preprocessing: mean image of (64, 64) and images of (32, 32) differ in size",
        ),
    ],
    ids=["order", "mean of another size"],
)  # fmt: skip
def test_invalid_preprocessing_is_refused(how, order, message) -> None:
    with pytest.raises(IlgnetError) as caught:
        graph_of(how, order)
    assert str(caught.value) == message
