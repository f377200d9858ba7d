"""pycaffe's solvers against Caffe's recorded runs, and what scripts do with them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from train_cases import NAMES, PIPELINE, SENSITIVE, SOLVERS, WEIGHTS, read_log

import ilgnet_repro.pycaffe as caffe
from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.errors import IlgnetError

CLASSES = {
    "adadelta": caffe.AdaDeltaSolver,
    "adagrad": caffe.AdaGradSolver,
    "adam": caffe.AdamSolver,
    "nesterov": caffe.NesterovSolver,
    "rmsprop": caffe.RMSPropSolver,
}


# One of each rule, and of what a pass may do.
RUNS = (*CLASSES, "sgd_clip", "sgd_fixed", "sgd_iter_size", "sgd_multistep")


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recorded solvers, whose snapshots go to ``out``."""
    for path in PIPELINE.iterdir():
        if path.name != "solvers":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "solvers").mkdir()
    (tmp_path / "out").mkdir()
    for name in NAMES:
        text = (SOLVERS / f"{name}.prototxt").read_text().replace('prefix: "solvers/', 'prefix: "out/')
        (tmp_path / "solvers" / f"{name}.prototxt").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(name: str) -> caffe.SGDSolver:
    solver = caffe.get_solver(f"solvers/{name}.prototxt")
    assert type(solver) is CLASSES.get(name, caffe.SGDSolver)
    solver.net.copy_from(WEIGHTS)
    return solver


@pytest.mark.parametrize("name", RUNS)
def test_recorded_runs_step_by_step(name: str, pipeline: Path) -> None:
    """The loss and the rate of each iteration, and the weights and the history after twenty."""
    solver, log = started(name), read_log(SOLVERS / f"{name}.log")
    weight = solver.net.params[next(iter(solver.net.params))][0].data
    for iteration in range(20):
        assert solver.iter == iteration
        np.testing.assert_allclose(solver.lr, log.rates[iteration], rtol=1e-5)
        solver.step(1)
        if "iter_size" not in name and iteration < SENSITIVE.get(
            name, 20
        ):  # iter_size: the blobs are of its last pass
            np.testing.assert_allclose(
                solver.net.blobs["loss"].data, log.losses[iteration], rtol=1e-3, atol=1e-5
            )
    model = open_caffemodel(SOLVERS / f"{name}_iter_20.caffemodel")
    for layer in model.layers if name not in SENSITIVE else ():
        for blob, recorded in zip(solver.net.params.get(layer.name, ()), layer.blobs, strict=False):
            np.testing.assert_allclose(blob.data, recorded.array().reshape(blob.shape), rtol=2e-3, atol=2e-4)
    assert np.shares_memory(weight, solver.net.params[next(iter(solver.net.params))][0].data)


def test_tests_and_snapshots_of_a_whole_run(pipeline: Path, capfd) -> None:
    solver = started("sgd_fixed")
    solver.solve()
    assert solver.iter == 20
    assert sorted(path.name for path in (pipeline / "out").iterdir()) == [
        f"sgd_fixed_iter_{number}.{kind}" for number in (10, 20) for kind in ("caffemodel", "solverstate")
    ]
    (pipeline / "ours.log").write_text(capfd.readouterr().err)
    ours, recorded = read_log(pipeline / "ours.log"), read_log(SOLVERS / "sgd_fixed.log")
    assert ours.tests.keys() == recorded.tests.keys()
    for iteration, outputs in recorded.tests.items():
        for (name, value), (expected_name, expected) in zip(ours.tests[iteration], outputs, strict=True):
            assert name == expected_name
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-5)


def test_resumed_from_caffes_own_state(pipeline: Path) -> None:
    for kind in ("caffemodel", "solverstate"):
        shutil.copy(SOLVERS / f"adam_iter_10.{kind}", pipeline / "solvers")
    solver = caffe.AdamSolver("solvers/adam.prototxt")
    solver.restore("solvers/adam_iter_10.solverstate")
    assert solver.iter == 10
    held = {layer.name: layer for layer in open_caffemodel(SOLVERS / "adam_iter_10.caffemodel").layers}
    for name, blobs in solver.net.params.items():
        for blob, recorded in zip(blobs, held[name].blobs, strict=True):
            np.testing.assert_array_equal(blob.data, recorded.array().reshape(blob.shape))
    solver.solve("solvers/adam_iter_10.solverstate")
    assert solver.iter == 20


