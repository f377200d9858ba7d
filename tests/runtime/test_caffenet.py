"""CaffeNet as a module: blobs by name, other sizes, dtypes, state_dict, torch.compile and torch.export."""

import numpy as np
import pytest
import torch

from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.runtime.net import CaffeNet

TEXT = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } } }
layer { name: "conv.1" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.1 } } }
layer { name: "type" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "norm" type: "LRN" bottom: "pool" top: "norm" }
layer { name: "gap" type: "Pooling" bottom: "norm" top: "gap" pooling_param { pool: AVE global_pooling: true } }
layer { name: "ip" type: "InnerProduct" bottom: "gap" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "gaussian" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


@pytest.fixture
def net() -> CaffeNet:
    return CaffeNet(build_graph(parse_net(TEXT)), seed=11)


@pytest.fixture
def data() -> torch.Tensor:
    return torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(2))


def test_names_and_shapes(net) -> None:
    assert (net.inputs, net.outputs) == (("data",), ("prob",))
    assert list(net.params) == ["conv.1", "ip"]
    assert [tuple(blob.shape) for blob in net.params["conv.1"]] == [(4, 3, 3, 3), (4,)]
    assert net.blob_shapes(data=(5, 3, 12, 10))["pool"] == (5, 4, 6, 5)


def test_a_blob_has_the_value_of_the_last_in_place_layer(net, data) -> None:
    blobs = net(data=data, blobs=["conv", "conv@conv.1", "prob"])
    assert list(blobs) == ["conv", "conv@conv.1", "prob"]
    assert blobs["conv@conv.1"].min() < 0
    torch.testing.assert_close(blobs["conv"], blobs["conv@conv.1"].clamp(min=0))
    torch.testing.assert_close(blobs["prob"], net({"data": data})["prob"])


def test_an_input_is_a_blob_too(net, data) -> None:
    assert net(data=data, blobs=["data"])["data"] is data


def test_another_batch_and_size(net) -> None:
    data = torch.randn(5, 3, 12, 10)
    whole = net(data=data)["prob"]
    assert whole.shape == (5, 5)
    torch.testing.assert_close(net(data=data[3:4])["prob"], whole[3:4])


def test_arrays_are_taken_as_inputs(net, data) -> None:
    torch.testing.assert_close(net(data=data.numpy().astype(np.float64))["prob"], net(data=data)["prob"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 3e-2)], ids=str)
def test_other_precisions(net, data, dtype, tolerance) -> None:
    expected = net(data=data)["prob"]
    found = net.to(dtype)(data=data)["prob"]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def test_indices_stay_exact_in_bfloat16() -> None:
    text = """
    layer { name: "row" type: "Input" top: "row" input_param { shape { dim: 3 } } }
    layer { name: "embed" type: "Embed" bottom: "row" top: "out"
      embed_param { num_output: 2 input_dim: 600 weight_filler { type: "uniform" } bias_term: false } }"""
    net = CaffeNet(build_graph(parse_net(text)), seed=1).bfloat16()
    rows = [257, 258, 599]
    expected = net.params["embed"][0][rows]
    assert torch.equal(net(row=torch.tensor(rows, dtype=torch.float32))["out"], expected)


def test_state_dict_round_trip(net, data) -> None:
    other = CaffeNet(build_graph(parse_net(TEXT)), seed=12)
    assert not torch.allclose(other(data=data)["prob"], net(data=data)["prob"])
    state = net.state_dict()
    assert list(state) == [
        "layers.conv_1.weight", "layers.conv_1.bias", "layers.ip.weight", "layers.ip.bias"
    ]  # fmt: skip
    other.load_state_dict(state)
    torch.testing.assert_close(other(data=data)["prob"], net(data=data)["prob"], rtol=0, atol=0)


def test_the_same_seed_gives_the_same_values() -> None:
    first, second = (CaffeNet(build_graph(parse_net(TEXT)), seed=4) for _ in range(2))
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)


def test_export_with_a_dynamic_batch(net, data) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = ({"data": {0: batch}},)
    program = torch.export.export(net, ({"data": data},), dynamic_shapes=shapes)
    other = torch.randn(7, 3, 9, 7)
    torch.testing.assert_close(program.module()({"data": other})["prob"], net(data=other)["prob"])


def test_compile(net, data) -> None:
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(data=data)["prob"], net(data=data)["prob"])


def test_propagate_down_stops_the_gradient() -> None:
    text = TEXT.replace(
        'name: "ip" type: "InnerProduct" ', 'name: "ip" type: "InnerProduct" propagate_down: false '
    )
    net = CaffeNet(build_graph(parse_net(text)), seed=1)
    net(data=torch.randn(2, 3, 9, 7))["prob"][:, 0].sum().backward()
    assert net.params["ip"][0].grad is not None
    assert net.params["conv.1"][0].grad is None


REFUSED = [
    ("input missing", lambda net: net(), "input 'data' is missing; the net takes 'data'"),
    (
        "no such blob", lambda net: net(data=torch.zeros(1, 3, 9, 7), blobs=["conv2"]),
        "blob 'conv2' is not in net 'small' (did you mean conv?); "
        "it has 'data', 'conv@conv.1', 'conv', 'pool', 'norm', 'gap', 'ip', 'prob'",
    ),
    ("no such input", lambda net: net.blob_shapes(image=(1, 3, 9, 7)),
     "'image' is not an input of net 'small'; it has 'data'"),
    ("no loss", lambda net: net.loss(data=torch.zeros(1, 3, 9, 7)), "net 'small' has no loss layer in phase TEST"),
    ("no such layer", lambda net: net.layer("fc"), "layer 'fc' is not in net 'small'; "
     "it has 'data', 'conv.1', 'type', 'pool', 'norm', 'gap', 'ip', 'prob'"),
]  # fmt: skip


@pytest.mark.parametrize(("use", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(net, use, message) -> None:
    with pytest.raises(IlgnetError) as caught:
        use(net)
    assert str(caught.value) == message


def test_a_size_that_does_not_fit_the_weights_is_refused_by_layer() -> None:
    text = TEXT.replace("global_pooling: true", "kernel_size: 2")
    net = CaffeNet(build_graph(parse_net(text)), seed=1)
    with pytest.raises(IlgnetError) as caught:
        net(data=torch.zeros(1, 3, 30, 20))
    assert str(caught.value) == (
        "ip (InnerProduct): weight would be 5x504 for inputs of this size (data 1x3x30x20), but is 5x48; "
        "give the size the net was made for (data 2x3x9x7)"
    )
