"""Half-precision caffemodels: those of OpenCV's shrinkCaffeModel read, and our own read by OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from opencv_reference import READS_CAFFE
from zoo_weights import drawn_net, narrow_text

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import open_caffemodel, write_caffemodel
from ilgnet_repro.caffe.prototxt import format_message
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.runtime.net import float_arrays

# DetectionOutput's rows change with the last bit of a score, so the two SSDs are compared before it.
NETS = {
    "squeezenet": None,
    "mobilenet": None,
    "resnet50": None,
    "alexnet": None,
    "mobilenet_ssd": ("mbox_loc", "mbox_conf_flatten"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that writes a narrow net of the zoo and returns its two paths."""
    folder = tmp_path_factory.mktemp("nets")

    def write(name: str):
        text, weights = folder / f"{name}.prototxt", folder / f"{name}.caffemodel"
        if not text.exists():
            net = narrow_text(name)
            text.write_text(format_message(net))
            write_caffemodel(weights, net, float_arrays(drawn_net(net)))
        return text, weights

    return write


def opencv_outputs(text, weights, net) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    random = np.random.default_rng(3)
    inputs = {
        name: random.uniform(-1, 1, (1, *net.shapes[name][1:])).astype(np.float32) for name in net.inputs
    }
    read = cv2.dnn.readNetFromCaffe(str(text), str(weights))
    for name, value in inputs.items():
        read.setInput(value, name)
    blobs = NETS[text.stem] or net.outputs
    expected = dict(zip(blobs, read.forward(list(blobs)), strict=True))
    return expected, net({name: torch.from_numpy(value) for name, value in inputs.items()}, blobs=blobs)


def check(expected, found) -> None:
    for blob, value in expected.items():
        ours = found[blob].detach().numpy().reshape(value.shape)
        np.testing.assert_allclose(ours, value, atol=1e-3 * np.abs(value).max(), rtol=0, err_msg=blob)


@pytest.mark.skipif(not READS_CAFFE, reason="OpenCV 5 no longer reads Caffe nets")
@pytest.mark.parametrize("name", NETS)
def test_files_of_shrinkcaffemodel_agree_with_opencv(saved, tmp_path, name) -> None:
    text, weights = saved(name)
    half = tmp_path / f"{name}.caffemodel"
    cv2.dnn.shrinkCaffeModel(str(weights), str(half))
    assert half.stat().st_size < 0.6 * weights.stat().st_size
    check(*opencv_outputs(text, half, ir.load_net(text, half)))


@pytest.mark.skipif(not READS_CAFFE, reason="OpenCV 5 no longer reads Caffe nets")
def test_ours_are_read_by_opencv_and_verified(saved, tmp_path) -> None:
    text, weights = saved("squeezenet")
    report = ir.convert(weights, text, to=["caffemodel"], out=tmp_path, precision="float16", verify=True)
    half = tmp_path / "squeezenet.caffemodel"
    assert half.stat().st_size < 0.55 * weights.stat().st_size
    assert report.is_verified
    assert report.notes[-1] == (
        "float16 weights in a caffemodel are read by OpenCV, NVIDIA's Caffe and this package; Caffe 1.0 cannot"
    )
    (cost,) = report.deviations
    assert 0 < cost.largest < 0.01 * cost.scale
    check(*opencv_outputs(text, half, ir.load_net(text, half)))


def test_every_weight_is_the_nearest_float16(saved, tmp_path) -> None:
    text, weights = saved("mobilenet")
    ir.save(ir.load_net(text, weights), tmp_path / "n.caffemodel", precision="float16")
    before, after = open_caffemodel(weights).layers, open_caffemodel(tmp_path / "n.caffemodel").layers
    kinds = set()
    for layer, half in zip(
        (one for one in before if one.blobs), (one for one in after if one.blobs), strict=True
    ):
        for index, blob in enumerate(half.blobs):
            values, kept = layer.blobs[index].array(), layer.type not in ("Convolution", "InnerProduct")
            np.testing.assert_array_equal(blob.array(), values if kept else values.astype(np.float16))
            assert blob.array().dtype == np.float32
            kinds.add((layer.type, str(blob.dtype)))
    assert kinds == {("Convolution", "float16"), ("BatchNorm", "float32"), ("Scale", "float32")}


REFUSED = [
    ("int8", "caffemodel", "precision= is for safetensors and onnx files, not caffemodel; convert to that separately"),
    ("bfloat16", "caffemodel", "precision= is for safetensors and onnx files, not caffemodel; convert to that separately"),
    (
        "float16", "hdf5",
        "precision= is for safetensors, onnx, caffemodel and coreml files, not hdf5; convert to that separately",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "to", "message"), REFUSED, ids=[f"{row[1]}-{row[0]}" for row in REFUSED]
)
def test_other_precisions_are_refused(saved, tmp_path, precision, to, message) -> None:
    text, weights = saved("squeezenet")
    with pytest.raises(IlgnetError) as caught:
        ir.convert(weights, text, to=[to], out=tmp_path, precision=precision)
    assert str(caught.value) == message


def test_a_weight_past_the_range_is_refused(saved, tmp_path) -> None:
    text, weights = saved("squeezenet")
    net = ir.load_net(text, weights)
    with torch.no_grad():
        net.params["conv1"][0].view(-1)[0] = -65_520
    with pytest.raises(IlgnetError) as caught:
        ir.save(net, tmp_path / "n.caffemodel", precision="float16")
    assert str(caught.value) == (
        "n.caffemodel: layer conv1, blob 0: a value of 6.55e+04 is past the range of float16; write float32"
    )
    assert not list(tmp_path.iterdir())
