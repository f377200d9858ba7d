"""`caffe.Net`: how it is made, its names, passes from layer to layer, weights, and what it refuses."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ilgnet_repro.pycaffe as caffe
from ilgnet_repro.errors import IlgnetError

TEXT = """
name: "small"
force_backward: true
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 3 dim: 2 dim: 5 dim: 4 } shape { dim: 3 } data_filler { type: "uniform" min: -1 max: 1 }
  data_filler { type: "constant" value: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.5 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "score" inner_product_param {
  num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }
layer { name: "best" type: "ArgMax" bottom: "score" top: "best" include { phase: TEST } }
"""

STAGED = """
name: "staged"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "train" type: "AbsVal" bottom: "x" top: "train" include { phase: TRAIN } }
layer { name: "test" type: "AbsVal" bottom: "x" top: "test" include { phase: TEST } }
layer { name: "high" type: "AbsVal" bottom: "x" top: "high" include { min_level: 2 } }
layer { name: "low" type: "AbsVal" bottom: "x" top: "low" include { max_level: 0 } }
layer { name: "a" type: "AbsVal" bottom: "x" top: "a" include { stage: "A" } }
layer { name: "ab" type: "AbsVal" bottom: "x" top: "ab" include { stage: "A" stage: "B" } }
layer { name: "not_b" type: "AbsVal" bottom: "x" top: "not_b" include { not_stage: "B" } }
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "small.prototxt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def net(file: str) -> caffe.Net:
    return caffe.Net(file, caffe.TRAIN)


def test_names_and_numbers(net: caffe.Net) -> None:
    assert net._layer_names == ["data", "conv", "relu", "ip", "loss"]
    assert list(net.blobs) == net._blob_names == ["data", "label", "conv", "score", "loss"]
    assert (net.inputs, net.outputs, net._inputs, net._outputs) == ([], ["loss"], [], [4])
    assert list(net.params) == ["conv", "ip"]
    assert [[blob.shape for blob in blobs] for blobs in net.params.values()] == [
        [(4, 2, 3, 3), (4,)], [(6, 24), (6,)],
    ]  # fmt: skip
    assert net.top_names == OrderedDict(
        data=["data", "label"], conv=["conv"], relu=["conv"], ip=["score"], loss=["loss"]
    )
    assert net.bottom_names == OrderedDict(
        data=[], conv=["data"], relu=["conv"], ip=["conv"], loss=["score", "label"]
    )
    assert [net._top_ids(index) for index in range(5)] == [[0, 1], [2], [2], [3], [4]]
    assert [net._bottom_ids(index) for index in range(5)] == [[], [0], [2], [2], [3, 1]]
    assert [layer.type for layer in net.layers] == [
        "DummyData", "Convolution", "ReLU", "InnerProduct", "SoftmaxWithLoss",
    ]  # fmt: skip
    assert list(net.layer_dict) == net._layer_names
    assert net.layer_dict["ip"] is net.layers[3]
    assert net.layers[3].blobs is net.params["ip"]
    assert not net.layers[2].blobs
    assert net._blob_loss_weights == [0, 0, 0, 0, 1]
    assert net.blob_loss_weights == OrderedDict(data=0, label=0, conv=0, score=0, loss=1)


def test_splits_are_layers_and_blobs_as_in_caffe(file: str) -> None:
    net = caffe.Net(file, caffe.TEST)
    assert net._layer_names == ["data", "conv", "relu", "ip", "score_ip_0_split", "loss", "best"]
    assert list(net.blobs)[3:6] == ["score", "score_ip_0_split_0", "score_ip_0_split_1"]
    assert net.bottom_names["best"] == ["score_ip_0_split_1"]
    net.forward()
    np.testing.assert_array_equal(net.blobs["score_ip_0_split_1"].data, net.blobs["score"].data)
    assert np.shares_memory(net.blobs["score_ip_0_split_1"].data, net.blobs["score"].data)
    assert net.outputs == ["best", "loss"]


