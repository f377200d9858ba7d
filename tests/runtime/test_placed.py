"""A net runs the modules in `net.layers`: replaced modules and parameters, and what is refused with them."""

from __future__ import annotations

import copy

import pytest
import torch
from small_nets import SHARED_TEXT, SMALL_TEXT
from torch import nn
from torch.nn.utils import parametrizations, prune

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.engines.fast import fast as fast_net
from ilgnet_repro.errors import IlgnetError


@pytest.fixture
def net():
    return ir.load_net(parse_net(SMALL_TEXT), seed=2)


@pytest.fixture
def data():
    return torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def head() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Linear(24, 11))


WAYS = {
    "setattr": lambda net, new: setattr(net.layers, "ip", new),
    "_modules": lambda net, new: net.layers._modules.__setitem__("ip", new),
    "set_submodule": lambda net, new: net.set_submodule("layers.ip", new),
    "add_module": lambda net, new: net.layers.add_module("ip", new),
}


def replace(way, net, new) -> None:
    if way == "add_module":  # which takes only a name that is free
        del net.layers.ip
    WAYS[way](net, new)


@pytest.mark.parametrize("way", WAYS)
def test_a_replacement_module_runs(way, net, data) -> None:
    new = head()
    before = net(data=data, blobs=["pool"])["pool"]
    replace(way, net, new)
    for run in (net, copy.deepcopy(net)):
        found = run(data=data, blobs=["pool", "ip", "prob"])
        torch.testing.assert_close(found["pool"], before)
        torch.testing.assert_close(found["ip"], new(before))
        torch.testing.assert_close(found["prob"], new(before).softmax(1))
    assert [tuple(blob.shape) for blob in net.params["ip"]] == [(11, 24), (11,)]
    assert net.layer("ip").module is new
    net(data=data)["prob"][:, 0].sum().backward()
    assert new[1].weight.grad is not None


def test_identity_passes_the_bottom_on(net, data) -> None:
    raw = ir.load_net(parse_net(SMALL_TEXT), seed=2)(data=data, blobs=["conv@conv"])["conv@conv"]
    net.layers.relu = nn.Identity()
    torch.testing.assert_close(net(data=data, blobs=["conv"])["conv"], raw)


def test_a_module_at_an_input_transforms_the_input(net, data) -> None:
    wanted = net(data=data / 255)["prob"]
    net.layers.data = nn.Module()
    net.layers.data.forward = lambda x: x / 255
    torch.testing.assert_close(net(data=data)["prob"], wanted)


def test_a_module_may_accept_another_size(net) -> None:
    net.layers.pool = nn.AdaptiveAvgPool2d((3, 2))
    assert net(data=torch.zeros(1, 3, 30, 20))["prob"].shape == (1, 5)


def test_a_replacement_loss_is_counted(data) -> None:
    text = SMALL_TEXT.replace(
        '"Softmax" bottom: "ip" top: "prob"', '"EuclideanLoss" bottom: "ip" bottom: "ip" top: "loss"'
    )
    made = ir.load_net(parse_net(text), seed=2)
    made.layers.prob = nn.L1Loss()
    made.layers.prob.forward = lambda a, b: (a - 2 * b).abs().mean()
    wanted = made(data=data, blobs=["ip"])["ip"].abs().mean()
    torch.testing.assert_close(made.loss(data=data), wanted)


def test_parametrized_and_pruned_blobs_are_used(net, data) -> None:
    before = net(data=data)["prob"]
    parametrizations.weight_norm(net.layers.ip, "weight")
    torch.testing.assert_close(net(data=data)["prob"], before)
    assert tuple(net.params["ip"][0].shape) == (5, 24)
    with torch.no_grad():
        net.layers.ip.parametrizations.weight.original0.mul_(2)
    found = net(data=data, blobs=["pool", "ip"])
    torch.testing.assert_close(found["ip"], nn.functional.linear(found["pool"].flatten(1), *net.params["ip"]))
    torch.testing.assert_close(fast_net(net)(data=data)["prob"], net(data=data)["prob"])
    prune.l1_unstructured(net.layers.conv, "weight", 0.5)
    assert (net.layers.conv.weight == 0).sum() == 4 * 27 // 2
    torch.testing.assert_close(fast_net(net)(data=data)["prob"], net(data=data)["prob"])


