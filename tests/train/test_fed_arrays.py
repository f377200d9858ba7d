"""Nets whose MemoryData and Input layers a Python loop feeds: `Solver`, `solve` and `batches` with arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main

# One dense layer and a Euclidean loss: the update of a step is worked out by hand below.
NET = """
name: "fed"
layer {{ name: "d" type: "{type}" top: "x" top: "y" {fields} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
  inner_product_param {{ num_output: 1 bias_term: false weight_filler {{ value: 0.5 }} }} }}
layer {{ name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }}
"""
FIELDS = {
    "MemoryData": "memory_data_param { batch_size: 2 channels: 1 height: 3 width: 1 }",
    "Input": "input_param { shape { dim: 2 dim: 1 dim: 3 dim: 1 } shape { dim: 2 } }",
}
SOLVER = 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 4 snapshot_prefix: "fed" '
TESTED = SOLVER + "test_iter: 2 test_interval: 2 "
ROWS = np.random.default_rng(5).normal(size=(6, 1, 3, 1)).astype(np.float32)
LABELS = np.random.default_rng(6).normal(size=6).astype(np.float32)


@pytest.fixture(params=FIELDS)
def type_(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    write_net(request.param)
    return request.param


def write_net(type_: str) -> None:
    Path("net.prototxt").write_text(NET.format(type=type_, fields=FIELDS[type_]))
    Path("solver.prototxt").write_text(SOLVER)


def by_hand(batches: list[list[int]], weights: np.ndarray | None = None) -> tuple[np.ndarray, list[float]]:
    """The weights after a step for each list of rows, and the loss of each, in float64."""
    w, losses = np.full(3, 0.5) if weights is None else weights, []
    for rows in batches:
        x, y = ROWS.astype(float).reshape(6, 3)[rows], LABELS.astype(float)[rows]
        error = x @ w - y
        losses.append(float((error**2).sum() / len(rows) / 2))
        w = w - 0.1 * (error @ x) / len(rows)
    return w, losses


def weights_of(net: ir.CaffeNet) -> np.ndarray:
    return net.params["ip"][0].detach().numpy().ravel()


def test_rows_are_read_in_order_and_wrap(type_):
    solver = ir.Solver("solver.prototxt", arrays={"x": ROWS, "y": LABELS})
    losses = [solver.step() for _ in range(4)]
    expected, expected_losses = by_hand([[0, 1], [2, 3], [4, 5], [0, 1]])
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    np.testing.assert_allclose(weights_of(solver.net), expected, rtol=1e-5)
    assert solver.iteration == 4
    solved = ir.solve("solver.prototxt", arrays={"x": ROWS, "y": LABELS})
    np.testing.assert_array_equal(weights_of(solved.net), weights_of(solver.net))


def test_new_arrays_start_at_their_first_row(type_):
    solver = ir.Solver("solver.prototxt")
    solver.feed(x=ROWS, y=LABELS)
    solver.step(2)
    solver.feed({"x": torch.from_numpy(ROWS[2:]), "y": LABELS[2:].astype(np.float64)})
    solver.step(3)
    expected, _ = by_hand([[0, 1], [2, 3], [2, 3], [4, 5], [2, 3]])
    np.testing.assert_allclose(weights_of(solver.net), expected, rtol=1e-5)


def test_a_restored_run_reads_on_or_from_the_first_row(type_):
    arrays = {"x": ROWS, "y": LABELS}
    solver = ir.Solver("solver.prototxt", arrays=arrays)
    solver.step(2)
    state = solver.snapshot()
    assert state == Path("fed_iter_2.solverstate")
    middle, _ = by_hand([[0, 1], [2, 3]])
    for from_first_row, rows in ((False, [[4, 5], [0, 1]]), (True, [[0, 1], [2, 3]])):
        resumed = ir.Solver("solver.prototxt", arrays=arrays)
        resumed.restore(state, from_first_row=from_first_row)
        assert resumed.iteration == 2
        resumed.step(2)
        np.testing.assert_allclose(weights_of(resumed.net), by_hand(rows, middle)[0], rtol=1e-5)


def test_test_nets_have_their_own_arrays(type_):
    Path("solver.prototxt").write_text(TESTED)
    fed = {"x": ROWS[:2], "y": LABELS[:2]}
    solver = ir.Solver("solver.prototxt", arrays={"x": ROWS, "y": LABELS}, test_arrays=[fed])
    solver.step(1)
    weights, _ = by_hand([[0, 1]])
    expected = by_hand([[0, 1]], weights)[1][0]
    assert solver.test() == {"loss": pytest.approx(expected, rel=1e-5)}
    solver.feed(x=ROWS[2:], y=LABELS[2:], test_net=0)
    expected = np.mean([by_hand([rows], weights)[1][0] for rows in ([2, 3], [4, 5])])
    assert solver.test(0) == {"loss": pytest.approx(expected, rel=1e-5)}


def test_a_loop_of_the_users_own(type_):
    net = ir.load_net("net.prototxt", phase="TRAIN")
    batches = ir.batches(net, arrays={"x": ROWS, "y": LABELS})
    for rows in ([0, 1], [2, 3], [4, 5], [0, 1]):
        batch = next(batches)
        np.testing.assert_array_equal(batch["x"], ROWS[rows])
        assert float(net.loss(batch).detach()) == pytest.approx(by_hand([rows])[1][0], rel=1e-5)


def test_passes_of_one_batch_share_its_rows(type_):
    """``accumulate`` splits the batch: each pass reads its part, and the result is the same."""
    solver = ir.Solver("solver.prototxt", arrays={"x": ROWS, "y": LABELS}, accumulate=2)
    solver.step(3)
    expected, _ = by_hand([[0, 1], [2, 3], [4, 5]])
    np.testing.assert_allclose(weights_of(solver.net), expected, rtol=1e-5)


WRONG = {
    "unknown": ({"data": ROWS}, "array 'data': the net takes x, y"),
    "close": ({"X": ROWS}, "array 'X': the net takes x, y (did you mean x?)"),
    "shape": ({"x": ROWS[:, :, :2]}, "d ({type}): array 'x' is (6, 1, 2, 1); it takes rows of shape (1, 3, 1)"),
    "axes": ({"x": ROWS[0]}, "d ({type}): array 'x' is (1, 3, 1); it takes rows of shape (1, 3, 1)"),
    "no rows": ({"x": ROWS[:0]}, "d ({type}): array 'x' is (0, 1, 3, 1); it takes rows of shape (1, 3, 1)"),
    "words": ({"y": ["a", "b"]}, "d ({type}): array 'y' is of type <U1; give numbers"),
    "ragged": ({"y": [[1], [2, 3]]}, "d ({type}): array 'y' is not an array of numbers ("),
    "none": ({"y": None}, "d ({type}): array 'y' is of type object; give numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_and_nothing_is_taken(type_, case):
    arrays, message = WRONG[case]
    solver = ir.Solver("solver.prototxt", arrays={"x": ROWS, "y": LABELS})
    for refuse in (
        lambda: solver.feed({"y": LABELS[:4], "x": ROWS[:4], **arrays}),
        lambda: ir.Solver("solver.prototxt", arrays=arrays),
    ):
        with pytest.raises(ir.IlgnetError) as raised:
            refuse()
        assert str(raised.value).startswith(message.format(type=type_)) and "\n" not in str(raised.value)
    solver.step(3)
    np.testing.assert_allclose(weights_of(solver.net), by_hand([[0, 1], [2, 3], [4, 5]])[0], rtol=1e-5)


def test_memory_data_takes_whole_batches_and_a_label_for_each_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_net("MemoryData")
    solver = ir.Solver("solver.prototxt")
    for arrays, message in (
        ({"x": ROWS[:5], "y": LABELS[:5]}, "array 'x' has 5 rows; give a multiple of batch_size 2"),
        ({"x": ROWS, "y": LABELS[:4]}, "is fed 6 rows of 'x' and 4 rows of 'y'; give as many of each"),
        ({"x": ROWS}, "is fed 6 rows of 'x' and 0 rows of 'y'; give as many of each"),
    ):
        with pytest.raises(ir.LayerError) as raised:
            solver.feed(arrays)
        assert str(raised.value) == f"d (MemoryData): {message}"
    with pytest.raises(ir.LayerError) as raised:
        solver.step()
    assert str(raised.value) == "d (MemoryData): nothing feeds 'x'; give an array of that name"
    solver.feed(x=ROWS, y=LABELS)
    assert solver.step() == pytest.approx(by_hand([[0, 1]])[1][0], rel=1e-5)


def test_an_input_layer_may_mix_and_wrap_within_a_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_net("Input")
    solver = ir.Solver("solver.prototxt", arrays={"x": ROWS[:5], "y": LABELS[:5]})
    solver.step(3)
    np.testing.assert_allclose(weights_of(solver.net), by_hand([[0, 1], [2, 3], [4, 0]])[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ir.Solver("solver.prototxt").step(0), "iterations=0: give 1 or more"),
        (lambda: ir.Solver("solver.prototxt", max_iter=-1), "max_iter=-1: give 0 or more"),
        (lambda: ir.Solver("solver.prototxt").test(), "test net 0: the solver has 0; count from 0"),
        (lambda: ir.Solver("solver.prototxt").feed(x=ROWS, test_net=1), "test net 1: the solver has 0; count from 0"),
        (lambda: ir.Solver("solver.prototxt", test_arrays=[{}]),
         "test_arrays are for 1 nets and the solver has 0; give one per net"),
        (lambda: next(ir.batches(ir.load_net("net.prototxt"))),
         "d (MemoryData): nothing feeds it while training; use a Data, ImageData, HDF5Data or DummyData layer, "
         "or feed it from Python (arrays={'TOP': array})"),
    ],
    ids=["step", "max-iter", "no-test", "feed-no-test", "test-arrays", "batches"],
)  # fmt: skip
def test_calls_that_make_no_sense(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    write_net("MemoryData")
    with pytest.raises(ir.IlgnetError) as raised:
        call()
    assert str(raised.value) == message


PYTHON_DATA = {
    "a class of py-faster-rcnn": ("roi_data_layer.layer", "RoIDataLayer", "data"),
    "tops that it does not declare": ("roi_data_layer.layer", "RoIDataLayer", "x"),
    "a class of the user's": ("my_data", "Pairs", "x"),
}
TRAINED_BY = {
    "train": lambda top: main(["train", "--solver", "solver.prototxt"]),
    "caffe train": lambda top: main(["caffe", "train", "-solver", "solver.prototxt"]),
    "Solver": lambda top: ir.Solver("solver.prototxt", arrays={}),
    "solve": lambda top: ir.solve("solver.prototxt"),
    "batches": lambda top: ir.batches(ir.load_net("net.prototxt", phase="TRAIN", input_shapes={top: (2, 3)})),
}


@pytest.mark.parametrize("run", TRAINED_BY)
@pytest.mark.parametrize(("module", "layer", "top"), PYTHON_DATA.values(), ids=PYTHON_DATA)
def test_a_python_data_layer_is_refused_with_the_remedy(
    run, module, layer, top, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    data = f'top: "{top}" python_param {{ module: "{module}" layer: "{layer}" }}'
    Path("net.prototxt").write_text(
        f'layer {{ name: "d" type: "Python" {data} }} layer {{ name: "s" type: "Silence" bottom: "{top}" }}'
    )
    Path("solver.prototxt").write_text(SOLVER)
    message = (
        "d (Python): nothing feeds it while training; run its class by a script for pycaffe (docs/pycaffe.md), or feed its "
        "tops in a loop over net.loss (docs/torch.md)"
    )
    if "train" in run:
        assert TRAINED_BY[run](top) == 1
        assert capsys.readouterr().err.splitlines()[-1] == f"ilgnet: {message}"
    else:
        with pytest.raises(ir.IlgnetError) as raised:
            TRAINED_BY[run](top)
        assert str(raised.value) == message
    assert sorted(path.name for path in Path().iterdir()) == ["net.prototxt", "solver.prototxt"]
