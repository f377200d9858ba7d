"""Layers and blobs that a weights file lacks: shared ones, filled ones, and those for which the load is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.caffemodel import open_caffemodel, write_caffemodel
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.hdf5_model import write_hdf5_model
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError, WeightsError
from ilgnet_repro.runtime.load import load_net
from ilgnet_repro.schema import caffe_pb2 as pb
from ilgnet_repro.train.nets import build_net

HEAD = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }'
CONV = 'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 2 kernel_size: 1 } }'
RNG = np.random.default_rng(3)
HELD = {"c": [RNG.standard_normal((2, 3, 1, 1)).astype("f"), np.array([0.5, -2], "f")]}


def op(kind: str, param: str) -> str:
    return f'{HEAD} {CONV} layer {{ name: "op" type: "{kind}" bottom: "c" top: "y" {param} }}'


@pytest.fixture(params=["caffemodel", "h5"])
def make(request, tmp_path):
    """Write a file that holds the given blobs and none of the other layers, in either form."""

    def write(blobs, *, names=()):
        net = pb.NetParameter(layer=[pb.LayerParameter(name=name, type="Any") for name in (*blobs, *names)])
        path = tmp_path / f"w.{request.param}"
        (write_hdf5_model if request.param == "h5" else write_caffemodel)(path, net, blobs)
        return path

    return write


def bilinear(size: int) -> np.ndarray:
    """Caffe's BilinearFiller, value by value."""
    factor = (size + 1) // 2
    centre = (2 * factor - 1 - factor % 2) / (2.0 * factor)
    return np.array(
        [
            [(1 - abs(x / factor - centre)) * (1 - abs(y / factor - centre)) for x in range(size)]
            for y in range(size)
        ]
    )


# The text of a layer that the file lacks, the blobs that Caffe fills it with, and how that is reported.
FILLED = {
    "bilinear": (
        op("Deconvolution", """convolution_param { num_output: 2 group: 2 kernel_size: 4 stride: 2 pad: 1 bias_term: false
           weight_filler { type: "bilinear" } }"""),
        [np.broadcast_to(bilinear(4), (2, 1, 4, 4))], "bilinear",
    ),
    "bilinear and a bias of nothing": (
        op("Deconvolution", """convolution_param { num_output: 2 group: 2 kernel_size: 3 stride: 2
           weight_filler { type: "bilinear" } }"""),
        [np.broadcast_to(bilinear(3), (2, 1, 3, 3)), np.zeros(2)], "bilinear, constant 0",
    ),
    "constant": (
        op("InnerProduct", """inner_product_param { num_output: 7 weight_filler { type: "constant" value: 0.25 }
           bias_filler { value: -1 } }"""),
        [np.full((7, 40), 0.25), np.full(7, -1)], "constant 0.25, constant -1",
    ),
    "a Scale by Caffe's default": (op("Scale", "scale_param { bias_term: true }"), [np.ones(2), np.zeros(2)],
                                   "constant 1, constant 0"),
    "a PReLU by Caffe's default": (op("PReLU", ""), [np.full(2, 0.25)], "constant 0.25"),
    "a Bias": (op("Bias", "bias_param { filler { value: 3 } }"), [np.full(2, 3)], "constant 3"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "blobs", "how"), FILLED.values(), ids=FILLED)
def test_a_layer_with_constant_fillers_is_filled_and_reported(text, blobs, how, make) -> None:
    path = make(HELD)
    net = load_net(parse_net(text), path)
    assert len(net.params["op"]) == len(blobs)
    for found, wanted in zip(net.params["op"], blobs, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-6)
    np.testing.assert_array_equal(net.params["c"][0].detach(), HELD["c"][0])
    assert net.about.notes == (f"op: not in the weights file; filled as its text says ({how})",)
    found = audit(parse_net(text), open_caffemodel(path))
    assert found.fit is not None and (found.fit.is_whole, dict(found.fit.filled)) == (True, {"op": how})
    assert not load_net(
        parse_net(text), make({**HELD, "op": [np.asarray(b, "f") for b in blobs]})
    ).about.notes


