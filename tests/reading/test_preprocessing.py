"""The numbers of a preprocessing, checked where they are given: in Python, in a file and on the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import DataError
from ilgnet_repro.reading.preprocessing import Preprocessing

MEAN = np.arange(3 * 12 * 12, dtype=np.float32).reshape(3, 12, 12)
WITH_NAN = np.where(MEAN == 5, np.nan, MEAN)
SIDES = "give two integers (height, width) from 1 to 32766"
COUNTS = "give no number, one, or one per channel (blue, green, red)"

WRONG = {
    "two means": ({"mean_value": (1.0, 2.0)}, f"mean_value (1.0, 2.0): {COUNTS}"),
    "four means": ({"mean_value": (1, 2, 3, 4)}, f"mean_value (1, 2, 3, 4): {COUNTS}"),
    "a bare mean": ({"mean_value": 5.0}, f"mean_value 5.0: {COUNTS}"),
    "a mean that is no number": ({"mean_value": (math.nan,)}, "mean_value nan: give finite numbers"),
    "an infinite mean": ({"mean_value": (1, math.inf, 2)}, "mean_value inf: give finite numbers"),
    "a mean beyond float32": ({"mean_value": (1e39,)}, "mean_value 1e+39: give finite numbers"),
    "a text": ({"mean_value": ("1",)}, "mean_value '1': give finite numbers"),
    "scale 0": ({"scale": 0.0}, "scale 0 makes every image the same; give another factor"),
    "scale nan": ({"scale": math.nan}, "scale nan: give finite numbers"),
    "scale inf": ({"scale": -math.inf}, "scale -inf: give finite numbers"),
    "size 0": ({"size": (0, 7)}, f"size (0, 7): {SIDES}"),
    "one side": ({"size": (9,)}, f"size (9,): {SIDES}"),
    "half a pixel": ({"size": (9.5, 7)}, f"size (9.5, 7): {SIDES}"),
    "a size beyond OpenCV's": ({"size": (9, 40_000)}, f"size (9, 40000): {SIDES}"),
    "resize below 0": ({"path": "crop", "size": (9, 9), "resize": (-1, 9)}, f"resize (-1, 9): {SIDES}"),
    "resize of a whole image": (
        {"resize": (12, 12)}, "resize goes with the path crop; the path whole resizes to size",
    ),
    "a crop beyond the image": (
        {"path": "crop", "size": (9, 9), "resize": (12, 8)},
        "images of 12x8 are smaller than the crop of 9; increase resize",
    ),
    "two kinds of mean": (
        {"path": "crop", "size": (9, 9), "mean_image": MEAN, "mean_value": (1.0,)},
        "a mean image and mean_value cannot both be given; omit one",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_wrong_numbers(fields, message) -> None:
    with pytest.raises(DataError) as caught:
        Preprocessing(**{"size": (9, 7), **fields})
    assert str(caught.value) == f"preprocessing: {message}"


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (MEAN[:1], "mean image of shape (1, 12, 12): colour images need (3, height, width)"),
        (MEAN[0], "mean image of shape (12, 12): colour images need (3, height, width)"),
        (MEAN.tolist(), "mean image of shape list: colour images need (3, height, width)"),
        (WITH_NAN, "mean image: some values are not finite numbers; compute it again"),
    ],
    ids=["grey", "flat", "list", "nan"],
)
def test_wrong_mean_images(mean, message) -> None:
    with pytest.raises(DataError) as caught:
        Preprocessing(size=(9, 9), path="crop", mean_image=mean)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "fields",
    [
        {"mean_value": (1.0,)}, {"mean_value": (1, 2, 3)}, {"mean_value": (1.5,)},
        {"scale": -0.5}, {"scale": 1}, {"path": "crop", "size": (9, 9), "resize": (9, 12)},
        {"path": "crop", "size": (9, 9), "mean_image": MEAN}, {"size": (1, 32_766)},
    ],
    ids=["one", "three", "fraction", "negative-scale", "whole-scale", "resize", "mean-image", "largest"],
)  # fmt: skip
def test_valid_numbers_round_trip_through_json(fields) -> None:
    made = Preprocessing(**{"size": (9, 7), **fields})
    again = Preprocessing.from_json(made.to_json(), made.mean_image)
    assert again.to_json() == made.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"mean_value": [1, 2]}, {"mean_value": [math.nan]}, {"mean_value": "123"}, {"mean_value": None},
        {"scale": math.inf}, {"scale": None}, {"scale": True}, {"size": [0, 1]}, {"size": None}, {"size": 5},
        {"size": ["9", "7"]}, {"order": None}, {"order": ["BGR"]}, {"path": 3}, {"more": 1}, {"has_mean_image": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_file_with_wrong_numbers_is_refused(change) -> None:
    fields = {**json.loads(Preprocessing(size=(9, 7)).to_json()), **change}
    with pytest.raises(DataError):
        Preprocessing.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", "", "{", '{"size": [9, 7]}', "[" * 100_000], ids=range(7)
)
def test_a_file_with_other_json_is_refused(text) -> None:
    with pytest.raises(DataError, match="not written by this package"):
        Preprocessing.from_json(text)


def test_a_resize_that_an_earlier_version_did_not_use_is_read() -> None:
    fields = {**json.loads(Preprocessing(size=(9, 7)).to_json()), "resize": [20, 20]}
    assert Preprocessing.from_json(json.dumps(fields)).resize is None


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    import cv2

    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "net.caffemodel", SMALL_TEXT.replace("dim: 9 dim: 7", "dim: 9 dim: 9"))
    Path("net.prototxt").write_text(SMALL_TEXT.replace("dim: 9 dim: 7", "dim: 9 dim: 9"))
    Path("images").mkdir()
    cv2.imwrite("images/1.png", np.random.default_rng(0).integers(0, 256, (14, 11, 3), np.uint8))
    for name, mean in (("mean", MEAN), ("grey", MEAN[:1]), ("nan", WITH_NAN), ("small", MEAN[:, :8, :8])):
        np.save(f"{name}.npy", mean)
    return tmp_path


COMMAND_LINE = {
    "two means": ("--mean-value 1,2", "--mean-value 1,2: write one number, or three as 104,117,123"),
    "nan mean": ("--mean-value nan", "--mean-value nan: write one number, or three as 104,117,123"),
    "inf mean": ("--mean-value 1,inf,3", "--mean-value 1,inf,3: write one number, or three as 104,117,123"),
    "scale 0": ("--scale 0", "--scale 0: give a finite number other than 0"),
    "scale nan": ("--scale nan", "argument --scale: 'nan': give a number from -3.4e+38 to 3.4e+38"),
    "size 0": ("--order BGR --size 0", "--size 0: give a number of pixels from 1 to 32766"),
    "size below 0": ("--order BGR --size -9", "--size -9: give a number of pixels from 1 to 32766"),
    "size beyond": ("--order BGR --size 99999999", "--size 99999999: give a number of pixels from 1 to 32766"),
    "resize 0": ("--path crop --resize 0", "--resize 0: give a number of pixels from 1 to 32766"),
    "only size": ("--size 9", "--size: goes with --mean-value, --scale, --order or --path; add one"),
    "only resize": ("--resize 9", "--resize: goes with --mean-value, --scale, --order or --path; add one"),
    "resize with path whole": ("--order RGB --resize 12", "--resize 12: goes with --path crop; add it"),
    "crop beyond": (
        "--path crop --resize 8", "preprocessing: images of 8x8 are smaller than the crop of 9; increase resize",
    ),
    "whole with a mean image": (
        "--path whole --mean-file mean.npy", "--mean-file goes with --path crop; omit --path whole",
    ),
    "two kinds of mean": (
        "--mean-value 1 --mean-file mean.npy", "--mean-file and --mean-value: give one of them",
    ),
    "grey mean image": (
        "--mean-file grey.npy",
        "grey.npy: mean image of shape (1, 12, 12): colour images need (3, height, width)",
    ),
    "nan mean image": (
        "--mean-file nan.npy",
        "nan.npy: mean image: some values are not finite numbers; compute it again",
    ),
    "small mean image": (
        "--mean-file small.npy", "preprocessing: images of 8x8 are smaller than the crop of 9; increase resize",
    ),
    "mean image of another size": (
        "--mean-file mean.npy --resize 20", "mean.npy: is 12x12 and resize is 20x20; omit resize",
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", ["convert net.caffemodel", "score images --weights net.caffemodel"])
@pytest.mark.parametrize(("options", "message"), COMMAND_LINE.values(), ids=COMMAND_LINE)
def test_refused_on_the_command_line(folder, capsys, command, options, message) -> None:
    assert main([*command.split(), *options.split()]) == 1
    assert capsys.readouterr().err == one_line(command, message)
    assert not Path("net.safetensors").exists()


def one_line(command: str, message: str) -> str:
    """The line on stderr; the range of an option's number is stated when it is read, with the command's name."""
    if not message.startswith("argument "):
        return f"ilgnet: {message}\n"
    name = command.split(maxsplit=1)[0]
    return f"ilgnet {name}: {message}; `ilgnet {name} --help` lists what it takes\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("lmdb make --resize_height 40000 --resize_width 3 images/ list.txt db",
         "resize_height 40000: give 0 (no resize) to 32766"),
        ("lmdb make --resize_width -1 images/ list.txt db",
         "resize_width -1: give 0 (no resize) to 32766"),
        ("compare net.caffemodel net.caffemodel --seed 4294967296",
         "argument --seed: '4294967296': give an integer from 0 to 4294967295"),
    ],
    ids=["height", "width", "seed"],
)  # fmt: skip
def test_numbers_of_other_commands(folder, capsys, command, message) -> None:
    Path("list.txt").write_text("1.png 0\n")
    assert main(command.split()) == 1
    assert capsys.readouterr().err == one_line(command, message)


@pytest.mark.parametrize(
    ("given", "other"), [("--resize_height", "--resize_width"), ("--resize_width", "--resize_height")]
)
def test_one_side_alone_resizes_nothing_as_in_caffe(folder, capsys, given, other) -> None:
    Path("list.txt").write_text("1.png 0\n")
    assert main(["lmdb", "make", given, "5", "images/", "list.txt", "db"]) == 0
    assert capsys.readouterr().err == f"note: {given} 5 without {other}: no image is resized, as in Caffe\n"


@pytest.mark.parametrize("batch", [0, -1, 65_537, 10**20])
def test_impossible_batches(folder, capsys, batch) -> None:
    assert (
        main(["score", "images", "--weights", "net.caffemodel", "--order", "BGR", "--batch", str(batch)]) == 1
    )
    message = f"argument --batch: '{batch}': give an integer from 1 to 65536"
    assert capsys.readouterr().err == one_line("score", message)


@pytest.mark.parametrize(
    "options",
    ["--mean-value 1,2,3", "--mean-value 5 --scale -0.5", "--path crop --resize 12 --order RGB", "--mean-file mean.npy",
     "--mean-file mean.npy --resize 12", "--path crop"],
)  # fmt: skip
def test_accepted_on_the_command_line(folder, capsys, options) -> None:
    assert main(["convert", "net.caffemodel", *options.split()]) == 0
    capsys.readouterr()
    assert main(["score", "images", "--weights", "net.safetensors", "--json"]) == 0
    converted = json.loads(capsys.readouterr().out)["outputs"]["prob"]
    assert main(["score", "images", "--weights", "net.caffemodel", *options.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"]["prob"] == pytest.approx(converted, rel=1e-3)
