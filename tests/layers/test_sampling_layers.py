"""SpatialTransformer, DeformableConvolution and LSTMUnit against loops over single values, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, build, gradients

from ilgnet_repro.errors import LayerError

F32 = np.float32


def at(plane, row, column):
    """Return the bilinear value of a plane at a point; neighbours outside count 0."""
    total = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < plane.shape[0] and 0 <= j < plane.shape[1]:
                total += plane[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def transformed(x, thetas, size):
    n, c, h, w = x.shape
    top = np.zeros((n, c, *size))
    for b, k, i, j in np.ndindex(*top.shape):
        r, s = 2 * i / size[0] - 1, 2 * j / size[1] - 1
        t = thetas[b]
        row, column = t[0] * r + t[1] * s + t[2], t[3] * r + t[4] * s + t[5]
        top[b, k, i, j] = at(x[b, k], (row + 1) / 2 * h, (column + 1) / 2 * w)
    return top


def by_differences(function, x, diff, step=1e-4):
    slope = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        near, far = x.astype(float), x.astype(float)
        near[place] -= step
        far[place] += step
        slope[place] = ((function(far) - function(near)) * diff).sum() / (2 * step)
    return slope


X, THETA = draw(2, 3, 5, 4), draw(2, 6, seed=1) * F32(0.6)


def test_spatial_transformer():
    net = one_layer('type: "SpatialTransformer"', X.shape, THETA.shape)
    assert_all_uses(net, [X, THETA], [F32(transformed(X, THETA, (5, 4)))])
    diff = draw(2, 3, 5, 4, seed=2)
    found = gradients(net, [X, THETA], diff)
    np.testing.assert_allclose(
        found[0], by_differences(lambda x: transformed(x, THETA, (5, 4)), X, diff), atol=1e-4
    )
    wanted = by_differences(lambda theta: transformed(X, theta, (5, 4)), THETA, diff)
    np.testing.assert_allclose(found[1], wanted, rtol=1e-3, atol=1e-3)


def test_spatial_transformer_with_stated_values_and_another_size():
    given = THETA[:, :2, None, None]
    text = (
        "st_param { to_compute_dU: false output_H: 3 output_W: 6 "
        "theta_1_1: 0.5 theta_1_2: 0.1 theta_2_1: -0.2 theta_2_2: 0.7 }"
    )
    net = one_layer(f'type: "SpatialTransformer" {text}', X.shape, given.shape)
    thetas = [[0.5, 0.1, t[0], -0.2, 0.7, t[1]] for t in THETA.astype(float)]
    assert_all_uses(net, [X, given], [F32(transformed(X, thetas, (3, 6)))])
    assert gradients(net, [X, given], draw(2, 3, 3, 6))[0] is None


def deformed(x, offset, weight, bias, *, stride, pad, dilation, group, pieces):
    n, channels, h, w = x.shape
    outputs, _, kh, kw = weight.shape
    top = np.zeros((n, outputs, *offset.shape[2:]))
    for b, o, i, j in np.ndindex(*top.shape):
        first = o // (outputs // group) * (channels // group)
        total = bias[o]
        for c in range(channels // group):
            piece = (first + c) // (channels // pieces)
            for u, v in np.ndindex(kh, kw):
                pair = 2 * (piece * kh * kw + u * kw + v)
                row = i * stride[0] - pad[0] + u * dilation[0] + offset[b, pair, i, j]
                column = j * stride[1] - pad[1] + v * dilation[1] + offset[b, pair + 1, i, j]
                if 0 <= row < h and 0 <= column < w:
                    value = at(x[b, first + c], min(row, h - 1), min(column, w - 1))
                    total += weight[o, c, u, v] * value
        top[b, o, i, j] = total
    return top


PLAIN = {"stride": (1, 1), "pad": (1, 1), "dilation": (1, 1), "group": 1, "pieces": 1}
GROUPS = {"stride": (2, 1), "pad": (0, 1), "dilation": (2, 2), "group": 2, "pieces": 4}
GROUPS_TEXT = (
    "kernel_h: 2 kernel_w: 3 pad_h: 0 pad_w: 1 stride_h: 2 stride_w: 1 dilation: 2 num_output: 6 group: 2 "
    "deformable_group: 4"
)
DEFORMED = {
    "one group": ("kernel_size: 3 pad: 1 num_output: 4", (5, 6), PLAIN, (3, 3)),
    "groups": (GROUPS_TEXT, (2, 4), GROUPS, (2, 3)),
}


@pytest.mark.parametrize("case", DEFORMED)
def test_deformable_convolution(case):
    text, size, options, kernel = DEFORMED[case]
    x = draw(2, 4, 5, 6)
    offset = draw(2, 2 * options["pieces"] * math.prod(kernel), *size, seed=1) * F32(1.3)
    outputs = 4 if case == "one group" else 6
    blobs = [draw(outputs, 4 // options["group"], *kernel, seed=2), draw(outputs, seed=3)]
    net = one_layer(
        f'type: "DeformableConvolution" deformable_convolution_param {{ {text} }}',
        x.shape,
        offset.shape,
        blobs=blobs,
    )
    assert_all_uses(net, [x, offset], [F32(deformed(x, offset, *blobs, **options))])
    diff = draw(2, outputs, *size, seed=4)
    found = gradients(net, [x, offset], diff)
    few = (slice(0, 1), slice(0, 4), slice(0, 1), slice(0, 2))  # of the offsets: differences are slow

    def moved(part):
        whole = offset.astype(float)
        whole[few] = part
        return deformed(x, whole, *blobs, **options)

    np.testing.assert_allclose(found[1][few], by_differences(moved, offset[few], diff), rtol=1e-3, atol=1e-3)


def test_lstm_unit():
    cell, gates, cont = draw(1, 3, 2), draw(1, 3, 8, seed=1), F32([[1, 0, 1]])
    net = one_layer('type: "LSTMUnit"', cell.shape, gates.shape, cont.shape, tops=2)
    i, f, o, g = np.split(gates.astype(float), 4, -1)
    i, f, o = (1 / (1 + np.exp(-v)) for v in (i, f, o))
    new = f * cont[..., None] * cell + i * np.tanh(g)
    assert_all_uses(net, [cell, gates, cont], [F32(new), F32(o * np.tanh(new))])
    diffs = [draw(1, 3, 2, seed=2), draw(1, 3, 2, seed=3)]
    found = gradients(net, [cell, gates, cont], *diffs)
    by_cell = diffs[0] + diffs[1] * o * (1 - np.tanh(new) ** 2)
    forget = f * cont[..., None]
    wanted = [by_cell * np.tanh(g) * i * (1 - i), by_cell * cell * forget * (1 - forget)]
    wanted += [diffs[1] * np.tanh(new) * o * (1 - o), by_cell * i * (1 - np.tanh(g) ** 2)]
    np.testing.assert_allclose(found[0], by_cell * forget, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1], np.concatenate(wanted, -1), rtol=1e-4, atol=1e-6)
    assert found[2] is None


REFUSED = {
    "sampler": (
        "SpatialTransformer",
        [(1, 2, 3, 4), (1, 6)],
        'st_param { sampler_type: "nearest" }',
        "transform_type 'affine' and sampler_type 'nearest' are not supported; use affine and bilinear",
    ),
    "theta": (
        "SpatialTransformer",
        [(1, 2, 3, 4), (1, 6)],
        "st_param { theta_1_1: 1 }",
        "with 1 stated in the text it must have 5",
    ),
    "size": (
        "SpatialTransformer",
        [(1, 2, 3, 4), (1, 6)],
        "st_param { output_H: 0 }",
        "output_H 0 and output_W 4 must be over 0",
    ),
    "images": ("SpatialTransformer", [(2, 2, 3, 4), (1, 6)], "", "theta of as many images"),
    "offsets": (
        "DeformableConvolution",
        [(1, 4, 5, 6), (1, 16, 5, 6)],
        "deformable_convolution_param { num_output: 2 kernel_size: 3 pad: 1 }",
        r"offsets \\[1, 16, 5, 6\\] must be 1×18×5×6: a row and a column for each of 9 taps and 1 groups",
    ),
    "groups of offsets": (
        "DeformableConvolution",
        [(1, 3, 5, 6), (1, 36, 5, 6)],
        "deformable_convolution_param { num_output: 2 kernel_size: 3 pad: 1 }",
        "3 channels must be a multiple of group 1 and of 2 groups of offsets",
    ),
    "no outputs": (
        "DeformableConvolution",
        [(1, 3, 5, 6), (1, 18, 5, 6)],
        "deformable_convolution_param { kernel_size: 3 }",
        "num_output 0 and group 1 must be over 0",
    ),
    "gates": ("LSTMUnit", [(1, 3, 2), (1, 3, 6), (1, 3)], "", r"not \\[1, 3, 2\\], \\[1, 3, 6\\] and \\[1, 3\\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    type_, shapes, params, message = REFUSED[case]
    with pytest.raises(LayerError, match=message.replace("\\\\", "\\")):
        build(type_, shapes, params, tops=2 if type_ == "LSTMUnit" else 1)
