"""Readers of one database share its environment, and memory does not grow with its rows."""

import os
import subprocess
import sys

import cv2
import numpy as np
from places import ROOT

from ilgnet_repro.reading.lmdb_read import LmdbReader

ROWS = 24


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
