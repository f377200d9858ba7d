"""--device of the commands that have --engine: where it goes to `fast`, and its refusals in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main
from ilgnet_repro.engines import fast as module
from ilgnet_repro.engines import onnx_engines

TEXT = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 7 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""
SCORE = ["score", "a.png", "--weights", "net.caffemodel", "--mean-value", "1,2,3", "--size", "5"]
COMPARE = ["compare", "net.caffemodel", "net.caffemodel"]
CAFFE = ["caffe", "test", "-model", "net.prototxt", "-weights", "net.caffemodel", "-arrays", "rows.npz"]
COMMANDS = {"score": SCORE, "compare": COMPARE, "caffe test": CAFFE}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(TEXT)
    ir.save(ir.load_net("net.prototxt", seed=3), "net.caffemodel")
    import cv2

    cv2.imwrite("a.png", np.full((5, 7, 3), 9, np.uint8))
    np.savez("rows.npz", data=np.ones((2, 3, 5, 7), np.float32))
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_device_is_that_of_the_fast_net(
    command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made on the CPU, as no other device is at hand."""
    asked: list[Any] = []
    monkeypatch.setattr(module, "checked_device", lambda device, *others: asked.append(device) or "cpu")
    main([*command, "--engine", "torch", "--device", "cuda:1"])
    assert asked == ["cuda:1"]


ABSENT = f"--device cuda: torch is built without CUDA ({torch.__version__}); use --device cpu"
REFUSED = {
    "score": ([*SCORE, "--engine", "torch"], ABSENT),
    "score --fast": ([*SCORE, "--fast"], ABSENT),
    "compare": ([*COMPARE, "--engine", "torch"], ABSENT),
    "caffe test": ([*CAFFE, "--engine", "torch"], ABSENT),
    "score without an engine": (SCORE, "--device cuda: goes with --fast or --engine; add it"),
    "compare without an engine": (COMPARE, "--device cuda: goes with --engine; add it"),
    "caffe test without an engine": (
        CAFFE, "--device cuda: goes with -engine (the exact net with -gpu); add it",
    ),
}  # fmt: skip


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="torch is built with CUDA")
@pytest.mark.parametrize(("command", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(command: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--device", "cuda"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"ilgnet: {message}"


NOT_INSTALLED = {
    "openvino": "--engine openvino: it is not installed; pip install 'ilgnet_repro[openvino]'",
    "onnxruntime": "--engine onnxruntime: it is not installed; pip install 'ilgnet_repro[runtime]'",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(("engine", "message"), NOT_INSTALLED.items(), ids=NOT_INSTALLED)
def test_an_engine_that_is_not_installed(
    command: list[str], engine: str, message: str, folder: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(onnx_engines, "is_installed", lambda name: False)
    assert main([*command, "--engine", engine]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"ilgnet: {message}"
