"""Two-class sets of tiny images, and a net of one dense layer that scores them: AVA's counts in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ilgnet_repro.caffe.blob import write_blob
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.reading.datum import raw_datum
from ilgnet_repro.reading.lmdb_read import row_key
from ilgnet_repro.reading.lmdb_write import LmdbWriter

SIDE, CROP = 8, 5
NET = f"""
name: "NAME"
layer {{ name: "data" type: "Input" top: "data"
  input_param {{ shape {{ dim: 1 dim: 3 dim: {CROP} dim: {CROP} }} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {{ num_output: 2 }} }}
layer {{ name: "prob" type: "Softmax" bottom: "ip" top: "prob" }}
"""


class TinySet:
    """``count`` images of noise, the given fraction of labels 1, and all files of a test in ``folder``."""

    def __init__(
        self, folder: Path, count: int, high: float = 0.5, sort: bool = False, name: str = "tiny"
    ) -> None:
        random = np.random.default_rng(count)
        self.folder = folder
        # Three bytes per image determine the score; 192 random ones would only take longer.
        colours = random.integers(0, 256, (count, 3, 1, 1), dtype=np.uint8)
        self.images = np.broadcast_to(colours, (count, 3, SIDE, SIDE)) // 2
        self.images = self.images + random.integers(0, 99, (1, 3, SIDE, SIDE), dtype=np.uint8)
        self.labels = np.zeros(count, np.int64)
        self.labels[: round(count * high)] = 1
        random.shuffle(self.labels)
        if sort:
            self.labels.sort()
        self.names = [f"{index * 37 % count:06d}.png" for index in range(count)]
        self.mean = random.uniform(60, 130, (3, SIDE, SIDE)).astype(np.float32)
        self.weight = (random.standard_normal((2, 3 * CROP * CROP)) / 400).astype(np.float32)
        self.bias = np.array([0.05, -0.03], np.float32)
        self.weights, self.mean_file = folder / "tiny.caffemodel", folder / "mean.binaryproto"
        net = parse_net(NET.replace("NAME", name))
        (folder / "tiny.prototxt").write_text(NET)
        write_caffemodel(self.weights, net, {"ip": [self.weight, self.bias]})
        write_blob(self.mean_file, self.mean[None])

    def store(self) -> Path:
        """Write the images as an LMDB."""
        path = self.folder / "lmdb"
        path.mkdir()
        writer = LmdbWriter(path)
        rows = enumerate(zip(self.names, self.images, self.labels, strict=True))
        writer.write([(row_key(i, name), raw_datum(image, int(label))) for i, (name, image, label) in rows])
        writer.close()
        return path

    def list(self, files: bool = True) -> Path:
        """Write the images as PNG files in images/, and their list."""
        import cv2

        (self.folder / "images").mkdir()
        for name, image in zip(self.names, self.images, strict=True):
            if files:
                cv2.imwrite(str(self.folder / "images" / name), image.transpose(1, 2, 0))
        path = self.folder / "val.txt"
        path.write_text("\n".join(f"{n} {label}" for n, label in zip(self.names, self.labels, strict=True)))
        return path

    def probability(self, rows: np.ndarray | None = None) -> np.ndarray:
        """The probability of high of each row's centre crop, in float64, straight from the formula."""
        start = (SIDE - CROP) // 2
        return self.of_window(start, start, rows=rows)

    def of_window(
        self, top: int, left: int, flip: bool = False, rows: np.ndarray | None = None
    ) -> np.ndarray:
        chosen = self.images if rows is None else self.images[rows]
        window = (chosen - self.mean.astype(np.float64))[:, :, top : top + CROP, left : left + CROP]
        return self.of_input(window[..., ::-1] if flip else window)

    def of_input(self, values: np.ndarray) -> np.ndarray:
        scores = values.reshape(len(values), -1) @ self.weight.T.astype(np.float64) + self.bias
        return 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))

    def arguments(self, *more: str) -> list[str]:
        """Arguments of ``ilgnet test``, without the dataset and the images."""
        return ["--weights", str(self.weights), "--prototxt", str(self.folder / "tiny.prototxt"),
                "--mean", str(self.mean_file), *more]  # fmt: skip
