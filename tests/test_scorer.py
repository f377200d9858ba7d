"""`Scorer`: bytes, paths and arrays of any mode in, one record per image out."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_ssd
import torch
from PIL import Image
from small_nets import SMALL_TEXT, write_weights

import ilgnet_repro as ir
from ilgnet_repro.errors import DataError, IlgnetError
from ilgnet_repro.reading.preprocessing import Preprocessing, bgr_to_unit, resize_image
from ilgnet_repro.scored import Score
from ilgnet_repro.scoring import Scorer, open_scorer

PIXELS = np.random.default_rng(3).integers(0, 256, (21, 34, 3), np.uint8)
WHOLE = Preprocessing(size=(9, 7), mean_value=(104.0, 117.0, 123.0))
CROP = Preprocessing(size=(5, 5), path="crop", resize=(9, 7))
TEN = SMALL_TEXT.replace("num_output: 5", "num_output: 10")


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> ir.CaffeNet:
    return write_weights(tmp_path_factory.mktemp("net") / "net.caffemodel")


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str = "", **options: object) -> bytes:
    """RGB pixels as a file."""
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = value
    return exif


# EXIF's own table: where the stored first row and column are in the upright image.
UPRIGHT = {
    1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS, -1), 7: np.rot90(PIXELS, -1)[::-1], 8: np.rot90(PIXELS),
}  # fmt: skip


@pytest.mark.parametrize("how", [WHOLE, CROP], ids=["whole", "crop"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("value", UPRIGHT)
def test_exif_orientation_is_applied(net, value: int, kind: str, how: Preprocessing) -> None:
    data = encoded(PIXELS, kind, exif=turned(value), **({"lossless": True} if kind == "WEBP" else {}))
    how = how if how is WHOLE else Preprocessing(size=(7, 7), path="crop", resize=(9, 7))
    upright = np.ascontiguousarray(UPRIGHT[value][:, :, ::-1])
    read = Scorer(net, preprocessing=how).read(data)
    np.testing.assert_array_equal(read.values, how(upright))
    assert read.size == upright.shape[:2]
    raw = Scorer(net, preprocessing=how, raw_pixels=True).read(data)
    np.testing.assert_array_equal(raw.values, how(np.ascontiguousarray(PIXELS[:, :, ::-1])))


@pytest.mark.parametrize("how", [WHOLE, CROP], ids=["whole", "crop"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
def test_a_file_without_orientation_has_the_pixels_of_the_published_path(net, tmp_path, suffix, how) -> None:
    path = str(tmp_path / f"a.{suffix}")
    cv2.imwrite(path, PIXELS)
    np.testing.assert_array_equal(Scorer(net, preprocessing=how).read(path).values, how(path))


GREY = PIXELS[:, :, 0]
MODES = {
    "grey": (encoded(GREY), GREY[..., None].repeat(3, 2)),
    "grey jpeg": (encoded(np.full((8, 6), 90, np.uint8), "JPEG"), np.full((8, 6, 3), 90, np.uint8)),
    "alpha": (encoded(np.dstack([PIXELS, GREY])), PIXELS),
    "grey and alpha": (encoded(GREY, mode="LA"), GREY[..., None].repeat(3, 2)),
    "black and white": (
        encoded(
            np.uint8(GREY > 99) * 255,
            mode="1",
        ),
        None,
    ),
    "palette": (encoded(np.uint8([[[9, 99, 199]] * 5] * 4), mode="P"), None),
    "16 bit": (encoded(GREY.astype(np.uint16) * 257), GREY[..., None].repeat(3, 2)),
    "gif": (encoded(np.full((8, 6, 3), 255, np.uint8), "GIF"), np.full((8, 6, 3), 255, np.uint8)),
    "cmyk": (encoded(np.full((8, 6, 3), 255, np.uint8), "JPEG", "CMYK"), np.full((8, 6, 3), 255, np.uint8)),
}


@pytest.mark.parametrize("how", [WHOLE, CROP], ids=["whole", "crop"])
@pytest.mark.parametrize(("data", "rgb"), MODES.values(), ids=MODES)
def test_modes(net, data: bytes, rgb: np.ndarray | None, how: Preprocessing) -> None:
    found = Scorer(net, preprocessing=how).read(data).values
    if rgb is None:
        rgb = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_allclose(found, how(np.ascontiguousarray(rgb[:, :, ::-1])), atol=1e-4)


def frames(kind: str, number: int) -> bytes:
    images = [Image.fromarray(np.roll(PIXELS, shift, 0)) for shift in range(number)]
    file = io.BytesIO()
    images[0].save(
        file, kind, save_all=True, append_images=images[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    return file.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken_and_said(net, kind: str) -> None:
    scorer = Scorer(net, preprocessing=WHOLE)
    one, several = (scorer.read(frames(kind, number)) for number in (1, 3))
    np.testing.assert_allclose(several.values, one.values, atol=60 if kind == "GIF" else 0)  # palettes differ
    assert one.notes == ()
    assert several.notes == ("has several frames; the first one is taken",)


BAD = {
    "empty": (b"", "x.png: is not an image that can be decoded; give a JPEG or PNG"),
    "text": (b"hello", "x.png: is not an image that can be decoded; give a JPEG or PNG"),
    "cut": (encoded(PIXELS)[:40], "x.png: is not an image that can be decoded; give a JPEG or PNG"),
    "too large": (
        encoded(PIXELS)[:16] + b"\0\1\0\0\0\1\0\0" + encoded(PIXELS)[24:],
        "x.png: states 65536x65536 pixels, more than 178,956,970 (the variable OPENCV_IO_MAX_IMAGE_PIXELS changes the "
        "limit); shrink it",
    ),
    "float": (encoded(GREY.astype(np.float32), "TIFF"), "x.png: is not an image that can be decoded; give a JPEG or PNG"),
    "damaged gif": (b"GIF89a", "x.png: is not an image that can be decoded; give a JPEG or PNG"),
    "damaged heic": (b"\0\0\0\x18ftypheic" + bytes(40), "x.png: is a HEIC image"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD)
def test_what_is_no_image_is_one_line(net, data: bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        Scorer(net, preprocessing=WHOLE).read(data, "x.png")
    assert str(error.value).startswith(message)


def test_heic(net) -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    pixels = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(pixels)).save(file, quality=100)
    read = Scorer(net, preprocessing=WHOLE).read(file.getvalue())
    assert read.size == (16, 24)
    np.testing.assert_allclose(read.values, WHOLE(np.ascontiguousarray(pixels[:, :, ::-1])), atol=6)


def test_a_bad_image_is_a_record_and_the_others_are_scored(net, tmp_path) -> None:
    good, text = tmp_path / "a.png", tmp_path / "b.png"
    cv2.imwrite(str(good), PIXELS)
    text.write_text("no image")
    scorer = Scorer(net, preprocessing=WHOLE, batch=2)
    images = [good, text, tmp_path / "gone.png", PIXELS, ("named", good.read_bytes()), good]
    rows = list(scorer.score(images))
    assert [bool(row.error) for row in rows] == [False, True, True, False, False, False]
    assert [row.path for row in rows] == [
        str(good),
        str(text),
        str(tmp_path / "gone.png"),
        "image 4",
        "named",
        str(good),
    ]
    assert rows[2].error == f"{tmp_path / 'gone.png'}: no such file"
    with torch.inference_mode():
        expected = net(torch.from_numpy(WHOLE(str(good)))[None])["prob"][0]
    for row in (rows[0], rows[3], rows[4], rows[5]):
        torch.testing.assert_close(torch.tensor(row.outputs["prob"]), expected)
    with pytest.raises(DataError, match=r"b\.png: "):
        list(scorer.score(images, errors="raise"))


def test_a_distribution_has_mean_and_deviation(tmp_path) -> None:
    net = write_weights(tmp_path / "ten.caffemodel", TEN)
    (row,) = Scorer(net, preprocessing=WHOLE).score([PIXELS])
    values = np.array(row.outputs["prob"])
    bins = np.arange(1, 11)
    assert row.value == pytest.approx(values @ bins) and row.meaning == "mean"
    assert row.deviation == pytest.approx(np.sqrt(values @ (bins - values @ bins) ** 2))
    names = [f"class {k}" for k in range(10)]
    for options in ({"labels": names}, {"distributions": False}):
        (row,) = Scorer(net, preprocessing=WHOLE, **options).score([PIXELS])
        assert (row.value, row.deviation) == (None, None)
    (row,) = Scorer(net, preprocessing=WHOLE, labels=names, top=2).score([PIXELS])
    assert [one.index for one in row.classes] == list(np.argsort(-values)[:2])
    assert row.classes[0].label == f"class {values.argmax()}"


def test_boxes_are_in_pixels_of_the_image(tmp_path) -> None:
    prototxt, weights = small_ssd.write(tmp_path)
    net = ir.load(weights, prototxt)
    how = Preprocessing(size=(32, 40))
    images = [PIXELS, np.ascontiguousarray(PIXELS.transpose(1, 0, 2))]
    with torch.inference_mode():
        rows = net(torch.from_numpy(np.stack([how(image) for image in images])))[net.outputs[0]].reshape(
            -1, 7
        )
    scorer = Scorer(net, preprocessing=how, labels=["background", "cat", "dog"])
    found = list(scorer.score(images))
    assert scorer.detects and any(row.boxes for row in found)
    for number, (image, row) in enumerate(zip(images, found, strict=True)):
        height, width = image.shape[:2]
        own = sorted(
            (one for one in rows.tolist() if one[0] == number and one[1] >= 0), key=lambda one: -one[2]
        )
        assert [(box.index, box.score) for box in row.boxes] == [(int(one[1]), one[2]) for one in own]
        for box, one in zip(row.boxes, own, strict=True):
            assert box.label == ("background", "cat", "dog")[box.index]
            corners = (box.xmin, box.ymin, box.xmax, box.ymax)
            assert corners == pytest.approx(np.array(one[3:]) * (width, height, width, height))


def test_boxes_of_a_centre_crop_are_in_pixels_of_the_whole_image(net) -> None:
    scorer = Scorer(net, preprocessing=Preprocessing(size=(5, 5), path="crop", resize=(9, 7)))
    # The crop begins at row 2 of 9 and column 1 of 7; the image is 90 x 140.
    assert scorer._in_pixels([0, 0, 1, 0.5], (90, 140)) == pytest.approx([20, 20, 120, 45])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(20, 31, 3), (9, 7, 1), (40, 25, 4), (5, 300, 3), (1, 1, 3)])
@pytest.mark.parametrize("size", [(9, 7), (20, 31), (33, 12)])
def test_resizing_by_the_needed_samples_is_exact(dtype, shape, size) -> None:
    low, high = 3, np.iinfo(dtype).max - 5
    pixels = np.random.default_rng(1).integers(low, high, shape).astype(dtype)
    unit = bgr_to_unit(pixels)
    expected = unit if unit.shape[:2] == size else resize_image(unit, size)
    found = Preprocessing(size=size).prepare_pixels(pixels)
    np.testing.assert_array_equal(found, expected.transpose(2, 0, 1)[::-1] * np.float32(255))


def test_a_record_survives_being_kept(net) -> None:
    (row,) = Scorer(net, preprocessing=WHOLE).score([PIXELS])
    assert Score.from_json(row.to_json(), row.path) == row
    odd = Score("a", {"x": (float("inf"), 1.0)}, size=(2, 3), notes=("n",), error="e")
    assert Score.from_json(odd.to_json(), "a") == odd


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"outputs": 1}', '{"outputs": {"p": ["x"]}, "value": null, "meaning": "", "size": null}']
)  # fmt: skip
def test_a_damaged_record_is_refused(text: str) -> None:
    with pytest.raises(IlgnetError, match=r"score of a\.png: not as this package keeps it"):
        Score.from_json(text, "a.png")


def test_an_engine_of_the_package(net, tmp_path) -> None:
    (expected,) = Scorer(net, preprocessing=WHOLE).score([PIXELS])
    (row,) = open_scorer(net, engine="torch", scorer={"preprocessing": WHOLE}).score([PIXELS])
    np.testing.assert_allclose(row.outputs["prob"], expected.outputs["prob"], atol=1e-5)


def test_folders_are_read_with_their_subfolders(net, tmp_path) -> None:
    for name in ("b/c/1.png", "b/2.png", "3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), PIXELS)
    (tmp_path / "b" / "x.png").write_text("bad")
    rows = ir.score(tmp_path, net, preprocessing=WHOLE, errors="record")
    names = [str(Path(row.path).relative_to(tmp_path)) for row in rows]
    assert names == ["3.png", "b/2.png", "b/x.png", "b/c/1.png"]
    assert [bool(row.error) for row in rows] == [False, False, True, False]
