"""PyTorch's view: order, wrap-around, shards, workers, and memory over many rows."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from places import ROOT
from torch.utils.data import DataLoader

from ilgnet_repro.errors import DataError
from ilgnet_repro.reading.datasets import FolderDataset, ListDataset, LmdbDataset, LmdbIterable
from ilgnet_repro.reading.datum import raw_datum
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.lmdb_write import LmdbWriter
from ilgnet_repro.reading.transforms import Transform

ROWS = 24


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A database whose row n is one pixel of value n with label n."""
    folder = tmp_path_factory.mktemp("data") / "numbered"
    writer = LmdbWriter(folder)
    writer.write([(b"%08d_x" % n, raw_datum(np.full((1, 1, 1), n, np.uint8), n)) for n in range(ROWS)])
    writer.close()
    return folder


def labels(dataset, batch_size=None, workers=0, context=None):
    loader = DataLoader(dataset, batch_size, num_workers=workers, multiprocessing_context=context)
    seen = []
    for pictures, found in loader:
        assert torch.equal(pictures.flatten().long(), torch.as_tensor(found).flatten())
        seen += torch.as_tensor(found).flatten().tolist()
    return seen


@pytest.mark.parametrize(
    ("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")], ids=["alone", "fork", "spawn"]
)
def test_loader_order_is_caffes_and_wraps(workers, context, numbered):
    dataset = LmdbIterable(numbered, rows=35, batch_size=5)
    len(dataset.reader)  # open here too: workers must not share it
    assert labels(dataset, 5, workers, context) == [number % ROWS for number in range(35)]


@pytest.mark.parametrize(
    ("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")], ids=["alone", "fork", "spawn"]
)
def test_random_draws_do_not_depend_on_workers(workers, context, golden):
    dataset = LmdbDataset(
        golden / "pipeline" / "raw64_lmdb", Transform("TRAIN", crop_size=31, mirror=True), seed=4
    )
    expected = torch.stack([dataset[number][0] for number in range(ROWS)])
    loader = DataLoader(dataset, 5, num_workers=workers, multiprocessing_context=context)
    assert torch.equal(torch.cat([pictures for pictures, _ in loader]), expected)
    dataset.epoch = 1
    assert not torch.equal(torch.stack([dataset[number][0] for number in range(ROWS)]), expected)


@pytest.mark.parametrize(("world", "rows"), [(1, None), (2, None), (5, None), (3, 100), (7, 10)])
def test_shards_neither_overlap_nor_lose(world, rows, numbered):
    shards = [LmdbIterable(numbered, rows=rows, rank=rank, world=world) for rank in range(world)]
    seen = [labels(shard) for shard in shards]
    assert [len(shard) for shard in shards] == [len(part) for part in seen]
    whole = [number % ROWS for number in range(rows or ROWS)]
    for rank, part in enumerate(seen):
        assert part == whole[rank::world]


def test_start_and_endless(numbered):
    endless = iter(LmdbIterable(numbered, endless=True, start=20, rank=1, world=3))
    assert [next(endless)[1] for _ in range(30)] == [(21 + 3 * number) % ROWS for number in range(30)]
    with pytest.raises(TypeError, match="endless"):
        len(LmdbIterable(numbered, endless=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"rows": -1}, "rows -1"),
    ],
)
def test_bad_shards(options, message, numbered):
    with pytest.raises(DataError, match=message):
        LmdbIterable(numbered, **options)


def test_list_and_folder_give_what_the_database_holds(golden, tmp_path):
    pipeline = golden / "pipeline"
    stored = LmdbDataset(pipeline / "raw64_lmdb")
    listed = ListDataset(pipeline / "list.txt", pipeline / "images", size=(64, 64))
    assert len(stored) == len(listed) == ROWS
    for number in range(ROWS):
        assert torch.equal(stored[number][0], listed[number][0]) and stored[number][1] == listed[number][1]
    assert torch.equal(stored[-1][0], stored[23][0]) and stored.key(3) == b"00000003_0003.png"
    with pytest.raises(IndexError):
        stored[24]
    grey = ListDataset(pipeline / "list.txt", pipeline / "images", Transform(colour=False), size=(32, 32))
    assert torch.equal(grey[1][0], LmdbDataset(pipeline / "gray32_lmdb")[1][0])
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "x.png"), np.full((3, 4, 3), ord(name), np.uint8))
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    folder = FolderDataset(tmp_path)
    assert folder.classes == ("a", "b") and [(int(p[0, 0, 0]), n) for p, n in folder] == [(97, 0), (98, 1)]
    assert FolderDataset(tmp_path / "a").rows == [(tmp_path / "a" / "x.png", 0)]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        FolderDataset(tmp_path / "none")


def test_readers_share_one_environment_and_outlive_each_other(golden):
    path = golden / "pipeline" / "raw64_lmdb"
    first, second = LmdbReader(path), LmdbReader(path)
    assert len(first) == len(second) == ROWS
    first.close()
    assert second[3].key == first[3].key == b"00000003_0003.png"
    if (child := os.fork()) == 0:
        os._exit(0 if len(list(second)) == ROWS else 1)
    assert os.waitpid(child, 0)[1] == 0


MEASURE = """
import resource, sys
from ilgnet_repro.reading.lmdb_build import BuildOptions, build_lmdb
from ilgnet_repro.reading.image_list import ImageList
from ilgnet_repro.reading.lmdb_check import check_lmdb, summarise
from ilgnet_repro.reading.mean import compute_mean
folder, rows = sys.argv[1], int(sys.argv[2])
options = BuildOptions(resize_height=40, resize_width=40)
build_lmdb(folder, f"{folder}/{rows}.txt", f"{folder}/db{rows}", options)
images = ImageList(f"{folder}/{rows}.txt")
assert check_lmdb(f"{folder}/db{rows}", images=images).fault_count == 0
assert summarise(f"{folder}/db{rows}").rows == compute_mean(f"{folder}/db{rows}").rows == rows
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_rows(tmp_path):
    """20,000 rows of 4.8 kB make a database of 160 MB; its peak stays near that of 1,000 rows."""
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((8, 8, 3), np.uint8))
    peaks = []
    for rows in (1_000, 20_000):
        (tmp_path / f"{rows}.txt").write_text("x.png 0\n" * rows)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, tmp_path, str(rows)], cwd=ROOT, capture_output=True, check=True
        )
        peaks.append(int(done.stdout))
    assert (tmp_path / "db20000" / "data.mdb").stat().st_size > 150 << 20
    assert peaks[1] < peaks[0] + 100, peaks