# The forms of a call: arguments, and the weights that the net has then.
FORMS: dict[str, Callable[[str, str], caffe.Net]] = {
    "by position": lambda file, weights: caffe.Net(file, caffe.TRAIN, 0, None, weights),
    "by name": lambda file, weights: caffe.Net(file, caffe.TRAIN, weights=weights),
    "all by name": lambda file, weights: caffe.Net(
        file, phase=caffe.TRAIN, weights=weights, level=0, stages=["A"]
    ),
    "a path": lambda file, weights: caffe.Net(Path(file), caffe.TRAIN, weights=Path(weights)),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_call(form: str, net: caffe.Net, file: str, tmp_path: Path) -> None:
    net.save(tmp_path / "weights")  # the name needs no ending
    check_equal_weights(FORMS[form](file, str(tmp_path / "weights")), net)


def test_the_old_form_warns(net: caffe.Net, file: str, tmp_path: Path) -> None:
    net.save(str(tmp_path / "weights"))
    with pytest.warns(DeprecationWarning, match=re.escape("write Net(file, phase, weights=weights)")):
        other = caffe.Net(file, str(tmp_path / "weights"), caffe.TRAIN)
    check_equal_weights(other, net)


def check_equal_weights(net: caffe.Net, other: caffe.Net) -> None:
    for name, blobs in net.params.items():
        for blob, wanted in zip(blobs, other.params[name], strict=True):
            np.testing.assert_array_equal(blob.data, wanted.data)


STATES = {
    "TRAIN": ((caffe.TRAIN,), {}, ["train", "low", "not_b"]),
    "TEST": ((caffe.TEST,), {}, ["test", "low", "not_b"]),
    "level": ((caffe.TEST,), {"level": 2}, ["test", "high", "not_b"]),
    "level by position": ((caffe.TEST, 1), {}, ["test", "not_b"]),
    "a stage": ((caffe.TEST,), {"stages": ["A"]}, ["test", "low", "a", "not_b"]),
    "two stages": ((caffe.TRAIN,), {"stages": ["B", "A"]}, ["train", "low", "a", "ab"]),
    "all by position": ((caffe.TRAIN, 2, ["B"]), {}, ["train", "high"]),
}


@pytest.mark.parametrize("name", STATES)
def test_phase_level_and_stages_choose_the_layers(name: str, tmp_path: Path) -> None:
    given, options, expected = STATES[name]
    (tmp_path / "staged.prototxt").write_text(STAGED)
    net = caffe.Net(str(tmp_path / "staged.prototxt"), *given, **options)
    assert [blob for blob in net.blobs if not blob.startswith("x")] == expected
    assert (net.inputs, net.outputs) == (["x"], sorted(expected))


# ------------------------------------------------------------------ passes


def test_forward_computes_from_the_blobs_and_returns_views_of_the_outputs(net: caffe.Net) -> None:
    found = net.forward()
    assert list(found) == ["loss"]
    assert np.shares_memory(found["loss"], net.blobs["loss"].data)
    score, label = net.blobs["score"].data.astype(np.float64), net.blobs["label"].data.astype(int)
    assert list(label) == [2, 2, 2]
    expected = np.mean(np.log(np.exp(score).sum(1)) - score[range(3), label])
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)


def test_values_that_a_script_writes_stay_in_the_next_passes(net: caffe.Net) -> None:
    net.blobs["label"].data[...] = [0, 5, 3]
    before = net.forward()["loss"].copy()
    assert list(net.blobs["label"].data) == [0, 5, 3]
    net.params["ip"][1].data[:] = [9, 0, 0, 0, 0, 0]
    assert net.forward()["loss"] > before + 1


