"""`extract_features`: in Caffe's form, as the command, and from Python; keys kept, values by their formula."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.features import Images, extract_with
from ilgnet_repro.reading.datum import raw_datum
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.lmdb_write import LmdbWriter
from ilgnet_repro.schema import caffe_pb2 as pb

ROWS, SHAPE, OUTPUTS = 5, (3, 4, 6), 7
RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (ROWS, *SHAPE), dtype=np.uint8)
W, B = RNG.normal(size=(OUTPUTS, 72)).astype(np.float32) / 100, RNG.normal(size=OUTPUTS).astype(np.float32)
KERNEL = RNG.normal(size=(2, 3, 3, 3)).astype(np.float32) / 100
HEAD = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "a/conv"
  convolution_param { num_output: 2 kernel_size: 3 bias_term: false } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 7 } }
layer { name: "relu" type: "ReLU" bottom: "ip" top: "ip" }
layer { name: "sum" type: "Reduction" bottom: "ip" top: "sum" }"""
DATA = """name: "n" layer { name: "data" type: "Data" top: "data" top: "label"
  data_param { source: "db" batch_size: 2 backend: LMDB } transform_param { scale: 0.5 mean_value: 100 } }"""
DEPLOY = """name: "n" layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 2 dim: 3 dim: 4 dim: 6 } } }"""

