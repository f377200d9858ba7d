"""`caffe.io`: messages and arrays, and images prepared for a net, against scikit-image and formulas."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from skimage.transform import resize

from ilgnet_repro import pycaffe as caffe
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.pycaffe import io
from ilgnet_repro.pycaffe.proto import caffe_pb2

RANDOM = np.random.default_rng(4)

# ------------------------------------------------------------------------------------------- messages


def filled(values: np.ndarray, **fields: Any) -> caffe_pb2.BlobProto:
    blob = caffe_pb2.BlobProto(**fields)
    blob.data.extend(values.ravel().tolist())
    return blob


NUMBERS = np.arange(24.0)
BLOBS: dict[str, tuple[caffe_pb2.BlobProto, tuple[int, ...]]] = {
    "four numbers": (filled(NUMBERS, num=1, channels=2, height=3, width=4), (1, 2, 3, 4)),
    "a shape": (filled(NUMBERS, shape=caffe_pb2.BlobShape(dim=[4, 6])), (4, 6)),
    "both: the four count": (
        filled(NUMBERS, num=1, channels=1, height=2, width=12, shape=caffe_pb2.BlobShape(dim=[24])),
        (1, 1, 2, 12),
    ),
    "doubles": (caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=[24]), double_data=NUMBERS), (24,)),
    "half precision of other Caffes": (
        caffe_pb2.BlobProto.FromString(
            caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=[24])).SerializeToString()
            + b"\x50\x02\x62\x30"
            + NUMBERS.astype("<f2").tobytes()
        ),
        (24,),
    ),
}


@pytest.mark.parametrize("name", BLOBS)
def test_a_blob_as_an_array(name: str) -> None:
    blob, shape = BLOBS[name]
    array = io.blobproto_to_array(blob)
    assert (array.shape, array.dtype) == (shape, np.float64)
    assert array.ravel().tolist() == NUMBERS.tolist()


def test_a_single_value_without_a_shape() -> None:
    array = io.blobproto_to_array(filled(np.array([123.0])))
    assert (array.shape, float(array)) == ((), 123)


def test_an_array_as_a_blob_and_back_with_its_gradient() -> None:
    array = RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
    blob = io.array_to_blobproto(array, diff=2 * array)
    assert list(blob.shape.dim) == [2, 3, 4]
    assert np.array_equal(io.blobproto_to_array(blob), array)
    assert np.array_equal(io.blobproto_to_array(blob, return_diff=True), 2 * array)


@pytest.mark.parametrize("name", ["arraylist_to_blobprotovector_str", "arraylist_to_blobprotovecor_str"])
def test_lists_of_arrays_as_bytes_and_back(name: str) -> None:
    arrays = [np.arange(6.0).reshape(2, 3), np.ones((1, 1, 1, 2))]
    data = getattr(io, name)(arrays)
    assert len(caffe_pb2.BlobProtoVector.FromString(data).blobs) == 2
    for found, expected in zip(io.blobprotovector_str_to_arraylist(data), arrays, strict=True):
        assert found.shape == expected.shape and np.array_equal(found, expected)


def test_an_image_as_a_datum_and_back() -> None:
    pixels = RANDOM.integers(0, 256, (3, 5, 4), dtype=np.uint8)
    datum = io.array_to_datum(pixels, 7)
    assert (datum.channels, datum.height, datum.width, datum.label) == (3, 5, 4, 7)
    assert (datum.data, len(datum.float_data)) == (pixels.tobytes(), 0)
    back = io.datum_to_array(datum)
    assert back.dtype == np.uint8 and np.array_equal(back, pixels)
    back[0, 0, 0] = 1  # its own memory
    floats = io.array_to_datum(pixels / 2)
    assert (len(floats.data), list(floats.float_data[:2])) == (0, [pixels[0, 0, 0] / 2, pixels[0, 0, 1] / 2])
    assert io.datum_to_array(floats).dtype == np.float64
    assert np.array_equal(io.datum_to_array(floats), pixels / 2)


def test_a_label_is_stored_only_where_it_is_given() -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    assert io.array_to_datum(image, label=0).HasField("label")
    assert not io.array_to_datum(image).HasField("label")


def test_an_encoded_datum_is_decoded_as_the_data_layers_do() -> None:
    pixels = RANDOM.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    datum = caffe_pb2.Datum(encoded=True, data=cv2.imencode(".png", pixels)[1].tobytes())
    assert np.array_equal(io.datum_to_array(datum), pixels.transpose(2, 0, 1))


# ------------------------------------------------------------------------------------------- images

SIZES = {"smaller": (7, 5), "larger": (31, 40), "one way each": (30, 5), "much smaller": (2, 3)}


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_resizing_is_scikit_images_without_smoothing(
    size: tuple[int, int], channels: int, order: int
) -> None:
    image = RANDOM.uniform(-3, 8, (17, 13, channels)).astype(np.float32)
    low, high = image.min(), image.max()
    unit = (image - low) / (high - low)
    expected = resize(unit, size, order=order, mode="constant", anti_aliasing=False) * (high - low) + low
    found = io.resize_image(image, size, interp_order=order)
    assert (found.shape, found.dtype) == ((*size, channels), np.float32)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_other_channels_keep_their_corners() -> None:
    """SciPy's zoom: the first and the last sample stay where they are, by a formula for one row."""
    image = RANDOM.uniform(0, 1, (1, 5, 4)).astype(np.float32)
    found = io.resize_image(image, (1, 9))
    at = np.linspace(0, 4, 9)
    expected = [np.interp(at, range(5), image[0, :, channel]) for channel in range(4)]
    np.testing.assert_allclose(found[0], np.transpose(expected), atol=1e-6)


