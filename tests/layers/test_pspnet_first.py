"""BN and HoleConvolution of PSPNet's first Caffe (hszhao/PSPNet 88d0b3ee), by formulas of their own."""

from __future__ import annotations

import re

import numpy as np
import pytest
from layer_nets import by_channel, check, draw, one_layer, statistics
from one_layer import gradients, layer_text, run

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.runtime.load import load_graph, load_net

SCALE = "scale_filler { value: 1 } shift_filler { value: 0.5 }"
SHAPE = (2, 3, 4, 5)
FOUR_ROWS = "param { lr_mult: 1 } " * 4


def bn(fields: str, more: str = "") -> str:
    return f'type: "BN" bn_param {{ {fields} }} {more}'


def four_blobs() -> list[np.ndarray]:
    scale, shift, mean, variance = (draw(1, 3, 1, 1, seed=seed) for seed in range(1, 5))
    return [scale, shift, mean, variance**2 + np.float32(1e-4)]


def normalized(x: np.ndarray, mean: np.ndarray, variance: np.ndarray, eps: float) -> np.ndarray:
    scale, shift = (by_channel(blob, x.ndim).astype(np.float64) for blob in four_blobs()[:2])
    mean, variance = (by_channel(blob, x.ndim).astype(np.float64) for blob in (mean, variance))
    return (x - mean) / np.sqrt(variance + eps) * scale + shift


# The fields, the layer's rows -> whether phase TEST reads the stored statistics, and eps.
BN = {
    "as PSPNet's texts": (SCALE + " moving_average: true decay: 0.05", FOUR_ROWS, True, 1e-10),
    "moving_average alone is stated": (SCALE + " moving_average: true", "", True, 1e-10),
    "var_eps": (SCALE + " moving_average: true var_eps: 0.001", "", True, 1e-3),
    "no moving_average": (SCALE + " decay: 0.1", "", False, 1e-10),
    "moving_average: false": (SCALE + " moving_average: false var_eps: 0.01", "", False, 1e-2),
    "four rows": (SCALE, FOUR_ROWS, False, 1e-10),
    "an axis": ("axis: 1 var_eps: 0.5", "", False, 0.5),
}


@pytest.mark.parametrize("shape", [(7, 3), SHAPE], ids=["2d", "4d"])
@pytest.mark.parametrize(("fields", "more", "reads_stored", "eps"), BN.values(), ids=BN)
def test_bn_in_phase_test(fields, more, reads_stored, eps, shape) -> None:
    x = draw(*shape, seed=9) * np.float32(1e-4)
    net = one_layer(bn(fields, more), shape, blobs=four_blobs())
    mean, variance = four_blobs()[2:] if reads_stored else statistics(x)
    assert net.shapes["top0"] == shape
    check(net, x, normalized(x, mean, variance, eps), rtol=1e-3, atol=1e-4)
    for blob, was in zip(net.params["op"], four_blobs(), strict=True):
        np.testing.assert_array_equal(blob.detach().numpy().reshape(-1), was.reshape(-1))


@pytest.mark.parametrize("averaged", ["true", "false"])
def test_bn_in_training(averaged) -> None:
    x = draw(*SHAPE)
    net = one_layer(
        bn(f"{SCALE} moving_average: {averaged} decay: 0.2"), SHAPE, phase="TRAIN", blobs=four_blobs()
    )
    mean, variance = statistics(x)
    np.testing.assert_allclose(run(net, [x])[0], normalized(x, mean, variance, 1e-10), rtol=1e-4, atol=1e-5)
    moved = [blob.detach().numpy().reshape(-1) for blob in net.params["op"]]
    old_mean, old_variance = (blob.reshape(-1) for blob in four_blobs()[2:])
    np.testing.assert_allclose(moved[2], 0.2 * mean.reshape(-1) + 0.8 * old_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        moved[3], 0.2 * variance.reshape(-1) + 0.8 * old_variance, rtol=1e-5, atol=1e-7
    )


