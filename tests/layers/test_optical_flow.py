"""FlowNet's layers against slow loops: Correlation, Correlation1D, FlowWarp, Grid, Warp, Mean, DataAugmentation."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, build, gradients, run

from ilgnet_repro.errors import LayerError


def slow_correlation(
    a, b, *, kernel, reach, pad=0, stride=1, step=1, subtract=False, flat=False, right_only=False
):
    """Compare two windows value by value for each shift, rows of shifts slowest."""
    pads, reaches = ((0, pad), (0, reach)) if flat else ((pad, pad), (reach, reach))
    a, b = (np.pad(x, ((0, 0), (0, 0), (pads[0],) * 2, (pads[1],) * 2)) for x in (a, b))
    radius, half = reach // step, (kernel - 1) // 2
    across = range(0 if right_only else -radius, radius + 1)
    shifts = [(p * step, o * step) for p in ([0] if flat else across) for o in across]
    counts = [ceil((n - 2 * (m + half)) / stride) for n, m in zip(a.shape[2:], reaches, strict=True)]
    top = np.zeros((a.shape[0], len(shifts), *counts))
    for channel, (down, right) in enumerate(shifts):
        for row, column in np.ndindex(*counts):
            y, z = row * stride + reaches[0], column * stride + reaches[1]
            one = a[:, :, y : y + kernel, z : z + kernel]
            other = b[:, :, y + down : y + down + kernel, z + right : z + right + kernel]
            values = np.abs(one - other) if subtract else one * other
            top[:, channel, row, column] = values.reshape(len(a), -1).mean(1)
    return top


CORRELATION = {
    "plain": ("kernel_size: 1 max_displacement: 2", {"kernel": 1, "reach": 2}),
    "strides": (
        "kernel_size: 1 max_displacement: 4 pad: 4 stride_1: 2 stride_2: 3",
        {"kernel": 1, "reach": 4, "pad": 4, "stride": 2, "step": 3},
    ),
    "window": (
        "kernel_size: 3 max_displacement: 2 pad: 2 stride_1: 2", {"kernel": 3, "reach": 2, "pad": 2, "stride": 2},
    ),
    "subtract": (
        "kernel_size: 3 max_displacement: 1 pad: 1 correlation_type: SUBTRACT do_abs: true",
        {"kernel": 3, "reach": 1, "pad": 1, "subtract": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "options"), CORRELATION.values(), ids=CORRELATION)
@pytest.mark.parametrize("type_", ["Correlation", "Correlation1D"])
def test_correlation(type_, text, options) -> None:
    a, b = draw(2, 3, 6, 11), draw(2, 3, 6, 11, seed=1)
    expected = slow_correlation(a, b, **options, flat=type_ == "Correlation1D")
    assert_all_uses(build(type_, [a.shape] * 2, f"correlation_param {{ {text} }}"), [a, b], [expected])


def test_correlation_to_the_right_only() -> None:
    a, b = draw(2, 3, 4, 9), draw(2, 3, 4, 9, seed=1)
    expected = slow_correlation(a, b, kernel=1, reach=3, pad=2, step=2, flat=True, right_only=True)
    text = "correlation_param { kernel_size: 1 max_displacement: 3 pad: 2 stride_2: 2 single_direction: 1 }"
    assert_all_uses(build("Correlation1D", [a.shape] * 2, text), [a, b], [expected])


@pytest.mark.parametrize(
    ("text", "fill"), [("", 0.0), ("flow_warp_param { fill_value: NOT_A_NUMBER }", np.nan)]
)
def test_flow_warp(text, fill) -> None:
    x, flow = draw(2, 3, 4, 5), draw(2, 2, 4, 5, seed=1) * 2
    flow[0, 0, 1, 1] = np.nan
    expected = np.full(x.shape, fill)
    for n, y, z in np.ndindex(2, 4, 5):
        column, row = z + flow[n, 0, y, z], y + flow[n, 1, y, z]
        if not (0 <= column < 5 and 0 <= row < 4):
            continue
        left, top = int(column), int(row)
        right, below = min(left + 1, 4), min(top + 1, 3)
        across, down = column - left, row - top
        expected[n, :, y, z] = (1 - down) * (
            (1 - across) * x[n, :, top, left] + across * x[n, :, top, right]
        ) + down * ((1 - across) * x[n, :, below, left] + across * x[n, :, below, right])
    assert 0 < np.isclose(expected, fill, equal_nan=True).sum() < expected.size
    assert_all_uses(build("FlowWarp", [x.shape, flow.shape], text), [x, flow], [expected])


def test_grid() -> None:
    x = draw(2, 3, 4, 5)
    expected = np.zeros((2, 2, 4, 5))
    for y, z in np.ndindex(4, 5):
        expected[:, :, y, z] = z, y
    assert_all_uses(build("Grid", [x.shape]), [x], [expected])


def test_warp() -> None:
    """The fork's loops, with the gradients of both bottoms."""
    x, diff = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    places = np.stack(np.meshgrid(np.arange(5), np.arange(4)))[None] + draw(2, 2, 4, 5, seed=2) * 2
    places[0, :, 0, 0], places[0, :, 1, 1], places[1, :, 2, 2] = (2, 3), (-0.25, 3.5), (-1, 4)
    places = places.astype(np.float32)
    expected, back, back_places = np.zeros(x.shape), np.zeros(x.shape), np.zeros(places.shape)
    for n, y, z in np.ndindex(2, 4, 5):
        column, row = map(float, places[n, :, y, z])
        left, top = int(np.floor(column)), int(np.floor(row))
        for down, right in np.ndindex(2, 2):
            i, j = top + down, left + right
            if not (0 <= i < 4 and 0 <= j < 5):
                continue
            share_y, share_z = 1 - abs(row - i), 1 - abs(column - j)
            expected[n, :, y, z] += share_y * share_z * x[n, :, i, j]
            back[n, :, i, j] += share_y * share_z * diff[n, :, y, z]
            products = (x[n, :, i, j] * diff[n, :, y, z]).sum()
            back_places[n, 0, y, z] += (2 * right - 1) * share_y * products
            back_places[n, 1, y, z] += (2 * down - 1) * share_z * products
    assert 0 < (expected == 0).sum() < expected.size
    net = build("Warp", [x.shape, places.shape])
    assert_all_uses(net, [x, places], [expected])
    for found, wanted in zip(gradients(net, [x, places], diff), (back, back_places), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- Mean, DataAugmentation


def test_mean_repeats_its_values_over_the_channels() -> None:
    x, y = draw(2, 4, 3, 5), draw(1, 2, 2, 2)
    text = "mean_param { operation: SUBTRACT value: 0.5 value: -2 input_scale: 3 mean_scale: 4 output_scale: 0.5 }"
    mean = np.array([0.5, -2, 0.5, -2]).reshape(4, 1, 1)
    net = build("Mean", [x.shape, y.shape], text, tops=2)
    assert_all_uses(net, [x, y], [0.5 * (3 * x - 4 * mean), 0.5 * (3 * y - 4 * mean[:2])])


def test_crop_of_the_middle() -> None:
    x = draw(2, 3, 7, 6)
    # Offsets (7 - 4) / 2 and (6 - 6) / 2; columns end 1.05 before the side.
    rows = 1.5 + np.arange(4)
    columns = np.minimum(np.arange(6), 6 - 1.05)
    expected = np.zeros((2, 3, 4, 6))
    for (i, y), (j, z) in ((a, b) for a in enumerate(rows) for b in enumerate(columns)):
        for k, part in ((int(y), 1 - y % 1), (int(y) + 1, y % 1)):
            for m, share in ((int(z), 1 - z % 1), (int(z) + 1, z % 1)):
                expected[:, :, i, j] += part * share * x[:, :, k, min(m, 5)]
    body = 'type: "DataAugmentation" augmentation_param { crop_height: 4 crop_width: 6 mean: 1 mean: 2 mean: 3 %s }'
    assert_all_uses(one_layer(body % "", x.shape), [x], [expected])  # per pixel, the fork reads no mean
    mean = np.array([1, 2, 3]).reshape(3, 1, 1)
    assert_all_uses(one_layer(body % "mean_per_pixel: false", x.shape), [x], [expected - mean])


@pytest.mark.parametrize("per_pixel", ["true", "false"])
def test_stored_mean(per_pixel) -> None:
    x, pixels, channels = draw(2, 3, 4, 5), draw(1, 3, 4, 5, seed=1), draw(1, 3, 1, 1, seed=2)
    blobs = [np.full((1, 1, 1, 1), 50, np.float32), pixels, channels]
    fields = "recompute_mean: 50 augment_during_test: true"  # as in the nets of LiteFlowNet
    body = f'type: "DataAugmentation" augmentation_param {{ {fields} mean_per_pixel: {per_pixel} }}'
    net = one_layer(body, x.shape, blobs=blobs)
    assert_all_uses(net, [x], [x - (pixels if per_pixel == "true" else channels)])


def test_a_mean_still_recomputed_is_refused() -> None:
    net = one_layer('type: "DataAugmentation" augmentation_param { recompute_mean: 50 }', (2, 3, 4, 5))
    with pytest.raises(
        LayerError,
        match=r"op \(DataAugmentation\): its mean is of 0 passes and is recomputed in the first 50",
    ):
        run(net, [draw(2, 3, 4, 5)])


X = (2, 3, 6, 7)
REFUSED = {
    "no kernel": ("Correlation", [X, X], "correlation_param { max_displacement: 1 }", "kernel_size is missing; state it"),
    "no displacement": (
        "Correlation1D", [X, X], "correlation_param { kernel_size: 1 }", "max_displacement is missing; state it",
    ),
    "even": (
        "Correlation", [X, X], "correlation_param { kernel_size: 2 max_displacement: 1 }", "kernel_size 2 must be odd",
    ),
    "stride": (
        "Correlation", [X, X], "correlation_param { kernel_size: 1 max_displacement: 1 stride_2: 0 }",
        "stride_2 0 must be at least 1",
    ),
    "shapes": (
        "Correlation", [X, (2, 3, 6, 8)], "correlation_param { kernel_size: 1 max_displacement: 1 }",
        "bottoms [2, 3, 6, 7] and [2, 3, 6, 8] must be of one shape N×C×H×W",
    ),
    "too small": (
        "Correlation", [X, X], "correlation_param { kernel_size: 3 max_displacement: 3 }",
        "bottom [2, 3, 6, 7] is too small for max_displacement 3, kernel_size 3 and pad 0",
    ),
    "left": (
        "Correlation1D", [X, X], "correlation_param { kernel_size: 1 max_displacement: 1 single_direction: -1 }",
        "single_direction -1 is not supported; use 0 (both) or 1 (right): the fork reads outside the blob for -1",
    ),
    "direction of both": (
        "Correlation", [X, X], "correlation_param { kernel_size: 1 max_displacement: 1 single_direction: 1 }",
        "correlation_param.single_direction is not supported; remove it if it does not matter",
    ),
    "flow": (
        "FlowWarp", [X, (2, 3, 6, 7)], "", "bottoms [2, 3, 6, 7] and [2, 3, 6, 7] must be N×C×H×W and N×2×H×W",
    ),
    "coordinates of another size": (
        "Warp", [X, (2, 2, 6, 8)], "", "bottoms [2, 3, 6, 7] and [2, 2, 6, 8] must be N×C×H×W and N×2×H×W: the fork reads "
        "the places of an image's own size",
    ),
    "grid of a vector": ("Grid", [(2, 3)], "", "bottom [2, 3] must be N×C×H×W"),
    "no operation": ("Mean", [X], "mean_param { value: 1 }", "operation is missing; state ADD or SUBTRACT"),
    "no value": ("Mean", [X], "mean_param { operation: ADD }", "value is missing; state one per channel"),
    "values": (
        "Mean", [X], "mean_param { operation: ADD value: 1 value: 2 }", "3 channels are not a multiple of the 2 values",
    ),
    "file": (
        "Mean", [X], 'mean_param { operation: ADD file: "m" value: 1 }',
        "mean_param.file is not supported; remove it if it does not matter",
    ),
    "augmented test": (
        "DataAugmentation", [X], "augmentation_param { augment_during_test: true crop_height: 2 crop_width: 2 }",
        "augment_during_test is not supported with a crop (random transformations); remove it",
    ),
    "crop": (
        "DataAugmentation", [X], "augmentation_param { crop_height: 7 crop_width: 2 }",
        "crop [7, 2] is greater than bottom [2, 3, 6, 7]",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("type_", "shapes", "params", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(type_, shapes, params, message) -> None:
    with pytest.raises(LayerError) as caught:
        build(type_, shapes, params)
    assert str(caught.value) == f"op ({type_}): {message}"


def test_augmentation_in_training_is_refused() -> None:
    with pytest.raises(LayerError, match="is not supported in phase TRAIN"):
        one_layer('type: "DataAugmentation"', X, phase="TRAIN")
