"""`ilgnet convert`'s options for the exported formats, from the command line to the file."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro.cli.convert import FORMATS
from ilgnet_repro.cli.main import main
from ilgnet_repro.export.formats import NAMES, find_format

CONVOLUTIONAL = SMALL_TEXT.split('layer { name: "ip"', maxsplit=1)[0] + (
    'layer { name: "norm" type: "BatchNorm" bottom: "pool" top: "norm" }'
)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    write_weights(tmp_path / "small.caffemodel")
    (tmp_path / "small.prototxt").write_text(SMALL_TEXT)
    cv2.imwrite(
        str(tmp_path / "a.png"), np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    )
    return str(tmp_path / "small.caffemodel")


def test_the_command_lists_the_writers_options() -> None:
    assert NAMES == FORMATS
    assert [find_format(name).name for name in NAMES] == list(NAMES)


def test_preprocessing_in_the_graph(weights, capsys) -> None:
    options = ["--with-preprocessing", "--input-order", "BGR", "--mean-value", "1,2,3", "--verify", "--json"]
    assert main(["convert", weights, "--to", "onnx", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verified"][0]["equal"] is True
    model = onnx.load(weights.replace(".caffemodel", ".onnx"))
    kind = model.graph.input[0].type.tensor_type
    assert (model.graph.input[0].name, kind.elem_type) == ("picture", onnx.TensorProto.UINT8)


def test_the_deviation_of_int8_is_shown(weights, capsys) -> None:
    image = str(Path(weights).with_name("a.png"))
    options = ["--precision", "int8", "--mean-value", "100", "--pictures", image]
    assert main(["convert", weights, "--to", "safetensors,onnx", *options]) == 0
    shown = capsys.readouterr().out
    assert "deviation with int8 dense weights" in shown
    assert "0 of 1" in shown
    assert "1 image" in shown


def test_any_size_and_folding(tmp_path, capsys) -> None:
    write_weights(tmp_path / "c.caffemodel", CONVOLUTIONAL)
    (tmp_path / "c.prototxt").write_text(CONVOLUTIONAL)
    arguments = [
        "convert",
        str(tmp_path / "c.caffemodel"),
        "--to",
        "onnx,pt2",
        "--dynamic-size",
        "--fold",
        "--verify",
    ]
    assert main(arguments) == 0
    assert "0 layers folded into those before them, 0 dropped" in capsys.readouterr().out
    dims = onnx.load(str(tmp_path / "c.onnx")).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param for dim in dims] == ["N", "", "H", "W"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "onnx", "--dynamic-size"], "ip (InnerProduct): its weights fit one size of image only"),
        (["--to", "pt2", "--precision", "int8"], "--precision is for safetensors and onnx files, not pt2"),
        (
            ["--to", "onnx,mlmodel"],
            "format 'mlmodel' is unknown; use safetensors, onnx, pt2, python, caffemodel",
        ),
        (
            ["--to", "onnx", "--arithmetic", "float16", "--pictures", __file__],
            "--precision: is not given, and the images only measure what it rounds; give it, or leave the images out",
        ),
        (
            ["--score", "prob:9"],
            "--score prob:9: no output has this value; give BLOB or BLOB:INDEX, the index from 0, of prob of 5",
        ),
    ],
    ids=[
        "a dense layer",
        "a format that cannot",
        "an unknown format",
        "images of nothing",
        "a score of no output",
    ],
)
def test_refusals_leave_no_file(weights, options, message, capsys) -> None:
    before = sorted(path.name for path in Path(weights).parent.iterdir())
    assert main(["convert", weights, *options]) == 1
    assert capsys.readouterr().err.strip().startswith(f"ilgnet: {message}")
    assert sorted(path.name for path in Path(weights).parent.iterdir()) == before
