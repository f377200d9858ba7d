"""Detection layers of forks: options that no recorded case covers, by slow formulas, and refusals."""

from __future__ import annotations

from math import floor

import numpy as np
import pytest
from one_layer import assert_all_uses, build, draw, gradients, run, run_onnx, run_source

from ilgnet_repro.errors import LayerError

USES = (run, run_onnx, run_source)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def suppressed(rows, threshold):
    """Keep rows (score, label, box) that overlap no better one by the threshold or more; boxes are centre and size."""
    kept = []
    for row in sorted(rows, key=lambda row: -row[0]):
        for other in kept:
            (x, y, w, h), (u, v, s, t) = row[2], other[2]
            wide = min(x + w / 2, u + s / 2) - max(x - w / 2, u - s / 2)
            tall = min(y + h / 2, v + t / 2) - max(y - h / 2, v - t / 2)
            both = wide * tall if wide > 0 and tall > 0 else 0
            if both / (w * h + s * t - both) >= threshold:
                break
        else:
            kept.append(row)
    return np.array(
        [
            (0, label, score, x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            for score, label, (x, y, w, h) in kept
        ],
        np.float32,
    )


def test_yolo_3_of_two_images():
    """All images compete, and their number is not in the rows; one mask for both groups of num_box 1."""
    param = (
        "num_classes: 3 num_box: 1 confidence_threshold: 0.3 nms_threshold: 0.5 biases: [20, 30, 40, 25] "
        "mask: 1 mask: 0 anchors_scale: 32 anchors_scale: 16 mask_group_num: 2"
    )
    shapes = [(2, 8, 2, 3), (2, 8, 4, 3)]
    arrays = [draw(4, *shapes[0]) * 2, draw(5, *shapes[1]) * 2]
    rows = []
    for x, scale, (width, height) in zip(arrays, (32, 16), ((40, 25), (20, 30)), strict=True):
        for image in range(2):
            for row in range(x.shape[2]):
                for column in range(x.shape[3]):
                    cell = x[image, :, row, column].astype(np.float64)
                    box = (
                        (column + sigmoid(cell[0])) / x.shape[3],
                        (row + sigmoid(cell[1])) / x.shape[2],
                        np.exp(cell[2]) * width / (x.shape[3] * scale),
                        np.exp(cell[3]) * height / (x.shape[2] * scale),
                    )
                    for label in range(3):
                        score = sigmoid(cell[4]) * sigmoid(cell[5 + label])
                        if score > 0.3:
                            rows.append((score, label + 1, box))
    wanted = suppressed(rows, 0.5)
    assert 3 < len(wanted) < len(rows)
    net = build("Yolov3DetectionOutput", shapes, f"yolov3_detection_output_param {{ {param} }}")
    for use in USES:
        np.testing.assert_allclose(
            use(net, arrays)[0][0, 0], wanted, rtol=1e-4, atol=1e-5, err_msg=use.__name__
        )


@pytest.mark.parametrize("reverse", [False, True])
def test_reorg_at_another_size(reverse):
    params = f"reorg_param {{ stride: 2 reverse: {str(reverse).lower()} }}"
    net = build("Reorg", [(2, 8, 4, 6)], params)
    x = draw(3, 3, 8, 6, 10)
    n, _, h, w = x.shape
    if reverse:
        wanted = x.reshape(n, 2, 2, 2, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, 2, 2 * h, 2 * w)
    else:
        wanted = x.reshape(n, 2, h, 2, w, 2).transpose(0, 3, 5, 1, 2, 4).reshape(n, 32, h // 2, w // 2)
    for found in (run(net, [x]), run_onnx(net, [x], dynamic_size=True), run_source(net, [x])):
        np.testing.assert_array_equal(found[0], wanted)


def cubic(values, t):
    a, b, c, d = values
    return (
        (-0.5 * a + 1.5 * b - 1.5 * c + 0.5 * d) * t**3
        + (a - 2.5 * b + 2 * c - 0.5 * d) * t**2
        + (c - a) * 0.5 * t
        + b
    )


def test_im_resize_fuses_scales():
    net = build(
        "ImResize",
        [(3, 2, 9, 12)],
        "imresize_param { target_spatial_height: 7 target_spatial_width: 10 start_scale: 0.9 scale_gap: 0.2 }",
    )
    x = draw(6, 3, 2, 9, 12)
    wanted = np.zeros((1, 2, 7, 10))
    for scale in range(3):
        pad = [floor(side // 2 * (1 - 0.9 + scale * 0.2)) for side in (9, 12)]
        inner = x[scale, :, pad[0] : 9 - pad[0], pad[1] : 12 - pad[1]].astype(np.float64)
        for row in range(7):
            for column in range(10):
                places = []
                for index, side, target in ((row, inner.shape[1], 7), (column, inner.shape[2], 10)):
                    place = (index - (target / side / 2 - 0.5)) * side / target
                    near = max(int(place + 1e-5), 0)
                    after = min(near + 1, side - 1)
                    places.append(([max(near - 1, 0), near, after, min(after + 1, side - 1)], place - near))
                (rows, t), (columns, s) = places
                lines = [cubic([inner[:, r, c] for c in columns], s) for r in rows]
                wanted[0, :, row, column] += cubic(lines, t) / 3
    assert_all_uses(net, [x], [wanted.astype(np.float32)])


def test_peaks_of_tall_maps():
    """Rows from the width on take no part in a peak's place, as in the fork's test against the width."""
    x = np.zeros((1, 1, 9, 5), np.float32)
    x[0, 0, 3, 2], x[0, 0, 4, 3], x[0, 0, 6, 2] = 2, 1, 4
    net = build("Nms", [x.shape], "nms_param { num_parts: 1 max_peaks: 1 threshold: 1.5 }")
    places = [(3, 2, 2.0), (4, 3, 1.0)]  # row 6 is not under the width, 5
    total = sum(value for *_, value in places)
    first = (sum(c * v for _, c, v in places) / total, sum(r * v for r, _, v in places) / total, 2)
    assert_all_uses(net, [x], [np.array([[[(2, 0, 0), first]]], np.float32)])


def test_mask_pooling_gradients():
    net = build("MaskPooling", [(2, 3, 4, 5), (2, 1, 4, 5)])
    x, mask, top = draw(1, 2, 3, 4, 5), draw(2, 2, 1, 4, 5), draw(3, 2, 3, 4, 5)
    found = gradients(net, [x, mask], top)
    np.testing.assert_allclose(found[0], top * mask, rtol=1e-6)
    np.testing.assert_allclose(found[1], (top * x).sum(1, keepdims=True), rtol=1e-5)


# Offsets, scores, default boxes and true boxes for three default boxes and two classes.
PRIORS = np.array([[(0, 0, 0.4, 0.4), (0.5, 0.5, 1, 1), (0.1, 0.6, 0.3, 0.9)], [(0.1,) * 4] * 3], np.float32)
TRUTH = np.array([(0, 1, 0, 0.0, 0.0, 0.4, 0.5, 0), (0, 1, 0, 0.45, 0.5, 1.0, 1.0, 0)], np.float32)


@pytest.mark.parametrize("kind", ["L2", "SMOOTH_L1"])
def test_multibox_loss_of_matched_boxes(kind):
    """Corners, no mining: the first two boxes match; the loss is written out."""
    loc, conf = draw(1, 1, 12), draw(2, 1, 6)
    params = (
        f"multibox_loss_param {{ num_classes: 2 loc_loss_type: {kind} loc_weight: 2 mining_type: NONE "
        "match_type: BIPARTITE } loss_param { normalization: VALID }"
    )
    net = build("MultiBoxLoss", [loc.shape, conf.shape, (1, 2, 12), (1, 1, 2, 8)], params)
    difference = loc.reshape(3, 4)[:2] - (TRUTH[:, 3:7] - PRIORS[0, :2]) / 0.1
    square = difference**2 / 2
    location = square if kind == "L2" else np.where(abs(difference) < 1, square, abs(difference) - 0.5)
    scores = conf.reshape(3, 2)
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    confidence = -(logs[0, 1] + logs[1, 1] + logs[2, 0])
    arrays = [loc, conf, PRIORS.reshape(1, 2, 12), TRUTH[None, None]]
    np.testing.assert_allclose(run(net, arrays)[0], (2 * location.sum() + confidence) / 2, rtol=1e-5)


def test_multibox_loss_inside_the_image_only():
    """With bp_inside a corner of a default box outside the image has no loss; ignored boxes match nothing."""
    priors = PRIORS.copy()
    priors[0, 0] = (-0.1, 0, 0.4, 0.4)
    loc, conf = draw(1, 1, 12), draw(2, 1, 6)
    arrays = [loc, conf, priors.reshape(1, 2, 12), TRUTH[None, None]]
    shapes = [array.shape for array in arrays]
    base = "num_classes: 2 loc_loss_type: L2 mining_type: NONE match_type: BIPARTITE"
    difference = loc.reshape(3, 4)[:2] - (TRUTH[:, 3:7] - priors[0, :2]) / 0.1
    scores = conf.reshape(3, 2)
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    inside = difference.copy()
    inside[0, 0] = 0
    wanted = ((inside**2).sum() / 2 - logs[0, 1] - logs[1, 1] - logs[2, 0]) / 2
    net = build("MultiBoxLoss", shapes, f"multibox_loss_param {{ {base} bp_inside: true }}")
    np.testing.assert_allclose(run(net, arrays)[0], wanted, rtol=1e-5)
    # Without the box outside, the first true box overlaps no other, so that one match is left.
    wanted = (difference[1] ** 2).sum() / 2 - logs[0, 0] - logs[1, 1] - logs[2, 0]
    net = build("MultiBoxLoss", shapes, f"multibox_loss_param {{ {base} ignore_cross_boundary_bbox: true }}")
    np.testing.assert_allclose(run(net, arrays)[0], wanted, rtol=1e-5)


MULTIBOX = [(1, 12), (1, 6), (1, 2, 12), (1, 1, 2, 8)]
REFUSED = {
    "Reorg channels": ("Reorg", [(1, 6, 4, 4)], "reorg_param { stride: 2 }", "6 channels are not a multiple of stride² = 4"),
    "Reorg size": ("Reorg", [(1, 4, 5, 4)], "reorg_param { stride: 2 }",
                   "height 5 and width 4 must be multiples of stride 2"),
    "Reorg stride": ("Reorg", [(1, 4, 4, 4)], "", "stride is 0 or absent; state the side of a block"),
    "Yolo channels": ("YoloDetectionOutput", [(1, 8, 3, 3)],
                      "yolo_detection_output_param { num_classes: 4 num_box: 1 biases: [1, 2] }",
                      "bottom [1, 8, 3, 3] must be N×9×H×W: num_box 1 × (5 + 4 classes)"),
    "Yolo square": ("YoloDetectionOutput", [(1, 9, 3, 4)],
                    "yolo_detection_output_param { num_classes: 4 num_box: 1 biases: [1, 2] }",
                    "bottom [1, 9, 3, 4] must be square: the layer takes its width for both sides"),
    "Yolo anchors": ("YoloDetectionOutput", [(1, 18, 3, 3)],
                     "yolo_detection_output_param { num_classes: 4 num_box: 2 biases: [1, 2] }",
                     "anchor 1 is used but biases states 1"),
    "Yolo 3 groups": ("Yolov3DetectionOutput", [(1, 9, 3, 4)],
                      "yolov3_detection_output_param { num_classes: 4 num_box: 1 biases: [1, 2] mask: 0 anchors_scale: 8 }",
                      "has 1 bottoms; mask_group_num 2 needs as many"),
    "Yolo 3 masks": ("Yolov3DetectionOutput", [(1, 18, 3, 4)],
                     "yolov3_detection_output_param { num_classes: 4 num_box: 2 biases: [1, 2] mask: 0 anchors_scale: 8 "
                     "mask_group_num: 1 }", "mask [0] is too short for 1 bottoms of num_box 2"),
    "ImResize": ("ImResize", [(1, 2, 5, 6)], "imresize_param { target_spatial_width: 0 }",
                 "state a factor over 0, or target_spatial_height and target_spatial_width"),
    "ImResize scales": ("ImResize", [(9, 2, 9, 8)], "imresize_param { scale_gap: 0.3 }",
                        "start_scale 1 and scale_gap 0.3 leave nothing of scale 8 of 9 in 9 pixels"),
    "Nms": ("Nms", [(1, 2, 9, 8)], "nms_param { num_parts: 3 }",
            "bottom [1, 2, 9, 8] must be N×C×H×W with num_parts 3 channels or more, and at least 3×3"),
    "MaskPooling": ("MaskPooling", [(2, 3, 4, 5), (2, 3, 4, 5)], "",
                    "needs feature maps N×C×H×W and masks N×1×H×W, not [2, 3, 4, 5] and [2, 3, 4, 5]"),
    "ROIAlign of others": ("ROIAlign", [(2, 3, 4, 5), (2, 5)], "roi_align_param { pooled_h: 2 pooled_w: 2 }",
                           "roi_align_param belongs to several forks whose layers differ (samples per bin, rounding, "
                           "borders); only cascade-rcnn's ROIAlign, which reads roi_pooling_param, is supported"),
    "MultiBoxLoss classes": ("MultiBoxLoss", MULTIBOX, "",
                             "num_classes is 0 or absent; state their number, with the background"),
    "MultiBoxLoss mining": ("MultiBoxLoss", MULTIBOX, "multibox_loss_param { num_classes: 2 do_neg_mining: false }",
                            "do_neg_mining false contradicts mining_type MAX_NEGATIVE"),
    "MultiBoxLoss shared": ("MultiBoxLoss", MULTIBOX, "multibox_loss_param { num_classes: 2 share_location: false }",
                            "mining needs share_location: true; set mining_type: NONE or share_location: true"),
    "MultiBoxLoss offsets": ("MultiBoxLoss", [(1, 8), *MULTIBOX[1:]], "multibox_loss_param { num_classes: 2 }",
                             "offsets [1, 8] must be N×12 for 3 default boxes"),
    "MultiBoxLoss truth": ("MultiBoxLoss", [*MULTIBOX[:3], (1, 2, 8)], "multibox_loss_param { num_classes: 2 }",
                           "true boxes [1, 2, 8] must be 1×1×G×8: image, label, instance, corners, difficult"),
}  # fmt: skip


@pytest.mark.parametrize(("type_", "shapes", "params", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(type_, shapes, params, message):
    with pytest.raises(LayerError) as caught:
        build(type_, shapes, params)
    assert str(caught.value) == f"op ({type_}): {message}"


@pytest.mark.parametrize("label", [0, 2])
def test_a_true_box_of_a_wrong_label_is_refused(label):
    truth = TRUTH.copy()
    truth[1, 1] = label
    net = build("MultiBoxLoss", MULTIBOX, "multibox_loss_param { num_classes: 2 }")
    with pytest.raises(LayerError) as caught:
        run(net, [draw(1, 1, 12), draw(2, 1, 6), PRIORS.reshape(1, 2, 12), truth[None, None]])
    assert str(caught.value) == (
        f"op (MultiBoxLoss): a true box of image 0 has label {label}; it must be one of the 2 classes and not "
        "background_label_id 0"
    )
