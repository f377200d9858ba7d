"""The part of a net between some blobs: its numbers are those of the whole, and Caffe's rules hold in its text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from caffe_memory import random_net
from small_nets import SHARED_TEXT, net_of

from ilgnet_repro.caffe.cut import cut
from ilgnet_repro.caffe.prototxt import format_message, parse_net
from ilgnet_repro.errors import GraphError
from ilgnet_repro.runtime.load import load_net
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.rebuild import cut_net

# A blob that two layers write in place, read by two more; a mask; two outputs.
CHAIN = """
name: "chain"
layer { name: "data" type: "Input" top: "data" top: "info" input_param {
  shape { dim: 2 dim: 3 dim: 8 dim: 6 } shape { dim: 2 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "gaussian" } } }
layer { name: "bn" type: "Scale" bottom: "conv" top: "conv" scale_param {
  filler { type: "gaussian" mean: 1 std: 0.5 } bias_term: true bias_filler { type: "gaussian" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" top: "mask" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "slice" type: "Slice" bottom: "conv" top: "left" top: "right" slice_param { axis: 1 slice_point: 1 } }
layer { name: "mul" type: "Power" bottom: "right" top: "twice" power_param { scale: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param {
  num_output: 3 weight_filler { type: "gaussian" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
layer { name: "scored" type: "InnerProduct" bottom: "info" top: "scored" inner_product_param {
  num_output: 3 weight_filler { type: "gaussian" } } }
layer { name: "sum" type: "Eltwise" bottom: "ip" bottom: "scored" top: "sum" }
"""


def inputs_of(net: CaffeNet, seed: int = 1) -> dict[str, torch.Tensor]:
    draw = np.random.default_rng(seed)
    return {name: torch.from_numpy(draw.standard_normal(net.shapes[name]).astype("f")) for name in net.inputs}


def check_same(whole: CaffeNet, part: CaffeNet) -> None:
    """Feed the part with blobs of the whole; its outputs are the whole's, and its text gives the same net."""
    given = inputs_of(whole)
    with torch.no_grad():
        fed = [name for name in part.inputs if name not in given]
        given |= whole(given, blobs=fed) if fed else {}
        expected = whole({name: given[name] for name in whole.inputs}, blobs=part.outputs)
        found = part({name: given[name] for name in part.inputs})
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    again = load_net(parse_net(format_message(part.graph.text)), phase=part.graph.phase)
    assert (again.outputs, again.inputs, again.shapes) == (part.outputs, part.inputs, part.shapes)


# Outputs, inputs, then the layers and the inputs of the part.
PARTS = {
    "one output": (["pool"], [], "data conv bn relu pool unread_tops", ["data"]),
    "an output that others read": (["pool", "conv"], [], "data conv bn relu conv_output pool unread_tops", ["data"]),
    "before the layers in place": (["conv@conv"], [], "data conv", ["data"]),
    "between them": (["conv@bn"], [], "data conv bn", ["data"]),
    "all three": (
        ["conv@conv", "conv@bn", "conv"], [],
        "data conv conv@conv_output bn conv@bn_output relu", ["data"],
    ),
    "one of several tops": (["right"], [], "data conv bn relu slice unread_tops", ["data"]),
    "several branches": (["twice", "prob"], [], "data conv bn relu pool slice mul ip prob unread_tops", ["data"]),
    "a new input": (["prob"], ["pool"], "pool_input ip prob", ["pool"]),
    "a new input in place": (["pool"], ["conv@bn"], "conv@bn_input relu pool unread_tops", ["conv@bn"]),
    "a new input after the layers in place": (["pool"], ["conv"], "conv_input pool unread_tops", ["conv"]),
    "an input that stays": (["sum"], ["ip"], "ip_input data scored sum", ["ip", "info"]),
    "the outputs that depend on an input": ([], ["pool"], "pool_input data ip prob scored sum", ["pool", "info"]),
    "two inputs": (["sum"], ["scored", "pool"], "scored_input pool_input ip sum", ["scored", "pool"]),
    "an input of the net": (["ip"], ["data"], "data conv bn relu pool ip unread_tops", ["data"]),
    "an input that is an output too": (["prob"], ["data"], "data conv bn relu pool ip prob unread_tops", ["data"]),
    "a branch that still needs what an input replaces": (
        ["twice", "pool"], ["conv"], "conv_input pool slice mul unread_tops", ["conv"],
    ),
    "one top of a layer whose other is still computed": (
        ["twice", "left"], ["right"], "right_input data conv bn relu slice mul unread_tops", ["right", "data"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("outputs", "inputs", "layers", "fed"), PARTS.values(), ids=PARTS)
def test_a_part_computes_what_the_whole_computes(outputs, inputs, layers, fed) -> None:
    whole = net_of(CHAIN)
    part = cut_net(whole, outputs, inputs)
    assert " ".join(node.name for node in part.graph.layers) == layers.replace(
        "pool unread_tops", "pool unread_tops"
    )
    assert list(part.inputs) == fed
    assert set(part.outputs) == set(outputs or ["prob", "sum"])
    check_same(whole, part)


REFUSED = {
    "an unknown output": (
        ["pol"], [], "blob 'pol' is not in net 'chain' (did you mean pool?); it has data, info, conv@conv, ",
    ),
    "an unknown input": (["pool"], ["cnv"], "blob 'cnv' is not in net 'chain' (did you mean conv?); it has "),
    "an input that nothing needs": (
        ["pool"], ["ip"], "blob 'ip' is not needed: no output depends on it; omit it from the inputs",
    ),
    "an input that no output of the net depends on": (
        [], ["prob"], "net 'chain': no output depends on 'prob'; name an earlier blob",
    ),
    "an input as output": (
        ["pool"], ["pool"], "blob 'pool' is an input and an output, so that nothing is left between; name a later output",
    ),
    "what the net is fed": (
        ["data", "pool"], [], "blob 'data' is what the net is fed, which no layer computes; name another output",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("outputs", "inputs", "message"), REFUSED.values(), ids=REFUSED)
def test_a_cut_that_is_none_is_refused(outputs, inputs, message) -> None:
    with pytest.raises(GraphError) as error:
        cut_net(net_of(CHAIN), outputs, inputs)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("seed", range(40))
def test_blobs_that_share_memory_keep_their_values(seed) -> None:
    """Every blob of a net whose layers share memory, alone and with others, is what Caffe's buffers hold."""
    made = random_net(seed)
    net = load_net(parse_net(made.text))
    given = {name: torch.from_numpy(values.copy()) for name, values in made.inputs.items()}
    names = [name for name in made.blobs if name != "x"]
    refused = 0
    for outputs in [*([name] for name in names), names[:2], names[::2]]:
        try:
            part = cut_net(net, outputs)
        except GraphError as error:
            assert "share memory" in str(error)
            refused += 1
            continue
        found = part(given)
        assert set(found) == set(outputs)
        for name in outputs:
            np.testing.assert_allclose(
                found[name].numpy(), made.blobs[name], rtol=1e-5, atol=1e-6, err_msg=name
            )
    assert refused <= 2


def test_shared_weights_stay_with_the_layer_that_is_left() -> None:
    whole = net_of(SHARED_TEXT)
    part = cut_net(whole, ["b"], ["a"])
    torch.testing.assert_close(part.params["b"][0], whole.params["a"][0])
    check_same(whole, part)


def test_the_graph_alone_is_cut() -> None:
    found = cut(net_of(CHAIN).graph, ["pool"])
    assert found.graph.outputs == ("pool",)
    assert found.dropped == ("slice", "mul", "ip", "prob", "scored", "sum")
    assert found.remaining_inputs == ("data",)
