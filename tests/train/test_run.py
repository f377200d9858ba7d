"""The commands: Caffe's lines for Caffe's flags, signals, and what `ilgnet train` adds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from train_cases import PIPELINE, SOLVERS, Recorder, read_log, run, settings_of

from ilgnet_repro import staging
from ilgnet_repro.cli.main import main
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.lmdb_write import LmdbWriter
from ilgnet_repro.staging import MARK
from ilgnet_repro.train.best_weights import BestWeights
from ilgnet_repro.train.curves import read_table
from ilgnet_repro.train.loop import Options, Trainer
from ilgnet_repro.train.observe import Observer
from ilgnet_repro.train.signals import Requests, catch_signals
from ilgnet_repro.train.solver import read_settings


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    for name in ("tiny.prototxt", "raw64_lmdb", "raw64_mean.binaryproto", "tiny_init.caffemodel"):
        (tmp_path / name).symlink_to(PIPELINE / name)
    (tmp_path / "solvers").mkdir()
    for path in SOLVERS.glob("*.prototxt"):
        shutil.copy(path, tmp_path / "solvers")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Times of day, and the lines of Caffe's prefetching threads, which this package does not have.
PREFIX = re.compile(r"^I\d+ [\d:.]+ +\d+ ")
LINES = re.compile(r"(caffe|solver|sgd_solver)\.cpp:|net.cpp:(244|257)")
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?")


def log_lines(text: str) -> list[str]:
    lines = [PREFIX.sub("", line) for line in text.splitlines() if PREFIX.match(line)]
    return [re.sub(r"\(.* iter/s, .* iters\)", "(speed)", line) for line in lines if LINES.match(line)]


@pytest.mark.parametrize("name", ["sgd_multistep", "sgd_iter_size", "adam"])
def test_caffe_train_logs_caffes_lines(name, workplace, capsys):
    assert (
        main(["caffe", "train", "-solver", f"solvers/{name}.prototxt", "-weights=tiny_init.caffemodel"]) == 0
    )
    ours, theirs = log_lines(capsys.readouterr().err), log_lines((SOLVERS / f"{name}.log").read_text())
    # Word for word the same lines, and the same numbers in them.
    assert [NUMBER.sub("N", line) for line in ours] == [NUMBER.sub("N", line) for line in theirs]
    for mine, caffes in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            *([float(n) for n in NUMBER.findall(line)] for line in (mine, caffes)), rtol=1e-4
        )


def test_the_solver_is_printed_as_caffe_prints_it(workplace, capsys):
    main(["caffe", "train", "-solver", "solvers/sgd_clip.prototxt", "-weights", "tiny_init.caffemodel"])

    def settings_of_log(text: str) -> Counter:
        block = text.split("Initializing solver from parameters: \n")[1]
        return Counter(line for line in block[: re.search(r"^I\d", block, re.M).start()].splitlines())

    theirs = settings_of_log((SOLVERS / "sgd_clip.log").read_text())
    assert settings_of_log(capsys.readouterr().err) == theirs


def rotate_database(folder: Path, rows: int) -> None:
    """Replace the database by one that starts at another of its rows."""
    source = LmdbReader(folder)
    values = [source[number].datum().SerializeToString() for number in range(len(source))]
    source.close()
    folder.unlink()
    folder.mkdir()
    writer = LmdbWriter(folder)
    writer.write([
        (f"{number:08d}".encode(), value) for number, value in enumerate(values[rows:] + values[:rows])
    ])  # fmt: skip
    writer.close()


def test_caffe_train_resumes_at_the_first_row(workplace, capsys):
    """So steps 11 to 20 of a run that did not stop are those of a database that starts where step 11 read."""
    rotate_database(workplace / "raw64_lmdb", 10 * 6 % 24)
    state = SOLVERS / "sgd_inv_iter_10.solverstate"
    assert main(["caffe", "train", "--solver", "solvers/sgd_inv.prototxt", "--snapshot", str(state)]) == 0
    text = capsys.readouterr().err
    assert f"Resuming from {state}" in text and "restoring history" in text
    assert "Data are read from the first row again, as Caffe does" in text
    (workplace / "ours.log").write_text(text)
    ours, theirs = read_log(workplace / "ours.log"), read_log(SOLVERS / "sgd_inv.log")
    np.testing.assert_allclose(list(ours.losses.values()), list(theirs.losses.values())[10:], rtol=1e-4)


FIRST_ROW = "Data are read from the first row again, as Caffe does"
READ_ON = "Data are read on from iteration 10, as if the run had not stopped"
CLAIM = f"solvers/.sgd_inv_iter.{MARK}.lock"


def kill_at_the_first_snapshot(monkeypatch, argv: list[str]) -> None:
    """What is staged stays, as where a process is killed, and its locks end."""
    snapshot = Trainer.snapshot

    def snapshot_and_end(trainer):
        snapshot(trainer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_release", lambda path: os.close(staging._claims.pop(path)[1]))
        patch.setattr(Trainer, "snapshot", snapshot_and_end)
        assert main(argv) == 130


def test_caffe_train_continues_a_run_that_was_killed(workplace, monkeypatch, capsys):
    """Twice, to the losses of Caffe's run that nothing stopped, and the same bytes as ours."""
    argv = ["caffe", "train", "-solver", "solvers/sgd_inv.prototxt", "-weights", "tiny_init.caffemodel"]
    assert main(argv) == 0
    whole = {path.name: path.read_bytes() for path in (workplace / "solvers").glob("*_iter_20.*")}
    for path in (workplace / "solvers").glob("*_iter_*"):
        path.unlink()
    kill_at_the_first_snapshot(monkeypatch, argv)
    assert Path(CLAIM).read_text() == "0\n10\n"
    again = [*argv[:4], "-snapshot", "solvers/sgd_inv_iter_10.solverstate"]
    capsys.readouterr()
    kill_at_the_first_snapshot(monkeypatch, again)
    assert Path(CLAIM).read_text() == "0\n10\n20\n"
    assert main(again) == 0
    text = capsys.readouterr().err
    assert text.count(READ_ON) == 2 and FIRST_ROW not in text and not Path(CLAIM).exists()
    assert {path.name: path.read_bytes() for path in (workplace / "solvers").glob("*_iter_20.*")} == whole
    (workplace / "ours.log").write_text(text)
    theirs = read_log(SOLVERS / "sgd_inv.log").losses
    np.testing.assert_allclose(
        list(read_log(workplace / "ours.log").losses.values()), list(theirs.values())[10:], rtol=1e-4
    )


