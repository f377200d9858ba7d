"""Modules that a command imports before it works, and the core's commands without those of the study."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from core_alone import CHECK, STUDY_COMMANDS, is_of_the_study
from places import GOLDEN, ROOT
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro.cli.main import COMMANDS, build_parser, main

PIPELINE = GOLDEN / "pipeline"
PACKAGE = ROOT / "ilgnet_repro"


def python(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def processor_seconds(*arguments: object) -> float:
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    assert python(*arguments).returncode == 0
    return spent() - before


def test_help_takes_a_tenth_of_a_second_at_most() -> None:
    bare = min(processor_seconds("-c", "pass") for _ in range(3))
    shown = min(processor_seconds("-m", "ilgnet_repro", "--help") for _ in range(3))
    assert shown - bare < 0.1


def test_help_lists_every_command_by_the_first_line_of_its_file(capsys) -> None:
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for command, module in COMMANDS.items():
        doc = importlib.import_module(f"ilgnet_repro.cli.{module}").__doc__
        assert f" {command} {doc.splitlines()[0].partition(': ')[2].removesuffix('.')} " in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_the_parser_of_one_command_is_that_of_all(command: str) -> None:
    def usage(parser: argparse.ArgumentParser) -> str:
        (commands,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
        return commands.choices[command].format_help()

    assert usage(build_parser([command])) == usage(build_parser())


@pytest.mark.parametrize(
    ("words", "status", "shown"),
    [
        ([], 1, "the following arguments are required: COMMAND"),
        (["conver"], 1, "invalid choice: 'conver' (choose from 'convert', 'compare'"),
        (["--version"], 0, "ilgnet_repro "),
        (["lmdb", "info", str(PIPELINE / "raw64_lmdb")], 0, "rows"),
        (["--fast", "lmdb"], 1, "the following arguments are required: ACTION"),
    ],
    ids=["nothing", "unknown", "version", "a command", "an option before the command"],
)
def test_every_way_to_start(words, status, shown, capsys) -> None:
    assert main(words) == status
    streams = capsys.readouterr()
    assert shown in streams.out + streams.err


# The command's own name: a word by itself, and its variables; no file, net or list is named so.
OWN_NAME = re.compile(r"\bilgnet\b(?![.\w-])|\bILGNET_(?:HOME|THREADS)\b")
STUDY_NAME = re.compile(r"\bAVA[12]?\b|(?i:ilgnet)(?!_repro|Error)")


def core_files() -> list[Path]:
    kept = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return sorted(path for path in kept if not is_of_the_study(path.relative_to(ROOT)))


def test_the_core_names_neither_the_net_nor_the_data_set_of_the_study() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in core_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if STUDY_NAME.search(OWN_NAME.sub("", line))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("run `ilgnet convert` first", False),
        ("$ILGNET_HOME, from ilgnet_repro, raise IlgnetError", False),
        ("ilgnet score a.jpg --weights ilgnet.safetensors", True),
        ("the heads of ILGNet", True),
        ("lists/AVA2/train.txt", True),
        ("AVATAR", False),
    ],
)
def test_lines_that_name_the_study_are_found(line: str, is_found: bool) -> None:
    assert bool(STUDY_NAME.search(OWN_NAME.sub("", line))) is is_found


WITHOUT_STUDY = f"""
import sys
sys.path[:] = sys.argv[2:]
{CHECK}
import importlib, json, pkgutil
import ilgnet_repro as ir
from ilgnet_repro.cli.main import COMMANDS, main
for module in pkgutil.walk_packages(ir.__path__, "ilgnet_repro."):
    if not module.name.endswith(("__main__", "run_onnx2torch")):  # these run when they are imported
        importlib.import_module(module.name)
for name in ir.__all__:
    getattr(ir, name)
scores = ["score", "a.png", "--weights", "out/small.safetensors", "--json"]
lines = [["--help"], ["audit", "small.prototxt", "small.caffemodel"],
         ["convert", "small.caffemodel", "--to", "safetensors,onnx", "--out", "out", "--mean-value", "104,117,123"], scores]
