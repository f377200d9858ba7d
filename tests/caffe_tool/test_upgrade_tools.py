"""`ilgnet caffe upgrade_...` and `device_query`: Caffe's tools, their arguments, files and last lines."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.caffe.prototxt import format_message, parse_net, parse_solver, read_net
from ilgnet_repro.cli.caffe import ACTIONS
from ilgnet_repro.cli.main import main
from ilgnet_repro.schema import caffe_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]

V1 = """
name: "old"
input: "data" input_dim: 1 input_dim: 3 input_dim: 6 input_dim: 5
layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
  convolution_param { num_output: 2 kernel_size: 3 } }
layers { name: "relu" type: RELU bottom: "conv" top: "conv" }
"""
MODERN = """
name: "old"
layer { name: "input" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 decay_mult: 1 }
  param { lr_mult: 2 decay_mult: 0 } convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
"""
OLD_DATA = """
layers { name: "data" type: DATA top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "db" batch_size: 4 scale: 0.5 mean_file: "m" crop_size: 3 mirror: true } }
"""
NEW_DATA = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { scale: 0.5 mirror: true crop_size: 3 mean_file: "m" } data_param { source: "db" batch_size: 4 } }
"""
# What a fork's net states is kept as it is.
FORK_V1 = 'layers { name: "r" type: RELU bottom: "x" top: "x" my_param { a: 1 } }'
FORK = 'layer { name: "r" type: "ReLU" bottom: "x" top: "x" my_param { a: 1 } }'

