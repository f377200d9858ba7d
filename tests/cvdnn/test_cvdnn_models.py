"""`cvdnn`'s `Model` classes and the functions for images and boxes, against OpenCV 4's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import small_ssd
from opencv_reference import READS_CAFFE

from ilgnet_repro import cvdnn
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.schema import caffe_pb2 as pb

RANDOM = np.random.default_rng(12)
with_opencv_4 = pytest.mark.skipif(
    not READS_CAFFE, reason="OpenCV 5 has no reader of Caffe nets to compare with"
)
IMAGE = RANDOM.integers(0, 256, (64, 100, 3), dtype=np.uint8)


def head(kind: str) -> tuple[bytes, bytes]:
    """A net whose output has the form that one of the classes takes."""
    shape = "input_param { shape { dim: 1 dim: 3 dim: 8 dim: 12 } }"
    layers = f'layer {{ name: "in" type: "Input" top: "data" {shape} }}'
    layers += ('layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"'
               " convolution_param { num_output: 5 kernel_size: 3 pad: 1 } }")  # fmt: skip
    if kind == "classes":
        layers += ('layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool"'
                   " pooling_param { pool: AVE global_pooling: true } }")  # fmt: skip
    if kind == "points":
        layers += ('layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool"'
                   " pooling_param { pool: AVE kernel_h: 8 kernel_w: 6 stride: 6 } }"
                   'layer { name: "shape" type: "Reshape" bottom: "pool" top: "shape"'
                   " reshape_param { shape { dim: 1 dim: 5 dim: 2 } } }")  # fmt: skip
    net = pb.NetParameter()
    layer = net.layer.add(name="conv", type="Convolution")
    rng = np.random.default_rng(3)
    for blob in ((5, 3, 3, 3), (5,)):
        layer.blobs.add(
            shape=pb.BlobShape(dim=blob), data=rng.normal(0, 0.3, blob).astype(np.float32).ravel()
        )
    return layers.encode(), net.SerializeToString()


def models(name: str, kind: str) -> list[Any]:
    """OpenCV's object and ours, of one class, set up alike."""
    made = []
    for module in (cv2.dnn, cvdnn):
        model = getattr(module, name)(module.readNetFromCaffe(*map(bytearray, head(kind))))
        model.setInputParams(1 / 255, (12, 8), (104, 117, 123), True, False)
        made.append(model)
    return made


@with_opencv_4
@pytest.mark.parametrize("softmax", [False, True])
def test_classes_are_opencvs(softmax: bool) -> None:
    theirs, ours = models("ClassificationModel", "classes")
    for model in (theirs, ours):
        model.setEnableSoftmaxPostProcessing(softmax)
    expected, found = theirs.classify(IMAGE), ours.classify(IMAGE)
    assert type(found) is type(expected) and found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], rel=1e-4)
    assert ours.getEnableSoftmaxPostProcessing() == softmax
    np.testing.assert_allclose(ours.predict(IMAGE)[0], theirs.predict(IMAGE)[0], rtol=1e-4, atol=1e-5)


@with_opencv_4
def test_masks_are_opencvs() -> None:
    theirs, ours = models("SegmentationModel", "maps")
    expected, found = theirs.segment(IMAGE), ours.segment(IMAGE)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype) == ((8, 12), np.uint8)
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 1


@with_opencv_4
@pytest.mark.parametrize(("kind", "thresh"), [("maps", 0.0), ("maps", 0.3), ("points", 0.5)])
def test_points_are_opencvs(kind: str, thresh: float) -> None:
    theirs, ours = models("KeypointsModel", kind)
    expected, found = theirs.estimate(IMAGE, thresh), ours.estimate(IMAGE, thresh)
    np.testing.assert_allclose(found, np.array(expected).reshape(-1, 2), rtol=1e-4, atol=1e-5)
    assert len(found) == (5 if kind == "points" else 4)


@with_opencv_4
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(("confidence", "overlap"), [(0.5, 0.0), (0.35, 0.2), (0.0, 0.0), (0.999, 0.0)])
def test_boxes_are_opencvs(confidence: float, overlap: float, across: bool, tmp_path: Path) -> None:
    prototxt, caffemodel = small_ssd.write(tmp_path, keep_top_k=30)
    results = []
    for module in (cv2.dnn, cvdnn):
        model = module.DetectionModel(caffemodel, prototxt)
        model.setInputParams(1 / 64, (40, 32), (128, 128, 128))
        model.setNmsAcrossClasses(across)
        results.append(model.detect(IMAGE, confidence, overlap))
    for expected, found in zip(*results, strict=True):
        assert type(found) is type(expected)
        assert np.shape(found) == np.shape(expected)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)
    assert (len(results[1][0]) > 0) == (confidence < 0.9)