NOT_CONTINUED = {
    "a run that ended": None,
    "a state of another run": "0\n5\n",
    "rows that begin after it": "15\n10\n",
    "a damaged claim": "0\n10",
    "an empty claim": "",
    "what is no number": "0\n-10\n",
    "the state in another folder": "0\n10\n",
}


@pytest.mark.parametrize("claim", NOT_CONTINUED.values(), ids=NOT_CONTINUED)
def test_a_snapshot_of_no_killed_run_starts_at_the_first_row(claim, workplace, request):
    lines: list[str] = []
    observer = Observer()
    observer.log = lambda topic, text: lines.append(text)
    trainer = Trainer(read_settings("solvers/sgd_inv.prototxt", workplace), observers=[observer])
    elsewhere = "another folder" in request.node.callspec.id
    folder = workplace if elsewhere else workplace / "solvers"
    for kind in ("solverstate", "caffemodel"):
        shutil.copy(SOLVERS / f"sgd_inv_iter_10.{kind}", folder)
    if claim is not None:
        Path(CLAIM).write_text(claim)
    trainer.restore(folder / "sgd_inv_iter_10.solverstate", from_first_row=True, unless_killed=True)
    assert FIRST_ROW in lines and READ_ON not in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-solver", "absent.prototxt"], "absent.prototxt"),
        (
            ["-solver", "solvers/adam.prototxt", "-weights", "a", "-snapshot", "b"],
            "give a snapshot to resume or weights",
        ),
        (
            ["-solver", "solvers/adam.prototxt", "-snapshot", "b.solverstate"],
            "b.solverstate: no such snapshot",
        ),
        (
            ["-solver", "solvers/adam.prototxt", "-gpu", "0,1"],
            "-gpu 0,1: several GPUs need one process each; use torchrun",
        ),
        (
            ["-solver", "tiny.prototxt"],
            "is a net's prototxt, not a solver's prototxt; give the solver that names this net",
        ),
    ],
    ids=["absent", "both", "no-state", "two-gpus", "a-net"],
)
def test_caffe_train_refuses_in_one_line(arguments, message, workplace, capsys):
    assert main(["caffe", "train", *arguments]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("ilgnet: ") and message in last


def test_caffe_train_is_refused_under_torchrun(workplace, capsys, monkeypatch):
    """Each process would train alone, and all would write the same snapshots."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["caffe", "train", "-solver", "solvers/adam.prototxt"]) == 1
    assert capsys.readouterr().err == (
        "ilgnet: caffe train: trains in one process, and torchrun started 2; start tools/train.py by torchrun "
        "(docs/training.md)\n"
    )


class _Signal(Observer):
    """Sends this process a signal at an iteration."""

    def __init__(self, number: int, iteration: int) -> None:
        self.number, self.iteration = number, iteration

    def on_update(self, trainer, updated):
        if updated.iteration == self.iteration:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "effects", "last", "snapshots"),
    [
        (signal.SIGINT, {}, 7, {7}),
        (signal.SIGHUP, {}, 20, {7, 20}),
        (signal.SIGINT, {"sigint_effect": "snapshot"}, 20, {7, 20}),
        (signal.SIGHUP, {"sighup_effect": "stop"}, 7, {7}),
        (signal.SIGINT, {"sigint_effect": "none"}, 20, {20}),
    ],
    ids=["int-stops", "hup-saves", "int-saves", "hup-stops", "int-ignored"],
)
def test_signals(number, effects, last, snapshots, tmp_path):
    settings = settings_of("sgd_fixed", tmp_path, snapshot=0, test_interval=0)
    with catch_signals(Requests(), **effects) as requests:
        trainer = Trainer(settings, observers=[_Signal(number, 6)], requests=requests)
        trainer.solve()
    assert trainer.iteration == last
    assert set(trainer.snapshots.iterations()) == snapshots


def test_average_loss_is_the_mean_of_the_last_iterations(tmp_path):
    plain, _ = run(settings_of("sgd_exp", tmp_path, test_interval=0))
    mean, _ = run(settings_of("sgd_exp", tmp_path, test_interval=0, average_loss=4))
    losses = [plain.losses[i] for i in range(20)]
    expected = [np.mean(losses[max(0, i - 3) : i + 1]) for i in range(20)]
    np.testing.assert_allclose([mean.losses[i] for i in range(20)], expected, rtol=1e-6)


def test_no_initial_test_where_it_is_off(tmp_path):
    """The second test then reads the rows that the first would have read."""
    trace, _ = run(settings_of("sgd_exp", tmp_path, test_initialization=False, max_iter=10))
    assert list(trace.tests) == [10]
    resumed, _ = run(settings_of("sgd_exp", tmp_path, test_initialization=False, weights=()),
                     resume=tmp_path / "sgd_exp_iter_10.solverstate")  # fmt: skip
    assert resumed.tests[10] == trace.tests[10]


def test_test_compute_loss(tmp_path):
    logged = []

    class Ear(Recorder):
        def on_test(self, trainer, test):
            logged.append((test.loss, test.outputs[0].value))

    Trainer(settings_of("sgd_exp", tmp_path, test_compute_loss=True, max_iter=0), observers=[Ear()]).solve()
    assert len(logged) == 1 and logged[0][0] == pytest.approx(logged[0][1])


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_accumulation_changes_only_memory(accumulate, tmp_path):
    whole, one = run(settings_of("adagrad", tmp_path, max_iter=10))
    parts, other = run(settings_of("adagrad", tmp_path, max_iter=10), options=Options(accumulate=accumulate))
    np.testing.assert_allclose(list(parts.losses.values()), list(whole.losses.values()), rtol=1e-5)
    for mine, theirs in zip(other.net.parameters(), one.net.parameters(), strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), theirs.detach().numpy(), rtol=1e-3, atol=1e-5)


def test_bfloat16_learns_and_keeps_float32_weights(tmp_path):
    exact, _ = run(settings_of("sgd_exp", tmp_path, max_iter=8))
    mixed, trainer = run(settings_of("sgd_exp", tmp_path, max_iter=8), options=Options(precision="bfloat16"))
    assert {p.dtype.itemsize for p in trainer.net.parameters()} == {4}
    assert mixed.losses[0] == pytest.approx(exact.losses[0], rel=0.02) and mixed.losses != exact.losses


def test_train_writes_tables_plot_and_best_weights(workplace, capsys):
    arguments = [
        "train",
        "--solver",
        "solvers/sgd_step.prototxt",
        "--weights",
        "tiny_init.caffemodel",
        "--json",
    ]
    assert main([*arguments, "--out", "log", "--best-by", "top-1"]) == 0
    result = json.loads(capsys.readouterr().out)
    caffe = read_log(SOLVERS / "sgd_step.log")
    columns, tests = read_table(workplace / "log" / "test.csv")
    assert columns == ["iteration", "loss", "top-1"]
    np.testing.assert_allclose(
        [row[1:] for row in tests], [[v for _, v in t] for t in caffe.tests.values()], rtol=1e-4
    )
    best = max(caffe.tests, key=lambda iteration: dict(caffe.tests[iteration])["top-1"])
    assert result["best"]["iteration"] == best == 10
    saved, snapshot = (
        workplace / "solvers/sgd_step_best.caffemodel",
        workplace / "solvers/sgd_step_iter_10.caffemodel",
    )
    assert saved.read_bytes() == snapshot.read_bytes()
    assert (workplace / "log" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert result["iterations"] == 20 and result["stopped"] == ""


def test_train_stops_early_and_says_why(workplace, capsys):
    arguments = [
        "train",
        "--solver",
        "solvers/sgd_exp.prototxt",
        "--weights",
        "tiny_init.caffemodel",
        "--json",
    ]
    assert main([*arguments, "--patience", "1", "--max-iter", "60", "--best-by", "loss"]) == 0
    result = json.loads(capsys.readouterr().out)
    _, tests = read_table(workplace / "solvers" / "sgd_exp_log" / "test.csv")
    losses = [row[1] for row in tests]
    worse = next(i for i in range(1, len(losses)) if losses[i] >= min(losses[:i]))
    assert result["iterations"] == worse * 10 < 60
    assert result["stopped"].startswith("no better loss in 1 tests than")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--best-by", "accuracy"],
            "best-by 'accuracy' is not an output of the test net; it has loss, top-1",
        ),
        (["--precision", "float16"], "precision float16 needs a GPU; use bfloat16, or float32"),
        (["--device", "cuda:7"], "--device cuda:7: torch finds no CUDA device; use --device cpu"),
        (["--device", "tpu"], "--device tpu: give cpu, cuda or cuda:N"),
        (["--accumulate", "4"], "batch_size 6 is not a multiple of 4 (1 processes of 4 passes each)"),
        (
            ["--resume", "absent.solverstate"],
            "absent.solverstate: no such snapshot; give a .solverstate file",
        ),
    ],
    ids=["output", "float16", "gpu", "device", "accumulate", "state"],
)
def test_train_refuses_in_one_line(arguments, message, workplace, capsys):
    assert main(["train", "--solver", "solvers/adam.prototxt", *arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("ilgnet: ") and message in lines[-1]


def test_best_is_not_counted_twice_after_a_resume(tmp_path):
    settings = settings_of("sgd_exp", tmp_path, max_iter=10)
    first = BestWeights()
    Trainer(settings, observers=[first]).solve()
    again = BestWeights()
    trainer = Trainer(settings, observers=[again])
    trainer.restore(tmp_path / "sgd_exp_iter_10.solverstate")
    trainer.solve()
    assert again.best == first.best and first.best.tested == 10


def test_tensorboard_events(workplace):
    pytest.importorskip("tensorboard", reason="an extra: pip install 'ilgnet_repro[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ["train", "--solver", "solvers/sgd_exp.prototxt", "--weights", "tiny_init.caffemodel"]
    assert main([*arguments, "--out", "log", "--tensorboard"]) == 0
    events = EventAccumulator("log")
    events.Reload()
    caffe = read_log(SOLVERS / "sgd_exp.log")
    losses = [event.value for event in events.Scalars("train/loss")]
    np.testing.assert_allclose(losses, list(caffe.losses.values()), rtol=1e-4)
    assert [event.step for event in events.Scalars("test/top-1")] == [0, 10, 20]


BATCH_STATISTICS = """
layer { name: "x" type: "DummyData" top: "x" top: "y" dummy_data_param {
  shape { dim: 3 dim: 2 dim: 4 dim: 5 } shape { dim: 3 dim: 7 }
  data_filler { type: "gaussian" } data_filler { type: "constant" value: 1 } } }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "bn" %s }