def test_start_and_end(net: caffe.Net) -> None:
    conv = np.random.default_rng(1).normal(size=(3, 4, 3, 2)).astype(np.float32)
    net.blobs["conv"].data[...] = conv
    found = net.forward(start="ip", end="ip")
    weight, bias = (blob.data for blob in net.params["ip"])
    assert list(found) == ["score"]
    np.testing.assert_allclose(found["score"], conv.reshape(3, 24) @ weight.T + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(net.blobs["conv"].data, conv)
    assert list(net.forward(end="relu")) == ["conv"]
    assert (net.blobs["conv"].data >= 0).all()
    assert list(net.forward(blobs=["score", "loss"])) == ["loss", "score"]


def test_backward_from_a_gradient_that_the_script_gives(net: caffe.Net) -> None:
    """Before any forward pass too: a layer's gradient is computed from the blobs as they are."""
    diff = np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32)
    net.blobs["score"].diff[...] = diff
    net.blobs["conv"].data[...] = 1
    found = net.backward(start="ip", end="ip")
    assert list(found) == ["conv"]
    np.testing.assert_allclose(
        found["conv"].reshape(3, 24), diff @ net.params["ip"][0].data, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(net.params["ip"][0].diff, diff.T @ np.ones((3, 24)), rtol=1e-4, atol=1e-5)
    assert not net.params["conv"][0].diff.any()


def test_gradients_agree_with_differences(net: caffe.Net) -> None:
    net.forward()
    net.blobs["loss"].diff[...] = 3  # instead of the loss's weight, 1
    net.backward()
    gradient = net.blobs["score"].diff[1, 4]
    losses = []
    for change in (-0.05, 0.1):
        net.blobs["score"].data[1, 4] += change
        losses.append(float(net.forward(start="loss")["loss"]))
    np.testing.assert_allclose(gradient, 3 * (losses[1] - losses[0]) / 0.1, rtol=2e-3)


def test_gradients_of_parameters_add_up_until_they_are_cleared(net: caffe.Net) -> None:
    diff = net.params["conv"][0].diff
    net.forward()
    net.backward()
    once = diff.copy()
    net.backward()
    assert once.any()
    np.testing.assert_allclose(diff, 2 * once, rtol=1e-5)
    net.clear_param_diffs()
    assert not diff.any()
    assert np.shares_memory(diff, net.params["conv"][0].diff)


def test_without_a_loss_nothing_goes_back(tmp_path: Path) -> None:
    """As in Caffe: a deploy net without `force_backward` has no backward pass, whatever gradient its output holds."""
    text = "\n".join(line for line in TEXT.splitlines() if '"loss"' not in line and '"best"' not in line)
    for force in (True, False):
        path = tmp_path / f"{force}.prototxt"
        path.write_text(text if force else text.replace("force_backward: true", ""))
        net = caffe.Net(str(path), caffe.TEST)
        net.forward()
        net.blobs["score"].diff[...] = 1
        net.backward()
        assert bool(net.params["ip"][0].diff.any()) is force
        assert bool(net.blobs["data"].diff.any()) is force


FROZEN = {
    # param rows of conv: whether its gradient, and that of the data, are computed
    "learned": ("", True, False),
    "lr_mult 0": ("param { lr_mult: 0 } param { lr_mult: 0 }", False, False),
    "lr_mult 0, forced": ("param { lr_mult: 0 } param { lr_mult: 0 }", True, True),
}


@pytest.mark.parametrize("name", FROZEN)
def test_gradients_go_where_caffe_sends_them(name: str, tmp_path: Path) -> None:
    rows, has_gradient, is_forced = FROZEN[name]
    text = TEXT.replace('name: "conv"', f'name: "conv" {rows}')
    path = tmp_path / "net.prototxt"
    path.write_text(text if is_forced else text.replace("force_backward: true", ""))
    net = caffe.Net(str(path), caffe.TRAIN)
    net.forward()
    net.backward()
    assert net.params["ip"][0].diff.any()
    assert bool(net.params["conv"][0].diff.any()) is has_gradient
    assert bool(net.blobs["data"].diff.any()) is is_forced


def test_callbacks_get_the_layers_numbers(net: caffe.Net) -> None:
    calls: list[tuple[str, int]] = []
    net.before_forward(lambda layer: calls.append(("before", layer)))
    net.after_forward(lambda layer: calls.append(("after", layer)))
    net.before_backward(lambda layer: calls.append(("down", layer)))
    net.after_backward(lambda layer: calls.append(("done", layer)))
    net.forward(start="ip")
    net.backward(start="relu", end="conv")
    assert calls == [
        ("before", 3), ("after", 3), ("before", 4), ("after", 4), ("down", 2), ("done", 2), ("down", 1), ("done", 1),
    ]  # fmt: skip


# ------------------------------------------------------------------ inputs and batches

DEPLOY = """
force_backward: true
input: "x" input_shape { dim: 4 dim: 3 }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param {
  num_output: 2 weight_filler { type: "gaussian" std: 1 } } }
layer { name: "tanh" type: "TanH" bottom: "ip" top: "y" }
"""


@pytest.fixture
def deploy(tmp_path: Path) -> caffe.Net:
    (tmp_path / "deploy.prototxt").write_text(DEPLOY)
    caffe.set_random_seed(2)
    return caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST)