def test_a_constant_image_stays_constant() -> None:
    found = io.resize_image(np.full((4, 5, 3), 0.3, np.float32), (9, 8))
    assert found.shape == (9, 8, 3) and (found == np.float32(0.3)).all()


def test_integers_are_resized_as_numbers() -> None:
    image = RANDOM.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    assert np.array_equal(io.resize_image(image, (5, 4)), io.resize_image(image.astype(np.float32), (5, 4)))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    colour = RANDOM.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    images = {
        "rgb": colour[:, :, :3],
        "alpha": colour,
        "grey": colour[:, :, 0],
        "deep": colour[:, :, 1] * np.uint16(257),
    }
    paths = {name: tmp_path / f"{name}.png" for name in images}
    for name, image in images.items():
        cv2.imwrite(str(paths[name]), image)
    return paths


@pytest.mark.parametrize("name", ["rgb", "alpha", "grey", "deep"])
def test_images_are_rgb_from_0_to_1(name: str, files: dict[str, Path]) -> None:
    raw = cv2.imread(str(files[name]), cv2.IMREAD_UNCHANGED)
    unit = raw / np.iinfo(raw.dtype).max
    rgb = np.stack([unit] * 3, axis=2) if raw.ndim == 2 else unit[:, :, 2::-1]
    found = io.load_image(str(files[name]))
    assert (found.shape, found.dtype) == ((5, 7, 3), np.float32)
    np.testing.assert_allclose(found, rgb, atol=1e-7)
    grey = io.load_image(files[name], color=False)
    assert (grey.shape, grey.dtype) == ((5, 7, 1), np.float32)
    np.testing.assert_allclose(grey[:, :, 0], rgb @ [0.2125, 0.7154, 0.0721], atol=1e-6)


def test_ten_crops_of_each_image() -> None:
    images = [RANDOM.uniform(0, 1, (9, 8, 3)) for _ in range(2)]
    crops = io.oversample(images, (4, 5))
    assert (crops.shape, crops.dtype) == ((20, 4, 5, 3), np.float32)
    for number, image in enumerate(images):
        places = [(0, 0), (0, 3), (5, 0), (5, 3), (2, 1)]  # the corners, and the centre rounded down
        for index, (top, left) in enumerate(places):
            cut = image[top : top + 4, left : left + 5].astype(np.float32)
            assert np.array_equal(crops[10 * number + index], cut)
            assert np.array_equal(crops[10 * number + 5 + index], cut[:, ::-1])


# ------------------------------------------------------------------------------------------- Transformer


def transformer(shape: tuple[int, ...] = (2, 3, 6, 5), **settings: Any) -> io.Transformer:
    made = io.Transformer({"data": shape})
    for name, value in settings.items():
        getattr(made, f"set_{name}")("data", value)
    return made