def test_new_statistics_start_at_zero() -> None:
    net = one_layer(bn(SCALE + " decay: 0.1"), SHAPE)
    assert [float(blob.detach().flatten()[1]) for blob in net.params["op"]] == [1, 0.5, 0, 0]


@pytest.mark.parametrize("averaged", ["true", "false"])
def test_the_gradient_is_that_of_batch_statistics(averaged) -> None:
    """The fork has one backward pass, whichever statistics were used."""
    x, diff = draw(*SHAPE), draw(*SHAPE, seed=7)
    net = one_layer(bn(f"{SCALE} moving_average: {averaged}"), SHAPE, blobs=four_blobs())
    (found,) = gradients(net, [x], diff)
    mean, variance = four_blobs()[2:] if averaged == "true" else statistics(x)
    mean, variance, scale = (by_channel(v, 4).astype(np.float64) for v in (mean, variance, four_blobs()[0]))
    deviation = np.sqrt(variance + 1e-10)
    unit, scaled = (x - mean) / deviation, diff * scale
    axes = {"axis": (0, 2, 3), "keepdims": True}
    expected = (scaled - scaled.mean(**axes) - unit * (scaled * unit).mean(**axes)) / deviation
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def both(first: str, other: str) -> str:
    return (
        f"states both {first} (of PSPNet's first Caffe) and {other}, which belong to different forks; keep those of the "
        "fork that made the weights"
    )


