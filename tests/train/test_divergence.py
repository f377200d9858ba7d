"""Runs that diverge: logged, stopped, never the best, and never displacing a finite snapshot."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from train_cases import PIPELINE

from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.caffe.prototxt import format_message, parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import DivergedError, IlgnetError
from ilgnet_repro.schema import caffe_pb2 as pb
from ilgnet_repro.train.best_weights import Best, BestWeights
from ilgnet_repro.train.loop import Options, Trainer
from ilgnet_repro.train.observe import Observer, Output, Test
from ilgnet_repro.train.snapshot import Snapshots
from ilgnet_repro.train.solver import make_settings

NET = """
layer {{ name: "data" type: "Data" top: "data" top: "label" transform_param {{ scale: 0.004 }}
  data_param {{ source: "{data}" batch_size: 4 backend: LMDB }} }}
layer {{ name: "h" type: "InnerProduct" bottom: "data" top: "h"
  inner_product_param {{ num_output: 5 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "h" top: "ip"
  inner_product_param {{ num_output: 2 weight_filler {{ type: "constant" value: 0.01 }} }} }}
layer {{ name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" include {{ phase: TEST }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" {rule} }}
"""
# The rate of iteration 3 is 1e25 times the one before: iteration 4 sees a loss of NaN, computed with finite weights.
SOLVER = {
    "base_lr": 0.01, "lr_policy": "multistep", "gamma": 1e25, "stepvalue": [3, 1000], "max_iter": 8, "display": 1,
    "test_iter": [1], "test_interval": 2, "snapshot": 2, "random_seed": 1,
}  # fmt: skip


def solver(folder, rule: str = "", **changes: object) -> pb.SolverParameter:
    """The settings of such a run; ``rule`` is the loss layer's include rule."""
    net = parse_net(NET.format(data=PIPELINE / "raw64_lmdb", rule=rule))
    return pb.SolverParameter(net_param=net, snapshot_prefix=str(folder / "out"), **{**SOLVER, **changes})


def snapshots(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("out_iter_*.solverstate"))


def is_finite(path) -> bool:
    return all(
        np.isfinite(blob.array()).all() for layer in open_caffemodel(path).layers for blob in layer.blobs
    )


def message_of(folder, resume: str = "out_iter_2.solverstate", remedy: str = "allow_nonfinite=True") -> str:
    return (
        f"iteration 4: the loss is nan; check the data, lower base_lr and resume from {folder / resume}, "
        f"or continue as Caffe does with {remedy}"
    )


@pytest.mark.parametrize("rule", ["", "include { phase: TRAIN }"], ids=["loss", "only accuracy"])
@pytest.mark.parametrize("allow", [False, True], ids=["stops", "continues"])
def test_the_best_weights_are_finite(rule, allow, tmp_path):
    """Caffe's Accuracy of NaN scores is 1, better than any other; the test net may have no loss that shows the NaN."""
    best = BestWeights()
    trainer = Trainer(make_settings(solver(tmp_path, rule)), Options(allow_nonfinite=allow), [best])
    if allow:
        trainer.solve()
        assert trainer.iteration == 8
    else:
        with pytest.raises(DivergedError) as raised:
            trainer.solve()
        assert str(raised.value) == message_of(tmp_path)
        assert trainer.iteration == 4 and trainer.reason == "iteration 4: the loss is nan"
    assert best.best.iteration in (0, 2) and best.best.value < 1
    assert is_finite(tmp_path / "out_best.caffemodel")
    assert json.loads((tmp_path / "out_best.json").read_text())["iteration"] == best.best.iteration


@pytest.mark.parametrize(
    ("keep", "allow", "kept"),
    [
        (1, False, ["out_iter_2.solverstate", "out_iter_4.solverstate"]),
        (1, True, ["out_iter_2.solverstate", "out_iter_8.solverstate"]),
        (2, True, ["out_iter_2.solverstate", "out_iter_6.solverstate", "out_iter_8.solverstate"]),
        (0, True, [f"out_iter_{number}.solverstate" for number in (2, 4, 6, 8)]),
    ],
)
def test_diverged_snapshots_displace_no_finite_one(keep, allow, kept, tmp_path):
    trainer = Trainer(make_settings(solver(tmp_path)), Options(keep=keep, allow_nonfinite=allow))
    if allow:
        trainer.solve()
    else:
        with pytest.raises(DivergedError):
            trainer.solve()
    assert snapshots(tmp_path) == kept
    assert trainer.snapshots.latest() == tmp_path / "out_iter_2.solverstate"


@pytest.mark.parametrize("display", [1, 0], ids=["shown", "not shown"])
@pytest.mark.parametrize("last", [4, 5])
def test_a_run_that_diverges_at_its_end_says_so(display, last, tmp_path):
    """After iteration 3 the weights are finite, but the loss is not; one more update and neither is."""
    options = Options(keep=1, allow_nonfinite=last == 5)
    trainer = Trainer(make_settings(solver(tmp_path, max_iter=last, display=display)), options)
    if last == 5:
        trainer.solve()
    else:
        with pytest.raises(DivergedError, match="iteration 4: the loss is nan"):
            trainer.solve()
    assert "out_iter_2.solverstate" in snapshots(tmp_path)


def test_nonfinite_weights_end_a_run_without_a_last_loss(tmp_path):
    plain = {"max_iter": 1, "display": 0, "snapshot": 0, "test_interval": 0, "test_iter": [], "base_lr": 1e30}
    message = solver(tmp_path, "loss_weight: 1e30", **plain)
    with pytest.raises(DivergedError, match="iteration 1: the weights are not finite"):
        Trainer(make_settings(message)).solve()


def test_a_finite_run_keeps_its_snapshots(tmp_path):
    """The opposite case: the same run with a rate that does not jump."""
    best = BestWeights()
    trainer = Trainer(make_settings(solver(tmp_path, gamma=0.5)), Options(keep=1), [best])
    trainer.solve()
    assert snapshots(tmp_path) == ["out_iter_8.solverstate"] and best.best.tested == 8


def test_diverging_is_logged_once_per_streak(tmp_path):
    logged = []

    class Ear(Observer):
        def log(self, topic, text):
            if topic == "diverged":
                logged.append(text)

    Trainer(make_settings(solver(tmp_path)), Options(allow_nonfinite=True), [Ear()]).solve()
    assert logged == ["iteration 4: the loss is nan"]


def test_a_diverged_snapshot_is_resumed_only_on_request(tmp_path):
    settings = make_settings(solver(tmp_path))
    Trainer(settings, Options(allow_nonfinite=True)).solve()
    state = tmp_path / "out_iter_8.solverstate"
    trainer = Trainer(settings)
    before = [parameter.detach().clone() for parameter in trainer.net.parameters()]
    with pytest.raises(DivergedError) as raised:
        trainer.restore(state)
    assert str(raised.value) == (
        f"{state}: the run had diverged, layer h is not finite; resume from an earlier snapshot, or continue with "
        "allow_nonfinite=True"
    )
    assert all(map(torch.equal, before, trainer.net.parameters()))
    trainer.restore(tmp_path / "out_iter_2.solverstate")
    Trainer(settings, Options(allow_nonfinite=True)).restore(state)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nonfinite_best_of_an_earlier_version_is_ignored(value, tmp_path):
    (tmp_path / "out_best.json").write_text(
        json.dumps({"output": "acc", "iteration": 4, "value": value, "tested": 6, "tests_since": 0})
    )
    best = BestWeights()
    trainer = Trainer(make_settings(solver(tmp_path, gamma=0.5)), observers=[best])
    trainer.iteration = 2
    best.on_start(trainer)
    assert best.best is None


BEST = {"output": "acc", "iteration": 4, "value": 0.5, "tested": 6, "tests_since": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"value": 10**400},
        {"value": "x"},
        {"value": None},
        {"output": 5},
        {"tests_since": "1"},
        {"iteration": -1},
        {"tested": True},
        {"other": 1},
    ],
    ids=lambda change: json.dumps(change)[:24],
)
def test_a_damaged_state_of_the_best_weights_is_not_replaced(change, tmp_path):
    path = tmp_path / "out_best.json"
    path.write_text(json.dumps({**BEST, **change}))
    trainer = Trainer(make_settings(solver(tmp_path, gamma=0.5)))
    trainer.iteration = 2
    with pytest.raises(IlgnetError, match="exists and was not written by `ilgnet train`; remove it"):
        BestWeights().on_start(trainer)
    path.write_text(json.dumps(BEST))
    best = BestWeights()
    best.on_start(trainer)
    assert best.best == Best(**BEST)


