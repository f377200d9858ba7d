"""What each pass reads: Caffe's order, batches split without overlap, positions after a resume, every source."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.reading.data_layer_batches import Feed
from ilgnet_repro.reading.datum import encoded_datum
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.lmdb_write import LmdbWriter
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.train.testing import _own_passes

PIPELINE = Path(__file__).resolve().parent.parent / "golden" / "pipeline"
ROWS = 24


def data_layer(batch: int = 5, extra: str = "", transform: str = "") -> str:
    return (
        'layer { name: "data" type: "Data" top: "data" top: "label" transform_param { '
        + transform
        + " } data_param "
        '{ source: "raw64_lmdb" backend: LMDB batch_size: ' + str(batch) + " " + extra + " } }"
    )


PARAMS = {"ImageData": "image_data", "HDF5Data": "hdf5_data", "MemoryData": "memory_data", "Input": "input"}


def layer(type_: str, first: str, second: str, fields: str) -> str:
    tops = f'top: "{first}" top: "{second}"'
    return f'layer {{ name: "{first}" type: "{type_}" {tops} {PARAMS[type_]}_param {{ {fields} }} }}'


def feed_of(text: str, root: Path = PIPELINE, phase: str = "TRAIN", seed: int = 0, **options: int) -> Feed:
    return Feed(load_graph(parse_net('name: "n"' + text), phase=phase), root, seed, **options)


def passes(feed: Feed, count: int, first: int = 0, workers: int = 0) -> list[dict[str, torch.Tensor]]:
    return list(islice(feed.batches(first, workers), count))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Every row of the database, in key order, as Caffe would hold it."""
    return torch.stack(
        [torch.from_numpy(row.image()[0].astype(np.float32)) for row in LmdbReader(PIPELINE / "raw64_lmdb")]
    )


def test_rows_come_in_key_order_and_wrap(images):
    got = torch.cat([batch["data"] for batch in passes(feed_of(data_layer()), 7)])
    assert torch.equal(got, images[[i % ROWS for i in range(35)]])


def test_a_pass_is_determined_by_its_number():
    feed = feed_of(data_layer(transform="crop_size: 48 mirror: true"))
    for late, early in zip(passes(feed, 3, first=6), passes(feed, 9)[6:], strict=True):
        assert torch.equal(late["data"], early["data"])
    ahead = passes(feed, 4, workers=2)
    assert all(torch.equal(a["data"], b["data"]) for a, b in zip(ahead, passes(feed, 4), strict=True))
    other = feed_of(data_layer(transform="crop_size: 48 mirror: true"), seed=1)
    assert not torch.equal(passes(other, 1)[0]["data"], ahead[0]["data"])


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (3, 1), (1, 3), (2, 3)])
def test_processes_split_the_batch_without_overlap(world, accumulate):
    text = data_layer(batch=6, transform="crop_size: 40 mirror: true")
    whole = [sorted(row.sum().item() for row in batch["data"]) for batch in passes(feed_of(text), 5)]
    ranks = [
        passes(feed_of(text, rank=rank, world=world, accumulate=accumulate), 5 * accumulate)
        for rank in range(world)
    ]
    for number, expected in enumerate(whole):
        own = [
            batch["data"] for rank in ranks for batch in rank[number * accumulate : (number + 1) * accumulate]
        ]
        assert all(len(part) == 6 // (world * accumulate) for part in own)
        assert sorted(row.sum().item() for part in own for row in part) == expected


def test_shuffle_reads_each_row_once_per_epoch(images):
    feed = feed_of(data_layer(batch=8, extra="shuffle: true"), seed=4)
    got = torch.cat([batch["data"] for batch in passes(feed, 6)])
    order = [int((images == row).flatten(1).all(1).nonzero()[0]) for row in got]
    assert sorted(order[:ROWS]) == sorted(order[ROWS:]) == list(range(ROWS))
    assert order[:ROWS] != order[ROWS:] and order[:ROWS] != list(range(ROWS))


@pytest.mark.parametrize("extra", ["shuffle: true", "rand_skip: 9", "shuffle: true rand_skip: 9"])
def test_threads_that_read_ahead_change_no_row(extra):
    """Over six epochs, so that threads read rows of two epochs at once."""
    text = data_layer(extra=extra, transform="crop_size: 40 mirror: true")
    alone, ahead = (passes(feed_of(text, seed=3), 30, workers=workers) for workers in (0, 5))
    for expected, batch in zip(alone, ahead, strict=True):
        assert all(torch.equal(batch[top], expected[top]) for top in ("data", "label"))


def test_rand_skip_starts_at_a_reproducible_row(images):
    got = passes(feed_of(data_layer(extra="rand_skip: 20"), seed=2), 1)[0]["data"]
    skipped = int((images == got[0]).flatten(1).all(1).nonzero()[0])
    assert 0 < skipped < 20
    assert torch.equal(got, images[skipped : skipped + 5])
    assert torch.equal(got, passes(feed_of(data_layer(extra="rand_skip: 20"), seed=2), 1)[0]["data"])


def test_image_lists(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 256, (9, 7, 3)).astype(np.uint8))
    (tmp_path / "list.txt").write_text("2.png 5\n0.png 1\n1.png 3\n")
    text = layer("ImageData", "d", "l", 'source: "list.txt" batch_size: 2 new_height: 9 new_width: 7')
    text = text.removesuffix("}") + "transform_param { scale: 0.5 mean_value: 10 } }"
    first, second = passes(feed_of(text, tmp_path), 2)
    assert first["l"].tolist() == [5, 1] and second["l"].tolist() == [3, 5]
    expected = (cv2.imread(str(tmp_path / "2.png")).transpose(2, 0, 1).astype(np.float32) - 10) * 0.5
    np.testing.assert_array_equal(first["d"][0].numpy(), expected)


