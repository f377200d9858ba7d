#!/usr/bin/env python3
"""Reading LMDBs of 256x256 images as ILGNet's input, against ten times what the net consumes.

The net takes 31 images per second in Caffe on two cores; the reader is wanted at 310 or more. Every image
is decoded, the mean image subtracted, cropped to 227 and copied to a tensor, in this process only.
"""

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ilgnet_repro.reading.datum import encoded_datum, hwc_to_chw, raw_datum
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.lmdb_write import LmdbWriter
from ilgnet_repro.reading.transforms import Transform

IMAGES, CONSUMED = 400, 31


def make_database(folder: Path, kind: str) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(IMAGES):
        layers = [cv2.resize(rng.normal(0, 30, (side, side, 3)), (256, 256)) for side in (4, 16, 64)]
        image = np.clip(sum(layers) + 128, 0, 255).astype(np.uint8)
        if kind == "raw":
            value = raw_datum(hwc_to_chw(image), number % 2)
        else:
            value = encoded_datum(cv2.imencode(f".{kind}", image)[1].tobytes(), number % 2)
        rows.append((b"%08d_x" % number, value))
    writer = LmdbWriter(folder / kind)
    writer.write(rows)
    writer.close()
    return folder / kind


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    transform = Transform(mean=np.full((3, 256, 256), 100, np.float32), crop_size=227)
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ("raw", "jpg", "png"):
            path = make_database(Path(temporary), kind)
            reader = LmdbReader(path)
            shuffled = np.random.default_rng(1).permutation(IMAGES).tolist()
            for name, rows in (
                ("in order", reader),
                ("at random", (reader[number] for number in shuffled)),
            ):
                begun = time.perf_counter()
                for row in rows:
                    torch.from_numpy(transform(row.image()[0]))
                rate = IMAGES / (time.perf_counter() - begun)
                print(f"{kind} {name:10} {rate:7.0f} images/s, {rate / CONSUMED:5.1f} x ILGNet (wanted: 10)")


if __name__ == "__main__":
    main()
