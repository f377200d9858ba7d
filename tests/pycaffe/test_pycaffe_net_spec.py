"""`caffe.NetSpec`: nets written in Python, compared with the text that Caffe reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ilgnet_repro as ir
from ilgnet_repro import pycaffe as caffe
from ilgnet_repro.caffe.prototxt import format_message, parse_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.pycaffe import layers as L
from ilgnet_repro.pycaffe import params as P
from ilgnet_repro.pycaffe.net_spec import Function, Top, assign_proto, param_name_dict
from ilgnet_repro.pycaffe.proto import caffe_pb2


def text(net: caffe_pb2.NetParameter) -> str:
    return " ".join(str(net).split())


def lines(written: str) -> str:
    """Text in another layout, as the schema prints it."""
    return text(parse_net(written))


def classifier(spec: Any) -> caffe_pb2.NetParameter:
    n = spec()
    n.data, n.label = L.DummyData(shape=[dict(dim=[5, 3, 12, 10]), dict(dim=[5])], ntop=2)
    n.conv = L.Convolution(n.data, kernel_size=3, num_output=4, weight_filler=dict(type="xavier"))
    n.pool = L.Pooling(n.conv, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.relu = L.ReLU(n.pool, in_place=True)
    n.ip = L.InnerProduct(n.relu, num_output=7)
    n.loss = L.SoftmaxWithLoss(n.ip, n.label)
    return n.to_proto()


def test_a_net_is_written_in_order_with_the_names_given() -> None:
    net = classifier(caffe.NetSpec)
    assert [layer.name for layer in net.layer] == ["data", "conv", "pool", "relu", "ip", "loss"]
    assert text(net) == lines(
        """
        layer { name: "data" type: "DummyData" top: "data" top: "label"
          dummy_data_param { shape { dim: 5 dim: 3 dim: 12 dim: 10 } shape { dim: 5 } } }
        layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
          convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
        layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool"
          pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
        layer { name: "relu" type: "ReLU" bottom: "pool" top: "pool" }
        layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 7 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
        """
    )


def test_what_is_written_runs() -> None:
    net = ir.load_net(parse_net(str(classifier(caffe.NetSpec))), seed=1)
    assert net.outputs == ("loss",)
    assert net.shapes["pool"] == (5, 4, 5, 4)


def test_names_are_made_from_types_in_the_order_of_use() -> None:
    data, label = L.DummyData(shape=[dict(dim=[2, 3, 6, 5]), dict(dim=2)], ntop=2)
    first = L.Convolution(data, kernel_size=1, num_output=2)
    second = L.ReLU(L.Convolution(first, kernel_size=1, num_output=2), in_place=True)
    net = L.SoftmaxWithLoss(second, label).to_proto()
    assert [(layer.name, list(layer.top)) for layer in net.layer] == [
        ("DummyData1", ["DummyData1", "DummyData2"]),
        ("Convolution1", ["Convolution1"]),
        ("Convolution2", ["Convolution2"]),
        ("ReLU1", ["Convolution2"]),
        ("SoftmaxWithLoss1", ["SoftmaxWithLoss1"]),
    ]


def test_layers_without_tops_and_a_name_of_its_own() -> None:
    n = caffe.NetSpec()
    n.a, n.b = L.DummyData(shape=dict(dim=3), ntop=2)
    n.quiet = L.Silence(n.a, ntop=0)
    n.other = L.Silence(n.b, ntop=0, name="mute")
    net = n.to_proto()
    assert [(layer.name, list(layer.bottom), list(layer.top)) for layer in net.layer] == [
        ("a", [], ["a", "b"]),
        ("quiet", ["a"], []),
        ("mute", ["b"], []),
    ]
    assert isinstance(n.quiet, Function)
    assert isinstance(n.a, Top)


def test_several_tops_are_one_net() -> None:
    data = L.Input(shape=dict(dim=[1, 2]))
    net = caffe.to_proto(L.ReLU(data), L.Silence(data, ntop=0))
    assert [layer.name for layer in net.layer] == ["Input1", "ReLU1", "Silence1"]


def test_a_deep_net_needs_no_deep_stack() -> None:
    n = caffe.NetSpec()
    n.data = top = L.Input(shape=dict(dim=[1, 2]))
    for _ in range(3000):
        top = L.ReLU(top)
    n.last = top
    assert len(n.to_proto().layer) == 3001


# Layer, its parameters, and what the layer's text is besides name, type and top.
VALUES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a single value of a repeated field": ("Convolution", dict(kernel_size=3), "convolution_param { kernel_size: 3 }"),
    "several": ("Convolution", dict(pad=[1, 2]), "convolution_param { pad: 1 pad: 2 }"),
    "a tuple": ("Convolution", dict(stride=(3, 2)), "convolution_param { stride: 3 stride: 2 }"),
    "an array": ("Convolution", dict(stride=np.array([3, 2])), "convolution_param { stride: 3 stride: 2 }"),
    "numbers of NumPy": ("Power", dict(power=np.float32(2), shift=np.int64(3)), "power_param { power: 2 shift: 3 }"),
    "the message itself": ("Convolution", dict(convolution_param=dict(num_output=2)), "convolution_param { num_output: 2 }"),
    "a nested message": (
        "Convolution", dict(bias_filler=dict(type="gaussian", std=0.5)),
        'convolution_param { bias_filler { type: "gaussian" std: 0.5 } }',
    ),
    "messages": (
        "Convolution", dict(param=[dict(lr_mult=1, decay_mult=0), dict(lr_mult=2)]),
        "param { lr_mult: 1 decay_mult: 0 } param { lr_mult: 2 }",
    ),
    "one message of several": ("InnerProduct", dict(param=dict(name="w")), 'param { name: "w" }'),
    "a message as it is": (
        "Scale", dict(filler=caffe_pb2.FillerParameter(value=2)), "scale_param { filler { value: 2 } }"),
    "a field of the layer": ("SoftmaxWithLoss", dict(loss_weight=[0.5, 0]), "loss_weight: 0.5 loss_weight: 0"),
    "rules": (
        "Accuracy", dict(top_k=5, include=dict(phase=caffe.TEST, stage=["a", "b"])),
        'include { phase: TEST stage: "a" stage: "b" } accuracy_param { top_k: 5 }',
    ),
    "an enum by its constant": ("Eltwise", dict(operation=P.Eltwise.MAX), "eltwise_param { operation: MAX }"),
    "an enum of another message": (
        "Data", dict(source="x", backend=P.Data.LMDB, batch_size=4, transform_param=dict(mean_value=[1, 2, 3])),
        'transform_param { mean_value: 1 mean_value: 2 mean_value: 3 } '
        'data_param { source: "x" batch_size: 4 backend: LMDB }',
    ),
    "an enum by its name": ("Pooling", dict(pool="AVE"), "pooling_param { pool: AVE }"),
    "a Python layer": (
        "Python", dict(module="m", layer="C", param_str='{"a": 1}'),
        'python_param { module: "m" layer: "C" param_str: "{\\"a\\": 1}" }',
    ),
    "parameters of the type's own name": ("InnerProduct", dict(transpose=True), "inner_product_param { transpose: true }"),
    # pycaffe knows the messages that are called like a type; these types read another one.
    "Deconvolution": ("Deconvolution", dict(num_output=2), "convolution_param { num_output: 2 }"),
    "LSTM": ("LSTM", dict(num_output=2), "recurrent_param { num_output: 2 }"),
    "SoftmaxWithLoss": (
        "SoftmaxWithLoss", dict(axis=2, ignore_label=255, normalization=P.Loss.VALID),
        "loss_param { ignore_label: 255 normalization: VALID } softmax_param { axis: 2 }",
    ),
    "a fork's layer": ("Permute", dict(order=[0, 2, 3, 1]), "permute_param { order: 0 order: 2 order: 3 order: 1 }"),
    "a fork's type with another message": (
        "DepthwiseConvolution", dict(num_output=6, kernel_size=3), "convolution_param { num_output: 6 kernel_size: 3 }"),
    "a fork's enum": (
        "DetectionOutput", dict(num_classes=3, code_type=P.PriorBox.CENTER_SIZE),
        "detection_output_param { num_classes: 3 code_type: CENTER_SIZE }"),
    "a message of its own message, which another fork has in its layers": (
        "DetectionOutput", dict(num_classes=2, nms_param=dict(nms_threshold=0.5)),
        "detection_output_param { num_classes: 2 nms_param { nms_threshold: 0.5 } }"),
    "an empty dict": ("Convolution", dict(weight_filler={}), ""),
    "an empty list": ("Convolution", dict(pad=[]), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    type_, given, expected = VALUES[name]
    net = getattr(L, type_)(**given).to_proto()
    assert text(net) == lines(f'layer {{ name: "{type_}1" type: "{type_}" top: "{type_}1" {expected} }}')


def test_parameters_are_not_shared_between_layers() -> None:
    shared = dict(num_output=3, ntop=1)
    first, second = L.InnerProduct(**shared), L.InnerProduct(**shared)
    assert shared == dict(num_output=3, ntop=1)
    first.fn.params["num_output"] = 5
    assert second.fn.params == {"num_output": 3}


def spec() -> Any:
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 2]))
    return n


def test_names_of_a_spec() -> None:
    n = spec()
    n["a b"] = L.ReLU(n["data"])
    assert n.keys() == ["data", "a b"]
    assert n.vals() == [n.data, n["a b"]]
    assert "a b" in n and "b" not in n
    n.update("a b", dict(negative_slope=0.5))
    assert n.to_proto().layer[1].relu_param.negative_slope == 0.5
    del n["a b"]
    assert list(n) == ["data"]
    n.data = L.Input(shape=dict(dim=[3, 4]))  # replaced
    assert list(n.to_proto().layer[0].input_param.shape[0].dim) == [3, 4]


TOP = "is not a Top (type is <class "
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "tops that were not unpacked": (
        lambda: L.Silence(L.DummyData(shape=dict(dim=3), ntop=2), ntop=0), TypeError, f"Silence input 0 {TOP}'tuple'>)"),
    "a layer without tops as a bottom": (
        lambda: L.ReLU(spec().data, L.Silence(ntop=0)), TypeError,
        f"ReLU input 1 {TOP}'ilgnet_repro.pycaffe.net_spec.Function'>)",
    ),
    "a number as a bottom": (lambda: L.ReLU(3), TypeError, f"ReLU input 0 {TOP}'int'>)"),
    "ntop": (lambda: L.ReLU(ntop=-1), TypeError, "ReLU: ntop -1 is not a number of tops"),
    "a field that no message has": (
        lambda: L.Convolution(kernel=3).to_proto(), AttributeError,
        "Convolution1 (Convolution): LayerParameter has no field 'kernel'"),
    "a field with another spelling": (
        lambda: L.Convolution(weight_filler=dict(tipe="x")).to_proto(), AttributeError,
        "Convolution1 (Convolution).weight_filler: FillerParameter has no field 'tipe' (did you mean type?)"),
    "an unknown message": (
        lambda: L.Convolution(convolutional_param={}).to_proto(), AttributeError,
        "LayerParameter has no field 'convolutional_param' (did you mean convolution_param?)"),
    "several values for one": (
        lambda: L.InnerProduct(num_output=[1, 2]).to_proto(), TypeError,
        "InnerProduct1 (InnerProduct).num_output: holds one value, not 2; give one"),
    "text for a number": (lambda: L.InnerProduct(num_output="many").to_proto(), TypeError, ".num_output: cannot be 'many'"),
    "a number beyond its type": (lambda: L.InnerProduct(num_output=-1).to_proto(), TypeError, ".num_output: cannot be -1"),
    "no such name of an enum": (lambda: L.Pooling(pool="MEAN").to_proto(), TypeError, ".pool: cannot be 'MEAN'"),
    "a value for a message": (
        lambda: L.Convolution(weight_filler="xavier").to_proto(), TypeError,
        "Convolution1 (Convolution).weight_filler: is a FillerParameter; give a dict of its fields, not 'xavier'"),
    "another message": (
        lambda: L.Convolution(weight_filler=caffe_pb2.BlobShape()).to_proto(), TypeError,
        ".weight_filler: is a FillerParameter, not a BlobShape"),
    "no such top": (lambda: spec().dat, AttributeError, "NetSpec: has no top 'dat' (did you mean data?)"),
    "no such item": (lambda: spec()["x"], AttributeError, "NetSpec: has no top 'x'"),
    "no such top to change": (lambda: spec().update("x", {}), AttributeError, "NetSpec: has no top 'x'"),
    "a name for what is no top": (lambda: assigned(spec(), 3).to_proto(), TypeError, f"x: {TOP}'int'>)"),
    "to_proto of what is no top": (lambda: caffe.to_proto("x"), TypeError, f"to_proto: {TOP}'str'>)"),
    "no such message of constants": (
        lambda: P.Poling.MAX, AttributeError, "params.Poling: there is no PolingParameter (did you mean Pooling?)"),
    "no such constant": (
        lambda: P.Pooling.MAXI, AttributeError, "params.Pooling: has no constant 'MAXI' (did you mean MAX?)"),
}  # fmt: skip


def assigned(n: Any, value: Any) -> Any:
    n.x = value
    return n


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    work, kind, message = REFUSED[name]
    with pytest.raises(kind, match=re.escape(message)) as caught:
        work()
    assert isinstance(caught.value, IlgnetError)


def test_assign_proto_and_the_table_of_messages() -> None:
    layer = caffe_pb2.LayerParameter()
    assign_proto(layer, "bottom", "a")
    assign_proto(layer, "bottom", ["b", "c"])
    assign_proto(layer, "lrn_param", dict(local_size=3))
    assert format_message(layer) == (
        'bottom: "a"\nbottom: "b"\nbottom: "c"\nlrn_param {\n  local_size: 3\n}\n'
    )
    table = param_name_dict()
    assert (table["Convolution"], table["InnerProduct"], table["LRN"]) == (
        "convolution",
        "inner_product",
        "lrn",
    )


def test_every_bvlc_enum_is_a_constant() -> None:
    assert (P.Pooling.STOCHASTIC, P.Eltwise.PROD, P.LRN.WITHIN_CHANNEL, P.Loss.FULL, P.Data.LEVELDB) == (
        2,
        0,
        1,
        0,
        0,
    )
    assert (P.Filler.AVERAGE, P.HingeLoss.L2, P.Reduction.MEAN, P.SPP.MAX) == (2, 2, 4, 0)
