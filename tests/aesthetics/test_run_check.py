"""`ilgnet test` before and after a run: --check, rows in Caffe's shuffled order, finished and interrupted runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_ava import TinySet

from ilgnet_repro.aesthetics.caffe_shuffle import caffe_shuffle
from ilgnet_repro.aesthetics.results import RunResult
from ilgnet_repro.cli.main import main

WHERE = ["test", "own", "--list", "val.txt", "--pictures", "images"]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySet:
    monkeypatch.chdir(tmp_path)
    made = TinySet(tmp_path, 23)
    made.list()
    return made


def test_check_counts_images_without_a_net(tiny: TinySet, capsys) -> None:
    Path("images", tiny.names[2]).unlink()
    Path("images", tiny.names[7]).write_text("<html></html>")
    Path("images", tiny.names[22]).write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main([*WHERE, "--check", "--batch-size", "5", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["found"], found["missing"], found["broken"]) == (23, 20, 1, 2)
    assert found["labels"] == {str(label): int((tiny.labels == label).sum()) for label in (0, 1)}
    faults = [(one["row"], one["name"], one["kind"], one["batch"]) for one in found["faults"]]
    assert faults == [
        (2, tiny.names[2], "missing", 0),
        (7, tiny.names[7], "broken", 1),
        (22, tiny.names[22], "broken", 4),
    ]
    assert found["faults"][1]["reason"] == f"images/{tiny.names[7]}: is a web page (HTML), not an image"
    assert found["faulty_batches"] == [0, 1, 4]
    assert not Path("own_full").exists()
    assert main([*WHERE, *tiny.arguments()]) == 0
    written = sum(path.stat().st_size for path in Path("own_full").iterdir())
    assert written / 3 < found["disk"] < 3 * written and found["disk_free"] > 0
    capsys.readouterr()
    assert main([*WHERE, "--check", "--batch-size", "5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "images: 20 found, 1 missing, 2 broken"
    assert lines[2] == f"  row 2 (published batch 0): images/{tiny.names[2]}: no such file"
    assert "published batches of 5 with a missing or broken image: 0, 1, 4 (of 50)" in lines


def test_check_of_whole_images_ends_with_0(tiny: TinySet, capsys) -> None:
    assert main([*WHERE, "--check"]) == 0
    assert "images: 23 found, 0 missing, 0 broken" in capsys.readouterr().out
    tiny.store()
    assert main(["test", "own", "--lmdb", "lmdb", "--check"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*WHERE[:-1], "gone", "--check"], "--pictures gone: no such folder; give the one that the list's paths start from"),
        (WHERE, "--weights is missing: give the weights to test"),
    ],
    ids=["folder", "weights"],
)  # fmt: skip
def test_what_is_missing_is_said(tiny: TinySet, capsys, arguments: list[str], message: str) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"ilgnet: {message}\n"


@pytest.mark.parametrize("text", ["7", "caffe:", "caffe:-1", "caffe:4294967296", "numpy:7"])
def test_an_order_that_is_none_is_refused(tiny: TinySet, capsys, text: str) -> None:
    assert main([*WHERE, *tiny.arguments("--order", text)]) == 1
    assert "write caffe:SEED, a seed from 0 to 2**32 - 1" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [0, 1164])
def test_rows_are_read_in_the_order_of_caffes_shuffle(tiny: TinySet, seed: int) -> None:
    batches = ["--protocol", "published", "--batches", "3", "--batch-size", "5"]
    assert main([*WHERE, *tiny.arguments(*batches, "--order", f"caffe:{seed}", "--out", "shuffled")]) == 0
    run = RunResult.read("shuffled/run.json")
    order = caffe_shuffle(23, seed)[:15]
    assert list(run.images.names) == [tiny.names[row] for row in order]
    np.testing.assert_array_equal(run.images.labels, tiny.labels[order])
    np.testing.assert_allclose(run.images.probability, tiny.probability(order), atol=1e-5)
    assert run.list_order == f"permuted by Caffe's shuffle, seed {seed}"
    assert f"--order caffe:{seed}" in run.command


def test_a_finished_run_is_not_run_again(tiny: TinySet, capsys) -> None:
    assert main([*WHERE, *tiny.arguments()]) == 0
    before = Path("own_full/run.json").read_bytes()
    shutil.rmtree("images")
    Path("images").mkdir()
    capsys.readouterr()
    assert main([*WHERE, *tiny.arguments("--resume")]) == 0
    assert capsys.readouterr().err == "note: own_full has this run, which is finished: nothing to do\n"
    assert Path("own_full/run.json").read_bytes() == before
    for other in (
        ["--batch-size", "7"],
        ["--order", "caffe:3"],
        ["--protocol", "resize", "--mean-value", "9"],
    ):
        arguments = tiny.arguments("--resume", *other, "--out", "own_full")
        if "--mean-value" in other:
            del arguments[arguments.index("--mean") : arguments.index("--mean") + 2]
        assert main([*WHERE, *arguments]) == 1
        assert (
            capsys.readouterr().err
            == "ilgnet: own_full: has another run, which is finished; give another --out\n"
        )


def test_an_interrupted_run_is_said_before_it_starts_over(tiny: TinySet, monkeypatch, capsys) -> None:
    arguments = [*WHERE, *tiny.arguments("--batch-size", "5", "--workers", "1")]
    calls = []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scores(*given)

    from ilgnet_repro.aesthetics import protocol_run

    scores = protocol_run._scores
    monkeypatch.setattr(protocol_run, "_scores", interrupted)
    assert main(arguments) == 130
    capsys.readouterr()
    assert main(arguments) == 0
    noted = (
        "note: own_full has an interrupted run of 10 images, which starts over; --resume would continue it\n"
    )
    assert noted in capsys.readouterr().err
