"""The net inside a caffemodel: taken where it is asked for, and only what its numbers say for certain."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.caffe.inside import net_inside
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from small_nets import SMALL_TEXT, write_weights
from wire_bytes import chunk, number

NOTE = (
    "the net is the one in the weights file: that of the training, which may have data and loss layers; a deploy prototxt "
    "is preferable"
)


def test_the_net_in_the_file_is_offered_and_taken(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    expected = write_weights(Path("n.caffemodel"))
    with pytest.raises(IlgnetError) as caught:
        ir.load("n.caffemodel")
    assert str(caught.value) == (
        "n.caffemodel: no prototxt beside it and no built-in net fits its layers; give the deploy prototxt as prototxt=, or "
        "take the net of 6 layers in the file (prototxt='inside')"
    )
    net = ir.load("n.caffemodel", "inside")
    x = torch.linspace(-1, 1, 3 * 9 * 7).view(1, 3, 9, 7)
    torch.testing.assert_close(net(data=x), expected(data=x))
    assert net.about.notes[0] == NOTE
    assert net.about.prototxt == "inside n.caffemodel"
    assert main(["audit", "n.caffemodel"]) == 0
    assert f"upgraded: {NOTE[:40]}" in capsys.readouterr().out
    assert main(["convert", "n.caffemodel"]) == 1
    assert "(--prototxt inside)" in capsys.readouterr().err
    assert (
        main(
            [
                "convert",
                "n.caffemodel",
                "--prototxt",
                "inside",
                "--verify",
                "--to",
                "safetensors",
                "--out",
                "o",
            ]
        )
        == 0
    )
    assert NOTE[:40] in capsys.readouterr().out
    Path("inside").write_text(SMALL_TEXT)  # a file of that name is one
    assert ir.load("n.caffemodel", "inside").about.prototxt == "inside"


def coded(type_: str, *fields: bytes) -> bytes:
    return chunk(100, chunk(1, "a") + chunk(2, type_) + chunk(3, "x") + chunk(4, "y") + b"".join(fields))


# A fork's message in its own number -> the text that it stands for.
FORKS = {
    "Permute": (coded("Permute", chunk(202, number(1, 0) + number(1, 2) + number(1, 1))),
                'permute_param { order: [0, 2, 1] }'),
    "Normalize": (coded("Normalize", chunk(206, number(1, 0) + number(3, 0))),
                  "norm_param { across_spatial: false channel_shared: false }"),
    "DetectionOutput": (coded("DetectionOutput", chunk(204, number(1, 21) + number(7, 200) + chunk(4, number(2, 400)))),
                        "detection_output_param { num_classes: 21 keep_top_k: 200 nms_param { top_k: 400 } }"),
    "ROIPooling": (coded("ROIPooling", chunk(8266711, number(1, 7) + number(2, 6))),
                   "roi_pooling_param { pooled_h: 7 pooled_w: 6 }"),
    "the phase": (coded("ReLU", number(10, 0)), ""),
}  # fmt: skip


@pytest.mark.parametrize(("data", "text"), FORKS.values(), ids=FORKS)
def test_fields_of_forks_that_the_type_identifies(tmp_path, data, text) -> None:
    (tmp_path / "n.caffemodel").write_bytes(data)
    layer = net_inside(open_caffemodel(tmp_path / "n.caffemodel")).layer[0]
    assert (
        layer == parse_net(f'layer {{ name: "a" type: "{layer.type}" bottom: "x" top: "y" {text} }}').layer[0]
    )


REFUSED = {
    "an unknown number": (coded("BN", chunk(41, number(1, 1))), "layer a (BN): field 41 is a fork's; give the prototxt"),
    "of another type": (coded("Permute", chunk(203, b"")), "layer a (Permute): field 203 is a fork's; give the prototxt"),
    "embed or BN": (coded("BN", chunk(137, number(1, 1))), "layer a (BN): the number of its embed_param is a fork's; give"),
    "input or Interp": (coded("Interp", chunk(143, b"")), "layer a (Interp): the number of its input_param is a fork's;"),
    "round_mode": (
        coded("Pooling", chunk(121, number(13, 1))),
        "layer a (Pooling): its pooling_param.round_mode could be a fork's ceil_mode; give the prototxt",
    ),
    "hole": (
        coded("Convolution", chunk(106, number(1, 4) + number(17, 1))),
        "layer a (Convolution): its convolution_param.force_nd_im2col could be a fork's hole or dilation; give",
    ),
    "within": (
        coded("Pooling", chunk(121, number(40, 1))),
        "layer a (Pooling): field 40 of its PoolingParameter is a fork's; give the prototxt",
    ),
    "of the net": (coded("ReLU") + number(77, 1), "field 77 of the net is a fork's; give the prototxt"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_what_could_be_another_forks_is_refused(tmp_path, data, message) -> None:
    (tmp_path / "n.caffemodel").write_bytes(data)
    with pytest.raises(IlgnetError) as caught:
        net_inside(open_caffemodel(tmp_path / "n.caffemodel"))
    assert str(caught.value).startswith(f"n.caffemodel: {message}")
    with pytest.raises(IlgnetError) as caught:  # and not offered
        ir.load(tmp_path / "n.caffemodel")
    assert str(caught.value).endswith("give the deploy prototxt as prototxt=")
