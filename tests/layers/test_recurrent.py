"""RNN and LSTM against loops over single steps and streams; the recorded cases hold their gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from one_layer import assert_all_uses, build, draw, layer_text, run, run_onnx, run_source

from ilgnet_repro.audit import STATE_NOTE, audit
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.engines.fast import fast as fast_net
from ilgnet_repro.errors import GraphError, LayerError
from ilgnet_repro.export.convert import convert
from ilgnet_repro.layers.recurrent import LSTM, RNN
from ilgnet_repro.runtime.load import load, load_net
from ilgnet_repro.train.nets import check_splitting

STEPS, STREAMS, OUTPUTS = 5, 3, 4
FILLERS = 'weight_filler { type: "gaussian" std: 0.4 } bias_filler { type: "gaussian" std: 0.2 }'


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def slow(net, x, cont, static=None, states=()):
    """One stream and one step at a time, in double precision: outputs, then the last states."""
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
def test_any_number_of_steps_and_streams(type_):
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


PARAMS = f"recurrent_param {{ num_output: {OUTPUTS} {FILLERS} }}"


def recurrent_net(type_, streams=STREAMS, phase="TEST", **options):
    text = layer_text(type_, [(2, streams, 6), (2, streams)], PARAMS)
    return load_net(parse_net(text), phase=phase, seed=3, **options)


def feed(net, x, cont):
    """One pass, outside inference mode and with gradients."""
    return net({"in0": torch.from_numpy(x), "in1": torch.from_numpy(cont)})["top0"]


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("type_", ["RNN", "LSTM"])
def test_loaded_with_carry_state(type_, phase):
    """Caffe's way: three passes of 2 steps equal one of 6, with any sequence marks; each has its own graph."""
    net = recurrent_net(type_, phase=phase, carry_state=True)
    assert net.carries_state and [layer.node.name for layer in net.stateful_layers] == ["op"]
    x, cont = draw(1, 6, STREAMS, 6), marks(2, 6)
    cont[2], cont[4, 1] = 1, 0  # the first step of a later pass: used in one stream, forgotten in another
    (whole,) = slow(net, x, cont)
    for start in (0, 2, 4):
        top = feed(net, x[start : start + 2], cont[start : start + 2])
        np.testing.assert_allclose(top.detach(), whole[start : start + 2], rtol=1e-4, atol=1e-5)
        top.sum().backward()  # would fail if the state still held the graph of the pass before
    net.reset_state()
    np.testing.assert_allclose(feed(net, x[:2], cont[:2]).detach(), whole[:2], rtol=1e-4, atol=1e-5)
    assert not any("last" in name for name in net.state_dict())


@pytest.mark.parametrize("type_", ["RNN", "LSTM"])
def test_state_for_other_numbers_of_streams(type_):
    """Caffe's memory: fewer streams read the first of the state, more than ever before start from zeros."""
    net = recurrent_net(type_, carry_state=True)
    x, cont = draw(1, 8, 5, 6), np.ones((8, 5), np.float32)

    def check(steps, streams, wanted):
        found = feed(net, x[steps : steps + 2, :streams], cont[:2, :streams]).detach()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

    (whole,) = slow(net, x[:, :STREAMS], cont[:, :STREAMS])
    check(0, STREAMS, whole[:2])
    check(2, 2, whole[2:4, :2])
    # Streams 0 and 1 have seen steps 0 to 3; stream 2's state is that of the first pass.
    (third,) = slow(net, x[[0, 1, 4, 5], 2:3], cont[:4, 2:3])
    check(4, STREAMS, np.concatenate([whole[4:6, :2], third[2:]], axis=1))
    (restarted,) = slow(net, x[6:], cont[6:])
    check(6, 5, restarted)


@pytest.mark.parametrize("type_", ["RNN", "LSTM"])
def test_the_state_belongs_to_the_net(type_):
    """A copy has its own state; training accepts a state from inference mode; half keeps the state."""
    net = recurrent_net(type_, carry_state=True)
    x, cont = draw(1, 4, STREAMS, 6), np.ones((4, STREAMS), np.float32)
    (whole,) = slow(net, x, cont)
    with torch.inference_mode():
        feed(net, x[:2], cont[:2])
    clone = copy.deepcopy(net)
    for one in (net, clone):
        top = feed(one, x[2:], cont[2:])
        np.testing.assert_allclose(top.detach(), whole[2:], rtol=1e-4, atol=1e-5)
        top.sum().backward()
    for buffer in net.bfloat16().layers.op.buffers():
        assert buffer.dtype == torch.bfloat16


