"""Convolutions of video against slow loops: C3D's layers, NdConvolution, and C3D's V1 text and weights."""

from __future__ import annotations

import numpy as np
import pytest
from layer_nets import draw, one_layer
from one_layer import assert_all_uses
from slow_convolution import slow_convolution, slow_deconvolution
from wire_bytes import chunk, number

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.errors import FormatError, IlgnetError, LayerError

ONES = (1, 1, 1)
VIDEO = (2, 3, 4, 5, 6)
# Fields, kernel, stride, pad.
C3D = {
    "kernels": ("kernel_size: 2 kernel_depth: 3", (3, 2, 2), ONES, (0, 0, 0)),
    "strides": (
        "kernel_size: 2 kernel_depth: 1 stride: 3 temporal_stride: 2",
        (1, 2, 2),
        (2, 3, 3),
        (0, 0, 0),
    ),
    "pads": ("kernel_size: 3 kernel_depth: 2 pad: 2 temporal_pad: 1", (2, 3, 3), ONES, (1, 2, 2)),
}


@pytest.mark.parametrize(("fields", "kernel", "stride", "pad"), C3D.values(), ids=C3D)
@pytest.mark.parametrize("more", ["", "filter_group: 2", "bias_term: false"])
def test_convolution3d(fields, kernel, stride, pad, more) -> None:
    x, weight = draw(*VIDEO), draw(4, 3, *kernel, seed=1)
    bias = None if more == "bias_term: false" else draw(1, 1, 1, 1, 4, seed=2)
    expected = slow_convolution(x, weight, None if bias is None else bias.ravel(), (stride, pad, ONES), 1)
    body = f'type: "Convolution3D" convolution3d_param {{ num_output: 4 {fields} {more} }}'
    net = one_layer(body, VIDEO, blobs=[weight] if bias is None else [weight, bias])
    assert_all_uses(net, [x], [expected])


@pytest.mark.parametrize(("fields", "kernel", "stride", "pad"), C3D.values(), ids=C3D)
# C3D reads bias_term from the other message.
@pytest.mark.parametrize("more", ["", "bias_term: false", "} convolution_param { bias_term: false"])
def test_deconvolution3d(fields, kernel, stride, pad, more) -> None:
    x, weight = draw(2, 3, 2, 3, 4), draw(3, 2, *kernel, seed=1)
    bias = None if more.startswith("}") else draw(1, 1, 1, 1, 2, seed=2)
    expected = slow_deconvolution(x, weight, None if bias is None else bias.ravel(), (stride, pad, ONES), 1)
    body = f'type: "Deconvolution3D" convolution3d_param {{ num_output: 2 {fields} {more} }}'
    net = one_layer(body, x.shape, blobs=[weight] if bias is None else [weight, bias])
    assert_all_uses(net, [x], [expected])


ND = {
    "group": (
        (2, 4, 5, 6, 4),
        "kernel_shape { dim: 2 dim: 3 dim: 1 } group: 2",
        (2, 3, 1),
        ONES,
        (0, 0, 0),
        2,
    ),
    "time to one": (VIDEO, "kernel_shape { dim: 4 dim: 2 dim: 3 }", (4, 2, 3), ONES, (0, 0, 0), 1),
    "all to one": (VIDEO, "kernel_shape { dim: 4 dim: 5 dim: 6 }", (4, 5, 6), ONES, (0, 0, 0), 1),
    "strides, pads": (
        VIDEO,
        "kernel_shape { dim: 1 dim: 2 dim: 3 } stride_shape { dim: 2 dim: 1 dim: 3 } pad_shape { dim: 0 dim: 1 dim: 2 }",
        *((1, 2, 3), (2, 1, 3), (0, 1, 2), 1),
    ),
    "image": ((2, 3, 5, 6), "kernel_shape { dim: 2 dim: 6 }", (2, 6), (1, 1), (0, 0), 1),
}


