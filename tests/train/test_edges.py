"""Settings at their edges: tests of no batch, rates beyond float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import SolverError
from ilgnet_repro.train.curves import read_table
from ilgnet_repro.train.distributed import named_device

NET = """
name: "edges"
layer { name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 1 }
  data_filler { value: 0.7 } data_filler { value: 0.2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
  inner_product_param { num_output: 1 weight_filler { value: 0.5 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
"""
SOLVER = 'net: "net.prototxt" lr_policy: "fixed" max_iter: 3 snapshot_prefix: "run" '


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    return tmp_path


def lines(text: str, *marks: str) -> list[str]:
    return [line.split("] ", 1)[1] for line in text.splitlines() if any(mark in line for mark in marks)]


def test_a_test_of_no_batch_shows_nothing(here, capsys):
    """Caffe builds the net, says that it tests, and sums no output; the loss is 0 / 0."""
    Path("s.prototxt").write_text(
        SOLVER + "base_lr: 0.1 test_iter: 0 test_interval: 2 test_compute_loss: true"
    )
    assert main(["caffe", "train", "-solver", "s.prototxt"]) == 0
    text = capsys.readouterr().err
    assert lines(text, "Creating test net") == ["Creating test net (#0) specified by net file: net.prototxt"]
    assert lines(text, "Test", "Testing") == [
        line for number in (0, 2) for line in (f"Iteration {number}, Testing net (#0)", "Test loss: -nan")
    ]


def test_one_of_two_test_nets_has_no_batch(here, capsys):
    Path("s.prototxt").write_text(SOLVER + "base_lr: 0.1 test_iter: 0 test_iter: 2 test_interval: 2")
    solved = ir.solve("s.prototxt")
    assert [sorted(test) for test in solved.tests] == [[], ["loss"]] * 2
    for file in Path().glob("run_iter*"):
        file.unlink()
    assert main(["train", "--solver", "s.prototxt"]) == 0
    assert read_table(Path("run_log/test.csv"))[0] == ["iteration", "loss#1"]
    assert [row[0] for row in read_table(Path("run_log/test.csv"))[1]] == [0, 2]
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("test at 0")] == [
        "test at 0 net 1: loss 0.3612"  # 0.85 squared, halved
    ]


def test_options_that_need_a_test_are_refused_without_one(here, capsys):
    for stated in ("", "test_iter: 0 test_interval: 2"):
        Path("s.prototxt").write_text(f"{SOLVER} base_lr: 0.1 {stated}")
        for option in (["--best-by", "loss"], ["--patience", "2"]):
            assert main(["train", "--solver", "s.prototxt", *option]) == 1
            assert capsys.readouterr().err.splitlines()[-1] == (
                "ilgnet: solver: has no test net to choose the best weights by; give test_iter and a net"
            )


@pytest.mark.parametrize("type_", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_a_rate_beyond_float32_ends_in_one_line(here, type_):
    """It is infinite, as in C++, and the run has diverged at the next loss."""
    Path("s.prototxt").write_text(f'{SOLVER} base_lr: 1e39 type: "{type_}" display: 1')
    with pytest.raises(ir.DivergedError) as raised:
        ir.solve("s.prototxt")
    assert str(raised.value).startswith("iteration 1: the loss is ") and "\n" not in str(raised.value)
    solved = ir.solve("s.prototxt", allow_nonfinite=True)
    assert not np.isfinite(solved.loss)


def test_a_rate_below_float32_changes_nothing(here):
    Path("s.prototxt").write_text(SOLVER.replace("fixed", "exp") + "base_lr: 1e-30 gamma: 1e-30")
    solved = ir.solve("s.prototxt")
    assert solved.net.params["ip"][0].detach().tolist() == [[0.5, 0.5, 0.5]]


# The device, how many GPUs torch finds, and the refusal.
DEVICES = {
    "another name": ("gpu", 1, "device='gpu': give cpu, cuda or cuda:N"),
    "a device that computes nothing": ("meta", 1, "device='meta': give cpu, cuda or cuda:N"),
    "no number": ("cuda:x", 1, "device='cuda:x': give cpu, cuda or cuda:N"),
    "no GPU": ("cuda", 0, "device='cuda': torch finds no CUDA device; use device='cpu'"),
    "too few": ("cuda:1", 1, "device='cuda:1': torch finds 1, numbered from 0; give another"),
}


@pytest.mark.parametrize(("device", "found", "message"), DEVICES.values(), ids=DEVICES)
def test_a_device_that_is_not_there(device, found, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(SolverError) as caught:
        named_device(device)
    assert str(caught.value) == message


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_a_device_that_is_there(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert named_device(device) == torch.device(device)
