"""Old nets and solvers are upgraded as in Caffe: each step against text written by hand."""

from __future__ import annotations

import re

import pytest

from ilgnet_repro.caffe.layer_types import FORK_V1_TYPES, SOLVER_TYPES, V0_TYPES, V1_TYPES
from ilgnet_repro.caffe.prototxt import parse_net, read_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.errors import FormatError, IlgnetError, LayerError
from ilgnet_repro.schema import caffe_pb2

V0_CONV = 'layers { layer { name: "c" type: "conv" %s } bottom: "x" top: "c" }'
V2_CONV = 'layer { name: "c" type: "Convolution" bottom: "x" top: "c" %s }'

# old text, modern text
NETS = {
    "V0 convolution": (
        V0_CONV
        % "num_output: 5 biasterm: false kernelsize: 3 pad: 1 stride: 2 group: 4 weight_filler { std: 2 } "
        "bias_filler { value: 3 } blobs_lr: 1 blobs_lr: 2 weight_decay: 3",
        V2_CONV
        % "convolution_param { num_output: 5 bias_term: false kernel_size: 3 pad: 1 stride: 2 group: 4 "
        "weight_filler { std: 2 } bias_filler { value: 3 } } param { lr_mult: 1 decay_mult: 3 } "
        "param { lr_mult: 2 }",
    ),
    "V0 inner product": (
        'layers { layer { name: "i" type: "innerproduct" num_output: 5 biasterm: true '
        "weight_filler { std: 2 } } }",
        'layer { name: "i" type: "InnerProduct" inner_product_param { num_output: 5 bias_term: true '
        "weight_filler { std: 2 } } }",
    ),
    "V0 pooling": (
        'layers { layer { name: "p" type: "pool" pool: STOCHASTIC kernelsize: 3 stride: 2 pad: 1 } }',
        'layer { name: "p" type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 3 stride: '
        "2 pad: 1 } }",
    ),
    "V0 normalisation and dropout": (
        'layers { layer { name: "n" type: "lrn" local_size: 3 alpha: 2 beta: 0.5 k: 4 } }'
        'layers { layer { name: "d" type: "dropout" dropout_ratio: 0.7 } }',
        'layer { name: "n" type: "LRN" lrn_param { local_size: 3 alpha: 2 beta: 0.5 k: 4 } }'
        'layer { name: "d" type: "Dropout" dropout_param { dropout_ratio: 0.7 } }',
    ),
    "V0 data": (
        'layers { layer { name: "d" type: "data" source: "s" scale: 2 meanfile: "m" batchsize: 3 cropsize: 4 '
        "mirror: true rand_skip: 5 } }",
        'layer { name: "d" type: "Data" data_param { source: "s" batch_size: 3 rand_skip: 5 } '
        "transform_param "
        '{ scale: 2 mean_file: "m" crop_size: 4 mirror: true } }',
    ),
    "V0 images": (
        'layers { layer { name: "d" type: "images" source: "s" batchsize: 3 shuffle_images: true '
        "new_height: 4 "
        "new_width: 5 rand_skip: 6 } }",
        'layer { name: "d" type: "ImageData" image_data_param { source: "s" batch_size: 3 shuffle: true '
        "new_height: 4 new_width: 5 rand_skip: 6 } }",
    ),
    "V0 windows": (
        'layers { layer { name: "d" type: "window_data" source: "s" batchsize: 3 det_fg_threshold: 0.1 '
        'det_bg_threshold: 0.2 det_fg_fraction: 0.3 det_context_pad: 4 det_crop_mode: "square" } }',
        'layer { name: "d" type: "WindowData" window_data_param { source: "s" batch_size: 3 '
        "fg_threshold: 0.1 "
        'bg_threshold: 0.2 fg_fraction: 0.3 context_pad: 4 crop_mode: "square" } }',
    ),
    "V0 others": (
        'layers { layer { name: "a" type: "concat" concat_dim: 2 } }'
        'layers { layer { name: "b" type: "hdf5_data" source: "s" batchsize: 3 } }'
        'layers { layer { name: "c" type: "infogain_loss" source: "s" } }'
        'layers { layer { name: "d" type: "hdf5_output" hdf5_output_param { file_name: "f" } } }'
        'layers { layer { name: "e" type: "softmax_loss" stride: 1 } }',
        'layer { name: "a" type: "Concat" concat_param { concat_dim: 2 } }'
        'layer { name: "b" type: "HDF5Data" hdf5_data_param { source: "s" batch_size: 3 } }'
        'layer { name: "c" type: "InfogainLoss" infogain_loss_param { source: "s" } }'
        'layer { name: "d" type: "HDF5Output" hdf5_output_param { file_name: "f" } }'
        'layer { name: "e" type: "SoftmaxWithLoss" }',
    ),
    "V0 padding folded": (
        'layers { layer { name: "p" type: "padding" pad: 2 } bottom: "x" top: "y" }'
        'layers { layer { name: "c" type: "conv" num_output: 5 kernelsize: 3 } bottom: "y" top: "c" }',
        V2_CONV % "convolution_param { num_output: 5 kernel_size: 3 pad: 2 }",
    ),
    "V1 shared parameters": (
        'layers { name: "c" type: CONVOLUTION bottom: "x" top: "c" param: "w" param: "b" '
        "blob_share_mode: STRICT "
        "blob_share_mode: PERMISSIVE blobs_lr: 1 blobs_lr: 2 blobs_lr: 3 weight_decay: 0 }",
        V2_CONV % 'param { name: "w" share_mode: STRICT lr_mult: 1 decay_mult: 0 } '
        'param { name: "b" share_mode: PERMISSIVE lr_mult: 2 } param { lr_mult: 3 }',
    ),
    "V1 rules and losses": (
        'layers { name: "c" type: CONVOLUTION bottom: "x" top: "c" include { phase: TEST } exclude '
        '{ stage: "a" } '
        "loss_weight: 2 loss_param { ignore_label: 3 } }",
        V2_CONV
        % 'include { phase: TEST } exclude { stage: "a" } loss_weight: 2 loss_param { ignore_label: 3 }',
    ),
    "V1 data": (
        'layers { name: "d" type: DATA data_param { source: "s" scale: 2 mean_file: "m" crop_size: '
        "3 mirror: false } }",
        'layer { name: "d" type: "Data" data_param { source: "s" } '
        'transform_param { scale: 2 mean_file: "m" crop_size: 3 mirror: false } }',
    ),
    "V1 images and windows": (
        'layers { name: "d" type: IMAGE_DATA image_data_param { crop_size: 3 } transform_param { '
        "crop_size: 5 } }"
        'layers { name: "w" type: WINDOW_DATA window_data_param { mirror: true } }',
        'layer { name: "d" type: "ImageData" image_data_param {} transform_param { crop_size: 3 } }'
        'layer { name: "w" type: "WindowData" window_data_param {} transform_param { mirror: true } }',
    ),
    "a modern data layer stays": (
        'layer { name: "d" type: "Data" data_param { crop_size: 3 } }',
        'layer { name: "d" type: "Data" data_param { crop_size: 3 } }',
    ),
    "V1 types and fields of forks": (
        'layers { name: "b" type: BN bn_param { bn_mode: INFERENCE slope_filler { value: 1 } } '
        "prelu_param {} }",
        'layer { name: "b" type: "BN" bn_param { bn_mode: INFERENCE slope_filler { value: 1 } } '
        "prelu_param {} }",
    ),
    "inputs of four dimensions": (
        'name: "n" input: "a" input: "b" input_dim: [1, 2, 3, 4, 5, 6, 7, 8] layer { name: "r" '
        'type: "ReLU" }',
        'name: "n" layer { name: "input" type: "Input" top: "a" top: "b" input_param '
        '{ shape { dim: [1, 2, 3, 4] } shape { dim: [5, 6, 7, 8] } } } layer { name: "r" type: "ReLU" }',
    ),
    "inputs with shapes": (
        'input: "a" input_shape { dim: 7 dim: 5 } layers { name: "r" type: RELU }',
        'layer { name: "input" type: "Input" top: "a" input_param { shape { dim: [7, 5] } } }'
        'layer { name: "r" type: "ReLU" }',
    ),
    "inputs by name only": (
        'input: "a" layer { name: "r" type: "ReLU" }',
        'layer { name: "input" type: "Input" top: "a" } layer { name: "r" type: "ReLU" }',
    ),
    "BatchNorm": (
        'layer { name: "b" type: "BatchNorm" param { name: "m" lr_mult: 1 } param { lr_mult: 1 } param { '
        "lr_mult: 0 } }",
        'layer { name: "b" type: "BatchNorm" param { name: "m" lr_mult: 0 decay_mult: 0 } '
        "param { lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 } }",
    ),
    "BatchNorm of two param stays": (
        'layer { name: "b" type: "BatchNorm" param { lr_mult: 0 } param { lr_mult: 0 } }',
        'layer { name: "b" type: "BatchNorm" param { lr_mult: 0 } param { lr_mult: 0 } }',
    ),
    "modern": (
        'name: "n" state { level: 2 } layer { name: "r" }',
        'name: "n" state { level: 2 } layer { name: "r" }',
    ),
}


