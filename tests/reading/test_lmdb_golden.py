"""Databases and means that Caffe's own tools wrote, made again from the same images and lists."""

import cv2
import numpy as np
import pytest

from ilgnet_repro.reading.image_list import ImageList
from ilgnet_repro.reading.lmdb_build import BuildOptions, build_lmdb
from ilgnet_repro.reading.lmdb_check import check_lmdb, summarise
from ilgnet_repro.reading.lmdb_read import LmdbReader, split_key
from ilgnet_repro.reading.mean import compute_mean, read_mean, write_mean

JPEG_BOUND = 2
"""How far a JPEG's pixel may lie from Caffe's where OpenCV's libjpeg is another build. Here it is 0."""

CASES = {
    "raw64": ("list.txt", BuildOptions(resize_height=64, resize_width=64)),
    "raw_native": ("list.txt", BuildOptions()),
    "png48": ("list.txt", BuildOptions(resize_height=48, resize_width=48, encoded=True, encode_type="png")),
    "encoded_native": ("list.txt", BuildOptions(encoded=True)),
    "gray32": ("list.txt", BuildOptions(resize_height=32, resize_width=32, gray=True)),
    "broken40": ("list_with_broken.txt", BuildOptions(resize_height=40, resize_width=40)),
}


@pytest.mark.parametrize("name", CASES)
def test_database_is_caffes(name, golden, tmp_path):
    list_name, options = CASES[name]
    pipeline = golden / "pipeline"
    build_lmdb(pipeline / "images", pipeline / list_name, tmp_path / "db", options)
    ours, caffes = list(LmdbReader(tmp_path / "db")), list(LmdbReader(pipeline / f"{name}_lmdb"))
    assert [row.key for row in ours] == [row.key for row in caffes]
    for own, other in zip(ours, caffes, strict=True):
        path = pipeline / "images" / split_key(own.key)[1]
        same_fields(own.datum(), other.datum())
        bound = JPEG_BOUND if path.suffix == ".jpg" else 0
        assert np.abs(own.image()[0].astype(int) - other.image()[0]).max() <= bound, own.key
        if name == "encoded_native":
            assert own.value == other.value and own.datum().data == path.read_bytes()
        if bound == 0 and not own.datum().encoded:
            assert own.value == other.value  # byte for byte, the order of the fields included


def same_fields(own, other):
    """The same fields set to equal values, except for the image, which is compared as pixels."""
    kept = [(field.name, value) for field, value in own.ListFields() if field.name != "data"]
    assert kept == [(field.name, value) for field, value in other.ListFields() if field.name != "data"]


def test_bad_rows_are_named_and_keep_their_numbers(golden, tmp_path):
    pipeline, seen = golden / "pipeline", []
    report = build_lmdb(
        f"{pipeline}/images/", pipeline / "list_with_broken.txt", tmp_path / "db", on_bad=seen.append
    )
    assert (report.rows, report.stored, report.bad) == (10, 8, tuple(seen))
    assert [row[:3] for row in seen] == [(5, "broken.jpg", 1), (6, "missing.jpg", 0)]
    assert "cannot be decoded" in seen[0].reason and "no such file" in seen[1].reason
    lines = (tmp_path / "db.bad.txt").read_text().splitlines()
    assert lines[0] == "row\tpath\tlabel\treason"
    assert [line.split("\t")[:3] for line in lines[1:]] == [
        ["5", "broken.jpg", "1"],
        ["6", "missing.jpg", "0"],
    ]
    assert check_lmdb(tmp_path / "db", images=ImageList(pipeline / "list_with_broken.txt")).faults == ()


@pytest.mark.parametrize("caffe_rounding", [False, True], ids=["exact", "as-caffe"])
@pytest.mark.parametrize("name", ["raw64", "png48"])
def test_mean_is_caffes_byte_for_byte(name, caffe_rounding, golden, tmp_path):
    pipeline = golden / "pipeline"
    mean = compute_mean(pipeline / f"{name}_lmdb", caffe_rounding=caffe_rounding)
    write_mean(tmp_path / "mean.binaryproto", mean.image)
    recorded = pipeline / f"{name}_mean.binaryproto"
    assert (tmp_path / "mean.binaryproto").read_bytes() == recorded.read_bytes()
    logged = [line.split()[-1] for line in (pipeline / f"mean_{name}.log").read_text().splitlines()]
    assert [f"{value:g}" for value in mean.channels] == logged[-3:]
    write_mean(tmp_path / "mean.npy", mean.image)
    assert np.array_equal(read_mean(tmp_path / "mean.npy"), read_mean(recorded))


def test_summary_counts_without_decoding(golden):
    pipeline = golden / "pipeline"
    raw, png = summarise(pipeline / "gray32_lmdb"), summarise(golden / "ilgnet" / "val_lmdb")
    assert (raw.rows, raw.labels, raw.kinds, raw.shapes) == (24, {0: 11, 1: 13}, {"raw": 24}, {"1x32x32": 24})
    assert (raw.first_key, raw.last_key) == ("00000000_0000.png", "00000023_0023.png")
    labels = [line.split()[1] for line in (golden / "ilgnet" / "val_list.txt").read_text().splitlines()]
    assert png.labels == {0: labels.count("0"), 1: labels.count("1")} and png.kinds == {"png": 100}


def test_native_decoding_keeps_the_files_channels(golden):
    reader = LmdbReader(golden / "pipeline" / "encoded_native_lmdb")
    channels = {row.key[9:]: row.image()[0].shape[0] for row in reader}
    assert (channels[b"gray.png"], channels[b"alpha.png"], channels[b"0000.png"]) == (1, 4, 3)
    grey = reader.get(b"00000000_0000.png").image(colour=False)[0]
    source = cv2.imread(str(golden / "pipeline" / "images" / "0000.png"), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(grey[0], source)
