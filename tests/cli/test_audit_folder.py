"""`ilgnet audit FOLDER`: what someone with a disk of old models sees."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from small_nets import SHARED_TEXT, SMALL_TEXT, write_weights

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main

WIDER = SMALL_TEXT.replace("num_output: 5", "num_output: 6")


@pytest.fixture(autouse=True)
def disk(tmp_path, monkeypatch) -> Path:
    """Folders of nets: one whole, its training text elsewhere, others that lack something."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b/deep", "c", "d", "e", ".hidden"):
        Path("disk", name).mkdir(parents=True)
    write_weights(Path("disk/a/net.caffemodel"))
    Path("disk/a/deploy.prototxt").write_text(SMALL_TEXT)
    Path("disk/a/solver.prototxt").write_text('net: "train.prototxt" base_lr: 0.1')
    Path("disk/a/labels.txt").write_text("cat\ndog\n")
    # A training text, whose weights are in another folder.
    start = SMALL_TEXT.index('layer { name: "conv"')
    data = 'layer { name: "d" type: "Data" top: "data" data_param { source: "train_lmdb" batch_size: 4 } }\n'
    Path("disk/b/deep/train.txt").write_text(data + SMALL_TEXT[start:])
    # An unsupported layer, and weights that do not fit.
    Path("disk/c/odd.prototxt").write_text(
        SHARED_TEXT.replace('"InnerProduct" bottom: "a"', '"Odd" bottom: "a"')
    )
    Path("disk/c/wide.prototxt").write_text(WIDER)
    write_weights(Path("disk/c/small.caffemodel"))
    # Weights alone, a page with the name of weights, and a text that cannot be read.
    write_weights(Path("disk/d/alone.caffemodel"), SHARED_TEXT)
    Path("disk/d/page.caffemodel").write_text("<!doctype html><html></html>")
    Path("disk/d/cut.prototxt").write_text(SMALL_TEXT[:200])
    ir.save(ir.load("disk/a/net.caffemodel"), "disk/e/net.safetensors")
    Path("disk/.hidden/x.prototxt").write_text(SMALL_TEXT)
    return tmp_path


LAYER_ODD = "b (Odd): layer type is unknown; register a class for it (docs/layers.md)"
# prototxt, weights, status, what is missing (its beginning)
ROWS = [
    ("disk/a/deploy.prototxt", ["disk/a/net.caffemodel"], "runs", ""),
    ("disk/b/deep/train.txt", ["disk/a/net.caffemodel", "disk/c/small.caffemodel"], "needs",
     "d (Data): give the shape of 'data'; it is known only from train_lmdb (input_shapes={'data': (N, C, H, W)})"),
    ("disk/c/odd.prototxt", ["disk/d/alone.caffemodel"], "blocked", LAYER_ODD),
    ("disk/c/wide.prototxt", [], "needs",
     "small.caffemodel does not fit: layer ip, blob 0 is 5x24 in the file and 6x24 in the net"),
    ("disk/d/cut.prototxt", [], "blocked", "disk/d/cut.prototxt:4:83: expected : after convolution_pa, found the end"),
    ("", ["disk/d/page.caffemodel"], "blocked", "page.caffemodel: is a web page (HTML), not weights; download the file"),
    ("disk/e/net.safetensors", ["disk/e/net.safetensors"], "runs", ""),
]  # fmt: skip


def test_a_row_per_net(capsys) -> None:
    assert main(["audit", "disk", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    shown = [(row["prototxt"], row["weights"], row["status"], (row["missing"] or [""])[0]) for row in found]
    assert len(shown) == len(ROWS)
    for row, expected in zip(shown, ROWS, strict=True):
        assert row[:3] == expected[:3]
        assert row[3].startswith(expected[3]) and bool(row[3]) == bool(expected[3])
    assert (found[0]["net"], found[0]["layers"], found[0]["parameters"]) == ("small", 6, 237)


def test_csv_has_the_same_rows(capsys) -> None:
    Path("disk/e/=1+1.prototxt").write_text(SMALL_TEXT)
    assert main(["audit", "disk/a", "disk/e", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["status"] for row in rows] == ["runs", "runs", "runs"]
    assert rows[0]["weights"] == "disk/a/net.caffemodel"
    assert rows[1] == {
        "prototxt": "disk/e/=1+1.prototxt", "net": "small", "weights": "disk/a/net.caffemodel", "status": "runs",
        "missing": "", "layers": "6", "parameters": "237",
    }  # fmt: skip


def test_the_table_and_a_given_shape(capsys) -> None:
    assert main(["audit", "disk/a", "disk/b", "--shape", "data=2,3,9,7"]) == 0
    shown = capsys.readouterr().out
    assert "2 nets: 2 run, 0 need a shape or weights, 0 blocked" in shown
    assert main(["audit", "disk/b"]) == 0  # what is needed blocks nothing
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 net: 0 run, 1 need a shape or weights, 0 blocked" in shown


REFUSED = {
    "candidates": (
        ["disk", "--candidates", "disk/a/deploy.prototxt"],
        "--candidates: goes with a weights file, not with folders",
    ),
    "both forms": (["disk", "--csv", "--json"], "--csv and --json: give one of them"),
    "csv of a net": (["disk/a/deploy.prototxt", "--csv"], "--csv: is for folders; for one net give --json"),
    "a file beside a folder": (
        ["disk", "disk/a/deploy.prototxt"],
        "disk/a/deploy.prototxt: is not a folder; give folders only, or one prototxt and one weights file",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(capsys, arguments, message) -> None:
    assert main(["audit", *arguments]) == 1
    assert capsys.readouterr().err == f"ilgnet: {message}\n"
