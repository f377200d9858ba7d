"""What is stored with a net's weights, and how images become its input blob."""

import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from ilgnet_repro.about import About, Source, about_net
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import DataError, FormatError, IlgnetError
from ilgnet_repro.known import Identity, ScoreAt, find_model
from ilgnet_repro.prepare_images import prepare
from ilgnet_repro.reading.preprocessing import Preprocessing
from ilgnet_repro.zoo import googlenet, squeezenet, ssd

SHA = "ab" * 32
WHOLE = Preprocessing((9, 7), mean_value=(10.0, 20.0, 30.5), scale=0.5)
FULL = About(
    preprocessing=WHOLE,
    assumed=True,
    source=Source("x.caffemodel", 1_234_567, SHA, "ava1-weights", "GoogleNet"),
    labels=("low", "high"),
    score=ScoreAt("prob", 1, "high"),
    model="ava1-weights",
)

# ----------------------------------------------------------------------------------------- metadata

METADATA = {
    "nothing": (About(), {}),
    "a source that was not hashed": (
        About(source=Source("x.caffemodel", 12)),
        {"source": '{"file": "x.caffemodel", "bytes": 12, "sha256": null, "release": null, "net": ""}'},
    ),
    "preprocessing": (
        About(preprocessing=WHOLE),
        {
            "preprocessing": '{"size": [9, 7], "path": "whole", "resize": null, "order": "BGR", '
            '"mean_value": [10.0, 20.0, 30.5], "scale": 0.5, "has_mean_image": false}'
        },
    ),
    "labels": (About(labels=("a", "b")), {"about": '{"labels": ["a", "b"]}'}),
    "a score": (
        About(score=ScoreAt("prob", 1, "high")),
        {"about": '{"score": {"output": "prob", "index": 1, "meaning": "high"}}'},
    ),
    "an assumed model": (About(model="m", assumed=True), {"about": '{"model": "m", "assumed": true}'}),
}


def _plain(about):
    """An About as values that compare: Preprocessing does not."""
    how = about.preprocessing
    return how and how.to_json(), about.assumed, about.source, about.labels, about.score, about.model


@pytest.mark.parametrize(("about", "metadata"), METADATA.values(), ids=METADATA)
def test_metadata_round_trip(about, metadata):
    assert about.to_metadata() == metadata
    assert _plain(About.from_metadata(metadata)) == _plain(about)


def test_all_metadata_at_once_round_trip():
    metadata = FULL.to_metadata()
    assert list(metadata) == ["source", "preprocessing", "about"]
    assert _plain(About.from_metadata({"other": "x", **metadata})) == _plain(FULL)


def test_a_file_of_an_earlier_version_is_read():
    source = {"file": "a.caffemodel", "bytes": 5, "sha256": SHA, "release": "ava2-weights", "net": "G"}
    about = About.from_metadata({"source": json.dumps(source), "preprocessing": WHOLE.to_json()})
    assert about.source == Source("a.caffemodel", 5, SHA, "ava2-weights", "G")
    assert (about.labels, about.score, about.model, about.assumed) == ((), None, "", False)


def test_a_mean_image_is_kept_apart():
    mean = np.arange(3 * 12 * 10, dtype=np.float32).reshape(3, 12, 10)
    how = Preprocessing((9, 9), path="crop", resize=(12, 10), mean_image=mean)
    back = About.from_metadata(About(preprocessing=how).to_metadata(), mean).preprocessing
    assert (back.resize, back.mean_image is mean) == ((12, 10), True)


