"""A generated, learnable aesthetic task: images whose label follows from composition and colour.

Each image has one subject on a plain background.  It is good (1) when the subject is on a crossing of
the thirds *and* its colour is the opposite of the background's; it is bad (0) when either fails, so neither
position nor colour determines the label without the other.  A narrow ILGNet learns it in minutes on one core: first
a trunk on the subject's colour, as GoogLeNet learned ImageNet, then the whole net, fine-tuned from that trunk.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .. import opencv as cv2
from ..caffe.prototxt import format_message
from ..errors import DataError
from ..files import atomic_file, staged_results
from ..reading.lmdb_read import row_key
from ..reading.lmdb_write import LmdbWriter
from ..schema import caffe_pb2 as pb
from ..zoo.builder import NEW_WEIGHT_AND_BIAS, WEIGHT_AND_BIAS, XAVIER, NetBuilder, constant

SIDE = 64
HUES = 6
IMAGES = 2000
VAL = 400
BATCH = 40


def draw_image(rng: np.random.Generator, good: bool) -> tuple[np.ndarray, int]:
    """Draw an image: uint8 (64, 64, 3) in BGR, and the number of the subject's hue (0 to 5)."""
    # One in three bad images fails in place, one in colour, one in both.
    fails = 0 if good else int(rng.integers(1, 4))
    ground = int(rng.integers(HUES))
    subject = (ground + HUES // 2) % HUES if not fails & 1 else (ground + int(rng.integers(-1, 2))) % HUES
    thirds = (SIDE / 3, 2 * SIDE / 3)
    if fails & 2:
        while True:
            place = rng.uniform(10, SIDE - 10, 2)
            if max(min(abs(place[axis] - third) for third in thirds) for axis in (0, 1)) > 7:
                break
    else:
        place = rng.choice(thirds, 2) + rng.uniform(-2.5, 2.5, 2)
    shade = np.linspace(rng.uniform(90, 150), rng.uniform(150, 220), SIDE)[:, None].repeat(SIDE, 1)
    hsv = np.empty((SIDE, SIDE, 3), np.uint8)
    hsv[..., 0], hsv[..., 1], hsv[..., 2] = _hue(rng, ground), rng.integers(90, 160), shade
    colour = (_hue(rng, subject), int(rng.integers(170, 255)), int(rng.integers(170, 255)))
    size = tuple(int(value) for value in rng.integers(5, 10, 2))
    centre = tuple(round(value) for value in place)
    if rng.integers(2):
        cv2.ellipse(hsv, centre, size, float(rng.uniform(0, 180)), 0, 360, colour, -1)
    else:
        corner = tuple(centre[axis] - size[axis] for axis in (0, 1))
        cv2.rectangle(hsv, corner, tuple(centre[axis] + size[axis] for axis in (0, 1)), colour, -1)
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR).astype(np.float32)
    image += rng.normal(0, 8, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), subject


_DATABASES = ("train_lmdb", "val_lmdb", "hue_lmdb")
_TEXTS = ("trunk_train.prototxt", "train_val.prototxt", "trunk_solver.prototxt", "solver.prototxt")


def make_task(folder: str | os.PathLike[str], images: int = IMAGES, val: int = VAL, seed: int = 0) -> Path:
    """Write LMDBs, nets and solvers into a folder, and return it.

    ``train_lmdb`` and ``val_lmdb`` hold quality labels, ``hue_lmdb`` the train images with the hue.
    Raises DataError if anything of these names is there already.
    """
    folder = Path(folder)
    for name in (*_DATABASES, *_TEXTS):
        if os.path.lexists(folder / name):
            raise DataError(f"{folder / name}: is already there; remove it or give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror}); give another folder") from error
    rng = np.random.default_rng(seed)
    rows: dict[str, list[tuple[bytes, bytes]]] = {name: [] for name in _DATABASES}
    for number in range(images):
        good = int(rng.integers(2))
        image, hue = draw_image(rng, bool(good))
        names = {"val_lmdb": good} if number < val else {"train_lmdb": good, "hue_lmdb": hue}
        for name, label in names.items():
            chw = np.ascontiguousarray(image.transpose(2, 0, 1))
            datum = pb.Datum(channels=3, height=SIDE, width=SIDE, data=chw.tobytes(), label=label)
            rows[name].append((row_key(number, f"{number}.png"), datum.SerializeToString()))
    messages = (trunk_net(), reduced_ilgnet(), _solver("trunk", 250), _solver("ilgnet", 1200))
    with staged_results(folder, "synthetic", DataError) as stage:
        for name, held in rows.items():
            writer = LmdbWriter(stage / name)
            try:
                writer.write(held)
            finally:
                writer.close()
        for name, message in zip(_TEXTS, messages, strict=True):
            with atomic_file(stage / name, "w") as file:
                file.write(format_message(message))
        for name in (*_DATABASES, *_TEXTS):
            os.rename(stage / name, folder / name)
    return folder


