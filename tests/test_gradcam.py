"""`grad_cam` and `branch_shares`: nets whose gradients are known, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_nets import SMALL_TEXT, net_of

from ilgnet_repro import gradcam
from ilgnet_repro.about import About
from ilgnet_repro.errors import GraphError
from ilgnet_repro.gradcam import branch_shares, concat_layers, grad_cam, heat_map_blobs, spatial_blobs
from ilgnet_repro.known import ScoreAt
from ilgnet_repro.reading.preprocessing import Preprocessing
from ilgnet_repro.runtime.model import FeatureMap, Model
from ilgnet_repro.runtime.net import CaffeNet

IMAGE = np.random.default_rng(4).integers(0, 256, (9, 7, 3), np.uint8)


@pytest.fixture
def net() -> CaffeNet:
    net = net_of(SMALL_TEXT)
    net.about = replace(net.about, preprocessing=Preprocessing(size=(9, 7), mean_value=(104.0, 117.0, 123.0)))
    return net


def expected(net: CaffeNet, blob: str, index: int, step: float = 0.25) -> np.ndarray:
    """The map by differences: every value of the blob moved, the layers after it (linear, or pools) run again."""
    found = net(net.prepare(IMAGE), blobs=["pool"])["pool"].detach().double().numpy()[0]
    assert blob == "pool"
    matrix = net.params["ip"][0].detach().double().numpy()[index].reshape(found.shape)
    bias = net.params["ip"][1].detach().double().numpy()[index]
    value = (matrix * found).sum() + bias
    slopes = np.zeros_like(found)
    for place in np.ndindex(found.shape):
        moved = found.copy()
        moved[place] += step
        slopes[place] = ((matrix * moved).sum() + bias - value) / step
    channels, height, width = found.shape
    heat = np.zeros((height, width))
    for k in range(channels):
        heat += slopes[k].sum() / (height * width) * found[k]
    return np.maximum(heat, 0)


@pytest.mark.parametrize("index", range(5))
def test_the_map_is_that_of_the_formula_before_softmax(net: CaffeNet, index: int) -> None:
    heat = grad_cam(net, IMAGE, "pool", index=index)
    np.testing.assert_allclose(heat.values, expected(net, "pool", index), rtol=1e-4, atol=1e-4)
    assert (heat.output, heat.index, heat.values.shape) == ("prob", index, (3, 2))


class TwoTrunks(Model):
    """Convolution, feature map, mean and dense layer, twice; y is the difference of both and affine in each map."""

    name = "two trunks"
    least_side = 3

    def __init__(self) -> None:
        how = Preprocessing(size=(9, 7), mean_value=(104.0, 117.0, 123.0), scale=0.02)
        super().__init__(About(how, score=ScoreAt("score", 0, "score")), (3, 9, 7), {"score": 1})
        self.first, self.second = (
            torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), FeatureMap()) for _ in range(2)
        )
        self.dense = torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        first, second = (
            dense(trunk(x).mean((2, 3)))
            for dense, trunk in zip(self.dense, (self.first, self.second), strict=True)
        )
        return {"score": first - second}


def test_the_map_of_a_model_is_that_of_the_formula_at_each_of_its_feature_maps() -> None:
    torch.manual_seed(6)
    model = TwoTrunks().eval()
    assert heat_map_blobs(model) == ("first", "second")
    x = model.prepare([IMAGE])
    for number, (name, sign) in enumerate((("first", 1), ("second", -1))):
        values = getattr(model, name)(x)[0].detach().numpy()
        weights = sign * model.dense[number].weight[0].detach().numpy() / values[0].size
        heat = grad_cam(model, IMAGE, name)
        wanted = sum(weight * plane for weight, plane in zip(weights, values, strict=True))
        np.testing.assert_allclose(heat.values, np.maximum(wanted, 0), rtol=1e-5, atol=1e-7)
        assert (heat.blob, heat.output, heat.index) == (name, "score", 0)
        assert heat.score == pytest.approx(float(model(x)["score"].detach()))
    assert grad_cam(model, IMAGE).blob == "second"
    assert not model.first[1]._forward_hooks
    with pytest.raises(
        GraphError,
        match=r"^model two trunks: has no feature map 'fist' \(did you mean first\?\); it has first, second$",
    ):
        grad_cam(model, IMAGE, "fist")


def test_defaults_are_the_last_spatial_blob_and_the_largest_value(net: CaffeNet) -> None:
    with torch.inference_mode():  # as a server may call it
        heat = grad_cam(net, IMAGE)
    values = net(net.prepare(IMAGE))["prob"].flatten()
    assert (heat.blob, heat.index) == ("pool", int(values.argmax()))
    assert heat.score == pytest.approx(float(values.detach().max()))


def test_a_value_that_relu_replaces_has_its_own_map(net: CaffeNet) -> None:
    assert spatial_blobs(net) == ("conv@conv", "conv", "pool")
    shapes = {name: grad_cam(net, IMAGE, name).values.shape for name in spatial_blobs(net)}
    assert shapes == {"conv@conv": (7, 5), "conv": (7, 5), "pool": (3, 2)}


def test_the_net_is_as_before(net: CaffeNet) -> None:
    net.train()
    grad_cam(net, IMAGE)
    assert net.training and all(blob.grad is None for blobs in net.params.values() for blob in blobs)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (IMAGE, {"blob": "poool"}, "net 'small': has no blob 'poool' (did you mean pool?)"),
        (IMAGE, {"blob": "ip"}, "blob 'ip': has shape [1, 5]; a heat map needs channels x height x width"),
        (IMAGE, {"output": "ip"}, "net 'small': has no output 'ip'"),
        (IMAGE, {"index": 5}, "index=5: output 'prob' has 5 values; give one from 0 to 4"),
        (IMAGE, {"index": -1}, "index=-1: output 'prob' has 5 values; give one from 0 to 4"),
        ([IMAGE, IMAGE], {}, "image: 2 images; give one"),
    ],
    ids=["no such blob", "a vector", "no output", "index too large", "negative index", "two images"],
)
def test_refused(net: CaffeNet, image, options, message: str) -> None:
    with pytest.raises(GraphError) as error:
        grad_cam(net, image, **options)
    assert str(error.value).startswith(message)


# ---------------------------------------------------------------------------------------- branches

# Three branches (4x2x3, 3x2x3 and 5x2x3), joined, then dense + ReLU + dense: as ILGNet's end.
BRANCHED = """
name: "branched"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 6 } } }
layer { name: "a" type: "Convolution" bottom: "data" top: "a" convolution_param { num_output: 4 kernel_size: 2 stride: 2
  weight_filler { type: "xavier" } } }
