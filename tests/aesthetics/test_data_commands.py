"""The commands ``ilgnet lmdb | mean | sheet`` and their tools, as users type them."""

import base64
import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from places import ROOT

from ilgnet_repro.cli._gflags import from_gflags
from ilgnet_repro.cli.main import main
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.sheet import histogram


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-gray", "--resize_width=4"], ["--gray", "--resize_width=4"]),
        (["--gray=true", "-encoded=1", "a", "b"], ["--gray", "--encoded", "a", "b"]),
        (["--gray=false", "--noencoded", "-resize_height", "3"], ["--resize_height", "3"]),
        (["--logtostderr=1", "--", "-gray"], ["--", "-gray"]),
        (["--gray=perhaps", "-unknown", "-7"], ["--gray=perhaps", "--unknown", "-7"]),
        (["--gray", "--gray=0", "-encoded=f", "--encoded=T"], ["--encoded"]),
        (["-minloglevel", "2", "-v=1", "-log_dir=x", "--nologtostderr", "-stderrthreshold", "0", "a"], ["a"]),
        (["-backend=lmdb", "--nothing"], ["--backend=lmdb", "--nothing"]),
    ],
    ids=[
        "single-dash",
        "true",
        "false",
        "logging-and-end",
        "left-to-argparse",
        "last-counts",
        "logging-with-values",
        "values",
    ],
)
def test_gflags(given, expected):
    assert from_gflags(given, ("gray", "encoded")) == expected


# One build and one mean, by each name the program has for Caffe's tools.
MAKERS = {
    "lmdb-make": ["lmdb", "make"],
    "caffe-convert_imageset": ["caffe", "convert_imageset"],
}
MEANS = {"mean": ["mean"], "caffe-compute_image_mean": ["caffe", "compute_image_mean"]}


@pytest.mark.parametrize("command", MAKERS.values(), ids=MAKERS)
def test_making_takes_flags_as_people_type_them(command, golden, tmp_path, capsys):
    """Of rows 3 x 64 x 64 in Caffe's own database; grey rows have a third of the values."""
    images, listed = f"{golden}/pipeline/images/", str(golden / "pipeline" / "list.txt")
    sides = ["-resize_height=64", "--resize_width", "64", "-logtostderr=1", "-minloglevel", "1"]
    given = [*sides, "--gray=1", "--gray=false", "--shuffle=0", "-noencoded", "-backend=lmdb"]
    assert main([*command, *given, images, listed, str(tmp_path / "db")]) == 0
    assert list(LmdbReader(tmp_path / "db")) == list(LmdbReader(golden / "pipeline" / "raw64_lmdb"))
    given = [*sides, "-gray=true", "--check_size=yes"]
    assert main([*command, *given, images, listed, str(tmp_path / "grey")]) == 0
    shapes = {row.image()[0].shape for row in LmdbReader(tmp_path / "grey")}
    assert shapes == {(1, 64, 64)}
    capsys.readouterr()
    assert main([*command, "--gray=perhaps", images, listed, str(tmp_path / "no")]) == 1
    err = capsys.readouterr().err
    assert "argument --gray: ignored explicit argument 'perhaps'" in err and err.count("\n") == 1


@pytest.mark.parametrize("command", MEANS.values(), ids=MEANS)
def test_means_take_flags_as_people_type_them(command, golden, tmp_path, capsys):
    pipeline = golden / "pipeline"
    flags = ["-backend=lmdb", "--caffe-rounding=true", "-logtostderr"]
    assert main([*command, *flags, str(pipeline / "raw64_lmdb"), str(tmp_path / "m")]) == 0
    assert (tmp_path / "m").read_bytes() == (pipeline / "raw64_mean.binaryproto").read_bytes()
    assert main([*command, "-backend=leveldb", str(pipeline / "raw64_lmdb")]) == 1
    assert "--backend leveldb: only lmdb is supported" in capsys.readouterr().err