def _hue(rng: np.random.Generator, number: int) -> int:
    """OpenCV's hue, 0 to 179, near the middle of one of six."""
    return int(number * 180 / HUES + rng.uniform(-6, 6)) % 180


def _trunk(net: NetBuilder, data: str) -> tuple[str, str, str]:
    """The stem and three Inception modules of ILGNet, a fifth as wide; returns the tops of the modules."""
    x = _conv(net, "conv1/7x7_s2", data, 12, 7, pad=3, stride=2)
    x = net.lrn("pool1/norm1", net.pooling("pool1/3x3_s2", x, "MAX", 3, stride=2))
    x = _conv(net, "conv2/3x3", x, 24, 3, pad=1)
    x = net.pooling("pool2/3x3_s2", net.lrn("conv2/norm2", x), "MAX", 3, stride=2)
    first = _inception(net, "3a", x)
    second = _inception(net, "3b", first)
    return first, second, _inception(net, "4a", net.pooling("pool3/3x3_s2", second, "MAX", 3, stride=2))


def _conv(net: NetBuilder, name: str, bottom: str, num_output: int, kernel_size: int, **geometry: Any) -> str:
    top = net.convolution(
        name, bottom, num_output, kernel_size, weight_filler=XAVIER, bias_filler=constant(0.2),
        param=WEIGHT_AND_BIAS, **geometry,
    )  # fmt: skip
    return net.relu(f"{name}_relu", top)


def _inception(net: NetBuilder, module: str, bottom: str) -> str:
    block = f"inception_{module}"
    one = _conv(net, f"{block}/1x1", bottom, 12, 1)
    three = _conv(net, f"{block}/3x3", _conv(net, f"{block}/3x3_reduce", bottom, 12, 1), 20, 3, pad=1)
    five = _conv(net, f"{block}/5x5", _conv(net, f"{block}/5x5_reduce", bottom, 4, 1), 8, 5, pad=2)
    pool = net.pooling(f"{block}/pool", bottom, "MAX", 3, stride=1, pad=1)
    return net.concat(f"{block}/output", [one, three, five, _conv(net, f"{block}/pool_proj", pool, 8, 1)])


def _dense(net: NetBuilder, name: str, bottom: str, num_output: int, bias: float = 0.2) -> str:
    return net.inner_product(
        name, bottom, num_output, weight_filler=XAVIER, bias_filler=constant(bias), param=NEW_WEIGHT_AND_BIAS
    )


def _features(net: NetBuilder, name: str, bottom: str, num_output: int, drop: float) -> str:
    return net.dropout(f"{name}_drop", net.relu(f"{name}_relu", _dense(net, name, bottom, num_output)), drop)


def _data(net: NetBuilder, source: str, phase: str, mirror: bool) -> str:
    data: str = net.data(
        source, batch_size=BATCH, crop_size=SIDE, mirror=mirror, mean_value=(128, 128, 128), phase=phase
    )
    net.net.layer[-1].transform_param.scale = 1 / 64
    return data


def trunk_net() -> pb.NetParameter:
    """The trunk with a classifier of the subject's hue."""
    net = NetBuilder("trunk")
    top = _trunk(net, _data(net, "hue_lmdb", "TRAIN", True))[2]
    scores = _dense(net, "hue_classifier", net.pooling("hue_pool", top, "MAX"), HUES, bias=0)
    net.loss("hue_loss", scores, top="hue_loss")
    return net.net


def reduced_ilgnet() -> pb.NetParameter:
    """ILGNet with its two local heads and its global one, all narrower."""
    net = NetBuilder("reduced_ILGNet")
    _data(net, "train_lmdb", "TRAIN", True)
    tops = _trunk(net, _data(net, "val_lmdb", "TEST", False))
    heads = [_features(net, f"temp{number}", top, 48, 0.3) for number, top in enumerate(tops, 1)]
    joined = _features(net, "temp_cjy", net.concat("temp", heads), 64, 0.3)
    scores = _dense(net, "loss1/classifier_cjy", joined, 2, bias=0)
    net.loss("loss1/loss", scores, top="loss1/loss")
    net.accuracy("loss1/top-1", scores)
    return net.net


def _solver(name: str, max_iter: int) -> pb.SolverParameter:
    solver = pb.SolverParameter(
        base_lr=0.002, lr_policy="poly", power=1.0, momentum=0.9, weight_decay=2e-4, max_iter=max_iter,
        display=50, snapshot=max_iter, snapshot_prefix=name, solver_mode="CPU", random_seed=3,
    )  # fmt: skip
    if name == "trunk":
        solver.train_net = "trunk_train.prototxt"
    else:
        solver.MergeFrom(
            pb.SolverParameter(net="train_val.prototxt", test_iter=[VAL // BATCH], test_interval=100)
        )
    return solver
