"""The random layers of forks and Dropout's fields of forks, by their statistics and by what they leave alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from layer_nets import draw, one_layer
from one_layer import gradients, run, run_onnx, run_source

from ilgnet_repro.errors import LayerError

X = np.ones((40, 30, 5, 4), np.float32)


def drawn(net) -> np.ndarray:
    torch.manual_seed(1)
    return run(net, [X])[0]


def test_scale_train_false_scales_in_the_test_phase_only():
    body = 'type: "Dropout" dropout_param { dropout_ratio: 0.25 scale_train: false }'
    found = drawn(one_layer(body, X.shape, phase="TRAIN"))
    np.testing.assert_allclose(np.unique(found), [0, 1], atol=1e-6)
    assert abs(found.mean() - 0.75) < 0.02
    x, diff = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=5)
    net = one_layer(body, x.shape)
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, [x])[0], 0.75 * x, rtol=1e-6, err_msg=use.__name__)
    np.testing.assert_allclose(gradients(net, [x], diff)[0], 0.75 * diff, rtol=1e-6)


def test_sample_weights_test_draws_in_the_test_phase():
    body = 'type: "Dropout" dropout_param { dropout_ratio: 0.25 sample_weights_test: true }'
    net = one_layer(body, X.shape)
    found = drawn(net)
    np.testing.assert_allclose(np.unique(found), [0, 4 / 3], rtol=1e-6)
    assert abs((found > 0).mean() - 0.75) < 0.02
    torch.manual_seed(1)
    np.testing.assert_array_equal(run_source(net, [X])[0], found)
    with pytest.raises(
        LayerError, match=r"op \(Dropout\): cannot be written as ONNX: sample_weights_test draws"
    ):
        run_onnx(net, [X])


@pytest.mark.parametrize("message", ["dropout_param", "spatial_dropout_param"])
def test_spatial_dropout_zeroes_whole_channels(message):
    body = f'type: "SpatialDropout" {message} {{ dropout_ratio: 0.25 }}'
    net = one_layer(body, X.shape, phase="TRAIN")
    found = drawn(net)
    assert (found == found[:, :, :1, :1]).all()
    np.testing.assert_allclose(np.unique(found), [0, 4 / 3], rtol=1e-6)
    assert abs((found > 0).mean() - 0.75) < 0.05
    torch.manual_seed(1)
    np.testing.assert_array_equal(run_source(net, [X])[0], found)
    with pytest.raises(
        LayerError, match=r"op \(SpatialDropout\): cannot be written as ONNX: it draws random"
    ):
        run_onnx(net, [X])
    x = draw(2, 3, 4)
    for use in (run, run_onnx, run_source):
        np.testing.assert_array_equal(use(one_layer(body, x.shape), [x])[0], x, err_msg=use.__name__)


@pytest.mark.parametrize(
    ("fields", "ratio", "alpha"), [("", 0.1, -1.75809934), ("dropout_ratio: 0.25 alpha: -2", 0.25, -2.0)]
)
def test_selu_dropout_keeps_mean_and_variance(fields, ratio, alpha):
    """Values are x or alpha, scaled and shifted so that mean 0 and variance 1 stay."""
    body = f'type: "SeLuDropout" selu_dropout_param {{ {fields} }}'
    x = draw(20, 30, 25, 20)
    net = one_layer(body, x.shape, phase="TRAIN")
    torch.manual_seed(1)
    found = run(net, [x])[0]
    scale = ((1 - ratio) * (1 + ratio * alpha**2)) ** -0.5
    shift = -scale * ratio * alpha
    dropped = np.abs(found - (scale * alpha + shift)) < 1e-5
    np.testing.assert_allclose(found[~dropped], (scale * x + shift)[~dropped], rtol=1e-5, atol=1e-5)
    assert abs(dropped.mean() - ratio) < 0.01
    assert abs(found.mean()) < 0.01 and abs(found.var() - 1) < 0.02
    torch.manual_seed(1)
    np.testing.assert_array_equal(run_source(net, [x])[0], found)
    torch.manual_seed(1)
    slope = gradients(net, [x], np.ones_like(x))[0]
    np.testing.assert_allclose(slope[slope != 0], scale, rtol=1e-6)
    with pytest.raises(LayerError, match=r"op \(SeLuDropout\): cannot be written as ONNX: it draws random"):
        run_onnx(net, [x])
    small = draw(2, 3, 4)
    for use in (run, run_onnx, run_source):
        top = use(one_layer(body, small.shape), [small])[0]
        np.testing.assert_array_equal(top, small, err_msg=use.__name__)


def test_selu_dropout_refuses_a_ratio_of_1():
    with pytest.raises(LayerError, match="dropout_ratio 1 must be at least 0 and below 1"):
        one_layer('type: "SeLuDropout" selu_dropout_param { dropout_ratio: 1 }', (2, 3))


ENET = "python_param { module: 'spatial_dropout' layer: 'SpatialDropoutLayer' param_str: \"%s\" }"


def test_enet_drops_channels_by_its_own_phase():
    text = ENET % "{'phase': 'TRAIN', 'p': '0.25'}"
    net = one_layer(f'type: "Python" {text}', X.shape)  # phase TEST does not matter
    found = drawn(net)
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :, :1, :1], found.shape))
    np.testing.assert_allclose(np.unique(found), [0, 4 / 3], rtol=1e-6)
    torch.manual_seed(1)
    np.testing.assert_array_equal(run_source(net, [X])[0], found)
    with pytest.raises(
        LayerError, match="cannot be written as ONNX: phase TRAIN in its param_str draws random numbers"
    ):
        run_onnx(net, [X])
    x = draw(2, 3, 4, 5)
    text = ENET % "{'phase': 'TEST', 'p': 0.2}"
    other = one_layer(f'type: "Python" {text}', x.shape)
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(other, [x])[0], x / 0.8, rtol=1e-6, err_msg=use.__name__)


def test_insanity_divides_negative_values_by_its_range_or_its_mean():
    body = 'type: "Insanity" insanity_param { lb: 2 ub: 8 }'
    net = one_layer(body, X.shape, phase="TRAIN")
    torch.manual_seed(1)
    found = run(net, [-X])[0]
    assert found.min() >= -0.5 and found.max() <= -0.125 and abs((-1 / found).mean() - 5) < 0.1
    torch.manual_seed(1)
    np.testing.assert_array_equal(run_source(net, [-X])[0], found)
    x = draw(2, 3, 4)
    expected = np.where(x > 0, x, x / (6 / np.log(4)))
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(
            use(one_layer(body, x.shape), [x])[0], expected, rtol=1e-6, err_msg=use.__name__
        )


@pytest.mark.parametrize(
    ("body", "shape", "message"),
    [
        (
            'type: "SpatialDropout" dropout_param { dropout_ratio: 1 }',
            (2, 3),
            "op (SpatialDropout): dropout_ratio 1 must be at least 0 and below 1",
        ),
        (
            'type: "SpatialDropout" dropout_param { } spatial_dropout_param { }',
            (2, 3),
            "op (SpatialDropout): states both dropout_param and spatial_dropout_param; keep one",
        ),
        (
            'type: "SpatialDropout"',
            (3,),
            "op (SpatialDropout): bottom [3] has no channel axis; it takes 2 axes or more",
        ),
        (
            'type: "Insanity" insanity_param { lb: 4 ub: 3 }',
            (2, 3),
            "op (Insanity): lb 4 must be below ub 3, and neither 0",
        ),
        (
            'type: "Insanity" insanity_param { lb: 0 ub: 3 }',
            (2, 3),
            "op (Insanity): lb 0 must be below ub 3, and neither 0",
        ),
        (
            'type: "Insanity" insanity_param { lb: -3 ub: 3 }',
            (2, 3),
            "op (Insanity): lb -3 and ub 3 have no logarithmic mean",
        ),
        (
            'type: "Python" ' + ENET % "{'phase': 'TRAIN'}",
            (2, 3, 4, 5),
            "op (Python): param_str must have phase and p, as in {'phase': 'TRAIN', 'p': '0.1'}",
        ),
        (
            'type: "Python" ' + ENET % "{'phase': 'TRAIN', 'p': 'half'}",
            (2, 3, 4, 5),
            "op (Python): param_str: p 'half' is not a number",
        ),
        (
            'type: "Python" ' + ENET % "{'phase': 'TRAIN', 'p': 1}",
            (2, 3, 4, 5),
            "op (Python): param_str: p 1 must be between 0 and 1",
        ),
        (
            'type: "Python" ' + ENET % "{'phase': 'TRAIN', 'p': 0.1}",
            (2, 3),
            "op (Python): bottom [2, 3] must have four axes, N×C×H×W",
        ),
        ('type: "Insanity"', (3,), "op (Insanity): bottom [3] has 1 axes; it takes 2 or more"),
    ],
    ids=[
        "ratio",
        "both",
        "spatial_rank",
        "order",
        "zero",
        "opposite",
        "enet_settings",
        "enet_number",
        "enet_range",
        "enet_rank",
        "insanity_rank",
    ],
)
def test_refused(body, shape, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        one_layer(body, shape)