def test_exposed_state_is_never_carried():
    params = f"recurrent_param {{ num_output: {OUTPUTS} expose_hidden: true {FILLERS} }}"
    shapes = [(2, STREAMS, 6), (2, STREAMS), (1, STREAMS, OUTPUTS)]
    net = load_net(parse_net(layer_text("RNN", shapes, params, tops=2)), seed=3, carry_state=True)
    assert not net.stateful_layers and not net.carries_state
    arrays = [draw(1, *shapes[0]), np.ones(shapes[1], np.float32), draw(2, *shapes[2])]
    expected = slow(net, arrays[0], arrays[1], states=arrays[2:])
    for _ in range(2):
        for found, wanted in zip(run(net, arrays), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_net_that_carries_its_state_has_no_fast_form():
    with pytest.raises(
        GraphError, match="was loaded with carry_state; a fast net starts each pass of RNN and LSTM"
    ):
        fast_net(recurrent_net("LSTM", carry_state=True))
    net = recurrent_net("LSTM")
    x, cont = draw(1, 2, STREAMS, 6), np.ones((2, STREAMS), np.float32)
    (expected,) = slow(net, x, cont)
    fast = fast_net(net)
    for _ in range(2):
        np.testing.assert_allclose(feed(fast, x, cont), expected, rtol=1e-4, atol=1e-5)


def test_audit_reports_that_the_state_is_carried():
    found = audit(parse_net(layer_text("LSTM", [(2, 3, 6), (2, 3)], PARAMS)))
    assert [row.note for row in found.layers if row.type == "LSTM"] == [STATE_NOTE]


def test_convert_reports_that_files_start_from_zeros(tmp_path):
    net = recurrent_net("LSTM")
    text = layer_text("LSTM", [(2, STREAMS, 6), (2, STREAMS)], PARAMS)
    (tmp_path / "x.prototxt").write_text(text)
    blobs = {name: [blob.detach().numpy() for blob in own] for name, own in net.params.items()}
    write_caffemodel(tmp_path / "x.caffemodel", parse_net(text), blobs)
    report = convert(tmp_path / "x.caffemodel")
    assert (
        "op (LSTM): Caffe carries its state from pass to pass; what is written starts each pass from zeros "
        "(a safetensors file can be loaded with carry_state=True)"
    ) in report.notes
    x, cont = draw(1, 4, STREAMS, 6), np.ones((4, STREAMS), np.float32)
    (whole,), (second,) = slow(net, x, cont), slow(net, x[2:], cont[2:])
    for carry_state, wanted in ((True, whole[2:]), (False, second)):
        loaded = load(tmp_path / "x.safetensors", carry_state=carry_state)
        feed(loaded, x[:2], cont[:2])
        np.testing.assert_allclose(feed(loaded, x[2:], cont[2:]).detach(), wanted, rtol=1e-4, atol=1e-5)


def test_batches_of_steps_are_not_split():
    net = recurrent_net("LSTM", phase="TRAIN")
    check_splitting(net, 1, 1)
    for processes, passes, what in ((2, 1, "2 processes"), (1, 3, "3 passes (accumulate)")):
        with pytest.raises(LayerError) as caught:
            check_splitting(net, processes, passes)
        assert str(caught.value) == (
            f"op (LSTM): carries its state from step to step and from pass to pass, so {what} cannot share its "
            "batches; use one"
        )


def test_multiply_adds_count_every_product_once():
    shapes = [(STEPS, STREAMS, 6), (STEPS, STREAMS), (STREAMS, 2)]
    net = build("LSTM", shapes, "recurrent_param { num_output: 4 }")
    assert net.layer("op").plan(*shapes).multiply_adds == STREAMS * (STEPS * (16 * 6 + 16 * 4) + 16 * 2)
    net = build("RNN", shapes[:2], "recurrent_param { num_output: 4 }")
    assert net.layer("op").plan(*shapes[:2]).multiply_adds == STREAMS * STEPS * (4 * 6 + 4 * 4 + 4 * 4)


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
