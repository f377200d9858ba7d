"""Builds under flags, bad input, kills and full disks."""

import os
import random
import resource
import signal
import subprocess
import sys
from collections import namedtuple

import cv2
import numpy as np
import pytest
from places import ROOT

from ilgnet_repro.errors import DataError
from ilgnet_repro.reading import lmdb_write
from ilgnet_repro.reading.image_list import ImageList
from ilgnet_repro.reading.lmdb_build import BuildOptions, build_lmdb
from ilgnet_repro.reading.lmdb_read import LmdbReader


@pytest.fixture
def images(tmp_path):
    """Eight images of 11 rows by 14 and one of 9 by 5, in a separate folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (11, 14, 3), dtype=np.uint8))
    cv2.imwrite(str(folder / "other.png"), rng.integers(0, 256, (9, 5, 3), dtype=np.uint8))
    return folder


def write_list(folder, names):
    path = folder.parent / "list.txt"
    path.write_text("".join(f"{name} {number % 3}\n" for number, name in enumerate(names)))
    return path


def contents(path):
    return [(row.key, row.value) for row in LmdbReader(path)]


def test_shuffle_is_seeded_and_numbers_follow_it(images, tmp_path):
    names = [f"{number % 8}.png" for number in range(40)]
    listed = write_list(images, names)
    built = {}
    for name, seed in (("a", 7), ("b", 7), ("c", 8), ("plain", None)):
        build_lmdb(images, listed, tmp_path / name, BuildOptions(seed=seed))
        built[name] = contents(tmp_path / name)
    assert built["a"] == built["b"] != built["c"]
    assert sorted(value for _, value in built["a"]) == sorted(value for _, value in built["plain"])
    assert [key for key, _ in built["a"]] == [
        b"%08d_%s" % (number, row.path.encode()) for number, row in enumerate(ImageList(listed, 7))
    ]


@pytest.mark.parametrize(
    ("name", "options", "suffix"),
    [
        ("a.jpeg", {"encode_type": "jpg"}, None),
        ("a.JPG", {"encoded": True}, None),
        ("a.jpg", {"encode_type": "png"}, b"\x89PNG"),
        ("a.jpg", {"encode_type": "jpg", "resize_height": 3}, b"\xff\xd8"),
        ("a.jpg", {"encode_type": "jpg", "resize_height": 3, "resize_width": 4}, b"\xff\xd8"),
    ],
    ids=["jpeg-is-jpg", "suffix-in-lower-case", "other-kind", "one-side-only", "resized"],
)
def test_a_files_bytes_are_kept_only_where_nothing_changes(name, options, suffix, tmp_path):
    image = cv2.resize(np.arange(60, dtype=np.uint8).reshape(4, 5, 3), (10, 8))
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1].tobytes()
    (tmp_path / name).write_bytes(data)
    (tmp_path / "list.txt").write_text(f"{name} 1\n")
    build_lmdb(tmp_path, tmp_path / "list.txt", tmp_path / "db", BuildOptions(**options))
    stored = LmdbReader(tmp_path / "db")[0].datum().data
    assert stored == data if suffix is None else stored != data and stored.startswith(suffix)


def test_map_grows(images, tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_write.LmdbWriter.__init__, "__defaults__", (64 << 10,))
    listed = write_list(images, [f"{number % 8}.png" for number in range(600)])
    build_lmdb(images, listed, tmp_path / "db", BuildOptions(resize_height=30, resize_width=20))
    assert len(LmdbReader(tmp_path / "db")) == 600
    assert (tmp_path / "db" / "data.mdb").stat().st_size > 600 * 30 * 20 * 3


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (
            ["0.png", "other.png"],
            {"check_size": True},
            "other.png: has 135 values where the first image has 462",
        ),
        (["0.png"], {"encode_type": "foo"}, "encode_type 'foo' cannot be written; use png or jpg"),
        (["0.png"], {"resize_width": -1}, "resize_width -1: give 0"),
        (["0.png"], {"seed": -1}, "seed -1: is not an integer from 0"),
        ([], {}, "list.txt: has no rows"),
    ],
    ids=["check-size", "encode-type", "negative-side", "seed", "empty-list"],
)
def test_refused(names, options, message, images, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        build_lmdb(images, write_list(images, names), tmp_path / "db", BuildOptions(**options))
    assert "\n" not in str(caught.value) and not (tmp_path / "db").exists()


@pytest.mark.parametrize(
    "names", [["9.png", "missing.png"], ["0.png 1", "1.png 0"]], ids=["missing", "labels"]
)
def test_a_build_that_stores_no_row_fails(names, images, tmp_path):
    with pytest.raises(DataError) as raised:
        build_lmdb(images, write_list(images, names), tmp_path / "db")
    why = "its row has several labels" if " " in names[0] else "remove the row or replace the image"
    start = (
        f"{tmp_path}/db: none of the 2 rows could be stored (row 0: {images}/{names[0]}: no such file; {why}"
    )
    assert str(raised.value).startswith(start)
    assert str(raised.value).endswith(f"); {tmp_path}/db.bad.txt lists why")
    assert len((tmp_path / "db.bad.txt").read_text().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db.bad.txt", "images", "list.txt"]
    assert build_lmdb(images, write_list(images, ["0.png"]), tmp_path / "db").stored == 1
    assert not (tmp_path / "db.bad.txt").exists()


def test_check_size_accepts_equal_sizes(images, tmp_path):
    listed = write_list(images, ["0.png", "1.png", "missing.png", "2.png"])
    report = build_lmdb(images, listed, tmp_path / "db", BuildOptions(check_size=True, encoded=True))
    assert (report.stored, len(report.bad)) == (3, 1)


def test_strict_stops_and_a_repaired_image_lets_it_continue(images, tmp_path):
    listed = write_list(images, ["0.png", "late.png", "1.png"])
    with pytest.raises(DataError, match=r"list.txt: row 1: .*late.png: no such file"):
        build_lmdb(images, listed, tmp_path / "db", strict=True)
    assert not (tmp_path / "db").exists()
    (images / "late.png").write_bytes((images / "5.png").read_bytes())
    assert build_lmdb(images, listed, tmp_path / "db", strict=True).stored == 3


def test_a_key_longer_than_lmdbs_is_a_bad_row(images, tmp_path):
    deep = "/".join(["d" * 100] * 6) + ".png"
    (images / deep).parent.mkdir(parents=True)
    (images / deep).write_bytes((images / "0.png").read_bytes())
    report = build_lmdb(images, write_list(images, ["0.png", deep]), tmp_path / "db")
    assert report.stored == 1 and "longer than an LMDB key (511 bytes)" in report.bad[0].reason


def test_an_existing_target_is_not_changed(images, tmp_path):
    listed = write_list(images, ["0.png"])
    build_lmdb(images, listed, tmp_path / "db")
    before = contents(tmp_path / "db")
    with pytest.raises(DataError, match="db: already exists; remove it or give another name"):
        build_lmdb(images, write_list(images, ["1.png"]), tmp_path / "db")
    assert contents(tmp_path / "db") == before


def test_resume_refuses_other_flags(images, tmp_path):
    listed = write_list(images, ["0.png", "missing.png"])
    with pytest.raises(DataError, match="no such file"):
        build_lmdb(images, listed, tmp_path / "db", strict=True)
    with pytest.raises(DataError, match=r"was begun with gray False, now True; give the same arguments"):
        build_lmdb(images, listed, tmp_path / "db", BuildOptions(gray=True))
    with pytest.raises(DataError, match=r"was begun with list .*, rows 2, now 1"):
        build_lmdb(images, write_list(images, ["0.png"]), tmp_path / "db")


def test_two_builds_of_one_database_do_not_interfere(images, tmp_path):
    def second(*_):
        build_lmdb(images, listed, tmp_path / "db")

    listed = write_list(images, ["0.png", "1.png"])
    with pytest.raises(DataError, match=r"db.partial: another process is building it"):
        build_lmdb(images, listed, tmp_path / "db", progress=second)
    assert build_lmdb(images, listed, tmp_path / "db").stored == 2


def test_full_disk_is_one_line_and_the_build_resumes(images, tmp_path, monkeypatch):
    listed = write_list(images, [f"{number % 8}.png" for number in range(2000)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(lmdb_write.shutil, "disk_usage", lambda path: usage(0))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
        with pytest.raises(DataError) as caught:
            build_lmdb(images, listed, tmp_path / "db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).endswith("the disk is full; free some space and run the same command again")
    report = build_lmdb(images, listed, tmp_path / "db")
    assert report.stored == 2000 and report.start_row > 0
    build_lmdb(images, listed, tmp_path / "whole")
    assert contents(tmp_path / "db") == contents(tmp_path / "whole")


def test_killed_builds_resume_to_the_same_database(images, tmp_path):
    names = ["missing.png" if number % 97 == 5 else f"{number % 8}.png" for number in range(15_000)]
    listed = write_list(images, names)
    build_lmdb(images, listed, tmp_path / "whole", BuildOptions(encoded=True))
    command = [
        sys.executable,
        ROOT / "tools" / "make_lmdb.py",
        "-encoded",
        f"{images}",
        listed,
        tmp_path / "db",
    ]
    chance, began = random.Random(3), []
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        process.stderr.readline()  # "skipped: row 5", or a later one: the build is running
        try:
            process.communicate(timeout=chance.uniform(0, 0.3))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            began.append(process.returncode)
        if (tmp_path / "db").exists():
            break
    if not (tmp_path / "db").exists():
        build_lmdb(f"{images}", listed, tmp_path / "db", BuildOptions(encoded=True))
    assert -signal.SIGKILL in began
    assert contents(tmp_path / "db") == contents(tmp_path / "whole")
    assert (tmp_path / "db.bad.txt").read_bytes() == (tmp_path / "whole.bad.txt").read_bytes()
    assert sorted(os.listdir(tmp_path / "db")) == ["data.mdb"] and not (tmp_path / "db.partial").exists()


@pytest.mark.parametrize("at", ["rename", "rmdir"])
def test_interrupted_in_the_last_steps(at, images, tmp_path, monkeypatch):
    """After each of the last steps the next run finishes, or finds the database complete."""
    from ilgnet_repro.reading import lmdb_build_journal as journal

    def stop(*_):
        raise KeyboardInterrupt

    listed = write_list(images, ["0.png", "missing.png", "1.png"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(journal.os, at, stop)
        build_lmdb(images, listed, tmp_path / "db")
    if at == "rename":
        assert build_lmdb(images, listed, tmp_path / "db").stored == 2
    assert len(LmdbReader(tmp_path / "db")) == 2 and (tmp_path / "db.bad.txt").exists()