AGAIN = "not as this package writes it; convert the weights again"
WRONG_METADATA = {
    "about that is no JSON": ({"about": "{"}, "about: is not JSON"),
    "about that is a list": ({"about": "[1]"}, f"about: {AGAIN}"),
    "labels that are no texts": ({"about": '{"labels": [1]}'}, f"about: {AGAIN}"),
    "labels that are a text": ({"about": '{"labels": "ab"}'}, f"about: {AGAIN}"),
    "a score without an index": ({"about": '{"score": {"output": "p", "meaning": ""}}'}, f"about: {AGAIN}"),
    "a score below 0": (
        {"about": '{"score": {"output": "p", "index": -1, "meaning": ""}}'}, f"about: {AGAIN}",
    ),
    "assumed 1": ({"about": '{"assumed": 1}'}, f"about: {AGAIN}"),
    "a model that is a number": ({"about": '{"model": 1}'}, f"about: {AGAIN}"),
    "a source that is no JSON": ({"source": "x"}, "source: is not JSON"),
    "a source that is deep": ({"source": "[" * 100_000}, "source: is not JSON"),
    "a source without bytes": ({"source": '{"file": "x"}'}, f"source: {AGAIN}"),
    "a source of texts": ({"source": '{"file": "x", "bytes": "5"}'}, "source: bytes '5' is of the wrong type"),
    "bytes that are true": ({"source": '{"file": "x", "bytes": true}'}, "source: bytes True is of the wrong type"),
    "preprocessing": ({"preprocessing": "{}"}, "preprocessing: not written by this package"),
}  # fmt: skip


@pytest.mark.parametrize(("metadata", "message"), WRONG_METADATA.values(), ids=WRONG_METADATA)
def test_metadata_that_is_not_ours(metadata, message):
    with pytest.raises(IlgnetError) as caught:
        About.from_metadata(metadata)
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, FormatError | DataError)


def test_a_repr_has_one_line_per_item():
    assert repr(About()) == "About:\n  preprocessing: unknown"
    assert repr(FULL).splitlines() == [
        "About:",
        "  preprocessing: image resized to 9x7, BGR minus 10, 20, 30.5, times 0.5 (assumed)",
        "  source: x.caffemodel, 1,234,567 bytes, ava1-weights",
        "  model: ava1-weights (assumed)",
        "  labels: 2 (low, high)",
        "  score: prob[1], high",
    ]


def test_a_repr_stays_short_and_printable():
    about = About(labels=tuple(f"class\n{number}\x1b[2J" for number in range(1000)), notes=("one\ntwo",))
    lines = repr(about).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("  labels: 1000 (class\\n0\\x1b[2J, ") and lines[2].endswith(", ...)")
    assert lines[3] == "  note: one\\ntwo"


# ------------------------------------------------------------------------------------- known models

GOOGLENET, SQUEEZENET = find_model("bvlc_googlenet"), find_model("squeezenet_v1.1")
SSD = find_model("mobilenet-ssd")
FACE = find_model("age_net")
IMAGENET = (104.0, 117.0, 123.0)
MINE = Identity("mine.caffemodel", 12)
BY_LAYERS = (
    "preprocessing is assumed from the net's layers (BVLC GoogLeNet: image resized to 256x256, centre crop of "
    "224x224, BGR minus 104, 117, 123); if these weights were trained otherwise, state the preprocessing"
)
BY_NAME = (
    "preprocessing is assumed from the net's layers and the file's name (SqueezeNet v1.1: image resized to 227x227, BGR "
    "minus 104, 117, 123); if these weights were trained otherwise, state the preprocessing"
)
STATED = """
layer { name: "data" type: "ImageData" top: "data" transform_param { mean_value: 5 } image_data_param {
  new_height: 9 new_width: 7 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
"""
SAID = "data (ImageData): preprocessing is read from this layer: image resized to 9x7, BGR minus 5"
PLAIN = STATED.replace("ImageData", "Input").replace("transform_param { mean_value: 5 }", "")


def _fed(side):
    """A net that states only its input's size."""
    return parse_net(PLAIN), (1, 3, side, side)


