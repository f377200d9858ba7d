"""Mean files: Caffe's bytes in, the same bytes out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from wire_bytes import blob, chunk, floats, number, shape

from ilgnet_repro.caffe.blob import read_blob, write_blob
from ilgnet_repro.errors import FormatError
from ilgnet_repro.schema import caffe_pb2

MEANS = {"raw64_mean.binaryproto": (1, 3, 64, 64), "png48_mean.binaryproto": (1, 3, 48, 48)}


@pytest.mark.parametrize(("name", "size"), MEANS.items(), ids=MEANS)
def test_recorded_means_are_read_and_written_byte_for_byte(golden, tmp_path, name, size):
    path = golden / "pipeline" / name
    array = read_blob(path)
    expected = np.float32(caffe_pb2.BlobProto.FromString(path.read_bytes()).data).reshape(size)
    assert (array.shape, array.dtype) == (size, np.float32)
    np.testing.assert_array_equal(array, expected)
    write_blob(tmp_path / "out", array)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    write_blob(tmp_path / "out", array[0])  # leading axes are 1
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def test_the_modern_format_is_read(tmp_path):
    (tmp_path / "m").write_bytes(blob(floats(1, 2, 3, 4, 5, 6), 3, 2))
    assert read_blob(tmp_path / "m").tolist() == [[1, 2], [3, 4], [5, 6]]


# raw_data_type and raw_data of NVIDIA's Caffe and OpenCV: little-endian bytes, as NumPy writes them.
RAW = {
    "double": (0, "<f8", np.float64), "float": (1, "<f4", np.float32), "float16": (2, "<f2", np.float32),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "stored", "dtype"), RAW.values(), ids=RAW)
def test_raw_data_is_read(tmp_path, kind, stored, dtype):
    values = np.array([[0.1, -2, 65504], [6e-8, 0, 0.5]]).astype(stored)
    (tmp_path / "m").write_bytes(shape(2, 3) + number(10, kind) + chunk(12, values.tobytes()))
    found = read_blob(tmp_path / "m")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values.astype(dtype))
    # Only float16 is converted; other values stay where they are in the file.
    assert (found.base is None) == (stored == "<f2")


def test_raw_data_without_values_is_no_second_copy(tmp_path):
    (tmp_path / "m").write_bytes(blob(floats(1, 2), 2) + number(10, 2) + chunk(12, b""))
    assert read_blob(tmp_path / "m").tolist() == [1, 2]


REFUSED = {
    "raw count": (
        shape(3) + number(10, 2) + chunk(12, bytes(8)),
        "shape 3 needs 3 values, the file has 4; fetch",
    ),
    "raw bytes": (
        shape(3) + number(10, 2) + chunk(12, bytes(7)),
        "7 bytes of values of 2 bytes each; the file is",
    ),
    "raw int": (
        shape(2) + number(10, 3) + chunk(12, bytes(8)),
        "raw_data_type is INT; only DOUBLE, FLOAT and FLOAT16 values are supported",
    ),
    "raw unknown": (
        shape(2) + number(10, 9) + chunk(12, bytes(8)),
        "raw_data_type is 9; only DOUBLE, FLOAT and",
    ),
    "raw untyped": (
        shape(2) + chunk(12, bytes(8)),
        "raw_data_type is absent; only DOUBLE, FLOAT and FLOAT16",
    ),
    "raw twice": (
        blob(floats(1, 2), 2) + number(10, 2) + chunk(12, bytes(4)),
        "has both data and raw_data; the file is damaged",
    ),
    "empty": (b"", "the file is empty; fetch it again"),
    "count": (
        number(1, 1) + number(2, 3) + number(3, 2) + number(4, 2) + chunk(5, floats(1)),
        "shape 1x3x2x2 needs 12",
    ),
    "truncated": (chunk(5, floats(1, 2))[:-2], "a field of 8 bytes where 6 are left"),
    "text": (b'name: "net"', "is a net's prototxt, not a mean file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git-LFS pointer"),
    "npy": (b"\x93NUMPY\x01\x00", "is a NumPy array (.npy), not a mean file"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, data, message):
    (tmp_path / "m.binaryproto").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_blob(tmp_path / "m.binaryproto")
    assert message in str(caught.value)
    assert str(caught.value).startswith("m.binaryproto: ")


def test_five_axes_cannot_be_written(tmp_path):
    with pytest.raises(FormatError, match="5 axes"):
        write_blob(tmp_path / "m", np.zeros((1, 2, 3, 4, 5), np.float32))
    assert not list(tmp_path.iterdir())
