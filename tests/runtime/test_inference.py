"""A pass without gradients on the CPU: channels-last inside, contiguous outside, and the numbers of any other pass."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from golden_cases import FORK_NAMES, NAMES, read_case, tolerance
from torch import Tensor

from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.layers.activation import ReLU
from ilgnet_repro.layers.conv import Convolution
from ilgnet_repro.layers.pool import Pooling
from ilgnet_repro.layers.support.base import ANY_LAYOUT, CHANNELS_LAST, CONTIGUOUS, Shape
from ilgnet_repro.runtime import inference
from ilgnet_repro.runtime.net import CaffeNet

# conv1 takes 2.9 million multiply-adds: too many for the matrix product that small ones are computed by.
TEXT = """
name: "wide"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 37 dim: 41 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 72
    kernel_size: 3 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.1 } } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "bn1" }
layer { name: "scale1" type: "Scale" bottom: "bn1" top: "scale1" scale_param { bias_term: true
    filler { type: "uniform" min: 0.5 max: 2 } bias_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "relu1" type: "ReLU" bottom: "scale1" top: "scale1" }
layer { name: "norm1" type: "LRN" bottom: "scale1" top: "norm1" lrn_param { local_size: 5 alpha: 0.3 } }
layer { name: "pool1" type: "Pooling" bottom: "norm1" top: "pool1" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "left" type: "Convolution" bottom: "pool1" top: "left" convolution_param { num_output: 5
    kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "left_relu" type: "ReLU" bottom: "left" top: "left" }
layer { name: "flat" type: "Flatten" bottom: "left" top: "flat" }
layer { name: "right" type: "Convolution" bottom: "pool1" top: "right" convolution_param { num_output: 7
    kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "view" type: "Flatten" bottom: "right" top: "view" }
layer { name: "right_relu" type: "ReLU" bottom: "right" top: "positive" }
layer { name: "join" type: "Concat" bottom: "left" bottom: "positive" top: "join" }
layer { name: "sum" type: "Eltwise" bottom: "positive" bottom: "right" top: "sum" }
layer { name: "sum_relu" type: "ReLU" bottom: "sum" top: "sum" }
layer { name: "mean" type: "Pooling" bottom: "join" top: "mean" pooling_param { pool: AVE global_pooling: true } }
layer { name: "slice" type: "Slice" bottom: "join" top: "first" top: "rest" slice_param { slice_point: 4 } }
layer { name: "fc" type: "InnerProduct" bottom: "join" top: "fc" inner_product_param { num_output: 6
    weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


def make(text: str = TEXT) -> CaffeNet:
    net = CaffeNet(build_graph(parse_net(text)), seed=3)
    with torch.no_grad():
        if "bn1" in net.params:
            mean, variance, factor = net.params["bn1"]
            mean.copy_(torch.linspace(-0.5, 0.7, len(mean)))
            variance.copy_(torch.linspace(0.3, 1.9, len(variance)))
            factor.fill_(2)
    return net


@pytest.fixture(scope="module")
def net() -> CaffeNet:
    return make()


def image(rows: int = 2) -> Tensor:
    values = np.random.default_rng(4).standard_normal((rows, 3, 37, 41), np.float32)
    return torch.from_numpy(values)


ALL = tuple(dict.fromkeys(make().graph.names.values()))


def without_gradients(net: CaffeNet, x: Tensor, blobs: tuple[str, ...] | None = None) -> dict[str, Tensor]:
    with torch.no_grad():
        return net(x, blobs=blobs)


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, value in found.items():
        expected = wanted[name].detach().numpy()
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_every_blob_is_that_of_a_pass_with_gradients(net: CaffeNet, rows: int) -> None:
    wanted = net(image(rows), blobs=ALL)
    for blobs in (ALL, net.outputs, ("conv1",), ("scale1@scale1", "scale1"), ("view", "sum")):
        found = without_gradients(net, image(rows), blobs)
        assert_close(found, wanted)
        assert all(value.is_contiguous() for value in found.values())
        assert all(value.numpy().flags.c_contiguous for value in found.values())


def calls_of(net: CaffeNet) -> dict[str, inference.Call]:
    found = net._schedule(net.outputs, False).inference
    assert found is not None
    return {call.step.node.name: call for call in found.calls}


def test_layers_are_merged(net: CaffeNet) -> None:
    """A convolution, BatchNorm, Scale and ReLU are one call; of the ReLUs those that may overwrite are merged."""
    calls = calls_of(net)
    assert not calls.keys() & {"bn1", "scale1", "relu1", "left_relu", "sum_relu"}
    assert [layer.node.name for layer in calls["conv1"].affine] == ["bn1", "scale1"]
    assert calls["conv1"].is_rectified
    assert calls["left"].is_rectified
    assert calls["sum"].is_rectified
    assert not calls["right"].is_rectified  # a Flatten views what it computes
    assert "right_relu" in calls


def test_convolutions_are_given_channels_last_blobs(net: CaffeNet, monkeypatch) -> None:
    seen: list[Tensor] = []
    convolve = torch.conv2d
    monkeypatch.setattr(torch, "conv2d", lambda x, *rest: (seen.append(x), convolve(x, *rest))[1])
    without_gradients(copy.deepcopy(net), image())
    assert [tuple(x.shape) for x in seen] == [(2, 3, 37, 41)]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_what_layers_decide_is_kept_for_each_size(net: CaffeNet, monkeypatch) -> None:
    """Each size is decided once, the oldest of many is forgotten, and a copy decides for itself."""
    monkeypatch.setattr(inference, "MOST_SIZES", 2)
    asked: list[Shape] = []
    decide = Convolution.for_inference
    monkeypatch.setattr(
        Convolution,
        "for_inference",
        lambda layer, *bottoms: (asked.extend(bottoms), decide(layer, *bottoms))[1],
    )
    other = copy.deepcopy(net)
    for rows in (1, 2, 1, 2, 5, 2, 1):
        without_gradients(other, image(rows))
    assert [shape[0] for shape in asked if shape[1:] == (3, 37, 41)] == [1, 2, 5, 1]
    del asked[:]
    without_gradients(copy.deepcopy(other), image(1))
    assert len(asked) == 3


def test_the_same_bits_in_every_pass_and_for_every_order_of_the_input(net: CaffeNet) -> None:
    x = image()
    before = x.clone()
    first = without_gradients(net, x)
    assert torch.equal(x, before)
    for other in (x, x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT):
        found = without_gradients(net, other)
        assert all(torch.equal(found[name], first[name]) for name in net.outputs)


def test_no_input_is_overwritten() -> None:
    net = make(TEXT + 'layer { name: "relu0" type: "ReLU" bottom: "data" top: "positive0" }')
    x = image()
    found = without_gradients(net, x, ("data", "positive0", "prob"))
    assert torch.equal(x, image())
    assert torch.equal(found["data"], image())
    assert torch.equal(found["positive0"], image().relu())


def test_copies_and_pickles_run_alike(net: CaffeNet) -> None:
    wanted = without_gradients(net, image())
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301 (made here)
        found = without_gradients(other, image())
        assert all(torch.equal(found[name], wanted[name]) for name in net.outputs)
        assert all(call.step.layer is None or call.step.layer in list(other.layers.children())
                   for call in calls_of(other).values())  # fmt: skip


def test_new_weights_count_at_once(net: CaffeNet) -> None:
    other = copy.deepcopy(net)
    before = without_gradients(other, image())["sum"]
    for name in ("conv1", "scale1", "right"):
        other.params[name][0].data.numpy()[...] *= 2  # an array of the memory, as pycaffe gives it
    found = without_gradients(other, image(), ALL)
    assert not torch.allclose(found["sum"], before)
    assert_close(found, other(image(), blobs=ALL))


def test_training_uses_the_statistics_of_the_batch(net: CaffeNet) -> None:
    both = []
    for gradients in (False, True):
        other = copy.deepcopy(net).train()
        with torch.set_grad_enabled(gradients):
            both.append((other(image(), blobs=ALL), other.params["bn1"][0].detach()))
    assert_close(both[0][0], both[1][0])
    assert not torch.allclose(both[0][0]["scale1"], without_gradients(net, image(), ("scale1",))["scale1"])
    torch.testing.assert_close(both[0][1], both[1][1])


def test_hooks_and_replaced_layers_are_given_contiguous_blobs(net: CaffeNet) -> None:
    other, seen = copy.deepcopy(net), []
    other.layers.pool1.register_forward_hook(lambda layer, bottoms, tops: seen.extend((*bottoms, *tops)))
    assert_close(without_gradients(other, image()), without_gradients(net, image()))
    replaced = copy.deepcopy(net)
    replaced.layers.norm1 = torch.nn.Identity()
    replaced.layers.norm1.register_forward_hook(lambda layer, bottoms, top: seen.append(top))
    without_gradients(replaced, image())
    patched = copy.deepcopy(net)
    patched.layers.relu1.forward = lambda x: (seen.append(x) or 0 * x,)
    assert not without_gradients(patched, image(), ("scale1",))["scale1"].any()
    assert len(seen) == 4
    assert all(value.is_contiguous() for value in seen)


OTHERS = {
    "a loss": TEXT + 'layer { name: "loss" type: "EuclideanLoss" bottom: "fc" bottom: "prob" top: "loss" }',
    "DummyData": TEXT + 'layer { name: "more" type: "DummyData" top: "more" dummy_data_param { shape { dim: 2 dim: 6 } } }'
    'layer { name: "add" type: "Eltwise" bottom: "fc" bottom: "more" top: "add" }',
}  # fmt: skip


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_losses_and_fed_tops_run_layer_by_layer(text: str) -> None:
    net = make(text)
    done = net.run({"data": image()}, net.outputs)
    assert net._schedule(net.outputs, True).inference is None
    with torch.no_grad():
        assert_close(net.run({"data": image()}, net.outputs).blobs, done.blobs)


def test_small_convolutions_have_the_numbers_of_a_pass_with_gradients() -> None:
    net = make(TEXT.replace("num_output: 72", "num_output: 7"))
    assert_close(without_gradients(net, image(), ALL), net(image(), blobs=ALL))


def test_other_types_and_gradients_run_layer_by_layer(net: CaffeNet, monkeypatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a pass of channels-last blobs")

    monkeypatch.setattr(inference.Inference, "__call__", refuse)
    net(image())
    with pytest.raises(AssertionError, match="a pass of channels-last blobs"):
        without_gradients(net, image())
    without_gradients(copy.deepcopy(net).double(), image())


HALVED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 12 dim: 14 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
"""


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sides", [(12, 14), (12, 15), (11, 14), (5, 7), (2, 2)], ids=str)
def test_maxima_of_two_by_two(sides: tuple[int, int], order: torch.memory_format) -> None:
    """As Caffe: a window that is cut off by the edge counts, NaN and infinite values do not."""
    x = np.random.default_rng(6).standard_normal((2, 3, *sides), np.float32)
    x[0, 0, 0, 0], x[0, 1, :2, :2], x[1, 2, -1, -1] = np.nan, -np.inf, np.nan
    height, width = -(-sides[0] // 2), -(-sides[1] // 2)
    padded = np.full((2, 3, 2 * height, 2 * width), -np.inf, np.float32)
    padded[:, :, : sides[0], : sides[1]] = np.where(np.isnan(x), -np.inf, x)
    lowest = np.float32(np.finfo(np.float32).min)
    expected = np.maximum(padded.reshape(2, 3, height, 2, width, 2).max((3, 5)), lowest)
    given = torch.from_numpy(x).contiguous(memory_format=order)
    found = without_gradients(make(HALVED), given)["pool"]
    np.testing.assert_array_equal(found.numpy(), expected)


DENSE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 20 dim: 17 dim: 23 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 150 %s
    weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -1 max: 1 } } }
"""


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("stated", ["", "bias_term: false", "transpose: true"])
def test_large_dense_layers(rows: int, stated: str) -> None:
    """1.2 million weights, which oneDNN multiplies from three rows on."""
    net = make(DENSE % stated)
    weight, *bias = (blob.detach().numpy().astype(np.float64) for blob in net.params["fc"])
    x = np.random.default_rng(rows).standard_normal((rows, 20, 17, 23), np.float32)
    expected = x.reshape(rows, -1) @ (weight if "transpose" in stated else weight.T) + sum(bias)
    found = without_gradients(net, torch.from_numpy(x))["fc"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


VARYING = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 3 dim: 4 dim: 9 dim: 11 } } }
layer { name: "keep" type: "Input" top: "keep" input_param { shape { dim: 3 } } }
layer { name: "kept" type: "Filter" bottom: "data" bottom: "keep" top: "kept" }
layer { name: "conv" type: "Convolution" bottom: "kept" top: "conv" convolution_param { num_output: 5 kernel_size: 3
    weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
"""


def test_layers_after_shapes_that_depend_on_values_decide_in_each_pass() -> None:
    net = make(VARYING)
    calls = calls_of(net)
    assert {name: call.varies for name, call in calls.items() if call.bottoms} == {
        "kept": False,
        "conv": True,
    }
    x = torch.from_numpy(np.random.default_rng(8).standard_normal((3, 4, 9, 11), np.float32))
    for keep in ([1.0, 0, 1], [0.0, 0, 1], [1.0, 1, 1]):
        given = {"data": x, "keep": torch.tensor(keep)}
        with torch.no_grad():
            found = net(given)
        assert len(found["conv"]) == sum(keep)
        assert_close(found, net(given))


def test_an_error_names_its_layer(net: CaffeNet) -> None:
    other = copy.deepcopy(net)
    other.layers.left.weight = torch.nn.Parameter(torch.ones(5, 3, 1, 1))
    for _ in range(2):
        with pytest.raises(LayerError, match=r"^left \(Convolution\): cannot compute its tops"):
            without_gradients(other, image())


def test_layers_with_a_forward_of_their_own_get_contiguous_blobs_and_keep_float32() -> None:
    class Mine(ReLU):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x.view(-1).view(x.shape),)

    class Convolved(Convolution):
        def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
            return super().forward(*bottoms)

    node = {node.name: node for node in make().graph}
    assert (ReLU.layout, Mine.layout) == (ANY_LAYOUT, CONTIGUOUS)
    assert (ReLU.no_float16, Mine.no_float16) == ("", "neither products nor maxima")
    assert Convolution(node["conv1"], (4,)).layout == CHANNELS_LAST
    assert Convolved(node["conv1"], (4,)).layout == CONTIGUOUS
    assert Pooling(node["pool1"], (4,)).layout == CHANNELS_LAST


def other_order(value: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(value)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def test_recorded_nets_in_channels_last(tmp_path) -> None:
    """Caffe's numbers, for every sixth recorded net that has a layer for another order than Caffe's."""
    types: dict[str, int] = {}
    for name in (*NAMES, *FORK_NAMES)[::6]:
        case = read_case(name)
        if not any(value.ndim == 4 for value in case.inputs.values()):
            continue
        net = case.net(tmp_path)
        layers = [layer for _, layer in net.steps(net.outputs)]
        if all(layer.layout == CONTIGUOUS for layer in layers):
            continue
        if net._schedule(net.outputs, False).inference is None:
            continue
        inputs = {name: other_order(value) for name, value in case.inputs.items()}
        with torch.no_grad():
            found = net(inputs)
        for blob, expected in case.outputs.items():
            np.testing.assert_allclose(
                found[blob].numpy(), expected, **tolerance(name), err_msg=f"{name}: {blob}"
            )
        for layer in layers:
            types[layer.node.type] = types.get(layer.node.type, 0) + (layer.layout != CONTIGUOUS)
    assert sum(types.values()) > 20
    with_layout = {name for name, count in types.items() if count}
    assert with_layout >= {"Convolution", "Pooling", "Eltwise"}
