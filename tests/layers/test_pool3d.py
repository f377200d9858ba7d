"""Pooling of video against slow loops: Pooling3D and NdPooling."""

from __future__ import annotations

from math import ceil, prod

import numpy as np
import pytest
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, gradients

from ilgnet_repro.errors import LayerError

LOWEST = np.finfo(np.float32).min


def slow_pool(x, method, counts, kernel, stride, pad):
    """Pool window by window; AVE counts the positions up to the end of the padding."""
    top = np.zeros((*x.shape[:2], *counts))
    for place in np.ndindex(*counts):
        starts = [i * s - p for i, s, p in zip(place, stride, pad, strict=True)]
        ends = [min(a + k, n + p) for a, k, n, p in zip(starts, kernel, x.shape[2:], pad, strict=True)]
        size = prod(b - a for a, b in zip(starts, ends, strict=True))
        window = x[(..., *(slice(max(a, 0), max(b, 0)) for a, b in zip(starts, ends, strict=True)))]
        values = window.reshape(*x.shape[:2], -1).astype(np.float64)
        if method == "MAX":
            top[(..., *place)] = values.max(-1) if values.size else LOWEST
        else:
            top[(..., *place)] = values.sum(-1) / size if size else np.nan
    return top


def rounded_up(sizes, kernel, stride, pad):
    return [ceil((n + 2 * p - k) / s) + 1 for n, k, s, p in zip(sizes, kernel, stride, pad, strict=True)]


C3D = {
    "max": ("pool: MAX kernel_size: 3 kernel_depth: 2 stride: 2 temporal_stride: 3", (2, 3, 3), (3, 2, 2), 0),
    "average": (
        "pool: AVE kernel_size: 2 kernel_depth: 3 stride: 3 temporal_stride: 2",
        (3, 2, 2),
        (2, 3, 3),
        0,
    ),
    "padded average": ("pool: AVE kernel_size: 3 kernel_depth: 1 stride: 2 pad: 1", (1, 3, 3), (1, 2, 2), 1),
    # The last row of windows starts past the padding; BVLC's pooling would drop it.
    "windows past the end": ("kernel_size: 1 kernel_depth: 1 stride: 4", (1, 1, 1), (1, 4, 4), 0),
}


@pytest.mark.parametrize(("fields", "kernel", "stride", "pad"), C3D.values(), ids=C3D)
def test_pooling3d(fields, kernel, stride, pad) -> None:
    x, pads = draw(2, 3, 5, 6, 7), (0, pad, pad)
    expected = slow_pool(x, "AVE" if "AVE" in fields else "MAX", rounded_up(x.shape[2:], kernel, stride, pads),
                         kernel, stride, pads)  # fmt: skip
    net = one_layer(f'type: "Pooling3D" pooling3d_param {{ {fields} }}', x.shape)
    assert_all_uses(net, [x], [expected])


def test_every_maximum_gets_the_gradient() -> None:
    x = np.round(draw(1, 2, 2, 4, 4)).astype(np.float32)  # many ties
    net = one_layer('type: "Pooling3D" pooling3d_param { kernel_size: 2 kernel_depth: 2 }', x.shape)
    diff = draw(1, 2, 1, 3, 3, seed=1)
    expected = np.zeros_like(x)
    for c, row, column in np.ndindex(2, 3, 3):
        window = x[0, c, :, row : row + 2, column : column + 2]
        back = expected[0, c, :, row : row + 2, column : column + 2]
        back += np.where(window == window.max(), diff[0, c, 0, row, column], 0)
    np.testing.assert_allclose(gradients(net, [x], diff)[0], expected, rtol=1e-5)


ND = {
    "max": ((2, 3, 4, 5, 6), "MAX", (2, 3, 1), (2, 1, 2), (1, 0, 0)),
    "average": ((2, 3, 4, 5, 6), "AVE", (3, 2, 3), (2, 2, 2), (1, 0, 1)),
    "image": ((2, 3, 5, 7), "AVE", (3, 2), (2, 3), (2, 0)),
    "row": ((2, 3, 8), "MAX", (3,), (2,), (1,)),
}


@pytest.mark.parametrize(("shape", "method", "kernel", "stride", "pad"), ND.values(), ids=ND)
def test_nd_pooling(shape, method, kernel, stride, pad) -> None:
    counts = rounded_up(shape[2:], kernel, stride, pad)
    # Of a padded axis, and of no other, the window that starts past the padding is dropped.
    counts = [
        count - 1 if p and (count - 1) * s >= n + p else count
        for count, n, s, p in zip(counts, shape[2:], stride, pad, strict=True)
    ]
    text = " ".join(
        f"{name}_shape {{ {' '.join(f'dim: {length}' for length in lengths)} }}"
        for name, lengths in (("kernel", kernel), ("stride", stride), ("pad", pad))
    )
    x = draw(*shape)
    net = one_layer(f'type: "NdPooling" pooling_param {{ pool: {method} {text} }}', shape)
    assert_all_uses(net, [x], [slow_pool(x, method, counts, kernel, stride, pad)])