REFUSED = {
    "slope and decay": ("slope_filler { value: 1 } decay: 0.1", both("decay", "slope_filler")),
    "eps and var_eps": (SCALE + " eps: 0.1 var_eps: 0.1", both("var_eps", "eps")),
    "momentum": (SCALE + " moving_average: true momentum: 0.9", both("moving_average", "momentum")),
    "SegNet's mode": (SCALE + " decay: 0.1 bn_mode: LEARN", both("decay", "bn_mode")),
    "moving_average and nothing else": (
        "moving_average: true",
        "moving_average: true alone is of two forks, whose eps differ; state eps (1e-05, with slope_filler) or var_eps "
        "(1e-10, with scale_filler)",
    ),
    "the other axis": (SCALE + " axis: 2", "bn_param.axis 2 is not supported; state 1 or leave it out"),
    "deviations": (
        SCALE + " decay: 0.1 fourth_blob: INVERSE_STD",
        "the fourth blob of this fork's BN is the variance; remove bn_param.fourth_blob",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_bn_of_two_forks_is_refused(fields, message) -> None:
    with pytest.raises(LayerError, match=f"^{re.escape('op (BN): ' + message)}$"):
        one_layer(bn(fields), SHAPE)


@pytest.mark.parametrize(("blobs", "eps"), [(4, 1e-10), (2, 1e-9)], ids=["PSPNet", "SegNet"])
def test_fillers_alone_are_of_the_fork_that_the_files_blobs_show(blobs, eps, tmp_path) -> None:
    text = parse_net(layer_text("BN", [SHAPE], f"bn_param {{ {SCALE} }}"))
    write_caffemodel(tmp_path / "w.caffemodel", text, {"op": four_blobs()[:blobs]})
    net = load_net(text, tmp_path / "w.caffemodel")
    assert len(net.params["op"]) == blobs
    x = draw(*SHAPE) * np.float32(1e-4)
    check(net, x, normalized(x, *statistics(x), eps), rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------- HoleConvolution


def hole(fields: str) -> str:
    return f'type: "HoleConvolution" convolution_param {{ num_output: 4 {fields} }}'


def dilated(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, holes, stride, pad) -> np.ndarray:
    """A convolution, position by position."""
    x = np.pad(x, ((0, 0), (0, 0), (pad[0],) * 2, (pad[1],) * 2)).astype(np.float64)
    kernel = weight.shape[2:]
    size = [(x.shape[2 + a] - (kernel[a] - 1) * holes[a] - 1) // stride[a] + 1 for a in (0, 1)]
    top = np.zeros((len(x), len(weight), *size))
    for row, column in np.ndindex(*size):
        rows = [row * stride[0] + i * holes[0] for i in range(kernel[0])]
        columns = [column * stride[1] + j * holes[1] for j in range(kernel[1])]
        window = x[:, :, rows][:, :, :, columns]
        top[:, :, row, column] = np.einsum("ncij,ocij->no", window, weight) + bias
    return top


HOLES = {
    "hole": ("kernel_size: 3 hole: 2 pad: 2", (2, 2), (1, 1), (2, 2), (3, 3)),
    "a hole of 1": ("kernel_size: 3 hole: 1 stride: 2", (1, 1), (2, 2), (0, 0), (3, 3)),
    "hole_h and hole_w": (
        "kernel_h: 2 kernel_w: 3 hole_h: 3 hole_w: 2 pad_h: 1 pad_w: 2 stride_h: 2 stride_w: 1",
        (3, 2), (2, 1), (1, 2), (2, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "holes", "stride", "pad", "kernel"), HOLES.values(), ids=HOLES)
def test_hole_convolution(fields, holes, stride, pad, kernel) -> None:
    x, weight, bias = draw(2, 3, 8, 9), draw(4, 3, *kernel, seed=1), draw(4, seed=2)
    net = one_layer(hole(fields), x.shape, blobs=[weight, bias])
    check(net, x, dilated(x, weight, bias, holes, stride, pad), rtol=1e-4, atol=1e-5)


REFUSED_HOLES = {
    "none": ("kernel_size: 3", "states no hole; state it, or make it a Convolution"),
    "one side": ("kernel_size: 3 hole_h: 2", "states hole_h; state hole, or both hole_h and hole_w"),
    "two kinds": ("kernel_size: 3 hole: 2 hole_h: 2 hole_w: 2",
                  "states hole and hole_h and hole_w; state hole, or both hole_h and hole_w"),
    "one side's pad": ("kernel_size: 3 hole: 2 pad_h: 2", "states pad_h; state pad, or both pad_h and pad_w"),
    "a hole of 0": ("kernel_size: 3 hole: 0", "dilation [0, 0] must be at least 1"),
    "dilation": ("kernel_size: 3 hole: 2 dilation: 2", "convolution_param.dilation is not supported"),
    "an axis": ("kernel_size: 3 hole: 2 axis: 2", "convolution_param.axis is not supported"),
    "two kernels": ("kernel_size: [3, 2] hole: 2", "kernel_size is stated 2 times; state it once"),
    "no kernel": ("hole: 2", "kernel_size is missing"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED_HOLES.values(), ids=REFUSED_HOLES)
def test_hole_convolution_refuses(fields, message) -> None:
    with pytest.raises(LayerError, match=f"^{re.escape('op (HoleConvolution): ' + message)}"):
        one_layer(hole(fields), (2, 3, 8, 9))


@pytest.mark.parametrize(("shapes", "message"), [
    ([(2, 3, 8)], "its bottoms have [3] axes; it takes 4 (N, C, H, W)"),
    ([(2, 3, 8, 9), (2, 3, 9, 9)], "bottoms [2, 3, 8, 9] and [2, 3, 9, 9] differ; they must have one shape"),
], ids=["3d", "two sizes"])  # fmt: skip
def test_bottoms_of_hole_convolution_are_refused(shapes, message) -> None:
    text = layer_text(
        "HoleConvolution",
        shapes,
        "convolution_param { num_output: 4 kernel_size: 3 hole: 2 }",
        tops=len(shapes),
    )
    with pytest.raises(LayerError, match=f"^{re.escape('op (HoleConvolution): ' + message)}$"):
        load_net(parse_net(text), seed=1)


def test_v1_names_it() -> None:
    text = (
        'input: "x" input_dim: [2, 3, 8, 9]\nlayers { name: "h" type: HOLE_CONVOLUTION bottom: "x" top: "h" '
        "convolution_param { num_output: 4 kernel_size: 3 hole: 2 } }"
    )
    (node,) = (node for node in load_graph(parse_net(text)) if node.bottoms)
    assert node.type == "HoleConvolution"
    assert audit(parse_net(text)).problems == ()
    assert "type is unknown" in audit(parse_net(text.replace("HOLE_", "HOLES_"))).problems[0]
