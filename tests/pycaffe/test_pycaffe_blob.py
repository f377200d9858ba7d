"""`caffe.Blob`: shapes, memory that keeps its place, lifetimes, and no copies that Caffe does not make."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ilgnet_repro.pycaffe as caffe
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.pycaffe.blob import Blob, BlobVec

TEXT = """
name: "small"
input: "x" input_shape { dim: 2 dim: 3 dim: 7 dim: 5 }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "flat" type: "Flatten" bottom: "pool" top: "flat" }
layer { name: "a" type: "InnerProduct" bottom: "flat" top: "a" param { name: "w" } inner_product_param {
  num_output: 6 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "b" type: "InnerProduct" bottom: "flat" top: "b" param { name: "w" } inner_product_param {
  num_output: 6 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "a" bottom: "b" top: "loss" }
"""


@pytest.fixture
def net(tmp_path: Path) -> caffe.Net:
    return make(tmp_path)


def make(tmp_path: Path) -> caffe.Net:
    (tmp_path / "net.prototxt").write_text(TEXT)
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TRAIN)
    net.blobs["x"].data[...] = np.random.default_rng(1).normal(size=(2, 3, 7, 5))
    return net


# ------------------------------------------------------------------ shapes

SHAPES = {
    # shape: num, channels, height, width, count
    "none": ((), (1, 1, 1, 1, 1)),
    "one": ((7,), (7, 1, 1, 1, 7)),
    "two": ((7, 5), (7, 5, 1, 1, 35)),
    "four": ((7, 5, 3, 2), (7, 5, 3, 2, 210)),
    "empty": ((0, 5), (0, 5, 1, 1, 0)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    shape, expected = SHAPES[name]
    blob = Blob()
    blob.reshape(*shape)
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == expected
    assert blob.shape == blob.data.shape == blob.diff.shape == shape
    assert blob.data.dtype == blob.diff.dtype == np.float32
    assert not blob.data.any()


WRONG = {
    "a list": (([2, 3],), "blob.reshape([2, 3],): give integers, as blob.reshape(1, 3, 227, 227)"),
    "a fraction": ((2.5,), "blob.reshape(2.5,): give integers"),
    "negative": ((2, -1), "blob.reshape(2, -1): a length is negative; give 0 or more"),
    "too large": (
        (2**16, 2**15),
        "blob.reshape(65536, 32768): 2,147,483,648 values, more than Caffe's limit of 2,147,483,647",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_shapes_that_no_blob_has(name: str) -> None:
    shape, message = WRONG[name]
    blob = Blob((4, 2))
    with pytest.raises(TypeError, match=re.escape(message)) as caught:
        blob.reshape(*shape)
    assert isinstance(caught.value, IlgnetError)
    assert blob.shape == (4, 2)


def test_five_axes_have_no_legacy_names() -> None:
    with pytest.raises(
        IlgnetError,
        match=re.escape("a blob of 5 axes has no num, channels, height and width; use blob.shape"),
    ):
        Blob((1, 2, 3, 4, 5)).num  # noqa: B018


def test_a_smaller_shape_keeps_the_memory_and_a_larger_one_takes_more() -> None:
    blob = Blob((2, 3))
    blob.data[...] = np.arange(6).reshape(2, 3)
    before = blob.data
    blob.reshape(4)
    np.testing.assert_array_equal(blob.data, [0, 1, 2, 3])
    assert np.shares_memory(blob.data, before)
    blob.reshape(3, 2)
    np.testing.assert_array_equal(blob.data, np.arange(6).reshape(3, 2))
    blob.reshape(3, 3)
    assert not np.shares_memory(blob.data, before)
    assert blob.data.shape == (3, 3)


def test_data_cannot_be_replaced_by_another_array() -> None:
    blob = Blob((2, 3))
    with pytest.raises(AttributeError):
        blob.data = np.zeros((2, 3))


def test_a_vector_of_blobs_grows() -> None:
    blobs = BlobVec()
    blobs.add_blob(2, 3)
    blobs.add_blob()
    assert [blob.shape for blob in blobs] == [(2, 3), ()]


# ------------------------------------------------------------------ memory


def test_a_view_shows_every_pass_and_is_read_by_the_next(net: caffe.Net) -> None:
    views = {name: blob.data for name, blob in net.blobs.items()}
    for scale in (1, -2):
        views["x"][...] = scale
        net.forward()
        for name, view in views.items():
            assert np.shares_memory(view, net.blobs[name].data)
            np.testing.assert_array_equal(view, net.blobs[name].data)
    views["conv"][0, 0] = 1000
    net.forward(start="pool")
    assert views["pool"].max() == views["flat"].max() == 1000


def test_views_of_views_keep_the_memory_too(net: caffe.Net) -> None:
    part = net.blobs["pool"].data[1, 2:, :1].T
    net.blobs["x"].data[...] = 3
    net.forward()
    np.testing.assert_array_equal(part, net.blobs["pool"].data[1, 2:, :1].T)
    assert np.shares_memory(part, net.blobs["pool"].data)


def test_without_a_view_results_are_taken_over_as_they_are(net: caffe.Net) -> None:
    """No operation of a pass is a copy: they are those of the CaffeNet, in its order."""
    ours, theirs = _Operations(), _Operations()
    with ours:
        net._forward(0, len(net.layers) - 1)
    x = torch.from_numpy(net.blobs["x"].data)
    with theirs:
        net.caffe_net.run({"x": x})
    loss = {"sum", "mul", "_local_scalar_dense"}  # each adds up its losses in its own way
    assert [name for name in ours.names if name not in loss] == [
        name for name in theirs.names if name not in loss
    ]
    assert not {"clone", "copy_", "zeros", "empty", "contiguous"}.intersection(ours.names)


class _Operations(TorchDispatchMode):
    """Notes the operations that make new memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_weights_are_the_nets_own_memory_not_copies(net: caffe.Net, tmp_path: Path) -> None:
    weight = net.caffe_net.layer("conv").weight
    assert net.params["conv"][0].data.ctypes.data == weight.data_ptr()
    net.save(str(tmp_path / "net.caffemodel"))
    with _Operations() as seen:
        other = caffe.Net(
            str(tmp_path / "net.prototxt"), caffe.TEST, weights=str(tmp_path / "net.caffemodel")
        )
    assert not {"clone", "copy_"}.intersection(seen.names)  # mapped from the file
    np.testing.assert_array_equal(other.params["conv"][0].data, net.params["conv"][0].data)
    other.params["conv"][0].data[...] = 0  # which is never written
    again = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST, weights=str(tmp_path / "net.caffemodel"))
    assert again.params["conv"][0].data.any()


def test_what_caffe_shares_is_one_memory(net: caffe.Net) -> None:
    net.forward()
    data = {name: blob.data for name, blob in net.blobs.items()}
    assert np.shares_memory(data["pool"], data["flat"])
    assert np.shares_memory(data["flat"], data["flat_flat_0_split_1"])
    assert not np.shares_memory(data["conv"], data["pool"])
    a, b = net.params["a"][0], net.params["b"][0]
    assert np.shares_memory(a.data, b.data)
    assert np.shares_memory(a.diff, b.diff)
    a.data[...] = 5
    assert (b.data == 5).all()


def test_the_gradient_of_a_shared_parameter_is_the_sum(net: caffe.Net) -> None:
    net.forward()
    net.blobs["a"].diff[...] = 1
    net.backward(start="a", end="a")
    one = net.params["a"][0].diff.copy()
    net.blobs["b"].diff[...] = 10
    net.backward(start="b", end="b")
    np.testing.assert_allclose(net.params["a"][0].diff, 11 * one, rtol=1e-5)
    net.blobs["flat_flat_0_split_0"].diff[...] = 1
    net.blobs["flat_flat_0_split_1"].diff[...] = 4
    net.backward(start="flat_flat_0_split", end="flat")
    np.testing.assert_array_equal(net.blobs["pool"].diff, 5)


def test_an_in_place_layer_changes_every_blob_of_the_memory(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(
        'force_backward: true input: "x" input_shape { dim: 2 dim: 3 dim: 2 }\n'
        'layer { name: "p" type: "Power" bottom: "x" top: "p" power_param { scale: 2 } }\n'
        'layer { name: "r" type: "Reshape" bottom: "p" top: "r" reshape_param { shape { dim: 2 dim: 6 } } }\n'
        'layer { name: "relu" type: "ReLU" bottom: "r" top: "r" }\n'
    )
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 3, 2)
    net.forward(x=x)
    np.testing.assert_array_equal(net.blobs["p"].data, np.maximum(2 * x, 0))
    net.blobs["r"].diff[...] = 3
    net.backward()
    np.testing.assert_array_equal(net.blobs["x"].diff, np.where(x > 0, 6, 0))


@pytest.mark.parametrize("layer", ["BatchNorm", "Scale", "TanH", "ReLU", "PReLU", "Power"])
def test_gradients_of_a_layer_in_place_do_not_depend_on_views(layer: str, tmp_path: Path) -> None:
    """What the backward pass reads is kept where the layer overwrites it."""
    (tmp_path / "net.prototxt").write_text(
        'force_backward: true input: "x" input_shape { dim: 3 dim: 2 dim: 4 }\n'
        'layer { name: "p" type: "Power" bottom: "x" top: "p" power_param { scale: 2 } }\n'
        f'layer {{ name: "op" type: "{layer}" bottom: "p" top: "p" power_param {{ power: 2 shift: 5 }} }}\n'
    )
    x, dy = np.random.default_rng(2).normal(size=(2, 3, 2, 4)).astype(np.float32)
    found = []
    for hold in (False, True):
        net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TRAIN)
        for blobs in net.params.values():
            for blob in blobs:
                blob.data[...] = 0.75
        held = [blob.data for blob in net.blobs.values()] if hold else []
        net.forward(x=x)
        net.blobs["p"].diff[...] = dy
        net.backward()
        found.append(
            [
                net.blobs["x"].diff.copy(),
                *(blob.diff.copy() for blobs in net.params.values() for blob in blobs),
            ]
        )
        del held
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[0][0].any()


# ------------------------------------------------------------------ lifetimes


def test_blobs_and_their_arrays_outlive_the_net(tmp_path: Path) -> None:
    net = make(tmp_path)
    net.forward()
    net.backward()
    blobs, params = list(net.blobs.values()), [blob for blobs in net.params.values() for blob in blobs]
    arrays = [blob.data for blob in blobs]
    copies = [array.copy() for array in arrays]
    died = weakref.ref(net)
    del net
    gc.collect()
    assert died() is None
    assert all(blob.data.shape == blob.diff.shape for blob in (*blobs, *params))
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_memory_is_given_back(net: caffe.Net) -> None:
    """The values of the pass before are not kept."""
    net.forward()
    old = weakref.ref(net.blobs["pool"].tensor())
    net.forward()
    gc.collect()
    assert old() is None
