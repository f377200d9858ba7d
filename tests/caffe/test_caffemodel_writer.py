"""Written files equal Caffe's byte for byte, and are complete or absent."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from ilgnet_repro.caffe.caffemodel import open_caffemodel, write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import FormatError, IlgnetError, WeightsError
from ilgnet_repro.schema import caffe_pb2


def arrays_of(model):
    return {layer.name: [blob.array() for blob in layer.blobs] for layer in model.layers if layer.blobs}


def test_recorded_files_are_written_byte_for_byte(golden, tmp_path):
    paths = sorted((golden / "pipeline").rglob("*.caffemodel"))
    assert any(path.name == "tiny_init.caffemodel" for path in paths)
    for path in paths:
        model = open_caffemodel(path)
        write_caffemodel(tmp_path / "out.caffemodel", model.structure(), arrays_of(model))
        assert (tmp_path / "out.caffemodel").read_bytes() == path.read_bytes(), path.name


def test_recorded_layers_are_written_byte_for_byte(golden, tmp_path):
    for path in sorted((golden / "layers").glob("*.npz")):
        with np.load(path) as case:
            if "caffemodel" not in case:
                continue
            data = case["caffemodel"].tobytes()
        (tmp_path / "in").write_bytes(data)
        model = open_caffemodel(tmp_path / "in")
        write_caffemodel(tmp_path / "out", model.structure(), arrays_of(model))
        assert (tmp_path / "out").read_bytes() == data, path.name


TEXT = """name: "n" input: "data" force_backward: true
layer { name: "c" type: "Convolution" bottom: "data" top: "c" loss_weight: 2 param { lr_mult: 3 }
  include { phase: TEST } convolution_param { num_output: 5 hole: 2 weird: 1 } bn_param { frozen: true } }
