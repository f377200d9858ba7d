"""The forks' resampling rules against slow loops: Resample, Downsample, Accum, Resize, DeephiResize, UnPooling, Flip."""

from __future__ import annotations

from math import ceil, floor

import cv2
import numpy as np
import pytest
from one_layer import assert_all_uses, build, draw, gradients

from ilgnet_repro.errors import LayerError


def by_weights(x, size, weigh):
    """Sum over all pixels; ``weigh(axis, to, place)`` is the weight of one row or column in another."""
    top = np.zeros((*x.shape[:2], *size))
    for row, column in np.ndindex(*size):
        for y, z in np.ndindex(*x.shape[2:]):
            top[:, :, row, column] += weigh(0, row, y) * weigh(1, column, z) * x[:, :, y, z]
    return top


# ---------------------------------------------------------------------- Resample


def triangle(d):
    return max(0.0, 1 - abs(d))


def cubic(d):
    d = abs(d)
    return 1.5 * d**3 - 2.5 * d**2 + 1 if d <= 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


@pytest.mark.parametrize("size", [(9, 11), (3, 4), (4, 9)], ids=["larger", "smaller", "both"])
@pytest.mark.parametrize("kind", ["LINEAR", "CUBIC"])
@pytest.mark.parametrize("antialias", ["true", "false"])
def test_resample(size, kind, antialias) -> None:
    x = draw(1, 2, 3, 6, 7)
    ratio = [n / m for n, m in zip(x.shape[2:], size, strict=True)]
    widens = antialias == "true" and max(ratio) > 1

    def filtered(axis, to, place):
        """The filter around the position, over its window; the other axis's ratio shifts it."""
        center = to * ratio[axis] + ratio[1 - axis] / 2 - 0.5
        scale = 1 / ratio[axis] if widens else 1.0
        reach = 2 if ratio[axis] < 1 else ceil((4 if kind == "CUBIC" else 2) / scale)
        near = floor(abs(center) + 0.5) * (1 if center >= 0 else -1)
        within = abs(place - near) <= reach
        return (cubic if kind == "CUBIC" else triangle)(scale * (center - place)) if within else 0.0

    def normalized(axis, to, place):
        return filtered(axis, to, place) / sum(
            filtered(axis, to, other) for other in range(x.shape[2 + axis])
        )

    text = f"resample_param {{ height: {size[0]} width: {size[1]} type: {kind} antialias: {antialias} }}"
    assert_all_uses(build("Resample", [x.shape], text), [x], [by_weights(x, size, normalized)])


def test_resample_to_the_size_of_a_blob() -> None:
    x, like = draw(1, 2, 3, 4, 6), draw(2, 2, 5, 2, 3)
    expected = x[:, :, ::2, ::2]  # positions 2i + 1/2, rounded away from zero
    net = build("Resample", [x.shape, like.shape], "resample_param { type: NEAREST height: 9 }")
    assert_all_uses(net, [x, like], [x[:, :, 1::2, 1::2]])
    assert expected.shape == net.shapes["top0"]


# ---------------------------------------------------------------------- Downsample, Accum


def test_downsample_leaves_nan_out() -> None:
    x, size = draw(1, 2, 3, 7, 9), (3, 4)
    x[0, 1, 2:5, 1:5] = x[0, 0, 0, 0] = np.nan  # the first hide most of what one position sees
    step = [(n - 1) / (m - 1) for n, m in zip(x.shape[2:], size, strict=True)]

    def weight(axis, to, place):
        return max(0.0, 1 - abs(place - to * step[axis]) / step[axis])

    lost = np.isnan(x)
    total, kept, missing = (
        by_weights(part, size, weight)
        for part in (np.where(lost, 0, x), (~lost).astype(float), lost.astype(float))
    )
    expected = np.where(missing / kept > 0.5, np.nan, total / kept)
    assert 0 < np.isnan(expected).sum() < 4
    text = "downsample_param { top_height: 3 top_width: 4 }"
    assert_all_uses(build("Downsample", [x.shape], text), [x], [expected])