GAUSSIAN = """inner_product_param { num_output: 7 weight_filler { type: "gaussian" std: 0.01 } }"""
REFUSED = {
    "a random filler": (
        op("InnerProduct", GAUSSIAN), (),
        "holds no weights for op; use the prototxt these weights were made with, or have them drawn with "
        "allow_missing=['op']",
    ),
    "a random bias": (
        op("InnerProduct", """inner_product_param { num_output: 7 weight_filler { value: 1 }
           bias_filler { type: "uniform" } }"""),
        (),
        "holds no weights for op; use the prototxt these weights were made with, or have them drawn with "
        "allow_missing=['op']",
    ),
    "no filler stated, which would be zeros": (
        op("InnerProduct", "inner_product_param { num_output: 7 }"), (),
        "holds no weights for op; use the prototxt these weights were made with",
    ),
    "statistics": (op("BatchNorm", ""), (), "holds no weights for op; use the prototxt these weights were made with"),
    "a layer that the file names without blobs": (
        op("PReLU", ""), ("op",),
        "holds no weights for op; use the prototxt these weights were made with, or have them drawn with "
        "allow_missing=['op']",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "names", "message"), REFUSED.values(), ids=REFUSED)
def test_any_other_missing_layer_is_refused_by_name(text, names, message, make) -> None:
    path = make(HELD, names=names)
    with pytest.raises(WeightsError) as caught:
        load_net(parse_net(text), path)
    assert str(caught.value) == f"{path}: {message}"
    net = load_net(parse_net(text), path, allow_missing=["op"], seed=5)
    assert net.about.notes == ("op: not in the weights file; drawn by its fillers, as allowed",)
    again = load_net(parse_net(text), path, allow_missing=("op",), seed=5)
    for one, other in zip(net.params["op"], again.params["op"], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ("op", "allow_missing is 'op'; give the names of layers, as ['fc8']"),
        (
            ["Op"],
            "allow_missing: 'Op' is not a layer of the net with weights (did you mean op?); it has c, op",
        ),
        (["x"], "allow_missing: 'x' is not a layer of the net with weights; it has c, op"),
        (None, "allow_missing is None; give the names of layers, as ['fc8']"),
    ],
    ids=["a text", "another case", "a layer without weights", "none"],
)
def test_allow_missing_names_layers(allowed, message, make) -> None:
    with pytest.raises(WeightsError) as caught:
        load_net(parse_net(op("InnerProduct", GAUSSIAN)), make(HELD), allow_missing=allowed)
    assert str(caught.value) == message


def test_allow_missing_does_not_cover_shapes_and_needs_a_file(make) -> None:
    text = op("InnerProduct", GAUSSIAN)
    wrong = {**HELD, "op": [np.ones((6, 40), "f"), np.ones(6, "f")]}
    with pytest.raises(WeightsError, match="layer op, blob 0 is 6x40 in the file and 7x40 in the net"):
        load_net(parse_net(text), make(wrong), allow_missing=["op"])
    with pytest.raises(WeightsError, match="allow_missing goes with a weights file"):
        load_net(parse_net(text), allow_missing=["op"])


def two_sharing(filler: str = "", rows: str = 'param { name: "w" }') -> str:
    """Two dense layers that share the blobs that their rows name: the weight, not the biases."""
    ip = f"inner_product_param {{ num_output: 3 {filler} }}"
    return (
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'
        f'layer {{ name: "a" type: "InnerProduct" bottom: "x" top: "a" {rows} {ip} }}'
        f'layer {{ name: "b" type: "InnerProduct" bottom: "a" top: "b" {rows} {ip} }}'
    )


W, ONE, TWO = np.arange(9, dtype="f").reshape(3, 3), np.array([1, 2, 3], "f"), np.array([4, 5, 6], "f")


def hdf5(path, layers):
    h5py = pytest.importorskip("h5py", reason="h5py is an extra of the package")
    with h5py.File(path, "w") as file:
        for name, blobs in layers.items():
            group = file.create_group(f"data/{name}")
            for index, blob in blobs.items():
                group[str(index)] = blob
    return path


