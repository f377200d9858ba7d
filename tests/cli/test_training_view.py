"""What `ilgnet train` shows of a run: loss, rate, speed, time left, the curve of the loss, and gradients on request."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from train_cases import PIPELINE

from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.cli._training_view import _duration, _sparkline
from ilgnet_repro.cli.main import main
from ilgnet_repro.train.curves import read_table

SOLVER = """net: "tiny.prototxt" base_lr: 0.02 lr_policy: "fixed" max_iter: 5 display: 2 random_seed: 5
snapshot: 1 iter_size: 2 snapshot_prefix: "run" """


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("tiny.prototxt", "raw64_lmdb", "raw64_mean.binaryproto", "tiny_init.caffemodel"):
        (tmp_path / name).symlink_to(PIPELINE / name)
    monkeypatch.chdir(tmp_path)
    Path("solver.prototxt").write_text(SOLVER)
    return tmp_path


def train(*options: str) -> int:
    return main(["train", "--solver", "solver.prototxt", "--weights", "tiny_init.caffemodel", *options])


def test_without_a_terminal_displayed_iterations_are_lines(here, capsys):
    assert train() == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("iteration ")]
    pattern = r"iteration (\d) of 5: loss \d+\.\d{4}  lr 0\.02  \S+ iter/s(?:  0:00:\d\d left)?"
    assert [re.fullmatch(pattern, line)[1] for line in lines] == ["0", "2", "4"]
    assert "left" not in lines[-1]


def test_gradient_norms_on_request(here, capsys):
    """Plain SGD: what an update subtracts is rate x lr_mult x gradient, so the weights show its norm."""
    assert train("--grad-norms") == 0
    assert re.search(r"iteration 2 of 5: loss \S+  lr 0\.02  gradients \d", capsys.readouterr().err)
    columns, rows = read_table(Path("run_log/gradients.csv"))
    parameters = [f"{layer}[{index}]" for layer in ("conv", "fc", "cls") for index in (0, 1)]
    assert columns == ["iteration", "gradient_norm", *parameters] and len(rows) == 5
    rates = dict(zip(parameters, (1, 2, 10, 20, 1, 1), strict=True))
    files = ["tiny_init.caffemodel", *(f"run_iter_{number}.caffemodel" for number in range(1, 6))]
    nets = [{layer.name: layer.blobs for layer in open_caffemodel(file).layers} for file in files]
    for before, after, row in zip(nets, nets[1:], rows, strict=False):
        norms = dict(zip(columns[1:], row[1:], strict=True))
        for name in parameters:
            layer, index = name[:-3], int(name[-2])
            step = before[layer][index].array().astype(float) - after[layer][index].array()
            assert norms[name] == pytest.approx(np.linalg.norm(step) / (0.02 * rates[name]), rel=1e-3)
        assert norms["gradient_norm"] == pytest.approx(np.linalg.norm(row[2:]), rel=1e-6)
    # A resumed run keeps the rows before its first iteration; without the option nothing is measured.
    assert main([
        "train", "--solver", "solver.prototxt", "--resume", "run_iter_3.solverstate", "--grad-norms",
    ]) == 0  # fmt: skip
    assert [row[0] for row in read_table(Path("run_log/gradients.csv"))[1]] == [0, 1, 2, 3, 4]
    Path("solver.prototxt").write_text(SOLVER.replace('"run"', '"other"'))
    assert train() == 0
    assert not Path("other_log/gradients.csv").exists()


@pytest.mark.parametrize(
    ("values", "encoding", "line"),
    [
        ([3.0, 2.0, 1.0], "utf-8", "█▅▁"),
        ([1.0, float("nan"), 8.0, float("inf")], "UTF-8", "▁█"),
        ([2.0, 2.0], "utf8", "▁▁"),
        ([3.0, 2.0], "ascii", ""),
        ([3.0], "utf-8", ""),
        ([], "utf-8", ""),
    ],
)
def test_the_curve_of_the_loss(values, encoding, line):
    assert _sparkline(values, encoding) == line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0:00:00"), (61, "0:01:01"), (3725, "1:02:05"), (90061, "1 d 1:01:01")]
)
def test_time_left(seconds, text):
    assert _duration(seconds) == text
