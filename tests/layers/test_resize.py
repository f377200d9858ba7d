"""Upsample, Interp and Im2col against slow formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import assert_all_uses, build, draw, gradients, run

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet

PROPERTY = settings(max_examples=examples(60), deadline=None)
SIDE = st.integers(1, 6)


# ---------------------------------------------------------------------- Upsample

SIZES = {
    "scale": ("scale: 3", lambda h, w: (3 * h, 3 * w)),
    "default": ("", lambda h, w: (2 * h, 2 * w)),
    "scale_h and scale_w": ("scale_h: 2 scale_w: 4", lambda h, w: (2 * h, 4 * w)),
    "pad_out_h": ("pad_out_h: true", lambda h, w: (2 * h - 1, 2 * w)),
    "pad_out_w": ("scale: 2 pad_out_w: true", lambda h, w: (2 * h, 2 * w - 1)),
    "upsample_h and upsample_w beside scale": (
        "scale: 2 upsample_h: 13 upsample_w: 14",
        lambda h, w: (13, 14),
    ),
    "upsample_h and upsample_w": ("upsample_h: 13 upsample_w: 14", lambda h, w: (13, 14)),
}


@PROPERTY
@given(height=SIDE, width=SIDE, which=st.sampled_from(sorted(SIZES)), seed=st.integers(0, 99))
def test_upsample(height, width, which, seed) -> None:
    text, size = SIZES[which]
    tall, wide = size(height, width)
    x = draw(seed, 2, 3, height, width)
    # Indices may repeat: overlapping windows may have the same maximum, and the last one written remains.
    mask = np.random.default_rng(seed).integers(0, tall * wide, x.shape).astype(np.float32)
    expected = np.zeros((2, 3, tall, wide), np.float32)
    diff, back = draw(seed + 1, *expected.shape), np.empty_like(x)
    for n, c, h, w in np.ndindex(*x.shape):
        row, column = divmod(int(mask[n, c, h, w]), wide)
        expected[n, c, row, column] = x[n, c, h, w]
        back[n, c, h, w] = diff[n, c, row, column]
    net = build("Upsample", [x.shape, x.shape], f"upsample_param {{ {text} }}")
    assert_all_uses(net, [x, mask], [expected])
    np.testing.assert_array_equal(gradients(net, [x, mask], diff)[0], back)


def test_upsample_inverts_the_pooling_that_made_its_mask() -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 6 } } }
    layer { name: "pool" type: "Pooling" bottom: "x" top: "p" top: "mask"
      pooling_param { kernel_size: 2 stride: 2 } }
    layer { name: "up" type: "Upsample" bottom: "p" bottom: "mask" top: "u" upsample_param { scale: 2 } }
    """
    x = np.abs(draw(1, 2, 3, 8, 6))
    found = CaffeNet(load_graph(parse_net(text)))(x=x)["u"].numpy()
    windows = x.reshape(2, 3, 4, 2, 3, 2)
    kept = windows == windows.max((3, 5), keepdims=True)
    np.testing.assert_array_equal(found, np.where(kept, windows, 0).reshape(x.shape))


@pytest.mark.parametrize("wrong", [-1, 24], ids=["below", "above"])
def test_upsample_refuses_a_mask_of_another_size(wrong) -> None:
    net = build("Upsample", [(1, 1, 2, 3)] * 2, "upsample_param { scale: 2 }")
    mask = np.full((1, 1, 2, 3), wrong, np.float32)
    with pytest.raises(LayerError, match=rf"op \(Upsample\): mask index {wrong} is out of range.* 0 to 23"):
        run(net, [draw(1, 1, 1, 2, 3), mask])