def test_downsample_to_its_own_size_is_a_copy() -> None:
    x = draw(1, 2, 3, 1, 4)
    assert_all_uses(build("Downsample", [x.shape, (2, 1, 1, 4)]), [x, x[:, :1]], [x])


def aligned(x, size):
    """Bilinear, corners on corners."""
    step = [(n - 1) / (m - 1) for n, m in zip(x.shape[2:], size, strict=True)]
    return by_weights(x, size, lambda axis, to, place: triangle(place - to * step[axis]))


ACCUM = {  # the text, the size
    "greatest of each": ("", (6, 5)),
    "stated and greater": ("accum_param { top_height: 9 top_width: 8 }", (9, 8)),
    "stated and not greater in both": ("accum_param { top_height: 9 top_width: 5 }", (6, 5)),
    "multiple": ("accum_param { size_divisible_by: 4 }", (8, 8)),
    "multiple already": ("accum_param { size_divisible_by: 3 }", (6, 5)),
}


@pytest.mark.parametrize(("text", "size"), ACCUM.values(), ids=ACCUM)
def test_accum(text, size) -> None:
    x, y = draw(1, 2, 3, 4, 5), draw(2, 2, 2, 6, 3)
    expected = np.concatenate([aligned(x, size), aligned(y, size)], 1)
    assert_all_uses(build("Accum", [x.shape, y.shape], text), [x, y], [expected])


def test_accum_to_a_reference() -> None:
    x, like = draw(1, 2, 3, 4, 5), draw(2, 2, 4, 3, 7)
    net = build("Accum", [x.shape, like.shape], "accum_param { have_reference: true }")
    assert_all_uses(net, [x, like], [aligned(x, (3, 7))])


# ---------------------------------------------------------------------- Resize, DeephiResize


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("height: 9 width: 4", (9, 4)),
        ("is_pyramid_test: true out_height_scale: 0.7 out_width_scale: 1.9", (4, 13)),
    ],
    ids=["size", "scales"],
)
def test_resize_from_the_corner(text, size) -> None:
    x = draw(1, 2, 3, 6, 7)
    # A neighbor past the end counts as 0.
    expected = by_weights(
        x, size, lambda axis, to, place: triangle(place - to * x.shape[2 + axis] / size[axis])
    )
    assert_all_uses(build("Resize", [x.shape], f"resize_param {{ {text} }}"), [x], [expected])


@pytest.mark.parametrize("size", [(9, 11), (3, 4), (13, 2), (3, 14)])
@pytest.mark.parametrize("kind", ["BILINEAR", "NEAREST"])
def test_deephi_resize_is_opencv(size, kind) -> None:
    x = draw(1, 2, 3, 6, 7)
    mode = cv2.INTER_LINEAR if kind == "BILINEAR" else cv2.INTER_NEAREST
    planes = [cv2.resize(plane, size[::-1], interpolation=mode) for plane in x.reshape(6, 6, 7)]
    text = f"deephi_resize_param {{ new_height: {size[0]} new_width: {size[1]} resize_type: {kind} }}"
    assert_all_uses(build("DeephiResize", [x.shape], text), [x], [np.reshape(planes, (2, 3, *size))])


# ---------------------------------------------------------------------- UnPooling, Flip


