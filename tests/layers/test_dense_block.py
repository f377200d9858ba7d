"""DenseBlock against its steps one by one, in both phases, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from layer_nets import draw, one_layer
from one_layer import assert_all_uses
from slow_convolution import slow_convolution

from ilgnet_repro.errors import LayerError

EPS, COUNT, GROWTH = 1e-5, 2, 2
FIELDS = f"numTransition: {COUNT} growthRate: {GROWTH}"


def draw_blobs(channels: int, bottleneck: bool, factor: float) -> list[np.ndarray]:
    """Draw blobs in the file's order: filters, scales, biases, means, variances [of both], and the divisor."""
    wide = [channels + i * GROWTH for i in range(COUNT)]
    middle = [4 * GROWTH] * COUNT
    groups = [([(GROWTH, n, 3, 3) for n in (middle if bottleneck else wide)], wide)]
    if bottleneck:
        groups.append(([(4 * GROWTH, n, 1, 1) for n in wide], middle))
    blobs, seed = [], 1
    for filters, sizes in groups:
        blobs += [draw(*shape, seed=seed + i) for i, shape in enumerate(filters)]
        for group in range(4):
            values = [draw(1, n, 1, 1, seed=seed + 10 * group + i) for i, n in enumerate(sizes)]
            blobs += [np.abs(value) + 1 for value in values] if group == 3 else values
        seed += 100
    return [*blobs, np.full(1, factor, np.float32)]


def slow_block(x, blobs, bottleneck, by_batch):
    """Run the transitions; a filter is turned by 180 degrees, and the batch's variance is the unbiased one."""
    factor = blobs[-1][0]
    scale_by = 1 / factor if factor else 0.0

    def activate(y, first, index):
        scale, bias, mean, variance = (blobs[first + group * COUNT + index] for group in range(1, 5))
        mean, variance = mean * scale_by, variance * scale_by
        if by_batch:
            mean, variance = y.mean((0, 2, 3), keepdims=True), y.var((0, 2, 3), keepdims=True, ddof=1)
        return np.maximum(scale * (y - mean) / np.sqrt(variance + EPS) + bias, 0)

    def convolve(y, index, pad):
        geometry = ((1, 1), (pad, pad), (1, 1))
        return slow_convolution(y, blobs[index][:, :, ::-1, ::-1], None, geometry, 1)

    for index in range(COUNT):
        y = activate(x, 0, index)
        if bottleneck:
            y = activate(convolve(y, 5 * COUNT + index, 0), 5 * COUNT, index)
        x = np.concatenate([x, convolve(y, index, 1)], 1)
    return x


@pytest.mark.parametrize("bottleneck", [False, True], ids=["plain", "bottleneck"])
@pytest.mark.parametrize(("phase", "factor"), [("TEST", 2.5), ("TEST", 0), ("TRAIN", 2.5)])
def test_dense_block(bottleneck, phase, factor) -> None:
    x, blobs = draw(2, 3, 4, 5), draw_blobs(3, bottleneck, factor)
    if not factor:  # variances of 0 give factors of 316
        blobs = [blob * 0.01 if blob.ndim == 4 and len(blob) == 1 else blob for blob in blobs]
    expected = slow_block(x.astype(np.float64), blobs, bottleneck, phase == "TRAIN")
    more = f"use_BC: {str(bottleneck).lower()} initChannel: 16 filter_H: 3"
    body = f'type: "DenseBlock" denseblock_param {{ {FIELDS} {more} }}'
    net = one_layer(body, x.shape, blobs=blobs, phase=phase)
    assert_all_uses(net, [x], [expected], rtol=1e-3, atol=1e-4)


def test_a_pass_in_training_adds_the_batch() -> None:
    x, blobs = draw(2, 3, 4, 5), draw_blobs(3, False, 2.5)
    body = f'type: "DenseBlock" denseblock_param {{ {FIELDS} moving_average_fraction: 0.5 }}'
    net = one_layer(body, x.shape, blobs=blobs, phase="TRAIN")
    net(in0=torch.from_numpy(x))
    found = [blob.detach().numpy() for blob in net.params["op"]]
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(found[3 * COUNT].ravel(), blobs[3 * COUNT].ravel() / 2 + mean, rtol=1e-5)
    np.testing.assert_allclose(found[4 * COUNT].ravel(), blobs[4 * COUNT].ravel() / 2 + variance, rtol=1e-5)
    np.testing.assert_allclose(found[-1], 2.25)


REFUSED = {
    "rank": ((2, 3, 5), FIELDS, "its bottom has 3 axes; it takes 4 (N, C, H, W)"),
    "growth": ((2, 3, 4, 5), "growthRate: 0", "growthRate 0 must be at least 1"),
    "none": ((2, 3, 4, 5), "numTransition: 0", "numTransition 0 must be at least 1"),
    "filter": (
        (2, 3, 4, 5), "filter_H: 5", "denseblock_param.filter_H is not supported; remove it if it does not matter",
    ),
    "dropout": (
        (2, 3, 4, 5), "use_dropout: true",
        "denseblock_param.use_dropout is not supported; remove it if it does not matter",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("shape", "fields", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(shape, fields, message) -> None:
    with pytest.raises(LayerError) as caught:
        one_layer(f'type: "DenseBlock" denseblock_param {{ {fields} }}', shape)
    assert str(caught.value) == f"op (DenseBlock): {message}"
