"""The size an image file states is read before it is decoded; one too large is refused by name."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.reading import image_size
from ilgnet_repro.reading.datum import datum_image, encoded_datum, parse_datum
from ilgnet_repro.reading.image_size import stated_size
from ilgnet_repro.reading.images import read_image
from ilgnet_repro.reading.preprocessing import read_bgr

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tiff", "ppm", "pam", "ras", "hdr"])
def test_the_size_of_each_format_is_that_of_the_image(suffix):
    image = IMAGE.astype(np.float32) if suffix == "hdr" else IMAGE
    if not cv2.haveImageWriter(f"x.{suffix}"):
        pytest.skip(f"this OpenCV does not write {suffix}")
    data = cv2.imencode(f".{suffix}", image)[1].tobytes()
    assert stated_size(data) == (41, 30)
    for length in range(0, min(len(data), 120), 7):  # a header that is cut short states nothing, or its size
        assert stated_size(data[:length]) in (None, (41, 30))


def bombs():
    jpeg = cv2.imencode(".jpg", IMAGE)[1].tobytes()
    at = jpeg.index(b"\xff\xc0") + 5

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30001, 30000, 8, 2, 0, 0, 0)
    return {
        "jpg": jpeg[:at] + struct.pack(">HH", 30000, 30001) + jpeg[at + 4 :],
        "png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))),
        "ppm": b"P6\n# a comment\n30001 30000\n255\n" + bytes(100),
        "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30001\n" + bytes(50),
    }


@pytest.mark.parametrize("suffix", ["jpg", "png", "ppm", "hdr"])
def test_an_image_too_large_is_refused_before_it_is_decoded(suffix, tmp_path, monkeypatch):
    def decoder(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr("ilgnet_repro.opencv.imdecode", decoder, raising=False)
    data, path = bombs()[suffix], tmp_path / f"bomb.{suffix}"
    path.write_bytes(data)
    said = (
        "states 30001x30000 pixels, more than 178,956,970 "
        "(the variable OPENCV_IO_MAX_IMAGE_PIXELS changes the limit)"
    )
    for reader, message in (
        (lambda: read_image(str(path)), f"{path}: {said}; remove the row or replace the image"),
        (lambda: read_bgr(path), f"{path}: {said}; shrink it"),
        (
            lambda: datum_image(parse_datum(encoded_datum(data, 1), "row"), "row"),
            f"row: the encoded image {said}; remove the row",
        ),
    ):
        with pytest.raises(IlgnetError) as caught:
            reader()
        assert str(caught.value) == message


def test_the_limit_is_that_of_opencvs_variable(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), IMAGE)
    monkeypatch.setenv(image_size.VARIABLE, str(30 * 41 - 1))
    with pytest.raises(IlgnetError, match=r"states 41x30 pixels, more than 1,229 \("):
        read_bgr(path)
    monkeypatch.setenv(image_size.VARIABLE, str(30 * 41))
    assert np.array_equal(read_bgr(path), IMAGE)