layer { name: "b" type: "Convolution" bottom: "a" top: "b" convolution_param { num_output: 3 kernel_size: 1
  weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.3 } } }
layer { name: "b_relu" type: "ReLU" bottom: "b" top: "b" }
layer { name: "c" type: "Convolution" bottom: "a" top: "c" convolution_param { num_output: 5 kernel_size: 1
  weight_filler { type: "xavier" } } }
layer { name: "join" type: "Concat" bottom: "a" bottom: "b" bottom: "c" top: "joined" }
layer { name: "hidden" type: "InnerProduct" bottom: "joined" top: "hidden" inner_product_param { num_output: 7
  weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.2 } } }
layer { name: "hidden_relu" type: "ReLU" bottom: "hidden" top: "hidden" }
layer { name: "ip" type: "InnerProduct" bottom: "hidden" top: "ip" inner_product_param { num_output: 2
  weight_filler { type: "xavier" } bias_filler { type: "constant" value: -0.4 } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


def branched(text: str = BRANCHED) -> CaffeNet:
    net = net_of(text)
    net.about = replace(net.about, preprocessing=Preprocessing(size=(4, 6), mean_value=(9.0, 8.0, 7.0)))
    return net


def slow_values(net: CaffeNet, index: int) -> tuple[list[float], float]:
    """What each value of each branch adds, product by product, and what the biases add, with the active units' weights."""
    found = {
        name: value.detach().double().numpy()
        for name, value in net(net.prepare(IMAGE), blobs=["a", "b", "c", "hidden", "ip"]).items()
    }
    (w1, b1), (w2, b2) = (
        [blob.detach().double().numpy() for blob in net.params[name]] for name in ("hidden", "ip")
    )
    values, column = [], 0
    for name in ("a", "b", "c"):
        total = 0.0
        for number in found[name].flatten():
            for unit in range(7):
                if found["hidden"][0, unit] > 0:
                    total += w2[index, unit] * w1[unit, column] * number
            column += 1
        values.append(total)
    rest = b2[index] + sum(w2[index, unit] * b1[unit] for unit in range(7) if found["hidden"][0, unit] > 0)
    assert sum(values) + rest == pytest.approx(found["ip"][0, index], rel=1e-5)
    return values, rest


@pytest.mark.parametrize("index", [0, 1])
def test_shares_of_branches_are_those_of_a_slow_sum(index: int) -> None:
    net = branched()
    values, rest = slow_values(net, index)
    with torch.inference_mode():
        found = branch_shares(net, IMAGE, index=index)
    assert [branch.blob for branch in found.branches] == ["a", "b", "c"]
    np.testing.assert_allclose([branch.value for branch in found.branches], values, rtol=1e-4)
    assert found.rest == pytest.approx(rest, rel=1e-4)
    whole = sum(map(abs, values))
    np.testing.assert_allclose([branch.share for branch in found.branches], np.abs(values) / whole, rtol=1e-4)
    outputs = net(net.prepare(IMAGE), blobs=["ip", "prob"])
    assert found.before == pytest.approx(float(outputs["ip"][0, index].detach()))
    assert found.score == pytest.approx(float(outputs["prob"][0, index].detach()))
    assert (found.layer, found.output, found.index) == ("join", "prob", index)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"join": {"a": "local", "b": "local", "c": "global"}}, ["local", "local", "global"]),
        ({"join": {"a": "local", "b": "local"}}, ["", "", ""]),
        ({"other": {"a": "local", "b": "local", "c": "global"}}, ["", "", ""]),
    ],
    ids=["its branches", "others", "another layer"],
)
def test_a_branch_is_named_by_its_authors_and_by_where_it_reads(kinds, expected, monkeypatch) -> None:
    monkeypatch.setattr(gradcam, "listed", lambda table: kinds)
    found = branch_shares(branched(), IMAGE, index=1)
    assert [(branch.kind, branch.source) for branch in found.branches] == list(
        zip(expected, ("a", "b", "c"), strict=True)
    )
    first, second, third = (branch.share for branch in found.branches)
    summed = (
        {"local": first + second, "global": third} if expected[0] else {"a": first, "b": second, "c": third}
    )
    assert found.by_kind() == pytest.approx(summed)
    assert list(found.by_kind().values()) == sorted(summed.values(), reverse=True)