def test_boxes_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in pixels, in fractions, beyond the image, and below the threshold, without OpenCV."""
    prototxt, caffemodel = small_ssd.write(tmp_path)
    model = cvdnn.DetectionModel(caffemodel, prototxt)
    rows = np.array(
        [
            [0, 1, 0.9, 10, 20, 39, 49],
            [0, 2, 0.8, 0.1, 0.25, 0.5, 0.75],
            [0, 1, 0.7, -0.2, 0.5, 1.3, 2.0],
            [0, 1, 0.2, 0, 0, 1, 1],
        ],
        np.float32,
    )
    monkeypatch.setattr(model, "predict", lambda frame: (rows[None, None],))
    classes, confidences, boxes = model.detect(IMAGE, 0.5)
    assert classes.tolist() == [1, 2, 1]
    np.testing.assert_allclose(confidences, [0.9, 0.8, 0.7])
    assert boxes.tolist() == [[10, 20, 30, 30], [10, 16, 41, 33], [0, 32, 100, 32]]
    assert model.detect(IMAGE, 0.95) == ((), (), ())


@with_opencv_4
def test_settings_one_by_one_are_opencvs() -> None:
    outputs = []
    for module in (cv2.dnn, cvdnn):
        model = module.Model(module.readNetFromCaffe(*map(bytearray, head("maps"))))
        model.setInputSize((12, 8)).setInputSize(12, 8).setInputMean((1, 2, 3)).setInputSwapRB(
            True
        ).setInputCrop(True)
        model.setInputScale((0.5, 0.5, 0.5))
        model.setPreferableBackend(3)
        model.setPreferableTarget(0)
        model.enableWinograd(False)
        model.setOutputNames(["conv"])
        outputs.append(model.predict(IMAGE))
    assert type(outputs[0]) is type(outputs[1])
    np.testing.assert_allclose(outputs[1][0], outputs[0][0], rtol=1e-4, atol=1e-3)


def test_the_size_of_images_is_that_of_the_input() -> None:
    model = cvdnn.Model(cvdnn.readNetFromCaffe(*head("maps")))
    assert model.predict(IMAGE)[0].shape == (1, 5, 8, 12)


# ------------------------------------------------------------------------------------------- functions

BOXES = [[0, 0, 10, 10], [1, 1, 10, 10], [30, 30, 5, 8], [31, 30, 5, 8], [0, 1, 10, 10]]
SCORES = [0.9, 0.8, 0.7, 0.95, 0.3]
CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "an image": ("blobFromImage", (IMAGE,), {}),
    "all of its options": ("blobFromImage", (IMAGE, 0.5, (20, 30), (1, 2, 3), True, True), {}),
    "bytes": ("blobFromImage", (IMAGE,), {"ddepth": cv2.CV_8U}),
    "several": ("blobFromImages", ([IMAGE, IMAGE[::-1]], 2.0, (9, 7)), {}),
    "boxes": ("NMSBoxes", (BOXES, SCORES, 0.4, 0.5), {}),
    "boxes, at most": ("NMSBoxes", (BOXES, SCORES, 0.0, 0.5), {"eta": 0.9, "top_k": 2}),
    "boxes by class": ("NMSBoxesBatched", (BOXES, SCORES, [0, 1, 0, 1, 0], 0.1, 0.5), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_are_opencvs(name: str) -> None:
    function, given, options = CALLS[name]
    expected, found = (getattr(module, function)(*given, **options) for module in (cv2.dnn, cvdnn))
    assert np.array_equal(found, expected)


def test_more_functions_are_opencvs() -> None:
    scores = np.array(SCORES, np.float32)
    for found, expected in zip(
        cvdnn.softNMSBoxes(BOXES, scores, 0.3, 0.5),
        cv2.dnn.softNMSBoxes(BOXES, scores, 0.3, 0.5),
        strict=True,
    ):
        assert np.array_equal(found, expected)
    params = cvdnn.Image2BlobParams()
    params.scalefactor, params.size = (2, 2, 2, 2), (6, 5)
    blob = cvdnn.blobFromImageWithParams(IMAGE, params)
    assert np.array_equal(blob, cv2.dnn.blobFromImageWithParams(IMAGE, params))
    assert np.array_equal(cvdnn.imagesFromBlob(blob)[0], blob[0].transpose(1, 2, 0))


Refused = tuple[Callable[[Path], Any], str]
REFUSED: dict[str, Refused] = {
    "no image": (lambda _: cvdnn.blobFromImage(None), "blobFromImage: "),
    "an empty image": (lambda _: cvdnn.blobFromImage(np.zeros((0, 3, 3), np.uint8), size=(4, 4)), "blobFromImage: "),
    "fewer scores than boxes": (lambda _: cvdnn.NMSBoxes(BOXES, SCORES[:2], 0.1, 0.5), "NMSBoxes: "),
    "a net that ends otherwise": (
        lambda _: cvdnn.DetectionModel(cvdnn.readNetFromCaffe(*head("maps"))).detect(IMAGE),
        "conv (Convolution): a DetectionModel ends in a DetectionOutput layer; use Model.predict"),
    "classes that are no maps": (
        lambda folder: cvdnn.SegmentationModel(cvdnn.readNetFromCaffe(*head("points"))).segment(IMAGE),
        "output of shape (1, 5, 2): a SegmentationModel needs classes x height x width"),
    "an empty net": (lambda _: cvdnn.Model(cvdnn.Net()), "the net is empty; read one with readNetFromCaffe"),
    "a size of one number": (
        lambda _: cvdnn.Model(cvdnn.readNetFromCaffe(*head("maps"))).setInputSize((3,)), "size (3,): give (width, height)"),
    "no files": (lambda folder: cvdnn.Model(str(folder / "a.caffemodel"), str(folder / "a.prototxt")), "readNet: "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    work, message = REFUSED[name]
    with pytest.raises(IlgnetError, match=re.escape(message)) as caught:
        work(tmp_path)
    assert "\n" not in str(caught.value)
