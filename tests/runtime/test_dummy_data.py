"""Nets whose data a DummyData layer generates: given by name, given by a stated shape, or reported and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.dummy_inputs import DUMMY_NOTE
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import GraphError, LayerError
from ilgnet_repro.reading.preprocessing import Preprocessing

TWO = """name: "dummy" layer { name: "made" type: "DummyData" top: "data" top: "more"
  dummy_data_param { shape { dim: 1 dim: 3 dim: 6 dim: 6 } shape { dim: 2 dim: 5 }
  data_filler { type: "constant" value: 0.5 } data_filler { type: "constant" value: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "double" type: "Power" bottom: "more" top: "double" power_param { scale: 2 } }"""
ONE = TWO.replace('top: "more"', "", 1).replace("shape { dim: 2 dim: 5 }", "")
ONE = ONE.replace('data_filler { type: "constant" value: 2 }', "")
ONE = ONE[: ONE.index('layer { name: "double"')]


def draw(*shape):
    return torch.from_numpy(np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32))


def pooled(net, x):
    """The net's output for an image, by hand: the mean of a convolution."""
    weight, bias = net.params["conv"]
    return torch.nn.functional.conv2d(x, weight, bias).mean((2, 3), keepdim=True)


def test_dummy_data_is_generated_unless_given():
    net = ir.load_net(parse_net(TWO), seed=3)
    assert net.inputs == () and net.optional_inputs == ("data", "more")
    made = net()
    torch.testing.assert_close(made["pool"], pooled(net, torch.full((1, 3, 6, 6), 0.5)))
    assert made["double"].eq(4).all() and made["double"].shape == (2, 5)
    for x in (draw(1, 3, 6, 6), draw(2, 3, 7, 5)):  # of another size too
        found = net(data=x)
        torch.testing.assert_close(found["pool"], pooled(net, x))
        assert found["double"].eq(4).all()
    more = draw(4, 5)
    torch.testing.assert_close(net({"more": more})["double"], 2 * more)
    assert net.blob_shapes(data=(2, 3, 9, 8))["conv"] == (2, 4, 7, 6)
    with pytest.raises(LayerError, match="conv"):
        net(data=draw(1, 2, 6, 6))


def test_a_stated_shape_makes_an_input():
    net = ir.load_net(parse_net(TWO), seed=3, input_shapes={"data": (2, 3, 8, 7)})
    assert net.inputs == ("data",) and net.optional_inputs == ("more",)
    x = draw(2, 3, 8, 7)
    found = net(data=x)
    torch.testing.assert_close(found["pool"], pooled(net, x))
    assert found["double"].eq(4).all() and net.shapes["more"] == (2, 5)
    both = ir.load_net(parse_net(TWO), input_shapes={"data": (1, 3, 6, 6), "more": (3, 5)})
    assert both.inputs == ("data", "more") and not both.optional_inputs


@pytest.fixture
def files(tmp_path):
    """A caffemodel and its prototxt, whose image a DummyData layer generates."""
    net = ir.load_net(parse_net(ONE), seed=3)
    (tmp_path / "x.prototxt").write_text(ONE)
    blobs = {name: [blob.detach().numpy() for blob in own] for name, own in net.params.items()}
    write_caffemodel(tmp_path / "x.caffemodel", parse_net(ONE), blobs)
    return tmp_path / "x.caffemodel"


def test_audit_and_convert_say_so(files):
    assert audit(parse_net(ONE)).layers[0].note == DUMMY_NOTE
    note = f"made (DummyData): {DUMMY_NOTE}"
    assert note in ir.convert(files).notes
    report = ir.convert(files, to=("safetensors", "onnx"), input_shapes={"data": (1, 3, 6, 6)}, verify=True)
    assert note not in report.notes
    assert "made (DummyData): data has a given shape, so it is an input" in report.notes
    net = ir.load(files.with_suffix(".safetensors"))
    x = draw(1, 3, 6, 6)
    torch.testing.assert_close(net(data=x)["pool"], pooled(net, x))
    found = audit(parse_net(ONE), input_shapes={"data": (1, 3, 6, 6)})
    assert found.inputs == {"data": (1, 3, 6, 6)} and found.layers[0].type == "Input"


REFUSED = (
    "net 'dummy' takes no input, so no image enters it; its data come from made (DummyData): put an Input layer "
    "there, or convert the net with the shape of that top ({option})"
)


def test_an_image_that_is_never_read_is_refused(files, tmp_path, capsys):
    with pytest.raises(GraphError) as caught:
        ir.score([], files, preprocessing=Preprocessing(size=(6, 6)))
    assert str(caught.value) == REFUSED.format(option="input_shapes={'TOP': (N, C, H, W)}")
    image = tmp_path / "a.png"
    image.write_bytes(b"")
    assert main(["score", str(image), "--weights", str(files), "--mean-value", "0"]) != 0
    assert REFUSED.format(option="--shape TOP=N,C,H,W") in capsys.readouterr().err
    parameter = 'layer { name: "w" type: "Parameter" top: "w" parameter_param { shape { dim: 2 dim: 3 } } }'
    with pytest.raises(GraphError, match=r"its data come from w \(Parameter\)"):
        ir.load_net(parse_net(parameter)).image_input()


def test_caffe_test_fills_a_top_of_a_stated_shape(files, tmp_path, capsys):
    x = draw(1, 3, 8, 7).numpy()
    np.savez(tmp_path / "rows.npz", data=x)
    prototxt = str(files.with_suffix(".prototxt"))
    flags = ["-model", prototxt, "-weights", str(files), "-iterations", "1", "-json"]
    assert (
        main(["caffe", "test", *flags, "-shape", "data=1,3,8,7", "-arrays", str(tmp_path / "rows.npz")]) == 0
    )
    found = json.loads(capsys.readouterr().out)["batches"]["pool"][0]
    net = ir.load_net(prototxt, files)
    np.testing.assert_allclose(
        found, pooled(net, torch.from_numpy(x)).detach().flatten(), rtol=1e-5, atol=1e-6
    )
