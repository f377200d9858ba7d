"""Parameters shared by name: one blob, STRICT or PERMISSIVE, gradients summed."""

import numpy as np
import pytest
import torch

from ilgnet_repro.errors import LayerError
from ilgnet_repro.formats.prototxt import parse_net
from ilgnet_repro.graph.build import build_graph
from ilgnet_repro.net import CaffeNet


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
    # d/dW of sum((x Wᵀ) Wᵀ), written out: one term for each place W stands in.
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
        "b (InnerProduct): shared parameter 'w' has lr_mult 2 here and 1 in a; state it once, or alike",
    ),
    (
        "two decays", 'name: "w" decay_mult: 0', 'name: "w" decay_mult: 1', 3,
        "b (InnerProduct): shared parameter 'w' has decay_mult 1 here and 0 in a; state it once, or alike",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "outputs", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(first, second, outputs, message) -> None:
    with pytest.raises(LayerError) as caught:
        shared_net(first, second, outputs)
    assert str(caught.value) == message