def test_upsample_reads_the_mask_of_a_pooling_that_does_not_state_it() -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 1 dim: 4 dim: 4 } } }
    layer { name: "pool" type: "Pooling" bottom: "x" top: "p" top: "mask"
      pooling_param { kernel_size: 2 stride: 2 } }
    layer { name: "up" type: "Upsample" bottom: "p" bottom: "mask" top: "u" }
    """
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    expected = np.where(np.isin(x, [5, 7, 13, 15]), x, 0)
    np.testing.assert_array_equal(CaffeNet(load_graph(parse_net(text)))(x=x)["u"], expected)


@pytest.mark.parametrize(
    ("text", "times"), [("", 2), ("upsample_param { scale: 1 }", 1), ("upsample_param { scale: 3 }", 3)]
)
def test_upsample_of_one_bottom_repeats(text, times) -> None:
    x = draw(1, 2, 3, 4, 5)
    expected = np.empty((2, 3, 4 * times, 5 * times), np.float32)
    for place in np.ndindex(*expected.shape):
        expected[place] = x[place[0], place[1], place[2] // times, place[3] // times]
    assert_all_uses(build("Upsample", [x.shape], text), [x], [expected])


@pytest.mark.parametrize("size", [(3, 4), (7, 8), (6, 4)])
def test_upsample_like_another(size) -> None:
    x, like = draw(1, 2, 3, 3, 4), draw(2, 2, 3, *size)
    expected = np.zeros(like.shape)
    for row, column in np.ndindex(*size):
        taps = []
        for i, n, m in ((row, size[0], 3), (column, size[1], 4)):
            place = (i + 1) / (n / m) - 1
            low = 1 - (place - int(place))
            high = 0 if int(place) + 1 > m - 1 else 1 - low
            taps.append(((max(int(place), 0), low), (min(int(place) + 1, m - 1), high)))
        for y, down in taps[0]:
            for z, across in taps[1]:
                expected[:, :, row, column] += down * across * x[:, :, y, z]
    net = build("Upsample", [like.shape, x.shape])
    assert_all_uses(net, [like, x], [expected])


# ---------------------------------------------------------------------- Interp


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("zoom_factor: 3 height: 2 width: 2", (10, 13)),
        ("shrink_factor: 2 height: 2 width: 9", (2, 3)),
        ("shrink_factor: 2 zoom_factor: 3 height: 6 width: 7", (6, 7)),
    ],
    ids=["zoom", "shrink", "both"],
)
def test_interp_by_one_factor_or_a_size(text, size) -> None:
    x = draw(1, 2, 3, 4, 5)
    assert_all_uses(build("Interp", [x.shape], f"interp_param {{ {text} }}"), [x], [slow_interp(x, *size)])


def test_interp_to_the_size_of_a_blob_whatever_else_is_stated() -> None:
    x, like = draw(1, 2, 3, 4, 5), draw(2, 2, 4, 7, 3)
    text = "interp_param { use_blob_size: true zoom_factor: 2 height: 9 width: 9 }"
    assert_all_uses(build("Interp", [x.shape, like.shape], text), [x, like], [slow_interp(x, 7, 3)])


def slow_interp(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with the first and last pixels of both images aligned."""
    top = np.empty((*x.shape[:2], height, width))
    for row, column in np.ndindex(height, width):
        y = row * (x.shape[2] - 1) / (height - 1) if height > 1 else 0
        z = column * (x.shape[3] - 1) / (width - 1) if width > 1 else 0
        above, left = min(int(y), x.shape[2] - 1), min(int(z), x.shape[3] - 1)
        below, right = min(above + 1, x.shape[2] - 1), min(left + 1, x.shape[3] - 1)
        down, across = y - above, z - left
        top[:, :, row, column] = (1 - down) * (
            (1 - across) * x[:, :, above, left] + across * x[:, :, above, right]
        ) + down * ((1 - across) * x[:, :, below, left] + across * x[:, :, below, right])
    return top


