"""The study's commands as a user types them: their imports, their page, weights of any format, file names of any bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
from light_commands import run_light
from places import GOLDEN, ROOT
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro.cli import document
from ilgnet_repro.cli.main import main
from ilgnet_repro.cli.test import _command

PIPELINE = GOLDEN / "pipeline"
LIGHT_COMMANDS = {
    "partition": ["partition", "ava2", "AVA.txt", "--out", "lists", "--seed", "1"],
    "partition check": [
        "partition",
        "check",
        str(PIPELINE / "list.txt"),
        "--pictures",
        str(PIPELINE / "images"),
    ],
    "report --help": ["report", "--help"],
}


@pytest.mark.parametrize("arguments", LIGHT_COMMANDS.values(), ids=LIGHT_COMMANDS)
def test_they_import_neither_torch_nor_report_modules(arguments: list[str], tmp_path: Path) -> None:
    rows = (f"{k} {k} {' '.join(str(1 + k * v % 7) for v in range(10))} 0 0 1" for k in range(1, 31))
    (tmp_path / "AVA.txt").write_text("\n".join(rows) + "\n")
    run_light(arguments, tmp_path)


def test_released_files_are_listed_without_numpy(tmp_path: Path) -> None:
    run_light(["data", "where"], tmp_path, "numpy", "google.protobuf")


def test_the_page_of_all_commands_is_up_to_date() -> None:
    text = document.PAGE.read_text(encoding="utf-8")
    assert text == document.page(), "docs/commands.md is old: python -m ilgnet_repro.cli.document --write"


def test_the_command_of_a_test_names_each_layer() -> None:
    args = Namespace(dataset="own", weights="w", allow_missing=["a", "b c"], fast=False)
    assert _command(args) == "ilgnet test own --weights w --allow-missing a --allow-missing 'b c'"
    assert _command(Namespace(dataset="own", allow_missing=[])) == "ilgnet test own"


@pytest.mark.parametrize("ending", ["caffemodel", "caffemodel.h5", "safetensors", "onnx", "pt2"])
def test_a_test_takes_weights_of_any_format(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    for name, size in {"a.png": (20, 31, 3), "b.png": (9, 7, 3), "c.png": (40, 25, 3)}.items():
        cv2.imwrite(name, rng.integers(0, 256, size, np.uint8))
    text = SMALL_TEXT.replace("dim: 7", "dim: 9").replace("num_output: 5", "num_output: 2")
    write_weights(Path("two.caffemodel"), text)
    Path("two.prototxt").write_text(text)
    assert main(["convert", "two.caffemodel", "--to", "safetensors,onnx,pt2,hdf5"]) == 0
    Path("list.txt").write_text("a.png 0\nb.png 1\nc.png 1\n")
    options = [
        "--list",
        "list.txt",
        "--pictures",
        ".",
        "--mean-value",
        "100",
        "--resize",
        "12",
        "--out",
        "run",
    ]
    assert main(["test", "own", "--weights", f"two.{ending}", *options]) == 0
    assert Path("run/run.json").is_file()


def test_a_check_takes_names_of_any_bytes(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9\x1b[31m")  # Latin-1 on a disk that holds UTF-8, and a terminal's colour code
    data = cv2.imencode(".png", np.random.default_rng(5).integers(0, 256, (37, 52, 3), np.uint8))[1].tobytes()
    for name in (odd, "1"):
        (tmp_path / f"{name}.png").write_bytes(data)
    (tmp_path / "l.txt").write_bytes(os.fsencode(f"{odd}.png 1\n1.png 0\nno{odd}.png 1\n"))
    done = subprocess.run(
        [sys.executable, "-m", "ilgnet_repro", "partition", "check", "l.txt", "--pictures", ".", "--bad", f"{odd}.bad"],
        cwd=tmp_path, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert (tmp_path / f"{odd}.bad").read_bytes() == os.fsencode(f"no{odd}.png missing\n")