def test_a_new_parameter_is_used(net, data) -> None:
    pool = net(data=data, blobs=["pool"])["pool"].flatten(1)
    net.layers.ip.weight = nn.Parameter(torch.full((5, 24), 0.5))
    torch.testing.assert_close(
        net(data=data, blobs=["ip"])["ip"][:, 0], pool.sum(1) / 2, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(fast_net(net)(data=data)["prob"], net(data=data)["prob"])
    net.layers.ip.weight = nn.Parameter(torch.ones(3, 24))
    net.layers.ip.bias = None
    assert net(data=data)["prob"].shape == (2, 3)


def test_a_parameter_in_place_of_a_shared_one_is_kept() -> None:
    text = SHARED_TEXT.replace(
        'top: "b" param { name: "w" }', 'top: "b" param { name: "w" share_mode: PERMISSIVE }'
    )
    made = ir.load_net(parse_net(text.replace("num_output: 3 bias_term: false } }\n", "num_output: 1 bias_term: false } }\n")
                                .replace("dim: 2 dim: 3", "dim: 2 dim: 1")), seed=1)  # fmt: skip
    made.layers.b.weight = nn.Parameter(torch.full((1, 3), 2.0))
    found = made(torch.ones(2, 1), blobs=["a", "b"])
    torch.testing.assert_close(found["b"], 2 * found["a"].sum(1, keepdim=True))


X = torch.zeros(2, 3, 9, 7)
TWO_TOPS = nn.Module()
TWO_TOPS.forward = lambda x: (x, x)
NO_TENSOR = nn.Module()
NO_TENSOR.forward = lambda x: {"x": x}
REFUSED = {
    "gone": (
        lambda net: delattr(net.layers, "relu"),
        "relu (ReLU): is missing from the net's layers; to pass its bottom on, assign torch.nn.Identity() to layers.relu",
    ),
    "None": (
        lambda net: setattr(net.layers, "relu", None),
        "relu (ReLU): is missing from the net's layers; to pass its bottom on, assign torch.nn.Identity() to layers.relu",
    ),
    "one more": (
        lambda net: setattr(net.layers, "fc9", nn.Linear(5, 2)),
        "net 'small': layers.fc9 belongs to no layer of the net and would not run; assign it to the name of a layer",
    ),
    "a parameter that is not read": (
        lambda net: setattr(net.layers.relu, "slope2", nn.Parameter(torch.ones(1))),
        "relu (ReLU): does not read a parameter 'slope2'; its blobs are none",
    ),
    "two values for a top": (
        lambda net: setattr(net.layers, "relu", TWO_TOPS),
        "relu (ReLU): Module returns 2 values for 1 tops; return one per top",
    ),
    "no tensor": (
        lambda net: setattr(net.layers, "relu", NO_TENSOR),
        "relu (ReLU): Module returns a dict; a layer returns a tensor or a tuple of tensors",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_run_is_refused_by_name(net, change, message) -> None:
    change(net)
    with pytest.raises(IlgnetError) as caught:
        net(data=X)
    assert str(caught.value) == message


CHANGES = {
    "a module": (
        lambda net: setattr(net.layers, "ip", nn.Identity()),
        "ip (InnerProduct): is now a Identity",
    ),
    "a blob of another shape": (
        lambda net: setattr(net.layers.ip, "weight", nn.Parameter(torch.ones(3, 24))),
        "ip (InnerProduct): weight is 3x24 now, not 5x24",
    ),
    "no bias": (lambda net: setattr(net.layers.ip, "bias", None), "ip (InnerProduct): bias is None now"),
}
USES = {
    "planned; run it to see its blobs": lambda net: net.blob_shapes(),
    "made fast": fast_net,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_functions_that_read_the_text_refuse_by_name(net, change, message, use) -> None:
    change(net)
    with pytest.raises(IlgnetError) as caught:
        USES[use](net)
    assert str(caught.value) == f"{message}, so the net cannot be {use}"
