"""`ilgnet finetune` as a whole: one command from images to a file that `ilgnet score` takes as it is."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from drawn_classes import draw_classes

import ilgnet_repro as ir
from ilgnet_repro.cli._training_view import TrainingView
from ilgnet_repro.cli.main import main
from ilgnet_repro.finetune.evaluation import evaluate

QUICK = ("--epochs", "6", "--batch", "8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in `out` on the images in `photos`, one of them broken; what it printed is in `out.txt` and `err.txt`."""
    folder = tmp_path_factory.mktemp("finetune")
    draw_classes(folder / "photos", 20)
    (folder / "photos" / "red" / "zz.png").write_bytes(b"no image")
    before = os.getcwd()
    os.chdir(folder)
    try:
        import contextlib
        import io

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["finetune", "photos", "--out", "out", *QUICK, "--json"])
        assert status == 0, err.getvalue()
    finally:
        os.chdir(before)
    (folder / "out.txt").write_text(out.getvalue())
    (folder / "err.txt").write_text(err.getvalue())
    return folder


@pytest.fixture
def there(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def test_it_learns_and_reports(there: Path) -> None:
    found = json.loads((there / "out.txt").read_text())
    accuracy = found["figures"]["accuracy"]
    assert accuracy["value"] > 0.9 and accuracy["low"] < accuracy["value"] <= accuracy["high"]
    assert found["images"] == sum(sum(row) for row in found["confusion"]) == 8
    assert list(found["recall"]) == ["blue", "red"]
    assert found["weights"] == "out/net_best.safetensors"
    # The broken image is named, and counted in the list of either database.
    assert sum(found["unreadable"].values()) == 1
    assert (
        "photos/red/zz.png: is not an image" in (there / "err.txt").read_text()
        or "zz.png" in (there / "err.txt").read_text()
    )
    page = (there / "out" / "report.html").read_text()
    assert (
        "Right answers by class" in page and "could not be read" in page and "data:image/png;base64" in page
    )


def test_each_step_is_a_command_that_can_be_typed(there: Path, capsys, tmp_path: Path) -> None:
    """The printed commands make the same files again, from the lists, nets and solver."""
    typed = re.findall(r"^\$ ilgnet (.*)$", (there / "err.txt").read_text(), re.MULTILINE)
    commands = [shlex.split(line) for line in typed]
    assert [line[:2] for line in commands] == [
        ["lmdb", "make"], ["lmdb", "make"], ["mean", "out/train_lmdb"], ["sheet", "out/train_lmdb"],
        ["train", "--solver"], ["convert", "out/net_best.caffemodel"],
    ]  # fmt: skip
    expected = {
        name: (there / "out" / name).read_bytes() for name in ("net_best.caffemodel", "net_best.safetensors")
    }
    kept = shutil.copytree(there / "out", tmp_path / "kept")
    try:
        for name in ("net_best.caffemodel", "net_best.json", "net_best.safetensors", "mean.binaryproto"):
            (there / "out" / name).unlink()
        for name in ("train_lmdb", "val_lmdb", "log"):
            shutil.rmtree(there / "out" / name)
        for state in (there / "out").glob("net_iter_*"):
            state.unlink()
        for arguments in commands:
            assert main(arguments) == 0
        assert {name: (there / "out" / name).read_bytes() for name in expected} == expected
    finally:
        shutil.rmtree(there / "out")
        shutil.copytree(kept, there / "out")
    capsys.readouterr()


def test_the_result_scores_files_as_the_report_says(there: Path) -> None:
    """Preprocessing and labels are in the file: the scores of the image files are those of the stored rows."""
    net = ir.load("out/net_best.safetensors")
    assert net.about.labels == ("blue", "red")
    with open("out/val.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = ir.score([f"photos/{row['path']}" for row in rows], net)
    for row, score in zip(rows, scores, strict=True):
        assert row["label"] == os.path.dirname(row["path"])
        assert score.outputs["prob"] == pytest.approx((float(row["blue"]), float(row["red"])), abs=2e-6)


def test_caffe_test_gives_the_accuracy_of_the_report(there: Path, capfd) -> None:
    found = json.loads((there / "out.txt").read_text())
    solver = (there / "out" / "solver.prototxt").read_text()
    batches = re.search(r"test_iter: (\d+)", solver)
    assert batches is not None
    arguments = [
        "-model",
        "out/train_val.prototxt",
        "-weights",
        "out/net_best.caffemodel",
        "-iterations",
        batches[1],
    ]
    assert main(["caffe", "test", *arguments]) == 0
    printed = "".join(capfd.readouterr())
    accuracy = re.findall(r"accuracy = ([\d.]+)", printed)[-1]
    assert float(accuracy) == pytest.approx(found["figures"]["accuracy"]["value"], abs=1e-6)


def test_a_run_that_was_stopped_resumes_with_the_same_result(there: Path, monkeypatch, capsys) -> None:
    """Ctrl-C in the fourth iteration; the same command ends with the same bytes, and runs nothing twice."""
    interrupted = []

    def stop(view: TrainingView, trainer: object, updated: object) -> None:
        if not interrupted:
            interrupted.append(updated)
            os.kill(os.getpid(), signal.SIGINT)

    command = ["finetune", "photos", "--out", "stopped", *QUICK]
    with monkeypatch.context() as patched:
        patched.setattr(TrainingView, "on_update", stop)
        assert main(command) == 130
    assert "stopped before its last iteration; the same command resumes" in capsys.readouterr().err
    assert not (there / "stopped" / "net_best.safetensors").exists()
    assert main(command) == 0
    err = capsys.readouterr().err
    assert "$ ilgnet lmdb" not in err and "$ ilgnet train" in err
    assert (there / "stopped" / "val.csv").read_bytes() == (there / "out" / "val.csv").read_bytes()
    own, undisturbed = (ir.load(f"{name}/net_best.safetensors").params for name in ("stopped", "out"))
    assert all(a.equal(b) for name in own for a, b in zip(own[name], undisturbed[name], strict=True))
    assert main(command) == 0
    assert "$ ilgnet train" not in capsys.readouterr().err
    for changed, message in (
        (["--seed", "2"], "was begun with seed 1, now 2; give the same, or another folder as --out"),
        (
            ["--trunk", "frozen", "--weights", "out/net_best.safetensors"],
            "was begun with weights None, now 'out/net",
        ),
    ):
        assert main([*command, *changed]) == 1
        assert message in capsys.readouterr().err
    (there / "photos" / "red" / "zz.png").rename(there / "zz.png")
    try:
        assert main(command) == 1
        assert "was begun with images or labels of photos that have changed since" in capsys.readouterr().err
    finally:
        (there / "zz.png").rename(there / "photos" / "red" / "zz.png")


def test_from_trained_weights_by_a_frozen_trunk(there: Path, capsys) -> None:
    """Scores in a CSV, from the weights of another task; what was learned is the new layer alone."""
    rows = sorted((there / "photos").glob("*/[01]*.png"))
    rng = np.random.default_rng(3)
    with open(there / "scores.csv", "w") as file:
        for row in rows:
            file.write(
                f"{row.relative_to(there)},{2 + 4 * (row.parent.name == 'red') + rng.normal(0, 0.1):.3f}\n"
            )
    command = ["finetune", "scores.csv", "--out", "scored", "--weights", "out/net_best.safetensors", *QUICK]
    assert main([*command, "--trunk", "frozen", "--prepare"]) == 0
    assert capsys.readouterr().out.startswith("prepared; edit the nets or the solver")
    text = (there / "scored" / "solver.prototxt").read_text()
    (there / "scored" / "solver.prototxt").write_text(text.replace("momentum: 0.9", "momentum: 0.8"))
    assert main([*command, "--trunk", "frozen", "--json"]) == 0
    captured = capsys.readouterr()
    assert "fc2 replaced by fc2_new of 1 outputs; only it learns" in captured.err
    assert "--freeze '(?!fc2_new$).*'" in captured.err
    assert "momentum: 0.8" in (there / "scored" / "solver.prototxt").read_text()
    figures = json.loads(captured.out)["figures"]
    assert figures["rank correlation"]["low"] <= figures["rank correlation"]["value"]
    assert figures["mean absolute error"]["value"] < figures["mean absolute error of the mean score"]["value"]
    before, after = ir.load("out/net_best.safetensors"), ir.load("scored/net_best.safetensors")
    for name, blobs in after.params.items():
        if name != "fc2_new":
            for own, blob in zip(before.params[name], blobs, strict=True):
                assert own.equal(blob), name
    (score,) = ir.score(str(rows[0]), after)
    with open("scored/val.csv", newline="") as file:
        by_path = {row["path"]: row for row in csv.DictReader(file)}
    assert score.meaning == "score" and score.value == score.outputs["score"][0]
    if (row := by_path.get(str(rows[0].relative_to(there)))) is not None:
        assert score.value == pytest.approx(float(row["score"]), rel=1e-4)


def test_a_step_that_fails_ends_in_its_own_line(there: Path, capsys) -> None:
    assert main(["finetune", "photos", "--out", "failing", *QUICK, "--prepare"]) == 0
    solver = there / "failing" / "solver.prototxt"
    solver.write_text(re.sub(r"base_lr: \S+", "base_lr: fast", solver.read_text()))
    capsys.readouterr()
    assert main(["finetune", "photos", "--out", "failing", *QUICK]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ilgnet")]
    assert len(errors) == 1 and "solver.prototxt" in errors[0] and "fast" in errors[0], errors


REFUSED = {
    "within": (["photos", "--out", "photos/out"], "photos/out: is in the folder of the images; give a folder outside"),
    "other files": (["photos", "--out", "full"], "full: holds other files; give a new folder as --out"),
    "a layer": (["photos", "--out", "new", "--layer", "fc1"], "--layer fc1: goes with weights; give them too"),
    "a size": (
        ["photos", "--out", "new", "--weights", "out/net_best.safetensors", "--size", "64"],
        "--size 64: goes without weights, which state their own; leave it out",
    ),
    "a small resize": (
        ["photos", "--out", "new", "--weights", "out/net_best.safetensors", "--resize", "16"],
        "--resize 16: the net takes 32 x 32; give at least that",
    ),
    "a device": (["photos", "--out", "new", "--device", "gpu"], "--device gpu: give cpu, cuda or cuda:N"),
    "no data": (["nowhere", "--out", "new"], "nowhere: cannot be read (No such file or directory); check the path"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_begin_leaves_nothing(arguments: list[str], message: str, there: Path, capsys) -> None:
    (there / "full").mkdir(exist_ok=True)
    (there / "full" / "notes.txt").touch()
    assert main(["finetune", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (there / "new").exists() and not (there / "photos" / "out").exists()


def test_figures_by_their_formulas(there: Path, tmp_path: Path) -> None:
    """Accuracy, recall and the worst mistakes again, from val.csv."""
    found = evaluate("out/net_best.safetensors", "out/val_lmdb", None, "classes", ("blue", "red"), ())
    with open("out/val.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    right = [float(row[row["label"]]) > 0.5 for row in rows]
    assert found.figures[0].value == sum(right) / len(right)
    assert [count for _, count, _, _ in found.recall] == [
        sum(ok for ok, row in zip(right, rows, strict=True) if row["label"] == name)
        for name in ("blue", "red")
    ]
    assert set(found.mistakes) == {number for number, ok in enumerate(right) if not ok}
