"""DetectionEvaluate on a case worked out by hand, and the evaluation layers that are left out."""

from __future__ import annotations

import numpy as np
import pytest
from one_layer import build, run

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError

# Image, class, instance, corners, difficult; the row of image -1 ends the list.
TRUTH = [
    (0, 1, 0, 0.1, 0.1, 0.5, 0.5, 0),
    (0, 1, 1, 0.6, 0.6, 0.9, 0.9, 1),
    (0, 2, 0, 0.2, 0.0, 0.4, 0.3, 0),
    (1, 2, 0, 0.0, 0.0, 0.5, 0.5, 0),
    (-1, 1, 0, 0.0, 0.0, 1.0, 1.0, 0),
    (1, 1, 0, 0.0, 0.0, 1.0, 1.0, 0),
]
FOUND = [
    (0, 1, 0.6, 0.1, 0.1, 0.5, 0.5),  # the same box once more, with a lower score
    (0, 1, 0.9, 0.1, 0.1, 0.5, 0.52),
    (0, 1, 0.8, 0.6, 0.6, 0.9, 0.9),  # the difficult box
    (0, 2, 0.7, 0.6, 0.6, 0.9, 0.9),  # overlaps no box of its class
    (1, 1, 0.3, 0.0, 0.0, 1.0, 1.0),  # no true box of the class in the image
    (1, 2, 0.2, 0.0, 0.0, 0.5, 0.5),
    (1, -1, -1, -1, -1, -1, -1),  # no detection
]
EASY = [
    (-1, 1, 1, -1, -1), (-1, 2, 2, -1, -1),
    (0, 1, 0.9, 1, 0), (0, 1, 0.8, 0, 0), (0, 1, 0.6, 0, 1), (0, 2, 0.7, 0, 1), (1, 1, 0.3, 0, 1), (1, 2, 0.2, 1, 0),
]  # fmt: skip
ALL = [(-1, 1, 2, -1, -1), *EASY[1:3], (0, 1, 0.8, 1, 0), *EASY[4:]]
SHAPES = [(1, 1, len(FOUND), 7), (1, 1, len(TRUTH), 8)]


@pytest.mark.parametrize(("difficult", "rows"), [("false", EASY), ("true", ALL)])
def test_detection_evaluate(difficult, rows):
    param = f"detection_evaluate_param {{ num_classes: 3 evaluate_difficult_gt: {difficult} }}"
    net = build("DetectionEvaluate", SHAPES, param)
    arrays = [np.array(values, np.float32)[None, None] for values in (FOUND, TRUTH)]
    np.testing.assert_allclose(run(net, arrays)[0], np.array(rows, np.float32)[None, None])
    assert net.shapes["top0"] == (1, 1, 9, 5)


REFUSED = {
    "no classes": ("", SHAPES, "num_classes is 0 or absent; state their number, with the background"),
    "detections": ("num_classes: 3", [(1, 1, 4, 6), SHAPES[1]], "detections [1, 1, 4, 6] must be 1×1×R×7"),
    "true boxes": ("num_classes: 3", [SHAPES[0], (2, 1, 4, 8)], "true boxes [2, 1, 4, 8] must be 1×1×R×8"),
}


@pytest.mark.parametrize(("fields", "shapes", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(fields, shapes, message):
    with pytest.raises(LayerError) as caught:
        build("DetectionEvaluate", shapes, f"detection_evaluate_param {{ {fields} }}")
    assert str(caught.value) == f"op (DetectionEvaluate): {message}"


LEFT_OUT = """
layer { name: "in" type: "Input" top: "a" top: "b" input_param { shape { dim: 1 dim: 1 dim: 2 dim: 7 } } }
layer { name: "copy" type: "Power" bottom: "a" top: "found" }
layer { name: "op" type: "%s" bottom: "found" bottom: "b" top: "eval" %s }
"""
NOTES = {
    "DetectionEvaluate": (
        'detection_evaluate_param { num_classes: 3 name_size_file: "sizes.txt" }',
        "it compares boxes in pixels of the images that name_size_file lists",
    ),
    "EvalDetection": (
        "eval_detection_param { side: 13 num_class: 20 }",
        "forks give the name to layers that count differently",
    ),
    "SegAccuracy": (
        "seg_accuracy_param { ignore_label: 255 reset: true }",
        "forks give the name to layers that count differently",
    ),
    "SegmentationEvaluate": (
        "segmentation_evaluate_param { num_classes: 3 }",
        "it resizes the scores by OpenCV's area interpolation",
    ),
}


@pytest.mark.parametrize("type_", NOTES)
def test_evaluation_layers_are_left_out(type_):
    fields, reason = NOTES[type_]
    found = audit(parse_net(LEFT_OUT % (type_, fields)))
    assert not found.problems
    assert found.outputs == ("b", "found")
    assert [row.name for row in found.layers] == ["in", "copy"]
    assert found.upgrades[-1] == f"op ({type_}): left out, an evaluation layer: {reason}"


def test_one_that_is_read_stays():
    text = LEFT_OUT % ("EvalDetection", "") + 'layer { name: "s" type: "Silence" bottom: "eval" }'
    found = audit(parse_net(text))
    assert found.problems == (
        "op (EvalDetection): layer type is unknown; register a class for it (docs/layers.md)",
    )