def slow_unpool(x, method, kernel, stride, pad):
    size = [(n - 1) * s - 2 * p + k for n, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True)]
    top, count = np.zeros((*x.shape[:2], *size)), np.zeros(size)
    for place in np.ndindex(*x.shape[2:]):
        starts = [i * s - p for i, s, p in zip(place, stride, pad, strict=True)]
        if method == "FIXED":
            middle = [int((2 * a + k - 1) / 2) for a, k in zip(starts, kernel, strict=True)]
            y, z = (min(max(m, 0), n - 1) for m, n in zip(middle, size, strict=True))
            top[:, :, y, z] = x[(..., *place)]
            continue
        ends = [min(a + k, n + p) for a, k, n, p in zip(starts, kernel, size, pad, strict=True)]
        area = np.prod([b - a for a, b in zip(starts, ends, strict=True)]) if method == "DIV" else 1
        rows, columns = (slice(max(a, 0), min(b, n)) for a, b, n in zip(starts, ends, size, strict=True))
        top[:, :, rows, columns] += (x[(..., *place)] / area)[..., None, None]
        count[rows, columns] += 1
    return top if method == "FIXED" else top / np.maximum(count, 1)


UNPOOL = {
    "overlap": ("out_kernel_size: 3 out_stride: 2", (3, 3), (2, 2), (0, 0)),
    "pad": (
        "out_kernel_h: 3 out_kernel_w: 4 out_stride: 3 out_pad_h: 1 out_pad_w: 2",
        (3, 4),
        (3, 3),
        (1, 2),
    ),
    "gaps": ("out_kernel_size: 1 out_stride_h: 2 out_stride_w: 3", (1, 1), (2, 3), (0, 0)),
    "clipped": ("out_kernel_size: 4 out_stride: 1 out_pad: 3", (4, 4), (1, 1), (3, 3)),
    "most windows overlap": (
        "out_kernel_h: 131 out_kernel_w: 66 out_stride: 1 out_pad_h: 5 out_pad_w: 2", (131, 66), (1, 1), (5, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "kernel", "stride", "pad"), UNPOOL.values(), ids=UNPOOL)
@pytest.mark.parametrize("method", ["FIXED", "DIV", "REP"])
def test_unpooling(text, kernel, stride, pad, method) -> None:
    x = draw(1, 2, 3, 5, 6)
    expected = slow_unpool(x, method, kernel, stride, pad)
    net = build("UnPooling", [x.shape], f"unpooling_param {{ unpool: {method} {text} }}")
    assert_all_uses(net, [x], [expected])
    diff = draw(2, *expected.shape)
    # The layer is linear: its gradient is the sum over what one value alone gives.
    back = np.zeros_like(x)
    for y, z in np.ndindex(5, 6):
        one = np.zeros((1, 1, 5, 6))
        one[0, 0, y, z] = 1
        response = slow_unpool(np.arange(1, 31).reshape(1, 1, 5, 6), "FIXED", kernel, stride, pad)
        alone = (
            (response == y * 6 + z + 1)
            if method == "FIXED"
            else slow_unpool(one, method, kernel, stride, pad)
        )
        back[:, :, y, z] = (diff * alone).sum((2, 3))
    np.testing.assert_allclose(gradients(net, [x], diff)[0], back, rtol=1e-4, atol=1e-5)


def test_unpooling_to_the_size_of_a_blob() -> None:
    x, like = draw(1, 2, 3, 4, 1), draw(2, 2, 1, 11, 5)
    # Rows: kernel and stride ceil(11 / 4) = 3, pad floor((3·3 + 3 - 11) / 2) = 0; columns: one window of 5.
    expected = slow_unpool(x, "REP", (3, 5), (3, 1), (0, 0))
    net = build("UnPooling", [x.shape, like.shape], "unpooling_param { unpool: REP }")
    assert_all_uses(net, [x, like], [expected])


@pytest.mark.parametrize(
    ("text", "steps"),
    [("", (1, -1)), ("flip_height: true", (-1, -1)), ("flip_width: false", (1, 1))],
    ids=["width", "both", "none"],
)
def test_flip(text, steps) -> None:
    x = draw(1, 2, 3, 4, 5)
    expected = x[:, :, :: steps[0], :: steps[1]]
    assert_all_uses(build("Flip", [x.shape], f"flip_param {{ {text} }}"), [x], [expected])


# ---------------------------------------------------------------------- refused

X = (2, 3, 6, 7)
REFUSED = {
    "Resample no size": ("Resample", [X], "", "height 0 and width 0 must both be stated and over 0"),
    "Resample area": (
        "Resample", [X], "resample_param { height: 2 width: 2 type: AREA }",
        "type AREA is not supported; use NEAREST, LINEAR or CUBIC",
    ),
    "Resample reads outside": (
        "Resample", [X], "resample_param { height: 2 width: 7 type: NEAREST }",
        "NEAREST from [6, 7] to [2, 7] reads outside the image; the two ratios must be alike",
    ),
    "Resample factor": (
        "Resample", [X], "resample_param { height: 2 width: 7 factor: 2 }",
        "resample_param.factor is not supported; remove it if it does not matter",
    ),
    "Resample rank": ("Resample", [(2, 3)], "resample_param { height: 2 width: 7 }", "bottom [2, 3] must be N×C×H×W"),
    "Downsample to a row": (
        "Downsample", [X], "downsample_param { top_height: 1 top_width: 7 }",
        "sides of 1, from [6, 7] to [1, 7], divide by zero; use sides of at least 2",
    ),
    "Accum reference": (
        "Accum", [X], "accum_param { have_reference: true }",
        "have_reference needs at least two bottoms, the last one as the reference",
    ),
    "Accum images": (
        "Accum", [X, (1, 3, 6, 7)], "", "bottoms [[2, 3, 6, 7], [1, 3, 6, 7]] differ in their number of images",
    ),
    "Accum row": ("Accum", [(2, 3, 1, 7)], "", "a top of [1, 7] divides by zero; its sides must be at least 2"),
    "Accum multiple": ("Accum", [X], "accum_param { size_divisible_by: 0 }", "size_divisible_by 0 must be at least 1"),
    "Resize half": ("Resize", [X], "resize_param { height: 3 }", "height 3 and width 0 must both be stated and over 0"),
    "Resize scale": (
        "Resize", [X], "resize_param { is_pyramid_test: true out_height_scale: 2 }",
        "is_pyramid_test needs out_width_scale; state it",
    ),
    "DeephiResize none": ("DeephiResize", [X], "", "needs new_height and new_width, or scale_h and scale_w"),
    "DeephiResize half": (
        "DeephiResize", [X], "deephi_resize_param { scale_h: 2 }", "states only one of scale_h and scale_w; state both",
    ),
    "DeephiResize nothing left": (
        "DeephiResize", [X], "deephi_resize_param { scale_h: 0.125 scale_w: 1 }",
        "scales [0.125, 1.0] leave nothing of [6, 7]",
    ),
    "UnPooling no kernel": (
        "UnPooling", [X], "", "out_kernel_size is missing; state it, or out_kernel_h and out_kernel_w",
    ),
    "UnPooling two kernels": (
        "UnPooling", [X], "unpooling_param { out_kernel_size: 2 out_kernel_h: 2 out_kernel_w: 2 }",
        "states both out_kernel_size and out_kernel_h/out_kernel_w; state one kind",
    ),
    "UnPooling half": (
        "UnPooling", [X], "unpooling_param { out_kernel_size: 2 out_stride_h: 2 }",
        "states only one of out_stride_h and out_stride_w; state both",
    ),
    "UnPooling pad": (
        "UnPooling", [X], "unpooling_param { out_kernel_size: 2 out_pad: 2 }",
        "out_pad [2, 2] must be smaller than the kernel [2, 2]",
    ),
    "Flip rank": ("Flip", [(2, 3)], "", "its bottom has 2 axes; it takes 4 (N, C, H, W)"),
}  # fmt: skip


@pytest.mark.parametrize(("type_", "shapes", "params", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(type_, shapes, params, message) -> None:
    with pytest.raises(LayerError) as caught:
        build(type_, shapes, params)
    assert str(caught.value) == f"op ({type_}): {message}"