def test_hdf5_files_one_after_the_other(tmp_path):
    for name, start, rows in (("a.h5", 0, 3), ("b.h5", 3, 4)):
        with h5py.File(tmp_path / name, "w") as file:
            file["x"] = np.arange(start, start + rows)[:, None] * np.ones((1, 2))
            file["y"] = np.arange(start, start + rows)
    (tmp_path / "list.txt").write_text("a.h5\nb.h5\n")
    text = layer("HDF5Data", "x", "y", 'source: "list.txt" batch_size: 4')
    feed = feed_of(text, tmp_path)
    assert feed.shapes() == {"x": (4, 2), "y": (4,)}
    assert [batch["y"].tolist() for batch in passes(feed, 2)] == [[0, 1, 2, 3], [4, 5, 6, 0]]
    assert passes(feed, 1)[0]["x"].tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    rows = torch.cat([batch["y"] for batch in passes(feed, 40, workers=4)])
    assert rows.tolist() == [number % 7 for number in range(160)]


@pytest.mark.parametrize("workers", [0, 3])
def test_images_of_several_sizes_in_a_batch_are_refused(tmp_path, workers):
    for number, sides in enumerate([(9, 7), (9, 7), (8, 7)]):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((*sides, 3), np.uint8))
    (tmp_path / "list.txt").write_text("0.png 5\n1.png 1\n2.png 3\n")
    feed = feed_of(layer("ImageData", "d", "l", 'source: "list.txt" batch_size: 2'), tmp_path)
    batches = feed.batches(0, workers)
    assert next(batches)["l"].tolist() == [5, 1]
    with pytest.raises(IlgnetError) as raised:
        next(batches)
    assert str(raised.value) == (
        f"d (ImageData): rows of one batch differ in shape: d of {tmp_path}/2.png is 3x8x7, of {tmp_path}/0.png is 3x9x7; "
        "resize or crop them alike"
    )