@pytest.mark.parametrize(("old", "modern"), NETS.values(), ids=NETS)
def test_net(old, modern):
    net = parse_net(old)
    before = net.SerializeToString()
    assert upgrade_net(net) == parse_net(modern)
    assert net.SerializeToString() == before
    assert upgrade_net(upgrade_net(net)) == upgrade_net(net)


def test_notes_name_each_step():
    notes: list[str] = []
    upgrade_net(
        parse_net(
            'input: "x" input_dim: [1, 2, 3, 4]'
            'layers { layer { name: "p" type: "padding" pad: 2 } bottom: "x" top: "y" }'
            'layers { layer { name: "c" type: "conv" num_output: 5 } bottom: "y" top: "c" }'
            'layers { name: "d" type: DATA data_param { crop_size: 3 mirror: true } }'
        ),
        notes,
    )
    assert notes == [
        "2 V0 layers became V1, 1 of them padding, folded",
        "d: crop_size, mirror moved from data_param to transform_param",
        "2 V1 layers became modern ones",
        "net-level input x became the Input layer input",
    ]
    quiet: list[str] = []
    upgrade_net(parse_net('layer { name: "r" }'), quiet)
    assert quiet == []


def test_fields_of_forks_are_kept():
    net = upgrade_net(
        parse_net(
            'fog: 1 layers { layer { name: "c" type: "conv" a: 1 } b { c: 2 } }'
            'layers { name: "p" type: POOLING d: 3 pooling_param { e: 4 } bn_param { f: 5 } }'
        )
    )
    kept = [[(field.path, field.text) for field in holder.fork_field] for holder in (net, *net.layer)]
    assert kept[0] == [("fog", "1")]
    assert sorted(kept[1]) == [("a", "1"), ("b.c", "2")]
    assert sorted(kept[2]) == [("bn_param.f", "5"), ("d", "3"), ("pooling_param.e", "4")]


