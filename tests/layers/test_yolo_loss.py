"""YOLO's losses against loops over single values, written from the fork's rules, their gradients, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, build, gradients, layer_text, run

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.layers.yolo_loss import iou_slopes
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet

F32 = np.float32
ANCHORS = [(1.5, 1.0), (0.8, 2.0), (3.0, 2.5), (0.5, 0.6), (4.0, 1.2)]
PIXELS = [(10, 14), (23, 27), (37, 58), (81, 82)]
CLASSES = 3


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def labels_of(*images, rows=30):
    top = np.zeros((len(images), 1, rows, 5), F32)
    for image, boxes in enumerate(images):
        for row, box in enumerate(boxes):
            top[image, 0, row] = box
    return top


# Two true boxes in one cell, one that ends the list of those that excuse (x 0), one image without any.
LABELS = labels_of(
    [(1, 0.3, 0.6, 0.35, 0.4), (2, 0.32, 0.61, 0.3, 0.45), (0, 0.9, 0.1, 0.15, 0.5)],
    [(2, 0.0, 0.5, 0.2, 0.2), (1, 0.7, 0.2, 0.6, 0.25)],
    [],
)


def iou(a, b):
    w = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    h = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    common = w * h if w >= 0 and h >= 0 else 0
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def giou(a, b):
    hull_w = max(a[0] + a[2] / 2, b[0] + b[2] / 2) - min(a[0] - a[2] / 2, b[0] - b[2] / 2)
    hull_h = max(a[1] + a[3] / 2, b[1] + b[3] / 2) - min(a[1] - a[3] / 2, b[1] - b[3] / 2)
    value = iou(a, b)
    union = (a[2] * a[3] + b[2] * b[3]) / (1 + value)
    return value - (hull_w * hull_h - union) / (hull_w * hull_h)


def excuses(rows):
    for row in rows:
        if row[1] == 0:
            return
        yield row[1:]


def wanted(rows):
    for row in rows:
        if row[3] == 0:
            return
        yield int(row[0]), row[1:]


def region(x, labels, *, rescore=True, match=True, thresh=0.2, burn=True):
    """Return loss and gradient of RegionLoss with scales object 5, noobject 0.5, class 2, coord 3."""
    n, _, side, _ = x.shape
    cells = x.astype(float).reshape(n, len(ANCHORS), 5 + CLASSES, side, side)
    delta = np.zeros_like(cells)

    def box_at(b, k, j, i):
        v = cells[b, k, :, j, i]
        size = [math.exp(v[2]) * ANCHORS[k][0] / side, math.exp(v[3]) * ANCHORS[k][1] / side]
        return [(i + sigmoid(v[0])) / side, (j + sigmoid(v[1])) / side, *size]

    def pull(b, k, j, i, target, scale):
        v, d = cells[b, k, :, j, i], delta[b, k, :, j, i]
        for axis, wish in ((0, target[0] * side - i), (1, target[1] * side - j)):
            p = sigmoid(v[axis])
            d[axis] = scale * (p - wish) * p * (1 - p)
        for axis in (0, 1):
            d[2 + axis] = scale * (v[2 + axis] - math.log(target[2 + axis] * side / ANCHORS[k][axis]))

    for b in range(n):
        rows = labels[b].reshape(-1, 5).astype(float)
        for k, anchor in enumerate(ANCHORS):
            for j in range(side):
                for i in range(side):
                    p = sigmoid(cells[b, k, 4, j, i])
                    best = max([iou(box_at(b, k, j, i), truth) for truth in excuses(rows)], default=0)
                    delta[b, k, 4, j, i] = 0 if best > thresh else 0.5 * p * p * (1 - p)
                    if burn:
                        own = [(i + 0.5) / side, (j + 0.5) / side, anchor[0] / side, anchor[1] / side]
                        pull(b, k, j, i, own, 0.01)
        for label, truth in wanted(rows):
            i, j = int(truth[0] * side), int(truth[1] * side)
            sizes = [
                [a / side for a in anchor] if match else box_at(b, k, j, i)[2:]
                for k, anchor in enumerate(ANCHORS)
            ]
            k = int(np.argmax([iou([0, 0, *size], [0, 0, *truth[2:]]) for size in sizes]))
            pull(b, k, j, i, truth, 3 if rescore else 3 * (2 - truth[2] * truth[3]))
            v, d, p = (
                cells[b, k, :, j, i],
                delta[b, k, :, j, i],
                sigmoid(cells[b, k, 4, j, i]),
            )
            d[4] = 5 * (p - (iou(box_at(b, k, j, i), truth) if rescore else 1)) * p * (1 - p)
            soft = np.exp(v[5:] - v[5:].max())
            d[5:] = 2 * (soft / soft.sum() - np.eye(CLASSES)[label])
    return (delta**2).sum() / n, delta.reshape(x.shape) / n


def slope_by_differences(function, box, axis):
    step = 1e-6
    near, far = list(box), list(box)
    near[axis], far[axis] = near[axis] - step, far[axis] + step
    return (function(far) - function(near)) / (2 * step)


def yolo3(x, labels, mask, *, logic=False, focal=False, measure="MSE", thresh=0.3):
    """Return loss and gradient of Yolov3 with anchors_scale 16, scales object 5, class 2, coord 3, iou_normalizer 0.5."""
    n, _, h, w = x.shape
    cells = x.astype(float).reshape(n, len(mask), 5 + CLASSES, h, w)
    p = 1 / (1 + np.exp(-cells))
    p[:, :, 2:4] = cells[:, :, 2:4]
    delta, apart = np.zeros_like(cells), 0.0

    def box_at(b, k, j, i):
        v, anchor = p[b, k, :, j, i], PIXELS[mask[k]]
        size = [math.exp(v[2]) * anchor[0] / (w * 16), math.exp(v[3]) * anchor[1] / (h * 16)]
        return [(i + v[0]) / w, (j + v[1]) / h, *size]

    for b in range(n):
        rows = labels[b].reshape(-1, 5).astype(float)
        for k, j, i in np.ndindex(len(mask), h, w):
            best = max([iou(box_at(b, k, j, i), truth) for truth in excuses(rows)], default=0)
            delta[b, k, 4, j, i] = 0 if best > thresh else p[b, k, 4, j, i]
        for label, truth in wanted(rows):
            i, j = int(truth[0] * w), int(truth[1] * h)
            sizes = [[0, 0, a / (w * 16), c / (h * 16)] for a, c in PIXELS]
            anchor = int(np.argmax([iou(size, [0, 0, *truth[2:]]) for size in sizes]))
            if anchor not in mask:
                continue
            k = mask.index(anchor)
            v, d = p[b, k, :, j, i], delta[b, k, :, j, i]
            if measure == "MSE":
                goal = [truth[0] * w - i, truth[1] * h - j]
                goal += [
                    math.log(truth[2] * w * 16 / PIXELS[anchor][0]),
                    math.log(truth[3] * h * 16 / PIXELS[anchor][1]),
                ]
                d[:4] = 3 * (2 - truth[2] * truth[3]) * (v[:4] - goal)
            else:
                box = box_at(b, k, j, i)
                apart += 1 - giou(box, truth)
                function = {"IOU": iou, "GIOU": giou}[measure]
                for axis in range(4):
                    slope = slope_by_differences(lambda at: function(at, truth), box, axis)  # noqa: B023
                    d[axis] = -0.5 * slope * (1 if axis < 2 else math.exp(v[axis]))
            d[4] = (v[4] - 1) * (5 if logic else 1)
            if d[5] != 0:
                d[5 + label] = v[5 + label] - 1
                continue
            q = v[5 + label]
            factor = -0.5 * (1 - q) * (2 * q * math.log(q) + q - 1) if focal else 1
            d[5:] = 2 * factor * (v[5:] - np.eye(CLASSES)[label])
    counted = delta if measure == "MSE" else delta[:, :, 4:]
    loss = ((counted**2).sum() + (0 if measure == "MSE" else 0.5 * apart)) / n
    if logic:
        used = p.copy()
        if measure != "MSE":
            used[:, :, :4] = cells[:, :, :4]
        factor = used * (1 - used)
        factor[:, :, 2:4] = 1
        delta = delta * factor
    return loss, delta.reshape(x.shape) / n


BIASES = " ".join(f"biases: {value}" for anchor in ANCHORS for value in anchor)
REGION = f"num_class: {CLASSES} object_scale: 5 noobject_scale: 0.5 class_scale: 2 coord_scale: 3 {BIASES}"
YOLO3 = (
    f"num_class: {CLASSES} num: 2 anchors_scale: 16 object_scale: 5 class_scale: 2 coord_scale: 3 thresh: 0.3 "
    "mask: 1 mask: 2 " + " ".join(f"biases: {value}" for anchor in PIXELS for value in anchor)
)
X = draw(3, len(ANCHORS) * (5 + CLASSES), 4, 4) * 0.7
X3 = draw(3, 2 * (5 + CLASSES), 3, 4, seed=1) * 0.7


def assert_loss(net, x, labels, expected):
    loss, slope = expected
    np.testing.assert_allclose(run(net, [x, labels])[0], F32(loss), rtol=1e-5)
    found = gradients(net, [x, labels], np.array(2, F32))
    np.testing.assert_allclose(found[0], 2 * slope, rtol=2e-4, atol=2e-6)
    assert found[1] is None


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("rescore: 0", {"rescore": False}),
        ("bias_match: 0 thresh: 0.6", {"match": False, "thresh": 0.6}),
        ("side: 13 softmax: 0 jitter: 0.3 absolute: 0 random: 0 class_map: 'x'", {}),
    ],
    ids=["defaults", "no rescore", "predicted sizes", "fields that the fork does not use"],
)
def test_region_loss(text, options):
    net = one_layer(f'type: "RegionLoss" region_loss_param {{ {REGION} {text} }}', X.shape, LABELS.shape)
    assert_loss(net, X, LABELS, region(X, LABELS, **options))


def test_region_loss_draws_boxes_to_anchors_for_12800_images():
    text = layer_text("RegionLoss", (X.shape, LABELS.shape), f"region_loss_param {{ {REGION} }}")
    net = CaffeNet(load_graph(parse_net(text)), seed=3, carry_state=True)
    net.layer("op").passes.fill_(12800 // 3 - 1)
    early, late = run(net, [X, LABELS])[0], run(net, [X, LABELS])[0]
    np.testing.assert_allclose(early, F32(region(X, LABELS)[0]), rtol=1e-5)
    np.testing.assert_allclose(late, F32(region(X, LABELS, burn=False)[0]), rtol=1e-5)
    assert not np.isclose(early, late)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("use_logic_gradient: true side: 13 noobject_scale: 9", {"logic": True}),
        ("use_focal_loss: true", {"focal": True}),
        ("iou_loss: IOU iou_normalizer: 0.5", {"measure": "IOU"}),
        ("iou_loss: GIOU iou_normalizer: 0.5 use_logic_gradient: true", {"measure": "GIOU", "logic": True}),
    ],
    ids=["defaults", "logic gradient", "focal", "iou", "giou"],
)
def test_yolov3(text, options):
    labels = LABELS if "iou" not in text else OVERLAPPING
    net = one_layer(f'type: "Yolov3" yolov3_param {{ {YOLO3} {text} }}', X3.shape, labels.shape)
    assert_loss(net, X3, labels, yolo3(X3, labels, [1, 2], **options))


# Boxes that overlap what is predicted for them: the fork's slopes of boxes that lie apart are no derivatives.
OVERLAPPING = labels_of(
    [(1, 0.3, 0.6, 0.7, 0.9), (2, 0.9, 0.1, 0.9, 0.95)], [(1, 0.6, 0.4, 0.5, 0.6)], [], rows=300
)


def test_boxes_that_lie_apart_have_the_slopes_of_darknet():
    # Common height and width are negative, and their product counts: worked by hand.
    box, truth = (0.2, 0.2, 0.2, 0.2), (0.7, 0.8, 0.2, 0.4)
    width, height = 0.3 - 0.6, 0.3 - 0.6
    union = 0.04 + 0.08 - width * height
    of_bottom = (union * width - width * height * (0.2 - width)) / union**2
    of_right = (union * height - width * height * (0.2 - height)) / union**2
    found = iou_slopes(box, truth, False)
    np.testing.assert_allclose([found[1], found[3]], [of_bottom, of_right], rtol=1e-9)


def test_yolo_seg():
    x, labels = draw(2, 1, 3, 4), (draw(2, 3, 4, seed=1) > 0).astype(F32)
    net = one_layer(
        'type: "YoloSeg" yolo_seg_param { object_scale: 0.5 num_class: 0 }', x.shape, labels.shape
    )
    delta = 0.5 * (1 / (1 + np.exp(-x.astype(float))) - labels.reshape(x.shape))
    assert_all_uses(net, [x, labels], [F32((delta**2).sum() / 2)])
    np.testing.assert_allclose(gradients(net, [x, labels], np.array(3, F32))[0], 3 * delta / 2, rtol=1e-5)


TRUE = (2, 1, 30, 5)
MAP, MAP3, SEG = (2, 40, 4, 4), (2, 16, 3, 4), (2, 1, 3, 4)
REFUSED = {
    "not square": ("RegionLoss", (2, 40, 4, 3), TRUE, REGION, "must be square: the layer takes its width"),
    "channels": (
        "RegionLoss",
        (2, 39, 4, 4),
        TRUE,
        REGION,
        r"bottom \[2, 39, 4, 4\] must be N×40×H×W: num 5 × \(5 \+ 3 classes\)",
    ),
    "rows": ("RegionLoss", MAP, (2, 1, 20, 5), REGION, r"true boxes \[2, 1, 20, 5\] must be N×1×300×5"),
    "few biases": (
        "RegionLoss",
        MAP,
        TRUE,
        "num_class: 3 biases: 1 biases: 2",
        "biases has 2 values; state 10",
    ),
    "coords": ("RegionLoss", MAP, TRUE, f"{REGION} coords: 2", "coords 2 must be 4: x, y, width and height"),
    "no classes": ("Yolov3", MAP3, TRUE, "num_class: 0", "num_class 0 and num 5 must be over 0"),
    "mask": (
        "Yolov3",
        MAP3,
        TRUE,
        "num_class: 3 num: 2 mask: 1 biases: 3 biases: 4",
        r"mask \[1\] must name 2 of the 1 anchors in biases",
    ),
    "normalizer": (
        "Yolov3",
        MAP3,
        TRUE,
        f"{YOLO3} iou_loss: GIOU",
        "iou_loss GIOU needs iou_normalizer, .*; state it",
    ),
    "odd biases": (
        "Yolov3",
        MAP3,
        TRUE,
        f"{YOLO3} biases: 9",
        "must state a width and a height over 0 per anchor",
    ),
    "scale": ("Yolov3", MAP3, TRUE, YOLO3.replace("scale: 16", "scale: 0"), "anchors_scale 0 must be over 0"),
    "no scale": ("YoloSeg", SEG, SEG, "", "object_scale is absent; state it"),
    "counts": ("YoloSeg", SEG, (2, 1, 3, 5), "object_scale: 1", "differ in their number of values"),
}
MESSAGES = {"RegionLoss": "region_loss_param", "Yolov3": "yolov3_param", "YoloSeg": "yolo_seg_param"}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    type_, *shapes, params, message = REFUSED[case]
    with pytest.raises(LayerError, match=message):
        build(type_, shapes, f"{MESSAGES[type_]} {{ {params} }}")


@pytest.mark.parametrize(
    "box", [(3, 0.5, 0.5, 0.1, 0.1), (0, 1.0, 0.5, 0.1, 0.1), (0, 0.5, 0.5, 0.1, 0.0), (-1, 0.5, 0.5, 0.1, 0.1)]
)  # fmt: skip
def test_true_boxes_out_of_range_are_refused(box):
    net = one_layer(f'type: "Yolov3" yolov3_param {{ {YOLO3} }}', (1, 16, 3, 4), (1, 1, 30, 5))
    with pytest.raises(LayerError, match=r"true box .* must be a class under 3, a centre from 0 to below 1"):
        net(in0=torch.zeros(1, 16, 3, 4), in1=torch.from_numpy(labels_of([box])))
