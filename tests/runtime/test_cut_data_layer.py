"""Nets without what their data layer says: it was cut off, or its database, which knows the channels, is not there."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.caffemodel import open_caffemodel, write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import GraphError, SolverError, WeightsError
from ilgnet_repro.train.solver import read_settings

CUT = """name: "cut"
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param { num_output: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" include { phase: TRAIN } }
"""
DATA = """layer { name: "rows" type: "Data" top: "data" top: "label" %s
  transform_param { crop_size: 8 } data_param { source: "absent" batch_size: 6 backend: LMDB } }
"""
SHAPES = {"data": (2, 3, 9, 7)}
REMEDY = "check the name and the include rules, or, if its data layer was cut off, give its shape"


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def write_weights(path, channels: int, inner: int) -> None:
    blobs = {"conv": [draw(4, channels, 3, 3), draw(4)], "ip": [draw(5, inner), draw(5)]}
    write_caffemodel(path, parse_net(CUT), blobs)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(CUT)
    write_weights("net.caffemodel", 3, 4 * 7 * 5)
    return tmp_path


def test_a_given_shape_makes_the_blob_an_input(here) -> None:
    net = ir.load("net.caffemodel", input_shapes=SHAPES)
    assert net.inputs == ("data",) and net.shapes["data"] == (2, 3, 9, 7)
    x = torch.from_numpy(draw(2, 3, 9, 7))
    weight, bias = (torch.from_numpy(draw(*shape)) for shape in ((4, 3, 3, 3), (4,)))
    by_hand = torch.nn.functional.conv2d(x, weight, bias).flatten(1) @ torch.from_numpy(draw(5, 140)).T
    torch.testing.assert_close(net(x)["ip"], by_hand + torch.from_numpy(draw(5)))
    assert "data: is written by no layer and has a given shape, so it is an input" in net.about.notes


@pytest.mark.parametrize("form", ["safetensors", "onnx", "pt2", "python", "caffemodel", "hdf5"])
def test_it_stays_an_input_in_every_format(here, form: str) -> None:
    assert (
        main(["convert", "net.caffemodel", "--shape", "data=2,3,9,7", "--to", form, "--out", "o", "--verify"])
        == 0
    )


def test_an_input_of_one_phase_is_added_to_that_phase_only(here) -> None:
    text = parse_net(DATA % "include { phase: TRAIN }" + CUT)
    net = ir.load_net(text, input_shapes={"data": (1, 3, 5, 5)})
    assert [layer.type for layer in net.graph.text.layer][:2] == ["Input", "Data"]
    trained = ir.load_net(net.graph.text, phase="TRAIN", input_shapes={"data": (6, 3, 5, 5)})
    assert trained.inputs == ("data", "label")


def test_every_blob_without_a_writer_is_named(here, capsys) -> None:
    assert main(["convert", "net.caffemodel", "--phase", "TRAIN", "--out", "o"]) == 1
    where = "conv (Convolution): bottom 'data' is written by no layer of this phase"
    assert capsys.readouterr().err == f"ilgnet: {where} (nor is 'label'); {REMEDY} (--shape data=N,C,H,W)\n"
    with pytest.raises(GraphError) as caught:
        ir.load_net("net.prototxt", phase="TRAIN", input_shapes=SHAPES)
    assert str(caught.value) == (
        "loss (SoftmaxWithLoss): bottom 'label' is written by no layer of this phase; "
        f"{REMEDY} (input_shapes={{'label': (N, ...)}})"
    )


def test_a_shape_for_a_blob_that_no_layer_reads_is_refused(here) -> None:
    with pytest.raises(GraphError, match=re.escape("'image' is not an input of net 'cut'; it has 'data'")):
        ir.load("net.caffemodel", input_shapes={**SHAPES, "image": (1, 3, 9, 7)})


def test_a_net_to_be_trained_needs_its_data_layer(here) -> None:
    (here / "solver.prototxt").write_text('net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1')
    with pytest.raises(SolverError) as caught:
        read_settings("solver.prototxt")
    assert str(caught.value) == (
        "conv (Convolution): bottom 'data' is written by no layer of this phase (nor is 'label'); a net that is "
        "trained reads its data itself, so give it a data layer"
    )


# ---------------------------------------------------------------------- channels that only the database knows


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_a_database_has_the_channels_that_the_weights_need(here, channels: int) -> None:
    text = DATA % "" + CUT
    if channels == 2:  # pairs: three channels cannot be sliced in two
        text = text.replace('bottom: "data"', 'bottom: "one"').replace(
            'layer { name: "conv"',
            'layer { name: "pair" type: "Slice" bottom: "data" top: "one" top: "two" }\nlayer { name: "conv"',
        )
    (here / "net.prototxt").write_text(text)
    write_weights("net.caffemodel", 1 if channels == 2 else channels, 4 * 6 * 6)
    net = ir.load("net.caffemodel")
    assert net.shapes["data"] == (6, channels, 8, 8)
    noted = [note for note in net.about.notes if "which the weights need" in note]
    assert noted == (
        [] if channels == 3 else [f"data: {channels} channel{'s' * (channels > 1)}, which the weights need"]
    )
    assert not audit(parse_net(text), open_caffemodel("net.caffemodel")).problems
    assert main(["audit", "net.caffemodel", "--candidates", "net.prototxt"]) == 0


def test_a_given_shape_is_kept(here) -> None:
    (here / "net.prototxt").write_text(DATA % "" + CUT)
    write_weights("net.caffemodel", 1, 4 * 6 * 6)
    with pytest.raises(WeightsError, match="blob 0 is 4x1x3x3 in the file and 4x3x3x3 in the net"):
        ir.load("net.caffemodel", input_shapes={"data": (6, 3, 8, 8)})


def test_weights_that_fit_no_number_of_channels_are_refused(here) -> None:
    (here / "net.prototxt").write_text(DATA % "" + CUT)
    write_weights("net.caffemodel", 1, 17)
    with pytest.raises(WeightsError, match="blob 0 is 4x1x3x3 in the file and 4x3x3x3 in the net"):
        ir.load("net.caffemodel")
