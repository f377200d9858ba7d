"""Convolution and Deconvolution against slow loops in every form, and refusals."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
import torch
from example_counts import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_nets import draw, one_layer
from one_layer import run, run_onnx, run_source
from slow_convolution import slow_convolution, slow_deconvolution

from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.runtime.load import load_net


@st.composite
def cases(draw_):
    axes = draw_(st.sampled_from([1, 2, 2, 2, 3]))
    several = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    kernel, stride, dilation = draw_(several), draw_(several), draw_(several)
    pad = draw_(st.lists(st.integers(0, 2), min_size=axes, max_size=axes))
    size = draw_(st.lists(st.integers(1, 6 if axes < 3 else 4), min_size=axes, max_size=axes))
    group = draw_(st.integers(1, 3))
    inputs, outputs = group * draw_(st.integers(1, 2)), group * draw_(st.integers(1, 2))
    return kernel, (stride, pad, dilation), size, group, inputs, outputs, draw_(st.booleans())


def text(kind, case):
    kernel, (stride, pad, dilation), _, group, _, outputs, has_bias = case
    several = "".join(
        f"{field}: {value} "
        for field, values in (
            ("kernel_size", kernel),
            ("stride", stride),
            ("pad", pad),
            ("dilation", dilation),
        )
        for value in values
    )
    rest = f"num_output: {outputs} group: {group} bias_term: {str(has_bias).lower()}"
    return f'type: "{kind}" convolution_param {{ {several} {rest} }}'


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@settings(max_examples=examples(60), deadline=None)
@given(case=cases())
def test_equals_slow_loops(kind, case):
    kernel, (stride, pad, dilation), size, group, inputs, outputs, has_bias = case
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    edges = zip(size, stride, pad, reach, strict=True)
    if kind == "Convolution":
        assume(all(n + 2 * p >= r for n, _, p, r in edges))
        weight, slow = draw(outputs, inputs // group, *kernel, seed=1), slow_convolution
    else:
        assume(all(s * (n - 1) + r - 2 * p >= 1 for n, s, p, r in edges))
        weight, slow = draw(inputs, outputs // group, *kernel, seed=1), slow_deconvolution
    bias = draw(outputs, seed=2) if has_bias else None
    x = draw(2, inputs, *size, seed=3)
    expected = slow(x, weight, bias, (stride, pad, dilation), group)
    net = one_layer(text(kind, case), x.shape, blobs=[weight] if bias is None else [weight, bias])
    assert net.shapes["top0"] == expected.shape
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, [x])[0], expected, rtol=1e-4, atol=1e-5, err_msg=use.__name__)


# Where oneDNN, given blobs or weights with the channels innermost in memory, reads out of bounds or used to: shape, outputs,
# kernel, stride, pad, dilation, group.
OUT_OF_BOUNDS = {
    "width 1, kernel 1": ((3, 3, 5, 1), 9, (1, 1), (3, 1), (0, 2), (2, 2), 3),
    "width 1, kernel 2": ((2, 3, 2, 1), 6, (1, 2), (1, 2), (0, 3), (1, 2), 3),
    "one group": ((3, 4, 4, 1), 2, (2, 2), (1, 2), (2, 3), (3, 2), 1),
    "wider": ((3, 12, 5, 9), 18, (1, 2), (3, 1), (0, 2), (2, 2), 6),
    "three axes": ((3, 2, 9, 7, 1), 3, (1, 3, 1), (3, 2, 2), (1, 0, 3), (3, 3, 2), 1),
}


@pytest.mark.parametrize("geometry", OUT_OF_BOUNDS.values(), ids=OUT_OF_BOUNDS)
def test_dilated_convolutions_of_channels_last_blobs(geometry):
    shape, outputs, kernel, stride, pad, dilation, group = geometry
    x, order = draw(*shape), [torch.channels_last, torch.channels_last_3d][len(kernel) - 2]
    weight, bias = draw(outputs, shape[1] // group, *kernel, seed=1), draw(outputs, seed=2)
    expected = slow_convolution(x, weight, bias, (stride, pad, dilation), group)
    net = one_layer(text("Convolution", (kernel, (stride, pad, dilation), shape[2:], group, shape[1], outputs, True)),
                    shape, blobs=[weight, bias])  # fmt: skip
    value = torch.from_numpy(x).contiguous(memory_format=order)
    for changed in (False, True):
        if changed:  # the user's own order of the weights
            net.layers.op.weight.data = net.layers.op.weight.data.contiguous(memory_format=order)
        for gradients in (False, True):
            given = value.clone().requires_grad_(gradients)
            with torch.set_grad_enabled(gradients):
                found = net(given)["top0"]
            np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
            if gradients:
                found.sum().backward()
                assert given.grad.shape == shape


MASKED = {
    "plain": "kernel_size: 3",
    "stride and pad": "kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 2",
    "dilation": "kernel_size: 2 dilation: 3 pad: 2",
    "groups": "kernel_size: 3 group: 2",
    "no bias": "kernel_size: 3 bias_term: false",
}


@pytest.mark.parametrize("fields", MASKED.values(), ids=MASKED)
def test_before_a_mask_sums_are_those_of_a_matrix_product(fields):
    """A mask names a position by the last bit of nearly equal values; the sums before it are added as Caffe adds them."""
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 64 dim: 9 dim: 11 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 6 %s
  weight_filler { type: "msra" } bias_filler { type: "uniform" } } }
layer { name: "p" type: "Pooling" bottom: "c" top: "p" top: "mask" pooling_param { kernel_size: 2 stride: 2 } }"""
    after = 'layer { name: "r" type: "ReLU" bottom: "p" top: "r" }'
    net = load_net(parse_net(text % fields + after), seed=3)
    assert [node.name for node in net.graph if node.feeds_mask] == ["x", "c"]
    x = torch.from_numpy(draw(2, 64, 9, 11)).requires_grad_()
    layer = net.layer("c")
    wide = torch.nn.functional.conv2d(
        x.double(), layer.weight.double(), layer.bias.double() if layer.has_bias else None,
        layer.stride, layer.pad, layer.dilation, layer.group,
    )  # fmt: skip
    found = net(x=x, blobs=["c"])["c"]
    torch.testing.assert_close(found.double(), wide, rtol=1e-5, atol=2e-5)
    gradients = [torch.autograd.grad(top.sum(), x, retain_graph=True)[0] for top in (found, wide)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_bottoms_share_the_weights():
    filler = 'weight_filler { type: "xavier" }'
    body = f'type: "Convolution" convolution_param {{ num_output: 2 kernel_size: 3 {filler} }}'
    net = one_layer(body, (2, 3, 5, 7), (1, 3, 6, 4), tops=2)
    weight, bias = (blob.detach().numpy() for blob in net.params["op"])
    for use in (run, run_source):
        arrays = [draw(2, 3, 5, 7), draw(1, 3, 6, 4, seed=1)]
        for found, x in zip(use(net, arrays), arrays, strict=True):
            geometry = ((1, 1), (0, 0), (1, 1))
            np.testing.assert_allclose(
                found, slow_convolution(x, weight, bias, geometry, 1), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("fields", ["", "group: 4", "group: 1"], ids=["absent", "stated", "wrong"])
def test_depthwise_has_one_group_per_channel_regardless_of_the_group_field(fields):
    body = (
        f'type: "DepthwiseConvolution" convolution_param {{ num_output: 8 kernel_size: 3 pad: 1 {fields} }}'
    )
    weight, bias = draw(8, 1, 3, 3, seed=1), draw(8, seed=2)
    x = draw(2, 4, 5, 6)
    net = one_layer(body, x.shape, blobs=[weight, bias])
    expected = slow_convolution(x, weight, bias, ((1, 1), (1, 1), (1, 1)), 4)
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, [x])[0], expected, rtol=1e-4, atol=1e-5, err_msg=use.__name__)


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize(
    ("shape", "fields"),
    [((3, 4), "kernel_size: 3 pad: 1"), ((2, 3, 4), "axis: 2 group: 2"), ((4,), "axis: 0 bias_term: false")],
    ids=["rows", "grouped", "one row"],
)
def test_without_spatial_axes_it_is_a_matrix_product(kind, shape, fields):
    group, has_bias, x = 2 if "group" in fields else 1, "bias" not in fields, draw(*shape)
    weight = draw(6, 4 // group, seed=1) if kind == "Convolution" else draw(4, 6 // group, seed=1)
    bias = draw(6, seed=2) if has_bias else np.zeros(6)
    expected = np.zeros((*shape[:-1], 6))
    for o in range(6):
        for c in range(4):
            if o // (6 // group) == c // (4 // group):
                w = weight[o, c % (4 // group)] if kind == "Convolution" else weight[c, o % (6 // group)]
                expected[..., o] += w * x[..., c]
    body = f'type: "{kind}" convolution_param {{ num_output: 6 {fields} }}'
    net = one_layer(body, shape, blobs=[weight, bias] if has_bias else [weight])
    for use in (run, run_onnx, run_source):
        found = use(net, [x])[0]
        assert found.shape == net.shapes["top0"] == expected.shape
        np.testing.assert_allclose(found, expected + bias, rtol=1e-4, atol=1e-5, err_msg=use.__name__)


@pytest.mark.parametrize("kind", ["Convolution", "Im2col"])
def test_a_kernel_a_little_larger_than_the_bottom_has_one_position(kind):
    # (2 + 0 - 4) / 3 and (3 + 2 - 6) / 2 are 0 in C, so that zeros follow the bottom.
    fields = "kernel_h: 4 kernel_w: 6 stride_h: 3 stride_w: 2 pad_h: 0 pad_w: 1"
    x, weight, bias = draw(2, 3, 2, 3), draw(4, 3, 4, 6, seed=1), draw(4, seed=2)
    window = np.pad(x, ((0, 0), (0, 0), (0, 2), (1, 2)))
    if kind == "Im2col":
        net, expected = (
            one_layer(f'type: "Im2col" convolution_param {{ {fields} }}', x.shape),
            window.reshape(2, 72, 1, 1),
        )
    else:
        body = f'type: "Convolution" convolution_param {{ num_output: 4 {fields} }}'
        net = one_layer(body, x.shape, blobs=[weight, bias])
        expected = (np.einsum("nchw,ochw->no", window, weight) + bias)[..., None, None]
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, [x])[0], expected, rtol=1e-4, atol=1e-5, err_msg=use.__name__)


def test_depthwise_with_its_own_group():
    body = 'type: "DepthwiseConvolution" convolution_param { num_output: 6 kernel_size: 3 group: 2 }'
    weight, bias, x = draw(6, 2, 3, 3, seed=1), draw(6, seed=2), draw(2, 4, 5, 6)
    net = one_layer(body, x.shape, blobs=[weight, bias])
    expected = slow_convolution(x, weight, bias, ((1, 1), (0, 0), (1, 1)), 2)
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, [x])[0], expected, rtol=1e-4, atol=1e-5, err_msg=use.__name__)