@pytest.mark.parametrize("workers", [0, 3])
def test_a_broken_image_is_named_in_its_batch(tmp_path, workers):
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((9, 7, 3), np.uint8))
    (tmp_path / "list.txt").write_text("0.png 5\n0.png 1\n1.png 3\n")
    feed = feed_of(layer("ImageData", "d", "l", 'source: "list.txt" batch_size: 2'), tmp_path)
    batches = feed.batches(0, workers)
    assert next(batches)["l"].tolist() == [5, 1]
    with pytest.raises(IlgnetError) as raised:
        next(batches)
    assert str(raised.value) == f"{tmp_path}/1.png: no such file; remove the row or replace the image"


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (["a", "b", "c"], "dataset 'x' holds text; store numbers, such as class indices"),
        (np.array([b"a", b"bc", b"d"]), "dataset 'x' holds text; store numbers, such as class indices"),
        (np.zeros(3, np.complex64), "has no numeric dataset 'x'; name the tops as the datasets"),
    ],
    ids=["text", "bytes", "complex"],
)
def test_hdf5_datasets_that_are_not_numeric_are_refused(values, what, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = values
        file["y"] = np.arange(3)
    (tmp_path / "list.txt").write_text("a.h5\n")
    with pytest.raises(IlgnetError) as raised:
        feed_of(layer("HDF5Data", "x", "y", 'source: "list.txt" batch_size: 2'), tmp_path).shapes()
    assert str(raised.value) == (f"x (HDF5Data): {tmp_path}/a.h5: {what}")


def write_h5(path, start, rows, side=2):
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(start, start + rows)[:, None] * np.ones((1, side))
        file["y"] = np.arange(start, start + rows)


HDF5_LISTS = {
    "one per row": b"a.h5\nb.h5\n",
    "byte order mark, CRLF": b"\xef\xbb\xbfa.h5\r\nb.h5\r\n",
    "carriage returns alone": b"a.h5\rb.h5\r",
    "separated by spaces": b"  a.h5 b.h5\n",
    "name of other bytes": b"a.h5\n\xe9.h5\n",
    "name with a space": b"a.h5\nb c.h5\n",
    "separators of Windows": b"data\\a.h5\nC:\\data\\b.h5\n",
}


@pytest.mark.parametrize("listed", HDF5_LISTS.values(), ids=HDF5_LISTS)
def test_lists_of_hdf5_files(listed, tmp_path):
    write_h5(tmp_path / "a.h5", 0, 3)
    for name in (b"b.h5", b"\xe9.h5", b"b c.h5"):
        write_h5(tmp_path / "new.h5", 3, 2)
        (tmp_path / "new.h5").rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    (tmp_path / "list.txt").write_bytes(listed)
    feed = feed_of(layer("HDF5Data", "x", "y", f'source: "{tmp_path}/list.txt" batch_size: 5'), tmp_path)
    assert passes(feed, 1)[0]["y"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("source", "listed", "message"),
    [
        ("a.h5", b"", "a.h5: is an HDF5 file without Caffe's weights or solver state, not a list of HDF5 files; "
         "write its path into a text file and give that"),
        ("list.txt", "a.h5\n".encode("utf-16"), "{here}/list.txt: is UTF-16 text; save it as UTF-8"),
        ("list.txt", b"c.h5\n", "x (HDF5Data): {here}/c.h5: no such file; check the list"),
        ("list.txt", b"list.txt\n", "x (HDF5Data): {here}/list.txt: cannot be read as HDF5; check the list"),
    ],
    ids=["the-file-itself", "utf-16", "absent", "not-hdf5"],
)  # fmt: skip
def test_lists_of_hdf5_files_refused(source, listed, message, tmp_path):
    write_h5(tmp_path / "a.h5", 0, 3)
    (tmp_path / "list.txt").write_bytes(listed)
    with pytest.raises(IlgnetError) as raised:
        feed_of(layer("HDF5Data", "x", "y", f'source: "{source}" batch_size: 5'), tmp_path).shapes()
    assert str(raised.value) == message.format(here=tmp_path)


def test_hdf5_rows_of_two_shapes_are_refused_by_both_rows(tmp_path):
    write_h5(tmp_path / "a.h5", 0, 3)
    write_h5(tmp_path / "b.h5", 3, 2, side=4)
    (tmp_path / "list.txt").write_text("a.h5\nb.h5\n")
    feed = feed_of(layer("HDF5Data", "x", "y", 'source: "list.txt" batch_size: 4'), tmp_path)
    with pytest.raises(IlgnetError) as raised:
        passes(feed, 1)
    assert str(raised.value) == (
        f"x (HDF5Data): rows of one batch differ in shape: x of row 0 of {tmp_path}/a.h5 is 2, of row 0 of {tmp_path}/b.h5 "
        "is 4; resize or crop them alike"
    )


def test_database_rows_of_two_shapes_are_refused_by_both_keys(tmp_path):
    writer = LmdbWriter(tmp_path / "db")
    grey, colour = (
        cv2.imencode(".png", np.zeros((5, 7, *more), np.uint8))[1].tobytes() for more in ((), (3,))
    )
    writer.write([(b"00000000", encoded_datum(colour, 1)), (b"00000001", encoded_datum(grey, 0))])
    writer.close()
    feed = feed_of(data_layer(batch=2).replace("raw64_lmdb", "db"), tmp_path)
    with pytest.raises(IlgnetError) as raised:
        passes(feed, 1)
    assert str(raised.value) == (
        "data (Data): rows of one batch differ in shape: data of 00000000 is 3x5x7, of 00000001 is 1x5x7; "
        "resize or crop them alike"
    )


def test_processes_split_the_batches_of_a_test():
    """Two tests of five passes by three processes: each pass once, and those of a test in that test."""
    numbers = [list(islice(_own_passes(2, 5, rank, 3), 4 if rank < 2 else 2)) for rank in range(3)]
    assert numbers == [[10, 13, 15, 18], [11, 14, 16, 19], [12, 17]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (data_layer(batch=0), "data (Data): batch_size is 0 or absent; set the number of rows per batch"),
        (data_layer().replace("raw64_lmdb", "absent_lmdb"), "is not an LMDB (no data.mdb)"),
        (data_layer().replace("raw64_lmdb", "absent").replace("LMDB", "LEVELDB"),
         "data (Data): backend LEVELDB of absent is not read; convert it with `ilgnet lmdb from-leveldb`"),
        (layer("MemoryData", "x", "y", "batch_size: 2 channels: 1 height: 3 width: 4"),
         "x (MemoryData): nothing feeds it while training; use a Data, ImageData, HDF5Data or DummyData"),
        (layer("Input", "x", "y", "shape { dim: 2 } shape { dim: 3 }"), "x (Input): nothing feeds it"),
        ('layer { name: "x" type: "VideoData" top: "x" top: "y" }',
         "x (VideoData): nothing feeds it while training; use a Data, ImageData, HDF5Data or DummyData layer, or feed its "
         "tops in a loop over net.loss (docs/torch.md)"),
        ('layer { name: "x" type: "Unheard" top: "x" }', "x (Unheard): nothing feeds it while training; use a Data"),
        (layer("HDF5Data", "x", "y", 'source: "absent.txt" batch_size: 4'), "x (HDF5Data): source"),
        (layer("ImageData", "x", "y", 'source: "list.txt" batch_size: 2 new_width: 7'),
         "x (ImageData): new_height and new_width must be set together"),
    ],
    ids=["batch-0", "no-lmdb", "leveldb", "memory", "input", "fork", "unknown", "no-hdf5", "half-a-size"],
)  # fmt: skip
def test_refused_by_name(text, message):
    with pytest.raises(IlgnetError) as raised:
        feed_of(text).shapes()
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_batch_that_cannot_be_split_is_refused_by_name():
    with pytest.raises(IlgnetError) as raised:
        feed_of(data_layer(batch=7), world=2)
    message = (
        "data (Data): batch_size 7 is not a multiple of 2 (2 processes of 1 passes each); change one of them"
    )
    assert str(raised.value) == message
