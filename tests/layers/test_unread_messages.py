"""Parts of a layer that its type does not read: refused where Caffe stops, else named by audit and convert."""

from __future__ import annotations

import numpy as np
import pytest

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 7 } } %s }'
LABEL = 'layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 7 } } }'
HDF5 = (
    'layer { name: "op" type: "HDF5Data" top: "top" %s hdf5_data_param { source: "list.txt" batch_size: 2 } }'
)


def text(type_, params, bottoms=1):
    names = " ".join(f'bottom: "{name}"' for name in ("x", "y")[:bottoms])
    return INPUT % "" + LABEL + f'layer {{ name: "op" type: "{type_}" {names} top: "top" {params} }}'


CONV = "convolution_param { num_output: 4 kernel_size: 3 %s }"
# Messages for which Caffe's Net::Init or the layer itself aborts.
REFUSED = {
    "transform_param": (HDF5 % "transform_param { scale: 0.5 }", "does not transform data; remove transform_param"),
    "empty transform_param": (HDF5 % "transform_param { }", "does not transform data; remove transform_param"),
    "rows of no blob": (
        text("ReLU", "param { lr_mult: 1 }"), "has 1 param rows for 0 blobs; remove the extra rows",
    ),
    "rows beyond the blobs": (
        text("Convolution", CONV % "bias_term: false" + " param { lr_mult: 1 } param { lr_mult: 2 }"),
        "has 2 param rows for 1 blobs; remove the extra rows",
    ),
    "propagate_down": (
        text("Eltwise", "propagate_down: false", 2),
        "propagate_down is stated 1 times for 2 bottoms; state one per bottom",
    ),
    "loss_weight": (
        text("ReLU", "loss_weight: 1 loss_weight: 0"), "loss_weight is stated 2 times for 1 tops; state one per top",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("net", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(net, message):
    shapes = {"top": (2, 3, 6, 7)} if "HDF5" in net else None
    with pytest.raises(LayerError) as caught:
        ir.load_net(parse_net(net), input_shapes=shapes)
    type_ = next(layer.type for layer in parse_net(net).layer if layer.name == "op")
    assert str(caught.value) == f"op ({type_}): {message}"
    assert str(caught.value) in audit(parse_net(net), input_shapes=shapes).problems


TAKEN = {
    "rows for all": text("Convolution", CONV % "" + " param { lr_mult: 1 } param { lr_mult: 2 }"),
    "propagate_down": text("Eltwise", "propagate_down: false propagate_down: true", 2),
    "loss_weight": text("ReLU", "loss_weight: 2"),
    "unnamed loss": text("EuclideanLoss", "loss_weight: 2", 2).replace('top: "top"', ""),
    "hdf5": HDF5 % "",
}


@pytest.mark.parametrize("net", TAKEN.values(), ids=TAKEN)
def test_taken(net):
    shapes = {"top": (2, 3, 6, 7)} if "HDF5" in net else None
    ir.load_net(parse_net(net), input_shapes=shapes)
    found = audit(parse_net(net), input_shapes=shapes)
    assert not found.problems and not any(row.note for row in found.layers)


# Caffe ignores these and gives the same numbers; audit names them.
IDLE = {
    "of another": (text("Pooling", "pooling_param { kernel_size: 2 } lrn_param { alpha: 2 }"), "lrn_param"),
    "two": (text("ReLU", "pooling_param { pad: 1 } lrn_param { alpha: 2 }"), "lrn_param, pooling_param"),
    "scale of an Input": (INPUT.replace('"x" type', '"op" type') % "transform_param { scale: 0.5 }", "transform_param"),
    "loss_param of a Softmax": (text("Softmax", "loss_param { ignore_label: 1 }"), "loss_param"),
    "loss_param of EuclideanLoss": (text("EuclideanLoss", "loss_param { normalize: true }", 2), "loss_param"),
}  # fmt: skip


@pytest.mark.parametrize(("net", "names"), IDLE.values(), ids=IDLE)
def test_unread_messages_are_named(net, names):
    found = audit(parse_net(net))
    assert not found.problems
    assert [row.note for row in found.layers if row.name == "op"] == [f"{names} is not read by this type"]


READ = {
    "Data": 'layer { name: "op" type: "Data" top: "x" transform_param { crop_size: 5 } data_param { batch_size: 2 } }',
    "MemoryData": 'layer { name: "op" type: "MemoryData" top: "x" top: "y" transform_param { scale: 2 } '
    "memory_data_param { batch_size: 2 channels: 3 height: 4 width: 5 } }",
    "SigmoidCrossEntropyLoss": text("SigmoidCrossEntropyLoss", "loss_param { normalization: NONE }", 2),
}


@pytest.mark.parametrize("net", READ.values(), ids=READ)
def test_messages_that_are_read(net):
    assert not any("is not read" in row.note for row in audit(parse_net(net)).layers)


def test_convert_names_unread_messages(tmp_path):
    net = text("Convolution", CONV % "" + " relu_param { negative_slope: 0.1 }")
    (tmp_path / "x.prototxt").write_text(net)
    blobs = {"op": [np.ones((4, 3, 3, 3), np.float32), np.ones(4, np.float32)]}
    write_caffemodel(tmp_path / "x.caffemodel", parse_net(net), blobs)
    assert (
        "op (Convolution): relu_param is not read by this type" in ir.convert(tmp_path / "x.caffemodel").notes
    )