# ------------------------------------------------------------------ small solvers

NET = """
layer { name: "data" type: "DummyData" top: "x" top: "t" dummy_data_param {
  shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } data_filler { type: "gaussian" } data_filler { type: "constant" } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param {
  num_output: 2 weight_filler { type: "xavier" } } param { lr_mult: 1 } param { lr_mult: 2 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" test_iter: 3 test_iter: 1 test_interval: 4 base_lr: 0.01 lr_policy: "step" stepsize: 5 gamma: 0.5
momentum: 0.9 max_iter: 12 snapshot_after_train: false snapshot_prefix: "run" display: 100
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    return tmp_path


def test_the_nets_of_a_solver(folder: Path) -> None:
    solver = caffe.SGDSolver("solver.prototxt")
    assert solver.net is solver.net
    assert [type(net) for net in (solver.net, *solver.test_nets)] == [caffe.Net] * 3
    assert (solver.param.max_iter, solver.param.display, solver.type) == (12, 100, "SGD")
    weights = solver.net.params["ip"][0].data
    for net in solver.test_nets:
        assert np.shares_memory(net.params["ip"][0].data, weights)
    solver.step(1)
    np.testing.assert_array_equal(solver.test_nets[1].params["ip"][0].data, weights)


def test_what_a_script_writes_trains(folder: Path) -> None:
    """Targets are set in a blob; the test nets have their own."""
    solver = caffe.SGDSolver("solver.prototxt")
    solver.net.blobs["t"].data[...] = [5, -5]
    solver.solve()
    assert solver.iter == 12
    assert (solver.net.blobs["t"].data == [5, -5]).all()
    assert not solver.test_nets[0].blobs["t"].data.any()
    assert solver.net.params["ip"][1].data[0] > 0.5
    assert solver.net.params["ip"][1].data[1] < -0.5


def test_a_gradient_that_a_script_gives_is_applied(folder: Path) -> None:
    solver = caffe.SGDSolver("solver.prototxt")
    weight, bias = (blob.data for blob in solver.net.params["ip"])
    weight[...] = bias[...] = 0
    for blob, value in zip(solver.net.params["ip"], (1, -2), strict=True):
        blob.diff[...] = value
    solver.apply_update()
    np.testing.assert_allclose(weight, -0.01, rtol=1e-6)
    np.testing.assert_allclose(bias, 0.04, rtol=1e-6)
    assert solver.iter == 0
    np.testing.assert_allclose(solver.net.params["ip"][1].diff, -0.04, rtol=1e-6)  # the update, as in Caffe


def test_callbacks_and_the_update_in_the_gradients(folder: Path) -> None:
    solver = caffe.SGDSolver("solver.prototxt")
    calls: list[str] = []
    gradients: list[np.ndarray] = []
    diff, weight = solver.net.params["ip"][0].diff, solver.net.params["ip"][0].data

    def on_gradients() -> None:
        calls.append("gradients")
        gradients.append(diff.copy())
        diff[0, 0] = 0  # a script may change them

    solver.add_callback(lambda: calls.append("start"), on_gradients)
    before = weight.copy()
    solver.step(1)
    assert calls == ["start", "gradients"]
    gradients[0][0, 0] = 0
    np.testing.assert_allclose(diff, 0.01 * gradients[0], rtol=1e-5)
    np.testing.assert_allclose(weight, before - diff, rtol=1e-5, atol=1e-7)
    solver.step(2)
    assert calls == ["start", "gradients"] * 3


def test_the_class_decides_the_rule(folder: Path) -> None:
    assert caffe.AdamSolver("solver.prototxt").type == "Adam"
    assert type(caffe.get_solver("solver.prototxt")) is caffe.SGDSolver


def test_the_rate_follows_the_policy(folder: Path) -> None:
    solver = caffe.SGDSolver("solver.prototxt")
    rates = []
    for _ in range(11):
        rates.append(solver.lr)
        solver.step(1)
    np.testing.assert_allclose(rates, [0.01] * 5 + [0.005] * 5 + [0.0025])


def test_snapshot_and_restore(folder: Path) -> None:
    solver = caffe.SGDSolver("solver.prototxt")
    solver.snapshot()
    assert {path.name for path in folder.glob("run_*")} == {"run_iter_0.caffemodel", "run_iter_0.solverstate"}
    solver.step(3)
    solver.snapshot()
    other = caffe.SGDSolver("solver.prototxt")
    weight = other.net.params["ip"][0].data
    other.restore("run_iter_3.solverstate")
    assert other.iter == 3
    np.testing.assert_array_equal(weight, solver.net.params["ip"][0].data)
    np.testing.assert_array_equal(other.test_nets[0].params["ip"][0].data, weight)


def test_nets_outlive_their_solver(folder: Path) -> None:
    solver = caffe.SGDSolver("solver.prototxt")
    nets = [solver.net, *solver.test_nets]
    solver.step(1)
    del solver
    for net in nets:
        net.forward()
        for blob in [*net.blobs.values(), *(blob for blobs in net.params.values() for blob in blobs)]:
            assert np.isfinite(blob.data.sum() + blob.diff.sum())


def test_share_weights(folder: Path) -> None:
    solver, net = caffe.SGDSolver("solver.prototxt"), caffe.Net("net.prototxt", caffe.TEST)
    solver.share_weights(net)
    assert np.shares_memory(net.params["ip"][0].data, solver.net.params["ip"][0].data)


def test_the_same_seed_gives_the_same_run(folder: Path) -> None:
    found = []
    for _ in range(2):
        caffe.set_random_seed(7)
        (folder / "solver.prototxt").write_text(SOLVER + "random_seed: 5")
        solver = caffe.SGDSolver("solver.prototxt")
        solver.step(4)
        found.append(solver.net.params["ip"][0].data.copy())
    np.testing.assert_array_equal(*found)


REFUSED = {
    "no such file": (lambda: caffe.SGDSolver("gone"), RuntimeError, "Could not open file gone; check the path"),
    "no such state": (lambda: caffe.SGDSolver("solver.prototxt").restore("gone"), IlgnetError, "gone: no such snapshot"),
    "NCCL": (lambda: caffe.NCCL(caffe.SGDSolver("solver.prototxt"), b""), RuntimeError, "NCCL is not supported"),
    "half a callback": (
        lambda: caffe.SGDSolver("solver.prototxt").add_callback(lambda: None), IlgnetError,
        "add_callback: give two functions, for the start and for the gradients of an iteration",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, folder: Path) -> None:
    call, kind, message = REFUSED[name]
    with pytest.raises(kind, match=re.escape(message)) as caught:
        call()
    assert isinstance(caught.value, IlgnetError)


DEBUGGED = """
layer { name: "data" type: "DummyData" top: "x" top: "t" dummy_data_param {
  shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } data_filler { value: 0.5 } data_filler { value: 0 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" param { lr_mult: 0 } inner_product_param {
  num_output: 2 weight_filler { value: 2 } bias_filler { value: -1 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }
"""
# y = 3 x 0.5 x 2 - 1 = 2 everywhere; loss = 4 x 2 x 2 x 2 / 4 / 2; its gradient 2 / 4, that of the bias 4 x 2 / 4.
LINES = [
    "[Forward] Layer data, top blob x data: 0.5",
    "[Forward] Layer data, top blob t data: 0",
    "[Forward] Layer ip, top blob y data: 2",
    "[Forward] Layer ip, param blob 0 data: 2",
    "[Forward] Layer ip, param blob 1 data: 1",
    "[Forward] Layer loss, top blob loss data: 4",
    "[Backward] Layer loss, bottom blob y diff: 0.5",
    "[Backward] Layer ip, param blob 1 diff: 2",
    "[Backward] All net params (data, diff): L1 norm = (14, 4); L2 norm = (5.09902, 2.82843)",
]


def test_debug_info_logs_the_passes_of_displayed_iterations(folder: Path, capfd) -> None:
    (folder / "net.prototxt").write_text(DEBUGGED)
    (folder / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" display: 2 debug_info: true snapshot_after_train: false'
    )
    solver = caffe.SGDSolver("solver.prototxt")
    capfd.readouterr()
    solver.step(2)
    logged = [line.partition("]     ")[2] for line in capfd.readouterr().err.splitlines()]
    assert [line for line in logged if line.startswith("[")] == LINES
