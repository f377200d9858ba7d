"""A fast net has its own memory: changes of the exact net do not reach it, and it cannot be changed or moved."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.engines.fast import fast
from ilgnet_repro.errors import IlgnetError

fast_net = partial(fast, engine="torch")

# Every kind of step: packed and plain convolutions, dense layers, layers that run as they are, folded ones.
TEXT = """name: "mixed"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 6 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1"
  convolution_param { num_output: 16 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "p" type: "PReLU" bottom: "c1" top: "p" }
layer { name: "c2" type: "Convolution" bottom: "p" top: "c2"
  convolution_param { num_output: 5 kernel_size: 3 bias_term: false weight_filler { type: "xavier" } } }
BNdeconv
layer { name: "ip" type: "InnerProduct" bottom: "d" top: "ip"
  inner_product_param { num_output: 9 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.2 } } }
layer { name: "out" type: "Sigmoid" bottom: "ip" top: "out" }"""
DECONV = """layer { name: "d" type: "Deconvolution" bottom: "SOURCE" top: "d"
  convolution_param { num_output: 4 kernel_size: 2 stride: 2 weight_filler { type: "xavier" } } }"""
BN = """layer { name: "bn" type: "BatchNorm" bottom: "c2" top: "bn" }
layer { name: "s" type: "Scale" bottom: "bn" top: "s" }"""
TEXTS = {
    "plain": TEXT.replace("BNdeconv", DECONV.replace("SOURCE", "c2")),
    "folded": TEXT.replace("BNdeconv", BN + DECONV.replace("SOURCE", "s")),
}


def step(net) -> None:
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    net(torch.ones(2, 3, 8, 6))["out"][:, 0].sum().backward()
    optimizer.step()


def overwrite(net) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(float("nan"))


CHANGES = {
    "an optimizer's step": step,
    "overwritten": overwrite,
    "half": lambda net: net.half(),
    "double": lambda net: net.double(),
    "meta": lambda net: net.to("meta"),
    "shared memory": lambda net: net.share_memory(),
    "a state dict": lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}),
    "freed": lambda net: [setattr(p, "data", torch.empty(0)) for p in net.parameters()],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_changes_of_the_exact_net_do_not_reach_the_fast_net(text, change) -> None:
    net = ir.load_net(parse_net(text), seed=4)
    data = torch.randn(3, 3, 8, 6, generator=torch.Generator().manual_seed(2))
    if "bn" in net.params:
        with torch.no_grad():
            for blob, value in zip(net.params["bn"], (0.1, 0.9, 1.0), strict=True):
                blob.fill_(value)
    fast = fast_net(net)
    wanted = fast(data)["out"].clone()
    torch.testing.assert_close(wanted, net(data)["out"])
    change(net)
    junk = [torch.full((5000,), 7.0) for _ in range(50)]  # takes the freed memory
    torch.testing.assert_close(fast(data)["out"], wanted, rtol=0, atol=0)
    assert len(junk) == 50


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8"])
def test_large_dense_layers_too(precision) -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 1100 } } }
    layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
      inner_product_param { num_output: 1000 weight_filler { type: "xavier" } } }"""
    net = ir.load_net(parse_net(text), seed=4)
    fast = fast_net(net, precision)
    wanted = fast(torch.ones(2, 1100))["ip"].clone()
    overwrite(net)
    torch.testing.assert_close(fast(torch.ones(2, 1100))["ip"], wanted, rtol=0, atol=0)


def test_a_fast_net_does_not_change_the_exact_net() -> None:
    net = ir.load_net(parse_net(TEXTS["plain"]), seed=4)
    exact = {id(p) for p in net.parameters()} | {p.data_ptr() for p in net.parameters()}
    fast = fast_net(net)
    held = [*fast.parameters(), *(b for b in fast.buffers() if b.layout == torch.strided)]
    assert held
    assert not exact & {id(p) for p in held}
    assert not exact & {p.data_ptr() for p in held}


REFUSED = {
    "half": (lambda fast: fast.half(), "converted, moved or shared"),
    "double": (lambda fast: fast.double(), "converted, moved or shared"),
    "bfloat16": (lambda fast: fast.to(torch.bfloat16), "converted, moved or shared"),
    "meta": (lambda fast: fast.to("meta"), "converted, moved or shared"),
    "to_empty": (lambda fast: fast.to_empty(device="meta"), "converted, moved or shared"),
    "share_memory": (lambda fast: fast.share_memory(), "converted, moved or shared"),
    "state_dict": (lambda fast: fast.state_dict(), "saved as a state_dict"),
    "load_state_dict": (lambda fast: fast.load_state_dict({}), "given a state_dict"),
}


@pytest.mark.parametrize(("use", "what"), REFUSED.values(), ids=REFUSED)
def test_a_fast_net_cannot_be_changed(use, what) -> None:
    fast = fast_net(ir.load_net(parse_net(TEXTS["plain"]), seed=4))
    with pytest.raises(IlgnetError) as caught:
        use(fast)
    assert str(caught.value) == (
        f"net 'mixed': a fast net cannot be {what}; do it with the exact net, and make that fast"
    )
    wanted = fast(torch.ones(1, 3, 8, 6))["out"]
    for same in (fast.float(), fast.cpu(), fast.to("cpu"), fast.eval()):
        torch.testing.assert_close(same(torch.ones(1, 3, 8, 6))["out"], wanted)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_copy_of_a_fast_net_is_itself(copied) -> None:
    fast = fast_net(ir.load_net(parse_net(TEXTS["plain"]), seed=4))
    assert copied(fast) is fast


def test_a_pickle_holds_the_exact_net_and_the_settings() -> None:
    fast = fast_net(ir.load_net(parse_net(TEXTS["folded"]), seed=4), threads=2)
    again = pickle.loads(pickle.dumps(fast))  # noqa: S301 (made here)
    assert again.settings == fast.settings
    data = torch.randn(3, 3, 8, 6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(again(data)["out"], fast(data)["out"], rtol=0, atol=0)


NEEDS_WEIGHTS = {
    "pickle": pickle.dumps,
    "another blob": lambda fast: fast(torch.ones(1, 3, 8, 6), blobs=["c2"]),
    "no images": lambda fast: fast(torch.ones(0, 3, 8, 6)),
}


@pytest.mark.parametrize("use", NEEDS_WEIGHTS.values(), ids=NEEDS_WEIGHTS)
def test_what_needs_the_weights_again_refuses_changed_ones(use) -> None:
    net = ir.load_net(parse_net(TEXTS["plain"]), seed=4)
    fast = fast_net(net)
    use(fast)
    fast = fast_net(net)
    net.layer("c1").weight.data.mul_(2)
    with pytest.raises(IlgnetError) as caught:
        use(fast)
    assert str(caught.value) == (
        "net 'mixed': its weights have changed since it was made fast, and this call or copy needs them; "
        "make it fast again"
    )
