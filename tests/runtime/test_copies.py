"""`copy.deepcopy`, `half()`, `double()`, `to()` and pickle on every kind of net."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.runtime.quantize import attach_quantized, quantize_weights

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 6 } } } '
DENSE = 'inner_product_param { num_output: %d bias_term: %s weight_filler { type: "xavier" } } } '
PLAIN = INPUT + 'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "o" ' + DENSE % (5, "true")
NO_BIAS = PLAIN.replace("true", "false")
PERMISSIVE = (
    INPUT + 'layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" } ' + DENSE % (2, "false")
    + 'layer { name: "ip" type: "InnerProduct" bottom: "a" top: "o" param { name: "w" share_mode: PERMISSIVE } '
    + DENSE % (6, "false")
)  # fmt: skip
LSTM = (
    'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 6 } } } '
    'layer { name: "c" type: "Input" top: "c" input_param { shape { dim: 2 dim: 4 } } } '
    'layer { name: "ip" type: "LSTM" bottom: "x" bottom: "c" top: "o" recurrent_param { num_output: 5 '
    'weight_filler { type: "xavier" } } }'
)


def reduced(text: str, precision: str):
    net = ir.load_net(parse_net(text), seed=1)
    layer = net.layer("ip")
    attach_quantized(layer, quantize_weights(layer.weight.detach().numpy(), precision))
    return net


def carrying():
    net = ir.load_net(parse_net(LSTM), seed=1, carry_state=True)
    with torch.inference_mode():
        net(inputs(net))
    return net


def inputs(net) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.ones(net.shapes[name])
        if name == "c"
        else torch.rand(net.shapes[name], generator=generator)
        for name in net.inputs
    }


KINDS = {
    "exact": lambda: ir.load_net(parse_net(PLAIN), seed=1),
    "int8": lambda: reduced(PLAIN, "int8"),
    "int8 without bias": lambda: reduced(NO_BIAS, "int8"),
    "float16": lambda: reduced(PLAIN, "float16"),
    "bfloat16": lambda: reduced(PLAIN, "bfloat16"),
    "shared in another shape": lambda: ir.load_net(parse_net(PERMISSIVE), seed=1),
    "with a carried state": carrying,
}
COMPUTED = ("int8", "int8 without bias", "float16", "bfloat16", "shared in another shape")
CHANGES = {
    "half": (lambda net: net.half(), torch.float16, 2e-3),
    "bfloat16": (lambda net: net.to(torch.bfloat16), torch.bfloat16, 2e-2),
    "double": (lambda net: net.double(), torch.float64, 1e-6),
    "half and back": (lambda net: net.half().float(), torch.float32, 2e-3),
    "deepcopy": (copy.deepcopy, torch.float32, 0),
    "deepcopy of half": (lambda net: copy.deepcopy(net).half(), torch.float16, 2e-3),
}


@pytest.mark.parametrize(("change", "dtype", "atol"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_changed_net_gives_its_new_outputs(make, change, dtype, atol) -> None:
    wanted = make()
    found = change(make())
    with torch.no_grad():
        top, expected = found(inputs(found))["o"], wanted(inputs(wanted))["o"]
    assert top.dtype == dtype
    torch.testing.assert_close(top.float(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("make", [KINDS[kind] for kind in COMPUTED], ids=COMPUTED)
def test_a_blob_replaced_in_a_copy_stays_in_the_original(make) -> None:
    net = make()
    wanted = net(inputs(net))["o"].detach()
    other = copy.deepcopy(net)
    layer = other.layer("ip")
    layer.weight = nn.Parameter(torch.zeros_like(layer.weight))
    torch.testing.assert_close(net(inputs(net))["o"], wanted, rtol=0, atol=0)
    assert not torch.equal(other(inputs(other))["o"], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_net_is_pickled(kind) -> None:
    net = KINDS[kind]()
    found = pickle.loads(pickle.dumps(net))  # noqa: S301 (made here)
    torch.testing.assert_close(found(inputs(found))["o"], net(inputs(net))["o"], rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(copy.deepcopy(found)))  # noqa: S301
    torch.testing.assert_close(again(inputs(again))["o"], net(inputs(net))["o"], rtol=0, atol=0)
    assert [name for name, _ in found.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert found.state_dict().keys() == net.state_dict().keys()


def test_a_pickled_net_keeps_sharing_its_weights() -> None:
    net = pickle.loads(pickle.dumps(KINDS["shared in another shape"]()))  # noqa: S301 (made here)
    with torch.no_grad():
        net.layer("a").weight.zero_()
    assert not net.layer("ip").weight.any()


def test_scales_stay_float32() -> None:
    assert KINDS["int8"]().half().layer("ip").parametrizations.weight[0].scale.dtype == torch.float32