TEXTS = {
    "layers of 2014": (V1, MODERN),
    "preprocessing in data_param": (OLD_DATA, NEW_DATA),
    "fork": (FORK_V1, FORK),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = TEXTS[name]
    source, target = tmp_path / "old.prototxt", tmp_path / "new.prototxt"
    source.write_text(old)
    assert main(["caffe", "upgrade_net_proto_text", str(source), str(target)]) == 0
    assert format_message(read_net(target)) == format_message(parse_net(new))
    log = capsys.readouterr().err
    assert f"upgrade_net_proto_text.cpp:49] Wrote upgraded NetParameter text proto to {target}\n" in log
    assert "File already in latest proto format" not in log


def test_a_modern_text_is_said_to_be_and_written_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "net.prototxt"
    source.write_text(MODERN)
    assert main(["caffe", "upgrade_net_proto_text", str(source), str(source)]) == 0
    assert read_net(source) == parse_net(MODERN)
    assert f"] File already in latest proto format: {source}\n" in capsys.readouterr().err


def test_weights_keep_their_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = parse_net(V1)
    values = np.random.default_rng(2).standard_normal(56).astype(np.float32)
    old.layers[0].blobs.add(num=2, channels=3, height=3, width=3, data=values[:54])
    old.layers[0].blobs.add(num=1, channels=1, height=1, width=2, data=values[54:])
    source, target = tmp_path / "old.caffemodel", tmp_path / "new.caffemodel"
    source.write_bytes(old.SerializeToString())
    assert main(["caffe", "upgrade_net_proto_binary", str(source), str(target)]) == 0
    written = pb.NetParameter.FromString(target.read_bytes())
    assert not written.layers
    assert [layer.type for layer in written.layer] == ["Input", "Convolution", "ReLU"]
    blobs = written.layer[1].blobs
    assert [(blob.num, blob.channels, blob.height, blob.width) for blob in blobs] == [
        (2, 3, 3, 3),
        (1, 1, 1, 2),
    ]
    assert np.concatenate([blob.data for blob in blobs]).tolist() == values.tolist()
    for blob in blobs:
        blob.Clear()
    del written.layer[1].blobs[:]
    assert written == parse_net(MODERN)
    assert [layer.name for layer in open_caffemodel(target).layers if layer.blobs] == ["conv"]
    assert f"Wrote upgraded NetParameter binary proto to {target}\n" in capsys.readouterr().err


def test_solvers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "old.prototxt", tmp_path / "new.prototxt"
    source.write_text('net: "n" base_lr: 0.1 solver_type: ADAGRAD')
    assert main(["caffe", "upgrade_solver_proto_text", str(source), str(target)]) == 0
    assert parse_solver(target.read_text()) == parse_solver('net: "n" base_lr: 0.1 type: "AdaGrad"')
    assert f"Wrote upgraded SolverParameter text proto to {target}\n" in capsys.readouterr().err


REFUSED = {
    "no text": ("upgrade_net_proto_text", b"layer {", "old:1:7: this bracket is never closed; add }"),
    "a solver as a net": ("upgrade_net_proto_text", b'net: "n" base_lr: 1', "old: "),
    "two generations in one": (
        "upgrade_net_proto_text",
        b'layer { name: "a" type: "ReLU" } layers { name: "b" type: RELU }',
        "has both `layer` a and `layers` b; use only one of the two",
    ),
    "text as weights": (
        "upgrade_net_proto_binary",
        V1.encode(),
        "old: is a net's prototxt; upgrade it by `ilgnet caffe upgrade_net_proto_text`\n",
    ),
    "weights as text": (
        "upgrade_net_proto_text",
        parse_net(MODERN).SerializeToString(),
        "old: is a Caffe weights file (.caffemodel); upgrade it by `ilgnet caffe upgrade_net_proto_binary`\n",
    ),
    "two types of solver": (
        "upgrade_solver_proto_text",
        b'type: "SGD" solver_type: SGD',
        "are both given; keep only type",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool, content, message = REFUSED[name]
    source, target = tmp_path / "old", tmp_path / "new"
    source.write_bytes(content)
    assert main(["caffe", tool, str(source), str(target)]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"ilgnet: .*\n", error.splitlines(keepends=True)[-1])
    assert message in error
    assert not target.exists()


@pytest.mark.parametrize(
    "tool", ["upgrade_net_proto_text", "upgrade_net_proto_binary", "upgrade_solver_proto_text"]
)
def test_a_missing_file_and_arguments(tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caffe", tool, str(tmp_path / "none"), str(tmp_path / "new")]) == 1
    assert "none" in capsys.readouterr().err
    assert main(["caffe", tool]) == 1
    assert "the following arguments are required: IN, OUT" in capsys.readouterr().err


def test_devices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["caffe", "device_query"]) == 0
    log = capsys.readouterr().err
    assert "caffe.cpp:138] Querying GPUs \n" in log
    assert re.search(r"\] CPU with \d+ threads, no GPU that torch can use\n", log)
    assert main(["caffe", "device_query", "-gpu", "0"]) == 1
    assert capsys.readouterr().err == (
        "ilgnet: device_query: -gpu 0: there is no GPU that torch can use; give a number of a GPU, or all\n"
    )


def test_gpus_as_caffe_logs_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import torch

    one = SimpleNamespace(major=9, minor=0, name="Some GPU", total_memory=1024, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: one)
    assert main(["caffe", "device_query", "-gpu=all"]) == 0
    lines = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "Querying GPUs 0,1"
    assert lines[1:7] == [
        "Device id:                     0",
        "Major revision number:         9",
        "Minor revision number:         0",
        "Name:                          Some GPU",
        "Total global memory:           1024",
        "Number of multiprocessors:     132",
    ]
    assert lines[7] == "Device id:                     1"
    assert main(["caffe", "device_query", "-gpu", "0,2"]) == 1
    assert "-gpu 2: there are GPUs 0 to 1; give a number of a GPU, or all" in capsys.readouterr().err


# Caffe's own tools that a script here has the name of; each calls the action of that name.
SCRIPTS = (
    "compute_image_mean", "convert_imageset", "device_query", "draw_net", "upgrade_net_proto_text",
    "upgrade_net_proto_binary", "upgrade_solver_proto_text",
)  # fmt: skip


@pytest.mark.parametrize("tool", SCRIPTS)
def test_a_script_for_each_name_that_people_type(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr("ilgnet_repro.cli.main.main", lambda arguments: given.append(arguments) or 7)
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", "-x", "y"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    assert (given, ended.value.code) == ([["caffe", tool, "-x", "y"]], 7)
    assert tool in ACTIONS
    assert os.access(ROOT / "tools" / f"{tool}.py", os.X_OK)
