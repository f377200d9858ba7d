"""Float labels beside a database of images: the same keys, read in step by a second Data layer."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import DataError
from ilgnet_repro.reading.lmdb_build import build_lmdb
from ilgnet_repro.reading.lmdb_labels import build_label_lmdb, label_rows
from ilgnet_repro.reading.lmdb_read import LmdbReader

NAMES = ("a.png", "b c.png", "broken.png", "d.png")
NUMBERS = ((1.5, -2.0), (0.25, 1e-3), (7.0, 8.0), (3.0, 4.0))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A database of three images, and a list of four: one is broken."""
    rng = np.random.default_rng(2)
    for name in NAMES:
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("".join(f"{name} 0\n" for name in NAMES))
    rows = (f"{name} {' '.join(map(repr, numbers))}\n" for name, numbers in zip(NAMES, NUMBERS, strict=True))
    (tmp_path / "scores.txt").write_text("".join(rows))
    build_lmdb(tmp_path, tmp_path / "list.txt", tmp_path / "images")
    return tmp_path


def test_rows_have_the_keys_of_their_images(images: Path, capsys) -> None:
    target = images / "labels"
    assert main(["lmdb", "labels", str(images / "images"), str(images / "scores.txt"), str(target)]) == 0
    assert capsys.readouterr().out == f"{target}: 3 rows\n"
    assert [row.key for row in LmdbReader(target)] == [row.key for row in LmdbReader(images / "images")]
    expected = np.array([NUMBERS[0], NUMBERS[1], NUMBERS[3]], np.float32)
    assert np.array_equal(np.stack(list(label_rows(target))), expected)
    assert [row.image()[0].shape for row in LmdbReader(target)] == [(2, 1, 1)] * 3


def test_a_second_data_layer_reads_them_in_step(images: Path) -> None:
    build_label_lmdb(images / "images", images / "scores.txt", images / "labels")
    layer = 'layer {{ name: "{0}" type: "Data" top: "{0}" data_param {{ source: "{1}" batch_size: 2 backend: LMDB }} }}\n'
    text = layer.format("data", images / "images") + layer.format("label", images / "labels")
    (images / "net.prototxt").write_text(
        text + 'layer { name: "flat" type: "Flatten" bottom: "data" top: "flat" }\n'
        'layer { name: "ip" type: "InnerProduct" bottom: "flat" top: "ip" inner_product_param { num_output: 2 } }\n'
        'layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "label" top: "loss" }\n'
    )
    shapes = {"data": (2, 3, 4, 6), "label": (2, 2, 1, 1)}
    net = ir.load_net(images / "net.prototxt", phase="TRAIN", input_shapes=shapes)
    read = [next_ for _, next_ in zip(range(2), ir.batches(net), strict=False)]
    labels = torch.cat([batch["label"] for batch in read]).reshape(4, 2)
    assert labels.tolist() == np.array([NUMBERS[0], NUMBERS[1], NUMBERS[3], NUMBERS[0]], np.float32).tolist()
    first = cv2.imread(str(images / "d.png")).transpose(2, 0, 1)
    assert np.array_equal(read[1]["data"][0].numpy(), first)


WRONG = {
    "another list": ("a.png 1\nb.png 2\n", "its row 00000001_b c.png is not row 1 of LIST; give the list"),
    "fewer rows": ("a.png 1\n", "its row 00000001_b c.png is not row 1 of LIST"),
    "no number": ("a.png 1\nb c.png\n", "LIST:2: write a path, then its numbers (1 of them, as in the first row)"),
    "more numbers": ("a.png 1\nb c.png 1 2\n", "LIST:2: write a path, then its numbers (1 of them"),
    "not finite": ("a.png nan\n", "label 'nan': is beyond float32; correct the list"),
    "empty": ("", "LIST:1: write a path, then its numbers, separated by spaces"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_lists_that_do_not_fit(text: str, message: str, images: Path) -> None:
    (images / "scores.txt").write_text(text)
    with pytest.raises(DataError) as error:
        build_label_lmdb(images / "images", images / "scores.txt", images / "labels")
    assert message.replace("LIST", str(images / "scores.txt")) in str(error.value)
    assert not (images / "labels").exists()


def test_a_target_that_is_there(images: Path) -> None:
    (images / "labels").mkdir()
    with pytest.raises(DataError, match="labels: already exists; remove it or give another name"):
        build_label_lmdb(images / "images", images / "scores.txt", images / "labels")
