"""SphereFace's and L-Softmax's layers against loops over single labels, their iteration, and what they refuse."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, gradients, layer_text, run

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet

TYPES = ["SINGLE", "DOUBLE", "TRIPLE", "QUADRUPLE"]
MESSAGES = {
    "MarginInnerProduct": "margin_inner_product_param",
    "LargeMarginInnerProduct": "largemargin_inner_product_param",
}


def psi(cos: float, times: int) -> float:
    """(-1)^k cos(m theta) - 2k on the k-th of m parts of [0, pi]."""
    theta = np.arccos(cos)
    part = min(int(theta * times / np.pi), times - 1)
    return (-1) ** part * np.cos(times * theta) - 2 * part


def by_loop(x, weight, labels, times, mix, unit):
    rows = x.reshape(-1, weight.shape[1]).astype(np.float64)
    top = np.zeros((len(rows), len(weight)))
    for i, row in enumerate(rows):
        for j, w in enumerate(weight.astype(np.float64)):
            w = w / np.linalg.norm(w) if unit else w
            top[i, j] = row @ w
            if j == labels.ravel()[i]:
                length = np.linalg.norm(row) * np.linalg.norm(w)
                top[i, j] = (length * psi(row @ w / length, times) + mix * row @ w) / (1 + mix)
    return top


@pytest.mark.parametrize("type_", MESSAGES)
@pytest.mark.parametrize("times", [1, 2, 3, 4], ids=TYPES)
@pytest.mark.parametrize(("shape", "axis"), [((7, 2, 3), 1), ((4, 3, 5), 2)], ids=["flattened", "axis_2"])
def test_values(type_, times, shape, axis):
    fields = (
        f"num_output: 4 type: {TYPES[times - 1]} axis: {axis} "
        "base: 9 gamma: 0.5 power: 2 iteration: 3 lambda_min: 0.25"
    )
    weight = draw(4, int(np.prod(shape[axis:])), seed=1)
    labels = np.arange(np.prod(shape[:axis]), dtype=np.float32).reshape(shape[:axis]) % 4
    body = f'type: "{type_}" {MESSAGES[type_]} {{ {fields} }}'
    net = one_layer(body, shape, labels.shape, tops=2, blobs=[weight])
    mix = max(9 / (1 + 0.5 * 4) ** 2, 0.25)
    x = draw(*shape)
    top = by_loop(x, weight, labels, times, mix, type_ == "MarginInnerProduct")
    assert_all_uses(net, [x, labels], [top.reshape(*shape[:axis], 4).astype(np.float32), np.float32([mix])])


def test_lambda_has_a_least_value():
    fields = "num_output: 3 type: DOUBLE base: 8 gamma: 1 iteration: 99 lambda_min: 5"
    net = one_layer(
        f'type: "MarginInnerProduct" margin_inner_product_param {{ {fields} }}', (2, 4), (2,), tops=2
    )
    assert run(net, [draw(2, 4), np.zeros(2, np.float32)])[1].tolist() == [5]


def train_net(**options) -> CaffeNet:
    """SphereFace's head: margin product and loss, both phases alike."""
    fields = "num_output: 3 type: QUADRUPLE base: 10 gamma: 1 lambda_min: 2 weight_filler { type: 'xavier' }"
    text = layer_text(
        "MarginInnerProduct", [(5, 4), (5,)], f"margin_inner_product_param {{ {fields} }}", tops=2
    )
    text += '\nlayer { name: "loss" type: "SoftmaxWithLoss" bottom: "top0" bottom: "in1" top: "loss" }'
    return CaffeNet(load_graph(parse_net(text), phase="TRAIN"), seed=3, **options)


def lambdas(net: CaffeNet, passes: int) -> list[float]:
    x, labels = torch.from_numpy(draw(5, 4)), torch.arange(5.0) % 3
    return [net.run({"in0": x, "in1": labels}, ("top1",)).blobs["top1"].item() for _ in range(passes)]


def test_the_iteration_is_counted_where_state_is_carried():
    assert lambdas(train_net(), 3) == [5, 5, 5]
    net = train_net(carry_state=True)
    assert lambdas(net, 5) == pytest.approx([5, 10 / 3, 2.5, 2, 2])
    net.reset_state()
    assert lambdas(net, 2) == pytest.approx([5, 10 / 3])


