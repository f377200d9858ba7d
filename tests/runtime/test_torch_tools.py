"""torchinfo and captum on `net.as_tensor(blob)`, as docs/torch.md shows them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_nets import SMALL_TEXT

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net

X = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def net() -> ir.CaffeNet:
    return ir.load_net(parse_net(SMALL_TEXT), seed=3)


@pytest.mark.parametrize("make", [lambda net: net, ir.fast], ids=["exact", "fast"])
def test_torchinfo(net: ir.CaffeNet, make: Any) -> None:
    torchinfo = pytest.importorskip("torchinfo", reason="torchinfo is not installed")
    made = make(net)
    found = torchinfo.summary(made.as_tensor("prob"), input_size=(2, 3, 9, 7), verbose=0)
    if made is net:
        assert found.total_params == sum(blob.numel() for blob in net.parameters())
    assert found.summary_list[0].output_size == list(made(X)["prob"].shape)
    assert made.training is False


def test_captum(net: ir.CaffeNet) -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    model = net.as_tensor("prob")
    found = attr.IntegratedGradients(model).attribute(X, target=1, n_steps=1000)
    difference = net(X)["prob"][:, 1] - net(torch.zeros_like(X))["prob"][:, 1]
    torch.testing.assert_close(found.sum((1, 2, 3)).float(), difference, rtol=1e-2, atol=1e-3)  # completeness
    first = next(iter(net.params))
    assert attr.LayerGradCam(model, net.layer(first)).attribute(X, target=1).shape[0] == 2
    with pytest.raises(ir.GraphError, match="a fast net cannot be differentiated"):
        attr.Saliency(ir.fast(net).as_tensor("prob")).attribute(X, target=1)