@PROPERTY
@given(
    height=st.integers(3, 8),
    width=st.integers(3, 8),
    first=st.integers(0, 1),
    last=st.integers(0, 1),
    kind=st.sampled_from(["size", "zoom", "shrink", "both", "bottom"]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_interp(height, width, first, last, kind, seed, data) -> None:
    x = draw(seed, 2, 3, height, width)
    cut = x[:, :, first : height - last, first : width - last].astype(np.float64)
    tall, wide = cut.shape[2:]
    text, arrays = f"pad_beg: {-first} pad_end: {-last}", [x]
    if kind in ("size", "bottom"):
        tall, wide = data.draw(SIDE), data.draw(SIDE)
        if kind == "size":
            text += f" height: {tall} width: {wide}"
        else:
            arrays.append(draw(1, 2, 4, tall, wide))
    if kind in ("shrink", "both"):
        factor = data.draw(st.integers(1, 3))
        text += f" shrink_factor: {factor}"
        tall, wide = (len(range(0, side, factor)) for side in (tall, wide))
    if kind in ("zoom", "both"):
        factor = data.draw(st.integers(1, 4))
        text += f" zoom_factor: {factor}"
        tall, wide = (side + (side - 1) * (factor - 1) for side in (tall, wide))
    net = build("Interp", [array.shape for array in arrays], f"interp_param {{ {text} }}")
    assert_all_uses(net, arrays, [slow_interp(cut, tall, wide)])


# ---------------------------------------------------------------------- Im2col


@PROPERTY
@given(
    spatial=st.lists(st.integers(4, 7), min_size=1, max_size=2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    dilation=st.integers(1, 2),
    lead=st.sampled_from([(2,), (2, 3), ()]),
)
def test_im2col(spatial, kernel, stride, pad, dilation, lead) -> None:
    count, channels = len(spatial), 3
    reach = dilation * (kernel - 1) + 1
    # C rounds towards zero: a kernel a little larger than the padded bottom has one position.
    places = [int((side + 2 * pad - reach) / stride) + 1 for side in spatial]
    text = f"axis: {len(lead)} kernel_size: {kernel} stride: {stride} pad: {pad} dilation: {dilation}"
    x = draw(1, *lead, channels, *spatial)
    if min(places) < 1:
        with pytest.raises(LayerError, match="is too small for kernel"):
            build("Im2col", [x.shape], f"convolution_param {{ {text} }}")
        return
    expected = np.zeros((*lead, channels * kernel**count, *places), np.float32)
    for channel in range(channels):
        for window, offsets in enumerate(np.ndindex(*[kernel] * count)):
            for place in np.ndindex(*places):
                origin = [p * stride - pad + o * dilation for p, o in zip(place, offsets, strict=True)]
                if all(0 <= o < side for o, side in zip(origin, spatial, strict=True)):
                    value = x[(..., channel, *origin)]
                    expected[(..., channel * kernel**count + window, *place)] = value
    net = build("Im2col", [x.shape], f"convolution_param {{ {text} }}")
    assert_all_uses(net, [x], [expected])
    assert net.params == {}


X = (2, 6, 5, 7)
REFUSED = {
    "Upsample two scales": (
        "Upsample",
        [X, X],
        "upsample_param { scale: 2 scale_h: 2 scale_w: 2 }",
        "scale and scale_h",
    ),
    "Upsample half a scale": (
        "Upsample",
        [X, X],
        "upsample_param { scale_h: 2 }",
        "only one of scale_h and scale_w",
    ),
    "Upsample scale 1": (
        "Upsample",
        [X, X],
        "upsample_param { scale: 1 }",
        r"scale \[1, 1\] must be at least 2",
    ),
    "Upsample pad_out with scale 3": (
        "Upsample",
        [X, X],
        "upsample_param { scale: 3 pad_out_w: true }",
        "pad_out_w goes with a scale of 2 only",
    ),
    "Upsample mask shape": (
        "Upsample",
        [X, (2, 6, 5, 6)],
        "upsample_param { scale: 2 }",
        r"\[2, 6, 5, 7\] and \[2, 6, 5, 6\] must be of one shape",
    ),
    "Upsample nearest by 0": ("Upsample", [X], "upsample_param { scale: 0 }", "scale 0 must be at least 1"),
    "Upsample nearest to a size": (
        "Upsample",
        [X],
        "upsample_param { upsample_h: 9 upsample_w: 9 }",
        "upsample_h needs a second bottom, the mask of a Pooling layer; remove it",
    ),
    "Upsample nearest of rows": ("Upsample", [(2, 3, 5)], "", r"\[2, 3, 5\] must be N×C×H×W"),
    "Upsample like a smaller one": (
        "Upsample",
        [X, (2, 6, 5, 8)],
        "",
        "without upsample_param the second is resized to the size of the first",
    ),
    "Interp use_blob_size": (
        "Interp",
        [X],
        "interp_param { use_blob_size: true }",
        "use_blob_size needs a second bottom, whose size is taken",
    ),
    "Interp no size": ("Interp", [X], "", "needs either height and width, or factors, or a second bottom"),
    "Interp two sizes": (
        "Interp",
        [X, X],
        "interp_param { zoom_factor: 2 }",
        "needs either height and width",
    ),
    "Interp half a size": ("Interp", [X], "interp_param { height: 3 }", "only one of height and width"),
    "Interp zoom 0": ("Interp", [X], "interp_param { zoom_factor: 0 }", "zoom_factor 0 must be at least 1"),
    "Interp height": ("Interp", [X], "interp_param { height: -1 width: 2 }", "height -1 must be at least 1"),
    "Interp pad": ("Interp", [X], "interp_param { zoom_factor: 2 pad_end: 1 }", "pad_end 1 is over 0"),
    "Interp all cut off": (
        "Interp",
        [X],
        "interp_param { zoom_factor: 2 pad_beg: -2 pad_end: -3 }",
        r"\[2, 6, 5, 7\] is empty after cropping 5 per axis",
    ),
    "Interp rank": ("Interp", [(2, 3, 5)], "interp_param { zoom_factor: 2 }", r"\[2, 3, 5\] is not of shape"),
    "Im2col without kernel": ("Im2col", [X], "", "kernel_size is missing"),
    "Im2col num_output": (
        "Im2col",
        [X],
        "convolution_param { kernel_size: 3 num_output: 4 }",
        "convolution_param.num_output is not supported",
    ),
}


@pytest.mark.parametrize(("type_", "shapes", "params", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(type_, shapes, params, message) -> None:
    with pytest.raises(LayerError, match=message) as caught:
        build(type_, shapes, params)
    assert str(caught.value).startswith(f"op ({type_}): ") and "\n" not in str(caught.value)
