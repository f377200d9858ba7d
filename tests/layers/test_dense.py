"""InnerProduct and Embed against slow formulas in numpy."""

from __future__ import annotations

import re

import numpy as np
import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import assert_all_uses, build, draw, gradients, run

from ilgnet_repro.errors import LayerError
from ilgnet_repro.export.source_writer import build_source

FILLERS = 'weight_filler { type: "gaussian" std: 1 } bias_filler { type: "gaussian" std: 1 }'


@settings(max_examples=examples(60), deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    outputs=st.integers(1, 5),
    transpose=st.booleans(),
    bias_term=st.booleans(),
    data=st.data(),
)
def test_inner_product(shape, outputs, transpose, bias_term, data) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    stated = data.draw(st.sampled_from([axis, axis - len(shape)]))
    flags = f"transpose: {str(transpose).lower()} bias_term: {str(bias_term).lower()}"
    params = f"inner_product_param {{ num_output: {outputs} axis: {stated} {flags} {FILLERS} }}"
    net = build("InnerProduct", [shape], params)
    weight, *bias = (blob.detach().numpy().astype(np.float64) for blob in net.params["op"])
    inputs = int(np.prod(shape[axis:]))
    assert weight.shape == ((inputs, outputs) if transpose else (outputs, inputs))
    assert len(bias) == bias_term

    x, diff = draw(1, *shape), draw(2, *shape[:axis], outputs)
    expected, back = np.empty((*shape[:axis], outputs)), np.zeros(shape)
    for place in np.ndindex(*expected.shape):
        row = weight[:, place[-1]] if transpose else weight[place[-1]]
        values = x[place[:-1]].reshape(-1)
        expected[place] = sum(w * v for w, v in zip(row, values, strict=True)) + (
            bias[0][place[-1]] if bias else 0
        )
        back[place[:-1]] += (diff[place] * row).reshape(shape[axis:])
    assert_all_uses(net, [x], [expected])
    np.testing.assert_allclose(gradients(net, [x], diff)[0], back, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias_term", ["true", "false"])
def test_embed(bias_term) -> None:
    # 6.9: Caffe casts to int, which truncates.
    x = np.array([[0, 8, 3], [3, 3, 6.9]], np.float32)
    params = f"embed_param {{ input_dim: 9 num_output: 4 bias_term: {bias_term} {FILLERS} }}"
    net = build("Embed", [x.shape], params)
    weight, *bias = net.params["op"]
    rows = [
        [weight[int(i)].detach().numpy() + (bias[0].detach().numpy() if bias else 0) for i in row]
        for row in x
    ]
    assert_all_uses(net, [x], [np.array(rows)])
    # A row's gradient is the sum over every index that selected it.
    net({"in0": x})["top0"].sum().backward()
    assert weight.grad[:, 0].tolist() == [1, 0, 0, 3, 0, 0, 1, 0, 1]


@pytest.mark.parametrize("wrong", [-1, 9], ids=["below", "above"])
def test_embed_refuses_an_index_out_of_range(wrong) -> None:
    net = build("Embed", [(2,)], "embed_param { input_dim: 9 num_output: 4 }")
    with pytest.raises(
        LayerError, match=rf"op \(Embed\): index {wrong} is out of range; it must be from 0 to 8"
    ):
        run(net, [np.array([1, wrong], np.float32)])


WRITTEN = {
    "images": ((2, 3, 4, 5), "", "self.op = nn.Linear(60, 7)", "self.op(in0.flatten(1))"),
    "flat": ((2, 3), "", "self.op = nn.Linear(3, 7)", "self.op(in0)"),
    "last axis": ((2, 3, 4, 5), "axis: -1", "self.op = nn.Linear(5, 7)", "self.op(in0)"),
    "transposed": ((2, 3), "transpose: true bias_term: false", "nn.Linear(3, 7, bias=False)", "self.op(in0)"),
    "all": ((2, 3), "axis: 0", "self.op = nn.Linear(6, 7)", "self.op(in0.flatten())"),
}


@pytest.mark.parametrize(("shape", "params", "made", "called"), WRITTEN.values(), ids=WRITTEN)
def test_source_is_what_a_person_would_write(shape, params, made, called) -> None:
    text = build_source(
        build("InnerProduct", [shape], f"inner_product_param {{ num_output: 7 {params} }}")
    ).text
    assert made in text and f"top0 = {called}\n" in text


def test_multiply_adds_count_each_weight_once_per_row() -> None:
    net = build("InnerProduct", [(2, 3, 4, 5)], "inner_product_param { num_output: 7 axis: 2 }")
    assert net.layer("op").plan((2, 3, 4, 5)).multiply_adds == 2 * 3 * 20 * 7
    net = build("Embed", [(2, 3)], "embed_param { input_dim: 9 num_output: 4 }")
    assert net.layer("op").plan((2, 3)).multiply_adds == 0


REFUSED = {
    "InnerProduct num_output": ("InnerProduct", (2, 3), "", "num_output is 0 or absent"),
    "InnerProduct axis": (
        "InnerProduct",
        (2, 3),
        "inner_product_param { num_output: 4 axis: 2 }",
        "axis 2 is outside a blob of 2 axes",
    ),
    "Embed num_output": ("Embed", (2,), "embed_param { input_dim: 9 }", "num_output is 0 or absent"),
    "Embed input_dim": ("Embed", (2,), "embed_param { num_output: 9 }", "input_dim is 0 or absent"),
}


@pytest.mark.parametrize(("type_", "shape", "params", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(type_, shape, params, message) -> None:
    with pytest.raises(LayerError, match=message) as caught:
        build(type_, [shape], params)
    assert str(caught.value).startswith(f"op ({type_}): ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(("shape", "axis"), [((4, 2, 3), 1), ((2, 4, 5), 2)], ids=["flattened", "axis_2"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_normalized_rows_have_length_1(shape, axis, bias) -> None:
    flags = f"axis: {axis} bias_term: {str(bias).lower()} normalize: true"
    net = build("InnerProduct", [shape], f"inner_product_param {{ num_output: 3 {flags} {FILLERS} }}")
    weight, *shift = (blob.detach().numpy().astype(np.float64) for blob in net.params["op"])
    x, diff = draw(1, *shape), draw(2, *shape[:axis], 3)
    rows = x.reshape(-1, weight.shape[1])
    unit = np.array([row / np.sqrt((row**2).sum() + 1e-6) for row in weight])
    expected = rows @ unit.T + (shift[0] if bias else 0)
    assert_all_uses(net, [x], [expected.reshape(*shape[:axis], 3).astype(np.float32)])
    np.testing.assert_allclose(net.params["op"][0].detach().numpy(), weight)  # phase TEST stores nothing
    found = gradients(net, [x], diff)[0]
    np.testing.assert_allclose(found.reshape(rows.shape), diff.reshape(-1, 3) @ unit, rtol=1e-4, atol=1e-5)
    # As in the fork, not multiplied by the derivative of the division.
    slope = diff.reshape(-1, 3).T @ rows
    np.testing.assert_allclose(net.params["op"][0].grad.numpy(), slope, rtol=1e-4, atol=1e-5)
    net.train()
    gradients(net, [x], diff)
    np.testing.assert_allclose(net.params["op"][0].detach().numpy(), unit, rtol=1e-5)


@pytest.mark.parametrize("weights", [(3, 10), (3, 2, 5), (3, 10, 1, 1)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_weights_as_a_bottom(weights, bias) -> None:
    shapes = [(4, 2, 5), weights, *([(3, 1)] if bias else [])]
    net = build("InnerProduct", shapes, f"inner_product_param {{ bias_term: {str(bias).lower()} }}")
    assert not net.params
    given = [draw(index, *shape) for index, shape in enumerate(shapes)]
    rows, weight = given[0].reshape(4, 10), given[1].reshape(3, 10)
    expected = rows @ weight.T + (given[2].ravel() if bias else 0)
    assert_all_uses(net, given, [expected.astype(np.float32)])
    diff = draw(5, 4, 3)
    found = gradients(net, given, diff)
    np.testing.assert_allclose(found[0].reshape(4, 10), diff @ weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1].reshape(3, 10), diff.T @ rows, rtol=1e-4, atol=1e-5)


MIXED = (
    "op (InnerProduct): transpose with normalize, or with weights as a bottom, mixes rows and columns in the fork; "
    "remove transpose and store the weights with one row per output"
)
BIAS = (
    "op (InnerProduct): with weights as second bottom the bias is the third; "
    "state bias_term: false where there is none"
)


@pytest.mark.parametrize(
    ("shapes", "fields", "message"),
    [
        ([(4, 5)], "num_output: 3 normalize: true transpose: true", MIXED),
        ([(4, 5), (3, 5)], "bias_term: false transpose: true", MIXED),
        ([(4, 5), (3, 5)], "num_output: 3", BIAS),
        ([(4, 5), (3, 5), (3,)], "bias_term: false", BIAS),
        (
            [(4, 5), (3, 4)],
            "bias_term: false",
            "op (InnerProduct): weights [3, 4] must have one row per output, of 5 values",
        ),
        (
            [(4, 5), (3, 5), (2,)],
            "",
            "op (InnerProduct): bias [2] must have one value for each of 3 outputs",
        ),
    ],
    ids=["normalize_transpose", "given_transpose", "no_third", "third", "weights", "bias"],
)
def test_refused_of_the_forks_fields(shapes, fields, message) -> None:
    with pytest.raises(LayerError, match=re.escape(message)):
        build("InnerProduct", shapes, f"inner_product_param {{ {fields} }}")
