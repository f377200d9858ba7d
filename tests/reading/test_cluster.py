"""Databases built on a cluster are those built here. Ray takes a quarter of a minute to start: ``make cluster``."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import DataError
from ilgnet_repro.reading.cluster import check_cluster
from ilgnet_repro.reading.lmdb_build import BuildOptions, build_lmdb
from ilgnet_repro.reading.lmdb_read import LmdbReader

ROWS = 75


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(4)
    (folder / "images").mkdir()
    for number in range(ROWS):
        image = rng.integers(0, 256, (9 + number % 4, 14, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
    for number in (3, 40):
        (folder / "images" / f"{number}.png").write_bytes(b"no image")
    (folder / "list.txt").write_text("".join(f"{number}.png {number % 3}\n" for number in range(ROWS)))


def contents(path: Path) -> list[tuple[bytes, bytes]]:
    return [(bytes(row.key), bytes(row.value)) for row in LmdbReader(path)]


def test_two_workers_build_the_same_database(tmp_path: Path, monkeypatch, two_workers) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    command = [
        "lmdb",
        "make",
        "--resize_height=8",
        "--resize_width=6",
        "--shuffle",
        "--seed=3",
        "images/",
        "list.txt",
    ]
    assert main([*command, "here"]) == 0
    assert main([*command, "--cluster", "ray", "spread"]) == 0
    assert contents(tmp_path / "spread") == contents(tmp_path / "here")
    bad = [(tmp_path / f"{name}.bad.txt").read_text().split("\t")[:4:3] for name in ("here", "spread")]
    assert bad[0] == bad[1]
    # A build that was stopped resumes after its last row.
    options = BuildOptions(8, 6, seed=3)

    class Stopped(Exception):
        pass

    def stop(done: int, rows: int) -> None:
        if done == 60:
            raise Stopped

    monkeypatch.setattr("ilgnet_repro.reading.lmdb_build.BATCH_ROWS", 20)
    with pytest.raises(Stopped):
        build_lmdb("images/", "list.txt", "again", options, cluster="ray", progress=stop)
    report = build_lmdb("images/", "list.txt", "again", options, cluster="ray")
    assert report.start_row > 0 and report.stored == ROWS - 2
    assert contents(tmp_path / "again") == contents(tmp_path / "here")


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    write_images(tmp_path)
    assert main(["lmdb", "make", "--cluster", "ray", "images/", "list.txt", "spread"]) == 1
    assert (
        capsys.readouterr().err
        == "ilgnet: --cluster ray: ray is not installed; pip install 'ilgnet_repro[ray]'\n"
    )
    assert not (tmp_path / "spread").exists() and not (tmp_path / "spread.partial").exists()


def test_another_cluster() -> None:
    with pytest.raises(DataError, match="cluster='dask': is not supported; use ray"):
        check_cluster("dask")
