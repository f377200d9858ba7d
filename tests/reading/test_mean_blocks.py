"""The mean by blocks of rows against a sum row by row: every kind of row, mixed, in any place of the file."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np
import pytest

from ilgnet_repro.errors import DataError
from ilgnet_repro.reading import mean as module
from ilgnet_repro.reading.datum import encoded_datum, raw_datum
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.mean import compute_mean
from ilgnet_repro.schema import caffe_pb2

RANDOM = np.random.default_rng(5)


def write(folder: Path, values: list[bytes], order: list[int] | None = None) -> Path:
    """Write rows; ``order`` is the order of their transactions, which spreads them over the file."""
    environment = lmdb.open(str(folder), map_size=1 << 26)
    for number in order or range(len(values)):
        with environment.begin(write=True) as transaction:
            transaction.put(b"%08d_x" % number, values[number])
    environment.close()
    return folder


def pixels(side: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (3, side, side + 1), dtype=np.uint8)


def png(image: np.ndarray, label: int) -> bytes:
    import cv2

    return encoded_datum(cv2.imencode(".png", image.transpose(1, 2, 0))[1].tobytes(), label)


def twice(image: np.ndarray, label: int) -> bytes:
    """A row with two fields of pixels: the last counts."""
    return caffe_pb2.Datum(data=b"\0" * image.size).SerializeToString() + raw_datum(image, label)


KINDS = {
    "raw": raw_datum,
    "raw, of float32": lambda image, label: raw_datum(image.astype(np.float32) / 3, label),
    "png": png,
    "two fields of pixels": twice,
    "without a label": lambda image, label: caffe_pb2.Datum(
        channels=3, height=image.shape[1], width=image.shape[2], data=image.tobytes()
    ).SerializeToString(),
}
MIXES = {
    **{name: [name] for name in KINDS},
    "raw and png": ["raw", "raw", "png"],
    "bytes and floats": ["raw", "raw", "raw, of float32", "raw"],
    "all": list(KINDS),
}
LABELS = {"few labels": 3, "a label for each row": 1 << 20}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("side", [3, 40], ids=["within pages", "on pages of their own"])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("spread", [False, True], ids=["in order", "spread"])
@pytest.mark.parametrize("caffe_rounding", [False, True], ids=["exact", "caffe"])
def test_mean(
    mix: list[str], side: int, labels: int, spread: bool, caffe_rounding: bool, tmp_path: Path
) -> None:
    values = [KINDS[mix[row % len(mix)]](pixels(side), row % labels) for row in range(23)]
    order = [int(row) for row in RANDOM.permutation(len(values))] if spread else None
    path = write(tmp_path / "db", values, order)
    total = np.zeros((3, side, side + 1), np.float32 if caffe_rounding else np.float64)
    for row in LmdbReader(path):
        total += row.image()[0]
    expected = np.asarray(total / total.dtype.type(len(values)), np.float32)
    seen: list[tuple[int, int]] = []
    found = compute_mean(path, caffe_rounding=caffe_rounding, progress=lambda *one: seen.append(one))
    np.testing.assert_array_equal(found.image, expected)
    assert (found.rows, seen[-1]) == (23, (23, 23))


def test_caffes_rounding_past_what_float32_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sum may be rounded, rows are added one after another; here from 4 rows on."""
    monkeypatch.setattr(module, "_MOST_EXACT_IN_FLOAT32", 3)
    values = [raw_datum(pixels(40), row) for row in range(9)]
    path = write(tmp_path / "db", values)
    total = np.zeros((3, 40, 41), np.float32)
    for row in LmdbReader(path):
        total += row.image()[0]
    np.testing.assert_array_equal(compute_mean(path, caffe_rounding=True).image, total / np.float32(9))


@pytest.mark.parametrize("place", [0, 7, 21])
@pytest.mark.parametrize("damage", ["cut", "another size", "no Datum"])
def test_a_damaged_row_is_named(place: int, damage: str, tmp_path: Path) -> None:
    values = [raw_datum(pixels(40), 1) for _ in range(22)]
    values[place] = {
        "cut": values[place][:-9], "another size": raw_datum(pixels(38), 1), "no Datum": b"\xff" * len(values[place]),
    }[damage]  # fmt: skip
    path = write(tmp_path / "db", values)
    named = 1 if damage == "another size" and not place else place
    with pytest.raises(DataError, match=f"{named:08d}_x"):
        compute_mean(path)


def test_blocks_hold_every_row_once_and_in_order(tmp_path: Path) -> None:
    values = [raw_datum(pixels(side), row) for row, side in enumerate([40] * 9 + [3] * 5 + [41, 40, 40])]
    reader = LmdbReader(write(tmp_path / "db", values))
    blocks = list(reader.blocks(4, 1 << 20))
    assert [key for block in blocks for key in block.keys] == [row.key for row in reader]
    assert max(len(block.keys) for block in blocks) == 4
    for block in blocks:
        stack = reader.stacked(block)
        if stack is not None:
            assert [row.tobytes() for row in stack] == [row.value for row in reader.rows_of(block)]
    assert any(reader.stacked(block) is not None for block in blocks)
