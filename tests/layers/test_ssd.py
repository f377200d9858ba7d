"""PriorBox and DetectionOutput against slow formulas, box by box."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import slow_detection as slow
from one_layer import assert_all_uses, build, draw, run, run_onnx, run_source

from ilgnet_repro.errors import LayerError
from ilgnet_repro.export.onnx_graph import build_onnx

USES = (run, run_onnx, run_source)
FEATURE, PICTURE = (2, 8, 3, 5), (2, 3, 64, 90)
SQUARE = [(30, 30)]


def shapes_of(side: float, *ratios: float) -> list[tuple[float, float]]:
    return [(side * sqrt(ratio), side / sqrt(ratio)) for ratio in ratios]


# Fields, each position's sizes in pixels, and further arguments of the slow formula.
PRIORS = {
    "one": ("min_size: 30", SQUARE, {}),
    "max_size": ("min_size: 30 max_size: 60", [*SQUARE, (sqrt(1800),) * 2], {}),
    "ratios": ("min_size: 30 aspect_ratio: 2", [*SQUARE, *shapes_of(30, 2, 1 / 2)], {}),
    "no flip": ("min_size: 30 aspect_ratio: 2 flip: false", [*SQUARE, *shapes_of(30, 2)], {}),
    "ratios stated twice": (
        "min_size: 30 aspect_ratio: [2, 1, 0.5, 3]",
        [*SQUARE, *shapes_of(30, 2, 1 / 2, 3, 1 / 3)],
        {},
    ),
    "two sizes": (
        "min_size: 30 min_size: 40 max_size: 60 max_size: 50 aspect_ratio: 3",
        [
            *(*SQUARE, (sqrt(1800),) * 2, *shapes_of(30, 3, 1 / 3)),
            *((40, 40), (sqrt(2000),) * 2, *shapes_of(40, 3, 1 / 3)),
        ],
        {},
    ),
    # The SSD fork keeps them in an int.
    "broken sizes": ("min_size: 30.84 max_size: 60.9", [*SQUARE, (sqrt(1800),) * 2], {}),
    "clip": ("min_size: 60 clip: true", [(60, 60)], {"clip": True}),
    "step": ("min_size: 30 step: 16", SQUARE, {"step": (16, 16)}),
    "two steps": (
        "min_size: 30 step_h: 16 step_w: 20 offset: 0.25",
        SQUARE,
        {"step": (16, 20), "offset": 0.25},
    ),
    "variances": ("min_size: 30 variance: [0.1, 0.2, 0.3, 0.4]", SQUARE, {"variance": [0.1, 0.2, 0.3, 0.4]}),
    "variance": ("min_size: 30 variance: 0.3", SQUARE, {"variance": [0.3]}),
    "img_size": ("min_size: 30 img_size: 128", SQUARE, {"image": (128, 128)}),
    "img_h": ("min_size: 30 img_h: 128 img_w: 160", SQUARE, {"image": (128, 160)}),
}


@pytest.mark.parametrize(("fields", "sizes", "more"), PRIORS.values(), ids=PRIORS)
def test_prior_box(fields, sizes, more):
    more = {"image": PICTURE[2:], "variance": [0.1], **more}
    expected = slow.prior_boxes(FEATURE[2:], sizes=sizes, **more)
    net = build("PriorBox", [FEATURE, PICTURE], f"prior_box_param {{ {fields} }}")
    assert_all_uses(net, [draw(1, *FEATURE), draw(2, *PICTURE)], [expected], rtol=1e-6, atol=1e-6)


def test_prior_boxes_scale_with_the_image():
    net = build("PriorBox", [FEATURE, PICTURE], "prior_box_param { min_size: 30 }")
    arrays = [draw(1, 1, 8, 4, 7), draw(2, 1, 3, 80, 100)]
    expected = slow.prior_boxes((4, 7), (80, 100), SQUARE, [0.1])
    for use in (run, run_source):
        np.testing.assert_allclose(use(net, arrays)[0], expected, rtol=1e-6, atol=1e-6, err_msg=use.__name__)
    with pytest.raises(LayerError, match="its ONNX nodes hold the size; export without dynamic_size=True"):
        build_onnx(net, dynamic_size=True)


COUNT, CLASSES = 40, 4


def predictions(seed: int, images: int, shared: bool = True) -> list[np.ndarray]:
    """Offsets, scores (no two of an image equal) and default boxes."""
    random = np.random.default_rng(seed)
    centre, size = random.uniform(0, 1, (COUNT, 2)), random.uniform(0.1, 0.5, (COUNT, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1).ravel()
    priors = np.stack([boxes, np.tile([0.1, 0.1, 0.2, 0.2], COUNT)])[None].astype(np.float32)
    scores = [random.permutation(COUNT * CLASSES) / (COUNT * CLASSES) for _ in range(images)]
    return [
        draw(seed, images, COUNT * 4 * (1 if shared else CLASSES)),
        np.array(scores, np.float32),
        priors,
    ]


def detection_param(**fields: object) -> str:
    nms = {name: fields.pop(name) for name in ("nms_threshold", "top_k", "eta") if name in fields}
    texts = [f"{name}: {value}" for name, value in {"num_classes": CLASSES, **fields}.items()]
    texts.append(f"nms_param {{ {' '.join(f'{name}: {value}' for name, value in nms.items())} }}")
    return f"detection_output_param {{ {' '.join(texts)} }}"


# Fields, and the same for the slow formula.
DETECTIONS = {
    "defaults": ({}, {}),
    "threshold": ({"nms_threshold": 0.6}, {"threshold": 0.6}),
    "nothing overlaps": ({"nms_threshold": 0}, {"threshold": 0}),
    "top_k": ({"top_k": 12}, {"top_k": 12}),
    "top_k over all": ({"top_k": 400}, {}),
    "keep_top_k": ({"keep_top_k": 9}, {"keep": 9}),
    "keep_top_k over all": ({"keep_top_k": 200}, {}),
    "confidence": ({"confidence_threshold": 0.8}, {"confidence": 0.8}),
    "few in one": ({"confidence_threshold": 0.98, "keep_top_k": 2}, {"confidence": 0.98, "keep": 2}),
    "nothing": ({"confidence_threshold": 1.5}, {"confidence": 1.5}),
    "nothing kept": ({"confidence_threshold": 1.5, "keep_top_k": 3}, {"confidence": 1.5, "keep": 3}),
    "background": ({"background_label_id": 2}, {"background": 2}),
    "no background": ({"background_label_id": -1}, {"background": -1}),
    "encoded": ({"variance_encoded_in_target": "true"}, {"encoded": True}),
}


@pytest.mark.parametrize("code_type", ["CORNER", "CENTER_SIZE", "CORNER_SIZE"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize(("fields", "rules"), DETECTIONS.values(), ids=DETECTIONS)
def test_detection_output(fields, rules, shared, code_type):
    arrays = predictions(3, 2, shared)
    fields = {"share_location": str(shared).lower(), "code_type": code_type, **fields}
    net = build("DetectionOutput", [array.shape for array in arrays], detection_param(**fields))
    expected = slow.detect(*arrays, classes=CLASSES, shared=shared, code_type=code_type, **rules)
    for use in USES:
        found = use(net, arrays)[0]
        assert found.shape == expected.shape, use.__name__
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=use.__name__)
    assert expected.shape[2] <= net.shapes["top0"][2]


def test_the_threshold_falls_with_eta():
    arrays = predictions(3, 2)
    net = build(
        *("DetectionOutput", [array.shape for array in arrays]),
        detection_param(nms_threshold=0.9, eta=0.8, code_type="CENTER_SIZE"),
    )
    expected = slow.detect(*arrays, classes=CLASSES, threshold=0.9, eta=0.8, code_type="CENTER_SIZE")
    flat = slow.detect(*arrays, classes=CLASSES, threshold=0.9, code_type="CENTER_SIZE")
    assert expected.shape != flat.shape
    for use in (run, run_source):
        np.testing.assert_allclose(use(net, arrays)[0], expected, rtol=1e-4, atol=1e-5, err_msg=use.__name__)
    with pytest.raises(
        LayerError, match="cannot be written as ONNX: NonMaxSuppression has no adaptive threshold"
    ):
        build_onnx(net)


@pytest.mark.parametrize("images", [1, 5])
def test_detections_of_another_batch(images):
    built = predictions(1, 2)
    rules = detection_param(keep_top_k=7, confidence_threshold=0.3, code_type="CENTER_SIZE")
    net = build("DetectionOutput", [array.shape for array in built], rules)
    arrays = predictions(5, images)
    arrays[1][0] *= 0.2  # nothing in the first image
    expected = slow.detect(*arrays, classes=CLASSES, keep=7, confidence=0.3, code_type="CENTER_SIZE")
    for use in USES:
        np.testing.assert_allclose(use(net, arrays)[0], expected, rtol=1e-4, atol=1e-5, err_msg=use.__name__)


HEADS = [(2, 160), (2, 160), (1, 2, 160)]
REFUSED = {
    "no min_size": (
        "PriorBox",
        [FEATURE, PICTURE],
        "",
        "op (PriorBox): min_size [] must be stated and over 0",
    ),
    "max under min": (
        "PriorBox",
        [FEATURE, PICTURE],
        "prior_box_param { min_size: 30 max_size: 20 }",
        "max_size",
    ),
    "more max": (
        "PriorBox",
        [FEATURE, PICTURE],
        "prior_box_param { min_size: 3 max_size: [5, 6] }",
        "one for each",
    ),
    "ratio": (
        *("PriorBox", [FEATURE, PICTURE]),
        *("prior_box_param { min_size: 3 aspect_ratio: 0 }", "aspect_ratio 0.0 must be over 0"),
    ),
    "variance": (
        *("PriorBox", [FEATURE, PICTURE]),
        *(
            "prior_box_param { min_size: 3 variance: [1, 2] }",
            "variance [1.0, 2.0] must be one number over 0",
        ),
    ),
    "both steps": (
        *("PriorBox", [FEATURE, PICTURE]),
        *(
            "prior_box_param { min_size: 3 step: 2 step_h: 2 step_w: 2 }",
            "states both step and step_h/step_w",
        ),
    ),
    "half a step": (
        *("PriorBox", [FEATURE, PICTURE]),
        *("prior_box_param { min_size: 3 step_h: 2 }", "step (or step_h and step_w) must be over 0"),
    ),
    "map": (
        "PriorBox",
        [(2, 8), PICTURE],
        "prior_box_param { min_size: 3 }",
        "bottom [2, 8] must be N×C×H×W",
    ),
    "no classes": ("DetectionOutput", HEADS, "", "num_classes is 0 or absent"),
    "only background": (
        "DetectionOutput",
        HEADS,
        "detection_output_param { num_classes: 1 }",
        "the only class",
    ),
    "eta": ("DetectionOutput", HEADS, detection_param(eta=0), "eta 0.0 in (0, 1]"),
    "nms": (
        "DetectionOutput",
        HEADS,
        detection_param(nms_threshold=-1),
        "nms_threshold -1.0 must be at least 0",
    ),
    "offsets": (
        "DetectionOutput",
        [(2, 156), *HEADS[1:]],
        detection_param(),
        "offsets [2, 156] must be N×160",
    ),
    "scores": (
        "DetectionOutput",
        [HEADS[0], (2, 120), HEADS[2]],
        detection_param(),
        "scores [2, 120] must be",
    ),
    "boxes": ("DetectionOutput", [*HEADS[:2], (1, 1, 160)], detection_param(), "must be 1×2×4P"),
    "images": (
        "DetectionOutput",
        [(3, 160), *HEADS[1:]],
        detection_param(),
        "differ in their number of images",
    ),
}


@pytest.mark.parametrize(("type_", "shapes", "params", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(type_, shapes, params, message):
    with pytest.raises(LayerError) as raised:
        build(type_, shapes, params)
    assert message in str(raised.value) and "\n" not in str(raised.value)
