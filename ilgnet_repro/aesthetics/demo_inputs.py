"""What `make demo` runs on: nets with random weights, and labelled images that it generates."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import opencv as cv2
from ..about import RANDOM_MARK
from ..caffe.caffemodel import open_caffemodel, write_caffemodel
from ..caffe.graph_build import build_graph
from ..caffe.prototxt import format_message
from ..errors import IlgnetError
from ..files import atomic_file
from ..reading.images import encode_image
from ..runtime.plan import plan_net
from ..schema import caffe_pb2
from ..zoo.builder import NetBuilder
from ..zoo.seeded import seeded_blobs
from . import ilgnet

LABEL = f"ILGNet with {RANDOM_MARK}, made by ilgnet_repro's demo: not trained, its scores mean nothing"
SMALL_LABEL = f"a small net with {RANDOM_MARK}, made by ilgnet_repro's demo: its scores mean nothing"
WEIGHTS, SMALL_WEIGHTS = "ilgnet_random.caffemodel", "small_random.caffemodel"  # what a demo writes first
ILGNET_BYTES = 603_752_328  # of the weights only


def check_folder(folder: Path) -> None:
    """Raise IlgnetError unless ``folder`` is absent, empty or of an earlier demo: its content is replaced."""
    if not folder.is_dir() or any(_is_demo(folder / name) for name in (WEIGHTS, SMALL_WEIGHTS)):
        return
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others:
        raise IlgnetError(
            f"{folder}: holds other files, such as {min(others)}, which the demo could replace; give another out=",
            option="out",
        )


def _is_demo(weights: Path) -> bool:
    return weights.is_file() and RANDOM_MARK in open_caffemodel(weights).name


def make_random_ilgnet(
    path: str | os.PathLike[str], seed: int = 7, progress: Callable[[int], None] | None = None
) -> int:
    """Write a full-size ILGNet caffemodel (604 MB) of seeded random weights; return its size in bytes.

    The net's name in the file states that it is random.
    """
    return _make_random(ilgnet.deploy(), LABEL, path, seed, progress)


def make_random_small_net(path: str | os.PathLike[str], seed: int = 7) -> int:
    """Write a net of two layers that takes ILGNet's input, and its prototxt beside it; return its bytes."""
    builder = NetBuilder("small")
    data = builder.input("data", 1, 3, ilgnet.CROP, ilgnet.CROP)
    pooled = builder.pooling("pool", data, "AVE", 75, stride=75)
    scores = builder.inner_product("classifier", pooled, 2)
    builder.softmax("loss1/loss", scores)
    with atomic_file(Path(path).with_suffix(".prototxt"), "w") as file:
        file.write(format_message(builder.net))
    return _make_random(builder.net, SMALL_LABEL, path, seed, None)


def _make_random(
    net: caffe_pb2.NetParameter,
    label: str,
    path: str | os.PathLike[str],
    seed: int,
    progress: Callable[[int], None] | None,
) -> int:
    specs = plan_net(build_graph(net)).blobs
    shapes = {name: [spec.shape for spec in blobs] for name, blobs in specs.items()}
    blobs: dict[str, list[np.ndarray]] = {}
    done = 0
    for name, arrays in seeded_blobs(net, shapes, seed=seed):
        blobs[name] = arrays
        done += sum(array.nbytes for array in arrays)
        if progress:
            progress(done)
    net.name = label
    write_caffemodel(path, net, blobs)
    return Path(path).stat().st_size


def draw_labelled_set(folder: str | os.PathLike[str], count: int = 60, seed: int = 1) -> tuple[Path, Path]:
    """Draw ``count`` images into ``folder``/pictures and write their list; return list and image folder.

    Label 1 is for the quiet ones, with little grain; the list mixes both labels.
    """
    random = np.random.default_rng(seed)
    images, listed = Path(folder) / "pictures", Path(folder) / "list.txt"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        label = int(random.integers(2))
        name = f"{index + 1:03d}.png"
        _draw(images / name, random, grain=4 if label else 40)
        rows.append(f"{name} {label}\n")
    with atomic_file(listed, "w") as file:
        file.writelines(rows)
    return listed, images


def draw_images(folder: str | os.PathLike[str], count: int = 3, seed: int = 1) -> list[Path]:
    """Draw images of different sizes (sky, ground, a disc) as PNG files; return their paths."""
    random = np.random.default_rng(seed)
    paths = [Path(folder) / f"image{index + 1}.png" for index in range(count)]
    for path in paths:
        _draw(path, random)
    return paths


def _draw(path: Path, random: np.random.Generator, grain: float = 4) -> None:
    height, width = (int(side) for side in random.integers((240, 300), (420, 560)))
    canvas = np.empty((height, width, 3), np.uint8)
    sky, ground = random.integers(90, 256, 3), random.integers(0, 140, 3)
    horizon = int(height * random.uniform(0.4, 0.75))
    fade = np.linspace(0.6, 1, horizon)[:, None, None]
    canvas[:horizon] = (sky * fade).astype(np.uint8)
    canvas[horizon:] = ground
    centre = (int(width * random.uniform(0.2, 0.8)), int(height * random.uniform(0.2, 0.8)))
    colour = [int(value) for value in random.integers(0, 256, 3)]
    cv2.circle(canvas, centre, int(min(height, width) * random.uniform(0.08, 0.2)), colour, -1, cv2.LINE_AA)
    noisy = canvas + random.normal(0, grain, canvas.shape)
    with atomic_file(path) as file:
        file.write(encode_image(np.clip(noisy, 0, 255).astype(np.uint8), "png"))