ALL = dict(
    transpose=(2, 0, 1), channel_swap=(2, 1, 0), raw_scale=255, mean=np.array([10.0, 20, 30]), input_scale=0.5
)


def test_the_steps_and_their_order() -> None:
    image = RANDOM.uniform(0, 1, (6, 5, 3)).astype(np.float32)
    found = transformer(**ALL).preprocess("data", image)
    bgr = image[:, :, ::-1].transpose(2, 0, 1)
    np.testing.assert_allclose(found, (bgr * 255 - ALL["mean"][:, None, None]) * 0.5, rtol=1e-6)
    assert found.dtype == np.float32


def test_without_settings_only_the_size_changes() -> None:
    image = RANDOM.uniform(0, 1, (6, 5, 3)).astype(np.float32)
    assert np.array_equal(transformer().preprocess("data", image), image)
    larger = RANDOM.uniform(0, 1, (9, 9, 3)).astype(np.float32)
    assert np.array_equal(transformer().preprocess("data", larger), io.resize_image(larger, (6, 5)))


def test_the_image_that_was_given_is_not_changed() -> None:
    image = np.ones((6, 5, 3), np.float32)
    prepared = transformer(transpose=(2, 0, 1), raw_scale=255).preprocess("data", image)
    assert (image == 1).all() and (prepared == 255).all()


def test_deprocess_inverts_preprocess() -> None:
    image = RANDOM.uniform(0, 1, (6, 5, 3)).astype(np.float32)
    made = transformer(**{**ALL, "channel_swap": (1, 2, 0)})
    prepared = made.preprocess("data", image)
    kept = prepared.copy()
    np.testing.assert_allclose(made.deprocess("data", prepared[None]), image, atol=1e-6)
    assert np.array_equal(prepared, kept)


MEANS = {
    "per channel": (np.array([1.0, 2, 3]), np.array([1.0, 2, 3])[:, None, None]),
    "an image": (np.arange(90.0).reshape(3, 6, 5), np.arange(90.0).reshape(3, 6, 5)),
}


@pytest.mark.parametrize("name", MEANS)
def test_means(name: str) -> None:
    given, expected = MEANS[name]
    assert np.array_equal(transformer(mean=given).mean["data"], expected)