layer { name: "ip" type: "InnerProduct" bottom: "bn" top: "ip"
  inner_product_param { num_output: 7 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
"""


@pytest.mark.parametrize(
    ("fields", "passes"),
    [("batch_norm_param { use_global_stats: false }", 4 + 3 * 2), ("", 4)],
    ids=["stated_for_both_phases", "by_phase"],
)
def test_tests_on_batch_statistics_update_those_of_the_train_net(fields, passes, tmp_path):
    (tmp_path / "net.prototxt").write_text(BATCH_STATISTICS % fields)
    solver = tmp_path / "solver.prototxt"
    solver.write_text(
        'net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 4 test_iter: 2 test_interval: 2 '
        f'random_seed: 1 snapshot_after_train: false snapshot_prefix: "{tmp_path}/s"'
    )
    trainer = Trainer(read_settings(solver, root=tmp_path))
    trainer.solve()
    factor = trainer.net.params["bn"][2].item()  # each pass: 0.999 of it, and 1
    assert factor == pytest.approx(sum(0.999**number for number in range(passes)), abs=1e-4)


# ---------------------------------------------------------------------- one run, one set of files

TRAIN = ["train", "--solver", "solvers/sgd_exp.prototxt", "--weights", "tiny_init.caffemodel"]


def refusal(capsys, *arguments: str) -> str:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*TRAIN, *arguments]) == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return capsys.readouterr().err.splitlines()[-1].removeprefix("ilgnet: ")


def test_train_never_writes_over_another_run(workplace, capsys):
    assert main([*TRAIN, "--max-iter", "10"]) == 0
    state = "solvers/sgd_exp_iter_10.solverstate"
    remedy = "resume that one with --resume latest, or give another snapshot_prefix"
    assert refusal(capsys) == f"{state}: is of an earlier run; {remedy}"
    assert refusal(capsys, "--out", "elsewhere") == f"{state}: is of an earlier run; {remedy}"
    # The same prefix with another net, or another solver: resuming is refused too.
    solver = Path("solvers/sgd_exp.prototxt")
    own = solver.read_text()
    solver.write_text(own + 'type: "Nesterov"\n')
    another = "has the files of another run, of another solver; give another snapshot_prefix, or another folder as --out"
    assert refusal(capsys, "--resume", "latest") == f"solvers/sgd_exp_log: {another}"
    solver.write_text(own.replace("tiny.prototxt", "other.prototxt"))
    Path("other.prototxt").write_text(
        Path("tiny.prototxt").read_text().replace("num_output: 6", "num_output: 6 group: 1")
    )
    assert "of another net; " in refusal(capsys, "--resume", "latest")
    solver.write_text(own)
    assert main([*TRAIN, "--resume", "latest"]) == 0


def test_the_snapshot_that_is_reported_is_of_this_run(workplace, capsys):
    assert main([*TRAIN, "--max-iter", "10"]) == 0
    for ending in ("caffemodel", "solverstate"):  # of a longer run
        shutil.copy(f"solvers/sgd_exp_iter_10.{ending}", f"solvers/sgd_exp_iter_900.{ending}")
    capsys.readouterr()
    resume = ["--resume", "solvers/sgd_exp_iter_10.solverstate", "--max-iter", "20", "--json"]
    assert main([*TRAIN, *resume]) == 0
    assert json.loads(capsys.readouterr().out)["snapshot"] == "solvers/sgd_exp_iter_20.solverstate"
