"""The transform, against Caffe's recorded inputs and against its rule written out pixel by pixel."""

import numpy as np
import pytest

from ilgnet_repro.errors import DataError
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.mean import read_mean, write_mean
from ilgnet_repro.reading.preprocessing import bgr_to_unit, load_image, preprocess, resize_image
from ilgnet_repro.reading.transforms import Transform
from ilgnet_repro.schema import caffe_pb2


@pytest.fixture
def recorded(golden):
    return np.load(golden / "ilgnet" / "blobs.npz")


@pytest.fixture
def released_mean(authors):
    return read_mean(authors / "mean" / "AVA2_mean.binaryproto")


@pytest.mark.parametrize("number", [0, 1])
def test_crop_path_is_caffes(number, golden, recorded, released_mean):
    image, _ = LmdbReader(golden / "ilgnet" / "val_lmdb")[number].image()
    made = Transform(mean=released_mean, crop_size=227)(image)
    np.testing.assert_allclose(made, recorded[f"in/{number}"], rtol=0, atol=1e-4)


def test_whole_image_path_is_the_authors(golden, recorded, released_mean):
    image, _ = LmdbReader(golden / "ilgnet" / "val_lmdb")[0].image()
    unit = bgr_to_unit(image.transpose(1, 2, 0))
    made = preprocess(unit, (227, 227), released_mean.mean((1, 2)))
    np.testing.assert_allclose(made, recorded["transformer_in/0"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((40, 33), (51, 70)),
        ((91, 41), (30, 20)),
        ((256, 250), (227, 229)),
        ((10, 300), (22, 27)),
        ((1, 5), (3, 2)),
    ],
    ids=["larger", "smaller", "close", "both", "one-row"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_scikit_images(shape, size, channels):
    """As pycaffe calls it: shifted to [0, 1], order 1, mode constant; the version of Caffe's time had no smoothing."""
    transform = pytest.importorskip("skimage.transform")
    image = np.random.default_rng(0).normal(3, 7, (*shape, channels)).astype(np.float32)
    low, high = image.min(), image.max()
    unit = (image - low) / (high - low)
    resized = transform.resize(unit, size, order=1, mode="constant", anti_aliasing=False)
    np.testing.assert_allclose(resize_image(image, size), resized * (high - low) + low, rtol=0, atol=1e-5)


def test_resize_of_one_value_and_of_nothing():
    assert (resize_image(np.full((3, 5, 3), 0.25), (7, 4)) == 0.25).all()
    with pytest.raises(DataError, match="none of them 0"):
        resize_image(np.zeros((0, 5, 3)), (7, 4))


@pytest.mark.parametrize(
    ("name", "shape"), [("gray.png", (103, 77, 3)), ("alpha.png", (50, 117, 3)), ("0001.jpg", (81, 108, 3))]
)
def test_load_image_is_rgb_in_zero_to_one(name, shape, golden):
    io = pytest.importorskip("skimage.io")
    path = golden / "pipeline" / "images" / name
    image = io.imread(path)
    expected = np.atleast_3d(image)[:, :, :3] / 255 * np.ones(3)
    assert load_image(path).shape == shape and load_image(path).dtype == np.float32
    np.testing.assert_allclose(load_image(path), expected, rtol=0, atol=1e-7)
    with pytest.raises(DataError, match="not an image that can be decoded"):
        load_image(golden / "pipeline" / "list.txt")


def slow(image, transform, mirror, top, left):
    """Caffe's loop: the mean belongs to the source pixel, the mirror to the target pixel."""
    channels, height, width = image.shape
    high, wide = (transform.crop_size,) * 2 if transform.crop_size else (height, width)
    result = np.empty((channels, high, wide), np.float32)
    for c, h, w in np.ndindex(channels, high, wide):
        mean = np.float32(0)
        if transform.mean is not None:
            mean = transform.mean[c, top + h, left + w]
        elif transform.mean_values:
            mean = np.float32(transform.mean_values[c % len(transform.mean_values)])
        value = (np.float32(image[c, top + h, left + w]) - mean) * np.float32(transform.scale)
        result[c, h, wide - 1 - w if mirror else w] = value
    return result


MEAN = np.random.default_rng(5).uniform(90, 130, (3, 13, 17)).astype(np.float32)
TRANSFORMS = {
    "nothing": Transform(),
    "scale": Transform(scale=0.0125),
    "centre-crop": Transform(crop_size=8, mean=MEAN, scale=0.5),
    "mean-values": Transform(mean_values=(104, 117.5, 123), crop_size=12),
    "one-value": Transform(mean_values=(128,), scale=1 / 128),
    "random-crop": Transform("TRAIN", crop_size=8, mean=MEAN),
    "mirror-at-test": Transform("TEST", mirror=True, mean=MEAN, crop_size=6),
    "all": Transform("TRAIN", 0.02, 9, True, MEAN),
    "crop-of-all": Transform("TRAIN", crop_size=13, mean_values=(1, 2, 3)),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_batch_and_single_are_caffes_rule(transform, dtype):
    images = np.random.default_rng(1).integers(0, 256, (7, 3, 13, 17)).astype(dtype)
    rng, again, drawing = (np.random.default_rng(2) for _ in range(3))
    batch = transform.batch(images, rng)
    single = np.stack([transform(image, again) for image in images])
    draws = transform.draw((13, 17), 7, drawing)
    rule = np.stack([slow(p, transform, *draw) for p, *draw in zip(images, *draws, strict=True)])
    assert batch.dtype == np.float32
    assert np.array_equal(batch, single) and np.array_equal(batch, rule)


def test_random_crops_cover_the_range_and_the_centre_is_caffes():
    draw = Transform("TRAIN", crop_size=8, mirror=True).draw((10, 13), 4000, np.random.default_rng(0))
    assert set(draw.mirror) == {0, 1} and set(draw.top) == {0, 1, 2} and set(draw.left) == set(range(6))
    assert np.bincount(draw.left).min() > 500 and 0.45 < draw.mirror.mean() < 0.55
    centre = Transform(crop_size=8).draw((11, 13))
    assert (centre.top[0], centre.left[0], centre.mirror[0]) == (1, 2, 0)


def test_from_param(tmp_path):
    write_mean(tmp_path / "mean.binaryproto", MEAN)
    param = caffe_pb2.TransformationParameter(
        scale=0.5, mirror=True, crop_size=5, mean_file="mean.binaryproto", force_gray=True
    )
    made = Transform.from_param(param, "TRAIN", tmp_path)
    assert (made.phase, made.scale, made.mirror, made.crop_size, made.colour) == (
        "TRAIN",
        0.5,
        True,
        5,
        False,
    )
    assert np.array_equal(made.mean, MEAN)
    empty = Transform.from_param(caffe_pb2.TransformationParameter(), "TEST")
    assert (empty.scale, empty.crop_size, empty.mean, empty.mean_values, empty.colour) == (
        1,
        0,
        None,
        (),
        None,
    )


PICTURE = np.zeros((3, 13, 17), np.uint8)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: Transform(crop_size=14)(PICTURE), "crop_size 14: image is 13x17; make it larger"),
        (lambda: Transform(mean=MEAN[:, 1:])(PICTURE), "mean_file: is 3x12x17 and the image 3x13x17"),
        (
            lambda: Transform(mean_values=(1, 2))(PICTURE),
            "mean_value: 2 values for 3 channels; give one, or 3",
        ),
        (lambda: Transform(mean=MEAN, mean_values=(1,)), "mean_file and mean_value cannot both be given"),
        (lambda: Transform(mean=MEAN[0]), "a mean image is "),
        (lambda: Transform(mirror=True)(PICTURE), "needs a seeded numpy generator; give rng"),
        (lambda: Transform("VAL"), "phase 'VAL': is TRAIN or TEST"),
        (lambda: Transform()(PICTURE[0]), "a transform takes "),
        (
            lambda: Transform.from_param(
                caffe_pb2.TransformationParameter(force_color=True, force_gray=True), "TEST"
            ),
            "force_color and force_gray cannot both be set",
        ),
        (lambda: preprocess(np.zeros((4, 5, 3)), (2, 2), (1, 2)), "give three numbers, blue first"),
    ],
    ids=[
        "crop",
        "mean-size",
        "values",
        "both",
        "flat-mean",
        "no-rng",
        "phase",
        "flat",
        "forces",
        "channel-mean",
    ],
)
def test_refused(use, message):
    with pytest.raises(DataError, match=message):
        use()