def test_a_mean_image_of_one_channel_and_of_another_size() -> None:
    flat = np.arange(30.0).reshape(6, 5)
    one = transformer((1, 1, 6, 5), transpose=(2, 0, 1), mean=flat)
    assert np.array_equal(one.preprocess("data", np.zeros((6, 5, 1))), -flat[None])
    mean = RANDOM.uniform(50, 200, (3, 12, 10))
    found = transformer(mean=mean).mean["data"]
    expected = io.resize_image(mean.transpose(1, 2, 0), (6, 5)).transpose(2, 0, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    same = transformer(mean=np.full((3, 9, 9), 7.0)).mean["data"]
    assert same.shape == (3, 6, 5) and (same == 7).all()


def test_inputs_may_be_any_sequence() -> None:
    made = io.Transformer({"data": [2, 3, 6, 5]})
    image = RANDOM.uniform(0, 1, (6, 5, 3)).astype(np.float32)
    assert np.array_equal(made.preprocess("data", image), image)


# ------------------------------------------------------------------------------------------- refusals

EMPTY = np.zeros((4, 4, 3))
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a blob without a shape": (
        lambda: io.blobproto_to_array(filled(NUMBERS)), ValueError,
        "BlobProto: has 24 values where its shape [] needs 1; state its shape"),
    "a shape of other values": (
        lambda: io.blobproto_to_array(filled(NUMBERS, shape=caffe_pb2.BlobShape(dim=[5]))), ValueError,
        "BlobProto: has 24 values where its shape [5] needs 5"),
    "no gradient": (
        lambda: io.blobproto_to_array(filled(NUMBERS, shape=caffe_pb2.BlobShape(dim=[24])), return_diff=True), ValueError,
        "BlobProto: has 0 values where its shape [24] needs 24"),
    "a gradient of another shape": (
        lambda: io.array_to_blobproto(np.zeros((2, 3)), np.zeros((3, 2))), ValueError,
        "diff of shape [3, 2] for an array of [2, 3]"),
    "bytes of something else": (
        lambda: io.blobprotovector_str_to_arraylist(b"\xff\xff"), ValueError, "not the bytes of a BlobProtoVector"),
    "an image of two axes": (lambda: io.array_to_datum(np.zeros((2, 3))), ValueError, "Incorrect array shape."),
    "a datum without its image": (
        lambda: io.datum_to_array(caffe_pb2.Datum(channels=1, height=2, width=3)), ValueError, "Datum: has 0 values"),
    "an encoded datum that is no image": (
        lambda: io.datum_to_array(caffe_pb2.Datum(encoded=True, data=b"x")), ValueError, "cannot be decoded"),
    "no such input": (
        lambda: transformer().preprocess("dat", EMPTY), Exception,
        "dat is not one of the net inputs: ['data'] (did you mean data?)"),
    "no such input to set": (lambda: transformer().set_raw_scale("x", 1), Exception, "x is not one of the net inputs"),
    "a transpose of two axes": (
        lambda: transformer(transpose=(1, 0)), Exception,
        "Transpose order needs to have the same number of dimensions as the input."),
    "an axis twice": (lambda: transformer(transpose=(2, 2, 0)), ValueError, "does not hold each of the 3 axes once"),
    "a swap of two channels": (
        lambda: transformer(channel_swap=(1, 0)), Exception,
        "Channel swap needs to have the same number of dimensions as the input channels."),
    "a mean of two channels": (lambda: transformer(mean=np.zeros(2)), ValueError, "Mean channels incompatible with input."),
    "a mean image of one channel": (
        lambda: transformer(mean=np.zeros((9, 9))), ValueError, "Mean channels incompatible with input."),
    "a mean of four axes": (lambda: transformer(mean=np.zeros((1, 3, 6, 5))), ValueError, "Mean shape invalid"),
    "a mean with the channels last": (
        lambda: transformer(mean=np.zeros(3)).preprocess("data", np.zeros((6, 5, 3))), ValueError,
        "mean of shape (3, 1, 1) does not fit the image, (6, 5, 3); set a transpose that puts channels first"),
    "an image of two axes for a transpose": (
        lambda: transformer((1, 1, 6, 5), transpose=(2, 0, 1)).preprocess("data", np.zeros((6, 5))), ValueError,
        "array of shape (6, 5): the transpose is of 3 axes"),
    "an image of two axes to resize": (
        lambda: io.resize_image(np.zeros((4, 4)), (2, 2)), ValueError, "image of shape (4, 4)"),
    "an empty size": (lambda: io.resize_image(EMPTY, (0, 2)), ValueError, "to (0, 2)"),
    "a size beyond any memory": (
        lambda: io.resize_image(EMPTY, (10**6, 10**6)), ValueError, "has more values than a blob holds"),
    "an order of splines": (lambda: io.resize_image(EMPTY, (2, 2), 6), ValueError, "interp_order 6 is not from 0 to 5"),
    "a file that is no image": (
        lambda: io.load_image(__file__), Exception, "is Python source, not an image; give a JPEG or PNG"),
    "a missing file": (lambda: io.load_image("missing.png"), Exception, "missing.png: no such file"),
    "no images": (lambda: io.oversample([], (2, 2)), TypeError, "no images to crop"),
    "crops larger than the image": (
        lambda: io.oversample([EMPTY], (5, 2)), ValueError, "crops of 5x2 from an image of shape (4, 4, 3)"),
    "images of several sizes": (
        lambda: io.oversample([EMPTY, EMPTY[1:]], (2, 2)), ValueError,
        "image 2 of 2: shape (3, 4, 3), the first has (4, 4, 3)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    work, kind, message = REFUSED[name]
    with pytest.raises(kind, match=re.escape(message)) as caught:
        work()
    assert isinstance(caught.value, IlgnetError)


def test_the_messages_under_pycaffes_name() -> None:
    assert io.caffe_pb2 is not None
    assert caffe.proto.caffe_pb2.BlobProto is caffe_pb2.BlobProto
    assert caffe_pb2._V1LAYERPARAMETER_LAYERTYPE.values_by_name["CONVOLUTION"].number == 4
    for name in (
        "Datum",
        "NetParameter",
        "SolverParameter",
        "V1LayerParameter",
        "SolverState",
        "BlobShape",
        "TRAIN",
    ):
        assert hasattr(caffe_pb2, name)
    assert not hasattr(caffe_pb2, "Nothing")
