"""`ilgnet score`: what it takes, how it prints it, what it does with bad images, and what it keeps."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_ssd
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.reading.labels import read_labels

NET = ["--weights", "ten.caffemodel", "--prototxt", "ten.prototxt", "--scale", "0.01"]
NAMES = ["images/2.png", "images/=1+2.png", "images/sub/0.png", "images/sub/deep/3.png"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """A net of ten bins, and a folder with subfolders, other files and a name that a spreadsheet would compute."""
    monkeypatch.chdir(tmp_path)
    text = SMALL_TEXT.replace("num_output: 5", "num_output: 10")
    write_weights(tmp_path / "ten.caffemodel", text)
    Path("ten.prototxt").write_text(text)
    for index, name in enumerate(NAMES):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (20 + index, 31, 3), np.uint8)
        assert cv2.imwrite(name, pixels)
    Path("images/notes.txt").write_text("x")
    Path("images/sub/clip.mp4").write_text("x")
    Path("images/sub/._a.jpg").write_text("of macOS")
    return tmp_path


def run(capsys, *arguments: str, status: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["score", *arguments, *NET]) == status
    return capsys.readouterr()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_of_a_folder(here, capsys) -> None:
    out, err = run(capsys, "images", "--csv")
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [NAMES[0], NAMES[1], NAMES[2], NAMES[3]]
    assert list(rows[0]) == ["path", "mean", "deviation", "error"]
    assert "note: images: 3 files that are not images were skipped (.txt 1, ._* 1, .mp4 1)" in err
    values = [json.loads(line)["outputs"]["prob"] for line in run(capsys, "images", "--json")[0].splitlines()]
    for row, bins in zip(rows, values, strict=True):
        assert float(row["mean"]) == pytest.approx(np.arange(1, 11) @ np.array(bins))


def test_cells_that_a_spreadsheet_would_compute_are_quoted(here, capsys) -> None:
    os.chdir("images")
    net = [part if not part.startswith("ten.") else f"../{part}" for part in NET]
    assert main(["score", "=1+2.png", *net, "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("'=1+2.png,")


def test_sorted_and_the_best(here, capsys) -> None:
    by_name = {row["path"]: float(row["mean"]) for row in rows_of(run(capsys, "images", "--csv")[0])}
    best_first = sorted(by_name, key=by_name.__getitem__, reverse=True)
    for options, count in ((["--sort"], 4), (["--top", "2"], 2)):
        rows = rows_of(run(capsys, "images", "--csv", *options)[0])
        assert [row["path"] for row in rows] == best_first[:count]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(["images/**/*.png"], NAMES), (["--list", "list.txt"], [NAMES[2], NAMES[0]]), (["list.txt"], [NAMES[2], NAMES[0]]),
     (["--list", "below.txt", "--root", "images"], [NAMES[2]]), (["-"], NAMES[:2]),
     (["--list", "windows.txt", "--root", "images"], [NAMES[2]])],
    ids=["pattern", "list", "list without an option", "list with root", "stdin", "list of Windows"],
)  # fmt: skip
def test_what_names_images(here, capsys, monkeypatch, given, expected) -> None:
    Path("list.txt").write_text(f"{NAMES[2]} 7\n\n{NAMES[0]}\n")
    Path("below.txt").write_text("sub/0.png 1\n")
    Path("windows.txt").write_bytes(b"sub\\0.png 1\r\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(NAMES[:2])))
    out, _ = run(capsys, *given, "--jsonl")
    assert sorted(json.loads(line)["picture"] for line in out.splitlines()) == sorted(expected)


def test_bad_images_are_named_and_the_others_scored(here, capsys) -> None:
    Path("images/bad.png").write_text("no image")
    out, err = run(capsys, "images", "gone.png", "--csv", status=1)
    rows = rows_of(out)
    assert len(rows) == 6 and sum(bool(row["mean"]) for row in rows) == 4
    assert "not scored: images/bad.png: " in err and "not scored: gone.png: no such file" in err
    assert err.splitlines()[-1] == "ilgnet: 2 of 6 images were not scored; they are named above"
    out, err = run(capsys, "images", status=1)
    assert len(out.splitlines()) == 4
    assert err.splitlines()[-1].startswith("ilgnet: images/bad.png: ")
    assert err.splitlines()[-1].endswith("(the other 4 images are scored)")
    _, err = run(capsys, "gone.png", NAMES[0], status=1)
    assert err == "ilgnet: gone.png: no such file (the other image is scored)\n"


REFUSED = {
    "nothing": ([], "IMAGE is missing; give files, folders, - for stdin, or --list FILE"),
    "pattern": (["no*.png"], "no*.png: matches no file; check the pattern"),
    "draw": (["images", "--draw", "d"], "--draw d: the net does not end in DetectionOutput; leave it out"),
    "a threshold without boxes": (
        ["images", "--threshold", "0.5"],
        "--threshold 0.5: the net does not end in DetectionOutput; leave it out",
    ),
    "a root without a list": (
        ["images", "--root", "images"],
        "--root images: goes with a list (--list FILE, or - for stdin); give one, or leave it out",
    ),
    "a cache that is a net": (["images", "--cache", "other"], "other: cannot be used as a cache"),
    "out is an input": (["images", "--out", "ten.caffemodel"], "--out ten.caffemodel: is the input"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(here, capsys, options, message) -> None:
    Path("other").write_text("not a database at all, and longer than its header of a hundred bytes" * 9)
    _, err = run(capsys, *options, status=1)
    assert err.splitlines()[-1].startswith(f"ilgnet: {message}")
    assert not Path("d").exists()


LABELMAP = 'item { name: "none" label: 0 display_name: "background" }\nitem { name: "n1" label: 2 display_name: "dog" }'


def test_labels_of_ssd(tmp_path) -> None:
    path = tmp_path / "labelmap.prototxt"
    path.write_text(LABELMAP)
    assert read_labels(path) == ("background", "1", "dog")
    for text in (
        LABELMAP.replace("label: 2", "label: 0"),
        LABELMAP.replace("label: 2", "label: 99999999999"),
    ):
        path.write_text(text)
        with pytest.raises(IlgnetError, match=r"labelmap\.prototxt: "):
            read_labels(path)


def test_boxes_are_printed_and_drawn(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    prototxt, weights = small_ssd.write(tmp_path)
    Path("map.prototxt").write_text(LABELMAP)
    cv2.imwrite("a.png", np.random.default_rng(3).integers(0, 256, (60, 90, 3), np.uint8))
    options = ["score", "a.png", "--weights", str(weights), "--prototxt", str(prototxt), "--order", "BGR"]
    assert main([*options, "--csv", "--labels", "map.prototxt", "--draw", "drawn"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert list(rows[0]) == ["path", "label", "score", "xmin", "ymin", "xmax", "ymax", "error"]
    assert {row["label"] for row in rows} <= {"1", "dog"}
    drawn = cv2.imread("drawn/a.jpg")
    assert drawn.shape == (60, 90, 3) and np.abs(drawn.astype(int) - cv2.imread("a.png")).max() > 50
    assert main([*options, "--csv", "--top", "1"]) == 0
    (best,) = rows_of(capsys.readouterr().out)
    assert float(best["score"]) == max(float(row["score"]) for row in rows)
    nothing = [*options, "--threshold", "1e9"]
    assert main(nothing) == 0
    assert capsys.readouterr().out == "a.png\tno boxes\n"
    assert main([*nothing, "--csv"]) == 0
    assert [row["path"] for row in rows_of(capsys.readouterr().out)] == ["a.png"]


def test_a_cache_gives_the_same_and_needs_no_net(here, capsys) -> None:
    Path("images/bad.png").write_text("no image")
    for name in [*NAMES, "images/bad.png", "ten.caffemodel", "ten.prototxt"]:
        os.utime(name, (1, 1))
    arguments = ["images", "--csv", "--cache", "kept.db", "--batch", "3"]
    first = run(capsys, *arguments, status=1)
    code = (
        "import sys; from ilgnet_repro.cli.main import main; status = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    again = subprocess.run(
        [sys.executable, "-c", code, "score", *arguments, *NET], capture_output=True, text=True, check=False
    )
    assert (again.stdout, again.returncode) == (first[0], 1), again.stderr
    os.rename("images/2.png", "images/moved.png")  # kept by its content
    cv2.imwrite("images/sub/0.png", np.zeros((9, 9, 3), np.uint8))  # another content under the name
    moved = {row["path"]: row["mean"] for row in rows_of(run(capsys, *arguments, status=1)[0])}
    before = {row["path"]: row["mean"] for row in rows_of(first[0])}
    assert moved["images/moved.png"] == before["images/2.png"]
    assert moved["images/sub/0.png"] != before["images/sub/0.png"]
    other = rows_of(run(capsys, *arguments, "--mean-value", "50", status=1)[0])
    assert {row["path"]: row["mean"] for row in other}["images/moved.png"] != before["images/2.png"]


@pytest.mark.parametrize("suffix", ["csv", "CSV", "jsonl", "json", "txt"])
def test_the_name_of_the_output_chooses_its_form(here, capsys, suffix) -> None:
    option = {"csv": ["--csv"], "jsonl": ["--jsonl"], "json": ["--json"], "txt": []}[suffix.lower()]
    run(capsys, "images", "--out", f"found.{suffix}")
    stated, _ = run(capsys, "images", *option)
    assert Path(f"found.{suffix}").read_text() == stated


def test_top_needs_a_score_or_names(here, capsys) -> None:
    out, err = run(capsys, "images", "--no-distribution", "--top", "2", status=1)
    assert out == ""
    assert err.endswith(
        "ilgnet: --top 2: the net gives no score, and its classes have no names; give --labels FILE\n"
    )


def test_a_cache_of_a_run_killed_at_its_beginning(here, capsys) -> None:
    base = sqlite3.connect("begun.db")
    base.execute("pragma journal_mode = wal")
    base.close()
    run(capsys, "images", "--csv", "--cache", "begun.db")
    base = sqlite3.connect("other.db")
    base.execute("create table mine (x int)")
    base.close()
    _, err = run(capsys, "images", "--cache", "other.db", status=1)
    assert err.endswith("ilgnet: other.db: is not a cache of scores of this version; give another name\n")


def test_a_killed_run_resumes_to_the_same_csv(here, capsys) -> None:
    rng = np.random.default_rng(9)
    for index in range(120):
        cv2.imwrite(f"images/many{index}.png", rng.integers(0, 256, (30, 41, 3), np.uint8))
    arguments = ["images", "--csv", "--batch", "8"]
    run(capsys, *arguments, "--cache", "whole.db", "--out", "whole.csv")
    command = [
        sys.executable,
        "-m",
        "ilgnet_repro",
        "score",
        *arguments,
        *NET,
        "--cache",
        "killed.db",
        "--out",
        "killed.csv",
    ]
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not Path("killed.db").exists() and started.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not Path("killed.csv").exists()
    run(capsys, *arguments, "--cache", "killed.db", "--out", "killed.csv")
    assert Path("killed.csv").read_bytes() == Path("whole.csv").read_bytes()
