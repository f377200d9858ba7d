"""`--allow-missing`: layers that a weights file lacks, in every command that reads weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.cli.main import main
from ilgnet_repro.schema import caffe_pb2 as pb

TEXT = """
name: "half"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { filler { value: 2 } } }
layer { name: "fc8" type: "InnerProduct" bottom: "conv" top: "fc8"
        inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
"""
REFUSED = (
    "half.caffemodel: holds no weights for fc8; use the prototxt these weights were made with, or have them drawn with "
    "--allow-missing fc8"
)
FILLED = "scale: not in the weights file; filled as its text says (constant 2)"
DRAWN = "fc8: not in the weights file; drawn by its fillers, as allowed"
RANDOM = (
    "RANDOM weights in part of the net, so its scores may mean nothing (drawn at random: 1 of 2 layers: fc8)"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    rng = np.random.default_rng(4)
    blobs = {"conv": [rng.standard_normal((2, 3, 3, 3)).astype("f"), rng.standard_normal(2).astype("f")]}
    write_caffemodel(
        tmp_path / "half.caffemodel",
        pb.NetParameter(layer=[pb.LayerParameter(name="conv", type="Any")]),
        blobs,
    )
    (tmp_path / "half.prototxt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    import cv2

    cv2.imwrite("a.png", rng.integers(0, 256, (20, 31, 3), np.uint8))
    return tmp_path


COMMANDS = {
    "convert": ["convert", "half.caffemodel", "--to", "safetensors,caffemodel,onnx", "--out", "out", "--verify"],
    "compare": ["compare", "half.caffemodel", "half.caffemodel"],
    "score": ["score", "a.png", "--weights", "half.caffemodel", "--scale", "1"],
    "caffe time": ["caffe", "time", "-model", "half.prototxt", "-weights", "half.caffemodel", "-iterations", "1"],
    "caffe test": ["caffe", "test", "-model", "half.prototxt", "-weights", "half.caffemodel", "-iterations", "1",
                   "-arrays", "rows.npz"],
}  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_layer_that_would_be_drawn_is_refused_until_allowed(arguments, capsys) -> None:
    Path("out").mkdir()
    np.savez("rows.npz", data=np.ones((1, 3, 9, 7), np.float32))
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == f"ilgnet: {REFUSED}" and not list(Path("out").iterdir())
    assert main([*arguments, "--allow-missing", "fc_8"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "ilgnet: allow_missing: 'fc_8' is not a layer of the net with weights (did you mean fc8?); it has conv, scale, fc8"
    )
    assert main([*arguments, "--allow-missing", "fc8"]) == 0
    captured = capsys.readouterr()
    if arguments[0] in ("score", "caffe"):
        notes = [line for line in captured.err.splitlines() if line.startswith("note: ")]
        random = [f"note: {RANDOM}"] if arguments[0] == "score" else []
        assert notes == [f"note: {FILLED}", f"note: {DRAWN}", *random]


def test_a_conversion_reports_filled_layers_and_is_reproducible(capsys) -> None:
    found = []
    for name in ("one", "two"):
        Path(name).mkdir()
        arguments = ["convert", "half.caffemodel", "--to", "safetensors,caffemodel", "--out", name, "--json"]
        assert main([*arguments, "--allow-missing", "fc8"]) == 0
        assert json.loads(capsys.readouterr().out)["notes"][-3:] == [FILLED, DRAWN, RANDOM]
        found.append([Path(name, f"half.{kind}").read_bytes() for kind in ("safetensors", "caffemodel")])
    assert found[0] == found[1]
    assert (
        main(
            ["score", "a.png", "--weights", "one/half.safetensors", "--scale", "1", "--allow-missing", "fc8"]
        )
        == 1
    )
    assert (
        "half.safetensors: holds its own net, to which --allow-missing does not apply; leave it out"
        in capsys.readouterr().err
    )


def test_audit_reports_filled_layers(capsys) -> None:
    assert main(["audit", "half.prototxt", "half.caffemodel"]) == 1
    out = capsys.readouterr().out
    assert "weights: not in the file, filled as the prototxt says: scale (constant 2)" in out
    assert "fc8: the weights file has no blobs for it" in out
