"""Offsets of Crop layers that state none: BVLC's 0 or the forks' geometry, recognized from the text, chosen, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.crops import resolve_crops
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import format_message, parse_net, read_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.errors import GraphError, IlgnetError, LayerError

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 11 } } }'
CROP = 'layer { name: "crop" type: "Crop" bottom: "%s" bottom: "%s" top: "o" }'


def layer(type_, bottoms, top, params=""):
    names = " ".join(f'bottom: "{name}"' for name in bottoms.split())
    return f'layer {{ name: "{top}1" type: "{type_}" {names} top: "{top}" {params} }}'


def conv(bottom, top, params, type_="Convolution"):
    return layer(type_, bottom, top, f"convolution_param {{ num_output: 2 {params} }}")


def pool(bottom, top, params="kernel_size: 2 stride: 2"):
    return layer("Pooling", bottom, top, f"pooling_param {{ {params} }}")


# The layers, the Crop's bottoms, and the offset; those marked were recorded from HED's own Crop.
GEOMETRY = {
    "padding, recorded": (conv("x", "c", "kernel_size: 3 pad: 3") + layer("ReLU", "c", "r"), "r x", (2, 2)),
    "smaller, recorded": (conv("x", "c", "kernel_size: 3"), "x c", (1, 1)),
    "pooled and up again, recorded": (
        conv("x", "c", "kernel_size: 3 pad: 7") + layer("ReLU", "c", "c") + pool("c", "p")
        + conv("p", "s", "kernel_size: 1") + conv("s", "u", "kernel_size: 4 stride: 2", "Deconvolution"),
        "u x", (7, 7),
    ),
    "none, recorded": (conv("x", "c", "kernel_size: 3 pad: 1"), "c x", (0, 0)),
    "rows and columns": (conv("x", "c", "kernel_h: 3 kernel_w: 5 pad_h: 4 pad_w: 3"), "c x", (3, 1)),
    "dilation": (conv("x", "c", "kernel_size: 3 dilation: 2 pad: 5"), "c x", (3, 3)),
    "after another Crop": (
        conv("x", "c", "kernel_size: 1 pad: 4")
        + layer("Crop", "c x", "d", "crop_param { offset: 3 offset: 1 }"), "d x", (1, 3),
    ),
    "first bottoms only": (
        conv("x", "c", "kernel_size: 1 pad: 2") + conv("x", "e", "kernel_size: 1 pad: 6")
        + layer("Eltwise", "c e", "s"), "s x", (2, 2),
    ),
    "both sides": (
        conv("x", "c", "kernel_size: 1 pad: 6") + conv("x", "e", "kernel_size: 3 pad: 2"), "c e", (5, 5),
    ),
}  # fmt: skip


def offsets(text, **options):
    """The offset that each Crop of a net states once it is placed, by name."""
    net = resolve_crops(upgrade_net(parse_net(text)), **options)
    return {one.name: tuple(one.crop_param.offset) for one in net.layer if one.type == "Crop"}


@pytest.mark.parametrize(("layers", "bottoms", "wanted"), GEOMETRY.values(), ids=GEOMETRY)
def test_geometry(layers, bottoms, wanted):
    text = INPUT + layers + CROP % tuple(bottoms.split())
    assert offsets(text, crop="geometry")["crop"] == wanted
    assert offsets(text, crop="bvlc")["crop"] == (0,)
    if not any(wanted):
        assert offsets(text)["crop"] == ()  # both rules give it: the text stays
        return
    if "kernel_size: 3 pad: 7" in layers:  # shown by the text, see RECOGNIZED
        assert offsets(text)["crop"] == wanted
        return
    with pytest.raises(LayerError) as caught:
        build_graph(parse_net(text))
    shown, stated = ", ".join(map(str, wanted)), " ".join(f"offset: {one}" for one in wanted)
    assert str(caught.value) == (
        f"crop (Crop): has no offset: it is 0 in BVLC Caffe and {shown} in forks (FCN, HED), which compute it "
        "from the layers; choose crop='bvlc' or crop='geometry', or write crop_param { offset: 0 } or "
        f"crop_param {{ {stated} }}"
    )


# Bottoms that no fork could align: BVLC's rule, refused where geometry was requested.
UNALIGNED = {
    "scale": (pool("x", "p"), "x p", "'x' and 'p' differ in scale, by 0.5"),
    "half a value": (conv("x", "c", "kernel_size: 4 pad: 3"), "c x", "'x' would start 1.5 values into 'c'"),
    "before the first": (conv("x", "c", "kernel_size: 3"), "c x", "'x' would start -1 values into 'c'"),
    "no way": (INPUT.replace('"x"', '"y"'), "x y", "'x' and 'y' have no common source blob"),
    "a layer that moves": (
        layer("Permute", "x", "t", "permute_param { order: 0 order: 1 order: 3 order: 2 }"), "x t",
        "t1 (Permute) is between them",
    ),
    "whole plane": (pool("x", "p", "global_pooling: true"), "x p", "p1 (Pooling) is between them"),
}  # fmt: skip


@pytest.mark.parametrize(("layers", "bottoms", "why"), UNALIGNED.values(), ids=UNALIGNED)
def test_bottoms_that_cannot_be_aligned(layers, bottoms, why):
    text = INPUT + layers + CROP % tuple(bottoms.split())
    assert offsets(text)["crop"] == ()
    with pytest.raises(LayerError) as caught:
        offsets(text, crop="geometry")
    assert str(caught.value) == (
        f"crop (Crop): has no offset, and none can be computed from the layers: {why}; "
        "write crop_param { offset: N }, or choose BVLC's rule, 0 (crop='bvlc')"
    )


V1 = """input: "x" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 10
layers { name: "c1" type: CONVOLUTION bottom: "x" top: "c" convolution_param { num_output: 2 kernel_size: 3 pad: 5 } }
layers { name: "p1" type: POOLING bottom: "c" top: "p" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layers { name: "up" type: DECONVOLUTION bottom: "p" top: "d"
  convolution_param { num_output: 2 kernel_size: 4 stride: 2 } }
layers { name: "crop" type: CROP bottom: "d" bottom: "x" top: "o" }"""
STATED = INPUT + conv("x", "c", "kernel_size: 1 pad: 3") + (CROP % ("c", "x"))[:-1] + "crop_param { %s } }"
UP = conv("%s", "u", "kernel_size: 4 stride: 2 pad: 1", "Deconvolution") + CROP % ("u", "x")
PADDED = INPUT + conv("x", "c", "kernel_h: 3 kernel_w: 5 pad_h: 8 pad_w: 6") + pool("c", "p") + UP % "p"
RECOGNIZED = {
    "padded and upsampled, as FCN and HED": (PADDED, {}, (7, 4)),
    "padded and upsampled, but BVLC's requested": (PADDED, {"crop": "bvlc"}, (0,)),
    "V1, which only forks had": (V1, {}, (5, 5)),
    "V1, but BVLC's requested": (V1, {"crop": "bvlc"}, (0,)),
    "offset": (STATED % "offset: 1 offset: 2", {}, (1, 2)),
    "offset stays": (STATED % "offset: 1 offset: 2", {"crop": "geometry"}, (1, 2)),
    "crop_param, which only BVLC has": (STATED % "axis: 2", {}, ()),
}


@pytest.mark.parametrize(("text", "options", "wanted"), RECOGNIZED.values(), ids=RECOGNIZED)
def test_geometry_recognized_from_the_text(text, options, wanted):
    assert offsets(text, **options)["crop"] == wanted
    build_graph(upgrade_net(parse_net(text)), **options)


def test_one_crop_decides_the_rule_of_all():
    side = conv("c", "s", "kernel_size: 1") + layer("Crop", "s x", "d")
    assert offsets(PADDED + side) == {"crop": (7, 4), "d1": (7, 4)}


DOUBTFUL = {
    "upsampled without padding": INPUT + pool("x", "p") + (UP % "p").replace("pad: 1", ""),
    "padded without upsampling": INPUT + conv("x", "c", "kernel_size: 3 pad: 5") + CROP % ("c", "x"),
}


@pytest.mark.parametrize("text", DOUBTFUL.values(), ids=DOUBTFUL)
def test_half_of_the_sign_is_not_enough(text):
    with pytest.raises(LayerError, match="has no offset: it is 0 in BVLC Caffe and "):
        offsets(text)


def test_only_layers_of_the_phase_count():
    rules = "include { phase: %s }"
    both = "".join(
        conv("x", "c", f"kernel_size: 1 pad: {pad}")[:-1] + rules % phase + "}"
        for pad, phase in ((2, "TRAIN"), (4, "TEST"))
    )
    for phase, wanted in (("TRAIN", (2, 2)), ("TEST", (4, 4))):
        assert offsets(INPUT + both + CROP % ("c", "x"), phase=phase, crop="geometry")["crop"] == wanted


def test_unknown_rule():
    with pytest.raises(GraphError, match="crop 'hed' is unknown; use geometry or bvlc"):
        ir.load_net(parse_net(INPUT + CROP % ("x", "x")), crop="hed")


BARE = INPUT + conv("x", "c", 'kernel_size: 1 pad: 2 weight_filler { type: "xavier" }') + CROP % ("c", "x")


def test_numbers_and_what_audit_says():
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 3, 9, 11)).astype(np.float32))
    for crop, start in (("geometry", 2), ("bvlc", 0)):
        net = ir.load_net(parse_net(BARE), seed=3, crop=crop)
        blobs = net(x=x, blobs=["c", "o"])
        torch.testing.assert_close(blobs["o"], blobs["c"][:, :, start : start + 9, start : start + 11])
    found = audit(parse_net(BARE))
    assert len(found.problems) == 1 and found.problems[0].startswith("crop (Crop): has no offset: it is 0 in")
    found = audit(parse_net(BARE), crop="geometry")
    assert not found.problems
    assert (
        "crop (Crop): its offset, 2, 2, was computed from the layers, as in forks (FCN, HED)"
        in found.upgrades
    )


@pytest.mark.parametrize(("crop", "start"), [("geometry", 2), ("bvlc", 0)])
def test_the_choice_is_in_the_converted_file(crop, start, tmp_path):
    net = ir.load_net(parse_net(BARE), seed=3, crop=crop)
    (tmp_path / "x.prototxt").write_text(BARE)
    blobs = {name: [blob.detach().numpy() for blob in own] for name, own in net.params.items()}
    write_caffemodel(tmp_path / "x.caffemodel", parse_net(BARE), blobs)
    with pytest.raises(LayerError, match="has no offset"):
        ir.convert(tmp_path / "x.caffemodel")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["x.caffemodel", "x.prototxt"]
    ir.convert(tmp_path / "x.caffemodel", to=("safetensors", "onnx"), crop=crop, verify=True)
    x = torch.arange(297.0).reshape(1, 3, 9, 11)
    blobs = ir.load(tmp_path / "x.safetensors")(x=x, blobs=["c", "o"])
    torch.testing.assert_close(blobs["o"], blobs["c"][:, :, start : start + 9, start : start + 11])


def test_written_text_needs_no_choice(tmp_path):
    text = format_message(resolve_crops(parse_net(BARE), crop="geometry"))
    (tmp_path / "net.prototxt").write_text(text)
    assert offsets(text)["crop"] == (2, 2) and read_net(tmp_path / "net.prototxt")


def test_errors_are_the_packages_own():
    assert issubclass(LayerError, IlgnetError) and issubclass(GraphError, IlgnetError)