def test_tables_of_types_are_complete():
    assert set(V1_TYPES) == set(caffe_pb2.V1LayerParameter.LayerType.keys())
    assert set(V0_TYPES.values()) <= set(V1_TYPES)
    assert not set(FORK_V1_TYPES) & set(V1_TYPES)
    assert set(SOLVER_TYPES) == set(caffe_pb2.SolverParameter.SolverType.keys())


REFUSED = {
    "both generations": (
        'name: "n" layer { name: "a" } layers { name: "b" type: RELU }',
        "net n: has both `layer` a and `layers` b; use only one of the two",
    ),
    "no type": ('layers { name: "a" }', "a (NONE): has no type; name one, such as type: CONVOLUTION"),
    "V0 type of nobody": (
        'layers { layer { name: "a" type: "Conv" } }',
        "a (Conv): is not a V0 layer type; use accuracy, bnll,",
    ),
    "V0 field without meaning": (
        'layers { layer { name: "a" type: "relu" num_output: 5 } }',
        "a (relu): num_output does not apply to this type; remove it",
    ),
    "V0 field Caffe never moved": (
        'layers { layer { name: "a" type: "relu" new_num: 5 } }',
        "a (relu): new_num does not apply to this type; remove it",
    ),
    "V0 beside V1 fields": (
        'layers { layer { name: "a" type: "relu" } blobs_lr: 1 }',
        "a (relu): blobs_lr is outside the V0 layer; move it inside",
    ),
    "padding read by another": (
        'layers { layer { name: "p" type: "padding" pad: 2 } bottom: "x" top: "y" }'
        'layers { layer { name: "a" type: "relu" } bottom: "y" top: "a" }',
        "a (relu): reads the padding p; only a conv or pool can",
    ),
    "padding of two": (
        'layers { layer { name: "p" type: "padding" pad: 2 } bottom: "x" bottom: "z" top: "y" }'
        'layers { layer { name: "a" type: "conv" } bottom: "y" top: "a" }',
        "p (padding): a padding layer has one bottom and one top",
    ),
    "fork's field of a wrong value": (
        'layers { name: "b" type: BN bn_param { eps: SMALL } }',
        "b (BN): its fork fields:2:8: eps: SMALL is not a number; write one such as 0.5 or 1e-4",
    ),
    "dimensions": ('name: "n" input: "a" input_dim: 1', "net n: 1 input_dim for 1 input; give four each"),
    "shapes": (
        'name: "n" input: "a" input: "b" input_shape {}',
        "net n: 1 input_shape for 2 input; give one each",
    ),
    "dimensions of nothing": (
        'name: "n" input_dim: 1',
        "net n: input_dim without input; name the input it is for",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(text, message):
    with pytest.raises(IlgnetError) as caught:
        upgrade_net(parse_net(text))
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, (FormatError, LayerError))


@pytest.mark.parametrize(
    ("name", "count"), [("train", 72), ("val", 73), ("deploy", 72), ("ILGNet_v4", 87)], ids=str
)
def test_authors_nets(authors, name, count):
    net = upgrade_net(read_net(authors / f"{name}.prototxt"))
    assert len(net.layer) == count
    assert not net.layers


def test_authors_val_net_is_upgraded_as_their_caffe_did(authors):
    """Caffe printed the upgraded net at the head of its log, with the state of the phase added."""
    log = (authors / "results" / "AVA1_result.txt").read_text()
    text = log.split("Initializing net from parameters: \n")[1]
    text = re.split(r"^[IWE]\d{4} ", text, maxsplit=1, flags=re.MULTILINE)[0]
    printed = parse_net(text)
    printed.ClearField("state")
    upgraded = upgrade_net(read_net(authors / "val.prototxt"))
    # the log is of AVA1, the prototxt of AVA2: sources and batch size differ, nothing else may
    data = upgraded.layer[0]
    data.data_param.source = data.data_param.source.replace("AVA2", "AVA1")
    data.transform_param.mean_file = data.transform_param.mean_file.replace("AVA2", "AVA1")
    data.data_param.batch_size = 50
    assert len(printed.layer) > 70
    assert upgraded == printed


V1_OF_FORKS = {
    "ROI_POOLING": ("ROIPooling", "roi_pooling_param { pooled_w: 6 pooled_h: 5 spatial_scale: 0.0625 }"),
    "SMOOTH_L1_LOSS": ("SmoothL1Loss", "loss_weight: 1"),
    "PYTHON": ("Python", 'python_param { module: "m" layer: "L" }'),
    "RESHAPE": ("Reshape", "reshape_param { shape { dim: 0 dim: -1 } }"),
    "PRELU": ("PReLU", "prelu_param { channel_shared: true }"),
}


@pytest.mark.parametrize("old", V1_OF_FORKS)
def test_v1_names_of_forks(old):
    new, fields = V1_OF_FORKS[old]
    given = parse_net(f'layers {{ name: "a" type: {old} bottom: "x" bottom: "y" top: "z" {fields} }}')
    wanted = parse_net(f'layer {{ name: "a" type: "{new}" bottom: "x" bottom: "y" top: "z" {fields} }}')
    assert upgrade_net(given).layer[0] == wanted.layer[0]
