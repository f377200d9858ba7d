"""The audit: it continues past a fault, counts what the rest needs, and names what Caffe does not read."""

from __future__ import annotations

import pytest
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro.audit import audit, audit_files
from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.zoo.catalogue import build

# Parameters and multiply-adds per image, from the papers or counted by hand from the layer sizes.
KNOWN = [
    ("googlenet", 6_998_552, None),
    ("alexnet", 60_965_224, 724_406_816),
    ("vgg16", 138_357_544, 15_470_264_320),
]


@pytest.mark.parametrize(("name", "parameters", "work"), KNOWN, ids=[row[0] for row in KNOWN])
def test_known_nets(name: str, parameters: int, work: int | None) -> None:
    found = audit(build(name))
    assert found.problems == ()
    assert found.parameters == parameters
    if work is not None:
        assert found.multiply_adds == work


def test_multiply_adds_per_image_do_not_depend_on_the_batch() -> None:
    net = parse_net(SMALL_TEXT)
    one, seven = audit(net), audit(net, input_shapes={"data": (7, 3, 9, 7)})
    assert (one.multiply_adds, one.blob_bytes) == (seven.multiply_adds, seven.blob_bytes)
    # data 3x9x7, conv 4x7x5 twice (it is written in place), pool 4x3x2, ip and prob 5 each; 4 bytes a value.
    assert one.blob_bytes == 4 * (3 * 9 * 7 + 2 * 4 * 7 * 5 + 4 * 3 * 2 + 5 + 5)


def test_an_unread_message_is_reported_not_refused() -> None:
    text = SMALL_TEXT.replace('type: "ReLU"', 'type: "ReLU" pooling_param { kernel_size: 3 }')
    found = audit(parse_net(text))
    assert found.problems == ()
    assert (
        next(row.note for row in found.layers if row.name == "relu")
        == "pooling_param is not read by this type"
    )


def test_it_continues_past_a_fault() -> None:
    text = SMALL_TEXT.replace("kernel_size: 3 weight", "kernel_size: 30 weight").replace(
        '"Softmax"', '"Soft"'
    )
    found = audit(parse_net(text))
    assert [line.split(":")[0] for line in found.problems] == ["conv (Convolution)", "prob (Soft)"]
    assert (
        next(row.note for row in found.layers if row.name == "ip")
        == "shapes unknown: a layer before it has an error"
    )


def test_layers_that_do_not_fit_are_named(tmp_path) -> None:
    write_weights(tmp_path / "w.caffemodel")
    text = SMALL_TEXT.replace('name: "ip"', 'name: "fc"').replace("num_output: 4", "num_output: 3")
    found = audit(parse_net(text), open_caffemodel(tmp_path / "w.caffemodel"))
    assert found.problems == (
        "fc: the weights file has no blobs for it",
        "layer conv, blob 0 is 4x3x3x3 in the file and 3x3x3x3 in the net",
    )
    assert found.fit.extra == ("ip",)


def test_nothing_to_audit_is_refused() -> None:
    with pytest.raises(IlgnetError, match=r"^give a prototxt, a weights file, or both$"):
        audit_files(None, None)


SAME_NAMES = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 7 } } }
layer { name: "a" type: "Pooling" bottom: "x" top: "p" pooling_param { kernel_size: 2 pad: %d } }
layer { name: "a" type: "Pooling" bottom: "x" top: "q" pooling_param { kernel_size: 2 pad: %d } }
"""


@pytest.mark.parametrize(("pads", "faulty"), [((2, 0), (1,)), ((0, 2), (2,)), ((0, 0), ()), ((2, 2), (1, 2))])
def test_a_fault_is_that_of_one_layer_where_two_have_its_name(
    pads: tuple[int, int], faulty: tuple[int, ...]
) -> None:
    rows = audit(parse_net(SAME_NAMES % pads)).layers
    assert [row.name for row in rows] == ["in", "a", "a#2"]
    assert tuple(index for index, row in enumerate(rows) if row.problem) == faulty
    assert all(row.problem.startswith(f"{row.name} (Pooling): ") for row in rows if row.problem)
