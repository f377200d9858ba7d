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
    assert "F.dropout(in0, 0.7)" in build_source(net).text
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
    ],
    ids=["prelu_rank", "relu6", "dropout_1", "dropout_negative", "clip"],
)
def test_refused(body, shape, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        one_layer(body, shape)