PREPARED = (IMAGES.astype(np.float64) - 100) * 0.5
IP = np.maximum(PREPARED.reshape(ROWS, -1) @ W.T.astype(np.float64) + B, 0)  # the last value of the blob
CONV = np.array(
    [
        [[[(x[:, r : r + 3, c : c + 3] * k).sum() for c in range(4)] for r in range(2)] for k in KERNEL]
        for x in PREPARED
    ]
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database with keys of another tool, the same images in a list and a folder, and a net in both forms."""
    monkeypatch.chdir(tmp_path)
    writer = LmdbWriter("db")
    writer.write([(b"k%d" % n, raw_datum(x, n % 3)) for n, x in enumerate(IMAGES)])
    writer.close()
    Path("im").mkdir()
    for n, image in enumerate(IMAGES):
        cv2.imwrite(f"im/{n}.png", image.transpose(1, 2, 0))
    Path("list.txt").write_text("".join(f"{n}.png {n % 3}\n" for n in range(ROWS)))
    Path("val.prototxt").write_text(DATA + HEAD)
    Path("deploy.prototxt").write_text(DEPLOY + HEAD)
    net = pb.NetParameter(name="n")
    net.layer.add(name="conv", type="Convolution")
    net.layer.add(name="ip", type="InnerProduct")
    write_caffemodel(Path("w.caffemodel"), net, {"conv": [KERNEL], "ip": [W, B]})
    return tmp_path


def test_caffes_form(folder, capsys) -> None:
    """Six rows of three batches of two: the sixth is the first again; Datums byte for byte as Caffe writes them."""
    arguments = ["w.caffemodel", "val.prototxt", "ip,a/conv,sum", "x,y,z", "3", "lmdb"]
    assert main(["caffe", "extract_features", "-logtostderr=1", *arguments]) == 0
    rows = list(LmdbReader("x"))
    assert [row.key for row in rows] == [b"%010d" % n for n in range(6)]
    for n, row in enumerate(rows):
        datum = pb.Datum.FromString(row.value)
        np.testing.assert_allclose(datum.float_data, IP[n % ROWS], rtol=1e-4, atol=1e-4)
        stated = {field.name for field, _ in datum.ListFields()}
        assert stated == {"channels", "height", "width", "float_data"}
        assert (datum.channels, datum.height, datum.width) == (OUTPUTS, 1, 1)
        values = np.array(datum.float_data, "<f4")
        floats = b"".join(b"\x35" + value.tobytes() for value in values)  # field 6, not packed
        assert row.value == bytes([8, OUTPUTS, 16, 1, 24, 1]) + floats
    images = [row.image()[0] for row in LmdbReader("y")]
    np.testing.assert_allclose(images, [CONV[n % ROWS] for n in range(6)], rtol=1e-4, atol=1e-4)
    # A blob without axes has one row for each batch.
    assert [row.key for row in LmdbReader("z")] == [b"%010d" % n for n in range(3)]
    assert LmdbReader("z")[1].image()[0].ravel() == pytest.approx(IP[2:4].sum(), rel=1e-4)
    said = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert "Extracted features of 6 query images for feature blob ip" in said
    assert said[-1] == "Successfully extracted the features!"


CAFFE_REFUSED = {
    "unknown blob": (
        ["ip,fc9", "x,y", "1", "lmdb"],
        "Unknown feature blob name fc9 in the network val.prototxt; it has a/conv, ",
    ),
    "numbers differ": (
        ["ip", "x,y", "1", "lmdb"],
        "ip and x,y: the number of blob names and dataset names must be equal",
    ),
    "twice": (["ip,a/conv", "x,x", "1", "lmdb"], "ip,a/conv and x,x: one is named twice; name each once"),
    "leveldb": (["ip", "x", "1", "leveldb"], "DB_TYPE leveldb: only lmdb is supported; give lmdb"),
    "exists": (["ip", "im", "1", "lmdb"], "im: already exists; remove it or give another name"),
    "no GPU": (["ip", "x", "1", "lmdb", "GPU", "99"], "-gpu 99: there are "),
}


@pytest.mark.parametrize(("arguments", "message"), CAFFE_REFUSED.values(), ids=CAFFE_REFUSED)
def test_caffes_form_refused(arguments, message, folder, capsys) -> None:
    before = sorted(folder.rglob("*"))
    assert main(["caffe", "extract_features", "w.caffemodel", "val.prototxt", *arguments]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"ilgnet: {message}")
    assert sorted(folder.rglob("*")) == before


SOURCES = {  # the source, the keys, whether its rows have labels
    "database": (["db"], [b"k%d" % n for n in range(ROWS)], True),
    "list": (["list.txt", "--root", "im"], [b"%08d_%d.png" % (n, n) for n in range(ROWS)], True),
    "folder": (["im"], [b"%08d_%d.png" % (n, n) for n in range(ROWS)], False),
}
PREPARE = ["--mean-value", "100", "--scale", "0.5"]


@pytest.mark.parametrize(("source", "keys", "has_labels"), SOURCES.values(), ids=SOURCES)
def test_the_command(source, keys, has_labels, capsys) -> None:
    net = [
        "--weights",
        "w.caffemodel",
        "--prototxt",
        "deploy.prototxt",
        *PREPARE,
        "--blob",
        "ip",
        "--blob",
        "a/conv",
    ]
    for out in ("f.npz", "f.h5", "f_lmdb"):
        assert main(["features", *source, *net, "--out", out]) == 0
    assert "f_lmdb_a_conv: 5 rows" in capsys.readouterr().out
    labels = [n % 3 for n in range(ROWS)]
    texts = [key.decode() for key in keys]
    with np.load("f.npz") as arrays:
        np.testing.assert_allclose(arrays["ip"], IP, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(arrays["a/conv"], CONV, rtol=1e-4, atol=1e-4)
        assert arrays["key"].tolist() == texts
        assert sorted(arrays) == sorted(["ip", "a/conv", "key", *(["label"] if has_labels else [])])
        assert not has_labels or arrays["label"].tolist() == labels
    with h5py.File("f.h5") as file:
        np.testing.assert_allclose(file["ip"][()], IP, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(file["a/conv"][()], CONV, rtol=1e-4, atol=1e-4)
        assert [key.decode() for key in file["key"]] == texts
        assert ("label" in file) == has_labels and (not has_labels or file["label"][()].tolist() == labels)
    rows = list(LmdbReader("f_lmdb_a_conv"))
    assert [row.key for row in rows] == keys
    assert [row.datum().label for row in rows] == (labels if has_labels else [0] * ROWS)
    np.testing.assert_allclose([row.image()[0] for row in rows], CONV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("blobs", "out", "message"),
    [
        ([], "f.npz", "blobs none: name at least one, and each once"),
        (["a", "a/b"], "f.h5", "f.h5: 'a' cannot be the name of an array in it; write an LMDB"),
        (["\udce9"], "f.npz", "f.npz: '\\udce9' cannot be the name of an array in it; write an LMDB"),
        (["label"], "f.h5", "f.h5: 'label' is the name of the rows' own column; write an LMDB"),
        (["a/b", "a_b"], "f_lmdb", "f_lmdb: two blobs would be f_lmdb_a_b; extract them one at a time"),
    ],
    ids=["none", "group", "not-utf8", "own-name", "one-folder"],
)
def test_names_that_a_file_cannot_hold(blobs, out, message) -> None:
    with pytest.raises(ir.DataError) as raised:
        ir.extract_features("db", "w.caffemodel", blobs, out, prototxt="deploy.prototxt")
    assert str(raised.value) == message


def test_an_image_without_a_file_is_named_by_its_number() -> None:
    pixels = [*IMAGES[:2].transpose(0, 2, 3, 1), np.zeros((4, 6, 2), np.uint8)]
    images = Images(3, lambda: ((b"%d" % n, None, image) for n, image in enumerate(pixels)), ())
    how = ir.Preprocessing(size=(4, 6), mean_value=(100,), scale=0.5)
    with pytest.raises(IlgnetError) as error:
        extract_with(ir.load("w.caffemodel", "deploy.prototxt"), images, ["ip"], None, how)
    assert str(error.value) == "image 3: shape (4, 6, 2); give height x width, or height x width x 3"


def test_from_python() -> None:
    how = ir.Preprocessing(size=(4, 6), mean_value=(100,), scale=0.5)
    options = {"prototxt": "deploy.prototxt", "preprocessing": how}
    found = ir.extract_features("db", "w.caffemodel", "ip", batch=2, **options)
    assert isinstance(found, ir.Features)
    assert (found.rows, found.keys, found.files) == (ROWS, tuple(b"k%d" % n for n in range(ROWS)), ())
    assert found.labels.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_allclose(found.blobs["ip"], IP, rtol=1e-4, atol=1e-4)
    net = ir.load("w.caffemodel", "deploy.prototxt")
    found = ir.extract_features("im", net, ["a/conv"], "out.h5", preprocessing=how)
    assert (found.rows, found.labels, found.blobs, found.files) == (ROWS, None, {}, (Path("out.h5"),))
    # What was extracted is what an HDF5Data layer reads.
    Path("h5.txt").write_text("out.h5\n")
    Path("h5.prototxt").write_text(
        'layer { name: "d" type: "HDF5Data" top: "a/conv" hdf5_data_param { source: "h5.txt" batch_size: 5 } } '
        'layer { name: "s" type: "Softmax" bottom: "a/conv" top: "s" }'
    )
    batch = next(ir.batches(ir.load_net("h5.prototxt", input_shapes={"a/conv": (5, 2, 2, 4)})))
    np.testing.assert_allclose(batch["a/conv"].numpy(), CONV, rtol=1e-4, atol=1e-4)


REFUSED = {
    "unknown blob": (["db", "--blob", "fc9"], "fc9"),
    "no row per image": (
        ["db", "--blob", "sum"],
        "blob 'sum' of shape [] does not have one row per image; name another",
    ),
    "twice": (["db", "--blob", "ip", "--blob", "ip"], "blobs ip, ip: name at least one, and each once"),
    "no images": (
        ["empty", "--blob", "ip"],
        "empty: has no images; give an LMDB, a list or a folder of images",
    ),
    "absent": (
        ["gone", "--blob", "ip"],
        "gone: cannot be read (No such file or directory); give an image list",
    ),
    "a broken image": (
        ["broken", "--blob", "ip"],
        "broken/a.png: is not an image that can be decoded; give a JPEG or PNG",
    ),
    "its own input": (["list.txt", "--root", "im", "--blob", "ip", "--out", "w.caffemodel"], "w.caffemodel"),
    "the folder of the input": (["im", "--blob", "ip", "--out", "im"], "im"),
    "float rows": (
        ["floats", "--blob", "ip"],
        "0: is not an 8-bit image of 1, 3 or 4 channels; feed such rows through",
    ),
}


@pytest.mark.parametrize("out", ["f.npz", "f.h5", "f_lmdb"])
@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(arguments, message, out, folder, capsys) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    writer = LmdbWriter("floats")
    writer.write([(b"0", raw_datum(np.zeros(SHAPE, np.float32), 0))])
    writer.close()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    given = [] if "--out" in arguments else ["--out", out]
    net = ["--weights", "w.caffemodel", "--prototxt", "deploy.prototxt", *PREPARE]
    assert main(["features", *arguments, *given, *net]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("ilgnet: ") and message in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
