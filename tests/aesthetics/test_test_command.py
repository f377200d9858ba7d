"""``ilgnet test`` and ``ilgnet report`` as a user runs them: files, tables, JSON, one line for an error."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from tiny_ava import TinySet

from ilgnet_repro.aesthetics.results import RunResult, read_table
from ilgnet_repro.cli.main import main
from ilgnet_repro.engines import onnx_engines


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySet:
    monkeypatch.chdir(tmp_path)
    made = TinySet(tmp_path, 23, name="with RANDOM weights")
    made.list()
    return made


def command(tiny: TinySet, *more: str) -> list[str]:
    return ["test", "own", "--pictures", "images", "--list", "val.txt", *tiny.arguments(*more)]


@pytest.mark.parametrize("table", ["csv", "parquet"])
def test_files_and_tables(tiny: TinySet, capsys: pytest.CaptureFixture, table: str) -> None:
    if table == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra `tables`")
    scores = ["picture,split,label,mean,std," + ",".join(f"votes_{k}" for k in range(1, 11))]
    scores += [
        f"{int(name[:-4])}.jpg,val,{k % 2},{4 + k / 10},1.5{',7' * 10}"
        for k, name in enumerate(tiny.names[:9])
    ]
    Path("scores.csv").write_text("\n".join(scores) + "\n")
    (Path("images") / tiny.names[4]).unlink()
    assert main(command(tiny, "--table", table, "--scores", "scores.csv", "--batch-size", "5")) == 0
    printed = capsys.readouterr().out
    run = RunResult.read("own_full/run.json")
    assert sorted(path.name for path in Path("own_full").iterdir()) == [
        "bad.txt",
        f"pictures.{table}",
        "run.json",
    ]
    assert read_table(f"own_full/pictures.{table}") == run.images
    assert Path("own_full/bad.txt").read_text().startswith(f"{tiny.names[4]}\timages/{tiny.names[4]}: ")
    assert [batch.size for batch in run.batches] == [5, 5, 5, 5, 2]
    assert run.warnings == (
        f"left out: 1 image was missing or broken: {tiny.names[4]}; own_full/bad.txt has all with the reason",
    )
    assert f"{run.correct} / 22" in printed
    for text in (
        "Seeded random weights",
        "left out: 1 image",
        "balanced accuracy",
        "95 % Wilson",
        "ROC-AUC",
    ):
        assert text in printed
    row = {line.split("  ")[1].strip(): line for line in printed.splitlines() if line.startswith("  ")}
    assert "–" not in row["SRCC with mean scores"]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_fast_path_reports_its_deviation(
    tiny: TinySet, capsys: pytest.CaptureFixture, precision: str
) -> None:
    assert main(command(tiny, "--out", "exact", "--batch-size", "7")) == 0
    assert "computed by the exact net" in capsys.readouterr().out
    fast = ["--fast", "--precision", precision]
    assert main(command(tiny, "--out", "fast", "--batch-size", "7", *fast)) == 0
    exact, run = RunResult.read("exact/run.json"), RunResult.read("fast/run.json")
    assert run.computed in capsys.readouterr().out
    stated = re.fullmatch(
        r"fast path in (?:torch|onnxruntime|openvino), "
        rf"large dense weights in {precision}; at most (\S+) from the exact net's probabilities"
        " on the first 16 images", run.computed,
    )  # fmt: skip
    assert stated is not None
    far = abs(run.images.probability - exact.images.probability).max()
    assert far < 1e-6
    assert float(stated[1]) < 1e-6


def test_precision_without_fast(tiny: TinySet, capsys: pytest.CaptureFixture) -> None:
    for more, named in (
        (["--precision", "int8"], "--precision int8"),
        (["--compile"], "--compile"),
    ):
        assert main(command(tiny, *more)) == 1
        assert capsys.readouterr().err == f"ilgnet: {named} goes with --fast; add it\n"


def test_json_is_the_report(tiny: TinySet, capsys: pytest.CaptureFixture) -> None:
    assert (
        main(command(tiny, "--json", "--protocol", "published", "--batches", "2", "--batch-size", "7")) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["run"]["protocol"], found["protocol_accuracy"]["count"]) == ("published", 14)
    assert found["run"]["random_weights"] is True
    assert found["run"]["command"].endswith("--batch-size 7 --batches 2 --table csv --device cpu")


def test_report_of_two_runs(tiny: TinySet, capsys: pytest.CaptureFixture) -> None:
    assert main(command(tiny, "--out", "a")) == 0
    assert main(command(tiny, "--protocol", "tencrop", "--out", "b")) == 0
    capsys.readouterr()
    assert main(["report", "a/run.json", "--other", "b/run.json", "--pictures", "images"]) == 0
    printed = capsys.readouterr().out
    page, values = Path("a/report.html").read_text(), json.loads(Path("a/report.json").read_text())
    with open("a/pictures.csv") as first, open("b/pictures.csv") as second:
        pairs = list(zip(csv.DictReader(first), csv.DictReader(second), strict=True))
    right = [[(float(row["probability"]) > 0.5) == (row["label"] == "1") for row in pair] for pair in pairs]
    only = ([a and not b for a, b in right].count(True), [b and not a for a, b in right].count(True))
    assert (values["mcnemar"]["only_first"], values["mcnemar"]["only_second"]) == only
    assert f"right only here {only[0]}, only there {only[1]}" in printed
    assert page.count("data:image/jpeg;base64,") >= 16
    # Every section states it, since it may be read separately.
    assert page.count("Seeded random weights") == page.count("<section>")


LOG = """I1121 11:00:00.000000  7 net.cpp:53] Initializing net from parameters:
layer { data_param { source: "db" batch_size: 4 } }
I1121 11:00:00.000000  7 caffe.cpp:281] Running for 3 iterations.
"""


def test_report_compared_with_a_log(tiny: TinySet, capsys: pytest.CaptureFixture) -> None:
    assert main(command(tiny, "--protocol", "published", "--batches", "3", "--batch-size", "4")) == 0
    ours = [batch.correct for batch in RunResult.read("own_published/run.json").batches]
    for name, theirs, verdict in (
        ("same", ours, "identical"),
        ("other", [4 - right for right in ours], None),
    ):
        lines = [f"Batch {k}, accuracy = {right / 4:g}" for k, right in enumerate(theirs)]
        Path(f"{name}.txt").write_text(LOG + "\n".join([*lines, "Loss: 0.5", "accuracy = 0.75"]) + "\n")
        capsys.readouterr()
        assert main(["report", "own_published/run.json", "--log", f"{name}.txt"]) == 0
        printed = capsys.readouterr().out
        equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
        assert f"{equal} of 3 batches equal" in printed
        assert f"{sum(ours)} against {sum(theirs)} of 12 right" in printed
        assert ("compared with the log, rows as given: identical" in printed) == (verdict == "identical")


def test_a_log_without_its_net_cannot_be_compared(tiny: TinySet, capsys: pytest.CaptureFixture) -> None:
    assert main(command(tiny)) == 0
    Path("log.txt").write_text("Batch 0, accuracy = 0.75\nLoss: 0.5\naccuracy = 0.75\n")
    assert main(["report", "own_full/run.json", "--log", "log.txt"]) == 1
    assert "the log does not print its batch size" in capsys.readouterr().err
    assert not Path("own_full/report.html").exists()


WRONG = {
    "no images": (
        ["--weights", "tiny.caffemodel"],
        "no images: give --pictures FOLDER, --list LIST or --lmdb DB",
    ),
    "no weights": (["--list", "val.txt", "--weights", "absent.caffemodel"], "absent.caffemodel"),
    "batches of full": (["--batches", "3"], "reads every image once; leave out --batches"),
    "no GPU": (["--device", "cuda:77"], "--device cuda:77: torch "),
    "no device": (["--device", "meta"], "--device meta: give cpu, cuda or cuda:N"),
    "no GPU for an engine": (["--engine", "torch", "--device", "cuda:77"], "--device cuda:77: torch "),
    "an engine that is not installed": (
        ["--engine", "openvino"],
        "--engine openvino: it is not installed; pip install 'ilgnet_repro[openvino]'",
    ),
    "mean value": (["--mean-value", "1,2"], "--mean-value 1,2: write one number, or three"),
    "two means": (["--mean-value", "1"], "give --mean or --mean-value, not both"),
    "no mean": (["--mean", "absent"], "absent: cannot be read"),
    "batch of none": (["--batch-size", "-1"], "--batch-size: '-1': give an integer from 1 to"),
}


@pytest.mark.parametrize("more, message", WRONG.values(), ids=WRONG)
def test_one_line_for_what_is_wrong(
    tiny: TinySet, capsys: pytest.CaptureFixture, more: list[str], message: str, monkeypatch
) -> None:
    monkeypatch.setattr(onnx_engines, "is_installed", lambda engine: False)
    arguments = ["test", "own", *more] if "--weights" in more else command(tiny, *more)
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not Path("own_full/run.json").exists()


def test_another_runs_journal_is_not_resumed(tiny: TinySet, capsys: pytest.CaptureFixture) -> None:
    Path("own_full").mkdir()
    journal = Path("own_full/journal.csv")
    journal.write_text('"ilgnet_repro journal","something else",00000000\n')
    assert main(command(tiny, "--resume")) == 1
    assert "the journal of another run" in capsys.readouterr().err
    assert main(command(tiny)) == 0  # without --resume it is a new run
    assert not journal.exists()


def test_interrupted(tiny: TinySet, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from ilgnet_repro.aesthetics import protocol_run as runner

    seen = []

    def stop_at_third(*arguments):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return scores(*arguments)

    scores = runner._scores
    monkeypatch.setattr(runner, "_scores", stop_at_third)
    assert main(command(tiny, "--batch-size", "4")) == 130
    assert "with --resume continues" in capsys.readouterr().err
    assert main(command(tiny, "--batch-size", "4", "--resume")) == 0
    # Two batches were kept: four of the six remain.
    assert len(seen) == 3 + 4
    resumed = RunResult.read("own_full/run.json")
    assert main(command(tiny, "--batch-size", "4", "--out", "whole")) == 0
    assert RunResult.read("whole/run.json").images == resumed.images
