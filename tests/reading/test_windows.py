"""WindowData: Caffe's window file, its sampling by a Mersenne twister, and each window against a slow reference."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

import ilgnet_repro as ir
from ilgnet_repro.caffe.blob import write_blob
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.reading.data_layer_batches import Feed
from ilgnet_repro.reading.windows import Draws, _round
from ilgnet_repro.runtime.load import load_graph

SIZES = [(31, 24), (20, 37)]  # rows, columns
# Image, class, overlap, corners.
WINDOWS = [
    (0, 3, 0.8, 2, 3, 14, 19), (0, 1, 0.5, 0, 0, 9, 6), (0, 2, 0.3, 5, 5, 20, 29), (0, 7, 0.05, 11, 2, 23, 11),
    (1, 4, 1.0, 20, 1, 36, 19), (1, 2, 0.49, 3, 8, 30, 12), (1, 5, 0.0, 0, 0, 36, 19),
]  # fmt: skip
SEED = 17
SIZE = 12


def window_file(windows=WINDOWS, channels: int = 3) -> str:
    text = ""
    for image, (rows, columns) in enumerate(SIZES):
        own = [row for row in windows if row[0] == image]
        text += f"# {image}\n{image}.png\n{channels}\n{rows}\n{columns}\n{len(own)}\n"
        text += "".join(" ".join(map(str, row[1:])) + "\n" for row in own)
    return text


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(4)
    made = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    for number, image in enumerate(made):
        cv2.imwrite(f"{number}.png", image)
    Path("windows.txt").write_text(window_file())
    return made


def net_text(own: str = "", transform: str = "", batch: int = 5) -> str:
    return (
        'name: "n" layer { name: "d" type: "WindowData" top: "data" top: "label" '
        f"transform_param {{ crop_size: {SIZE} {transform} }} "
        f'window_data_param {{ source: "windows.txt" batch_size: {batch} fg_threshold: 0.5 bg_threshold: 0.4 {own} }} }}'
    )


def read(text: str, count: int, phase: str = "TRAIN", workers: int = 0, **options) -> list[dict]:
    feed = Feed(load_graph(parse_net(text), phase=phase), Path(), SEED, **options)
    return list(islice(feed.batches(0, workers), count))


def round_away(value: float) -> int:
    return int(math.floor(abs(value) + 0.5) * (1 if value >= 0 else -1))


def slow_window(image: np.ndarray, corners, pad: int, square: bool, mirror: bool) -> np.ndarray:
    """One window by the steps of window_data_layer.cpp, its pixels copied one at a time; NaN outside the image."""
    x1, y1, x2, y2 = corners
    rows, columns = image.shape[:2]
    width = height = SIZE
    pad_x = pad_y = 0
    if pad or square:
        grow = SIZE / (SIZE - 2 * pad)
        half = [(x2 - x1 + 1) / 2, (y2 - y1 + 1) / 2]
        centre = [x1 + half[0], y1 + half[1]]
        half = [max(half)] * 2 if square else half
        (x1, x2), (y1, y2) = (
            (round_away(c - h * grow), round_away(c + h * grow)) for c, h in zip(centre, half, strict=True)
        )
        scale_x, scale_y = SIZE / (x2 - x1 + 1), SIZE / (y2 - y1 + 1)
        left, top, right, bottom = max(0, -x1), max(0, -y1), max(0, x2 - columns + 1), max(0, y2 - rows + 1)
        x1, y1, x2, y2 = x1 + left, y1 + top, x2 - right, y2 - bottom
        width, height = round_away((x2 - x1 + 1) * scale_x), round_away((y2 - y1 + 1) * scale_y)
        pad_x, pad_y = round_away((right if mirror else left) * scale_x), round_away(top * scale_y)
        width, height = min(width, SIZE - pad_x), min(height, SIZE - pad_y)
    warped = cv2.resize(image[y1 : y2 + 1, x1 : x2 + 1], (width, height), interpolation=cv2.INTER_LINEAR)
    if mirror:
        warped = cv2.flip(warped, 1)
    out = np.full((3, SIZE, SIZE), np.nan)
    for y in range(height):
        for x in range(width):
            out[:, y + pad_y, x + pad_x] = warped[y, x]
    return out


def expected_batches(images, count: int, batch: int, fraction: float, pad=0, square=False, mirrors=False):
    """What Caffe draws and warps: the layer's seed is the second number of the solver's generator."""
    solver = np.random.RandomState(SEED)
    solver.randint(0, 2**32, dtype=np.uint32)
    own = np.random.RandomState(solver.randint(0, 2**32, dtype=np.uint32))
    groups = [[w for w in WINDOWS if w[2] < 0.4], [w for w in WINDOWS if w[2] >= 0.5]]
    objects = int(batch * fraction)
    for _ in range(count):
        pixels, labels = [], []
        for is_object in [0] * (batch - objects) + [1] * objects:
            draw = int(own.randint(0, 2**32, dtype=np.uint32))
            mirror = mirrors and bool(own.randint(0, 2**32, dtype=np.uint32) % 2)
            image, label, _, *corners = groups[is_object][draw % len(groups[is_object])]
            pixels.append(slow_window(images[image], corners, pad, square, mirror))
            labels.append(label if is_object else 0)
        yield np.stack(pixels), labels


def test_the_generator_is_the_mersenne_twister_of_cpp():
    """The 10,000th number of a default-seeded std::mt19937 is in the C++ standard."""
    draws = Draws(5489)
    assert draws.at(9999, 1) == [4123659995]
    assert draws.at(9998, 3)[1] == 4123659995  # an earlier position, as after a resume
    assert draws.at(0, 1) == [3499211612]


@pytest.mark.parametrize(
    ("value", "expected"), [(2.5, 3), (-2.5, -3), (1.49, 1), (-0.5, -1), (0.5, 1), (-0.2, 0)]
)
def test_rounding_is_that_of_c(value, expected):
    assert _round(np.float32(value)) == expected


CASES = {
    "warp": ("", "", {}),
    "fraction": ("fg_fraction: 0.5", "", {"fraction": 0.5}),
    "mirror": ("", "mirror: true", {"mirrors": True}),
    "context": ("context_pad: 2", "", {"pad": 2}),
    "context mirrored": ("context_pad: 3", "mirror: true", {"pad": 3, "mirrors": True}),
    "square": ('crop_mode: "square"', "", {"square": True}),
    "square context mirrored": (
        'crop_mode: "square" context_pad: 2 cache_images: true', "mirror: true",
        {"square": True, "pad": 2, "mirrors": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_batches_are_caffes(images, name):
    own, transform, options = CASES[name]
    options = {"fraction": 0.25, **options}
    got = read(net_text(own, transform), 6)
    for batch, (pixels, labels) in zip(got, expected_batches(images, 6, 5, **options), strict=True):
        assert batch["label"].tolist() == labels
        np.testing.assert_array_equal(batch["data"].numpy(), np.nan_to_num(pixels))


def test_threads_processes_and_resumed_runs_read_the_same_windows(images):
    text = net_text("context_pad: 2", "mirror: true", batch=6)
    whole = read(text, 4)
    for batch, ahead in zip(whole, read(text, 4, workers=3), strict=True):
        assert np.array_equal(batch["data"], ahead["data"])
    feed = Feed(load_graph(parse_net(text), phase="TRAIN"), Path(), SEED)
    assert np.array_equal(next(feed.batches(3))["data"], whole[3]["data"])
    parts = [read(text, 4, rank=rank, world=2) for rank in range(2)]
    for number, batch in enumerate(whole):
        for rank in range(2):
            assert np.array_equal(parts[rank][number]["data"], batch["data"][rank::2])


@pytest.mark.parametrize("with_mean", ["mean_file", "mean_value", ""])
def test_mean_and_scale(images, with_mean):
    """(pixel - mean) * scale where the window is; what is outside the image stays 0. transform_param.scale is not read."""
    mean = np.random.default_rng(9).uniform(90, 130, (3, SIZE + 6, SIZE + 5)).astype(np.float32)
    write_blob("mean.binaryproto", mean)
    values = np.array([100, 110, 120.5], np.float32)
    transform = {
        "mean_file": 'mean_file: "mean.binaryproto"',
        "mean_value": " ".join(f"mean_value: {value}" for value in values),
        "": "",
    }[with_mean]
    own = np.zeros((3, 1, 1), np.float32)
    if with_mean == "mean_file":  # (17 - 12) / 2 on both axes: by the width
        own = mean[:, 2 : 2 + SIZE, 2 : 2 + SIZE]
    elif with_mean:
        own = values.reshape(3, 1, 1)
    text = net_text("context_pad: 3 scale: 0.5", f"{transform} scale: 7 mirror: true")
    expected = expected_batches(images, 4, 5, 0.25, pad=3, mirrors=True)
    for batch, (pixels, _) in zip(read(text, 4), expected, strict=True):
        np.testing.assert_allclose(
            batch["data"].numpy(), np.nan_to_num((pixels - own) * 0.5), rtol=1e-6, atol=1e-5
        )


def test_the_folder_of_the_images(images, tmp_path):
    """root_folder is put before the path without a separator, as in Caffe; else the images are beside the file."""
    (tmp_path / "photos").mkdir()
    for number in range(len(SIZES)):
        Path(f"{number}.png").rename(f"photos/x{number}.png")
    assert len(read(net_text('root_folder: "photos/x"'), 1)[0]["data"]) == 5
    Path("photos/windows.txt").write_text(window_file().replace("0.png", "x0.png").replace("1.png", "x1.png"))
    assert len(read(net_text().replace("windows.txt", "photos/windows.txt"), 1)[0]["data"]) == 5


def test_a_net_trains_on_windows(images):
    Path("net.prototxt").write_text(
        net_text("context_pad: 1", "mirror: true scale: 1 mean_value: 128")
        + ' layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 8 } }'
        ' layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }'
    )
    Path("s.prototxt").write_text(
        f'net: "net.prototxt" base_lr: 1e-6 lr_policy: "fixed" max_iter: 4 random_seed: {SEED} snapshot_prefix: "s"'
    )
    whole = ir.solve("s.prototxt", max_iter=4)
    ir.solve("s.prototxt", max_iter=2)
    again = ir.solve("s.prototxt", resume="s_iter_2.solverstate", workers=2)
    assert whole.loss == again.loss and math.isfinite(whole.loss)


def test_other_layers_sample_by_the_seed_and_their_name(images):
    """Where Caffe's draws would depend on what was set up before: the same seed gives the same windows."""
    text = net_text()
    (first,), (again,) = read(text, 1, phase="TEST"), read(text, 1, phase="TEST")
    assert np.array_equal(first["data"], again["data"])
    (other,) = read(text.replace('name: "d"', 'name: "e"'), 1, phase="TEST")
    assert not np.array_equal(first["data"], other["data"])