def test_inputs_and_gradients_by_name(deploy: caffe.Net) -> None:
    x, dy = np.random.default_rng(3).normal(size=(2, 4, 3))
    y = deploy.forward(x=x)["y"]
    np.testing.assert_allclose(y, np.tanh(x @ deploy.params["ip"][0].data.T), rtol=1e-5)
    dx = deploy.backward(y=dy[:, :2], diffs=["ip"])
    assert list(dx) == ["x", "ip"]
    np.testing.assert_allclose(dx["ip"], dy[:, :2] * (1 - y**2), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dx["x"], dx["ip"] @ deploy.params["ip"][0].data, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 4, 11])
def test_all_rows_in_batches_without_the_padding(rows: int, deploy: caffe.Net) -> None:
    x, dy = np.random.default_rng(4).normal(size=(2, rows, 3))
    weight = deploy.params["ip"][0].data
    expected = np.tanh(x @ weight.T)
    found = deploy.forward_all(blobs=["ip"], x=x)
    assert list(found) == ["y", "ip"]
    np.testing.assert_allclose(found["y"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["ip"], x @ weight.T, rtol=1e-4, atol=1e-6)
    outs, diffs = deploy.forward_backward_all(x=x, y=dy[:, :2])
    np.testing.assert_allclose(outs["y"], expected, rtol=1e-4)
    np.testing.assert_allclose(diffs["x"], (dy[:, :2] * (1 - expected**2)) @ weight, rtol=1e-4, atol=1e-5)


def test_reshape(deploy: caffe.Net) -> None:
    deploy.blobs["x"].reshape(7, 3)
    assert deploy.blobs["y"].shape == (4, 2)
    deploy.reshape()
    assert deploy.blobs["y"].shape == (7, 2)
    deploy.blobs["x"].reshape(2, 3)
    deploy.blobs["x"].data[...] = 1
    assert deploy.forward()["y"].shape == (2, 2)  # a pass gives the shapes too


MEMORY = """
layer { name: "in" type: "MemoryData" top: "x" top: "t" memory_data_param { batch_size: 2 channels: 3 height: 1 width: 4 } }
layer { name: "abs" type: "AbsVal" bottom: "x" top: "y" }
"""


@pytest.fixture
def memory(tmp_path: Path) -> caffe.Net:
    (tmp_path / "memory.prototxt").write_text(MEMORY)
    return caffe.Net(str(tmp_path / "memory.prototxt"), caffe.TEST)


def test_input_arrays_are_read_in_order_and_wrap(memory: caffe.Net) -> None:
    data = np.arange(-24, 24, dtype=np.float32).reshape(4, 3, 1, 4)
    memory.set_input_arrays(data, np.arange(4, dtype=np.float32))
    for rows in ([0, 1], [2, 3], [0, 1]):
        found = memory.forward()
        np.testing.assert_array_equal(found["y"], abs(data[rows]))
        np.testing.assert_array_equal(found["t"].ravel(), rows)
    data[...] = 5  # they are used as they are
    np.testing.assert_array_equal(memory.forward()["y"], 5)


# ------------------------------------------------------------------ weights


def test_save_and_load(net: caffe.Net, file: str, tmp_path: Path) -> None:
    net.save(str(tmp_path / "net.caffemodel"))
    net.save_hdf5(str(tmp_path / "net.h5"))
    views = [blob.data for blob in net.params["ip"]]
    expected = [view.copy() for view in views]
    for load, name in ((net.copy_from, "net.caffemodel"), (net.load_hdf5, "net.h5")):
        for view in views:
            view[...] = -1
        load(str(tmp_path / name))
        for view, wanted in zip(views, expected, strict=True):
            np.testing.assert_array_equal(view, wanted)
    check_equal_weights(caffe.Net(file, caffe.TEST, weights=str(tmp_path / "net.h5")), net)


def test_layers_that_only_one_side_has_are_logged(net: caffe.Net, tmp_path: Path, capsys) -> None:
    net.save(str(tmp_path / "net.caffemodel"))
    other = tmp_path / "other.prototxt"
    other.write_text(TEXT.replace('name: "ip"', 'name: "ip2"'))
    found = caffe.Net(str(other), caffe.TRAIN)
    before = found.params["ip2"][0].data.copy()
    capsys.readouterr()
    found.copy_from(str(tmp_path / "net.caffemodel"))
    lines = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "Ignoring source layer ip",
        f"ip2: not in {tmp_path / 'net.caffemodel'}; it keeps its values",
    ]
    np.testing.assert_array_equal(found.params["conv"][0].data, net.params["conv"][0].data)
    np.testing.assert_array_equal(found.params["ip2"][0].data, before)


