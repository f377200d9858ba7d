"""Margins on cosines against loops over single labels, their state, and what they refuse."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, gradients, layer_text, run

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet

F32 = np.float32
X = np.tanh(draw(6, 4) * 1.2)
X[1, 2] = -0.98  # theta + m passes pi
LABELS = F32([0, 2, 1, 3, -1, 2])


def arc(cos: float, m: float) -> float:
    theta = math.acos(min(cos, 1))
    return math.cos(theta + m) if cos > math.cos(math.pi - m) else cos - m * math.sin(m)


def combined(cos: float, m1: float, m2: float, m3: float) -> float:
    return math.cos(m1 * math.acos(cos) + m2) - m3


def by_loop(x, labels, function):
    top = x.astype(np.float64)
    for row, label in zip(top, labels, strict=True):
        if label >= 0:
            row[int(label)] = function(row[int(label)])
    return top


def adacos(x, labels, m, scale):
    top = by_loop(x, labels, lambda cos: arc(cos, m))
    total = sum(
        math.exp(scale * (0 if j == label else cos))
        for row, label in zip(x.astype(np.float64), labels, strict=True)
        for j, cos in enumerate(row)
    )
    angle = min(np.arccos(x.astype(np.float64)).mean(), math.pi / 4)
    scale = math.log(total / len(x)) / math.cos(angle)
    return top * scale, scale


CASES = {
    "CosinAddm": ("", lambda x: by_loop(x, LABELS, lambda cos: arc(cos, 0.5))),
    "CosinAddm m": (
        "cosin_add_m_param { m: 0.25 transform_test: true }",
        lambda x: by_loop(x, LABELS, lambda cos: arc(cos, 0.25)),
    ),
    "CombinedMargin": ("", lambda x: by_loop(x, LABELS, lambda cos: combined(cos, 4, 0.5, 0.35))),
    "CombinedMargin arcface": (
        "combined_margin_param { m1: 1 m2: 0.5 m3: 0 }",
        lambda x: by_loop(x, LABELS, lambda cos: combined(cos, 1, 0.5, 0)),
    ),
    "AdaCosAddmScale": (
        "adacos_add_m_scale_param { num_classes: 4 m: 0.25 }",
        lambda x: adacos(x, LABELS, 0.25, math.sqrt(2) * math.log(3))[0],
    ),
}


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("case", CASES)
def test_values(case, phase):
    params, function = CASES[case]
    net = one_layer(f'type: "{case.split()[0]}" {params}', X.shape, LABELS.shape, phase=phase)
    assert_all_uses(net, [X, LABELS], [function(X).astype(F32)])


@pytest.mark.parametrize("shape", [(6, 4, 1, 1), (6, 2, 2)], ids=["4d", "3d"])
def test_all_but_the_first_axis_are_classes(shape):
    net = one_layer('type: "CosinAddm"', shape, (6, 1))
    expected = by_loop(X, LABELS, lambda cos: arc(cos, 0.5)).astype(F32)
    assert_all_uses(net, [X.reshape(shape), LABELS.reshape(6, 1)], [expected.reshape(shape)])


def test_the_scale_of_adacos_follows_where_state_is_carried():
    text = layer_text(
        "AdaCosAddmScale", [X.shape, LABELS.shape], "adacos_add_m_scale_param { num_classes: 4 }"
    )
    graph = load_graph(parse_net(text), phase="TRAIN")
    first, scale = adacos(X, LABELS, 0.5, math.sqrt(2) * math.log(3))
    second, _ = adacos(X, LABELS, 0.5, scale)
    alone, carried = CaffeNet(graph), CaffeNet(graph, carry_state=True)
    for net, expected in ((alone, [first, first]), (carried, [first, second])):
        for wanted in expected:
            np.testing.assert_allclose(run(net, [X, LABELS])[0], wanted, rtol=1e-5)
    carried.reset_state()
    np.testing.assert_allclose(run(carried, [X, LABELS])[0], first, rtol=1e-5)


def test_label_specific_add_annealed_over_passes():
    fields = "bias_base: -0.2 bias_gamma: 1 bias_power: 0.5 bias_min: -0.15 bias_max: 0.3 iteration: 0"
    params = f"label_specific_add_param {{ {fields} }}"
    text = layer_text("LabelSpecificAdd", [X.shape, LABELS.shape], params, tops=2)
    net = CaffeNet(load_graph(parse_net(text), phase="TRAIN"), carry_state=True)
    labels = np.abs(LABELS)
    for iteration in range(4):
        bias = min(max(-0.2 + math.sqrt(1 + iteration) - 1, -0.15), 0.3)
        expected = by_loop(X, labels, lambda cos, bias=bias: cos + bias * (cos > -bias))
        top, second = run(net, [X, labels])
        np.testing.assert_allclose(top, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(second, [bias], rtol=1e-6)


@pytest.mark.parametrize("bias", [-0.35, 0.2, 0])
def test_label_specific_add(bias):
    body = f'type: "LabelSpecificAdd" label_specific_add_param {{ bias: {bias} }}'
    labels = np.abs(LABELS)
    net = one_layer(body, X.shape, LABELS.shape, phase="TRAIN", tops=2)
    expected = by_loop(X, labels, lambda cos: cos + bias * (cos > -bias)).astype(F32)
    assert_all_uses(net, [X, labels], [expected, F32([bias])])
    test = one_layer(body, X.shape, LABELS.shape, tops=2)
    assert_all_uses(test, [X, labels], [X, F32([0])])


def test_gradient_at_the_edges_is_finite_or_the_forks():
    x = F32([[1, 0.5], [1.25, 0.5], [1, -1]])
    labels, diff = F32([0, 0, -1]), draw(3, 2, seed=5)
    found = gradients(one_layer('type: "CosinAddm"', x.shape, (3,)), [x, labels], diff)[0]
    np.testing.assert_allclose(found, diff, rtol=1e-6)  # sin(theta) is 0: 1; a negative label: 1
    found = gradients(one_layer('type: "CombinedMargin"', x[2:].shape, (1,)), [x[2:], labels[2:]], diff[2:])[
        0
    ]
    np.testing.assert_allclose(found, diff[2:], rtol=1e-6)
    edge = F32([[1, -1, 0.5]])
    net = one_layer('type: "Arccos"', edge.shape)
    np.testing.assert_allclose(run(net, [edge])[0], np.arccos(edge), rtol=1e-6)
    found = gradients(net, [edge], np.ones_like(edge))[0][0]
    np.testing.assert_allclose(found[[0, 2]], [-((1 - 0.99**2) ** -0.5), -((1 - 0.25) ** -0.5)], rtol=1e-4)


@pytest.mark.parametrize(
    ("body", "shapes", "message"),
    [
        (
            'type: "CosinAddm"',
            [(6, 4), (5,)],
            "op (CosinAddm): needs scores N×C and one label per image, not [6, 4] and [5]",
        ),
        (
            'type: "CombinedMargin"',
            [(6,), (6,)],
            "op (CombinedMargin): needs scores N×C and one label per image, not [6] and [6]",
        ),
        (
            'type: "AdaCosAddmScale" adacos_add_m_scale_param { num_classes: 2 }',
            [(6, 2), (6,)],
            "op (AdaCosAddmScale): num_classes 2 must be over 2",
        ),
        (
            'type: "LabelSpecificAdd" label_specific_add_param { bias_base: 1 bias_gamma: -1 }',
            [(6, 4), (6,)],
            "op (LabelSpecificAdd): bias_gamma -1 must be at least 0",
        ),
    ],
    ids=["labels", "axes", "classes", "gamma"],
)
def test_refused(body, shapes, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        one_layer(body, *shapes)


@pytest.mark.parametrize(
    ("type_", "label"),
    [("CosinAddm", 4), ("CombinedMargin", 4), ("LabelSpecificAdd", 4), ("LabelSpecificAdd", -1)],
)
def test_a_label_that_is_no_class_is_refused(type_, label):
    net = one_layer(f'type: "{type_}"', (2, 4), (2,), phase="TRAIN")
    with pytest.raises(LayerError, match=f"label {label} is out of range; it must be from 0 to 3"):
        run(net, [X[:2], F32([0, label])])
