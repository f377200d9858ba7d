"""Weights files: every form Caffe ever wrote is read, inconsistent blobs are refused by layer and blob."""

from __future__ import annotations

import os
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from wire_bytes import blob, chunk, floats, layer, number, shape, varint

from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.errors import FormatError
from ilgnet_repro.schema import caffe_pb2

SIX = floats(0, 1, 2, 3, 4, 5)
LEGACY = number(1, 1) + number(2, 1) + number(3, 2) + number(4, 3)

# bytes of one blob -> shape, legacy, dtype; the values are 0 to 5 in each
FORMS = {
    "packed": (blob(SIX, 2, 3), (2, 3), False, "f4"),
    "shape first": (shape(2, 3) + chunk(5, SIX), (2, 3), False, "f4"),
    "shape not packed": (
        chunk(7, number(1, 2) + number(1, 3)) + chunk(5, SIX),
        (2, 3),
        False,
        "f4",
    ),
    "one by one": (
        shape(2, 3) + b"".join(b"\x2d" + floats(i) for i in range(6)),
        (2, 3),
        False,
        "f4",
    ),
    "several runs": (
        chunk(5, floats(0, 1)) + b"\x2d" + floats(2) + shape(6) + chunk(5, floats(3, 4, 5)),
        (6,),
        False,
        "f4",
    ),
    "legacy": (LEGACY + chunk(5, SIX), (1, 1, 2, 3), True, "f4"),
    "legacy beside shape": (LEGACY + blob(SIX, 6), (1, 1, 2, 3), True, "f4"),
    "double": (shape(3, 2) + chunk(8, struct.pack("<6d", *range(6))), (3, 2), False, "f8"),
    "double one by one": (
        shape(3, 2) + b"".join(b"\x41" + struct.pack("<d", i) for i in range(6)),
        (3, 2),
        False,
        "f8",
    ),
    "diff ignored": (blob(SIX, 6) + chunk(6, floats(9, 9)) + b"\x35" + floats(8) * 1, (6,), False, "f4"),
    "unknown fields": (number(99, 7) + blob(SIX, 6) + chunk(50, b"xyz"), (6,), False, "f4"),
}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "x.caffemodel"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("data", "dims", "legacy", "kind"), FORMS.values(), ids=FORMS)
def test_forms_of_blobs(tmp_path, data, dims, legacy, kind):
    model = open_caffemodel(write(tmp_path, chunk(1, "net") + layer("conv1", data)))
    (found,) = model.layers[0].blobs
    assert (model.name, model.layers[0].name, model.layers[0].type) == ("net", "conv1", "Convolution")
    assert (found.shape, found.legacy) == (dims, legacy)
    assert found.array().dtype == np.dtype("<" + kind)
    np.testing.assert_array_equal(found.array(), np.arange(6).reshape(dims))


@pytest.mark.parametrize("padding", range(4))
def test_views_at_any_address_are_writable_and_private(tmp_path, padding):
    path = write(tmp_path, chunk(1, "n" * padding) + layer("conv1", blob(SIX, 2, 3)))
    before = path.read_bytes()
    model = open_caffemodel(path)
    array = model.layers[0].blobs[0].array()
    tensor = torch.from_numpy(array)
    assert float(tensor.sum()) == 15
    assert torch.equal(tensor @ tensor.T, torch.tensor([[5.0, 14.0], [14.0, 50.0]]))
    array[0, 0] = 7
    assert model.layers[0].blobs[0].array()[0, 0] == 7  # one memory, not two
    assert path.read_bytes() == before


GENERATIONS = {
    "V2": (layer("a", blob(SIX, 6), kind="InnerProduct"), "InnerProduct"),
    "V1": (chunk(2, chunk(4, "a") + number(5, 14) + chunk(6, blob(SIX, 6))), "InnerProduct"),
    "V1 softmax loss": (chunk(2, chunk(4, "a") + number(5, 21) + chunk(6, blob(SIX, 6))), "SoftmaxWithLoss"),
    "V1 number of a fork": (
        chunk(2, chunk(4, "a") + number(5, 99) + chunk(6, blob(SIX, 6))),
        "unknown V1 type 99",
    ),
    "V0": (
        chunk(
            2, chunk(1, chunk(1, "a") + chunk(2, "innerproduct") + chunk(50, blob(SIX, 6))) + chunk(2, "x")
        ),
        "InnerProduct",
    ),
    "fields of forks": (
        chunk(100, chunk(137, b"\xff\xff") + chunk(1, "a") + chunk(7, blob(SIX, 6)) + number(8266711, 3)),
        "",
    ),
}


