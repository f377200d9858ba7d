"""Results on disk: round trips as CSV, Parquet and JSON, and a journal of a killed run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ilgnet_repro.aesthetics.journal import Journal
from ilgnet_repro.aesthetics.results import (
    BatchRow,
    ImageResults,
    RunResult,
    Source,
    from_rows,
    read_table,
    write_table,
)
from ilgnet_repro.errors import FormatError, IlgnetError

ROOT = Path(__file__).parents[2]
AWKWARD = (
    "a,b.jpg",
    'say "x".jpg',
    "sub dir/é.jpg",
    "back\\slash\\n.jpg",
    "line\nbreak.jpg",
    "\\\n",
    "\r.png",
)
ROWS = [
    (name, k % 2, float(np.float32(0.1) * k), 0.1 + 1 / 3 * k, math.nan if k == 2 else 4.7 + k)
    for k, name in enumerate(AWKWARD)
]
IMAGES = from_rows(ROWS)


def _run(**changes) -> RunResult:
    values = {
        "protocol": "published",
        "dataset": "ava1",
        "weights": Source("a.caffemodel", "ab" * 32, "AVA1 weights"),
        "random_weights": False,
        "partition": Source("val.txt"),
        "mean": None,
        "preprocessing": "256, mean image, crop 227",
        "batch_size": 4,
        "batches": (BatchRow(0, 4, 3, 0.25), BatchRow(1, 4, 2)),
        "images": IMAGES,
        "warnings": ("one",),
        "versions": {"torch": "2"},
        "command": "ilgnet test ava1",
        "elapsed": 1.5,
    }
    return RunResult(**{**values, **changes})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    "images",
    [IMAGES, from_rows([]), from_rows([(*row[:4], math.nan) for row in ROWS])],
    ids=["all", "none", "no scores"],
)
def test_table_round_trip(tmp_path: Path, suffix: str, images: ImageResults) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra `tables`")
    write_table(tmp_path / f"t{suffix}", images)
    assert read_table(tmp_path / f"t{suffix}") == images
    assert [path.name for path in tmp_path.iterdir()] == [f"t{suffix}"]


BAD_TABLES = {
    "no heading": ("a,1,0.5,0.1,\n", ":1: the first line must be name,label,"),
    "a column short": ("name,label,probability,loss,mean_score\na,1,0.5,0.1\n", ":2: not a row"),
    "no number": ("name,label,probability,loss,mean_score\na,1,0.5,0.1,\nb,x,0.5,0.1,\n", ":3: not a row"),
    "label 2": ("name,label,probability,loss,mean_score\na,2,0.5,0.1,\n", "a label is neither 0 nor 1"),
    "probability 2": ("name,label,probability,loss,mean_score\na,1,2,0.1,\n", "outside \\[0, 1\\]"),
    "empty": ("", ":1: the first line"),
}


@pytest.mark.parametrize("text, message", BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_table(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_table(tmp_path / "t.csv")


def test_bad_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs the extra `tables`")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(FormatError, match="not a table of results"):
        read_table(tmp_path / "t.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(IlgnetError, match=r"pip install 'ilgnet_repro\[tables\]'"):
        write_table(tmp_path / "t.parquet", IMAGES)
    assert not list(tmp_path.iterdir())


def test_lengths_must_agree() -> None:
    with pytest.raises(FormatError, match="2 names but loss of shape"):
        ImageResults(np.array(["a", "b"]), np.array([0, 1]), np.array([0.1, 0.2]), np.array([1.0]))


def test_run_round_trip(tmp_path: Path) -> None:
    run = _run()
    run.write(tmp_path / "run.json")
    assert RunResult.read(tmp_path / "run.json") == run
    assert (run.correct, run.count, run.batches[0].accuracy) == (5, 8, 0.75)


BAD_RUNS = {
    "not JSON": ("{", "cannot be read as JSON"),
    "a list": ("[]", "holds no JSON object"),
    "a field missing": (lambda values: values.pop("pictures"), "not a run's result"),
    "a field unknown": (
        lambda values: values.update(colour=1),
        "run's result: it has the unknown field 'colour'; give",
    ),
    "a batch wrong": (lambda values: values["batches"].append({"index": 1}), "not a run's result"),
    "a label wrong": (lambda values: values["pictures"]["labels"].__setitem__(0, 7), "neither 0 nor 1"),
    "nested": ("[" * 200_000, "cannot be read as JSON .*nested too deeply"),
    "a number for a text": (lambda values: values.update(protocol=5), "protocol is int, not str"),
    "a text for a number": (lambda values: values["batches"][0].update(size="4"), "size is str, not int"),
    "a truth value for a number": (lambda values: values.update(elapsed=True), "elapsed is bool, not float"),
    "a time beyond float": (
        lambda values: values.update(elapsed=10**400),
        "not a run's result: .*int too large",
    ),
    "a loss beyond float": (lambda values: values["batches"][0].update(loss=-(10**400)), "int too large"),
    "a huge batch": (lambda values: values["batches"][0].update(size=10**20), f"size is beyond {1 << 53}"),
    "a huge batch size": (lambda values: values.update(batch_size=10**20), f"batch_size is beyond {1 << 53}"),
    "a huge index": (
        lambda values: values["batches"][0].update(index=-(10**20)),
        f"index is beyond {1 << 53}",
    ),
    "a batch of no images": (lambda values: values["batches"][0].update(size=0, correct=0), "0 of 0 images"),
    "more right than images": (lambda values: values["batches"][0].update(correct=5), "5 of 4 images"),
    "batches of no size": (lambda values: values.update(batch_size=0), "batch_size is 0"),
    "a huge label": (
        lambda values: values["pictures"]["labels"].__setitem__(0, 10**30),
        "not a run's result",
    ),
    "a list of versions": (lambda values: values.update(versions=["2"]), "not a run's result"),
    "a version of no text": (lambda values: values.update(versions={"torch": 2}), "int stands where a text"),
    "a warning of no text": (lambda values: values.update(warnings=[{}]), "dict stands where a text"),
    "a source of no name": (lambda values: values["weights"].update(name=[1]), "name is list, not str"),
}


@pytest.mark.parametrize("change, message", BAD_RUNS.values(), ids=BAD_RUNS)
def test_bad_run(tmp_path: Path, change, message: str) -> None:
    if not isinstance(change, str):
        values = _run().to_dict()
        change(values)
        change = json.dumps(values)
    (tmp_path / "run.json").write_text(change)
    with pytest.raises(FormatError, match=message):
        RunResult.read(tmp_path / "run.json")


def test_journal_round_trip(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", "key") as journal:
        assert journal.rows == []
        journal.append(ROWS[:3])
        journal.append(ROWS[3:])
    with Journal(tmp_path / "j", "key") as journal:
        assert from_rows(journal.rows) == IMAGES


def test_journal_cut_anywhere_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, "key") as journal:
        journal.append(ROWS)
    content = path.read_bytes()
    ends = [k + 1 for k, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        whole = max(0, sum(end <= cut for end in ends) - 1)
        with Journal(path, "key") as journal:
            assert len(journal.rows) == whole, cut
            journal.append(ROWS[whole:])
        assert path.read_bytes() == content, cut


def test_journal_drops_everything_from_a_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, "key") as journal:
        journal.append(ROWS)
    lines = path.read_bytes().split(b"\n")
    lines[3] = b"\0" * len(lines[3])
    path.write_bytes(b"\n".join(lines))
    with Journal(path, "key") as journal:
        assert len(journal.rows) == 2


@pytest.mark.parametrize(
    "content", [None, b"some other file\nof two lines\n"], ids=["another key", "no journal"]
)
def test_journal_of_another_run_is_refused_and_not_changed(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "j"
    if content is None:
        with Journal(path, "other") as journal:
            journal.append(ROWS)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(IlgnetError, match="the journal of another run"):
        Journal(path, "key")
    assert path.read_bytes() == before


def test_journal_survives_a_kill(tmp_path: Path) -> None:
    program = (
        "import sys; from ilgnet_repro.aesthetics.journal import Journal\n"
        "journal = Journal(sys.argv[1], 'key')\n"
        "for k in range(10**9):\n"
        "    journal.append([(f'{k}.jpg', k % 2, 0.25, k / 7, 5.0)])\n"
        "    print(k, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path / "j")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        promised = 0
        while promised < 20:
            promised = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    with Journal(tmp_path / "j", "key") as journal:
        assert len(journal.rows) > promised
        assert journal.rows == [(f"{k}.jpg", k % 2, 0.25, k / 7, 5.0) for k in range(len(journal.rows))]


def test_a_loss_that_is_not_finite_survives_the_file(tmp_path) -> None:
    """A net that diverged: the journal of a long test is still written, as JSON that any reader takes."""
    run = _run()
    loss = np.array(run.images.loss)
    loss[0], loss[-1] = np.nan, np.inf
    images = dataclasses.replace(run.images, loss=loss)
    first = dataclasses.replace(run.batches[0], loss=float("nan"))
    changed = dataclasses.replace(run, images=images, batches=(first, *run.batches[1:]))
    changed.write(tmp_path / "run.json")
    json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    read = RunResult.read(tmp_path / "run.json")
    assert read.images == images and math.isnan(read.batches[0].loss) and read.batches[1:] == run.batches[1:]


def test_a_file_of_an_earlier_version_is_read(tmp_path) -> None:
    """Bare NaN, as Python's json writes by default."""
    values = _run().to_dict()
    values["batches"][0]["loss"] = float("nan")
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert math.isnan(RunResult.read(tmp_path / "run.json").batches[0].loss)
