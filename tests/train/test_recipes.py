"""`--freeze`, `--lr-mult` and `--warm-up` of `ilgnet train`, and the prototxts that make the same run in Caffe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from train_cases import PIPELINE

from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.caffe.prototxt import read_net, read_solver
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import SolverError
from ilgnet_repro.train.recipes import Recipe, apply_recipe
from ilgnet_repro.train.solver import read_settings

SOLVER = """net: "tiny.prototxt" base_lr: 0.02 momentum: 0.9 weight_decay: 0.002 lr_policy: "step" gamma: 0.5 stepsize: 6
max_iter: 8 display: 1 random_seed: 5 snapshot_prefix: "run" """
LAYERS = ("conv", "fc", "cls")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("tiny.prototxt", "raw64_lmdb", "raw64_mean.binaryproto", "tiny_init.caffemodel"):
        (tmp_path / name).symlink_to(PIPELINE / name)
    monkeypatch.chdir(tmp_path)
    Path("solver.prototxt").write_text(SOLVER)
    return tmp_path


def train(*options: str, out: str = "out") -> int:
    return main(
        ["train", "--solver", "solver.prototxt", "--weights", "tiny_init.caffemodel", "--out", out, *options]
    )


def weights(file: str) -> dict[str, list[np.ndarray]]:
    return {
        layer.name: [blob.array().copy() for blob in layer.blobs]
        for layer in open_caffemodel(file).layers
        if layer.name in LAYERS
    }


def equal_weights(mine: dict[str, list[np.ndarray]], theirs: dict[str, list[np.ndarray]]) -> bool:
    return all(np.array_equal(a, b) for name in LAYERS for a, b in zip(mine[name], theirs[name], strict=True))


def test_layers_freeze_and_learn_faster_as_the_prototxts_say(here, capsys):
    """The net that is written states it; Caffe's command makes the same weights of it."""
    assert train("--freeze", "co.*", "--lr-mult", "cls=3", "--max-iter", "3") == 0
    printed = capsys.readouterr().err
    assert "  conv: param { lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 }" in printed
    assert "  cls: param { lr_mult: 3 } param { lr_mult: 3 }" in printed
    assert "recipe: in Caffe, `caffe train -solver out/recipe_solver.prototxt`" in printed
    start, end = weights("tiny_init.caffemodel"), weights("run_iter_3.caffemodel")
    assert all(np.array_equal(a, b) for a, b in zip(start["conv"], end["conv"], strict=True))
    assert not np.array_equal(start["cls"][0], end["cls"][0])

    net = read_net("out/recipe_net.prototxt")
    rows = {layer.name: [(row.lr_mult, row.decay_mult) for row in layer.param] for layer in net.layer}
    assert (rows["conv"], rows["cls"]) == ([(0, 0), (0, 0)], [(3, 1), (3, 1)])
    assert rows["fc"] == [(10, 1), (20, 0)]  # as the net states it
    assert [layer.name for layer in net.layer].count("data") == 2  # both phases
    Path("run_iter_3.caffemodel").rename("mine.caffemodel")
    assert main(["caffe", "train", "-solver", "out/recipe_solver.prototxt"]) == 0
    assert equal_weights(weights("mine.caffemodel"), weights("run_iter_3.caffemodel"))


def test_factors_multiply_what_the_net_states(here):
    settings = read_settings("solver.prototxt")
    changed = apply_recipe(settings, Recipe(lr_mult=("fc|cls=0.5",)), "out")
    found = {
        node.name: [row.lr_mult for row in node.layer.param] for node in changed.settings.train_net.graph
    }
    assert (found["fc"], found["cls"], found["conv"]) == ([5, 10], [0.5, 0.5], [1, 2])
    before = {node.name: [row.lr_mult for row in node.layer.param] for node in settings.train_net.graph}
    assert (before["fc"], before["cls"]) == ([10, 20], [])


def test_a_frozen_batchnorm_keeps_its_statistics(here):
    text = Path("tiny.prototxt").read_text()
    Path("tiny.prototxt").unlink()
    Path("tiny.prototxt").write_text(
        text.replace(
            'layer { name: "norm"',
            'layer { name: "bn" type: "BatchNorm" bottom: "pool" top: "pool" }\nlayer { name: "norm"',
        )
    )
    changed = apply_recipe(read_settings("solver.prototxt"), Recipe(freeze=("bn",)), "out")
    (layer,) = changed.layers
    assert layer.batch_norm_param.use_global_stats and not layer.param
    assert "  bn: batch_norm_param { use_global_stats: true }" in changed.lines(Path("out"))


