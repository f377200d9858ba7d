"""Each method of NetBuilder against the prototxt that a Caffe user would write for it."""

from __future__ import annotations

import pytest

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.zoo.builder import MSRA, WEIGHT_AND_BIAS, NetBuilder, constant, gaussian

CASES = {
    "input": (
        lambda net: net.input("data", 2, 3, 5, 7),
        "data",
        'name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 7 } }',
    ),
    "data": (
        lambda net: net.data(
            "db", batch_size=4, crop_size=9, mirror=False, phase="TRAIN", mean_value=(1, 2, 3)
        ),
        "data",
        'name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN } '
        "transform_param { mirror: false crop_size: 9 mean_value: 1 mean_value: 2 mean_value: 3 } "
        'data_param { source: "db" batch_size: 4 backend: LMDB }',
    ),
    "convolution": (
        lambda net: net.convolution(
            "c",
            "x",
            6,
            3,
            pad=1,
            stride=2,
            group=2,
            weight_filler=MSRA,
            bias_filler=constant(0.5),
            param=WEIGHT_AND_BIAS,
        ),
        "c",
        'name: "c" type: "Convolution" bottom: "x" top: "c" '
        "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 } "
        "convolution_param { num_output: 6 pad: 1 kernel_size: 3 stride: 2 group: 2 "
        'weight_filler { type: "msra" } bias_filler { type: "constant" value: 0.5 } }',
    ),
    "deconvolution": (
        lambda net: net.convolution("d", "x", 6, 4, bias=False, dilation=2, type_="Deconvolution", top="y"),
        "y",
        'name: "d" type: "Deconvolution" bottom: "x" top: "y" '
        "convolution_param { num_output: 6 bias_term: false kernel_size: 4 dilation: 2 }",
    ),
    "inner_product": (
        lambda net: net.inner_product("f", "x", 10, weight_filler=gaussian(0.01), top="y"),
        "y",
        'name: "f" type: "InnerProduct" bottom: "x" top: "y" '
        'inner_product_param { num_output: 10 weight_filler { type: "gaussian" std: 0.01 } }',
    ),
    "relu": (lambda net: net.relu("r", "x"), "x", 'name: "r" type: "ReLU" bottom: "x" top: "x"'),
    "dropout": (
        lambda net: net.dropout("d", "x", 0.7),
        "x",
        'name: "d" type: "Dropout" bottom: "x" top: "x" dropout_param { dropout_ratio: 0.7 }',
    ),
    "pooling": (
        lambda net: net.pooling("p", "x", "AVE", 3, stride=1, pad=1),
        "p",
        'name: "p" type: "Pooling" bottom: "x" top: "p" '
        "pooling_param { pool: AVE kernel_size: 3 stride: 1 pad: 1 }",
    ),
    "global_pooling": (
        lambda net: net.pooling("p", "x", "AVE"),
        "p",
        'name: "p" type: "Pooling" bottom: "x" top: "p" pooling_param { pool: AVE global_pooling: true }',
    ),
    "concat": (
        lambda net: net.concat("c", ("x", "y")),
        "c",
        'name: "c" type: "Concat" bottom: "x" bottom: "y" top: "c"',
    ),
    "loss": (
        lambda net: net.loss("l", "x", top="t", weight=0.3),
        "t",
        'name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "label" top: "t" loss_weight: 0.3',
    ),
    "accuracy": (
        lambda net: net.accuracy("a", "x", top_k=5),
        "a",
        'name: "a" type: "Accuracy" bottom: "x" bottom: "label" top: "a" include { phase: TEST } '
        "accuracy_param { top_k: 5 }",
    ),
    "no_top": (
        lambda net: net.layer("Silence", "s", "x", tops=()),
        "s",
        'name: "s" type: "Silence" bottom: "x"',
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layer_is_what_a_user_would_write(name):
    add, top, text = CASES[name]
    net = NetBuilder("net")
    assert add(net) == top
    assert net.net == parse_net(f'name: "net" layer {{ {text} }}')


@pytest.mark.parametrize(
    "add",
    [
        lambda net: net.pooling("p", "x", "BEST", 3),
        lambda net: net.layer("Crop", "c", "x", crop_parameter={"axis": 2}),
        lambda net: net.convolution("c", "x", -1, 3),
    ],
    ids=["enum", "field", "negative"],
)
def test_a_mistake_in_a_builder_is_refused(add):
    with pytest.raises(ValueError):
        add(NetBuilder("net"))