@pytest.mark.parametrize(("data", "kind"), GENERATIONS.values(), ids=GENERATIONS)
def test_generations(tmp_path, data, kind):
    (found,) = open_caffemodel(write(tmp_path, data)).layers
    assert (found.name, found.type) == ("a", kind)
    np.testing.assert_array_equal(found.blobs[0].array(), np.arange(6))


def test_layers_of_the_same_name_are_all_kept(tmp_path):
    model = open_caffemodel(
        write(tmp_path, layer("a", blob(SIX, 6)) + layer("a") + layer("data", kind="Data"))
    )
    assert [(found.name, len(found.blobs)) for found in model.layers] == [("a", 1), ("a", 0), ("data", 0)]


INCONSISTENT = {
    "too few values": (
        blob(bytes(4 * 9000), 64, 3, 7, 7),
        "x.caffemodel: layer conv1, blob 0: shape 64x3x7x7 needs 9,408 values, the file has 9,000; ",
    ),
    "no values": (shape(2, 3), "layer conv1, blob 0: shape 2x3 needs 6 values, the file has 0"),
    "no shape": (chunk(5, SIX), "shape () needs 1 values, the file has 6"),
    "negative": (blob(SIX, -2, -3), "shape -2x-3 has a negative dimension"),
    "overflow": (blob(SIX, 2**62, 4), "is beyond Caffe's 2,147,483,647 values per blob"),
    "overflow beside zero": (shape(0, 2**31, 2**31), "is beyond Caffe's 2,147,483,647 values per blob"),
    "half a float": (chunk(5, SIX[:-1]) + shape(6), "23 bytes of values of 4 bytes each"),
    "too many axes": (blob(floats(1), *[1] * 33), "more than 32 axes"),
    "long varint": (b"\x08" + b"\xff" * 10 + b"\x01", "a number longer than 10 bytes"),
    "dimension without end": (chunk(7, chunk(1, b"\x82")), "a number without its last byte"),
    "a float cut off": (b"\x2d\0\0", "a field of 4 bytes where 2 are left"),
    "length beyond the blob": (b"\x2a\x7f1234", "a field of 127 bytes where 4 are left"),
    "group": (b"\x2b", "wire type 3; no Caffe file contains one"),
    "end of a group": (b"\x2c", "wire type 4; no Caffe file contains one"),
    "wire type 6": (b"\x2e", "wire type 6; no Caffe file contains one"),
    "wire type 7": (b"\x2f", "wire type 7; no Caffe file contains one"),
    "field zero": (b"\x02\x00", "field number 0"),
    "in pieces": (b"\x2a\x04" + floats(1) + b"", "shape () needs 1 values"),
}
INCONSISTENT["in pieces"] = (chunk(5, floats(1)) * 65_537 + shape(65_537), "are in over 65,536 pieces")


@pytest.mark.parametrize(("data", "message"), INCONSISTENT.values(), ids=INCONSISTENT)
def test_inconsistent_blobs_are_refused(tmp_path, data, message):
    with pytest.raises(FormatError) as caught:
        open_caffemodel(write(tmp_path, layer("conv1", data)))
    assert message in str(caught.value)
    assert str(caught.value).startswith("x.caffemodel: layer conv1, blob 0: ")
    assert "\n" not in str(caught.value)


FILES = {
    "empty": (b"", "x.caffemodel: the file is empty; fetch it again"),
    "truncated": (layer("a", blob(SIX, 6))[:-3], "x.caffemodel: byte 0: a field of "),
    "huge length": (
        b"\xa2\x06" + varint(2**63),
        "a field of 9,223,372,036,854,775,808 bytes where 0 are left",
    ),
    "no layers": (chunk(1, "net"), "has no layers, so it is not a caffemodel"),
    "mean file": (LEGACY + chunk(5, SIX), "is a mean file (.binaryproto), not weights"),
    "too many layers": (b"\xa2\x06\x00" * 100_001, "over 100,000 layers"),
    "prototxt": (
        b'name: "net"\nlayer { name: "a" }\n',
        "is a net's prototxt, not weights; give the weights file here",
    ),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git-LFS pointer, not the file itself"),
    "zip": (b"PK\x03\x04....", "is a zip archive, not weights; unpack it first"),
    "pickle": (b"\x80\x02}q\x00.", "is a Python pickle, not weights; pickles are never read"),
    "npy": (b"\x93NUMPY\x01\x00", "is a NumPy array (.npy), not weights"),
    "gzip": (b"\x1f\x8b\x08", "is a gzip archive, not weights; unpack it first"),
}


