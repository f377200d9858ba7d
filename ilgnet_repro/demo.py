"""What `make demo` runs on: a full-size ILGNet with random weights, and pictures it draws itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .formats.caffemodel import write_caffemodel
from .graph.build import build_graph
from .net import plan_net
from .zoo import ilgnet
from .zoo.seeded import seeded_blobs

LABEL = "ILGNet with RANDOM weights, made by ilgnet_repro's demo: not trained, its scores mean nothing"


def make_random_ilgnet(
    path: str | os.PathLike[str], seed: int = 7, progress: Callable[[int], None] | None = None
) -> int:
    """Write a full-size ILGNet caffemodel (604 MB) of seeded random weights; return its size in bytes.

    The net's name inside the file says what it is.
    """
    net = ilgnet.deploy()
    specs = plan_net(build_graph(net)).specs
    shapes = {name: [spec.shape for spec in blobs] for name, blobs in specs.items()}
    blobs: dict[str, list[np.ndarray]] = {}
    done = 0
    for name, arrays in seeded_blobs(net, shapes, seed=seed):
        blobs[name] = arrays
        done += sum(array.nbytes for array in arrays)
        if progress:
            progress(done)
    net.name = LABEL
    write_caffemodel(path, net, blobs)
    return Path(path).stat().st_size


def draw_pictures(folder: str | os.PathLike[str], count: int = 3, seed: int = 1) -> list[Path]:
    """Draw pictures of different sizes (sky, ground, a disc) as PNG files; return their paths."""
    import cv2

    random = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        height, width = (int(side) for side in random.integers((240, 300), (420, 560)))
        canvas = np.empty((height, width, 3), np.uint8)
        sky, ground = random.integers(90, 256, 3), random.integers(0, 140, 3)
        horizon = int(height * random.uniform(0.4, 0.75))
        fade = np.linspace(0.6, 1, horizon)[:, None, None]
        canvas[:horizon] = (sky * fade).astype(np.uint8)
        canvas[horizon:] = ground
        centre = (int(width * random.uniform(0.2, 0.8)), int(height * random.uniform(0.2, 0.8)))
        colour = [int(value) for value in random.integers(0, 256, 3)]
        cv2.circle(
            canvas, centre, int(min(height, width) * random.uniform(0.08, 0.2)), colour, -1, cv2.LINE_AA
        )
        grain = random.normal(0, 4, canvas.shape)
        path = Path(folder) / f"picture{index + 1}.png"
        cv2.imwrite(str(path), np.clip(canvas + grain, 0, 255).astype(np.uint8))
        paths.append(path)
    return paths
