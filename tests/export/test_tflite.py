"""The format tflite: what litert-torch makes of the exported net is run and compared before it is kept.

litert-torch takes half a minute and a gigabyte, so its place is taken by a converter that keeps the program; with
SLOW_TFLITE=1 the real one runs too, where it is installed.
"""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_nets import SMALL_TEXT, write_weights

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError

ROIS = """
layer { name: "s" type: "Input" top: "s" input_param { shape { dim: 1 dim: 18 dim: 4 dim: 5 } } }
layer { name: "b" type: "Input" top: "b" input_param { shape { dim: 1 dim: 36 dim: 4 dim: 5 } } }
layer { name: "i" type: "Input" top: "i" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "p" type: "Python" bottom: "s" bottom: "b" bottom: "i" top: "rois"
  python_param { module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "'feat_stride': 16" } }
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "small.prototxt").write_text(SMALL_TEXT)
    write_weights(tmp_path / "small.caffemodel")
    return tmp_path


@pytest.fixture
def converter(monkeypatch):
    """A converter and an interpreter that run the exported module; `change` is applied to its outputs."""
    setting = SimpleNamespace(change=lambda value: value, error=None)

    def convert(module, sample_kwargs):
        if setting.error is not None:
            raise setting.error
        setting.shapes = {name: tuple(value.shape) for name, value in sample_kwargs.items()}
        print("progress")
        setting.module = module
        return SimpleNamespace(model_content=lambda: b"TFL3 program")

    class Interpreter:
        def __init__(self, model_path: str) -> None:
            # The metadata's archive follows the file.
            assert Path(model_path).read_bytes().startswith(b"TFL3 program")
            with zipfile.ZipFile(model_path) as archive:
                assert archive.namelist() == ["ilgnet_repro.json"]

        def get_signature_runner(self):
            def run(**given: np.ndarray) -> dict[str, np.ndarray]:
                found = setting.module(**{name: torch.from_numpy(value) for name, value in given.items()})
                return {name: setting.change(value.numpy()) for name, value in found.items()}

            return run

    monkeypatch.setitem(sys.modules, "litert_torch", SimpleNamespace(convert=convert))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", SimpleNamespace(Interpreter=Interpreter))
    return setting


@pytest.mark.parametrize(("options", "batch"), [({}, 1), ({"batch": 3}, 3)], ids=["stated", "batch"])
def test_files_are_verified_and_replaced(folder, converter, capsys, options, batch: int) -> None:
    for _ in range(2):
        report = ir.convert(
            folder / "small.caffemodel", to="tflite", verify=True, out=folder / "out", **options
        )
    assert [Path(entry.path).name for entry in report.written] == ["small.tflite"]
    assert report.is_verified
    assert report.verified[0].inputs == f"seed 7: data {batch}x3x9x7"
    assert report.notes[-1] == (
        f"tflite: sizes are fixed (data {batch}x3x9x7); batch= or another input shape gives others"
    )
    assert converter.shapes == {"data": (batch, 3, 9, 7)}
    assert capsys.readouterr().out == ""
    (folder / "out" / "small.tflite").write_bytes(b"mine")
    with pytest.raises(IlgnetError, match=r"small\.tflite: "):
        ir.convert(folder / "small.caffemodel", to="tflite", out=folder / "out", **options)
    assert (folder / "out" / "small.tflite").read_bytes() == b"mine"


def _shorter(value: np.ndarray) -> np.ndarray:
    return value[:, :-1]


WRONG = {
    "other values": (
        lambda value: value * 0, None,
        "net 'small': what litert-torch makes of it computes output 'prob' otherwise than the net, by ",
    ),
    "another shape": (
        _shorter, None,
        "net 'small': what litert-torch makes of it computes output 'prob' otherwise than the net, in its shape",
    ),
    "an operator that it lacks": (
        None, RuntimeError("Lowering not found:\n  aten.foo"),
        "net 'small': litert-torch cannot convert it (RuntimeError: Lowering not found: aten.foo); use to='onnx'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("through", ["convert", "save"])
@pytest.mark.parametrize(("change", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_differs_or_fails_is_refused(folder, converter, change, error, message: str, through) -> None:
    """Without verify as well: litert-torch is silent where it converts something else."""
    converter.error = error
    converter.change = change
    before = sorted(folder.iterdir())
    with pytest.raises(IlgnetError) as caught:
        if through == "convert":
            ir.convert(folder / "small.caffemodel", to="tflite")
        else:
            ir.save(ir.load(folder / "small.caffemodel"), folder / "small.tflite")
    assert str(caught.value).startswith(message)
    assert caught.value.remedy == "use to='onnx'"
    assert sorted(folder.iterdir()) == before


def test_rows_chosen_by_values_are_refused_by_layer(tmp_path, converter) -> None:
    (tmp_path / "r.prototxt").write_text(ROIS)
    net = ir.load_net(tmp_path / "r.prototxt")
    with pytest.raises(IlgnetError, match=r"^p \(Python\): its number of rows depends on values"):
        ir.save(net, tmp_path / "r.tflite")


def test_without_litert_one_line_says_what_to_install(folder, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    before = sorted(folder.iterdir())
    assert main(["convert", str(folder / "small.caffemodel"), "--to", "tflite"]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(
            "litert-torch is not installed, so tflite files cannot be written; pip install 'ilgnet_repro[tflite]'"
        )
    )
    assert sorted(folder.iterdir()) == before


@pytest.mark.skipif("SLOW_TFLITE" not in os.environ, reason="takes half a minute; SLOW_TFLITE=1 runs it")
def test_litert_runs_what_litert_torch_writes(folder) -> None:
    pytest.importorskip("litert_torch")
    report = ir.convert(folder / "small.caffemodel", to=("tflite", "onnx"), verify=True)
    assert report.is_verified
    interpreter = importlib.import_module("ai_edge_litert.interpreter")
    runner = interpreter.Interpreter(str(folder / "small.tflite")).get_signature_runner()
    assert list(runner.get_output_details()) == ["prob"]
    with zipfile.ZipFile(folder / "small.tflite") as archive:
        assert archive.namelist() == ["ilgnet_repro.json"]
