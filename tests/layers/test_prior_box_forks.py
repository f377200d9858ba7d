"""PriorBox with the fields of forks, and PriorBoxClustered, box by box."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch
from one_layer import assert_all_uses, build, draw

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError

FEATURE, IMAGE = (2, 8, 3, 5), (2, 3, 66, 90)


def expected(step, boxes, variance=(0.1,), clip=False) -> np.ndarray:
    """Write out each cell's boxes, given as centre in the cell (pixels), width and height."""
    corners = []
    for row in range(FEATURE[2]):
        for column in range(FEATURE[3]):
            for x, y, width, height, cut in boxes:
                x_c, y_c = column * step[1] + x, row * step[0] + y
                box = np.array([x_c - width / 2, y_c - height / 2, x_c + width / 2, y_c + height / 2])
                box /= (IMAGE[3], IMAGE[2]) * 2
                if cut:
                    box = np.concatenate([np.maximum(box[:2], 0), np.minimum(box[2:], 1)])
                corners.append(np.clip(box, 0, 1) if clip else box)
    values = np.tile(variance, 4 * len(corners) // len(variance))
    return np.stack([np.array(corners).ravel(), values])[None].astype(np.float32)


STEP = (IMAGE[2] / FEATURE[2], IMAGE[3] / FEATURE[3])  # 22, 18
AVERAGE = 20  # int of their mean


def dense(
    size: int, width: float, height: float, density: int, span: int, shift: int
) -> list[tuple[float, ...]]:
    x, y = 9 - span / 2 + shift / 2, 11 - span / 2 + shift / 2
    return [
        (x + c * shift, y + r * shift, width, height, True) for r in range(density) for c in range(density)
    ]


CASES = {
    "clustered": (
        "PriorBoxClustered",
        "width: 12 width: 30.5 height: 20 height: 8.25 step_h: 16 step_w: 20 clip: true variance: [0.1, 0.1, 0.2, 0.2]",
        expected((16, 20), [(10, 8, 12, 20, 0), (10, 8, 30.5, 8.25, 0)], (0.1, 0.1, 0.2, 0.2), clip=True),
    ),
    "clustered over the image": (
        "PriorBoxClustered",
        "width: 12 height: 20 flip: true offset: 0.25",
        expected(STEP, [(4.5, 5.5, 12, 20, 0)]),
    ),
    "widths and heights": (
        "PriorBox",
        "width: 12 height: 20 step: 16",
        expected((16, 16), [(8, 8, 12, 20, 0)]),
    ),
    "two offsets": (
        "PriorBox",
        "min_size: 10 aspect_ratio: 4 flip: false offset_h: 0.25 offset_h: 0.75 offset_w: 0.5 offset_w: 1 step: 16",
        expected((16, 16), [(8, 4, 10, 10, 0), (16, 12, 10, 10, 0), (8, 4, 20, 5, 0), (16, 12, 20, 5, 0)]),
    ),
    "fixed sizes and ratios": (
        "PriorBox",
        "fixed_size: 32 fixed_size: 60 fixed_ratio: 1 fixed_ratio: 2 density: 3 density: 1",
        expected(
            STEP,
            [
                *dense(32, 32, 32, 3, AVERAGE, 6),
                *dense(32, 32 * sqrt(2), 32 / sqrt(2), 3, AVERAGE, 6),
                *dense(60, 60, 60, 1, AVERAGE, AVERAGE),
                *dense(60, 60 * sqrt(2), 60 / sqrt(2), 1, AVERAGE, AVERAGE),
            ],
        ),
    ),
    "fixed sizes": (
        "PriorBox",
        "fixed_size: 33 density: 2",
        expected(STEP, dense(33, 33, 33, 2, 33, 16)),
    ),
    "fixed sizes, densely": (
        "PriorBox",
        "fixed_size: 33 density: 5",
        expected(STEP, dense(33, 33, 33, 5, 33, 6)),
    ),
    "FaceBoxes, three sizes": (
        "PriorBox",
        "variant: FACEBOXES min_size: 32 min_size: 64 min_size: 128 step_h: 16 step_w: 20 variance: [0.1, 0.1, 0.2, 0.2]",
        expected(
            (16, 20),
            [
                *[(10 + 8 * j, 8 + 8 * i, 31, 31, 0) for i in (-2, -1, 0, 1) for j in (-2, -1, 0, 1)],
                *[(10 + 16 * j, 8 + 16 * i, 63, 63, 0) for i in (-1, 0) for j in (-1, 0)],
                (10, 8, 127, 127, 0),
            ],
            (0.1, 0.1, 0.2, 0.2),
        ),
    ),
    "FaceBoxes, one size": (
        "PriorBox",
        "variant: FACEBOXES min_size: 256.5 max_size: 300 aspect_ratio: 4 flip: false clip: true",
        expected(
            STEP,
            [(9, 11, 255, 255, 0), (9, 11, *(sqrt(256 * 300),) * 2, 0), (9, 11, 512, 128, 0)],
            clip=True,
        ),
    ),
    "SSD's, stated": ("PriorBox", "variant: SSD min_size: 32", expected(STEP, [(9, 11, 32, 32, 0)])),
}


@pytest.mark.parametrize(("type_", "fields", "wanted"), CASES.values(), ids=CASES)
def test_boxes(type_, fields, wanted):
    net = build(type_, [FEATURE, IMAGE], f"prior_box_param {{ {fields} }}")
    assert_all_uses(net, [draw(1, *FEATURE), draw(2, *IMAGE)], [wanted], rtol=1e-5, atol=1e-6)


HEAD = """
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 3 dim: 32 dim: 32 }} }} }}
layer {{ name: "loc" type: "Convolution" bottom: "data" top: "loc" convolution_param {{ num_output: {} kernel_size: 1 }} }}
layer {{ name: "three" type: "PriorBox" bottom: "data" bottom: "data" top: "three"
  prior_box_param {{ min_size: 32 min_size: 64 min_size: 128 {} }} }}
layer {{ name: "one" type: "PriorBox" bottom: "loc" bottom: "data" top: "one" prior_box_param {{ min_size: 16 }} }}
"""
PLACES = 2 * 4 * 32 * 32  # values of one box
BY_NET = {
    "offsets of 21 boxes": (84, "", 21, 15),
    "offsets of 3 boxes": (12, "", 3, 16),
    "SSD's, as stated": (84, "variant: SSD", 3, 15),
}


@pytest.mark.parametrize(("channels", "fields", "boxes", "side"), BY_NET.values(), ids=BY_NET)
def test_the_net_shows_faceboxes(channels, fields, boxes, side):
    net = ir.load_net(parse_net(HEAD.format(channels, fields)), seed=0)
    assert net.shapes["three"] == (1, 2, PLACES // 2 * boxes)
    first = net(data=torch.zeros(1, 3, 32, 32))["one"][0, 0, :4].numpy()
    np.testing.assert_allclose(first, (0.5 + np.array([-side, -side, side, side]) / 2) / 32, rtol=1e-6)


@pytest.mark.parametrize("type_", ["DetectionOutput", "MultiBoxLoss"])
def test_the_offsets_show_the_cause(type_):
    shapes = [(1, 84), (1, 42), (1, 2, 12), (1, 1, 1, 8)][: 3 if type_ == "DetectionOutput" else 4]
    name = "detection_output_param" if type_ == "DetectionOutput" else "multibox_loss_param"
    with pytest.raises(LayerError) as caught:
        build(type_, shapes, f"{name} {{ num_classes: 2 }}")
    assert str(caught.value) == (
        f"op ({type_}): offsets [1, 84] must be N×12 for 3 default boxes; if its boxes are FaceBoxes', of which three sizes "
        "make 21, state prior_box_param { variant: FACEBOXES }"
    )


def test_the_audit_names_the_fork():
    found = audit(parse_net(HEAD.format(84, "")))
    assert [row.note for row in found.layers if row.type == "PriorBox"] == [
        "PriorBox of FaceBoxes' Caffe: sizes 32 and 64 at several shifts"
    ] * 2


REFUSED = {
    "a variant": (
        "PriorBox",
        "variant: FACE min_size: 4",
        "prior_box_param.variant FACE must be SSD or FACEBOXES",
    ),
    "a variant without min_size": (
        "PriorBox",
        "variant: FACEBOXES fixed_size: 4 density: 1",
        "prior_box_param.variant FACEBOXES has no fixed_size; remove it",
    ),
    "FaceBoxes' other three sizes": (
        "PriorBox",
        "variant: FACEBOXES min_size: 32 min_size: 60 min_size: 128",
        "min_size [32.0, 60.0, 128.0] makes 18 boxes where FaceBoxes' Caffe has room for 21; "
        "state 32, 64 and one more, or sizes other than these, without aspect_ratio",
    ),
    "no size": ("PriorBoxClustered", "", "width [] and height [] must be over 0 and stated equally often"),
    "one height": (
        "PriorBoxClustered",
        "width: 3 width: 4 height: 5",
        "width [3.0, 4.0] and height [5.0] must be over 0 and stated equally often",
    ),
    "min_size": (
        "PriorBoxClustered",
        "width: 3 height: 5 min_size: 4",
        "prior_box_param.min_size is not supported; remove it if it does not matter",
    ),
    "one offset": (
        "PriorBox",
        "min_size: 4 offset_h: 0.5",
        "offset_h [0.5] and offset_w [] must be stated equally often, and without offset",
    ),
    "both offsets": (
        "PriorBox",
        "min_size: 4 offset: 0.5 offset_h: 0.5 offset_w: 0.5",
        "offset_h [0.5] and offset_w [0.5] must be stated equally often, and without offset",
    ),
    "density alone": (
        "PriorBox",
        "min_size: 4 density: 2",
        "fixed_ratio and density go with fixed_size; state it too",
    ),
    "densities": (
        "PriorBox",
        "fixed_size: 4 fixed_size: 8 density: 2",
        "fixed_size [4.0, 8.0] and fixed_ratio [] must be over 0, with a density over 0 per size, not [2]",
    ),
    "aspect ratios": (
        "PriorBox",
        "fixed_size: 4 density: 2 aspect_ratio: 2",
        "fixed_size goes without min_size and aspect_ratio; use fixed_ratio",
    ),
}


@pytest.mark.parametrize(("type_", "fields", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(type_, fields, message):
    with pytest.raises(LayerError) as caught:
        build(type_, [FEATURE, IMAGE], f"prior_box_param {{ {fields} }}")
    assert str(caught.value) == f"op ({type_}): {message}"