def test_share_with(net: caffe.Net, file: str) -> None:
    other = caffe.Net(file, caffe.TEST)
    other.share_with(net)
    assert all(
        np.shares_memory(mine.data, own.data) and not np.shares_memory(mine.diff, own.diff)
        for name, blobs in other.params.items()
        for mine, own in zip(blobs, net.params[name], strict=True)
    )
    net.params["ip"][0].data[...] = 0
    net.params["ip"][1].data[...] = 7
    other.forward()
    np.testing.assert_array_equal(other.blobs["score"].data, 7)


# ------------------------------------------------------------------ refused

REFUSED: dict[str, tuple[Callable[[caffe.Net, str], object], type[Exception], str]] = {
    "no such net": (
        lambda net, file: caffe.Net("gone", caffe.TEST), RuntimeError, "Could not open file gone; check the path",
    ),
    "no such weights": (
        lambda net, file: caffe.Net(file, caffe.TEST, weights="gone"), RuntimeError, "Could not open file gone;",
    ),
    "no phase": (lambda net, file: caffe.Net(file), TypeError, "give Net(file, phase, level=0, stages=[...], weights=file)"),
    "no such phase": (lambda net, file: caffe.Net(file, 7), TypeError, "give Net(file, phase"),
    "a phase by name": (lambda net, file: caffe.Net(file, phase="TEST"), TypeError, "give Net(file, phase"),
    "one stage as a word": (lambda net, file: caffe.Net(file, 0, stages="A"), TypeError, "give Net(file, phase"),
    "an unknown option": (lambda net, file: caffe.Net(file, 0, stage="A"), TypeError, "give Net(file, phase"),
    "the phase twice": (lambda net, file: caffe.Net(file, 0, phase=1), TypeError, "give Net(file, phase"),
    "no such layer": (
        lambda net, file: net.forward(start="convv"), ValueError,
        "'convv' is not a layer of net 'small' (did you mean conv?); see net._layer_names",
    ),
    "no such layer to go back to": (lambda net, file: net.backward(end="z"), ValueError, "'z' is not a layer"),
    "no such blob": (
        lambda net, file: net.forward(blobs=["scores"]), KeyError,
        "'scores' is not a blob of net 'small' (did you mean score?); see net.blobs",
    ),
    "a blob that is not in a list": (
        lambda net, file: net.forward(blobs="score"), TypeError, "blobs='score': give a list of names, as ['score']",
    ),
    "a diff that is not in a list": (
        lambda net, file: net.forward_backward_all(diffs="score"), TypeError, "diffs='score': give a list of names",
    ),
    "input arrays that are none": (
        lambda net, file: net.set_input_arrays([1], [2]), TypeError,
        "set_input_arrays: give two arrays of NumPy, data and labels",
    ),
    "no such diff": (lambda net, file: net.backward(diffs=["q"]), KeyError, "'q' is not a blob of net 'small'"),
    "an input that is none": (
        lambda net, file: net.forward(data=np.zeros((3, 2, 5, 4))), IlgnetError,
        "Input blob arguments do not match net inputs: given data; give none",
    ),
    "a gradient that is none": (
        lambda net, file: net.backward(score=np.zeros((3, 6))), IlgnetError,
        "Top diff blob arguments do not match net outputs: given score; give loss",
    ),
    "input arrays": (
        lambda net, file: net.set_input_arrays(np.zeros((1, 1, 1, 1)), np.zeros(1)), RuntimeError,
        "set_input_arrays may only be called if the first layer is a MemoryDataLayer",
    ),
    "weights of another shape": (
        lambda net, file: net.share_with(caffe.Net(wider(file), caffe.TRAIN)), IlgnetError,
        "layer ip: its blobs have other shapes in the two nets; share nets of the same layers",
    ),
    "a size that the weights do not fit": (
        lambda net, file: (net.blobs["conv"].reshape(3, 4, 9, 9), net.layers[3].reshape([], [])), IlgnetError,
        "ip (InnerProduct): weight would be [6, 324] for bottoms of this size, but is [6, 24]",
    ),
    "a pass of such a size": (
        lambda net, file: (net.blobs["conv"].reshape(3, 4, 9, 9), net.forward(start="ip")), IlgnetError,
        "ip (InnerProduct): cannot compute its tops",
    ),
}  # fmt: skip