@pytest.mark.parametrize("fields", ["", "num_output: 7 group: 3", "num_output: 4 group: 1"])
def test_one_filter_per_channel_regardless_of_num_output_and_group(fields):
    body = f'type: "ConvolutionDepthwise" convolution_param {{ kernel_h: 3 kernel_w: 2 stride: 2 {fields} }}'
    weight, bias, x = draw(4, 1, 3, 2, seed=1), draw(4, seed=2), draw(2, 4, 5, 7)
    net = one_layer(body, x.shape, blobs=[weight, bias])
    expected = slow_convolution(x, weight, bias, ((2, 2), (0, 0), (1, 1)), 4)
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, [x])[0], expected, rtol=1e-4, atol=1e-5, err_msg=use.__name__)


@pytest.mark.parametrize(
    ("fields", "same"),
    [("hole: 2", "dilation: 2"), ("hole_h: 2 hole_w: 3", "dilation: 2 dilation: 3")],
    ids=["hole", "hole_hw"],
)
def test_hole_is_dilation(fields, same):
    x, blobs = draw(2, 3, 9, 8), [draw(4, 3, 3, 3, seed=1), draw(4, seed=2)]
    tops = [
        run(one_layer(f'type: "Convolution" convolution_param {{ num_output: 4 kernel_size: 3 {field} }}',
                      x.shape, blobs=blobs), [x])[0]
        for field in (fields, same)
    ]  # fmt: skip
    np.testing.assert_array_equal(*tops)


