"""Files that the study's commands may overwrite: never their inputs, and never a file that they did not write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from output_cases import (
    MINE,
    NAMES,
    check_accepted,
    check_files_of_others_stay,
    check_input_is_no_output,
    enter_copy,
    make_inputs,
    refused,
)
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro.cli.main import main

TWO_CLASSES = SMALL_TEXT.replace("dim: 9 dim: 7", "dim: 9 dim: 9").replace("num_output: 5", "num_output: 2")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with small inputs of the commands, AVA's list among them."""
    folder = tmp_path_factory.mktemp("made")
    make_inputs(folder)
    votes = " ".join(["1"] * 10)
    (folder / "AVA.txt").write_text("".join(f"{n} {n} {votes} 1 2 3\n" for n in range(1, 21)))
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    return enter_copy(made, tmp_path, monkeypatch)


# A command whose last argument is its output, and the input that the output is.
ITSELF = {
    "partition-check": (["partition", "check", "list.txt", "--pictures", "images", "--bad"], "list.txt"),
    "partition-check-second": (["partition", "check", "AVA.txt", "list.txt", "--pictures", "images", "--bad"], "list.txt"),
    "partition-scores": (["partition", "ava2", "AVA.txt", "--seed", "1", "--out", "new", "--scores"], "AVA.txt"),
    "partition-exclude": (
        ["partition", "ava2", "AVA.txt", "--seed", "1", "--out", "new", "--exclude", "list.txt", "--scores"], "list.txt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("arguments", "source"), ITSELF.values(), ids=ITSELF)
def test_an_input_is_refused_as_output(folder, capsys, arguments, source, name) -> None:
    if arguments[:3] == ["partition", "check", "AVA.txt"]:
        shutil.copy("list.txt", "AVA.txt")  # two lists
    check_input_is_no_output(capsys, folder, arguments, NAMES[name](source))


REFUSED = {
    "bad list as an image": (
        ["partition", "check", "list.txt", "--pictures", "images", "--bad", "images/1.png"],
        "--bad images/1.png: is the input images/1.png itself; give another name",
    ),
    "list made from itself": (
        ["partition", "ava2", "elsewhere/../AVA.txt", "--seed", "1", "--out", ".", "--scores", "train.txt"],
        "train.txt: is given twice as an output; give another name",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(folder, capsys, arguments, message) -> None:
    assert refused(capsys, folder, arguments) == message


ACCEPTED = {
    "bad list beside the list": (["partition", "check", "list.txt", "--pictures", "images", "--bad", "bad.txt"], []),
    "scores beside the list": (
        ["partition", "ava2", "AVA.txt", "--seed", "1", "--out", ".", "--scores", "s.csv"], ["--force"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "again"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(folder, arguments, again) -> None:
    check_accepted(arguments, again=[*arguments, *again])


# Files of the user's that have the names a command would choose, and the command.
UNRELATED = {
    "synthetic": (["task/solver.prototxt"], ["synthetic", "task"],
                  "task/solver.prototxt: is already there; remove it or give another folder"),
    "demo": (["mine/list.txt"], ["demo", "--small", "--out", "mine"],
             "mine: holds other files, such as list.txt, which the demo could replace; give another --out"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "arguments", "message"), UNRELATED.values(), ids=UNRELATED)
def test_unrelated_files_are_not_replaced(folder, capsys, files, arguments, message) -> None:
    check_files_of_others_stay(capsys, folder, files, arguments, message)


TEST = ["test", "own", "--weights", "two.caffemodel", "--list", "list.txt", "--pictures", "images",
        "--mean-value", "1", "--resize", "11"]  # fmt: skip


@pytest.fixture
def tested(folder) -> Path:
    """`folder` with a net of two classes and a run of `ilgnet test` in ``run``."""
    write_weights(folder / "two.caffemodel", TWO_CLASSES)
    Path("two.prototxt").write_text(TWO_CLASSES)
    assert main([*TEST, "--out", "run"]) == 0
    return folder


@pytest.mark.parametrize("name", ["run.json", "pictures.csv", "bad.txt", "journal.csv"])
def test_a_test_replaces_only_a_run(tested, capsys, name) -> None:
    Path("mine").mkdir()
    Path("mine", name).write_bytes(MINE)
    message = f"mine/{name}: exists and was not written by `ilgnet test`; give another --out"
    assert refused(capsys, tested, [*TEST, "--out", "mine"]) == message
    assert main([*TEST, "--out", "run"]) == 0  # over its own


def test_a_test_does_not_replace_its_list(tested, capsys) -> None:
    shutil.copy("list.txt", "run/bad.txt")
    arguments = [part if part != "list.txt" else "run/bad.txt" for part in TEST]
    assert "run/bad.txt: is the input run/bad.txt itself" in refused(
        capsys, tested, [*arguments, "--out", "run"]
    )


def test_a_report_does_not_replace_its_run(tested, capsys) -> None:
    report = ["report", "run/run.json", "--out"]
    for page in ("run/run.html", "run/../run/run.html"):
        assert "run.json: is the input run/run.json itself" in refused(capsys, tested, [*report, page])
    assert "is the input run/run.json itself" in refused(capsys, tested, [*report, "run/run.json"])
    shutil.copytree("run", "second")
    other = ["report", "run/run.json", "--other", "second/run.json", "--out", "second/run.html"]
    assert "second/run.json: is the input second/run.json itself" in refused(capsys, tested, other)
    Path("mine.json").write_text(json.dumps({"run": 1}))
    assert "mine.json: exists and was not written by `ilgnet report`" in refused(
        capsys, tested, [*report, "mine.html"]
    )
    image = ["report", "run/run.json", "--pictures", "images", "--out", "images/1.png"]
    assert "--out images/1.png: is the input images/1.png itself" in refused(capsys, tested, image)
    for _ in range(2):  # over its own
        assert main(["report", "run/run.json"]) == 0 and main([*report, "page.html"]) == 0
    Path("run/report.html").write_bytes(MINE)
    assert "run/report.html: exists" in refused(capsys, tested, ["report", "run/run.json"])