WRONG_FILES = {
    "empty": ("", "has no image; give R-CNN's window file"),
    "no mark": ("0\n0.png\n", "image 0: '0' is where # and its number should be; write `# 0`"),
    "number": ("# 1\n0.png\n3 31 24 0\n", "image 0: is numbered 1; number the images from 0, in order"),
    "no number": ("# x\n0.png\n", "image 0: 'x' is not its number; give R-CNN's window file"),
    "no path": ("# 0\n", "image 0: the file ends before its path; fetch it again"),
    "no size": ("# 0\n0.png\n3 31", "image 0: '3 31' is not channels, height, width and number of windows; "),
    "negative": ("# 0\n0.png\n3 31 24 -1", "image 0: -1 windows; state 0 or more"),
    "short": ("# 0\n0.png\n3 31 24 2\n1 0.5 0 0 3 3\n1 0.5", "image 0: the file ends at window 1 of 2; fetch it again"),
    "huge": ("# 0\n0.png\n3 31 24 999999999999\n1 0.5 0 0 3 3", "image 0: the file ends at window 1 of 999999999999; "),
    "words": ("# 0\n0.png\n3 31 24 1\n1 half 0 0 3 3", "image 0: windows 0 to 0 are not all numbers ("),
    "fractions": ("# 0\n0.png\n3 31 24 1\n1 0.5 0 0.5 3 3", "image 0: window 0: class and corners must be integers; "),
    "beyond int": ("# 0\n0.png\n3 31 24 1\n1 0.5 0 0 1e20 3", "image 0: window 0: class and corners must be integers; "),
    "infinite": ("# 0\n0.png\n3 31 24 1\n1 inf 0 0 3 3", "image 0: window 0: class and corners must be integers; "),
    "class 0": (
        "# 0\n0.png\n3 31 24 1\n0 0.9 0 0 3 3",
        "image 0: window 0: is foreground (overlap 0.9) of class 0; classes of objects are over 0",
    ),
    "grey": (window_file(channels=1), "states 1 channels; images are read in colour, so state 3"),
    "no foreground": (window_file([w for w in WINDOWS if w[2] < 0.5]), "has no foreground windows (fg_threshold 0.5, "),
    "no background": (window_file([w for w in WINDOWS if w[2] > 0.4]), "has no background windows (fg_threshold 0.5, "),
    "a page": ("<!DOCTYPE html><html></html>", "is a web page (HTML), not a window file"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FILES)
def test_window_files_that_are_refused(images, name):
    text, message = WRONG_FILES[name]
    Path("windows.txt").write_text(text)
    with pytest.raises(IlgnetError) as raised:
        read(net_text(), 1)
    assert (
        "windows.txt: " in str(raised.value)
        and message in str(raised.value)
        and "\n" not in str(raised.value)
    )


WRONG_LAYERS = {
    "no crop": (
        net_text().replace("crop_size: 12", ""),
        "crop_size is 0 or absent; set transform_param.crop_size",
    ),
    "old crop": (
        net_text("crop_size: 12").replace("{ crop_size: 12  }", "{ }", 1),
        "crop_size of window_data_param is not read; put it into transform_param",
    ),
    "old mirror": (
        net_text("mirror: true"),
        "mirror of window_data_param is not read; put it into transform_param",
    ),
    "mode": (net_text('crop_mode: "crop"'), "crop_mode 'crop' is unknown; use warp or square"),
    "pad": (
        net_text("context_pad: 6"),
        "context_pad 6 leaves nothing of crop_size 12; set it below half of it",
    ),
    "fraction": (net_text("fg_fraction: 1.5"), "fg_fraction 1.5 must be from 0 to 1"),
    "means": (net_text("", "mean_value: 1 mean_value: 2"), "2 mean_values for 3 channels; give 1 or 3"),
    "batch": (net_text(batch=0), "batch_size is 0 or absent; set the number of rows per batch"),
}


@pytest.mark.parametrize("name", WRONG_LAYERS)
def test_layers_that_are_refused(images, name):
    text, message = WRONG_LAYERS[name]
    with pytest.raises(IlgnetError) as raised:
        read(text, 1)
    assert str(raised.value) == f"d (WindowData): {message}"


@pytest.mark.parametrize(
    ("corners", "own"),
    [((3, 4, 24, 9), ""), ((-1, 4, 9, 9), ""), ((9, 4, 3, 9), ""), ((90, 4, 99, 9), "context_pad: 2")],
    ids=["right", "left", "swapped", "outside"],
)
def test_windows_outside_their_image_are_refused(images, corners, own):
    rows = [(0, 2, 0.9, *corners), (1, 1, 0.1, 0, 0, 9, 9)]
    Path("windows.txt").write_text(window_file(rows))
    with pytest.raises(IlgnetError) as raised:
        read(net_text(own), 1)
    shown = " ".join(map(str, corners))
    assert str(raised.value) == (
        f"0.png: window {shown} is not in the image of 24x31 pixels; correct the window file"
    )


def test_a_missing_image_is_named(images):
    Path("1.png").unlink()
    with pytest.raises(IlgnetError) as raised:
        read(net_text(), 9)
    assert str(raised.value).endswith("1.png: no such file; remove the row or replace the image")


def test_a_mean_that_does_not_cover_the_window_is_refused(images):
    write_blob("mean.binaryproto", np.zeros((3, SIZE, SIZE + 4), np.float32))
    with pytest.raises(IlgnetError) as raised:
        read(net_text("", 'mean_file: "mean.binaryproto"'), 1)
    assert str(raised.value) == (
        "mean.binaryproto: is 3x12x16; d (WindowData) takes the mean of windows of 3x12x12 from its centre"
    )