@pytest.mark.parametrize("fields", ["kernel_size: 3 stride: 2 pad: 1 group: 2", "kernel_size: 3 dilation: 2"])
def test_opencv_convolves_equally(fields, tmp_path):
    fields = f"num_output: 4 {fields}"
    text = (
        'input: "in0" input_shape { dim: 1 dim: 6 dim: 9 dim: 8 } layer { name: "op" type: "Convolution" '
        f'bottom: "in0" top: "top0" convolution_param {{ {fields} }} }}'
    )
    group = 2 if "group" in fields else 1
    x, blobs = draw(1, 6, 9, 8), [draw(4, 6 // group, 3, 3, seed=1), draw(4, seed=2)]
    path = tmp_path / "w.caffemodel"
    write_caffemodel(path, parse_net(text), {"op": blobs})
    other = cv2.dnn.readNetFromCaffe(bytearray(text.encode()), bytearray(path.read_bytes()))
    other.setInput(x)
    net = one_layer(f'type: "Convolution" convolution_param {{ {fields} }}', x.shape, blobs=blobs)
    np.testing.assert_allclose(run(net, [x])[0], other.forward(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("kernel_size: 3", "num_output is 0 or absent; state how many channels to make"),
        ("num_output: 4", "kernel_size is missing"),
        ("num_output: 4 kernel_size: 3 group: 3", "num_output 4 is not a multiple of group 3"),
        ("num_output: 4 kernel_size: 3 group: 0", "num_output 4 is not a multiple of group 0"),
        ("num_output: 4 kernel_size: 3 group: 4", "6 input channels are not a multiple of group 4"),
        ("num_output: 4 kernel_size: 0", "kernel_size [0, 0] must be at least 1"),
        ("num_output: 4 kernel_size: 3 stride: 0", "stride [0, 0] must be at least 1"),
        ("num_output: 4 kernel_size: 3 dilation: 0", "dilation [0, 0] must be at least 1"),
        ("num_output: 4 kernel_size: 3 kernel_h: 3 kernel_w: 3", "states both kernel_size and kernel_h"),
        ("num_output: 4 kernel_h: 3", "states only one of kernel_h and kernel_w; state both"),
        ("num_output: 4 kernel_size: 3 stride_w: 2", "states only one of stride_h and stride_w; state both"),
        ("num_output: 4 kernel_size: 3 kernel_size: 3 kernel_size: 3", "kernel_size is stated 3 times"),
        ("num_output: 4 kernel_size: 3 hole: 2 dilation: 2", "states both dilation and hole; state one kind"),
        ("num_output: 4 kernel_size: 9", "bottom [2, 6, 5, 7] is too small for kernel [9, 9]"),
        ("num_output: 4 kernel_size: 3 axis: 4", "axis 4 is outside a blob of 4 axes"),
        (
            "num_output: 4 kernel_size: 3 kernel_size: 3 axis: 3",
            "kernel_size is stated 2 times for 0 spatial axes",
        ),
        ("num_output: 4 kernel_h: 3 kernel_w: 3 axis: 3", "kernel_h and kernel_w need two spatial axes"),
        ("num_output: 4 kernel_h: 3 kernel_w: 3 axis: 2", "kernel_h and kernel_w need two spatial axes"),
    ],
)
def test_convolution_refuses(fields, message):
    with pytest.raises(LayerError, match=re.escape(f"op (Convolution): {message}")):
        one_layer(f'type: "Convolution" convolution_param {{ {fields} }}', (2, 6, 5, 7))


@pytest.mark.parametrize(
    ("kind", "shapes", "tops", "message"),
    [
        (
            "Convolution",
            [(2, 3, 5, 7), (2, 3, 5, 7)],
            1,
            "has 2 bottoms and 1 tops; the numbers must be equal",
        ),
        ("Convolution", [(2, 3, 5, 7), (2, 4, 5, 7)], 2, "bottoms differ in channels: 4 and 3"),
        ("Deconvolution", [(2, 3, 1, 1)], 1, "is too small for kernel [1, 1]"),
        ("ConvolutionDepthwise", [(2, 3, 5, 7)] * 2, 2, "has 2 bottoms; it takes 1"),
        ("DepthwiseConvolution", [(2, 3, 5, 7)], 1, "num_output 4 is not a multiple of its 3 input channels"),
    ],
    ids=["tops", "channels", "nothing_left", "by_channel", "depthwise"],
)
def test_bottoms_are_checked(kind, shapes, tops, message):
    fields = (
        "num_output: 4 kernel_size: 1 pad: 1" if kind == "Deconvolution" else "num_output: 4 kernel_size: 1"
    )
    with pytest.raises(LayerError, match=re.escape(message)):
        one_layer(f'type: "{kind}" convolution_param {{ {fields} }}', *shapes, tops=tops)
