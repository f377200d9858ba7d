"""The layers of the multi-task network cascades and GradientScaler against loops, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, gradients, layer_text, run, run_onnx, run_source

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet

F32 = np.float32


def clamped(plane, row, column):
    """Return the bilinear value of a plane at a point inside it; the border continues outside."""
    h, w = plane.shape
    row, column = min(max(row, 0), h - 1), min(max(column, 0), w - 1)
    i, j = int(row), int(column)
    k, m = min(i + 1, h - 1), min(j + 1, w - 1)
    top = plane[i, j] * (1 - column + j) + plane[i, m] * (column - j)
    bottom = plane[k, j] * (1 - column + j) + plane[k, m] * (column - j)
    return top * (1 - row + i) + bottom * (row - i)


def warped(x, rois, pooled, scale):
    top = np.zeros((len(rois), x.shape[1], *pooled))
    for r, (image, *corners) in enumerate(rois.astype(float)):
        x1, y1, x2, y2 = (math.floor(corner * scale + 0.5) for corner in corners)
        for c, i, j in np.ndindex(*top.shape[1:]):
            seen = []
            heights, widths = max(y2 - y1, 0), max(x2 - x1, 0)
            counts = math.ceil(heights / pooled[0]), math.ceil(widths / pooled[1])
            for u in range(counts[0] + 1 if counts[0] else 1):
                for v in range(counts[1] + 1 if counts[1] else 1):
                    row = y1 + (i + u / max(counts[0], 1)) * heights / pooled[0]
                    column = x1 + (j + v / max(counts[1], 1)) * widths / pooled[1]
                    if -0.5 <= row <= x.shape[2] - 0.5 and -0.5 <= column <= x.shape[3] - 0.5:
                        seen.append(clamped(x[int(image), c], row, column))
            top[r, c, i, j] = max(seen, default=0)
    return top


def test_roi_warping():
    """Regions inside, over the border, of one pixel and outside the map."""
    x = draw(2, 3, 7, 9)
    rois = F32(
        [[0, 2, 4, 30, 21], [1, 8, 6, 47, 40], [1, 12, 12, 12, 12], [0, 90, 90, 99, 99], [0, 0, 0, 35, 3]]
    )
    text = "roi_warping_param { pooled_h: 2 pooled_w: 4 spatial_scale: 0.25 }"
    net = one_layer(f'type: "ROIWarping" {text}', x.shape, rois.shape)
    np.testing.assert_allclose(run(net, [x, rois])[0], warped(x, rois, (2, 4), 0.25), rtol=1e-5, atol=1e-6)


def test_regions_far_larger_than_the_map():
    """Points outside the map are left out before they take memory; a bin of more points than a map has is refused."""
    x = draw(2, 3, 7, 9)
    rois = F32([[0, -50, -30, 70, 30], [1, -3, 2, 90, 5]])
    net = one_layer(
        'type: "ROIWarping" roi_warping_param { pooled_h: 3 pooled_w: 5 spatial_scale: 1 }',
        x.shape,
        rois.shape,
    )
    np.testing.assert_allclose(run(net, [x, rois])[0], warped(x, rois, (3, 5), 1), rtol=1e-4, atol=1e-5)
    for end, pixels in ((2e5, "200003"), (math.inf, "inf"), (math.nan, "nan")):
        rois[1, 3] = end
        with pytest.raises(LayerError) as caught:
            run(net, [x, rois])
        assert (
            str(caught.value)
            == f"op (ROIWarping): a region of {pixels} pixels gives each of 5 bins over 10,000 points"
        )


def resized(x, size):
    top = np.zeros((*x.shape[:2], *size))
    for n, c, i, j in np.ndindex(*top.shape):
        row, column = i * x.shape[2] / size[0], j * x.shape[3] / size[1]
        if row <= x.shape[2] - 0.5 and column <= x.shape[3] - 0.5:
            top[n, c, i, j] = clamped(x[n, c], row, column)
    return top


@pytest.mark.parametrize("size", [(4, 3), (16, 11), (6, 14)], ids=str)
def test_mask_resize(size):
    x = draw(2, 1, 6, 5)
    net = one_layer(
        f'type: "MaskResize" mask_resize_param {{ output_height: {size[0]} output_width: {size[1]} }}',
        x.shape,
    )
    assert_all_uses(net, [x], [F32(resized(x, size))])
    diff = draw(2, 1, *size, seed=1)
    wanted = np.zeros(x.shape)
    # As the fork adds them: per value the results floor(place) and the next, where they read the value.
    ratios = [F32(x.shape[2]) / F32(size[0]), F32(x.shape[3]) / F32(size[1])]
    for n, c, h, w in np.ndindex(*x.shape):
        one = np.zeros((1, 1, *x.shape[2:]))
        one[0, 0, h, w] = 1
        share = resized(one, size)[0, 0]
        first = [math.floor(F32(place) / ratio) for place, ratio in zip((h, w), ratios, strict=True)]
        for i in range(first[0], min(first[0] + 2, size[0])):
            for j in range(first[1], min(first[1] + 2, size[1])):
                wanted[n, c, h, w] += share[i, j] * diff[n, c, i, j]
    np.testing.assert_allclose(gradients(net, [x], diff)[0], wanted, rtol=1e-4, atol=1e-5)


def python_layer(module, layer, settings=""):
    return f'python_param {{ module: "pylayer.{module}" layer: "{layer}" param_str: "{settings}" }}'


def test_mask_layer():
    x = draw(3, 441)
    net = one_layer(f'type: "Python" {python_layer("mask_layer", "MaskLayer")}', x.shape)
    assert_all_uses(net, [x], [x.reshape(3, 1, 21, 21)])


def test_stage_bridge_layer():
    rois = F32([[0, 3, 5, 20, 12], [0, 1, 2, 9, 30], [0, 30, 1, 38, 22]])
    deltas, scores, info = draw(3, 8) * F32(0.5), draw(3, 2, seed=1), F32([[25, 40, 1.5]])
    body = f'type: "Python" {python_layer("stage_bridge_layer", "StageBridgeLayer")}'
    net = one_layer(body, rois.shape, deltas.shape, scores.shape, info.shape)
    wanted = []
    for roi, delta, score in zip(rois.astype(float), deltas.astype(float), scores, strict=True):
        dx, dy, dw, dh = delta[4 * int(score.argmax()) :][:4]
        w, h = roi[3] - roi[1] + 1, roi[4] - roi[2] + 1
        x, y = roi[1] + w / 2 + dx * w, roi[2] + h / 2 + dy * h
        w, h = w * math.exp(dw), h * math.exp(dh)
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        wanted.append([0, *(min(max(v, 0), bound) for v, bound in zip(box, (39, 24, 39, 24), strict=True))])
    for use in (run, run_source, run_onnx):
        np.testing.assert_allclose(use(net, [rois, deltas, scores, info])[0], wanted, rtol=1e-4, atol=1e-4)


def test_the_proposal_layer_of_mnc_is_that_of_faster_rcnn():
    arrays = [draw(1, 18, 3, 4), draw(1, 36, 3, 4, seed=1) * F32(0.2), F32([[48, 64, 1]])]
    shapes = [array.shape for array in arrays]
    mnc = python_layer("proposal_layer", "ProposalLayer", "{'feat_stride': 16, 'gradient_scale': 1}")
    plain = 'python_param { module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "{\'feat_stride\': 16}" }'
    found, wanted = (run(one_layer(f'type: "Python" {text}', *shapes), arrays)[0] for text in (mnc, plain))
    assert len(found) > 1
    np.testing.assert_array_equal(found, wanted)


SCALER = "gradient_scaler_param { lower_bound: 0.1 upper_bound: 0.9 alpha: 10 max_iter: 4 }"


def test_gradient_scaler():
    x, diff = draw(2, 3), draw(2, 3, seed=1)
    net = one_layer(f'type: "GradientScaler" {SCALER}', x.shape)
    assert_all_uses(net, [x], [x])
    np.testing.assert_allclose(gradients(net, [x], diff)[0], -diff)  # no solver: k is 1


def test_gradient_scaler_grows_with_the_iteration():
    x, diff = draw(2, 3), draw(2, 3, seed=1)
    graph = load_graph(parse_net(layer_text("GradientScaler", (x.shape,), SCALER)), phase="TRAIN")
    net = CaffeNet(graph, carry_state=True)
    for done in range(6):
        progress = min(1, done / 4)
        k = 2 * 0.8 / (1 + math.exp(-10 * progress)) - 0.8 + 0.1
        np.testing.assert_allclose(gradients(net, [x], diff)[0], -k * diff, rtol=1e-5)


MNC = ("TRAIN", "phase TRAIN, where it samples targets for masks, is not implemented; use phase TEST")
REFUSED = {
    "no size": ("ROIWarping", [(1, 2, 5, 6), (3, 5)], "", "TEST", "pooled_h 0 and pooled_w 0 must be over 0"),
    "warping in training": (
        "ROIWarping",
        [(1, 2, 5, 6), (3, 5)],
        "roi_warping_param { pooled_h: 2 pooled_w: 2 }",
        "TRAIN",
        "its backward pass, which also moves the regions, is not implemented; use phase TEST",
    ),
    "no mask size": (
        "MaskResize",
        [(1, 1, 5, 6)],
        "",
        "TEST",
        "output_height 0 and output_width 0 must be over 0",
    ),
    "masks": (
        "Python",
        [(3, 400)],
        python_layer("mask_layer", "MaskLayer"),
        "TEST",
        "must have 21² = 441 values each",
    ),
    "training": ("Python", [(3, 441)], python_layer("mask_layer", "MaskLayer"), *MNC),
    "scores": (
        "Python",
        [(3, 5), (3, 8), (3, 3), (1, 3)],
        python_layer("stage_bridge_layer", "StageBridgeLayer"),
        "TEST",
        "needs regions R×5, deltas R×4·classes and scores R×classes",
    ),
    "anchors": (
        "Python",
        [(1, 18, 3, 4), (1, 36, 3, 4), (1, 3)],
        python_layer("proposal_layer", "ProposalLayer", "{'feat_stride': 16, 'scales': [4]}"),
        "TEST",
        "param_str: scales is not read by MNC's layer; remove it",
    ),
    "bounds": (
        "GradientScaler",
        [(2, 3)],
        SCALER.replace("0.9", "0.05"),
        "TRAIN",
        "lower_bound 0.1 must be at most upper_bound 0.05",
    ),
    "absent": (
        "GradientScaler",
        [(2, 3)],
        "gradient_scaler_param { alpha: 10 }",
        "TRAIN",
        "lower_bound and upper_bound and max_iter must be stated in phase TRAIN",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    type_, shapes, params, phase, message = REFUSED[case]
    with pytest.raises(LayerError, match=message):
        one_layer(f'type: "{type_}" {params}', *shapes, phase=phase)