@pytest.mark.parametrize(("data", "message"), FILES.values(), ids=FILES)
def test_files_that_are_not_weights(tmp_path, data, message):
    with pytest.raises(FormatError) as caught:
        open_caffemodel(write(tmp_path, data))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", ["missing", "folder"])
def test_paths_that_are_not_files(tmp_path, make):
    path = tmp_path / "x.caffemodel"
    if make == "folder":
        path.mkdir()
    with pytest.raises(FormatError, match=r"x\.caffemodel: cannot be read \(.*\); check the path"):
        open_caffemodel(path)


def test_lengths_are_checked_before_memory_is_taken(tmp_path):
    path = write(tmp_path, layer("a", shape(2**31 - 1) + b"\x2a" + varint(2**33)))
    tracemalloc.start()
    with pytest.raises(FormatError):
        open_caffemodel(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_every_recorded_file_reads_as_protobuf_reads_it(golden):
    for path in sorted((golden / "pipeline").rglob("*.caffemodel")):
        expected = caffe_pb2.NetParameter.FromString(path.read_bytes())
        model = open_caffemodel(path)
        assert [found.name for found in model.layers] == [wanted.name for wanted in expected.layer]
        for found, wanted in zip(model.layers, expected.layer, strict=True):
            for one, other in zip(found.blobs, wanted.blobs, strict=True):
                assert one.shape == tuple(other.shape.dim)
                np.testing.assert_array_equal(one.array().ravel(), np.float32(other.data))
            wanted.ClearField("blobs")
        assert model.structure() == expected


def test_structure_drops_field_numbers_of_this_package(tmp_path):
    data = chunk(100, chunk(1, "a") + chunk(20216, number(7, 1)) + chunk(20000, chunk(1, "x.y")))
    assert open_caffemodel(write(tmp_path, data)).structure().layer[0] == caffe_pb2.LayerParameter(name="a")


STRUCTURES = {
    "a fork's bytes": (
        chunk(100, chunk(1, "a") + chunk(137, b"\xff\xff")),
        "is not BVLC Caffe's (a fork's file?)",
    ),
    "not text": (chunk(100, chunk(1, "a") + chunk(3, b"\xff\xfe")), "bottom is not UTF-8 text"),
    "too large": (chunk(100, chunk(1, "a" * (9 << 20))), "a structure of over 8 MiB"),
    "required": (chunk(100, chunk(1, "a") + chunk(148, b"")), "lacks layer[0].clip_param.min"),
}


@pytest.mark.parametrize(("data", "message"), STRUCTURES.values(), ids=STRUCTURES)
def test_structures_that_cannot_be_determined(tmp_path, data, message):
    model = open_caffemodel(write(tmp_path, data))
    with pytest.raises(FormatError) as caught:
        model.structure()
    assert message in str(caught.value)
    assert "give the prototxt too" in str(caught.value)


def test_only_the_headers_of_a_large_file_are_read(tmp_path):
    """A sparse file of 3 GB without stored weights: its values are not read."""
    count = 3 * 2**28
    tail = chunk(7, chunk(1, varint(count // 2**10) + varint(2**10)))
    values = b"\x2a" + varint(count * 4)
    inner = len(values) + count * 4 + len(tail)
    head = chunk(1, "big") + chunk(2, "InnerProduct") + b"\x3a" + varint(inner) + values
    path = tmp_path / "big.caffemodel"
    with open(path, "wb") as file:
        file.write(b"\xa2\x06" + varint(len(head) - len(values) + len(values) + count * 4 + len(tail)) + head)
        file.seek(count * 4, os.SEEK_CUR)
        file.write(tail)
    held = psutil.Process().memory_info().rss
    (found,) = open_caffemodel(path).layers
    array = found.blobs[0].array()
    assert psutil.Process().memory_info().rss - held < 64 << 20  # a page of the file that is read counts too
    assert array.shape == (count // 2**10, 2**10)
    assert array[-1, -1] == 0
