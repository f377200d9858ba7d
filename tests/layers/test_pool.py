"""Pooling against slow loops, in torch, ONNX Runtime and written source, and what it refuses."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from example_counts import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_nets import draw, one_layer
from one_layer import run, run_onnx, run_source
from slow_pooling import LOWEST, slow_counts, slow_pool

from ilgnet_repro.errors import LayerError
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.export.source_writer import build_source


@st.composite
def geometries(draw):
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    kernel, stride = draw(pair), draw(pair)
    pad = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    size = draw(st.tuples(st.integers(1, 11), st.integers(1, 11)))
    ceil_mode = draw(st.booleans())
    assume(min(slow_counts(size, kernel, stride, pad, ceil_mode)) >= 1)
    return size, kernel, stride, pad, ceil_mode


def text(method, kernel, stride, pad, ceil_mode):
    fields = "".join(
        f"{name}_h: {pair[0]} {name}_w: {pair[1]} "
        for name, pair in (("kernel", kernel), ("stride", stride), ("pad", pad))
    )
    mode = "CEIL" if ceil_mode else "FLOOR"
    return f'type: "Pooling" pooling_param {{ pool: {method} {fields} round_mode: {mode} }}'


@settings(max_examples=examples(60), deadline=None)
@given(geometries(), st.sampled_from(["MAX", "AVE", "STOCHASTIC"]))
def test_pooling_equals_slow_loops_in_all_four_forms(geometry, method):
    size, kernel, stride, pad, ceil_mode = geometry
    if method == "STOCHASTIC":
        pad = (0, 0)
        assume(min(slow_counts(size, kernel, stride, pad, ceil_mode)) >= 1)
    x = draw(2, 3, *size)
    x = np.abs(x) * (x > -0.5) if method == "STOCHASTIC" else x
    expected, _ = slow_pool(x, method, kernel, stride, pad, ceil_mode=ceil_mode)
    net = one_layer(text(method, kernel, stride, pad, ceil_mode), x.shape)
    assert net.shapes["top0"] == expected.shape
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, [x])[0], expected, rtol=1e-5, atol=1e-6, err_msg=use.__name__)


@settings(max_examples=examples(60), deadline=None)
@given(geometries())
def test_mask_is_the_index_in_the_plane(geometry):
    size, kernel, stride, pad, ceil_mode = geometry
    x = draw(2, 3, *size)
    expected, mask = slow_pool(x, "MAX", kernel, stride, pad, ceil_mode=ceil_mode)
    net = one_layer(text("MAX", kernel, stride, pad, ceil_mode), x.shape, tops=2)
    for use in (run, run_onnx, run_source):
        for found, wanted in zip(use(net, [x]), (expected, mask), strict=True):
            np.testing.assert_array_equal(found, wanted.astype(np.float32), err_msg=use.__name__)


@settings(max_examples=examples(40), deadline=None)
@given(geometries())
def test_the_gradient_of_a_tie_flows_to_the_first_maximum(geometry):
    size, kernel, stride, pad, ceil_mode = geometry
    x = np.round(draw(1, 2, *size)).astype(np.float32)  # many ties
    _, mask = slow_pool(x, "MAX", kernel, stride, pad, ceil_mode=ceil_mode)
    expected = np.zeros((2, size[0] * size[1]))
    for channel in range(2):
        for index in mask[0, channel].ravel():
            if index >= 0:
                expected[channel, int(index)] += 1
    leaf = torch.from_numpy(x).requires_grad_()
    one_layer(text("MAX", kernel, stride, pad, ceil_mode), x.shape)(in0=leaf)["top0"].sum().backward()
    np.testing.assert_array_equal(leaf.grad[0].reshape(2, -1).numpy(), expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("pool: MAX kernel_size: 3 stride: 2", "F.max_pool2d(in0, 3, 2, ceil_mode=True)"),
        ("pool: MAX kernel_size: 2 stride: 2", "F.max_pool2d(in0, 2, ceil_mode=True)"),
        ("pool: AVE kernel_size: 5 stride: 3", "F.avg_pool2d(in0, 5, 3, ceil_mode=True)"),
        ("pool: MAX kernel_size: 3 stride: 1 pad: 1", "F.max_pool2d(in0, 3, 1, padding=1)"),
        ("pool: MAX kernel_size: 3 stride: 2 pad: 1", "F.max_pool2d(in0, 3, 2, padding=1, ceil_mode=True)"),
        ("pool: AVE kernel_h: 3 kernel_w: 5 stride: 2 ceil_mode: false", "F.avg_pool2d(in0, (3, 5), 2)"),
        ("pool: AVE global_pooling: true", "F.adaptive_avg_pool2d(in0, 1)"),
        ("pool: MAX global_pooling: true", "F.adaptive_max_pool2d(in0, 1)"),
        ("pool: MAX kernel_size: 2 stride: 3", "caffe_max_pool2d(in0, (2, 2), (3, 3))"),
        ("pool: AVE kernel_size: 3 pad: 2", "caffe_avg_pool2d(in0, (3, 3), (1, 1), pad=(2, 2))"),
        (
            "kernel_size: 3 pad: 2 round_mode: FLOOR",
            "caffe_max_pool2d(in0, (3, 3), (1, 1), pad=(2, 2), ceil_mode=False)",
        ),
    ],
    ids=[
        "max3s2",
        "max2s2",
        "ave5s3",
        "max3s1p1",
        "max3s2p1",
        "ceil_mode",
        "global_ave",
        "global_max",
        "gap",
        "pad",
        "floor",
    ],
)
def test_source_is_what_a_person_would_write(fields, expected):
    net = one_layer(f'type: "Pooling" pooling_param {{ {fields} }}', (2, 3, 11, 13))
    assert f"        top0 = {expected}\n" in build_source(net).text


@pytest.mark.parametrize("method", ["MAX", "AVE", "STOCHASTIC"])
def test_global_pooling_covers_a_plane_of_any_size(method):
    net = one_layer(f'type: "Pooling" pooling_param {{ pool: {method} global_pooling: true }}', (2, 3, 5, 7))
    for size in ((5, 7), (4, 9)):
        x = np.abs(draw(2, 3, *size))
        expected, _ = slow_pool(x, method, size, (1, 1), (0, 0), ceil_mode=True)
        np.testing.assert_allclose(run(net, [x])[0], expected, rtol=1e-5)
        np.testing.assert_allclose(run_source(net, [x])[0], expected, rtol=1e-5)
    x = np.abs(draw(2, 3, 5, 7))
    expected, _ = slow_pool(x, method, (5, 7), (1, 1), (0, 0), ceil_mode=True)
    np.testing.assert_allclose(run_onnx(net, [x])[0], expected, rtol=1e-5)


def test_global_max_mask():
    net = one_layer('type: "Pooling" pooling_param { global_pooling: true }', (2, 3, 5, 7), tops=2)
    x = draw(2, 3, 5, 7)
    for use in (run, run_onnx, run_source):
        np.testing.assert_array_equal(use(net, [x])[1].ravel(), x.reshape(6, 35).argmax(1))


def test_bfloat16_mask_counts_past_256():
    net = one_layer('type: "Pooling" pooling_param { kernel_size: 2 stride: 2 }', (1, 1, 40, 40), tops=2)
    x = torch.arange(1600.0).reshape(1, 1, 40, 40).bfloat16()
    assert net(in0=x)["top1"].dtype == torch.float32
    assert net(in0=x)["top1"].max() >= 1558  # a bfloat16 would have rounded to a multiple of 8


def test_empty_windows_are_lowest_and_nan_as_in_caffe():
    x = draw(1, 2, 4, 6)
    # Stride 4 over 4 rows with kernel 1: the second row of windows starts at row 4, past the last.
    found = run(one_layer('type: "Pooling" pooling_param { kernel_size: 1 stride: 4 }', x.shape), [x])[0]
    assert found.shape == (1, 2, 2, 3)
    assert (found[:, :, 1] == LOWEST).all()
    found = run(
        one_layer('type: "Pooling" pooling_param { pool: AVE kernel_size: 1 stride: 4 }', x.shape), [x]
    )[0]
    assert np.isnan(found[:, :, 1]).all()


NAN_WINDOWS = {  # fields, kernel, stride, pad
    "torch's own windows": ("kernel_size: 2 stride: 2", (2, 2), (2, 2), (0, 0)),
    "windows that torch lacks": ("kernel_size: 2 stride: 2 pad: 1", (2, 2), (2, 2), (1, 1)),
    "the whole plane": ("global_pooling: true", (6, 8), (1, 1), (0, 0)),
}


@pytest.mark.parametrize("tops", [1, 2], ids=["maximum", "mask"])
@pytest.mark.parametrize(("fields", "kernel", "stride", "pad"), NAN_WINDOWS.values(), ids=NAN_WINDOWS)
def test_a_maximum_is_neither_nan_nor_minus_infinity(fields, kernel, stride, pad, tops):
    x = draw(2, 3, 6, 8)
    x[0, 0, 2, 3] = x[0, 1, :2, :2] = x[1, 2] = np.nan
    x[1, 0, :2, :4] = -np.inf
    x[1, 1, 5, 5] = np.inf
    cleaned = np.where(x > LOWEST, x, LOWEST)  # NaN > is false, as in Caffe's comparison
    top, mask = slow_pool(cleaned, "MAX", kernel, stride, pad, ceil_mode=True)
    found = run(one_layer(f'type: "Pooling" pooling_param {{ {fields} }}', x.shape, tops=tops), [x])
    np.testing.assert_array_equal(found[0], top)
    if tops == 2:
        np.testing.assert_array_equal(found[1], np.where(top > LOWEST, mask, -1))


def test_spp_skips_nan():
    x = draw(1, 2, 4, 4)
    x[0, 0, 0, 0] = np.nan
    net = one_layer('type: "SPP" spp_param { pyramid_height: 2 }', x.shape)
    halves = np.nanmax(x.reshape(1, 2, 2, 2, 2, 2), axis=(3, 5)).reshape(1, -1)
    expected = np.concatenate([np.nanmax(x, axis=(2, 3)), halves], 1)
    np.testing.assert_array_equal(run(net, [x])[0], expected)


def test_stochastic_pooling_samples_in_proportion():
    torch.manual_seed(0)
    x = np.array([1.0, 2.0, 0.0, 5.0], np.float32).reshape(1, 1, 2, 2).repeat(20000, 0)
    body = 'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 }'
    net = one_layer(body, x.shape, phase="TRAIN")
    values, counts = np.unique(run(net, [x])[0], return_counts=True)
    assert values.tolist() == [1.0, 2.0, 5.0]
    np.testing.assert_allclose(counts / 20000, [1 / 8, 2 / 8, 5 / 8], atol=0.015)
    leaf = torch.from_numpy(x[:7]).requires_grad_()
    top = net(in0=leaf)["top0"]
    top.sum().backward()
    chosen = (leaf.detach() * leaf.grad).sum((1, 2, 3))
    assert torch.equal(chosen, top.flatten())  # the gradient is 1 at the value drawn, 0 elsewhere
    assert (leaf.grad.sum((1, 2, 3)) == 1).all()
    with pytest.raises(LayerError, match="STOCHASTIC draws random numbers in each pass in phase TRAIN"):
        run_onnx(net, [x])


@pytest.mark.parametrize(
    "fields",
    [
        "kernel_size: 3 stride: 2",
        "pool: AVE kernel_size: 3 stride: 2",
        "pool: AVE kernel_size: 3 stride: 2 pad: 1",
        "kernel_size: 3 stride: 2 pad: 1",
        "kernel_h: 2 kernel_w: 4 stride: 3 pad_h: 1 pad_w: 0",
        "pool: AVE kernel_h: 5 kernel_w: 3 stride_h: 3 stride_w: 2 pad_h: 2 pad_w: 0",
        "pool: AVE kernel_size: 3 pad: 2 stride: 3",
        "pool: AVE kernel_size: 4 stride: 3 pad: 1 round_mode: FLOOR",
        "pool: STOCHASTIC kernel_size: 3 stride: 2",
    ],
)
def test_onnx_of_dynamic_size_keeps_caffes_size(fields):
    net = one_layer(f'type: "Pooling" pooling_param {{ {fields} }}', (2, 3, 8, 10))
    for size in ((8, 10), (9, 11), (7, 5), (12, 6)):
        x = draw(2, 3, *size)
        x = np.abs(x) if "STOCHASTIC" in fields else x
        wanted = run(net, [x])[0]
        np.testing.assert_allclose(run_onnx(net, [x], dynamic_size=True)[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        "kernel_size: 2 stride: 3",
        "pool: AVE kernel_size: 1 stride: 2",
        "pool: STOCHASTIC global_pooling: true",
    ],
    ids=["gap", "gap_average", "global_stochastic"],
)
def test_onnx_of_dynamic_size_is_refused_where_sizes_decide(fields):
    net = one_layer(f'type: "Pooling" pooling_param {{ {fields} }}', (2, 3, 8, 10))
    message = r"op \(Pooling\): its ONNX nodes hold the size; export without dynamic_size=True"
    with pytest.raises(LayerError, match=message):
        run_onnx(net, [draw(2, 3, 8, 10)], dynamic_size=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "kernel_size is missing; state it, kernel_h and kernel_w, or global_pooling"),
        ("kernel_h: 3", "states only one of kernel_h and kernel_w; state both"),
        (
            "kernel_size: 3 kernel_h: 2 kernel_w: 2",
            "states both kernel_size and kernel_h/kernel_w; state one kind",
        ),
        ("kernel_size: 0", "kernel_size [0, 0] must be at least 1"),
        ("kernel_size: 3 stride: 0", "stride [0, 0] must be at least 1"),
        ("kernel_size: 3 stride_h: 2", "states only one of stride_h and stride_w; state both"),
        ("kernel_size: 3 pad: 3", "pad [3, 3] must be smaller than the kernel [3, 3]"),
        ("kernel_size: 3 pad_h: 1 pad_w: 4", "pad [1, 4] must be smaller than the kernel [3, 3]"),
        ("pool: STOCHASTIC kernel_size: 3 pad: 1", "pad [1, 1] goes with MAX and AVE only, not STOCHASTIC"),
        ("global_pooling: true kernel_size: 3", "global_pooling takes the whole plane; remove kernel_size"),
        ("global_pooling: true stride: 2", "global_pooling takes pad 0 and stride 1 only; remove them"),
        (
            "kernel_size: 3 ceil_mode: false round_mode: FLOOR",
            "states both round_mode and the forks' ceil_mode",
        ),
        ("kernel_size: 9 round_mode: FLOOR", "bottom [2, 3, 5, 7] is too small for kernel [9, 9]"),
    ],
)
def test_pooling_refuses(fields, message):
    with pytest.raises(LayerError) as error:
        one_layer(f'type: "Pooling" pooling_param {{ {fields} }}', (2, 3, 5, 7))
    assert str(error.value).startswith(f"op (Pooling): {message}")


def test_pooling_refuses_other_ranks_and_masks_of_averages():
    with pytest.raises(LayerError, match=r"its bottom has 3 axes; it takes 4 \(N, C, H, W\)"):
        one_layer('type: "Pooling" pooling_param { kernel_size: 2 }', (2, 3, 5))
    with pytest.raises(LayerError, match=r"a second top \(the mask\) goes with MAX only, not AVE"):
        one_layer('type: "Pooling" pooling_param { pool: AVE kernel_size: 2 }', (2, 3, 5, 7), tops=2)


@pytest.mark.parametrize("fields", ["kernel_size: 3 stride: 2", "kernel_size: 3 stride: 2 pad: 1"])
def test_opencv_pools_equally(fields):
    text = (
        'input: "a" input_shape { dim: 2 dim: 3 dim: 9 dim: 12 } '
        f'layer {{ name: "op" type: "Pooling" bottom: "a" top: "top" pooling_param {{ {fields} }} }}'
    )
    other = cv2.dnn.readNetFromCaffe(bytearray(text.encode()))
    x = draw(2, 3, 9, 12)
    other.setInput(x)
    np.testing.assert_array_equal(
        run(one_layer(f'type: "Pooling" pooling_param {{ {fields} }}', x.shape), [x])[0], other.forward()
    )


# ---------------------------------------------------------------------- other consumers of the file

AVERAGES = {
    "window past the edge": ("kernel_size: 3 stride: 2", (16, 18)),
    "pad": ("kernel_size: 3 stride: 1 pad: 1", (7, 9)),
    "pad, window past the edge": ("kernel_h: 5 kernel_w: 3 stride: 3 pad_h: 2 pad_w: 1", (9, 8)),
    "pad, rounded down": ("kernel_size: 3 stride: 2 pad: 1 round_mode: FLOOR", (8, 7)),
    "pad over half the kernel": ("kernel_size: 3 stride: 2 pad: 2", (7, 10)),
    "gap": ("kernel_size: 2 stride: 3", (8, 11)),
    "exact": ("kernel_size: 2 stride: 2", (8, 6)),
}


@pytest.mark.parametrize(
    ("fields", "size", "dynamic_size"),
    [
        (*row, dynamic)
        for name, row in AVERAGES.items()
        for dynamic in (False, True)
        if name != "gap" or not dynamic
    ],
)
def test_averages_avoid_attributes_that_consumers_compute_differently(fields, size, dynamic_size):
    """ONNX Runtime 1.22 to 1.24 and OpenCV 4 differ in ceil_mode and count_include_pad (docs/migrating.md).

    Without VALID, ONNX Runtime makes a Pad and an AveragePool one node that counts the padding wrongly.
    """
    net = one_layer(f'type: "Pooling" pooling_param {{ pool: AVE {fields} }}', (2, 3, *size))
    model = build_onnx(net, dynamic_size=dynamic_size)
    for node in model.graph.node:
        if node.op_type == "AveragePool":
            assert {entry.name for entry in node.attribute} == {"kernel_shape", "strides", "auto_pad"}
            assert next(entry.s for entry in node.attribute if entry.name == "auto_pad") == b"VALID"


CV_READS = {
    **{name: (f'type: "Pooling" pooling_param {{ pool: AVE {fields} }}', size) for name, (fields, size) in AVERAGES.items()},
    "maximum, window past the edge": ('type: "Pooling" pooling_param { kernel_size: 3 stride: 2 }', (8, 9)),
    "maximum, pad": ('type: "Pooling" pooling_param { kernel_size: 3 stride: 2 pad: 1 }', (8, 9)),
    "stochastic": ('type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }', (8, 9)),
    "pyramid": ('type: "SPP" spp_param { pyramid_height: 3 pool: AVE }', (7, 9)),
    "LRN within": ('type: "LRN" lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 alpha: 2 }', (6, 7)),
    "LRN without alpha": ('type: "LRN" lrn_param { alpha: 0 k: 2 }', (6, 7)),
}  # fmt: skip


@pytest.mark.parametrize(("body", "size"), CV_READS.values(), ids=CV_READS)
def test_opencv_reads_pools_as_caffe_computes_them(body, size):
    net = one_layer(body, (2, 3, *size))
    x = np.abs(draw(2, 3, *size))
    expected = run(net, [x])[0]
    reader = cv2.dnn.readNetFromONNX(np.frombuffer(build_onnx(net).SerializeToString(), np.uint8))
    reader.setInput(x)
    np.testing.assert_allclose(reader.forward(), expected, rtol=1e-5, atol=1e-6)