class _Stopped:
    """The trainer's attributes that `BestWeights` uses."""

    def __init__(self, trainer: Trainer) -> None:
        self.settings, self.net, self.reasons = trainer.settings, trainer.net, []
        self.saved = 0

    def save_weights(self, path) -> None:
        self.saved += 1

    def stop(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.mark.parametrize(
    ("name", "weight", "tests", "best", "saved"),
    [
        ("acc", 0.0, [(0.5, True), (1.0, False), (0.25, True), (0.75, True)], (3, 0.75, 0), 2),
        ("acc", 0.0, [(1.0, False), (math.nan, True), (0.25, True)], (2, 0.25, 0), 1),
        ("loss", 1.0, [(2.0, True), (math.nan, False), (-math.inf, True), (1.5, True)], (3, 1.5, 0), 2),
        ("loss", 1.0, [(2.0, True), (math.nan, True), (3.0, True)], (0, 2.0, 2), 1),
    ],
)
def test_nonfinite_values_are_never_the_best(name, weight, tests, best, saved, tmp_path):
    trainer = _Stopped(Trainer(make_settings(solver(tmp_path))))
    observer = BestWeights(name)
    for iteration, (value, finite) in enumerate(tests):
        observer.on_test(trainer, Test(iteration, 0, (Output(name, value, weight),), None, finite))
    iteration, value, since = best
    assert observer.best == Best(name, iteration, value, len(tests) - 1, since) and trainer.saved == saved


def test_patience_counts_tests_without_a_finite_one(tmp_path):
    trainer = _Stopped(Trainer(make_settings(solver(tmp_path))))
    observer = BestWeights("acc", patience=2)
    for iteration in range(2):
        observer.on_test(trainer, Test(iteration, 0, (Output("acc", 1.0),), None, finite=False))
    assert trainer.reasons == ["no finite test of acc in 2 tests"] and observer.best is None


def test_finite_and_diverged_snapshots_are_counted_separately(tmp_path):
    for number in (2, 4, 6, 8, 10):
        for kind in ("solverstate", "caffemodel"):
            (tmp_path / f"out_iter_{number}.{kind}").touch()
    held = Snapshots("out", tmp_path, keep=1, nonfinite={6, 8}, written={2, 4, 6, 8, 10})
    held.prune(8)
    assert held.iterations() == [8, 10]  # 10 is the newest finite one, 8 the newest of the others
    held.nonfinite.add(10)
    assert held.latest() is None


@pytest.mark.parametrize("command", ["train", "caffe train"])
@pytest.mark.parametrize("allow", [False, True], ids=["stops", "continues"])
def test_the_commands_report_it_and_exit_with_1(command, allow, tmp_path, capsys):
    path = tmp_path / "solver.prototxt"
    path.write_text(format_message(solver(tmp_path)))
    flag = "--solver" if command == "train" else "-solver"
    options = ["--keep", "1", "--json"] if command == "train" else []
    options += (["--allow-nonfinite"] if command == "train" else ["-allow_nonfinite"]) if allow else []
    assert main([*command.split(), flag, str(path), *options]) == (0 if allow else 1)
    shown = capsys.readouterr()
    if not allow:
        assert shown.err.strip().splitlines()[-1] == "ilgnet: " + message_of(
            tmp_path, remedy="--allow-nonfinite"
        )
    assert "iteration 4: the loss is nan" in shown.err
    if command == "train":
        result = json.loads(shown.out, parse_constant=pytest.fail)
        assert result["stopped"] == ("" if allow else "iteration 4: the loss is nan")
        assert result["snapshot"] == str(tmp_path / "out_iter_2.solverstate")
        assert result["best"]["iteration"] in (0, 2) and result["iterations"] == (8 if allow else 4)
        assert (tmp_path / "out_log" / "curves.png").is_file()


def test_checking_the_last_snapshot_does_not_change_the_net(tmp_path):
    """The pass that computes the loss would update BatchNorm's statistics, which the snapshot already has."""
    message = solver(tmp_path, gamma=0.5, display=0, test_interval=0, test_iter=[], max_iter=2)
    norm = message.net_param.layer.add(name="norm", type="BatchNorm", bottom=["h"], top=["h"])
    del message.net_param.layer[-1]
    message.net_param.layer.insert(2, norm)
    trainer = Trainer(make_settings(message), Options(keep=1))
    trainer.solve()
    held = {layer.name: layer.blobs for layer in open_caffemodel(tmp_path / "out_iter_2.caffemodel").layers}
    for mine, theirs in zip(trainer.net.params["norm"], held["norm"], strict=True):
        np.testing.assert_array_equal(mine.detach().numpy(), theirs.array().reshape(mine.shape))