def test_a_warm_up_is_two_solvers_in_caffe(here, capsys):
    """The four batches of the warm-up read each row once, so that Caffe's second run starts at the row of the fifth."""
    assert train("--warm-up", "4:0.25") == 0
    assert "`caffe train -solver out/recipe_warm_up.prototxt`, then" in capsys.readouterr().err
    rates = [float(line.split(",")[1]) for line in Path("out/train.csv").read_text().splitlines()[1:]]
    expected = [0.02 * (0.25 + 0.75 * step / 4) for step in range(4)] + [0.02] * 2 + [0.01] * 2
    np.testing.assert_allclose(rates, expected, rtol=1e-6)

    warm, main_solver = (read_solver(f"out/recipe_{name}.prototxt") for name in ("warm_up", "solver"))
    assert (warm.lr_policy, warm.power, warm.max_iter, warm.HasField("stepsize")) == ("inv", -1, 4, False)
    assert (main_solver.lr_policy, main_solver.max_iter, main_solver.net) == ("step", 8, "tiny.prototxt")
    Path("run_iter_8.caffemodel").rename("mine.caffemodel")
    assert main(["caffe", "train", "-solver", "out/recipe_warm_up.prototxt"]) == 0
    state = "run_iter_4.solverstate"
    assert main(["caffe", "train", "-solver", "out/recipe_solver.prototxt", "-snapshot", state]) == 0
    assert equal_weights(weights("mine.caffemodel"), weights("run_iter_8.caffemodel"))


WRONG = {
    "no layer": (
        Recipe(freeze=("convv.",)),
        "freeze 'convv.': matches no layer, by its whole name; the closest are conv, fc, cls",
    ),
    "part of a name": (
        Recipe(lr_mult=("con=2",)),
        "lr_mult 'con': matches no layer, by its whole name; the closest are conv, fc, cls",
    ),
    "no parameters": (
        Recipe(freeze=("relu|pool",)),
        "freeze 'relu|pool': matches only layers without parameters (relu, pool); layers with parameters are conv, fc, cls",
    ),
    "no expression": (Recipe(freeze=("conv(",)), "freeze 'conv(': is not a regular expression (missing ), "),
    "no factor": (Recipe(lr_mult=("conv",)), "lr_mult 'conv': give PATTERN=FACTOR with a factor of 0 or more, such as "),
    "negative": (Recipe(lr_mult=("conv=-1",)), "lr_mult 'conv=-1': give PATTERN=FACTOR with a factor of 0 or more, "),
    "infinite": (Recipe(lr_mult=("conv=inf",)), "lr_mult 'conv=inf': give PATTERN=FACTOR with a factor of 0 or more, "),
    "twice": (
        Recipe(lr_mult=("conv=2", "c.*=3")), "lr_mult 'c.*=3': layer conv is matched by two patterns; match it once",
    ),
    "frozen too": (
        Recipe(freeze=("conv",), lr_mult=("c.*=3",)),
        "lr_mult 'c.*=3': layer conv is matched by two patterns; match it once",
    ),
    "warm-up of words": (Recipe(warm_up="long"), "warm_up 'long': give the number of iterations, and after a colon "),
    "warm-up of 0": (Recipe(warm_up="0"), "warm_up '0': give the number of iterations, and after a colon the factor "),
    "warm-up from above": (Recipe(warm_up="3:1.5"), "warm_up '3:1.5': give the number of iterations, and after a "),
    "warm-up too long": (Recipe(warm_up="8"), "warm_up 8: the run has 8 iterations; warm up for fewer"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(here, name):
    recipe, message = WRONG[name]
    with pytest.raises(SolverError) as raised:
        apply_recipe(read_settings("solver.prototxt"), recipe, "out")
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_a_refused_recipe_leaves_no_file(here, capsys):
    before = sorted(path.name for path in here.iterdir())
    assert train("--freeze", "convx") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "ilgnet: freeze 'convx': matches no layer, by its whole name; the closest are conv, fc, cls"
    )
    assert sorted(path.name for path in here.iterdir()) == before