layer { name: "r" type: "ReLU" bottom: "c" top: "c" unknown { a: 1 } }"""


def net_and_arrays():
    rng = np.random.default_rng(3)
    return parse_net(TEXT), {"c": [rng.random((5, 2, 3, 4), np.float32), rng.random(5, np.float32)]}


def test_fields_of_forks_are_not_written_and_the_net_is_unchanged(tmp_path):
    net, arrays = net_and_arrays()
    before = net.SerializeToString()
    write_caffemodel(tmp_path / "x", net, arrays)
    assert net.SerializeToString() == before
    read = caffe_pb2.NetParameter.FromString((tmp_path / "x").read_bytes())
    assert (tmp_path / "x").read_bytes() == read.SerializeToString(deterministic=True)
    assert not read.layer[0].HasField("bn_param") and not read.layer[1].fork_field
    assert not read.layer[0].convolution_param.HasField("hole")
    assert read.force_backward and read.layer[0].param[0].lr_mult == 3
    np.testing.assert_array_equal(np.float32(read.layer[0].blobs[0].data), arrays["c"][0].ravel())
    write_caffemodel(tmp_path / "y", net, arrays)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


ARRAYS = {
    "float64": (np.arange(6.0).reshape(2, 3), np.float64),
    "float16": (np.arange(6, dtype=np.float16).reshape(3, 2), np.float32),
    "integers": (np.arange(6).reshape(3, 2), np.float32),
    "transposed": (np.arange(6, dtype=np.float32).reshape(3, 2).T, np.float32),
    "big-endian": (np.arange(6, dtype=">f4"), np.float32),
    "scalar": (np.float32(4), np.float32),
    "empty": (np.zeros((0, 3), np.float32), np.float32),
}


@pytest.mark.parametrize(("array", "kind"), ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("legacy", [False, True], ids=["modern", "legacy"])
def test_arrays_of_any_kind(tmp_path, array, kind, legacy):
    net, _ = net_and_arrays()
    write_caffemodel(tmp_path / "x", net, {"c": [array]}, legacy=legacy)
    data = (tmp_path / "x").read_bytes()
    read = caffe_pb2.NetParameter.FromString(data)
    assert read.SerializeToString(deterministic=True) == data
    if array.size == 0 and kind == np.float64:
        return
    (blob,) = open_caffemodel(tmp_path / "x").layers[0].blobs
    wanted = (1,) * (4 - np.ndim(array)) + np.shape(array) if legacy else np.shape(array)
    assert (blob.shape, blob.legacy) == (wanted, legacy)
    assert blob.array().dtype == kind
    np.testing.assert_array_equal(blob.array(), np.asarray(array).reshape(wanted))


def test_v1_nets_and_blobs_already_in_the_net(tmp_path):
    net = caffe_pb2.NetParameter(name="n")
    for name in ("a", "b"):
        layer = net.layers.add(name=name, type=caffe_pb2.V1LayerParameter.INNER_PRODUCT, blobs_lr=[1])
        layer.blobs.add(shape=caffe_pb2.BlobShape(dim=[2]), data=[1, 2])
    write_caffemodel(tmp_path / "x", net, {"b": [np.float32([3, 4, 5])]})
    model = open_caffemodel(tmp_path / "x")
    assert [layer.blobs[0].array().tolist() for layer in model.layers] == [[1, 2], [3, 4, 5]]
    data = (tmp_path / "x").read_bytes()
    assert caffe_pb2.NetParameter.FromString(data).SerializeToString(deterministic=True) == data


def refuse(tmp_path, net, arrays, message, error: type[IlgnetError], **options):
    target = tmp_path / "x.caffemodel"
    target.write_bytes(b"old")
    with pytest.raises(error) as caught:
        write_caffemodel(target, net, arrays, **options)
    assert message in str(caught.value)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.caffemodel"]


def test_refuses_weights_of_an_unknown_layer(tmp_path):
    net, arrays = net_and_arrays()
    message = "x.caffemodel: weights for layer fc7, which is not in the net; rename or remove them"
    refuse(tmp_path, net, arrays | {"fc7": []}, message, WeightsError)


def test_refuses_five_axes_in_the_legacy_form(tmp_path):
    net, _ = net_and_arrays()
    arrays = {"c": [np.zeros((1, 1, 1, 1, 2), np.float32)]}
    message = "layer c, blob 0: 5 axes; the num/channels/height/width form has 4, reshape it"
    refuse(tmp_path, net, arrays, message, FormatError, legacy=True)


def test_refuses_a_net_without_a_required_field(tmp_path):
    net = caffe_pb2.NetParameter()
    net.layer.add(name="c").clip_param.min = 0
    refuse(tmp_path, net, {}, "the net lacks layer[0].clip_param.max; set it", WeightsError)


def test_no_second_copy_of_the_weights(tmp_path):
    net, _ = net_and_arrays()
    array = np.zeros((1000, 8000), np.float32)
    tracemalloc.start()
    write_caffemodel(tmp_path / "x", net, {"c": [array]})
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


TWICE = 'layer {{ name: "{0}" type: "InnerProduct" {1} }} layer {{ name: "{0}" type: "{2}" {3} }}'


@pytest.mark.parametrize(
    ("name", "type_", "what"),
    [
        ("ip", "InnerProduct", "are named ip"),
        ("ip", "ReLU", "are named ip"),
        ("", "InnerProduct", "have no name"),
    ],
)
def test_two_layers_of_the_same_name_are_refused(name, type_, what, tmp_path):
    """The blobs of one would be written to both, and a reader could not distinguish them."""
    net = parse_net(TWICE.format(name, "", type_, ""))
    with pytest.raises(WeightsError) as raised:
        write_caffemodel(tmp_path / "a.caffemodel", net, {name: [np.ones((2, 3), np.float32)]})
    assert str(raised.value) == (
        f"a.caffemodel: two layers {what}; weights are stored by layer name, so give each layer a unique name"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("first", "second", "blobs"),
    [
        ("include { phase: TRAIN }", "include { phase: TEST }", [1, 1]),
        ("", "exclude { phase: TEST }", [1, 1]),
    ],
)
def test_one_layer_per_phase_may_have_the_same_name(first, second, blobs, tmp_path):
    net = parse_net(TWICE.format("ip", first, "InnerProduct", second))
    write_caffemodel(tmp_path / "a.caffemodel", net, {"ip": [np.ones((2, 3), np.float32)]})
    assert [len(layer.blobs) for layer in open_caffemodel(tmp_path / "a.caffemodel").layers] == blobs


def test_names_without_weights_may_repeat(tmp_path):
    net = parse_net(TWICE.format("relu", "", "ReLU", "") + 'layer { name: "ip" type: "InnerProduct" }')
    write_caffemodel(tmp_path / "a.caffemodel", net, {"ip": [np.ones((2, 3), np.float32)], "relu": []})
    assert [len(layer.blobs) for layer in open_caffemodel(tmp_path / "a.caffemodel").layers] == [0, 0, 1]
