"""Weights matched with a net by layer name and shape: what fits, and what is refused by name."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.caffemodel import open_caffemodel, write_caffemodel
from ilgnet_repro.caffe.graph import Graph
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import WeightsError
from ilgnet_repro.layers.support.base import BlobSpec
from ilgnet_repro.runtime.load import load_net
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.runtime.weights import fit_weights, take_weights
from ilgnet_repro.schema import caffe_pb2 as pb


@dataclass
class Blob:
    shape: tuple
    legacy: bool = False

    def array(self) -> np.ndarray:
        return np.arange(np.prod(self.shape, dtype=int), dtype=np.float32).reshape(self.shape)


@dataclass
class Held:
    name: str
    blobs: list = field(default_factory=list)


NET = {
    "data": [],
    "conv": [BlobSpec("weight", (4, 3, 5, 2)), BlobSpec("bias", (4,))],
    "ip": [BlobSpec("weight", (7, 6))],
    "scalar": [BlobSpec("scale", ())],
}
WHOLE = [
    Held("conv", [Blob((4, 3, 5, 2)), Blob((4,))]), Held("ip", [Blob((7, 6))]), Held("scalar", [Blob(())]),
    Held("data"),
]  # fmt: skip
OLD = [
    Held("conv", [Blob((4, 3, 5, 2), legacy=True), Blob((1, 1, 1, 4), legacy=True)]),
    Held("ip", [Blob((1, 1, 7, 6), legacy=True)]), Held("scalar", [Blob((1, 1, 1, 1), legacy=True)]),
]  # fmt: skip


@pytest.mark.parametrize(
    "layers", [WHOLE, OLD, [*WHOLE, Held("extra", [Blob((9,))])]], ids=["modern", "2013", "extra"]
)
def test_matching_blobs_are_loaded_in_the_nets_shapes(layers) -> None:
    arrays = take_weights(NET, layers)
    assert {name: [a.shape for a in blobs] for name, blobs in arrays.items()} == {
        "conv": [(4, 3, 5, 2), (4,)], "ip": [(7, 6)], "scalar": [()],
    }  # fmt: skip


def test_an_extra_layer_is_reported() -> None:
    fit = fit_weights(NET, [*WHOLE, Held("extra", [Blob((9,))])])
    assert (fit.extra, fit.is_whole) == (("extra",), True)


def without(name: str) -> list:
    return [layer for layer in WHOLE if layer.name != name]


REFUSED = [
    (
        "missing", without("ip"),
        "w: holds no weights for ip; use the prototxt these weights were made with",
    ),
    (
        "renamed head", [*without("ip"), Held("ip_old", [Blob((7, 6))])],
        "w: holds no weights for ip (the file has ip_old, which the net lacks); "
        "use the prototxt these weights were made with",
    ),
    (
        "misshapen", [*without("ip"), Held("ip", [Blob((6, 7))])],
        "w: layer ip, blob 0 is 6x7 in the file and 7x6 in the net; use the prototxt these weights were made with",
    ),
    (
        "too few blobs", [*without("conv"), Held("conv", [Blob((4, 3, 5, 2))])],
        "w: layer conv has 1 blobs in the file and 2 in the net; use the prototxt these weights were made with",
    ),
    (
        "modern leading ones are not dropped", [*without("ip"), Held("ip", [Blob((1, 1, 7, 6))])],
        "w: layer ip, blob 0 is 1x1x7x6 in the file and 7x6 in the net; "
        "use the prototxt these weights were made with",
    ),
    (
        "old trailing ones are not padding", [*without("ip"), Held("ip", [Blob((7, 6, 1, 1), legacy=True)])],
        "w: layer ip, blob 0 is 7x6x1x1 in the file and 7x6 in the net; "
        "use the prototxt these weights were made with",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(layers, message) -> None:
    with pytest.raises(WeightsError) as caught:
        take_weights(NET, layers, source="w")
    assert str(caught.value) == message


def test_fine_tuning_allows_missing_layers_but_not_other_shapes() -> None:
    assert list(take_weights(NET, without("ip"), allow_missing=True)) == ["conv", "scalar"]
    with pytest.raises(WeightsError):
        take_weights(NET, [Held("ip", [Blob((6, 7))])], allow_missing=True)


@dataclass
class Values:
    """A blob of given values in a file."""

    values: np.ndarray
    legacy: bool = False

    @property
    def shape(self) -> tuple:
        return self.values.shape

    def array(self) -> np.ndarray:
        return self.values


def two_sharing(*, bias: bool = False, second: str = "") -> Graph:
    """Two dense layers, a before b, that share their weight."""
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'
    for name, bottom, mode in (("a", "x", ""), ("b", "a", second)):
        text += f"""
        layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" param {{ name: "w" {mode} }}
          inner_product_param {{ num_output: 3 bias_term: {str(bias).lower()} }} }}"""
    return build_graph(parse_net(text))


def dense(name: str, value: float, bias: float | None = None) -> Held:
    blobs = [Values(np.full((3, 3), value, np.float32))]
    return Held(name, blobs if bias is None else [*blobs, Values(np.full(3, bias, np.float32))])


# The layers of a file in its order, and the shared weight that Caffe uses in the end.
COPIES = {
    "equal to the net's order": ([dense("a", 1), dense("b", 2)], 2),
    "the sharing layer first": ([dense("b", 2), dense("a", 1)], 1),
    "one of them twice": ([dense("a", 1), dense("b", 2), dense("a", 3)], 3),
    "only the owner": ([dense("a", 1)], 1),
    "only the sharing layer": ([dense("b", 2)], 2),
}


@pytest.mark.parametrize("mode", ["", "share_mode: PERMISSIVE"], ids=["strict", "permissive"])
@pytest.mark.parametrize(("layers", "wanted"), COPIES.values(), ids=COPIES)
def test_the_last_copy_of_a_shared_blob_in_the_file_is_used(layers, wanted, mode) -> None:
    plan = plan_net(two_sharing(second=mode))
    arrays = take_weights(plan.blobs, layers, owners=plan.owners)
    assert {name: float(blobs[0].mean()) for name, blobs in arrays.items()} == {"a": wanted, "b": wanted}
    net = CaffeNet(plan.graph, arrays)
    assert net.params["a"][0] is net.params["b"][0]
    np.testing.assert_array_equal(net.params["b"][0].detach(), np.full((3, 3), wanted))


def test_unshared_blobs_stay_separate_and_are_required() -> None:
    plan = plan_net(two_sharing(bias=True))
    layers = [dense("a", 1, bias=4), dense("b", 2, bias=5)]
    arrays = take_weights(plan.blobs, layers, owners=plan.owners)
    assert [float(arrays[name][1][0]) for name in "ab"] == [4, 5]
    with pytest.raises(WeightsError) as caught:
        take_weights(plan.blobs, layers[:1], owners=plan.owners, source="f")
    assert str(caught.value) == "f: holds no weights for b; use the prototxt these weights were made with"


def test_load_net_uses_the_last_copy_in_a_file(tmp_path) -> None:
    text = two_sharing().nodes
    message = pb.NetParameter(layer=[node.layer for node in text])
    path = tmp_path / "w.caffemodel"
    write_caffemodel(
        path, message, {name: [np.full((3, 3), v, np.float32)] for name, v in (("a", 1), ("b", 2))}
    )
    assert load_net(message, path).params["a"][0][0, 0].item() == 2
    report = audit(message, open_caffemodel(path))
    assert report.fit is not None and report.fit.is_whole
    write_caffemodel(path, pb.NetParameter(layer=[text[2].layer]), {"b": [np.full((3, 3), 7, np.float32)]})
    assert load_net(message, path).params["a"][0][0, 0].item() == 7
    report = audit(message, open_caffemodel(path))
    assert report.fit is not None and report.fit.is_whole


def test_audit_names_a_layer_that_cannot_share() -> None:
    layers = [node.layer for node in two_sharing().nodes]
    layers[2].inner_product_param.num_output = 4
    assert audit(pb.NetParameter(layer=layers)).problems == (
        "b (InnerProduct): blob 0 shares 'w' with a but its shape differs (4x3 here, 3x3 there); "
        "share_mode: PERMISSIVE compares only counts",
    )


@pytest.mark.parametrize("empty", [0, 1], ids=["before", "after"])
def test_a_layer_of_the_same_name_without_blobs_is_skipped(empty) -> None:
    held = [Held("conv", [Blob((4, 3, 5, 2)), Blob((4,))])]
    held.insert(empty, Held("conv"))
    taken = take_weights({"conv": NET["conv"]}, held)
    assert [array.shape for array in taken["conv"]] == [(4, 3, 5, 2), (4,)]


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        ([(3, 4), (3, 4)], "holds no weights for ip#2"),
        ([(4, 3), (3, 4)], "layer ip, blob 0 is 3x4 in the file and 4x3 in the net"),
    ],
    ids=["one shape", "two shapes"],
)
def test_layers_of_the_same_name_are_refused(shapes, what) -> None:
    """Caffe copies both of the file into the first of the net; the remedy is a name for each."""
    specs = {name: [BlobSpec("weight", shape)] for name, shape in zip(("ip", "ip#2"), shapes, strict=True)}
    with pytest.raises(WeightsError) as raised:
        take_weights(specs, [Held("ip", [Blob(shape)]) for shape in shapes], source="net.caffemodel")
    assert str(raised.value) == (
        f"net.caffemodel: {what}; the file holds 2 layers named ip, which are found by name: give each a name of "
        "its own, in the prototxt and in the file"
    )
