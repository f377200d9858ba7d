"""Weights written as Caffe's `Net::ToHDF5` writes them, and refusals of invalid or expensive writes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.caffe.hdf5_model import write_hdf5_model
from ilgnet_repro.errors import FormatError, IlgnetError, WeightsError
from ilgnet_repro.schema import caffe_pb2 as pb

h5py = pytest.importorskip("h5py", reason="h5py is an extra of the package")

RNG = np.random.default_rng(11)
BLOBS = {
    "conv": [RNG.random((5, 3, 2, 4), np.float32), RNG.random(5, np.float32)],
    "a/b": [RNG.random((2, 3)), np.float32(7)],
    "bn": [np.zeros((0,), np.float32)],
}


def net_of(*names: str) -> pb.NetParameter:
    return pb.NetParameter(layer=[pb.LayerParameter(name=name, type="Any") for name in names])


NET = net_of("data", *BLOBS)


def test_a_group_per_layer_and_a_float32_array_per_blob(tmp_path) -> None:
    path = tmp_path / "x.caffemodel.h5"
    write_hdf5_model(path, NET, BLOBS)
    with h5py.File(path) as file:
        assert list(file) == ["data"] and sorted(file["data"]) == ["a", "bn", "conv", "data"]
        assert len(file["data/data"]) == 0
        for name, blobs in BLOBS.items():
            assert sorted(file["data"][name]) == [str(index) for index in range(len(blobs))]
            for index, blob in enumerate(blobs):
                stored = file["data"][name][str(index)]
                assert (stored.dtype, stored.shape) == (np.dtype("<f4"), np.shape(blob))
                assert stored.chunks is None and stored.compression is None and not stored.attrs
    found = {layer.name: [blob.array() for blob in layer.blobs] for layer in open_caffemodel(path).layers}
    assert set(found) == {"data", *BLOBS}
    for name, blobs in BLOBS.items():
        for one, other in zip(found[name], blobs, strict=True):
            np.testing.assert_array_equal(one, np.asarray(other, np.float32))


def test_the_same_net_gives_the_same_bytes_in_the_format_of_caffes_time(tmp_path) -> None:
    for name in ("one.h5", "other.h5"):
        write_hdf5_model(tmp_path / name, NET, BLOBS)
    data = (tmp_path / "one.h5").read_bytes()
    assert data == (tmp_path / "other.h5").read_bytes()
    assert data[8] == 0  # superblock of HDF5 1.0 to 1.6
    with h5py.File(tmp_path / "one.h5") as file:
        for item in (file["data"], file["data/conv"], file["data/conv/0"]):
            assert h5py.h5o.get_info(item.id).mtime == 0


def test_blobs_owned_by_another_layer_are_not_stored(tmp_path) -> None:
    path = tmp_path / "x.h5"
    blobs = {"a": BLOBS["conv"], "b": BLOBS["conv"]}
    write_hdf5_model(path, net_of("a", "b"), blobs, owners={("b", 0)})
    with h5py.File(path) as file:
        assert (sorted(file["data/a"]), sorted(file["data/b"])) == (["0", "1"], ["1"])
    assert [layer.numbers for layer in open_caffemodel(path).layers] == [(0, 1), (1,)]


NAMES = {
    "unknown": (("a",), {"b": 1}, "x.h5: weights for layer b, which is not in the net; rename or remove them"),
    "twice": (("a", "a"), {"a": 1}, "x.h5: two layers are named a; weights are stored by layer name, so give each "
              "layer a unique name"),
    "none": (("",), {"": 1}, "x.h5: layer '': not a valid name in HDF5; rename it"),
    "two slashes": (("a//b",), {}, "x.h5: layer 'a//b': not a valid name in HDF5; rename it"),
    "a dot": (("a/./b",), {}, "x.h5: layer 'a/./b': not a valid name in HDF5; rename it"),
    "where a blob is": (("a/0/c", "a"), {"a": 1}, "x.h5: layer 'a/0/c': has the HDF5 path of a blob of layer 'a'; "
                        "rename one of the two"),
}  # fmt: skip


@pytest.mark.parametrize(("layers", "counts", "message"), NAMES.values(), ids=NAMES)
def test_names_that_cannot_be_stored_leave_no_file(layers, counts, message, tmp_path) -> None:
    blobs = {name: [np.ones(3, np.float32)] * count for name, count in counts.items()}
    with pytest.raises(WeightsError) as caught:
        write_hdf5_model(tmp_path / "x.h5", net_of(*layers), blobs)
    assert str(caught.value) == message and not list(tmp_path.iterdir())


def test_a_refused_write_leaves_the_existing_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(b"before")
    with pytest.raises((WeightsError, IlgnetError)):
        write_hdf5_model(path, net_of("a"), {"a": [np.array(["text"])]})
    with pytest.raises(IlgnetError, match="cannot be written"):
        write_hdf5_model(tmp_path / "no" / "x.h5", net_of("a"), {})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        WeightsError, match=r"x.h5: HDF5 weights need h5py; pip install 'ilgnet_repro\[hdf5\]'"
    ):
        write_hdf5_model(path, net_of("a"), {})
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def hostile(path, make):
    with h5py.File(path, "w") as file:
        root = file.create_group("data")
        root.create_group("ok")["0"] = np.ones(3, np.float32)
        make(file, root)
    return path


def virtual(file, root):
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource("secret.h5", "data", (3,))
    root.create_virtual_dataset("a/0", layout)


def external(file, root):
    root.create_dataset("a/0", (3,), np.float32, external=[("secret.bin", 0, 12)])


def link(target):
    def make(file, root):
        root.create_group("a")["0"] = target

    return make


def group_again(file, root):
    root["a"] = root["ok"]


def cycle(file, root):
    root["ok"]["a"] = root


def deep(file, root):
    root.create_group("/".join("a" * 70))


def huge(shape, **options):
    def make(file, root):
        root.create_dataset("a/0", shape, np.float32, **options)

    return make


HOSTILE = {
    "virtual": (virtual, "layer a, blob 0: not in one piece"),
    "external storage": (external, "layer a, blob 0: not in one piece"),
    "external link": (link(h5py.ExternalLink("secret.h5", "/x")), "/data/a/0: a link, which is not followed; put the"),
    "soft link": (link(h5py.SoftLink("/data/ok/0")), "/data/a/0: a link, which is not followed; put the array itself"),
    "a group at two places": (group_again, "/data/ok: a group with two paths"),
    "a group in itself": (cycle, "/data/ok/a: a group with two paths"),
    "groups without end": (deep, "over 100,000 entries or 64 levels of groups; not a net"),
    "never written": (huge((1 << 30,)), "layer a, blob 0: its 1,073,741,824 values were never written; fetch it again"),
    "more than Caffe's limit": (huge((1 << 40,)), "layer a, blob 0: shape 1099511627776 is beyond Caffe's 2,147,483,647"),
    "compressed": (huge((1 << 30,), chunks=(1 << 20,), compression="gzip"), "layer a, blob 0: its 1,073,741,824 values"),
    "not an index": (lambda file, root: root.create_dataset("a/01", data=np.ones(3, "f")), "/data/a/01: not LAYER/INDEX"),
    "no layer": (lambda file, root: root.create_dataset("0", data=np.ones(3, "f")), "/data/0: not LAYER/INDEX"),
    "a type": (lambda file, root: root.__setitem__("a", np.dtype("f4")), "/data/a: neither a group nor an array"),
    "text": (lambda file, root: root.create_dataset("a/0", data="text"), "layer a, blob 0: numbers of type object"),
    "half": (lambda file, root: root.create_dataset("a/0", data=np.ones(3, "f2")), "numbers of type float16"),
    "big-endian": (lambda file, root: root.create_dataset("a/0", data=np.ones(3, ">f4")), "numbers of type >f4"),
    "nothing": (lambda file, root: root.create_dataset("a/0", data=h5py.Empty("f4")), "layer a, blob 0: holds no array"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE)
def test_refused_by_name_before_memory_is_taken(make, message, tmp_path) -> None:
    path = hostile(tmp_path / "x.h5", make)
    with pytest.raises(FormatError) as caught:
        open_caffemodel(path)
    assert str(caught.value).startswith("x.h5: ") and message in str(caught.value)