@pytest.mark.parametrize(("shape", "fields", "kernel", "stride", "pad", "group"), ND.values(), ids=ND)
def test_nd_convolution_drops_axes_of_one(shape, fields, kernel, stride, pad, group) -> None:
    x, weight, bias = draw(*shape), draw(4, shape[1] // group, *kernel, seed=1), draw(4, seed=2)
    expected = slow_convolution(x, weight, bias, (stride, pad, (1,) * len(kernel)), group)
    expected = expected.reshape(2, 4, *(length for length in expected.shape[2:] if length > 1))
    body = f'type: "NdConvolution" convolution_param {{ num_output: 4 {fields} }}'
    assert_all_uses(one_layer(body, shape, blobs=[weight, bias]), [x], [expected])


# The kind, the bottom's shape, the fields, the end of the message.
REFUSED = {
    "no kernel_depth": (
        "Convolution3D", VIDEO, "kernel_size: 3", "kernel_depth is missing; state it in convolution3d_param",
    ),
    "no kernel_size": (
        "Deconvolution3D", VIDEO, "kernel_depth: 3", "kernel_size is missing; state it in convolution3d_param",
    ),
    "an image": (
        "Convolution3D", (2, 3, 5, 6), "kernel_size: 3 kernel_depth: 3",
        "its bottom has 4 axes; it takes 5 (N, C, time, H, W)",
    ),
    "too small": (
        "Convolution3D", VIDEO, "kernel_size: 3 kernel_depth: 7", f"bottom {list(VIDEO)} is too small for kernel [7, 3, 3]",
    ),
    "stride 0": (
        "Convolution3D", VIDEO, "kernel_size: 3 kernel_depth: 3 temporal_stride: 0", "stride [0, 1, 1] must be at least 1",
    ),
    "filter_group": (
        "Convolution3D", VIDEO, "kernel_size: 1 kernel_depth: 1 filter_group: 3",
        "num_output 4 is not a multiple of filter_group 3",
    ),
    "no kernel_shape": (
        "NdConvolution", VIDEO, "pad_shape { dim: 1 }", "kernel_shape is missing; state one length per spatial axis",
    ),
    "lengths": (
        "NdConvolution", VIDEO, "kernel_shape { dim: 1 dim: 2 }", "kernel_shape [1, 2] has 2 lengths for 3 spatial axes",
    ),
    "pad": (
        "NdConvolution", (2, 3, 5), "kernel_shape { dim: 2 } pad_shape { dim: -1 }", "pad_shape [-1] must be at least 0",
    ),
    "kernel_size": (
        "NdConvolution", VIDEO, "kernel_size: 3",
        "convolution_param.kernel_size is not supported; remove it if it does not matter",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "shape", "fields", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(kind, shape, fields, message) -> None:
    param = "convolution_param" if kind == "NdConvolution" else "convolution3d_param"
    with pytest.raises(LayerError) as caught:
        one_layer(f'type: "{kind}" {param} {{ num_output: 4 {fields} }}', shape)
    assert str(caught.value) == f"op ({kind}): {message}"


# ---------------------------------------------------------------------- C3D 1.0

V1 = 'name: "n" input: "x" {dims} layers {{ name: "c" type: {type} bottom: "x" top: "c" {param} }}'
DIMS = "input_dim: [2, 3, 4, 5, 6]"


def test_v1_fields_move_to_the_messages_of_c3d() -> None:
    param = "convolution_param { num_output: 2 kernel_size: 3 kernel_depth: 2 group: 1 bias_term: false }"
    net = upgrade_net(parse_net(V1.format(dims=DIMS, type="DECONVOLUTION3D", param=param)))
    assert list(net.layer[0].input_param.shape[0].dim) == [2, 3, 4, 5, 6]
    layer = net.layer[1]
    assert (layer.type, layer.convolution3d_param.kernel_depth) == ("Deconvolution3D", 2)
    assert not layer.convolution_param.bias_term


V1_REFUSED = {
    "group": (
        DIMS, "CONVOLUTION3D", "convolution_param { group: 2 }",
        "c (Convolution3D): convolution_param.group is not supported; remove it if it does not matter",
    ),
    "two kernels": (
        DIMS, "CONVOLUTION3D", "convolution_param { kernel_size: 2 kernel_size: 3 }",
        "c (Convolution3D): convolution_param.kernel_size is stated 2 times; state it once",
    ),
    "pad of rows": (
        DIMS, "POOLING3D", "pooling_param { pad_h: 1 }",
        "c (Pooling3D): pooling_param.pad_h is not supported; remove it if it does not matter",
    ),
    "five dimensions without video": (
        DIMS, "POOLING", "", "net n: 5 input_dim for 1 input; give four each",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("dims", "type_", "param", "message"), V1_REFUSED.values(), ids=V1_REFUSED)
def test_v1_refused(dims, type_, param, message) -> None:
    with pytest.raises(IlgnetError) as caught:
        upgrade_net(parse_net(V1.format(dims=dims, type=type_, param=param)))
    assert str(caught.value) == message


def c3d_blob(array: np.ndarray) -> bytes:
    """Write a blob as C3D 1.0 does: num, channels, length, height, width, data as field 6, diff as field 7."""
    dims = (1,) * (5 - array.ndim) + array.shape
    numbers = b"".join(number(field, length) for field, length in enumerate(dims, 1))
    values = array.astype("<f4").tobytes()
    return numbers + chunk(6, values) + chunk(7, np.zeros(array.size, "<f4").tobytes())


def c3d_file(path, *layers: tuple[str, int, list[np.ndarray]]):
    """Write V1 layers (name, type number, blobs) in C3D's form."""
    parts = [
        chunk(4, name) + number(5, kind) + b"".join(chunk(6, c3d_blob(blob)) for blob in blobs)
        for name, kind, blobs in layers
    ]
    path.write_bytes(chunk(1, "n") + b"".join(chunk(2, part) for part in parts))
    return path


def test_weights_of_c3d(tmp_path) -> None:
    weight, bias, dense = draw(2, 3, 2, 3, 3), draw(2), draw(7, 2 * 3 * 3 * 4)
    path = c3d_file(tmp_path / "w.caffemodel", ("c", 30, [weight, bias]), ("fc", 14, [dense]))
    param = "convolution_param { num_output: 2 kernel_size: 3 kernel_depth: 2 }"
    dense_text = (
        'layers { name: "fc" type: INNER_PRODUCT bottom: "c" top: "fc" '
        "inner_product_param { num_output: 7 bias_term: false } }"
    )
    text = tmp_path / "net.prototxt"
    text.write_text(V1.format(dims=DIMS, type="CONVOLUTION3D", param=param) + dense_text)
    net = ir.load(path, prototxt=text)
    x = draw(*VIDEO, seed=4)
    expected = slow_convolution(x, weight, bias, (ONES, (0, 0, 0), ONES), 1).reshape(2, -1) @ dense.T
    np.testing.assert_allclose(net(x=x)["fc"].detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_c3d_numbers_its_types_otherwise(tmp_path) -> None:
    model = open_caffemodel(
        c3d_file(tmp_path / "w.caffemodel", ("c", 30, [draw(2, 1, 1, 2, 2)]), ("r", 18, []))
    )
    assert [layer.type for layer in model.layers] == ["Convolution3D", "ReLU"]
    with pytest.raises(FormatError, match=r"w.caffemodel: was written by C3D 1.0, .*; give the prototxt too"):
        model.structure()


def test_c3d_blob_of_another_size(tmp_path) -> None:
    path = tmp_path / "w.caffemodel"
    blob = c3d_blob(draw(2, 1, 1, 2, 2)).replace(number(5, 2), number(5, 3))
    path.write_bytes(chunk(2, chunk(4, "c") + number(5, 30) + chunk(6, blob)))
    with pytest.raises(FormatError, match="layer c, blob 0: shape 2x1x1x2x3 needs 12 values, the file has 8"):
        open_caffemodel(path)
