"""`caffe.Classifier` and `caffe.Detector`: images and windows through a dense layer, against its formula."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from ilgnet_repro import pycaffe as caffe
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.pycaffe import io

RANDOM = np.random.default_rng(9)
MEAN, SCALE, RAW = np.array([3.0, 5.0, 7.0]), 0.5, 255
SETTINGS = {"mean": MEAN, "input_scale": SCALE, "raw_scale": RAW, "channel_swap": (2, 1, 0)}
# A sum of 108 products of about 1 in float32 is off by up to 5e-6, however close to zero it ends.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 6 dim: 6 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 5
  weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 2 } } }
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    text, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    text.write_text(NET)
    caffe.Net(str(text), caffe.TEST).save(str(weights))
    return str(text), str(weights)


def expected(net: caffe.Net, crop: np.ndarray) -> np.ndarray:
    """The dense layer of one prepared crop (height, width, channels) in RGB."""
    prepared = (crop[:, :, ::-1].transpose(2, 0, 1) * RAW - MEAN[:, None, None]) * SCALE
    weight, bias = (blob.data.astype(float) for blob in net.params["ip"])
    return weight @ prepared.ravel() + bias


def image(height: int, width: int) -> np.ndarray:
    return RANDOM.uniform(0, 1, (height, width, 3)).astype(np.float32)


def test_whole_images(files: tuple[str, str]) -> None:
    net = caffe.Classifier(*files, **SETTINGS)
    images = [image(6, 6) for _ in range(5)]  # more than a batch
    found = net.predict(images, oversample=False)
    assert found.shape == (5, 5)
    np.testing.assert_allclose(found, [expected(net, one) for one in images], **CLOSE)


def test_the_centre_of_images_that_were_resized(files: tuple[str, str]) -> None:
    net = caffe.Classifier(*files, image_dims=(9, 8), **SETTINGS)
    one = image(15, 13)
    sized = io.resize_image(one, (9, 8))
    np.testing.assert_allclose(net.predict([one], False), [expected(net, sized[1:7, 1:7])], **CLOSE)


def test_the_mean_over_ten_crops(files: tuple[str, str]) -> None:
    net = caffe.Classifier(*files, image_dims=[9, 8], **SETTINGS)
    images = [image(9, 8), image(20, 10)]
    means = []
    for one in images:
        sized = io.resize_image(one, (9, 8)) if one.shape[:2] != (9, 8) else one
        cuts = [sized[a : a + 6, b : b + 6] for a, b in ((0, 0), (0, 2), (3, 0), (3, 2), (1, 1))]
        means.append(np.mean([expected(net, cut) for cut in cuts + [cut[:, ::-1] for cut in cuts]], axis=0))
    np.testing.assert_allclose(net.predict(images), means, **CLOSE)


@pytest.fixture
def photo(tmp_path: Path) -> tuple[str, np.ndarray]:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), RANDOM.integers(0, 256, (20, 17, 3), dtype=np.uint8))
    return str(path), io.load_image(path)


def test_windows_are_cut_and_resized(files: tuple[str, str], photo: tuple[str, np.ndarray]) -> None:
    path, pixels = photo
    net = caffe.Detector(*files, **SETTINGS)
    windows = [(2, 3, 8, 9), (0, 0, 20, 17), np.array([5, 1, 19, 4])]
    found = net.detect_windows([(path, windows), (path, [])])
    assert [one["filename"] for one in found] == [path] * 3
    for one, window in zip(found, windows, strict=True):
        assert one["window"] is window
        top, left, bottom, right = window
        cut = io.resize_image(pixels[top:bottom, left:right], (6, 6))
        np.testing.assert_allclose(one["prediction"], expected(net, cut), **CLOSE)
    assert net.detect_windows([]) == []


def test_context_within_the_image(files: tuple[str, str], photo: tuple[str, np.ndarray]) -> None:
    """A window of 4 x 4 values, 6 x 6 with one value of context around it: the input is that part as it is."""
    _, pixels = photo
    net = caffe.Detector(*files, context_pad=1, **SETTINGS)
    # Sides count both ends: rows 5 to 8, grown by 6 / 4 about their centre, 7, are 4 to 10.
    cut = net.crop(pixels, np.array([5, 5, 8, 8]))
    np.testing.assert_allclose(cut, io.resize_image(pixels[4:10, 4:10], (6, 6)), atol=1e-6)


def test_context_beyond_the_border_is_the_mean(files: tuple[str, str], photo: tuple[str, np.ndarray]) -> None:
    _, pixels = photo
    net = caffe.Detector(*files, context_pad=2, **SETTINGS)
    cut = net.crop(pixels, [0, 8, 4, 12])
    mean = MEAN[::-1] / RAW  # in the image's own space: RGB from 0 to 1
    outside = np.all(np.isclose(cut, mean), axis=2)
    assert cut.shape == (6, 6, 3)
    assert outside[:2].all() and not outside[3:].any()
    prepared = net.transformer.preprocess("data", cut)
    np.testing.assert_allclose(prepared[:, 0], 0, atol=1e-5)
    without = caffe.Detector(*files, context_pad=2).crop(pixels, [0, 8, 4, 12])
    assert (without[0] == 0).all()


def test_selective_search_calls_the_module_of_pycaffe(
    files: tuple[str, str], photo: tuple[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = SimpleNamespace(get_windows=lambda paths: [[(0, 0, 6, 6)] for _ in paths])
    monkeypatch.setitem(sys.modules, "selective_search_ijcv_with_python", search)
    (found,) = caffe.Detector(*files).detect_selective_search([photo[0]])
    assert (found["window"], found["filename"]) == ((0, 0, 6, 6), photo[0])


Case = tuple[Callable[[Any, tuple[str, np.ndarray]], Any], str]
REFUSED: dict[str, Case] = {
    "one image": (
        lambda files, _: caffe.Classifier(*files).predict(image(6, 6)), "inputs: is one image; give a list of images"),
    "no images": (lambda files, _: caffe.Classifier(*files).predict([]), "inputs: no images; give at least one"),
    "images smaller than the input": (
        lambda files, _: caffe.Classifier(*files, image_dims=(5, 9)), "image_dims 5x9: smaller than the net's input, 6x6"),
    "a mean of two channels": (
        lambda files, _: caffe.Classifier(*files, mean=np.zeros(2)), "Mean channels incompatible with input."),
    "selective search": (
        lambda files, one: caffe.Detector(*files).detect_selective_search([one[0]]),
        "selective search needs the module selective_search_ijcv_with_python and MATLAB"),
    "a window outside the image": (
        lambda files, one: caffe.Detector(*files).detect_windows([(one[0], [(30, 0, 40, 5)])]),
        "window [30, 0, 40, 5]: has no pixel in an image of 20x17"),
    "a window of two numbers": (
        lambda files, one: caffe.Detector(*files).detect_windows([(one[0], [(3, 4)])]),
        "window (3, 4): give (top, left, bottom, right)"),
    "too much context": (
        lambda files, _: caffe.Detector(*files, context_pad=3),
        "context_pad 3: needs a square input of over twice its size, not 6x6"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, files: tuple[str, str], photo: tuple[str, np.ndarray]) -> None:
    work, message = REFUSED[name]
    with pytest.raises(IlgnetError, match=re.escape(message)):
        work(files, photo)


@pytest.mark.parametrize("kind", [caffe.Classifier, caffe.Detector])
def test_a_net_without_images_is_refused(kind: type, tmp_path: Path) -> None:
    text, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    text.write_text(NET.replace("dim: 6 dim: 6", ""))
    caffe.Net(str(text), caffe.TEST).save(str(weights))
    with pytest.raises(
        IlgnetError, match="its first input is not a batch of images; give a deploy net with one"
    ):
        kind(str(text), str(weights))