KNOWN = {  # text, shape, file -> mean, assumed, model, notes
    "a release": (squeezenet.deploy, Identity("x", 1, SHA, SQUEEZENET), IMAGENET, False, SQUEEZENET, ()),
    "a file with its layers": (googlenet.deploy, MINE, IMAGENET, True, GOOGLENET, (BY_LAYERS,)),
    "no file": (googlenet.deploy, None, IMAGENET, True, GOOGLENET, (BY_LAYERS,)),
    "its layers and its name": (
        squeezenet.deploy, Identity(SQUEEZENET.files[0], 12, SHA, None, SQUEEZENET), IMAGENET, True, SQUEEZENET, (BY_NAME,),
    ),
    "its name but other layers": (
        lambda: parse_net(PLAIN), Identity(SQUEEZENET.files[0], 12, None, None, SQUEEZENET), None, False, None, (),
    ),
    "what the net states": (lambda: parse_net(STATED), MINE, (5.0,), False, None, (SAID,)),
    "what the net states before a release's": (
        lambda: parse_net(STATED), Identity("x", 1, SHA, SSD), (5.0,), False, SSD, (SAID,),
    ),
    "nothing": (lambda: parse_net(PLAIN), MINE, None, False, None, ()),
}  # fmt: skip


@pytest.mark.parametrize(("make", "identity", "mean", "assumed", "model", "notes"), KNOWN.values(), ids=KNOWN)
def test_what_is_known_about_a_net(make, identity, mean, assumed, model, notes):
    about = about_net(make(), identity, net="G", outputs=("loss1/loss",))
    assert (about.preprocessing and about.preprocessing.mean_value) == mean
    assert (about.assumed, about.model) == (assumed, model.name if model else "")
    assert (about.labels, about.score) == ((model.labels, model.score) if model else ((), None))
    assert about.notes == notes
    if identity is None:
        assert about.source is None
    else:
        release = identity.model and identity.model.name
        assert about.source == Source(identity.file, identity.bytes, identity.sha256, release, "G")


@pytest.mark.parametrize(("side", "mean"), [(227, FACE.preprocessing.mean_value), (224, None)])
def test_a_model_known_only_by_its_name(side, mean):
    """Its digest was never published: its name is used, unless the net has another size."""
    text, shape = _fed(side)
    about = about_net(text, Identity(FACE.files[0], 12, suspected=FACE), shape=shape)
    assert (about.preprocessing and about.preprocessing.mean_value) == mean
    assert about.assumed == (mean is not None)
    assert [
        note.startswith("preprocessing is assumed from the file's name (age of a face: ")
        for note in about.notes
    ] == ([True] if mean else [])


