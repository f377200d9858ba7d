"""Small labelled images that a net learns in a few iterations."""

from pathlib import Path

import cv2
import numpy as np

COLOURS = {"blue": (200, 60, 40), "green": (50, 190, 70), "red": (40, 50, 210)}


def draw_classes(folder: Path, count: int, names: tuple[str, ...] = ("blue", "red"), side: int = 32) -> Path:
    """Write ``count`` images of each class into a folder of its name: one colour, with noise."""
    rng = np.random.default_rng(5)
    for name in names:
        place = folder / name
        place.mkdir(parents=True)
        for number in range(count):
            image = np.full((side, side + 3, 3), COLOURS[name]) + rng.normal(0, 30, (side, side + 3, 3))
            cv2.imwrite(str(place / f"{number:02}.png"), image.clip(0, 255).astype(np.uint8))
    return folder