print(json.dumps([list(COMMANDS), [main(line) for line in lines]]))
"""


def test_the_core_works_without_the_study(tmp_path) -> None:
    copy = tmp_path / "ilgnet_repro"
    for path in core_files():
        (copy / path.relative_to(PACKAGE)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.relative_to(PACKAGE))
    write_weights(tmp_path / "small.caffemodel")
    (tmp_path / "small.prototxt").write_text(SMALL_TEXT)
    image = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    cv2.imwrite(os.fspath(tmp_path / "a.png"), image)
    # Without `site` (-S) no finder of an editable install supplies what the copy lacks.
    done = python("-I", "-S", "-c", WITHOUT_STUDY, copy, tmp_path, *filter(None, sys.path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    commands, status = json.loads(done.stdout.splitlines()[-1])
    assert commands == [name for name, module in COMMANDS.items() if module not in STUDY_COMMANDS]
    assert status == [0, 0, 0, 0], done.stdout + done.stderr


# ---------------------------------------------------------------------- options forgotten, files missing

WEIGHTS = "is a Caffe weights file (.caffemodel): give it as --weights net.caffemodel"
FORGOTTEN = {
    "weights": (
        ["score", "net.caffemodel", "a.png"],
        f"ilgnet score: the following arguments are required: --weights; net.caffemodel {WEIGHTS}",
    ),
    "solver": (
        ["train", "solver.prototxt"],
        "ilgnet train: the following arguments are required: --solver; solver.prototxt is a solver's prototxt: "
        "give it as --solver solver.prototxt",
    ),
    "model": (
        ["caffe", "test", "net.prototxt", "-weights", "net.caffemodel"],
        "ilgnet caffe test: the following arguments are required: -model/--model; net.prototxt is a net's prototxt: "
        "give it as --model net.prototxt",
    ),
    "nothing to go by": (
        ["score", "a.png"],
        "ilgnet score: the following arguments are required: --weights; --weights is a .caffemodel, .safetensors, .onnx or "
        ".pt2 file; `ilgnet data where ava1-weights` says where the released ones can be had",
    ),
    "an option of another tool": (
        ["convert", "--model", "net.prototxt"],
        "ilgnet: unrecognized arguments: --model; net.prototxt is a net's prototxt: give it as --prototxt net.prototxt",
    ),
    "an unknown option": (
        ["convert", "net.caffemodel", "--quick"],
        "ilgnet: unrecognized arguments: --quick; `ilgnet convert --help` lists what it takes",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), FORGOTTEN.values(), ids=FORGOTTEN)
def test_a_forgotten_option_is_named_with_its_file(tmp_path, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.caffemodel").write_bytes(b"\x0a\x03net\xa2\x06\x04\x0a\x02ip")
    Path("net.prototxt").write_text('layer { name: "x" type: "Input" top: "x" }')
    Path("solver.prototxt").write_text('net: "net.prototxt" base_lr: 1 max_iter: 2')
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"{message}\n"


MISSING = (
    ["convert", "gone"], ["convert", "here", "--prototxt", "gone"], ["convert", "here", "--mean-file", "gone"],
    ["score", "gone", "--weights", "here"], ["score", "here", "--weights", "gone"], ["compare", "here", "gone"],
    ["audit", "gone"], ["audit", "here", "--candidates", "gone"], ["train", "--solver", "gone"],
    ["train", "--solver", "here", "--weights", "here,gone"], ["caffe", "train", "-solver", "gone"],
    ["caffe", "test", "-model", "gone", "-weights", "here"], ["caffe", "time", "-model", "gone"],
    ["test", "own", "--weights", "gone"], ["test", "own", "--weights", "here", "--lmdb", "gone"],
)  # fmt: skip
NO_STATE = (
    ["train", "--solver", "here", "--resume", "gone"], ["caffe", "train", "-solver", "here", "-snapshot", "gone"],
)  # fmt: skip


def test_missing_files_are_reported_before_torch_is_imported(tmp_path) -> None:
    (tmp_path / "here").write_text("")
    code = (
        "import json, sys; from ilgnet_repro.cli.main import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    assert main(arguments) == 1 and 'torch' not in sys.modules, arguments\n"
    )
    command = [sys.executable, "-c", code, json.dumps([*MISSING, *NO_STATE])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    absent = "ilgnet: gone: cannot be read (No such file or directory); check the path\n" * len(MISSING)
    assert done.stderr == absent + "ilgnet: gone: no such snapshot; give a .solverstate file\n" * len(
        NO_STATE
    )
