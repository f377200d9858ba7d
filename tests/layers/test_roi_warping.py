"""ROIWarping and MaskResize of the multi-task network cascades, and GradientScaler, against loops, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, gradients, layer_text, run

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


def first_largest(plane, corners, bins, i, j):
    """Return the point of bin i, j whose value is the largest, moved onto the plane; -1 where it has none."""
    best, place = -math.inf, (-1, -1)
    points = []
    for axis, (low, high) in enumerate((corners[1::2], corners[::2])):
        size = max(high - low, 0)
        count = math.ceil(size / bins[axis])
        points.append(
            [
                low + ((i, j)[axis] + u / max(count, 1)) * size / bins[axis]
                for u in range(count + 1 if count else 1)
            ]
        )
    h, w = plane.shape
    for row in points[0]:
        for column in points[1]:
            if -0.5 <= row <= h - 0.5 and -0.5 <= column <= w - 0.5:
                value = clamped(plane, row, column)
                if value > best:
                    best, place = value, (min(max(row, 0), h - 1), min(max(column, 0), w - 1))
    return place


def warping_gradients(x, rois, bins, scale, diff):
    """Return the gradients of x and of the regions as the fork's two kernels collect them."""
    by_x, by_roi = np.zeros(x.shape), np.zeros(rois.shape)
    h, w = x.shape[2:]
    for r, (image, *corners) in enumerate(rois.astype(float)):
        n = int(image)
        corners = [math.floor(corner * scale + 0.5) for corner in corners]
        starts, ends = corners[1::-1], corners[:1:-1]
        sizes = [
            max(end - start + 1, 1) / count for start, end, count in zip(starts, ends, bins, strict=True)
        ]
        for c, i, j in np.ndindex(*diff.shape[1:]):
            place = first_largest(x[n, c], corners, bins, i, j)
            if place[0] < 0:
                continue
            for pixel in np.ndindex(h, w):
                weight = diff[r, c, i, j]
                for axis in (0, 1):
                    p, start = pixel[axis], starts[axis]
                    first = math.floor((p - start - 1) / sizes[axis] - 1)
                    last = math.ceil(round((p - start + 1) / sizes[axis], 9))
                    read = start <= p <= ends[axis] and first <= (i, j)[axis] < last
                    weight *= read * max(0, 1 - abs(place[axis] - p))
                by_x[n, c, pixel[0], pixel[1]] += weight
            a, b = int(place[0]), int(place[1])
            if a + 1 < h and b + 1 < w:
                u, v, plane = place[0] - a, place[1] - b, x[n, c].astype(float)
                across = (1 - u) * (plane[a, b + 1] - plane[a, b]) + u * (
                    plane[a + 1, b + 1] - plane[a + 1, b]
                )
                down = (1 - v) * (plane[a + 1, b] - plane[a, b]) + v * (plane[a + 1, b + 1] - plane[a, b + 1])
                parts = [(place[axis] - starts[axis]) / sizes[axis] / bins[axis] - 0.5 for axis in (1, 0)]
                by_roi[r] += diff[r, c, i, j] * np.array(
                    [0, across, down, parts[0] * across, parts[1] * down]
                )
    return by_x, by_roi


@pytest.mark.parametrize("bins", [(2, 4), (9, 5)], ids=["larger regions", "smaller regions"])
def test_roi_warping_gradients(bins):
    """Of the map and of the regions' centres and sizes, with regions over the border, of one pixel, and outside."""
    x = draw(2, 3, 7, 9)
    rois = F32(
        [[0, 2, 4, 30, 21], [1, 8, 6, 47, 40], [1, 12, 12, 12, 12], [0, 90, 90, 99, 99], [0, 4, 5, 8, 18], [1, -9, -8, 9, 7],
         [0, 20, 16, 10, 8]]
    )  # fmt: skip
    text = f"roi_warping_param {{ pooled_h: {bins[0]} pooled_w: {bins[1]} spatial_scale: 0.25 }}"
    net = one_layer(f'type: "ROIWarping" {text}', x.shape, rois.shape, phase="TRAIN")
    diff = draw(len(rois), 3, *bins, seed=1)
    found = gradients(net, [x, rois], diff)
    for value, wanted in zip(found, warping_gradients(x, rois, bins, 0.25, diff), strict=True):
        assert wanted.any()
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)


def test_the_regions_may_have_the_only_gradient():
    """With `propagate_down: 0` for the map there is the regions' gradient alone."""
    x, rois = draw(1, 2, 5, 6), F32([[0, 1, 1, 3, 4]])
    text = "roi_warping_param { pooled_h: 2 pooled_w: 3 spatial_scale: 1 }"
    body = f'type: "ROIWarping" {text} propagate_down: 0 propagate_down: 1'
    diff = draw(1, 2, 2, 3, seed=1)
    by_x, by_rois = gradients(one_layer(body, x.shape, rois.shape, phase="TRAIN"), [x, rois], diff)
    assert by_x is None
    np.testing.assert_allclose(by_rois, warping_gradients(x, rois, (2, 3), 1, diff)[1], rtol=1e-4, atol=1e-5)


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


REFUSED = {
    "no size": ("ROIWarping", [(1, 2, 5, 6), (3, 5)], "", "TEST", "pooled_h 0 and pooled_w 0 must be over 0"),
    "no mask size": (
        "MaskResize",
        [(1, 1, 5, 6)],
        "",
        "TEST",
        "output_height 0 and output_width 0 must be over 0",
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