@pytest.mark.parametrize("method", ["MAX", "AVE"])
def test_global_nd_pooling(method) -> None:
    x = draw(2, 3, 4, 5, 6)
    expected = x.max((2, 3, 4), keepdims=True) if method == "MAX" else x.mean((2, 3, 4), keepdims=True)
    net = one_layer(f'type: "NdPooling" pooling_param {{ pool: {method} global_pooling: true }}', x.shape)
    assert_all_uses(net, [x], [expected])


POOLING = {
    "max": ("kernel_size: 2 stride: 2", "MAX", 2, 2, 0),
    "padded average": ("pool: AVE kernel_size: 3 stride: 2 pad: 1", "AVE", 3, 2, 1),
}


@pytest.mark.parametrize(("fields", "method", "kernel", "stride", "pad"), POOLING.values(), ids=POOLING)
def test_pooling_of_five_axes(fields, method, kernel, stride, pad) -> None:
    x, geometry = draw(2, 3, 4, 5, 7), [(value,) * 3 for value in (kernel, stride, pad)]
    counts = rounded_up(x.shape[2:], *geometry)
    if pad:  # a window that starts past the padding is dropped
        counts = [
            c - 1 if (c - 1) * stride >= n + pad else c for c, n in zip(counts, x.shape[2:], strict=True)
        ]
    net = one_layer(f'type: "Pooling" pooling_param {{ {fields} }}', x.shape)
    assert_all_uses(net, [x], [slow_pool(x, method, counts, *geometry)])


def test_global_pooling_of_five_axes() -> None:
    x = draw(2, 3, 4, 5, 7)
    net = one_layer('type: "Pooling" pooling_param { pool: AVE global_pooling: true }', x.shape)
    assert_all_uses(net, [x], [x.mean((2, 3, 4), keepdims=True)])


VIDEO = (2, 3, 4, 5, 6)
REFUSED = {
    "no depth": ("Pooling3D", VIDEO, "kernel_size: 2", "kernel_depth is missing; state it in pooling3d_param"),
    "an image": (
        "Pooling3D", (2, 3, 5, 6), "kernel_size: 2 kernel_depth: 2", "its bottom has 4 axes; it takes 5 (N, C, time, H, W)",
    ),
    "stochastic": (
        "Pooling3D", VIDEO, "pool: STOCHASTIC kernel_size: 2 kernel_depth: 2",
        "pool STOCHASTIC is not supported; use MAX or AVE",
    ),
    "padded maximum": (
        "Pooling3D", VIDEO, "kernel_size: 2 kernel_depth: 2 pad: 1", "pad 1 goes with AVE only, not MAX",
    ),
    "stride 0": (
        "Pooling3D", VIDEO, "kernel_size: 2 kernel_depth: 2 temporal_stride: 0", "temporal_stride 0 must be at least 1",
    ),
    "too small": (
        "Pooling3D", VIDEO, "kernel_size: 2 kernel_depth: 9", f"bottom {list(VIDEO)} is too small for kernel [9, 2, 2]",
    ),
    "temporal_pad": (
        "Pooling3D", VIDEO, "kernel_size: 2 kernel_depth: 2 temporal_pad: 1",
        "pooling3d_param.temporal_pad is not supported; remove it if it does not matter",
    ),
    "five axes, stochastic": (
        "Pooling", VIDEO, "pool: STOCHASTIC kernel_size: 2", "pool STOCHASTIC takes four axes; use MAX or AVE",
    ),
    "five axes, kernel_h": (
        "Pooling", VIDEO, "kernel_h: 2 kernel_w: 2", "kernel_h takes four axes; this blob has five",
    ),
    "five axes, too small": (
        "Pooling", VIDEO, "kernel_size: 9 stride: 2", f"bottom {list(VIDEO)} is too small for kernel [9, 9, 9]",
    ),
    "no kernel_shape": ("NdPooling", VIDEO, "", "kernel_shape is missing; state one length per spatial axis"),
    "lengths": (
        "NdPooling", VIDEO, "kernel_shape { dim: 2 }", "kernel_shape [2] has 1 lengths for 3 spatial axes",
    ),
    "kernel 0": (
        "NdPooling", (2, 3, 5), "kernel_shape { dim: 0 }", "kernel_shape [0] must be at least 1",
    ),
    "pad": (
        "NdPooling", (2, 3, 5), "kernel_shape { dim: 2 } pad_shape { dim: 2 }",
        "pad_shape [2] must be smaller than kernel_shape [2]",
    ),
    "global": (
        "NdPooling", VIDEO, "global_pooling: true pad_shape { dim: 1 }",
        "global_pooling takes the whole plane; remove pad_shape",
    ),
    "axes": ("NdPooling", (2, 3), "", "a bottom of 2 axes has 0 spatial axes; 1 to 3 are supported"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "shape", "fields", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(kind, shape, fields, message) -> None:
    param = "pooling_param" if kind in ("NdPooling", "Pooling") else "pooling3d_param"
    with pytest.raises(LayerError) as caught:
        one_layer(f'type: "{kind}" {param} {{ {fields} }}', shape)
    assert str(caught.value) == f"op ({kind}): {message}"
