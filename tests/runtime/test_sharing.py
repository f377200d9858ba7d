"""Parameters shared by name: one blob, STRICT or PERMISSIVE, gradients summed."""

import numpy as np
import pytest
import torch

from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.runtime.net import CaffeNet


def shared_net(first: str, second: str, second_outputs: int = 3) -> CaffeNet:
    text = f"""
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}
    layer {{ name: "a" type: "InnerProduct" bottom: "x" top: "a" param {{ {first} }}
      inner_product_param {{ num_output: 3 bias_term: false weight_filler {{ type: "gaussian" }} }} }}
    layer {{ name: "b" type: "InnerProduct" bottom: "a" top: "b" param {{ {second} }}
      inner_product_param {{ num_output: {second_outputs} bias_term: false weight_filler {{ type: "gaussian" }} }} }}
    layer {{ name: "l" type: "Reduction" bottom: "b" top: "l" loss_weight: 1 }}"""
    return CaffeNet(build_graph(parse_net(text)), seed=3)


def test_one_parameter_whose_gradient_is_the_sum() -> None:
    net = shared_net('name: "w"', 'name: "w"')
    assert net.params["a"][0] is net.params["b"][0]
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    net.loss(x=x).backward()
    # d/dW of sum((x Wᵀ) Wᵀ), written out: one term for each use of W.
    w = net.params["a"][0].detach().numpy().astype(np.float64)
    ones, rows = np.ones((2, 3)), x.numpy().astype(np.float64)
    expected = ones.T @ (rows @ w.T) + (ones @ w).T @ rows
    np.testing.assert_allclose(net.params["a"][0].grad.numpy(), expected, rtol=1e-5)


def test_without_a_name_nothing_is_shared() -> None:
    net = shared_net("lr_mult: 1", "lr_mult: 1")
    assert net.params["a"][0] is not net.params["b"][0]