def test_branches_of_dead_units_have_no_share() -> None:
    net = branched()
    with torch.no_grad():
        net.params["hidden"][1].fill_(-1e6)  # no unit of `hidden` is active
    found = branch_shares(net, IMAGE, index=1)
    assert [(branch.value, branch.share) for branch in found.branches] == [(0.0, 0.0)] * 3
    assert found.rest == pytest.approx(-0.4)


# `spare` is read by nothing on the way to `prob`; `at` has no gradient; `one` has no height or width over 1.
SIDES = (
    BRANCHED
    + """
layer { name: "spare" type: "Concat" bottom: "a" bottom: "b" top: "spare" }
layer { name: "at" type: "ArgMax" bottom: "c" top: "at" argmax_param { axis: 1 } }
"""
)


def test_blobs_that_have_a_heat_map_are_listed() -> None:
    net = branched(SIDES)
    listed = heat_map_blobs(net, "prob")
    assert listed == ("a", "b@b", "b", "c", "joined")
    for name in listed:
        assert grad_cam(net, IMAGE, name, output="prob").values.shape == (2, 3)
    assert concat_layers(net, "prob") == ("join",)
    # No value before an ArgMax has a gradient, and `spare` is an output itself.
    assert heat_map_blobs(net, "at") == ()
    assert heat_map_blobs(net, "spare") == ("a", "b@b", "b", "spare")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (BRANCHED, {"layer": "joyn"}, "net 'branched': has no layer 'joyn' (did you mean join?)"),
        (BRANCHED, {"layer": "ip"}, "ip (InnerProduct): branches end in a Concat; give join"),
        (SIDES, {"layer": "spare", "output": "prob"}, "spare (Concat): 'ip' does not depend on it; give join"),
        (SIDES, {}, "net 'branched': has 3 outputs (at, prob, spare); name one"),
        (SIDES, {"output": "at"}, "net 'branched': no Concat before 'at', so it has no branches"),
        (SMALL_TEXT, {}, "net 'small': no Concat before 'ip', so it has no branches"),
        (BRANCHED, {"index": 2}, "index=2: output 'prob' has 2 values; give one from 0 to 1"),
    ],
    ids=["no such layer", "no Concat", "not before", "which output", "no Concat before", "none", "index"],
)  # fmt: skip
def test_branches_refused(text: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(GraphError) as error:
        branch_shares(branched(text), IMAGE, **options)
    assert str(error.value) == message


@pytest.mark.parametrize("function", [grad_cam, branch_shares, heat_map_blobs, concat_layers])
def test_a_net_of_another_engine_is_refused(function) -> None:
    given = (torch.nn.ReLU(), IMAGE) if function in (grad_cam, branch_shares) else (torch.nn.ReLU(),)
    with pytest.raises(GraphError, match="a ReLU is not a net, so it cannot be explained"):
        function(*given)