# The text, the layers of a file as Caffe's ToHDF5 leaves them, and each layer's blobs.
SHARED = {
    "one of two blobs": (two_sharing(), {"a": {0: W, 1: ONE}, "b": {1: TWO}}, [W, ONE, W, TWO]),
    "the second blob": (
        two_sharing(rows='param { } param { name: "w" }'),
        {"a": {0: W, 1: ONE}, "b": {0: W + 1}}, [W, ONE, W + 1, ONE],
    ),
    "all of them": (
        two_sharing(rows='param { name: "w" } param { name: "v" }'),
        {"a": {0: W, 1: ONE}, "b": {}}, [W, ONE, W, ONE],
    ),
    "held by the layer that shares it": (
        two_sharing(),
        {"a": {0: W, 1: ONE}, "b": {0: W + 2, 1: TWO}}, [W + 2, ONE, W + 2, TWO]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "layers", "wanted"), SHARED.values(), ids=SHARED)
def test_hdf5_stores_a_shared_blob_with_its_owner(text, layers, wanted, tmp_path) -> None:
    path = hdf5(tmp_path / "w.h5", layers)
    for net in (
        load_net(parse_net(text), path),
        build_net(build_graph(parse_net(text)), {}, [path], seed=1),
    ):
        found = [blob.detach().numpy() for name in "ab" for blob in net.params[name]]
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    report = audit(parse_net(text), open_caffemodel(path))
    assert report.fit is not None and report.fit.is_whole and not report.fit.filled


NOT_SHARED = {
    "a blob of its own": (
        {"a": {0: W, 1: ONE}, "b": {}}, "holds no weights for b",
    ),
    "the first of its own": (
        {"a": {1: ONE}, "b": {0: W, 1: TWO}}, "layer a, blob 0 is not in the file, and no other layer of the net owns it",
    ),
    "the owner's second": (
        {"a": {0: W}, "b": {1: TWO}}, "layer a, blob 1 is not in the file, and no other layer of the net owns it",
    ),
    "one too many": ({"a": {0: W, 1: ONE, 2: TWO}, "b": {1: TWO}}, "layer a has 3 blobs in the file and 2 in the net"),
    "no owner": ({"b": {1: TWO, 0: W}}, "holds no weights for a"),
}  # fmt: skip


@pytest.mark.parametrize(("layers", "message"), NOT_SHARED.values(), ids=NOT_SHARED)
def test_hdf5_holds_all_other_blobs(layers, message, tmp_path) -> None:
    path = hdf5(tmp_path / "w.h5", layers)
    with pytest.raises(WeightsError) as caught:
        load_net(parse_net(two_sharing()), path)
    assert str(caught.value) == f"{path}: {message}; use the prototxt these weights were made with"


def test_a_shared_blob_stored_with_another_layer_is_loaded_into_a_drawn_owner(tmp_path) -> None:
    text = two_sharing('bias_filler { type: "uniform" }')
    path = tmp_path / "w.caffemodel"
    write_caffemodel(path, pb.NetParameter(layer=[pb.LayerParameter(name="b", type="Any")]), {"b": [W, TWO]})
    for net in (
        load_net(parse_net(text), path, allow_missing=["a"]),
        build_net(build_graph(parse_net(text)), {}, [path], seed=1),
    ):
        np.testing.assert_array_equal(net.params["a"][0].detach(), W)
        np.testing.assert_array_equal(net.params["b"][1].detach(), TWO)


def test_with_several_files_the_last_copy_of_a_shared_blob_is_used(tmp_path) -> None:
    for name, factor in (("a", 1), ("b", 2)):
        message = pb.NetParameter(layer=[pb.LayerParameter(name=name, type="Any")])
        write_caffemodel(tmp_path / f"{name}.caffemodel", message, {name: [W * factor, ONE]})
    graph = build_graph(parse_net(two_sharing()))
    for order, factor in (("ab", 2), ("ba", 1)):
        net = build_net(graph, {}, [tmp_path / f"{name}.caffemodel" for name in order], seed=1)
        np.testing.assert_array_equal(net.params["a"][0].detach(), W * factor)


def test_filled_layers_do_not_exceed_the_memory(make) -> None:
    text = op("InnerProduct", "inner_product_param { num_output: 50000000 weight_filler { value: 1 } }")
    layers = "".join(
        f'layer {{ name: "op{i}" type: "InnerProduct" bottom: "c" top: "y{i}" inner_product_param {{ '
        "num_output: 50000000 weight_filler { value: 1 } } }"
        for i in range(300)
    )
    path = make(HELD)
    with pytest.raises(IlgnetError, match=r"the blobs that it lacks need [\d,.]+ GiB and the machine has"):
        load_net(parse_net(text + layers), path)