def test_permissive_shares_values_in_another_shape() -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 2 } } }
    layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 4 dim: 3 } } }
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
      inner_product_param { num_output: 3 bias_term: false weight_filler { type: "gaussian" } } }
    layer { name: "b" type: "InnerProduct" bottom: "y" top: "b" param { name: "w" share_mode: PERMISSIVE }
      inner_product_param { num_output: 2 bias_term: false } }
    layer { name: "c" type: "Concat" bottom: "a" bottom: "b" top: "c" }
    layer { name: "l" type: "Reduction" bottom: "c" top: "l" loss_weight: 1 }"""
    net = CaffeNet(build_graph(parse_net(text)), seed=3)
    w = net.params["a"][0].detach().numpy()
    x, y = torch.randn(4, 2), torch.randn(4, 3)
    found = net(x=x, y=y, blobs=["b"])["b"].detach().numpy()
    np.testing.assert_allclose(found, y.numpy() @ w.reshape(2, 3).T, rtol=1e-5)
    net.loss(x=x, y=y).backward()
    expected = np.ones((4, 3)).T @ x.numpy() + (np.ones((4, 2)).T @ y.numpy()).reshape(3, 2)
    np.testing.assert_allclose(net.params["a"][0].grad.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert len(list(net.parameters())) == 1


REFUSED = [
    (
        "strict shapes", 'name: "w"', 'name: "w"', 2,
        "b (InnerProduct): blob 0 shares 'w' with a but its shape differs (2x3 here, 3x3 there); "
        "share_mode: PERMISSIVE compares only counts",
    ),
    (
        "permissive counts", 'name: "w"', 'name: "w" share_mode: PERMISSIVE', 2,
        "b (InnerProduct): blob 0 shares 'w' with a but its count differs (2x3 here, 3x3 there)",
    ),
    (
        "two learning rates", 'name: "w" lr_mult: 1', 'name: "w" lr_mult: 2', 3,
        "b (InnerProduct): shared parameter 'w' has lr_mult 2 here and 1 in a; state it once, or the same in both",
    ),
    (
        "two decays", 'name: "w" decay_mult: 0', 'name: "w" decay_mult: 1', 3,
        "b (InnerProduct): shared parameter 'w' has decay_mult 1 here and 0 in a; state it once, or the same in both",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "outputs", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(first, second, outputs, message) -> None:
    with pytest.raises(LayerError) as caught:
        shared_net(first, second, outputs)
    assert str(caught.value) == message


def batch_norms(first: str, second: str, phase: str = "TRAIN") -> CaffeNet:
    """Two BatchNorm layers, of x and of y, whose `param` rows are given."""
    text = f"""
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 5 dim: 3 dim: 2 dim: 4 }} }} }}
    layer {{ name: "y" type: "Input" top: "y" input_param {{ shape {{ dim: 2 dim: 3 dim: 4 }} }} }}
    layer {{ name: "a" type: "BatchNorm" bottom: "x" top: "a" {first} batch_norm_param {{ use_global_stats: false }} }}
    layer {{ name: "b" type: "BatchNorm" bottom: "y" top: "b" {second} batch_norm_param {{ use_global_stats: false }} }}
    """
    return CaffeNet(build_graph(upgrade_net(parse_net(text)), phase), seed=3)


NAMED = 'param { name: "m" lr_mult: 1 } param { name: "v" } param { name: "k" lr_mult: 0 }'


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_three_named_rows_of_batch_norm_share_its_statistics(phase) -> None:
    net = batch_norms(NAMED, NAMED, phase)
    assert all(one is other for one, other in zip(net.params["a"], net.params["b"], strict=True))
    inputs = {"x": torch.randn(5, 3, 2, 4), "y": torch.randn(2, 3, 4)}
    with torch.no_grad():
        net(inputs)
    mean, variance, factor = np.zeros(3), np.zeros(3), 0.0
    for value in inputs.values():  # the batch of a, then that of b, both into the shared blobs
        rows = value.double().numpy().swapaxes(0, 1).reshape(3, -1)
        mean = 0.999 * mean + rows.mean(1)
        variance = 0.999 * variance + rows.var(1, ddof=1)
        factor = 0.999 * factor + 1
    found = [blob.numpy() for blob in net.params["b"]]
    for value, wanted in zip(found, (mean, variance, [factor]), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", ["", "param { } param { } param { }"], ids=["none", "without_names"])
def test_batch_norms_without_names_keep_their_own_statistics(rows) -> None:
    net = batch_norms(rows, rows)
    with torch.no_grad():
        net(x=torch.randn(5, 3, 2, 4), y=torch.randn(2, 3, 4))
    assert [net.params[name][2].item() for name in "ab"] == [1, 1]
    assert not any(one is other for one, other in zip(net.params["a"], net.params["b"], strict=True))


SHARING = {
    "PReLU": ("", "", 1),
    "Scale": ("scale_param { bias_term: true }", "scale_param { bias_term: true }", 2),
    "Bias": ("", "", 1),
    "BN": ("bn_param { frozen: true }", "bn_param { frozen: true }", 4),
    "Deconvolution": (*["convolution_param { num_output: 3 kernel_size: 2 }"] * 2, 2),
}


@pytest.mark.parametrize(
    ("type_", "first", "second", "blobs"), [(k, *v) for k, v in SHARING.items()], ids=SHARING
)
def test_every_blob_of_a_type_is_shared_by_its_name(type_, first, second, blobs) -> None:
    rows = " ".join(f'param {{ name: "p{index}" }}' for index in range(blobs))
    text = f"""
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 dim: 4 dim: 5 }} }} }}
    layer {{ name: "a" type: "{type_}" bottom: "x" top: "a" {rows} {first} }}
    layer {{ name: "b" type: "{type_}" bottom: "a" top: "b" {rows} {second} }}"""
    net = CaffeNet(build_graph(parse_net(text)), seed=3)
    assert len(net.params["a"]) == blobs
    assert all(one is other for one, other in zip(net.params["a"], net.params["b"], strict=True))


def test_layers_of_different_types_and_one_layer_itself_may_share() -> None:
    text = """
    layer { name: "i" type: "Input" top: "i" input_param { shape { dim: 4 } } }
    layer { name: "e" type: "Embed" bottom: "i" top: "e" param { name: "w" }
      embed_param { input_dim: 3 num_output: 2 bias_term: false weight_filler { type: "gaussian" } } }
    layer { name: "p" type: "Parameter" top: "p" param { name: "w" } parameter_param { shape { dim: 3 dim: 2 } } }
    layer { name: "s" type: "Scale" bottom: "e" top: "s" param { name: "v" } param { name: "v" }
      scale_param { bias_term: true filler { type: "gaussian" } } }"""
    net = CaffeNet(build_graph(parse_net(text)), seed=3)
    assert net.params["e"][0] is net.params["p"][0]
    assert net.params["s"][0] is net.params["s"][1]
    tops = net(i=torch.tensor([2, 0, 1, 2]), blobs=["e", "p", "s"])
    np.testing.assert_array_equal(tops["p"].detach(), net.params["e"][0].detach())
    v = net.params["s"][0]
    np.testing.assert_allclose(tops["s"].detach(), (tops["e"] * v + v).detach(), rtol=1e-6)