def test_a_score_is_of_an_output():
    row = replace(GOOGLENET, score=ScoreAt("prob", 1, "tench"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ilgnet_repro.about.assumed", lambda text: row)
        assert about_net(googlenet.train_val(), outputs=("loss3/top-1",)).score is None
        assert about_net(googlenet.deploy(), outputs=("prob",)).score == row.score


def test_with_a_missing_mean_file_the_assumed_preprocessing_stays_and_both_are_reported():
    text = googlenet.train_val()
    for layer in text.layer[:2]:
        del layer.transform_param.mean_value[:]
        layer.transform_param.mean_file = "nowhere.binaryproto"
    about = about_net(text, MINE)
    assert about.notes[0].startswith("data (Data): its preprocessing is not read: mean_file ")
    assert about.notes[1:] == (BY_LAYERS,)
    assert about.preprocessing.mean_value == IMAGENET


def test_assumptions_are_repeated_when_the_written_file_is_loaded():
    about = about_net(googlenet.deploy(), MINE, outputs=("prob",))
    assert About.from_metadata(about.to_metadata()).notes == (BY_LAYERS,)
    known = about_net(squeezenet.deploy(), Identity("x", 1, SHA, SQUEEZENET), outputs=("pool10",))
    assert About.from_metadata(known.to_metadata()).notes == ()


STATING = {  # a net, its file -> model and notes once preprocessing is stated
    "assumed, with labels": (
        ssd.mobilenet_300, MINE, "", ("labels and score are assumed from those of mobilenet-ssd",), SSD,
    ),
    "assumed, without": (squeezenet.deploy, MINE, "", (), None),
    "a release": (squeezenet.deploy, Identity("x", 1, SHA, SQUEEZENET), "squeezenet_v1.1", (), SQUEEZENET),
    "unknown": (lambda: parse_net(PLAIN), MINE, "", (), None),
}  # fmt: skip


@pytest.mark.parametrize(("make", "identity", "name", "notes", "model"), STATING.values(), ids=STATING)
def test_stated_preprocessing_is_not_assumed(make, identity, name, notes, model):
    about = about_net(make(), identity, outputs=("loss1/loss",)).stating(WHOLE)
    assert (about.preprocessing, about.assumed, about.model, about.notes) == (WHOLE, False, name, notes)
    assert (about.labels, about.score) == ((model.labels, model.score) if model else ((), None))


# ------------------------------------------------------------------------------------------- prepare

RNG = np.random.default_rng(3)
BGR = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)  # of the input's size: nothing is resized
GREY = RNG.integers(0, 256, (9, 7), dtype=np.uint8)


def _blob_of(bgr):
    """The formula, a pixel at a time."""
    blob = np.empty((3, *bgr.shape[:2]), np.float32)
    for channel in range(3):
        for row in range(bgr.shape[0]):
            for column in range(bgr.shape[1]):
                blob[channel, row, column] = (
                    float(bgr[row, column, channel]) - WHOLE.mean_value[channel]
                ) * 0.5
    return blob


def _png(folder, pixels, name="a.png"):
    cv2.imwrite(str(folder / name), pixels)
    return folder / name


EXPECTED = _blob_of(BGR)
EXPECTED_GREY = _blob_of(np.stack([GREY] * 3, 2))


def _pil(rgb_or_grey, mode=None):
    image = pytest.importorskip("PIL.Image").fromarray(rgb_or_grey)
    return image if mode is None else image.convert(mode)


IMAGES = {  # the argument, the number of images, each image
    "a path": (lambda folder: _png(folder, BGR), 1, EXPECTED),
    "a path as text": (lambda folder: str(_png(folder, BGR)), 1, EXPECTED),
    "paths": (lambda folder: [_png(folder, BGR), str(_png(folder, BGR, "b.png"))], 2, EXPECTED),
    "a generator of paths": (lambda folder: (_png(folder, BGR) for _ in range(3)), 3, EXPECTED),
    "an array": (lambda _: BGR, 1, EXPECTED),
    "arrays of another layout": (lambda _: (np.asfortranarray(BGR), BGR[::-1][::-1]), 2, EXPECTED),
    "one array of images": (lambda _: np.stack([BGR] * 4), 4, EXPECTED),
    "with transparency": (lambda _: [np.dstack([BGR, GREY])], 1, EXPECTED),
    "a grey array": (lambda _: GREY, 1, EXPECTED_GREY),
    "a grey array with its axis": (lambda _: [GREY[:, :, None]], 1, EXPECTED_GREY),
    "a grey path": (lambda folder: _png(folder, GREY), 1, EXPECTED_GREY),
    "a PIL image": (lambda _: _pil(BGR[:, :, ::-1]), 1, EXPECTED),
    "PIL images": (lambda _: [_pil(BGR[:, :, ::-1], "RGBA"), _pil(BGR[:, :, ::-1])], 2, EXPECTED),
    "PIL grey": (lambda _: [_pil(GREY), _pil(GREY, "LA")], 2, EXPECTED_GREY),
    "PIL palette": (lambda _: _pil(GREY, "P"), 1, EXPECTED_GREY),
    "a mix": (lambda folder: [_png(folder, BGR), BGR, _pil(BGR[:, :, ::-1])], 3, EXPECTED),
}


@pytest.mark.parametrize(("make", "count", "expected"), IMAGES.values(), ids=IMAGES)
def test_images_become_a_blob(tmp_path, make, count, expected):
    blob = prepare(About(preprocessing=WHOLE), make(tmp_path))
    assert (blob.shape, blob.dtype) == ((count, 3, 9, 7), np.float32)
    for one in blob:
        # pycaffe goes through [0, 1] and back, in float32
        np.testing.assert_allclose(one, expected, atol=2e-5)


def test_arrays_in_rgb():
    blob = prepare(About(preprocessing=WHOLE), [BGR[:, :, ::-1], GREY], order="RGB")
    np.testing.assert_allclose(blob, [EXPECTED, EXPECTED_GREY], atol=2e-5)


def test_a_net_in_rgb():
    how = Preprocessing((9, 7), order="RGB", mean_value=(30.5, 20.0, 10.0), scale=0.5)
    np.testing.assert_allclose(prepare(About(preprocessing=how), BGR)[0], EXPECTED[::-1], atol=2e-5)


@pytest.mark.parametrize("images", [[], (), np.empty((0, 9, 7, 3), np.uint8)], ids=["list", "tuple", "array"])
def test_no_images(images):
    assert prepare(About(preprocessing=WHOLE), images).shape == (0, 3, 9, 7)


def test_another_size_than_the_preprocessing_states():
    how = Preprocessing((5, 11), mean_value=WHOLE.mean_value, scale=0.5)
    np.testing.assert_allclose(prepare(About(preprocessing=how), BGR, size=(9, 7))[0], EXPECTED, atol=2e-5)


def test_preprocessing_given_for_the_call():
    np.testing.assert_allclose(prepare(About(), BGR, preprocessing=WHOLE)[0], EXPECTED, atol=2e-5)


def test_a_crop_of_mixed_sizes():
    """Each image is resized separately; the crop is central, the odd pixel left over below and to the right."""
    how = Preprocessing((4, 4), path="crop", mean_value=(7.0,))
    larger = RNG.integers(0, 256, (13, 8, 3), dtype=np.uint8)
    blob = prepare(About(preprocessing=how), [BGR, larger])
    assert np.array_equal(blob[0], BGR[2:6, 1:5].transpose(2, 0, 1).astype(np.float32) - 7)
    assert np.array_equal(blob[1], larger[4:8, 2:6].transpose(2, 0, 1).astype(np.float32) - 7)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", [WHOLE, Preprocessing((7, 7), path="crop")], ids=["whole", "crop"])
def test_a_pil_image_is_rotated_like_its_file(tmp_path, orientation, how):
    pil = pytest.importorskip("PIL.Image")
    path = tmp_path / "turned.jpg"
    image = pil.fromarray(BGR[:, :, ::-1])
    exif = pil.Exif()
    exif[0x0112] = orientation
    image.save(path, quality=100, subsampling=0, exif=exif)
    # PIL's and OpenCV's decoders may differ by a level
    given = prepare(About(preprocessing=how), [path, pil.open(path)])
    np.testing.assert_allclose(given[0], given[1], atol=2)
    assert np.ptp(given[0]) > 50


# -------------------------------------------------------------------------------- refused images


def _text_file(folder):
    (folder / "a.png").write_text("no image")
    return folder / "a.png"


def _cut_pil(folder):
    data = _png(folder, RNG.integers(0, 256, (90, 70, 3), dtype=np.uint8)).read_bytes()
    return pytest.importorskip("PIL.Image").open(io.BytesIO(data[: len(data) // 2]))


CROP = Preprocessing((9, 9), path="crop")
WRONG = {  # the argument, preprocessing, message
    "absent": (lambda _: "none.png", WHOLE, "none.png: no such file"),
    "no name": (lambda _: "", WHOLE, "'': no such file"),
    "a folder": (lambda folder: folder, WHOLE, "{folder}: is a folder; give its files"),
    "no image": (
        _text_file, WHOLE, "{folder}/a.png: is not an image that can be decoded; give a JPEG or PNG",
    ),
    "no image, cropped": (
        _text_file, CROP, "{folder}/a.png: is not an image that can be decoded; give a JPEG or PNG",
    ),
    "a file too small for the crop": (
        lambda folder: _png(folder, BGR), CROP, "{folder}/a.png: crop_size 9: image is 9x7; make it larger",
    ),
    "an array too small for the crop": (
        lambda _: [np.zeros((9, 9), np.uint8), BGR], CROP,
        "image 2 of 2: crop_size 9: image is 9x7; make it larger",
    ),
    "floats": (
        lambda _: BGR / 255, WHOLE,
        "image 1 of 1: values are float64; give uint8 from 0 to 255 (pass a prepared blob to the net itself)",
    ),
    "16 bits": (
        lambda _: [BGR, BGR.astype(np.uint16)], WHOLE,
        "image 2 of 2: values are uint16; give uint8 from 0 to 255 (pass a prepared blob to the net itself)",
    ),
    "channels first": (
        lambda _: BGR.transpose(2, 0, 1), WHOLE,
        "image 1 of 1: shape (3, 9, 7); give height x width, or height x width x 3",
    ),
    "two channels": (
        lambda _: BGR[:, :, :2], WHOLE, "image 1 of 1: shape (9, 7, 2); give height x width, or height x width x 3",
    ),
    "a line": (
        lambda _: BGR[0, :, 0], WHOLE, "image 1 of 1: shape (7,); give height x width, or height x width x 3",
    ),
    "an empty image": (
        lambda _: [np.empty((0, 7, 3), np.uint8)], WHOLE,
        "image 1 of 1: shape (0, 7, 3); sides are from 1 to 32766",
    ),
    "a number": (lambda _: 5, WHOLE, "images: is of type int; give paths, uint8 arrays or PIL images"),
    "bytes": (lambda _: b"a.png", WHOLE, "images: is of type bytes; give paths, uint8 arrays or PIL images"),
    "a mapping": (lambda _: {"a": BGR}, WHOLE, "images: is of type dict; give paths, uint8 arrays or PIL images"),
    "nothing": (lambda _: None, WHOLE, "images: is of type NoneType; give paths, uint8 arrays or PIL images"),
    "a list of lists": (
        lambda _: [BGR.tolist()], WHOLE, "image 1 of 1: is of type list; give a path, a uint8 array or a PIL image",
    ),
    "PIL of 16 bits": (
        lambda _: _pil(GREY.astype(np.int32)), WHOLE,
        "image 1 of 1: PIL mode I is not 8-bit; convert it to L or RGB",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "how", "message"), WRONG.values(), ids=WRONG)
def test_refused_images(tmp_path, make, how, message):
    with pytest.raises(DataError) as caught:
        prepare(About(preprocessing=how), make(tmp_path))
    assert str(caught.value) == message.format(folder=tmp_path)


def test_a_truncated_pil_image(tmp_path):
    with pytest.raises(DataError, match=r"^image 1 of 1: cannot be decoded \(.*\); give a JPEG or PNG$"):
        prepare(About(preprocessing=WHOLE), _cut_pil(tmp_path))


def test_more_images_than_fit_in_memory():
    one = np.broadcast_to(np.zeros((1, 1), np.uint8), (1 << 18, 1, 1))
    with pytest.raises(DataError) as caught:
        prepare(About(preprocessing=Preprocessing((32_766, 32_766))), one[..., None])
    assert str(caught.value) == "262144 images do not fit in memory; prepare fewer at a time"


def test_a_tensor_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(DataError) as caught:
        prepare(About(preprocessing=WHOLE), torch.zeros(1, 3, 9, 7))
    assert str(caught.value) == "images: is of type torch.Tensor; give paths, uint8 arrays or PIL images"


def test_an_unknown_channel_order():
    with pytest.raises(DataError) as caught:
        prepare(About(preprocessing=WHOLE), BGR, order="GBR")
    assert str(caught.value) == "order 'GBR': the channels of an array are in the order BGR or RGB"


def test_a_net_about_which_nothing_is_known():
    with pytest.raises(DataError) as caught:
        prepare(About(), Path("a.png"), net="small")
    assert str(caught.value) == (
        "net 'small': nothing says how its images are prepared; give preprocessing=Preprocessing(size=..., "
        "mean_value=...)"
    )