def test_tools_take_caffes_own_flags(golden, tmp_path):
    pipeline = golden / "pipeline"
    command = [
        sys.executable, ROOT / "tools" / "make_lmdb.py", "-resize_height", "64", "--resize_width=64",
        "--gray=false", "--backend=lmdb", f"{pipeline}/images/", pipeline / "list.txt", tmp_path / "db",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"{tmp_path}/db: 24 of 24 rows stored\n"
    assert list(LmdbReader(tmp_path / "db")) == list(LmdbReader(pipeline / "raw64_lmdb"))
    command = [
        sys.executable,
        ROOT / "tools" / "compute_mean.py",
        "-backend",
        "lmdb",
        tmp_path / "db",
        tmp_path / "m",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (tmp_path / "m").read_bytes() == (pipeline / "raw64_mean.binaryproto").read_bytes()
    reported = [line.split("] ", 1)[1] for line in (pipeline / "mean_raw64.log").read_text().splitlines()]
    assert done.stdout.splitlines() == reported[-4:]  # Caffe's lines, word for word


def test_make_info_check_export(golden, tmp_path, capsys):
    pipeline = golden / "pipeline"
    listed, made = str(pipeline / "list_with_broken.txt"), str(tmp_path / "db")
    assert main(["lmdb", "make", "--json", "--encoded", f"{pipeline}/images/", listed, made]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["rows"], report["stored"], [row["number"] for row in report["bad"]]) == (10, 8, [5, 6])
    assert "skipped: row 5:" in err and "broken.jpg: cannot be decoded" in err
    assert main(["lmdb", "info", made]) == 0
    assert "label 1: 3 rows" in capsys.readouterr().out
    assert main(["lmdb", "check", made, "--list", listed, "--labels", "2"]) == 0
    assert main(["lmdb", "check", made, "--labels", "1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fault_count"] == 3
    assert main(["lmdb", "export", made, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "0001.jpg").read_bytes() == (pipeline / "images" / "0001.jpg").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["lmdb", "make", "--backend=leveldb", "a/", "l", "d"],
            "--backend leveldb: only lmdb is supported; give lmdb,",
        ),
        (["lmdb", "make", "a/", "absent.txt", "d"], "absent.txt: cannot be read"),
        (["lmdb", "info", "absent"], "absent: is not an LMDB"),
        (["mean", "absent"], "absent: is not an LMDB"),
        (["sheet", "absent", "--out", "p.html"], "absent: cannot be read"),
    ],
    ids=["leveldb", "no-list", "no-database", "no-mean", "no-sheet"],
)
def test_wrong_input_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_mean_converts_and_prints(golden, tmp_path, capsys):
    source = str(golden / "pipeline" / "png48_mean.binaryproto")
    assert main(["mean", source, str(tmp_path / "m.npy"), "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["shape"] == [3, 48, 48] and [f"{value:g}" for value in reported["channels"]] == [
        "129.656",
        "116.6",
        "117.54",
    ]
    assert main(["mean", str(tmp_path / "m.npy"), str(tmp_path / "m.binaryproto")]) == 0
    assert (tmp_path / "m.binaryproto").read_bytes() == (
        golden / "pipeline" / "png48_mean.binaryproto"
    ).read_bytes()


@pytest.mark.parametrize("kind", ["list", "database"])
def test_sheet_counts_and_shows(kind, golden, tmp_path, capsys):
    pipeline = golden / "pipeline"
    if kind == "list":
        source = [str(pipeline / "list_with_broken.txt"), "--root", f"{pipeline}/images/"]
        shown, labels, unreadable = 8, {"0": 6, "1": 4}, 2
    else:
        source, shown, labels, unreadable = [str(pipeline / "png48_lmdb")], 6, {"0": 11, "1": 13}, 0
        source += ["--per-label", "3"]
    pages = [str(tmp_path / "page.html"), str(tmp_path / "page.png")]
    assert main(["sheet", *source, "--out", pages[0], "--out", pages[1], "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert (reported["labels"], len(reported["unreadable"])) == (labels, unreadable)
    text = (tmp_path / "page.html").read_text()
    thumbnails = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(thumbnails) == shown and "http" not in text.replace("http://www.w3.org", "")
    for thumbnail in thumbnails:
        image = cv2.imdecode(np.frombuffer(base64.b64decode(thumbnail), np.uint8), cv2.IMREAD_COLOR)
        assert max(image.shape[:2]) == 112
    for label, count in labels.items():
        assert f"<td>{label}</td><td>{count}</td>" in text
    page = cv2.imread(pages[1])
    assert page is not None and page.std() > 10


def test_sheet_escapes_names_and_refuses_other_pages(golden, tmp_path, capsys):
    (tmp_path / "<b>.png").write_bytes((golden / "pipeline" / "images" / "0000.png").read_bytes())
    (tmp_path / "list.txt").write_text("<b>.png 1\n<script>.png 0\n")
    source = [str(tmp_path / "list.txt"), "--root", str(tmp_path)]
    assert main(["sheet", *source, "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;.png" in text and "<b>" not in text and "<script>" not in text
    assert main(["sheet", *source, "--out", str(tmp_path / "page.pdf")]) == 1
    assert "use .html or .png" in capsys.readouterr().err


@pytest.mark.parametrize("values", [[5], [1, 2, 3, 900], list(range(100))], ids=["one", "wide", "even"])
def test_histogram_counts_each_once(values):
    steps = list(histogram(np.array(values), bins=10))
    assert sum(count for _, _, count in steps) == len(values) and len(steps) <= 10
    assert steps[0][0] == min(values) and steps[-1][1] >= max(values)
