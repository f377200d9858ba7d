"""Activations against formulas and their derivatives, at kinks too, and refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from layer_nets import draw, one_layer
from one_layer import gradients, run, run_onnx, run_source

from ilgnet_repro.errors import LayerError
from ilgnet_repro.export.source_writer import build_source

# Values on both sides of every kink of the functions, and at the kinks themselves.
X = np.concatenate([draw(2, 3, 4, 4).ravel() * 3, [-3, -1, -0.5, 0, 0.5, 1, 2, 3, 6, 30, -30, 100]]).astype(
    np.float32
).reshape(2, 3, 18)  # fmt: skip


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# type and fields; the function; its derivative as Caffe has it (None: Caffe has none)
CASES = {
    "relu": ('type: "ReLU"', lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
    "relu_slope": (
        'type: "ReLU" relu_param { negative_slope: 0.1 }',
        lambda x: np.where(x > 0, x, 0.1 * x),
        lambda x: np.where(x > 0, 1, 0.1),
    ),
    "relu6": ('type: "ReLU6"', lambda x: np.clip(x, 0, 6), lambda x: ((x > 0) & (x < 6)) * 1.0),
    "relu6_threshold": (
        'type: "ReLU6" relu6_param { threshold: 2 }',
        lambda x: np.clip(x, 0, 2),
        lambda x: ((x > 0) & (x < 2)) * 1.0,
    ),
    "elu": (
        'type: "ELU" elu_param { alpha: 0.5 }',
        lambda x: np.where(x > 0, x, 0.5 * np.expm1(np.minimum(x, 0))),
        lambda x: np.where(x > 0, 1, 0.5 * np.exp(np.minimum(x, 0))),
    ),
    "sigmoid": ('type: "Sigmoid"', sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "tanh": ('type: "TanH"', np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "bnll": ('type: "BNLL"', lambda x: np.logaddexp(0, x), sigmoid),
    "absval": ('type: "AbsVal"', np.abs, np.sign),
    "swish": ('type: "Swish"', lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * sigmoid(-x))),
    "swish_beta": (
        'type: "Swish" swish_param { beta: 0.5 }',
        lambda x: x * sigmoid(x / 2),
        lambda x: sigmoid(x / 2) * (1 + x / 2 * sigmoid(-x / 2)),
    ),
    "clip": (
        'type: "Clip" clip_param { min: -0.5 max: 2 }',
        lambda x: np.clip(x, -0.5, 2),
        lambda x: ((x >= -0.5) & (x <= 2)) * 1.0,
    ),
    "clip_above": (
        'type: "Clip" clip_param { min: -1 max: inf }',
        lambda x: np.maximum(x, -1),
        lambda x: (x >= -1) * 1.0,
    ),
    "threshold": ('type: "Threshold" threshold_param { threshold: 0.5 }', lambda x: (x > 0.5) * 1.0, None),
    "dropout": ('type: "Dropout"', lambda x: x, np.ones_like),
    "relu_limit": (
        'type: "ReLU" relu_param { negative_slope: 0.5 upper_limit: 2 }',
        lambda x: np.minimum(np.where(x > 0, x, 0.5 * x), 2),
        lambda x: np.where(x > 0, 1, 0.5),  # the fork's backward pass ignores the limit
    ),
    "relu_maximum": (
        'type: "ReLU" relu_param { negative_slope: 0.5 maximum: 2 minimum: -1 }',
        lambda x: np.clip(np.where(x > 0, x, 0.5 * x), -1, 2),
        lambda x: ((x > -1) & (x < 2)) * np.where(x > 0, 1, 0.5),
    ),
    "relu_relu6": (
        'type: "ReLU" relu_param { relu6: true maximum: 30 }',
        lambda x: np.clip(x, 0, 6),
        lambda x: ((x > 0) & (x < 6)) * 1.0,
    ),
    "relu6_slope": (
        'type: "ReLU6" relu6_param { negative_slope: 0.2 threshold: 2 }',
        lambda x: np.minimum(np.where(x > 0, x, 0.2 * x), 2),
        lambda x: np.where(x > 0, 1.0 * (x < 2), 0.2),
    ),
    "softplus": ('type: "Softplus"', lambda x: np.logaddexp(0, x), sigmoid),
    "softsign": ('type: "Softsign"', lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2.0),
    "mish": (
        'type: "Mish"',
        lambda x: x * np.tanh(np.logaddexp(0, x)),
        lambda x: np.tanh(np.logaddexp(0, x)) + x * sigmoid(x) * (1 - np.tanh(np.logaddexp(0, x)) ** 2),
    ),
    "hswish": (
        'type: "HSwish"',
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
        lambda x: np.clip(x + 3, 0, 6) / 6 + x / 6 * ((x > -3) & (x < 3)),
    ),
    "hsigmoid": (
        'type: "HSigmoid"',
        lambda x: np.clip(x + 3, 0, 6) / 6,
        lambda x: ((x > -3) & (x < 3)) / 6,
    ),
    "hard_sigmoid": (
        'type: "HardSigmoid" hard_sigmoid_param { alpha: 0.25 beta: 0.75 }',
        lambda x: np.clip(0.25 * x + 0.75, 0, 1),
        lambda x: ((x > -3) & (x < 1)) * 0.25,
    ),
    "hard_tanh": ('type: "HardTanh"', lambda x: np.clip(x, -1, 1), lambda x: (abs(x) < 1) * 1.0),
    "neg_relu": (
        'type: "NegReLU" relu_param { negative_slope: 0.25 }',
        lambda x: np.where(x < 0, x, 0.25 * x),
        lambda x: np.where(x < 0, 1, 0.25),
    ),
    "scaled_tanh": (
        'type: "ScaledTanH" scaled_tanh_param { alpha: 1.5 beta: 0.5 }',
        lambda x: 1.5 * np.tanh(x / 2),
        lambda x: 0.75 * (1 - np.tanh(x / 2) ** 2),
    ),
    "selu": (
        'type: "SELU" selu_param { lambda: 1.5 alpha: 0.5 }',
        lambda x: np.where(x > 0, 1.5 * x, 0.75 * np.expm1(np.minimum(x, 0))),
        lambda x: np.where(x > 0, 1.5, 0.75 * np.exp(np.minimum(x, 0))),
    ),
    "thresholded_relu": (
        'type: "ThresholdedReLU" thresholded_relu_param { alpha: 0.5 }',
        lambda x: np.where(x > 0.5, x, 0),
        lambda x: (x > 0.5) * 1.0,
    ),
    "xlu": (
        'type: "XLU" xlu_param { negative_slope: 0.5 maximum: 2 minimum: -1 relu6: true }',
        lambda x: np.clip(np.where(x > 0, x, 0.5 * x), -1, 2),
        lambda x: ((x > -1) & (x < 2)) * np.where(x > 0, 1, 0.5),  # limits of x, not of the rectified value
    ),
    "xlu_6": (
        'type: "XLU" xlu_param { relu6: true maximum: 30 }',
        lambda x: np.clip(x, 0, 6),
        lambda x: ((x > 0) & (x < 6)) * 1.0,
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_function_and_derivative(case):
    body, function, derivative = CASES[case]
    net = one_layer(body, X.shape)
    exact = X.astype(np.float64)
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(
            use(net, [X])[0], function(exact), rtol=1e-5, atol=1e-5, err_msg=use.__name__
        )
    assert net.layer("op").has_gradient is (derivative is not None)
    if derivative is not None:
        diff = draw(*X.shape, seed=5)
        found = gradients(net, [X], diff)[0]
        np.testing.assert_allclose(found, derivative(exact) * diff, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_dtypes_are_kept(case, dtype):
    body, function, _ = CASES[case]
    top = one_layer(body, X.shape).layer("op")(torch.from_numpy(X).to(dtype))[0]
    assert top.dtype == dtype
    x = torch.from_numpy(X).to(dtype).double().numpy()
    np.testing.assert_allclose(
        top.double().numpy(), function(x), rtol=1e-7 if dtype == torch.float64 else 0.02, atol=1e-2
    )


@pytest.mark.parametrize(
    ("maximum", "limit"), [(1.5, 1.5), (9, 6), (0, 6), (-2, 6)], ids=["below", "above", "zero", "negative"]
)
def test_xlu_takes_its_maximum_from_the_second_bottom(maximum, limit):
    net = one_layer('type: "XLU" xlu_param { relu6: true maximum: 1 }', X.shape, (2, 3))
    given = np.full((2, 3), 7, np.float32)
    given[0, 0] = maximum
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, [X, given])[0], np.clip(X, 0, limit), err_msg=use.__name__)


def test_xlu_gives_zero_for_nan():
    net = one_layer('type: "XLU"', (2, 3))
    x = np.array([[np.nan, -1, 2], [3, np.nan, -4]], np.float32)
    for use in (run, run_onnx, run_source):
        np.testing.assert_array_equal(use(net, [x])[0], [[0, 0, 2], [3, 0, 0]], err_msg=use.__name__)


def test_a_limit_passes_the_gradient_of_infinity_as_zero():
    net = one_layer('type: "ReLU" relu_param { upper_limit: 2 }', (1, 3))
    x = np.array([[np.inf, 5, 1]], np.float32)
    np.testing.assert_array_equal(run(net, [x])[0], [[2, 2, 1]])
    np.testing.assert_array_equal(gradients(net, [x], np.ones_like(x))[0], [[0, 1, 1]])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_log_softmax_is_at_least_the_logarithm_of_1e_20(axis):
    x = draw(2, 3, 4)
    x[0, 0, 0] = -200
    shifted = x - x.max(axis, keepdims=True)
    exact = np.exp(shifted.astype(np.float64))
    expected = np.log(np.maximum(exact / exact.sum(axis, keepdims=True), 1e-20))
    net = one_layer(f'type: "LogSoftmax" log_softmax_param {{ axis: {axis} }}', x.shape)
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, [x])[0], expected, rtol=1e-5, atol=1e-6, err_msg=use.__name__)


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_crelu_concatenates_both_signs(axis):
    x, diff = draw(2, 3, 4), draw(*(2 * n if i == axis % 3 else n for i, n in enumerate((2, 3, 4))), seed=5)
    net = one_layer(f'type: "CReLU" crelu_param {{ concat_axis: {axis} negative_slope: 0.5 }}', x.shape)
    leaky = [np.where(sign * x > 0, sign * x, 0.5 * sign * x) for sign in (1, -1)]
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(
            use(net, [x])[0], np.concatenate(leaky, axis), rtol=1e-6, err_msg=use.__name__
        )
    halves = np.split(diff, 2, axis)
    expected = np.where(x > 0, 1, 0.5) * halves[0] - np.where(x < 0, 1, 0.5) * halves[1]
    np.testing.assert_allclose(gradients(net, [x], diff)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5)], ids=["2d", "3d", "4d"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "a_channel"])
def test_prelu(shape, shared):
    slope = np.float32(0.3).reshape(()) if shared else np.array([0.5, -0.25, 2.0], np.float32)
    body = f'type: "PReLU" prelu_param {{ channel_shared: {str(shared).lower()} }}'
    net = one_layer(body, shape, blobs=[slope])
    x = draw(*shape)
    x[0] = 0  # the slope holds at 0
    by = slope if shared else slope.reshape(-1, *[1] * (len(shape) - 2))
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(
            use(net, [x])[0], np.where(x > 0, x, by * x), rtol=1e-6, err_msg=use.__name__
        )
    diff = draw(*shape, seed=5)
    np.testing.assert_allclose(gradients(net, [x], diff)[0], np.where(x > 0, 1, by) * diff, rtol=1e-5)
    axes = None if shared else tuple(axis for axis in range(len(shape)) if axis != 1)
    expected = (np.where(x > 0, 0, x) * diff).sum(axes)
    np.testing.assert_allclose(net.params["op"][0].grad.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_prelu_starts_at_a_quarter():
    assert one_layer('type: "PReLU"', (2, 3, 5)).params["op"][0].tolist() == [0.25] * 3
    assert one_layer('type: "PReLU" prelu_param { channel_shared: true }', (2, 3)).params["op"][0].shape == ()


def test_dropout_in_training_scales_the_kept_values():
    net = one_layer('type: "Dropout" dropout_param { dropout_ratio: 0.7 }', (100, 3, 70), phase="TRAIN")
    x = np.ones((100, 3, 70), np.float32)
    torch.manual_seed(1)
    first = run(net, [x])[0]
    np.testing.assert_allclose(np.unique(first), [0, 1 / 0.3], rtol=1e-6)
    assert abs((first > 0).mean() - 0.3) < 0.01
    assert (run(net, [x])[0] != first).any()
    torch.manual_seed(1)
    np.testing.assert_array_equal(run(net, [x])[0], first)
    leaf = torch.ones(100, 3, 70, requires_grad=True)
    top = net(in0=leaf)["top0"]
    top.sum().backward()
    assert torch.equal(leaf.grad, top)  # the same mask and scale on the way back
    text = build_source(net).text
    assert "self.op = nn.Dropout(0.7)" in text
    assert "top0 = self.op(in0)" in text
    with pytest.raises(
        LayerError, match=r"op \(Dropout\): cannot be written as ONNX: it draws random numbers in each pass"
    ):
        run_onnx(net, [x])


def test_fields_are_written_as_a_person_would():
    net = one_layer('type: "ReLU" relu_param { negative_slope: 0.1 }', (2, 3))
    assert "F.leaky_relu(in0, 0.1)" in build_source(net).text
    assert "torch.clamp(in0, -1.0, math.inf)" in build_source(one_layer(CASES["clip_above"][0], (2, 3))).text


@pytest.mark.parametrize(
    ("body", "shape", "message"),
    [
        ('type: "PReLU"', (3,), "op (PReLU): bottom [3] has no channel axis; it takes 2 axes or more"),
        ('type: "ReLU6" relu6_param { threshold: 0 }', (2, 3), "op (ReLU6): threshold 0 must be over 0"),
        (
            'type: "Dropout" dropout_param { dropout_ratio: 1 }',
            (2, 3),
            "op (Dropout): dropout_ratio 1 must be at",
        ),
        (
            'type: "Dropout" dropout_param { dropout_ratio: -0.1 }',
            (2, 3),
            "op (Dropout): dropout_ratio -0.1 must",
        ),
        ('type: "Clip"', (2, 3), "op (Clip): clip_param.min is missing; state both min and max"),
        (
            'type: "ScaledTanH" scaled_tanh_param { alpha: 2 }',
            (2, 3),
            "op (ScaledTanH): scaled_tanh_param.beta is missing; state both alpha and beta",
        ),
        (
            'type: "CReLU" crelu_param { concat_axis: 2 }',
            (2, 3),
            "op (CReLU): concat_axis 2 is outside a blob of 2 axes",
        ),
        (
            'type: "LogSoftmax" log_softmax_param { axis: -3 }',
            (2, 3),
            "op (LogSoftmax): axis -3 is outside a blob of 2 axes",
        ),
    ],
    ids=[
        *("prelu_rank", "relu6", "dropout_1", "dropout_negative", "clip"),
        *("scaled_tanh", "crelu", "log_softmax"),
    ],
)
def test_refused(body, shape, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        one_layer(body, shape)