def wider(file: str) -> str:
    path = Path(file).with_name("wider.prototxt")
    path.write_text(TEXT.replace("num_output: 6", "num_output: 7"))
    return str(path)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_pycaffe_refuses_it(name: str, net: caffe.Net, file: str) -> None:
    call, kind, message = REFUSED[name]
    with pytest.raises(kind, match=re.escape(message)) as caught:
        call(net, file)
    assert isinstance(caught.value, IlgnetError)
    assert str(caught.value).startswith(message)


ROWS, TARGETS = np.zeros((4, 3, 1, 4), np.float32), np.zeros(4, np.float32)
WRONG_ARRAYS = {
    "rows": (
        ROWS[:3],
        TARGETS[:3],
        "first dimensions of input arrays must be a multiple of batch size: 3 rows, batch",
    ),
    "no rows": (
        ROWS[:0],
        TARGETS[:0],
        "first dimensions of input arrays must be a multiple of batch size: 0 rows",
    ),
    "labels": (ROWS, TARGETS[:2], "data and labels must have the same first dimension"),
    "axes": (ROWS[0], TARGETS, "data array must be 4-d"),
    "type": (ROWS.astype(np.float64), TARGETS, "data array must be float32"),
    "order": (np.asfortranarray(ROWS), TARGETS, "data array must be C contiguous"),
    "channels": (ROWS[:, :2].copy(), TARGETS, "data array has wrong number of channels: 2, not 3"),
    "height": (np.zeros((4, 3, 2, 4), np.float32), TARGETS, "data array has wrong height: 2, not 1"),
    "width": (np.zeros((4, 3, 1, 5), np.float32), TARGETS, "data array has wrong width: 5, not 4"),
    "labels of an image": (ROWS, ROWS, "labels array has wrong number of channels: 3, not 1"),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_input_arrays_that_do_not_fit(name: str, memory: caffe.Net) -> None:
    data, labels, message = WRONG_ARRAYS[name]
    with pytest.raises(RuntimeError, match=re.escape(message)):
        memory.set_input_arrays(data, labels)


def test_a_memory_layer_without_data_says_what_to_call(memory: caffe.Net) -> None:
    message = "in (MemoryData): has no data; give them by net.set_input_arrays(data, labels)"
    with pytest.raises(IlgnetError, match=re.escape(message)):
        memory.forward()


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), ()], ids=["rows", "columns", "a number"])
def test_inputs_that_do_not_fit(shape: tuple[int, ...], deploy: caffe.Net) -> None:
    with pytest.raises(IlgnetError, match=r"is not batch sized|does not fit the blob"):
        deploy.forward(x=np.zeros(shape))


def test_a_layer_that_would_write_a_file_says_so(tmp_path: Path, capsys) -> None:
    (tmp_path / "net.prototxt").write_text(
        'input: "x" input_shape { dim: 2 dim: 3 } input: "t" input_shape { dim: 2 }\n'
        'layer { name: "out" type: "HDF5Output" bottom: "x" bottom: "t" hdf5_output_param { file_name: "o.h5" } }\n'
    )
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    assert capsys.readouterr().err.endswith(
        "] out (HDF5Output): writes no file here; read its blobs from net.blobs\n"
    )
    assert net.forward() == {}


def test_a_blob_read_before_it_is_overwritten_is_refused_as_in_caffe(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(
        'input: "x" input_shape { dim: 2 dim: 3 }\n'
        'layer { name: "ip" type: "Power" bottom: "x" top: "y" }\n'
        'layer { name: "before" type: "AbsVal" bottom: "y" top: "z" }\n'
        'layer { name: "relu" type: "ReLU" bottom: "y" top: "y" }\n'
    )
    with pytest.raises(
        IlgnetError, match=re.escape("relu (ReLU): top 'y' is written in place, but another layer reads")
    ):
        caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
