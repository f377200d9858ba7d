"""Mean files: Caffe's bytes in, the same bytes out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from wire_bytes import blob, chunk, floats, number

from ilgnet_repro.caffe.blob import read_blob, write_blob
from ilgnet_repro.errors import FormatError
from ilgnet_repro.schema import caffe_pb2

MEANS = {"raw64_mean.binaryproto": (1, 3, 64, 64), "png48_mean.binaryproto": (1, 3, 48, 48)}


@pytest.mark.parametrize(("name", "shape"), MEANS.items(), ids=MEANS)
def test_recorded_means_are_read_and_written_byte_for_byte(golden, tmp_path, name, shape):
    path = golden / "pipeline" / name
    array = read_blob(path)
    expected = np.float32(caffe_pb2.BlobProto.FromString(path.read_bytes()).data).reshape(shape)
    assert (array.shape, array.dtype) == (shape, np.float32)
    np.testing.assert_array_equal(array, expected)
    write_blob(tmp_path / "out", array)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    write_blob(tmp_path / "out", array[0])  # leading axes are 1
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def test_the_modern_format_is_read(tmp_path):
    (tmp_path / "m").write_bytes(blob(floats(1, 2, 3, 4, 5, 6), 3, 2))
    assert read_blob(tmp_path / "m").tolist() == [[1, 2], [3, 4], [5, 6]]


REFUSED = {
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