def test_training_stores_rows_of_length_1():
    net = train_net()
    weight = net.params["op"][0]
    with torch.no_grad():
        weight.mul_(torch.tensor([[2.0], [0.5], [3.0]]))
    unit = weight.detach().numpy() / np.linalg.norm(weight.detach().numpy(), axis=1, keepdims=True)
    x, labels = draw(5, 4), np.float32([0, 1, 2, 0, 1])
    net.run({"in0": torch.from_numpy(x), "in1": torch.from_numpy(labels)}, ("loss",)).loss.backward()
    np.testing.assert_allclose(weight.detach().numpy(), unit, rtol=1e-6)
    assert weight.grad.abs().sum() > 0
    net.eval()
    with torch.no_grad():
        weight.mul_(2)
    lambdas(net, 1)
    np.testing.assert_allclose(
        weight.detach().numpy(), 2 * unit, rtol=1e-6
    )  # a pass in eval() stores nothing


ARCFACE = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 6 dim: 4 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 6 } } }
layer { name: "norm" type: "Normalize" bottom: "x" top: "unit" }
layer { name: "fc" type: "InnerProduct" bottom: "unit" top: "cos"
  inner_product_param { num_output: 3 normalize: true bias_term: false weight_filler { type: "xavier" } } }
layer { name: "margin" type: "CosinAddm" bottom: "cos" bottom: "label" top: "turned" cosin_add_m_param { m: 0.25 } }
layer { name: "scale" type: "Scale" bottom: "turned" top: "scaled" param { lr_mult: 0 }
  scale_param { axis: 0 num_axes: 0 filler { value: 8 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scaled" bottom: "label" top: "loss" }
"""


def test_arcface_as_a_whole_net():
    net = CaffeNet(load_graph(parse_net(ARCFACE), phase="TRAIN"), seed=3)
    x, labels = draw(6, 4), np.float32([0, 1, 2, 2, 1, 0])
    weight = net.params["fc"][0].detach().numpy().astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cos = unit @ (weight / np.linalg.norm(weight, axis=1, keepdims=True)).T
    expected = 0.0
    for row, label in zip(cos, labels.astype(int), strict=True):
        theta = np.arccos(row[label])
        assert theta + 0.25 < np.pi
        row[label] = np.cos(theta + 0.25)
        expected += np.log(np.exp(8 * row).sum()) - 8 * row[label]
    found = net.loss({"x": torch.from_numpy(x), "label": torch.from_numpy(labels)})
    assert found.item() == pytest.approx(expected / 6, rel=1e-4)
    before = found.item()
    for _ in range(20):  # it learns
        net.zero_grad()
        loss = net.loss({"x": torch.from_numpy(x), "label": torch.from_numpy(labels)})
        loss.backward()
        with torch.no_grad():
            net.params["fc"][0].sub_(0.05 * net.params["fc"][0].grad)
    assert loss.item() < before
    lengths = net.params["fc"][0].detach().norm(dim=1)  # one step after they were stored with length 1
    assert ((lengths > 0.5) & (lengths < 2)).all()


@pytest.mark.parametrize("times", [1, 2, 3, 4], ids=TYPES)
def test_large_margin_gradient_is_that_of_the_values(times):
    shape, labels = (5, 3), np.float32([0, 1, 2, 3, 0])
    weight, x, diff = draw(4, 3, seed=1), draw(*shape), draw(5, 4, seed=5)
    fields = f"num_output: 4 type: {TYPES[times - 1]} base: 0.5"
    body = f'type: "LargeMarginInnerProduct" largemargin_inner_product_param {{ {fields} }}'
    net = one_layer(body, shape, labels.shape, blobs=[weight])
    found = gradients(net, [x, labels], diff)[0]
    step = 1e-4
    for place in np.ndindex(*shape):
        ends = []
        for sign in (1, -1):
            moved = x.astype(np.float64)
            moved[place] += sign * step
            ends.append((by_loop(moved, weight, labels, times, 0.5, False) * diff).sum())
        np.testing.assert_allclose(found[place], (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "shapes", "message"),
    [
        ("", [(2, 3), (2,)], "num_output is 0 or absent; state the number of outputs"),
        ("num_output: 3 gamma: -1", [(2, 3), (2,)], "gamma -1 and iteration 0 must be at least 0"),
        ("num_output: 3 axis: 2", [(2, 3), (2,)], "axis 2 is outside a blob of 2 axes"),
        ("num_output: 3", [(2, 3), (3,)], "has 3 labels [3] for 2 rows of [2, 3]; give one label per row"),
    ],
    ids=["outputs", "gamma", "axis", "labels"],
)
@pytest.mark.parametrize("type_", MESSAGES)
def test_refused(type_, fields, shapes, message):
    with pytest.raises(LayerError, match=re.escape(f"op ({type_}): {message}")):
        one_layer(f'type: "{type_}" {MESSAGES[type_]} {{ {fields} }}', *shapes)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(label):
    net = one_layer('type: "MarginInnerProduct" margin_inner_product_param { num_output: 3 }', (2, 4), (2,))
    with pytest.raises(LayerError, match=f"label {label} is out of range; it must be from 0 to 2"):
        run(net, [draw(2, 4), np.float32([0, label])])
