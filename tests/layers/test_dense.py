"""InnerProduct and Embed against slow formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import assert_all_uses, build, draw, gradients, run

from ilgnet_repro.errors import LayerError
from ilgnet_repro.export.source_writer import build_source

FILLERS = 'weight_filler { type: "gaussian" std: 1 } bias_filler { type: "gaussian" std: 1 }'


@settings(max_examples=60, deadline=None)
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
