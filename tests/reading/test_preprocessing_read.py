"""The preprocessing that a net's own data layer states: read, or reported why not."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.reading.mean import write_mean
from ilgnet_repro.reading.net_preprocessing import preprocessing_of
from ilgnet_repro.reading.preprocessing import Preprocessing

TAIL = (
    'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }'
)
INPUT = (
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } } }'
)
MEAN = np.arange(3 * 12 * 12, dtype=np.float32).reshape(3, 12, 12)
READ = "preprocessing is read from this layer: "
STORED = (
    "the size of its stored images is not stated; give images of that size, or state the size to resize to"
)


def layer(type_="Data", transform="", own="", rule=""):
    tops = 'top: "data" top: "label"'
    return f'layer {{ name: "data" type: "{type_}" {tops} {rule} transform_param {{ {transform} }} {own} }}'


LIST = "image_data_param {{ source: 'x.txt' batch_size: 2 {} }}".format
SIZED = LIST("new_height: 12 new_width: 12")

STATED = {  # text, input's size -> fields, notes
    "crop, mean and scale of resized images": (
        layer("ImageData", "crop_size: 9 mean_value: 1.5 mean_value: 2 mean_value: 3 scale: 0.5", SIZED),
        None,
        {"size": (9, 9), "resize": (12, 12), "mean_value": (1.5, 2.0, 3.0), "scale": 0.5},
        [f"{READ}image resized to 12x12, centre crop of 9x9, BGR minus 1.5, 2, 3, times 0.5"],
    ),
    "no crop": (
        layer("ImageData", "mean_value: 4", SIZED),
        None,
        {"size": (12, 12), "resize": (12, 12), "mean_value": (4.0,)},
        [f"{READ}image resized to 12x12, BGR minus 4"],
    ),
    "no crop of what is not square": (
        layer("ImageData", "", LIST("new_height: 9 new_width: 7")),
        (9, 7),
        {"size": (9, 7), "resize": (9, 7)},
        [f"{READ}image resized to 9x7, BGR"],
    ),
    "rows of a database": (
        layer("Data", "crop_size: 9 mean_value: 4"),
        (9, 9),
        {"size": (9, 9), "mean_value": (4.0,)},
        [f"{READ}centre crop of 9x9, BGR minus 4", STORED],
    ),
    "rows of a database, whole": (
        layer("Data", "scale: 0.25"),
        (9, 7),
        {"size": (9, 7), "resize": (9, 7), "scale": 0.25},
        [f"{READ}image resized to 9x7, BGR, times 0.25"],
    ),
    "no transform_param": (
        'layer { name: "data" type: "Data" top: "data" }',
        (9, 7),
        {"size": (9, 7), "resize": (9, 7)},
        [f"{READ}image resized to 9x7, BGR"],
    ),
    "images in memory": (
        layer("MemoryData", "crop_size: 7", "memory_data_param { channels: 3 height: 9 width: 8 batch_size: 2 }"),
        None,
        {"size": (7, 7), "resize": (9, 8)},
        [f"{READ}image resized to 9x8, centre crop of 7x7, BGR"],
    ),
    "mirror": (
        layer("ImageData", "mirror: true force_color: true", SIZED),
        None,
        {"size": (12, 12), "resize": (12, 12)},
        [
            f"{READ}image resized to 12x12, BGR",
            "mirror: true mirrors images at random in Caffe; preprocessing does not",
        ],
    ),
    "a layer of a fork": (
        layer("AnnotatedData", "mean_value: 104 resize_param { height: 9 width: 7 }"),
        (9, 7),
        {"size": (9, 7), "resize": (9, 7), "mean_value": (104.0,)},
        [
            f"{READ}image resized to 9x7, BGR minus 104",
            "transform_param.resize_param is not part of the preprocessing that is read",
        ],
    ),
    "the layer of the phase": (
        layer("Data", "crop_size: 7", rule="include { phase: TRAIN }")
        + layer("ImageData", "crop_size: 9", SIZED, "include { phase: TEST }"),
        None,
        {"size": (9, 9), "resize": (12, 12)},
        [f"{READ}image resized to 12x12, centre crop of 9x9, BGR"],
    ),
    "two layers that agree": (
        layer("ImageData", "crop_size: 9", SIZED) + layer("ImageData", "crop_size: 9", SIZED),
        None,
        {"size": (9, 9), "resize": (12, 12)},
        [f"{READ}image resized to 12x12, centre crop of 9x9, BGR"],
    ),
}  # fmt: skip


def _fields(how):
    mean = None if how.mean_image is None else how.mean_image.tolist()
    return how.size, how.path, how.resize, how.order, how.mean_value, mean, how.scale


@pytest.mark.parametrize(("text", "size", "fields", "notes"), STATED.values(), ids=STATED)
def test_stated_preprocessing(text, size, fields, notes):
    how, reported = preprocessing_of(parse_net(text + TAIL), "TEST", size)
    assert _fields(how) == _fields(Preprocessing(path="crop", **fields))
    kind = "AnnotatedData" if "Annotated" in text else text.rpartition('type: "')[2].partition('"')[0]
    assert reported == tuple(f"data ({kind}): {note}" for note in notes)


def test_the_other_phase():
    text = layer("ImageData", "crop_size: 7", SIZED, "include { phase: TRAIN }") + TAIL
    how, reported = preprocessing_of(parse_net(text), "TRAIN")
    assert how.size == (7, 7)
    assert reported[1:] == (
        "data (ImageData): Caffe crops at random in phase TRAIN; preprocessing takes the centre",
    )
    assert preprocessing_of(parse_net(text), "TEST") == (None, ())


def test_stages():
    text = layer("ImageData", "crop_size: 7", SIZED, 'include { stage: "a" }') + TAIL
    assert preprocessing_of(parse_net(text)) == (None, ())
    assert preprocessing_of(parse_net(text), stages=("a",))[0].size == (7, 7)


V1 = {
    "in data_param": 'layers { name: "data" type: DATA top: "data" data_param { crop_size: 9 scale: 0.5 } }',
    "in image_data_param": 'layers { name: "data" type: IMAGE_DATA top: "data" image_data_param '
    "{ new_height: 12 new_width: 12 crop_size: 9 scale: 0.5 } }",
}


@pytest.mark.parametrize("text", V1.values(), ids=V1)
def test_old_texts(text):
    how, _ = preprocessing_of(upgrade_net(parse_net(text)))
    assert (how.size, how.scale) == ((9, 9), 0.5)


@pytest.mark.parametrize(
    "text",
    [INPUT, 'input: "data" input_dim: 2 input_dim: 3 input_dim: 9 input_dim: 7 ',
     'layer { name: "data" type: "HDF5Data" top: "data" hdf5_data_param { source: "x" batch_size: 2 } }',
     'layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } } }'],
    ids=["Input", "input", "HDF5Data", "DummyData"],
)  # fmt: skip
def test_layers_that_state_no_preprocessing(text):
    assert preprocessing_of(upgrade_net(parse_net(text + TAIL))) == (None, ())


# ----------------------------------------------------------------------------------------- mean files

PLACES = {  # mean_file, where the file is, whether in the working directory
    "beside the prototxt": ("mean.binaryproto", "net/mean.binaryproto"),
    "below the prototxt": ("data/mean.binaryproto", "net/data/mean.binaryproto"),
    "beside it by its bare name": ("../../ava/mean.binaryproto", "net/mean.binaryproto"),
    "in the working directory": ("data/mean.binaryproto", "data/mean.binaryproto"),
}


@pytest.mark.parametrize(("name", "place"), PLACES.values(), ids=PLACES)
def test_a_mean_file_is_found(tmp_path, monkeypatch, name, place):
    monkeypatch.chdir(tmp_path)
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    write_mean(place, MEAN)
    text = layer("Data", f'crop_size: 9 mean_file: "{name}"') + TAIL
    how, reported = preprocessing_of(parse_net(text), folder=Path("net"))
    assert (how.size, how.resize) == ((9, 9), (12, 12))
    assert np.array_equal(how.mean_image, MEAN)
    notes = [f"{READ}image resized to 12x12, centre crop of 9x9, BGR minus a mean image"]
    if not Path(name).is_file() and not Path("net", name).is_file():
        notes.append(f"mean_file {name} does not exist; {place} is read instead")
    assert reported == tuple(f"data (Data): {note}" for note in notes)


def test_a_mean_image_without_a_crop(tmp_path):
    mean = MEAN[:, :9, :7]
    write_mean(tmp_path / "m.binaryproto", mean)
    how, _ = preprocessing_of(
        parse_net(layer("Data", 'mean_file: "m.binaryproto"')), "TEST", (9, 7), tmp_path
    )
    image = np.random.default_rng(2).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(how(image), image.transpose(2, 0, 1).astype(np.float32) - mean)


def test_images_are_prepared_as_by_caffes_data_layer():
    """Resized as cv::resize does, cropped, minus the mean, times the scale; not square and not cropped too."""
    image = np.random.default_rng(4).integers(0, 256, (31, 23, 3), dtype=np.uint8)
    how, _ = preprocessing_of(parse_net(STATED["crop, mean and scale of resized images"][0]))
    resized = cv2.resize(image, (12, 12)).astype(np.float32)
    expected = [
        [[(resized[1 + r, 1 + c, b] - (1.5, 2, 3)[b]) * 0.5 for c in range(9)] for r in range(9)]
        for b in range(3)
    ]
    assert np.array_equal(how(image), np.array(expected, np.float32))
    how, _ = preprocessing_of(parse_net(STATED["no crop of what is not square"][0]))
    assert np.array_equal(how(image), cv2.resize(image, (7, 9)).transpose(2, 0, 1).astype(np.float32))


# ------------------------------------------------------------------------------------ not read

LOST = "is neither beside the prototxt nor in the working directory; state the mean"
UNREAD = {  # text, input's size -> reason
    "a mean file that is not there": (
        layer("Data", 'crop_size: 9 mean_file: "no/none.binaryproto"'), None, f"mean_file no/none.binaryproto {LOST}",
    ),
    "a mean file that is none": (
        layer("Data", 'crop_size: 9 mean_file: "text.binaryproto"'), None, None,
    ),
    "a mean image of another size": (
        layer("ImageData", 'mean_file: "m.binaryproto"', LIST("new_height: 9 new_width: 7")), None,
        "mean_file m.binaryproto is 12x12 and its images 9x7",
    ),
    "a mean image and values": (
        layer("Data", 'crop_size: 9 mean_file: "m.binaryproto" mean_value: 1'), None,
        "mean_file and mean_value cannot both be given",
    ),
    "two means": (
        layer("Data", "crop_size: 9 mean_value: 1 mean_value: 2"), None,
        "preprocessing: mean_value (1.0, 2.0): give no number, one, or one per channel (blue, green, red)",
    ),
    "scale 0": (
        layer("Data", "crop_size: 9 scale: 0"), None,
        "preprocessing: scale 0 makes every image the same; give another factor",
    ),
    "a crop beyond the images": (
        layer("ImageData", "crop_size: 13", SIZED), None,
        "preprocessing: images of 12x12 are smaller than the crop of 13; increase resize",
    ),
    "one side": (
        layer("ImageData", "crop_size: 9", LIST("new_height: 12")), None, "new_height and new_width must be set together",
    ),
    "an unknown size": (layer("Data", "scale: 2"), None, "the size of its images is known only from its source"),
    "another crop than the input": (layer("Data", "crop_size: 9"), (9, 7), "crop_size is 9 and the net's input 9x7"),
    "other images than the input": (
        layer("ImageData", "", SIZED), (9, 7), "its images are 12x12 and the net's input 9x7",
    ),
    "grey by transform_param": (
        layer("Data", "crop_size: 9 force_gray: true"), None,
        "its images do not have three channels, which preprocessing needs",
    ),
    "grey by is_color": (
        layer("ImageData", "", LIST("new_height: 12 new_width: 12 is_color: false")), None,
        "its images do not have three channels, which preprocessing needs",
    ),
    "grey in memory": (
        layer("MemoryData", "", "memory_data_param { channels: 1 height: 9 width: 8 batch_size: 2 }"), None,
        "its images do not have three channels, which preprocessing needs",
    ),
    "windows": (
        layer("WindowData", "crop_size: 9", "window_data_param { source: 'x' batch_size: 2 }"), None,
        "it crops windows from its images",
    ),
    "colour and grey": (
        layer("ImageData", "force_color: true force_gray: true", SIZED), None,
        "force_color and force_gray cannot both be set",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "size", "reason"), UNREAD.values(), ids=UNREAD)
def test_unreadable_preprocessing_is_reported(tmp_path, text, size, reason):
    write_mean(tmp_path / "m.binaryproto", MEAN)
    (tmp_path / "text.binaryproto").write_text("no mean")
    how, reported = preprocessing_of(parse_net(text + TAIL), "TEST", size, tmp_path)
    kind = text.partition('type: "')[2].partition('"')[0]
    start = f"data ({kind}): its preprocessing is not read: "
    assert how is None
    assert len(reported) == 1 and reported[0].startswith(start) and "\n" not in reported[0]
    if reason is not None:
        assert reported[0] == start + reason


def test_a_net_of_one_channel():
    text = parse_net(layer("Data", "crop_size: 9"))
    assert preprocessing_of(text, channels=3)[0].size == (9, 9)
    reported = "the net's input has 1 channels, preprocessing has 3"
    assert preprocessing_of(text, channels=1) == (
        None, (f"data (Data): its preprocessing is not read: {reported}",),
    )  # fmt: skip


def test_layers_that_differ():
    text = layer("ImageData", "crop_size: 9", SIZED) + layer("ImageData", "crop_size: 7", SIZED) + TAIL
    reported = "data, data: prepare images differently, so no preprocessing is read from them"
    assert preprocessing_of(parse_net(text)) == (None, (reported,))


def test_the_authors_texts_name_a_mean_file_that_is_elsewhere(authors):
    from ilgnet_repro.caffe.prototxt import read_net

    how, reported = preprocessing_of(upgrade_net(read_net(authors / "val.prototxt")), folder=authors)
    assert how is None
    assert reported == (
        f"data (Data): its preprocessing is not read: mean_file ../../data/AVA2/mean.binaryproto {LOST}",
    )
