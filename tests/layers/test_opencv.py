"""OpenCV 4's own Caffe reader as a second reference for layers that Caffe's recordings lack.

tests/layers/test_opencv_shapes.py has Permute, ShuffleChannel, Interp and others, test_opencv_nets.py whole
nets.  OpenCV cannot run Axpy, which tests/layers/test_math.py holds against its formula.
"""

from __future__ import annotations

import numpy as np
import pytest
import slow_detection as slow
from one_layer import build, draw, layer_text, run
from opencv_reference import CLASSES, READS_CAFFE, detection, found_rows, reference

if not READS_CAFFE:
    pytest.skip("OpenCV 5 no longer reads Caffe nets", allow_module_level=True)


def regions(images: int) -> np.ndarray:
    random = np.random.default_rng(4)
    x, y = np.sort(random.uniform(0, 52, (30, 2)), axis=1), np.sort(random.uniform(0, 36, (30, 2)), axis=1)
    image = random.integers(0, images, 30)
    return np.stack([image, x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)


X, FEATURE, DATA = draw(1, 2, 6, 4, 5), draw(1, 2, 8, 3, 5), draw(2, 2, 3, 64, 90)
GAUSSIAN = 'weight_filler { type: "gaussian" } bias_filler { type: "gaussian" }'
# OpenCV requires a variance, and clips unless `clip` is false.
PRIORS = {
    "one": "min_size: 30",
    "ratios": "min_size: 30 max_size: 60 aspect_ratio: 2 aspect_ratio: 3",
    "no flip": "min_size: 30 aspect_ratio: 2 flip: false",
    "ratio and its inverse": "min_size: 30 aspect_ratio: 2 aspect_ratio: 0.5",
    "two sizes": "min_size: 30 min_size: 40 max_size: 60 max_size: 50 aspect_ratio: 3",
    "step": "min_size: 30 step: 16",
    "two steps": "min_size: 30 step_h: 16 step_w: 20 offset: 0.25",
}
VARIANCE = "variance: 0.1 variance: 0.2 variance: 0.3 variance: 0.4"
READ = {
    "Normalize": ("Normalize", [X], "norm_param { }"),
    "Normalize positions": ("Normalize", [X], "norm_param { across_spatial: false }"),
    "Normalize with a scale per channel": (
        *("Normalize", [X]),
        'norm_param { across_spatial: false channel_shared: false scale_filler { type: "gaussian" } }',
    ),
    "ReLU6": ("ReLU6", [X * 5], ""),
    "ROIPooling": (
        *("ROIPooling", [draw(3, 2, 3, 9, 13), regions(2)]),
        "roi_pooling_param { pooled_h: 3 pooled_w: 4 spatial_scale: 0.25 }",
    ),
    "PSROIPooling": (
        *("PSROIPooling", [draw(3, 2, 18, 9, 13), regions(2)]),
        "psroi_pooling_param { output_dim: 2 group_size: 3 spatial_scale: 0.25 }",
    ),
    **{
        f"PriorBox {name}": (
            *("PriorBox", [FEATURE, DATA]),
            f"prior_box_param {{ {fields} {VARIANCE} clip: false }}",
        )
        for name, fields in PRIORS.items()
    },
    "PriorBox clip": (
        *("PriorBox", [FEATURE, DATA]),
        f"prior_box_param {{ min_size: 40 {VARIANCE} clip: true }}",
    ),
}


@pytest.mark.parametrize(("type_", "arrays", "params"), READ.values(), ids=READ)
def test_opencv_agrees(type_, arrays, params, tmp_path):
    shapes = [array.shape for array in arrays]
    net = build(type_, shapes, params)
    expected = reference(net, layer_text(type_, shapes, params), arrays, tmp_path)
    (found,) = run(net, arrays)
    assert found.shape == expected[0].shape
    np.testing.assert_allclose(found, expected[0], rtol=1e-4, atol=1e-5)


# Where OpenCV is wrong: how, the layer, and Caffe's result by the slow formula.
WRONG = {
    "PriorBox broken size": (
        "it keeps 30.84 where the SSD fork cuts it to 30",
        *("PriorBox", [FEATURE, DATA], "prior_box_param { min_size: 30.84 variance: 0.1 clip: false }"),
        slow.prior_boxes((3, 5), (64, 90), [(30, 30)], [0.1]),
    ),
    "PriorBox img_size": (
        "it ignores img_size",
        *("PriorBox", [FEATURE, DATA]),
        "prior_box_param { min_size: 30 img_size: 128 variance: 0.1 clip: false }",
        slow.prior_boxes((3, 5), (128, 128), [(30, 30)], [0.1]),
    ),
}


@pytest.mark.parametrize(("how", "type_", "arrays", "params", "expected"), WRONG.values(), ids=WRONG)
def test_known_opencv_errors(how, type_, arrays, params, expected, tmp_path):
    shapes = [array.shape for array in arrays]
    net = build(type_, shapes, params)
    (other,) = reference(net, layer_text(type_, shapes, params), arrays, tmp_path)
    assert not np.allclose(other, expected, rtol=1e-4, atol=1e-5), f"no longer: {how}"
    np.testing.assert_allclose(run(net, arrays)[0], expected, rtol=1e-4, atol=1e-5)


COUNT = 40


def predictions(images: int, shared: bool) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    centre, size = random.uniform(0, 1, (COUNT, 2)), random.uniform(0.1, 0.5, (COUNT, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1).ravel()
    priors = np.stack([boxes, np.tile([0.1, 0.1, 0.2, 0.2], COUNT)])[None].astype(np.float32)
    scores = [random.permutation(COUNT * CLASSES) / (COUNT * CLASSES) for _ in range(images)]
    offsets = draw(3, images, COUNT * 4 * (1 if shared else CLASSES))
    return [offsets, np.array(scores, np.float32), priors]


# CORNER_SIZE and encoded variances are not read.
DETECTIONS: dict[str, dict[str, object]] = {
    "all": {"nms_threshold": 0.45, "top_k": 400},
    "few": {"nms_threshold": 0.45, "top_k": 12, "keep_top_k": 9, "confidence_threshold": 0.3},
    "background": {"nms_threshold": 0.3, "top_k": 400, "background_label_id": 2},
}


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("code_type", ["CORNER", "CENTER_SIZE"])
@pytest.mark.parametrize("fields", DETECTIONS.values(), ids=DETECTIONS)
def test_detections(fields, code_type, shared, images, tmp_path):
    arrays = predictions(images, shared)
    shapes = [array.shape for array in arrays]
    params = detection(code_type, shared, **fields)
    net = build("DetectionOutput", shapes, params)
    expected = found_rows(reference(net, layer_text("DetectionOutput", shapes, params), arrays, tmp_path)[0])
    assert len(expected) > 5
    np.testing.assert_allclose(found_rows(run(net, arrays)[0]), expected, rtol=1e-4, atol=1e-5)


def test_opencv_ignores_eta(tmp_path):
    arrays = predictions(1, True)
    shapes = [array.shape for array in arrays]
    params = detection("CENTER_SIZE", True, nms_threshold=0.9, eta=0.8, top_k=400)
    net = build("DetectionOutput", shapes, params)
    other = found_rows(reference(net, layer_text("DetectionOutput", shapes, params), arrays, tmp_path)[0])
    rules = {"classes": CLASSES, "threshold": 0.9, "code_type": "CENTER_SIZE", "confidence": 0}
    expected = slow.detect(*arrays, eta=0.8, **rules)
    np.testing.assert_allclose(run(net, arrays)[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other, found_rows(slow.detect(*arrays, **rules)), rtol=1e-4, atol=1e-5)
    assert len(other) > expected.shape[2]


def test_proposals(tmp_path):
    random = np.random.default_rng(0)
    scores = (random.permutation(360).reshape(1, 12, 5, 6) / 360).astype(np.float32)
    arrays = [scores, draw(3, 1, 24, 5, 6) * np.float32(0.3), np.array([[40, 48, 1]], np.float32)]
    shapes = [array.shape for array in arrays]
    # OpenCV drops no small regions: min_size is 1.
    fields = "feat_stride: 8 base_size: 8 min_size: 1 ratio: 1 ratio: 2 scale: 2 scale: 4 scale: 5"
    params = f"proposal_param {{ {fields} post_nms_topn: 60 }}"
    net = build("Proposal", shapes, params, 2)
    text = layer_text("Proposal", shapes, params, 2)
    for found, expected in zip(run(net, arrays), reference(net, text, arrays, tmp_path), strict=True):
        assert len(found) == len(expected) == 60
        expected = expected.reshape(found.shape)  # OpenCV's scores have a second axis
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
