"""RNN and LSTM against loops over single steps and streams; the recorded cases hold their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from one_layer import assert_all_uses, build, draw, run, run_onnx, run_source

from ilgnet_repro.errors import LayerError
from ilgnet_repro.layers.recurrent import LSTM, RNN

STEPS, STREAMS, OUTPUTS = 5, 3, 4
FILLERS = 'weight_filler { type: "gaussian" std: 0.4 } bias_filler { type: "gaussian" std: 0.2 }'


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def slow(net, x, cont, static=None, states=()):
    """Each stream by itself, each step by itself, in double precision: outputs, then the last states."""
    type_ = net.graph.node("op").type
    blobs = [blob.detach().numpy().astype(np.float64) for blob in net.params["op"]]
    outputs = np.zeros((len(x), x.shape[1], OUTPUTS))
    last = np.zeros((2, 1, x.shape[1], OUTPUTS))
    for stream in range(x.shape[1]):
        own = iter(blobs)
        weight, bias = next(own), next(own)
        fixed = bias if static is None else bias + next(own) @ static[stream].ravel()
        recurrent = next(own)
        h, c = ([state[0, stream] for state in states] + [np.zeros(OUTPUTS)] * 2)[:2]
        projection = list(own)
        for step in range(len(x)):
            total = weight @ x[step, stream].ravel() + fixed + recurrent @ (h * cont[step, stream])
            if type_ == "RNN":
                h = np.tanh(total)
                outputs[step, stream] = np.tanh(projection[0] @ h + projection[1])
            else:
                i, f, o, g = total.reshape(4, OUTPUTS)
                c = cont[step, stream] * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = outputs[step, stream] = sigmoid(o) * np.tanh(c)
        last[0, 0, stream], last[1, 0, stream] = h, c
    return [value.astype(np.float32) for value in (outputs, *last[: len(states)])]


def marks(seed: int, steps: int = STEPS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (steps, STREAMS)).astype(np.float32)


@pytest.mark.parametrize("exposed", [False, True], ids=["hidden", "exposed"])
@pytest.mark.parametrize("static", [False, True], ids=["moving", "static"])
@pytest.mark.parametrize("values", [(6,), (2, 7)], ids=["flat", "map"])
@pytest.mark.parametrize("type_", ["RNN", "LSTM"])
def test_steps(type_, values, static, exposed):
    states = (1 if type_ == "RNN" else 2) if exposed else 0
    arrays = [draw(1, STEPS, STREAMS, *values), marks(2)]
    arrays += [draw(3, STREAMS, 2, 5)] if static else []
    given = [draw(4 + index, 1, STREAMS, OUTPUTS) for index in range(states)]
    arrays += given
    params = f"recurrent_param {{ num_output: {OUTPUTS} expose_hidden: {str(exposed).lower()} {FILLERS} }}"
    net = build(type_, [array.shape for array in arrays], params, tops=1 + states)
    expected = slow(net, arrays[0], arrays[1], arrays[2] if static else None, given)
    assert_all_uses(net, arrays, expected)


@pytest.mark.parametrize("type_", ["RNN", "LSTM"])
def test_number_of_steps_and_streams_is_free(type_):
    net = build(
        type_, [(STEPS, STREAMS, 6), (STEPS, STREAMS)], f"recurrent_param {{ num_output: 4 {FILLERS} }}"
    )
    arrays = [draw(1, 8, STREAMS, 6), marks(2, 8)]
    (expected,) = slow(net, *arrays)
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, arrays)[0], expected, rtol=1e-4, atol=1e-5, err_msg=use.__name__)


@pytest.mark.parametrize("type_", ["RNN", "LSTM"])
def test_state_is_carried_on_request_only(type_):
    params = f"recurrent_param {{ num_output: {OUTPUTS} {FILLERS} }}"
    net = build(type_, [(2, STREAMS, 6), (2, STREAMS)], params)
    x, cont = draw(1, 6, STREAMS, 6), np.ones((6, STREAMS), np.float32)
    (whole,) = slow(net, x, cont)
    (first,) = slow(net, x[:2], cont[:2])
    chunks = [(x[start : start + 2], cont[:2]) for start in (0, 2, 4)]

    np.testing.assert_allclose(run(net, chunks[0])[0], first, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(net, chunks[0])[0], first, rtol=1e-4, atol=1e-5)
    layer = net.layer("op")
    assert isinstance(layer, RNN | LSTM)
    layer.carry_state = True
    parts = np.concatenate([run(net, chunk)[0] for chunk in chunks])
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    layer.reset_state()
    np.testing.assert_allclose(run(net, chunks[0])[0], first, rtol=1e-4, atol=1e-5)


def test_multiply_adds_count_every_product_once():
    shapes = [(STEPS, STREAMS, 6), (STEPS, STREAMS), (STREAMS, 2)]
    net = build("LSTM", shapes, "recurrent_param { num_output: 4 }")
    tops = [net.shapes["top0"]]
    assert net.layer("op").multiply_adds(shapes, tops) == STREAMS * (STEPS * (16 * 6 + 16 * 4) + 16 * 2)
    net = build("RNN", shapes[:2], "recurrent_param { num_output: 4 }")
    assert net.layer("op").multiply_adds(shapes[:2], tops) == STREAMS * STEPS * (4 * 6 + 4 * 4 + 4 * 4)


def test_exports():
    net = build("LSTM", [(2, 3, 6), (2, 3)], f"recurrent_param {{ num_output: 4 {FILLERS} }}")
    layer = net.layer("op")
    given = (torch.from_numpy(draw(1, 2, 3, 6)), torch.from_numpy(marks(2, 2)))
    assert torch.allclose(torch.export.export(layer, given).module()(*given)[0], layer(*given)[0])


SIZED = "recurrent_param { num_output: 4 }"
REFUSED = {
    "no num_output": ([(5, 3, 6), (5, 3)], "", "op (LSTM): num_output is 0 or absent"),
    "marks": ([(5, 3, 6), (3, 5)], SIZED, "marks [3, 5] must be time × stream of the values [5, 3, 6]"),
    "no values": ([(5, 3), (5, 3)], SIZED, "values [5, 3] need at least the axes time, stream and value"),
    "static": (
        [(5, 3, 6), (5, 3), (4, 2)],
        SIZED,
        "static input [4, 2] must hold values for each of 3",
    ),
    "bottoms": ([(5, 3, 6), (5, 3), (3, 2), (3, 2)], SIZED, "has 4 bottoms and 1 tops; it takes 2 bottoms"),
    "tops": (
        [(5, 3, 6), (5, 3), (1, 3, 4), (1, 3, 4)],
        "recurrent_param { num_output: 4 expose_hidden: true }",
        "has 4 bottoms and 1 tops; it takes 4 bottoms (one more with a static input) and 3 tops",
    ),
}


@pytest.mark.parametrize(("shapes", "params", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(shapes, params, message):
    with pytest.raises(LayerError) as raised:
        build("LSTM", shapes, params)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_state_of_another_size_is_refused():
    with pytest.raises(LayerError, match=r"state \[1, 2, 4\] must be \[1, 3, 4\]"):
        build(
            "RNN", [(5, 3, 6), (5, 3), (1, 2, 4)], "recurrent_param { num_output: 4 expose_hidden: true }", 2
        )
