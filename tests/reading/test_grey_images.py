"""Nets of one channel: images read as grey, as Caffe's `classify.py --gray` and `convert_imageset --gray` read them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import DataError
from ilgnet_repro.reading.preprocessing import Preprocessing

NET = """name: "grey"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 9 dim: 7 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
"""
PIXELS = np.random.default_rng(5).integers(0, 256, (9, 7, 3), np.uint8)  # BGR


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    weights = np.random.default_rng(6).standard_normal((2, 63)).astype(np.float32) / 99
    write_caffemodel("net.caffemodel", parse_net(NET), {"ip": [weights, np.zeros(2, np.float32)]})
    cv2.imwrite("a.png", PIXELS)
    cv2.imwrite("grey.png", PIXELS[:, :, 1])
    return weights


def luma(pixels: np.ndarray) -> np.ndarray:
    """What scikit-image's rgb2gray computes, on a scale of 0 to 255."""
    blue, green, red = (pixels[:, :, index].astype(np.float64) for index in range(3))
    return 0.2125 * red + 0.7154 * green + 0.0721 * blue


@pytest.mark.parametrize("source", ["file", "array"])
def test_whole_images_as_pycaffe_reads_them(here, source: str) -> None:
    how = Preprocessing(size=(9, 7), order="GRAY", mean_value=(33.0,), scale=0.5)
    found = how("a.png" if source == "file" else PIXELS)
    np.testing.assert_allclose(found, (luma(PIXELS)[None] - 33) / 2, atol=1e-4)
    if source == "file":
        np.testing.assert_allclose(how("grey.png"), (PIXELS[None, :, :, 1] - 33.0) / 2, atol=1e-4)


def test_crops_as_convert_imageset_stores_them(here) -> None:
    mean = np.arange(63, dtype=np.float32).reshape(1, 9, 7)
    how = Preprocessing(size=(5, 5), path="crop", resize=(9, 7), order="GRAY", mean_image=mean)
    weights = np.array([0.114, 0.587, 0.299])  # OpenCV's, rounded to integers
    expected = (np.rint(PIXELS @ weights) - mean[0])[2:7, 1:6]
    for image in ("a.png", PIXELS):
        np.testing.assert_allclose(how(image)[0], expected, atol=1)  # its fixed point may round the other way


def test_score_reads_grey_images(here, capsys) -> None:
    assert main(["score", "a.png", "--weights", "net.caffemodel", "--mean-value", "33", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(row["outputs"]["ip"], here @ (luma(PIXELS).ravel() - 33), atol=1e-3)
    how = Preprocessing(size=(9, 7), order="GRAY", mean_value=(33.0,))
    assert ir.score("a.png", "net.caffemodel", preprocessing=how)[0].outputs["ip"] == pytest.approx(
        row["outputs"]["ip"]
    )
    convert = ["convert", "net.caffemodel", "--mean-value", "33", "--out", "o"]
    assert main([*convert, "--to", "safetensors,onnx"]) == 0
    for written in ("o/net.safetensors", "o/net.onnx"):
        capsys.readouterr()
        assert main(["score", "a.png", "--weights", written, "--json"]) == 0
        np.testing.assert_allclose(
            json.loads(capsys.readouterr().out)["outputs"]["ip"], row["outputs"]["ip"], atol=1e-4
        )


REFUSED = {
    "order": (
        ["score", "a.png", "--weights", "net.caffemodel", "--order", "BGR"],
        "--order BGR: the net takes images of 1 channel; leave it out",
    ),
    "mean": (
        ["score", "a.png", "--weights", "net.caffemodel", "--mean-value", "1,2,3"],
        "preprocessing: mean_value (1.0, 2.0, 3.0): give no number, one, or one per channel (blue, green, red)",
    ),
    "in the graph": (
        ["convert", "net.caffemodel", "--to", "onnx", "--with-preprocessing", "--mean-value", "33", "--out", "o"],
        "net 'grey': its images are grey (1 channel), and --with-preprocessing takes colour images; leave it out",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_one_channel_is_refused(here, capsys, arguments: list[str], message: str) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"ilgnet: {message}"


def test_a_colour_mean_image_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"mean image of shape \(3, 9, 7\): grey images need \(1, height, width\)"
    ):
        Preprocessing(size=(5, 5), path="crop", order="GRAY", mean_image=np.zeros((3, 9, 7), np.float32))
