"""One net of each layer type through torch.compile without a graph break, and the registry's rules."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from golden_cases import NAMES, read_case, tolerance

from ilgnet_repro.caffe.fork_layers import _KNOWN
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError, LayerError
from ilgnet_repro.layers.support.base import Layer
from ilgnet_repro.layers.support.registry import layer_types, make_layer, register_layer

# Its output has as many rows as the selector has ones: a shape known only at run time.
DATA_DEPENDENT = {"Filter"}
ONE_A_TYPE = {name.split("-")[0]: name for name in NAMES if not name.startswith("sweep")}


@pytest.mark.parametrize("type_", sorted(set(ONE_A_TYPE) - DATA_DEPENDENT))
def test_compiles_without_a_graph_break(type_: str, tmp_path) -> None:
    torch._dynamo.reset()
    case = read_case(ONE_A_TYPE[type_])
    net = case.net(tmp_path)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        found = compiled({name: torch.from_numpy(value) for name, value in case.inputs.items()})
    for blob, expected in case.outputs.items():
        np.testing.assert_allclose(found[blob].numpy(), expected, **tolerance(case.name), err_msg=blob)


def test_a_type_registered_twice_is_an_error() -> None:
    with pytest.raises(IlgnetError) as caught:

        @register_layer("ReLU")
        class Other(Layer):
            pass

    assert "layer type 'ReLU' is registered twice: by ReLU and by " in str(caught.value)
    assert layer_types()["ReLU"].__name__ == "ReLU"


@pytest.mark.parametrize(
    ("type_", "hint"),
    [
        ("relu", "did you mean ReLU?"),
        ("INNERPRODUCT", "did you mean InnerProduct?"),
        ("Wrinkle", "register a class for it (docs/layers.md)"),
        ("Smoothing", "register a class for it (docs/layers.md)"),
    ],
)
def test_an_unknown_type_is_refused(type_: str, hint: str) -> None:
    assert unknown_type(type_) == f"y ({type_}): layer type is unknown; {hint}"


@pytest.mark.parametrize(
    ("type_", "fields", "near"),
    [
        ("SigmoidCrossEntropy", "", "SigmoidCrossEntropyLoss"),
        ("SigmoidCrossEntropyLossLayer", "loss_param { ignore_label: 2 }", "SigmoidCrossEntropyLoss"),
        ("Convolutional", "convolution_param { num_output: 2 }", "Convolution"),
        ("Convolutional", "convolutional_param { filters: 2 }", ""),
        ("PoolingLayer", "convolution_param { num_output: 2 }", ""),
    ],
    ids=str,
)
def test_a_type_that_is_nearly_a_known_one_names_it(type_: str, fields: str, near: str) -> None:
    hint = f" (did you mean {near}?)" if near else ""
    message = f"y ({type_}): layer type is unknown{hint}; register a class for it (docs/layers.md)"
    assert unknown_type(type_, fields) == message


@pytest.mark.parametrize(
    ("type_", "known"),
    [
        (
            "GaussianYolov3",
            "YOLO 3's loss with a variance per coordinate (eric612/MobileNet-YOLO, "
            "src/caffe/layers/gaussian_yolov3_layer.cpp)",
        ),
        (
            "Covariance",
            "x times its transpose, over H·W as N×C²×1×1 in one fork and over C·H·W as N×C×C×1 in another, which neither "
            "the text nor the weights distinguish, or, with covariance_param, of the clips of a video "
            "(shenfalong/styletransfer, src/caffe/layers/operator/covariance_layer.cu; "
            "happynear/caffe-windows, src/caffe/layers/covariance_layer.cpp; "
            "greatmanqss/DVC, src/caffe/layers/covariance_layer.cpp)",
        ),
        (
            "FcRistretto",
            "quantizes weights and activations in each pass (pmgysel/caffe, branch ristretto, src/caffe/ristretto/layers)",
        ),
    ],
)
def test_a_known_layer_of_a_fork_is_described(type_: str, known: str) -> None:
    assert unknown_type(type_) == (
        f"y ({type_}): layer type is not implemented: {known}; register a class for it (docs/layers.md)"
    )


def test_no_described_type_is_implemented() -> None:
    assert not set(_KNOWN) & set(layer_types())


def unknown_type(type_: str, fields: str = "") -> str:
    text = (
        'layer { name: "x" type: "Input" top: "x" }'
        f'layer {{ name: "y" type: "{type_}" bottom: "x" top: "y" {fields} }}'
    )
    node = build_graph(parse_net(text)).nodes[1]
    with pytest.raises(LayerError) as caught:
        make_layer(node)
    return str(caught.value)


@pytest.mark.parametrize(
    ("type_", "fields", "meant"),
    [
        ("lSTM", "recurrent_param { num_output: 4 }", "LSTM"),
        ("lSTM", "lstm_param { num_output: 4 }", "Lstm"),  # the text recognizers' layer
        ("lSTM", "lstm_parm { num_output: 4 }", ""),
        ("rnn", "rnn_param { num_output: 4 }", ""),
        ("Softmaxwithloss", "loss_param { ignore_label: 2 }", "SoftmaxWithLoss"),
        ("softmax", "loss_param { ignore_label: 2 }", ""),
    ],
    ids=str,
)
def test_another_layer_is_never_named(type_: str, fields: str, meant: str) -> None:
    hint = f"did you mean {meant}?" if meant else "register a class for it (docs/layers.md)"
    assert unknown_type(type_, fields) == f"y ({type_}): layer type is unknown; {hint}"


def test_the_message_of_another_layer_is_never_named() -> None:
    text = (
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 } } }'
        'layer { name: "y" type: "%s" bottom: "x" top: "y" %s { slope: 1 } }'
    )
    cases = {
        ("ReLU", "realu_param"): " (did you mean relu_param?)",
        ("Softmax", "realu_param"): "",
        ("TanH", "sigmoids_param"): "",
        ("Sigmoid", "sigmoids_param"): " (did you mean sigmoid_param?)",
    }
    for (type_, field), meant in cases.items():
        with pytest.raises(LayerError) as caught:
            make_layer(build_graph(parse_net(text % (type_, field))).nodes[1])
        found = re.sub(r" \(line 1, column \d+\)", "", str(caught.value))
        what = f"field {field}.slope is unknown to Caffe and to this package"
        assert found.startswith(f"y ({type_}): {what}{meant}; ")


# The computing layers of BVLC Caffe 1.0, and the forks' layers that widely deployed nets need.
CAFFE = """AbsVal Accuracy ArgMax BNLL BatchNorm BatchReindex Bias Clip Concat ContrastiveLoss Convolution Crop Data
Deconvolution Dropout DummyData ELU Eltwise Embed EuclideanLoss Exp Filter Flatten HDF5Data HDF5Output HingeLoss
Im2col ImageData InfogainLoss InnerProduct Input LRN LSTM Log MVN MemoryData MultinomialLogisticLoss PReLU Parameter
Pooling Power Python RNN ReLU Reduction Reshape SPP Scale Sigmoid SigmoidCrossEntropyLoss Silence Slice Softmax
SoftmaxWithLoss Split Swish TanH Threshold Tile WindowData"""
FORKS = """Axpy BN DepthwiseConvolution DetectionOutput Interp Normalize PSROIPooling Permute PriorBox Proposal
ROIPooling ReLU6 ShuffleChannel SmoothL1Loss Upsample"""


def test_every_type_is_registered() -> None:
    assert sorted({*CAFFE.split(), *FORKS.split()} - set(layer_types())) == []
