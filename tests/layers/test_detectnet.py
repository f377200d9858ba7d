"""The layers of DetectNet: its data layers as inputs, and its Python layers against OpenCV and loops."""

from __future__ import annotations

import math
import re

import cv2
import numpy as np
import pytest
from one_layer import build, draw, run

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.layers.detectnet import group_rectangles
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet

F32 = np.float32
CLUSTERING, SCORES = "caffe.layers.detectnet.clustering", "caffe.layers.detectnet.mean_ap"


def python(layer: str, text: str, module: str = CLUSTERING) -> str:
    return f"python_param {{ module: '{module}' layer: '{layer}' param_str: '{text}' }}"


@pytest.mark.parametrize(("threshold", "eps"), [(1, 0.2), (2, 0.05), (3, 0.4), (0, 0.2)])
def test_rectangles_are_grouped_as_opencv_does(threshold, eps):
    rng = np.random.default_rng(threshold)
    centres = rng.integers(10, 300, (6, 4))
    given = np.concatenate([centres + rng.integers(-4, 5, (6, 4)) for _ in range(7)])
    given = np.concatenate([given, given[:5] // 2, [[0, 0, 400, 400]] * 9])
    means, sizes = group_rectangles(given, threshold, eps)
    wanted, weights = cv2.groupRectangles(given.tolist(), threshold, eps)
    np.testing.assert_array_equal(means, wanted)
    np.testing.assert_array_equal(sizes, np.asarray(weights).ravel())


def test_detections_are_the_groups_of_covered_cells():
    """Two images, two classes; a map larger than the image's cells, of 8 x 6 pixels, counts where these are."""
    coverage = np.abs(draw(1, 2, 2, 5, 6))
    boxes = np.full((2, 4, 5, 6), 1, F32)
    boxes[0] = np.stack(
        [-8.0 * np.arange(6)[None] + 3 + 0 * np.arange(5)[:, None], 0 * draw(2, 5, 6)] * 2
    ).astype(F32)
    boxes[0, 1] -= 8 * np.arange(5)[:, None]
    boxes[0, 2] += 20.7
    boxes[0, 3] += 30 - 8 * np.arange(5)[:, None]
    net = build(
        "Python",
        [coverage.shape, boxes.shape],
        python("ClusterDetections", "40, 32, 8, 0.5, 1, 0.2, 5, 2, 9"),
        2,
    )
    expected = np.zeros((2, 2, 9, 5), F32)
    for c, n in np.ndindex(2, 2):
        found = [
            [int(boxes[n, k, y, x] + 8 * (x, y)[k % 2]) for k in range(4)]
            for y, x in np.ndindex(4, 5)
            if coverage[n, c, y, x] >= F32(0.5)
        ]
        means, weights = cv2.groupRectangles(found, 1, 0.2)
        rows = [[*m, math.log(w)] for m, w in zip(means, np.ravel(weights), strict=True) if m[3] - m[1] >= 5]
        expected[c, n, : len(rows)] = np.float16(rows) if rows else 0
    assert expected[:, 0].any()
    for top, wanted in zip(run(net, [coverage, boxes]), expected, strict=True):
        np.testing.assert_array_equal(top, wanted)


def test_true_boxes_are_those_of_covered_cells_once():
    coverage, boxes = np.zeros((1, 1, 2, 3), F32), np.zeros((1, 4, 2, 3), F32)
    coverage[0, 0, :, 1:] = 1
    boxes[0, :, 0, 1], boxes[0, :, 0, 2] = [-8, 1, 20, 12], [-16, 1, 12, 12]  # the same box from two cells
    boxes[0, :, 1, 1], boxes[0, :, 1, 2] = [1, 2, 3, 4], [0, 0, 1100.4, 5]
    net = build("Python", [coverage.shape, boxes.shape], python("ClusterGroundtruth", "24, 16, 8, 1, 4"))
    rows = [[0, 1, 28, 12, 0], [9, 10, 11, 12, 0], [16, 8, 1116, 13, 0], [0] * 5]  # 1116.4 as float16
    np.testing.assert_array_equal(run(net, [coverage, boxes])[0][0], rows)


def test_scores_and_mean_precision():
    truth, found = np.zeros((2, 4, 5), F32), np.zeros((2, 3, 5), F32)
    truth[0, :3, :4] = [[0, 0, 10, 10], [20, 20, 30, 40], [50, 50, 60, 60]]
    found[0, :3] = [[20, 20, 30, 38, 2], [0, 0, 9, 10, 1], [0, 1, 10, 10, 3]]
    found[1, 0] = [1, 2, 3, 4, 5]
    scored = run(
        build("Python", [truth.shape, found.shape], python("ScoreDetections", "", SCORES)), [truth, found]
    )[0]
    wanted = np.zeros((2, 50, 5), F32)
    wanted[0, :4] = [[20, 20, 30, 38, 1], [0, 0, 9, 10, 1], [0, 1, 10, 10, 2], [50, 50, 60, 60, 3]]
    wanted[1, 0] = [1, 2, 3, 4, 2]
    np.testing.assert_array_equal(scored, wanted)
    strict = build("Python", [truth.shape, found.shape], python("ScoreDetections", "0.95", SCORES))
    assert (run(strict, [truth, found])[0][..., 4] == 1).sum() == 0
    tops = run(build("Python", [scored.shape], python("mAP", "24, 16", SCORES), 3), [scored])
    np.testing.assert_allclose(np.ravel(tops), [50 * 200 / 3 / 100, 50, 200 / 3], rtol=1e-6)
    none = run(build("Python", [(1, 4, 5)], python("mAP", "", SCORES), 3), [np.zeros((1, 4, 5), F32)])
    np.testing.assert_array_equal(np.ravel(none), 0)


MAPS = [(1, 1, 2, 3), (1, 4, 2, 3)]
REFUSED = {
    "missing": (python("ClusterDetections", "24, 16, 8"), MAPS, "coverage is missing"),
    "not_integer": (python("ClusterDetections", "24, 1e1, 8, 0.5, 1, 0.2, 5"), MAPS, "height '1e1' is not an integer"),
    "stride": (python("ClusterGroundtruth", "24, 16, 0"), MAPS, "sizes and counts must be over 0"),
    "tops": (python("ClusterGroundtruth", "24, 16, 8, 2"), MAPS, "has 1 tops for 2 classes; give one per class"),
    "maps": (python("ClusterGroundtruth", "24, 16, 8"), [(1, 2, 2, 3), MAPS[1]], "coverage [1, 2, 2, 3] must be N×1×H×W"),
    "boxes": (python("ClusterGroundtruth", "24, 16, 8"), [MAPS[0], (1, 4, 3, 3)], "boxes [1, 4, 3, 3] must be N×4×H×W"),
    "scored": (python("ScoreDetections", "", SCORES), [(1, 3, 4), (1, 3, 5)], "needs boxes N×B×5 of as many images"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    params, shapes, message = REFUSED[case]
    with pytest.raises(LayerError, match=re.escape(message)):
        build("Python", shapes, params)


def test_more_boxes_than_rows_and_boxes_without_an_end_are_refused():
    coverage, boxes = np.ones(MAPS[0], F32), draw(1, *MAPS[1])
    net = build("Python", MAPS, python("ClusterGroundtruth", "24, 16, 8, 1, 5"))
    with pytest.raises(LayerError, match="6 boxes in image 0 are more than max_boxes 5"):
        run(net, [coverage, boxes])
    boxes[0, 2, 1, 1] = np.inf
    with pytest.raises(LayerError, match="a covered cell has a box that is not finite"):
        run(net, [coverage, boxes])


NET = """
layer { name: "images" type: "Data" top: "data" data_param { source: "i" batch_size: 3 } %s }
layer { name: "boxes" type: "Data" top: "label" data_param { source: "l" batch_size: 3 } }
layer { name: "transform" type: "DetectNetTransformation" bottom: "data" bottom: "label" top: "x" top: "map"
  detectnet_groundtruth_param { %s object_class { src: 1 dst: 0 } object_class { src: 6 dst: 2 } }
  detectnet_augmentation_param { flip_prob: 0.5 } transform_param { mean_value: 127 } }
layer { name: "slice" type: "Slice" bottom: "map" top: "first" top: "classes" slice_param { slice_point: 8 } }
layer { name: "half" type: "Power" bottom: "x" top: "y" power_param { scale: 0.5 } }
"""
SIZES = "stride: 8 image_size_x: 40 image_size_y: 24"


def test_tops_of_the_transformation_are_inputs_in_place_of_its_data_layers():
    net = CaffeNet(load_graph(parse_net(NET % ("", SIZES))))
    assert net.inputs == ("x", "map")
    shapes = net.blob_shapes()
    assert (shapes["x"], shapes["map"], shapes["classes"]) == ((3, 3, 24, 40), (3, 11, 3, 5), (3, 3, 3, 5))
    assert "its data layers are left out" in net.layer("transform").note


def test_a_data_layer_that_another_layer_reads_stays():
    text = NET % ("transform_param { crop_size: 9 }", SIZES)
    text += 'layer { name: "more" type: "ReLU" bottom: "data" top: "more" }'
    net = CaffeNet(load_graph(parse_net(text)))
    assert net.inputs == ("data", "x", "map")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("stride: 8", "the size of 'x' is known only from its source; give its shape"),
        ("image_size_x: 40 image_size_y: 24", "detectnet_groundtruth_param.stride is missing"),
    ],
)
def test_unknown_sizes_of_the_transformation(fields, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        CaffeNet(load_graph(parse_net(NET % ("", fields))))


def test_what_the_reader_states_is_not_written(tmp_path):
    """The class states that it replaces its data layers; a prototxt that Caffe reads has no field of ours."""
    net = CaffeNet(load_graph(parse_net(NET % ("", SIZES))))
    assert net.graph.text.layer[2].replaces_feeders
    ir.save(net, tmp_path / "net.caffemodel")
    assert "replaces_feeders" not in (tmp_path / "net.prototxt").read_text()
    assert ir.load(tmp_path / "net.caffemodel").inputs == net.inputs
