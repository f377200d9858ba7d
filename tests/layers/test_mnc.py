"""The Python layers of the multi-task network cascades against loops over MNC's rules, and what they refuse."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, run, run_onnx, run_source

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError

F32 = np.float32


def python_layer(module, layer, settings=""):
    return f'python_param {{ module: "pylayer.{module}" layer: "{layer}" param_str: "{settings}" }}'


def layer(module, name, settings, shapes, phase="TRAIN", tops=1):
    return one_layer(
        f'type: "Python" {python_layer(module, name, settings)}', *shapes, phase=phase, tops=tops
    )


def built(text, arrays, phase="TRAIN", tops=1):
    module, name, settings = text
    return layer(module, name, settings, [array.shape for array in arrays], phase, tops)


# ---------------------------------------------------------------------- MNC's rules, box by box


def overlap(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    if w <= 0 or h <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return w * h / (sum(areas) - w * h)


def offsets(box, true):
    w, h, tw, th = (pair[1] - pair[0] + 1 for one in (box, true) for pair in (one[::2], one[1::2]))
    dx, dy = ((true[a] + 0.5 * t - box[a] - 0.5 * s) / s for a, s, t in ((0, w, tw), (1, h, th)))
    return [dx / 0.1, dy / 0.1, math.log(tw / w) / 0.2, math.log(th / h) / 0.2]


def moved(box, delta):
    w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
    x, y = box[0] + w / 2 + delta[0] * w, box[1] + h / 2 + delta[1] * h
    w, h = w * math.exp(delta[2]), h * math.exp(delta[3])
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def clip(box, info):
    return [min(max(value, 0), bound - 1) for value, bound in zip(box, (info[1], info[0]) * 2, strict=True)]


def is_inside(box, info):
    return min(box[:2]) >= 0 and box[2] <= info[1] - 1 and box[3] <= info[0] - 1


def painted(box, own, mask):
    """Return the pixels of a box that the mask of the true box ``own`` covers."""
    whole = np.zeros((box[3] - box[1] + 1, box[2] - box[0] + 1), F32)
    for y, x in np.ndindex(*whole.shape):
        row, column = y + box[1] - own[1], x + box[0] - own[0]
        if 0 <= row <= own[3] - own[1] and 0 <= column <= own[2] - own[0]:
            whole[y, x] = mask[row, column]
    return whole


def target_tops(regions, true, masks, sizes, scale, kept, classes):
    """Return rois, labels, targets, weights, masks, their weights and info of the kept rows: foreground, background."""
    rows = [*kept[0], *kept[1]]
    best = [int(np.argmax([overlap(region[1:], box) for box in true])) for region in regions]
    tops = {"rois": np.array([regions[row] for row in rows], F32), "labels": np.zeros(len(rows), F32)}
    for name in ("bbox_targets", "weights"):
        tops[name] = np.zeros((len(rows), 4 * classes), F32)
    for name in ("masks", "mask_weight"):
        tops[name] = np.zeros((len(rows), 1, 21, 21), F32)
    tops["info"] = np.full((len(rows), 12), -1, F32)
    for i, row in enumerate(kept[0]):
        which, label = best[row], int(true[best[row]][4])
        tops["labels"][i] = label
        tops["bbox_targets"][i, 4 * label : 4 * label + 4] = offsets(regions[row][1:], true[which])
        tops["weights"][i, 4 * label : 4 * label + 4] = 1
        box, own = ([round(v / scale) for v in corners] for corners in (regions[row][1:], true[which][:4]))
        h, w = (int(v) for v in sizes[which])
        tops["masks"][i] = cv2.resize(painted(box, own, masks[which, :h, :w]), (21, 21)) >= 0.4
        tops["mask_weight"][i] = 1
        tops["info"][i] = [which, h, w, label, *box, *own]
    return tops


# Two objects in an image of 120×160 pixels, which was enlarged by 2.
TRUE = F32([[20, 10, 80, 70, 3], [100, 40, 139, 99, 7]])
INFO = F32([[120, 160, 2]])
SIZES = F32([[31, 31], [31, 21]])
MASKS = np.zeros((2, 31, 33), F32)
MASKS[0, 3:31, :20] = 1
MASKS[1, ::2, 4:21] = 1


def test_proposal_targets():
    """Of an overlap from 0.5 they are the foreground, of one from 0.1 one part of the background, else the other."""
    rois = F32([
        [0, 18, 12, 83, 75], [0, 30, 10, 90, 60], [0, 60, 60, 120, 90], [0, 97, 45, 142, 96], [0, 0, 100, 30, 119],
        [0, 15, 5, 70, 60], [0, 80, 0, 110, 35],
    ])  # fmt: skip
    index = F32([[40, 3, 17, 99, 8, 21, 60]])
    text = ("proposal_target_layer", "ProposalTargetLayer", "{'num_classes': 9, 'bp_all': 1}")
    arrays = [rois, TRUE, INFO, MASKS, SIZES, index]
    regions = [*rois.tolist(), *([0, *box[:4]] for box in TRUE.tolist())]
    most = [max(overlap(region[1:], box) for box in TRUE.tolist()) for region in regions]
    kept = ([i for i, v in enumerate(most) if v >= 0.5], [i for i, v in enumerate(most) if v < 0.5])
    assert {2, 4, 6} <= set(kept[1]) and len(kept[0]) >= 5
    wanted = target_tops(regions, TRUE.tolist(), MASKS, SIZES, 2, kept, 9)
    net = built(text, arrays, tops=10)
    found = run(net, arrays)
    names = ("rois", "labels", "bbox_targets", "weights", "weights", "masks", "mask_weight", "info")
    for top, name in zip(found, names, strict=False):
        np.testing.assert_allclose(top, wanted[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert 0 < found[5].mean() < 1
    np.testing.assert_array_equal(found[8], [index[0, i] for i in kept[0] if i < 7])
    np.testing.assert_array_equal(found[9], index[0, kept[1]])
    diff = draw(*found[0].shape, seed=2)
    for stated, rows in (("1", [*kept[0], *kept[1]]), ("0", kept[0])):
        net = built((*text[:2], text[2].replace("'bp_all': 1", f"'bp_all': {stated}")), arrays, tops=10)
        inputs = {f"in{i}": torch.from_numpy(array) for i, array in enumerate(arrays)}
        inputs["in0"].requires_grad_()
        net(inputs)["top0"].backward(torch.from_numpy(diff))
        passed = np.zeros(rois.shape)
        for i, row in enumerate(rows):
            if row < 7:
                passed[row] = diff[i]
        np.testing.assert_allclose(inputs["in0"].grad, passed)
        inputs["in0"].grad = None


def test_many_regions_are_sampled():
    random = np.random.default_rng(1)
    low = random.uniform(0, 90, (400, 2))
    rois = np.concatenate([np.zeros((400, 1)), low, low + random.uniform(5, 40, (400, 2))], 1).astype(F32)
    rois[:60, 1:] = TRUE[0, :4]
    arrays = [rois, TRUE, INFO, MASKS, SIZES, np.arange(400, dtype=F32)[None]]
    net = built(("proposal_target_layer", "ProposalTargetLayer", "'num_classes': 9"), arrays, tops=10)
    found = run(net, arrays)
    most = [max(overlap(box, true) for true in TRUE) for box in found[0][:, 1:]]
    assert (len(found[1]), (found[1] > 0).sum()) == (64, 19)
    assert min(most[:19]) >= 0.5 and max(most[19:]) < 0.5
    # 85 % of 45 are of an overlap from 0.1.
    assert sum(value >= 0.1 for value in most[19:]) == 38
    assert len(found[8]) <= 19 and len(found[9]) == 45


def proposals(scores, deltas, info):
    """Return each anchor's number, corners, region, and whether both lie inside, best first, as far as they are kept."""
    found = []
    height, width = scores.shape[2:]
    for y, x, (a, sides) in (
        (y, x, pair) for y in range(height) for x in range(width) for pair in enumerate(ANCHORS)
    ):
        half = [(side - 1) / 2 for side in sides]
        anchor = [
            7.5 + 16 * x - half[0],
            7.5 + 16 * y - half[1],
            7.5 + 16 * x + half[0],
            7.5 + 16 * y + half[1],
        ]
        box = moved(anchor, deltas[0, 4 * a : 4 * a + 4, y, x].astype(float))
        cut = clip(box, info)
        if min(cut[2] - cut[0], cut[3] - cut[1]) + 1 >= 16 * info[2]:
            number = (y * width + x) * 9 + a
            found.append(
                (scores[0, 9 + a, y, x], number, sides, cut, is_inside(box, info) and is_inside(anchor, info))
            )
    kept = []
    for one in sorted(found, key=lambda row: -row[0]):
        if all(overlap(one[3], other[3]) <= 0.7 for other in kept):
            kept.append(one)
    return kept


ANCHORS = [(w * scale, h * scale) for w, h in ((23, 12), (16, 16), (11, 22)) for scale in (8, 16, 32)]
IMAGE = (224, 288, 1.5)


def test_proposals_in_training():
    """Regions, the numbers of their anchors, and the gradient that goes to the offsets of those inside the image."""
    scores, deltas = draw(1, 18, 14, 18), draw(1, 36, 14, 18, seed=1) * F32(0.2)
    kept = proposals(scores, deltas, IMAGE)[:300]
    arrays = [scores, deltas, F32([IMAGE])]
    text = ("proposal_layer", "ProposalLayer", "{'feat_stride': 16, 'use_clip': 1, 'clip_base': 2}")
    rois, index = run(built(text, arrays, tops=2), arrays)
    np.testing.assert_array_equal(index, [[one[1] for one in kept]])
    np.testing.assert_allclose(rois[:, 1:], [one[3] for one in kept], rtol=1e-4, atol=1e-3)
    diff = draw(len(kept), 5, seed=2) * F32(0.1)
    assert {one[4] for one in kept} == {True, False}
    for stated, limit in ((text[2], 0.5), ("'feat_stride': 16", math.inf)):
        wanted = np.zeros(deltas.shape)
        for row, (_, number, sides, _, inside) in zip(diff.astype(float), kept, strict=True):
            a, x, y = number % 9, number // 9 % 18, number // 9 // 18
            sides = [(side - 1) / 16 for side in sides]
            grown = [math.exp(deltas[0, 4 * a + 2 + axis, y, x]) * sides[axis] for axis in (0, 1)]
            if inside:
                parts = [value * size for value, size in zip(row[1:], (*sides, *grown), strict=True)]
                wanted[0, 4 * a : 4 * a + 4, y, x] = np.clip(parts, -limit, limit)
        net = built((*text[:2], stated), arrays, tops=2)
        inputs = {f"in{i}": torch.from_numpy(array) for i, array in enumerate(arrays)}
        inputs["in1"].requires_grad_()
        net(inputs)["top0"].backward(torch.from_numpy(diff))
        np.testing.assert_allclose(inputs["in1"].grad, wanted, rtol=1e-3, atol=1e-5)
        inputs["in1"].grad = None
    assert np.abs(wanted).max() > 0.5


def test_anchors_of_sampled_regions_have_their_labels():
    """The foreground's are 1 and the background's 0, inside the image only; all that count weigh the same."""
    shapes = [(1, 18, 14, 18), (1, 5), (1, 3), (1, 3, 224, 288)]
    arrays = [np.zeros(shapes[0], F32), F32([[100, 50, 200, 160, 4]]), F32([IMAGE])]
    plain = one_layer(
        'type: "Python" python_param { module: "rpn.anchor_target_layer" layer: "AnchorTargetLayer" '
        'param_str: "\'feat_stride\': 16" }', *shapes, phase="TRAIN", tops=4,
    )  # fmt: skip
    given = run(plain, [*arrays, np.zeros(shapes[3], F32)])
    ignored = [tuple(place) for place in np.argwhere(given[0].reshape(9, 14, 18) == -1)]
    boxes = {}
    for a, y, x in ignored:
        half = [(side - 1) / 2 for side in ANCHORS[a]]
        box = [7.5 + 16 * x - half[0], 7.5 + 16 * y - half[1], 7.5 + 16 * x + half[0], 7.5 + 16 * y + half[1]]
        boxes[a, y, x] = min(box[:2]) >= 0 and box[2] < 288 and box[3] < 224
    inside, outside = ([place for place in ignored if boxes[place] == state] for state in (True, False))
    chosen = inside[:3], [*inside[3:5], outside[0]]
    numbers = [F32([(y * 18 + x) * 9 + a for a, y, x in places]) for places in chosen]
    arrays += numbers
    found = run(
        built(("anchor_target_layer", "AnchorTargetLayer", "'feat_stride': 16"), arrays, tops=4), arrays
    )
    # The draw of the background is the same, as the generators start alike.
    labels = given[0].reshape(9, 14, 18).copy()
    for places, label in ((chosen[0], 1), (inside[3:5], 0)):
        for place in places:
            labels[place] = label
    np.testing.assert_array_equal(found[0].reshape(9, 14, 18), labels)
    outer = np.repeat((labels >= 0)[:, None] / (labels >= 0).sum(), 4, 1).reshape(36, 14, 18)
    np.testing.assert_allclose(found[3][0], outer, rtol=1e-5)
    np.testing.assert_array_equal(found[2][0], np.repeat(labels[:, None] == 1, 4, 1).reshape(36, 14, 18))


def test_mask_layer():
    x = draw(3, 441)
    assert_all_uses(built(("mask_layer", "MaskLayer", ""), [x], "TEST"), [x], [x.reshape(3, 1, 21, 21)])


def test_masks_in_training():
    """A mask has the label of its true box where they overlap by a half; others pass no gradient."""
    masks = np.random.default_rng(0).uniform(0, 0.3, (5, 21, 21)).astype(F32)
    masks[0, 2:, :14] += 0.6
    masks[1, :, 15:] += 0.6
    masks[2] += 0.5
    boxes = [(10, 5, 40, 35), (10, 5, 40, 35), (50, 20, 69, 49), (10, 5, 40, 35), (80, 80, 90, 90)]
    which = [0, 0, 1, None, 0]
    own = [tuple(round(float(v) / 2) for v in true[:4]) for true in TRUE]
    info = np.full((5, 12), -1, F32)
    wanted = []
    for i, (box, index) in enumerate(zip(boxes, which, strict=True)):
        if index is None:
            wanted.append(0)
            continue
        h, w = (int(v) for v in SIZES[index])
        info[i] = [index, h, w, TRUE[index, 4], *box, *own[index]]
        ours = cv2.resize(masks[i], (box[2] - box[0] + 1, box[3] - box[1] + 1)) >= 0.4
        true = painted(box, own[index], MASKS[index, :h, :w])
        both = (ours & (true > 0)).sum()
        either = ours.sum() + MASKS[index, :h, :w].sum() - both
        wanted.append(TRUE[index, 4] if both / either >= 0.5 else 0)
    assert wanted[0] == 3 and wanted[1] == 0
    arrays = [masks.reshape(5, 441), MASKS, info]
    net = built(("mask_layer", "MaskLayer", ""), arrays, tops=2)
    found = run(net, arrays)
    np.testing.assert_array_equal(found[0], masks[:, None])
    np.testing.assert_array_equal(found[1][:, 0], wanted)
    inputs = {f"in{i}": torch.from_numpy(array) for i, array in enumerate(arrays)}
    inputs["in0"].requires_grad_()
    diff = draw(5, 1, 21, 21, seed=3)
    net(inputs)["top0"].backward(torch.from_numpy(diff))
    passed = diff.reshape(5, 441) * (np.array(wanted)[:, None] > 0)
    np.testing.assert_array_equal(inputs["in0"].grad, passed)


def test_stage_bridge_layer():
    rois = F32([[0, 3, 5, 20, 12], [0, 1, 2, 9, 30], [0, 30, 1, 38, 22]])
    deltas, scores, info = draw(3, 8) * F32(0.5), draw(3, 2, seed=1), F32([[25, 40, 1.5]])
    arrays = [rois, deltas, scores, info]
    net = built(("stage_bridge_layer", "StageBridgeLayer", ""), arrays, "TEST")
    wanted = []
    for roi, delta, score in zip(rois.astype(float), deltas.astype(float), scores, strict=True):
        wanted.append([0, *clip(moved(roi[1:], delta[4 * int(score.argmax()) :]), info[0])])
    for use in (run, run_source, run_onnx):
        np.testing.assert_allclose(use(net, arrays)[0], wanted, rtol=1e-4, atol=1e-4)


def test_stage_bridge_in_training():
    """All regions of the next stage, those of an overlap from 0.5 first, with targets; and the fork's gradients."""
    rois = F32([
        [0, 18, 12, 83, 75], [0, 30, 10, 90, 60], [0, 60, 60, 120, 90], [0, 97, 45, 142, 96], [0, 0, 100, 30, 119],
    ])  # fmt: skip
    deltas, scores = draw(5, 84) * F32(0.1), draw(5, 21, seed=1)
    scores[2, 0] = 9  # the background is no candidate
    arrays = [rois, deltas, scores, TRUE, MASKS, INFO, SIZES]
    text = ("stage_bridge_layer", "StageBridgeLayer", "{'feat_stride': 16, 'use_clip': 1, 'clip_base': 8}")
    label = scores[:, 1:].argmax(1) + 1
    own = [delta[4 * k : 4 * k + 4] for delta, k in zip(deltas.astype(float), label, strict=True)]
    boxes = [moved(roi[1:], delta) for roi, delta in zip(rois.astype(float), own, strict=True)]
    inside = [is_inside(box, INFO[0]) for box in boxes]
    regions = [[0, *clip(box, INFO[0])] for box in (*boxes, *TRUE[:, :4].tolist())]
    most = [max(overlap(region[1:], box) for box in TRUE.tolist()) for region in regions]
    kept = ([i for i, v in enumerate(most) if v >= 0.5], [i for i, v in enumerate(most) if v < 0.5])
    assert all(kept) and set(inside) == {True, False}
    wanted = target_tops(regions, TRUE.tolist(), MASKS, SIZES, 2, kept, 21)
    net = built(text, arrays, tops=8)
    found = run(net, arrays)
    names = ("rois", "labels", "masks", "mask_weight", "info", "bbox_targets", "weights", "weights")
    for top, name in zip(found, names, strict=True):
        np.testing.assert_allclose(top, wanted[name], rtol=1e-3, atol=1e-3, err_msg=name)

    diff = draw(7, 5, seed=2)
    order = [*kept[0], *kept[1]]
    for stated, limit in ((text[2], 1 / 8), ("{'feat_stride': 16, 'use_clip': 0}", math.inf)):
        by_rois, by_deltas = np.zeros(rois.shape), np.zeros(deltas.shape)
        for row, i in enumerate(order):
            if i >= 5:
                continue
            x, y, w, h = diff[row, 1:].astype(float)
            grown = [math.exp(own[i][2]), math.exp(own[i][3])]
            by_rois[i] = [0, x, y, w * (own[i][0] + grown[0]), h * (own[i][1] + grown[1])]
            # As the fork has it: columns 2 - 0 and 3 - 1 of (image, x1, y1, x2, y2).
            wide, high = rois[i, 2] - rois[i, 0], rois[i, 3] - rois[i, 1]
            if inside[i]:
                parts = [x * wide / 16, y * high / 16, w * grown[0] * wide / 16, h * grown[1] * high / 16]
                by_deltas[i, 4 * label[i] : 4 * label[i] + 4] = np.clip(parts, -limit, limit)
        net = built((*text[:2], stated), arrays, tops=8)
        inputs = {f"in{i}": torch.from_numpy(array) for i, array in enumerate(arrays)}
        for name in ("in0", "in1"):
            inputs[name].requires_grad_()
        net(inputs)["top0"].backward(torch.from_numpy(diff))
        for name, value in (("in0", by_rois), ("in1", by_deltas)):
            np.testing.assert_allclose(inputs[name].grad, value, rtol=1e-4, atol=1e-5)
            inputs[name].grad = None


def test_the_proposal_layer_of_mnc_is_that_of_faster_rcnn_in_phase_test():
    arrays = [draw(1, 18, 3, 4), draw(1, 36, 3, 4, seed=1) * F32(0.2), F32([[48, 64, 1]])]
    mnc = built(
        ("proposal_layer", "ProposalLayer", "{'feat_stride': 16, 'gradient_scale': 1}"), arrays, "TEST"
    )
    plain = 'python_param { module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "{\'feat_stride\': 16}" }'
    found, wanted = (
        run(net, arrays)[0] for net in (mnc, one_layer(f'type: "Python" {plain}', *(a.shape for a in arrays)))
    )
    assert len(found) > 1
    np.testing.assert_array_equal(found, wanted)


DATA = """
layer { name: "d" type: "Python" %s python_param { module: "pylayer.%s" layer: "%s" param_str: "'num_classes': 21" } }
layer { name: "p" type: "Pooling" bottom: "a" top: "p" pooling_param { kernel_size: 16 stride: 16 } }
"""
OFFSETS, MASK = (1, 84), (1, 1, 21, 21)
FED = {
    "MNCDataLayer": [(1, 3, 600, 1000), (1, 3), (1, 5), (1, 21, 21), (1, 2)],
    "CFMDataLayer": [
        *((1, 3, 600, 1000), (1, 5), (1, 1, 14, 14), (1, 1), (1, 1)),
        *(OFFSETS, MASK, OFFSETS, OFFSETS, MASK),
    ],
}


@pytest.mark.parametrize(("name", "shapes"), FED.items(), ids=FED)
def test_data_layers(name, shapes):
    tops = "abcdefghij"[: len(shapes)]
    text = DATA % (" ".join(f'top: "{top}"' for top in tops), f"{name[:3].lower()}_data_layer", name)
    found = audit(parse_net(text), phase="TRAIN")
    assert not found.problems
    assert found.inputs == dict(zip(tops, shapes, strict=True))
    assert found.layers[0].note == "a data layer of MNC: its tops are inputs"


TARGETS = ("proposal_target_layer", "ProposalTargetLayer", "'num_classes': 9")
BRIDGE = ("stage_bridge_layer", "StageBridgeLayer")
BRIDGED = [(3, 5), (3, 84), (3, 21), (2, 5), (2, 31, 33), (1, 3), (2, 2)]
SHAPES = [(3, 5), (2, 5), (1, 3), (2, 31, 33), (2, 2), (1, 3)]
REFUSED = {
    "masks": (
        ("mask_layer", "MaskLayer", ""), [(3, 400)], "TEST", 1,
        "masks [3, 400] must have 21² = 441 values each",
    ),
    "masks without truth": (
        ("mask_layer", "MaskLayer", ""), [(3, 441)], "TRAIN", 2,
        "has 1 bottoms and 2 tops; in phase TRAIN give it 3 and 2",
    ),
    "rows of info": (
        ("mask_layer", "MaskLayer", ""), [(3, 441), (2, 31, 33), (2, 12)], "TRAIN", 2,
        "needs true masks G×H×W and a row of 12 for each of 3 masks, not [2, 31, 33] and [2, 12]",
    ),
    "scores": (
        (*BRIDGE, ""), [(3, 5), (3, 8), (3, 3), (1, 3)], "TEST", 1,
        "needs regions R×5, deltas R×4·classes and scores R×classes, not [3, 5], [3, 8] and [3, 3]",
    ),
    "bridge of the other phase": (
        (*BRIDGE, "{'feat_stride': 16, 'use_clip': 1}"), BRIDGED[:4], "TRAIN", 8,
        "has 4 bottoms and 8 tops; in phase TRAIN give it 7 and 8",
    ),
    "no stride": (
        (*BRIDGE, "'use_clip': 1"), BRIDGED, "TRAIN", 8,
        "param_str: feat_stride must be an integer over 0, as in 'feat_stride': 16",
    ),
    "no clip": ((*BRIDGE, "'feat_stride': 16"), BRIDGED, "TRAIN", 8, "param_str: use_clip is missing; state 0 or 1"),
    "base": (
        (*BRIDGE, "{'feat_stride': 16, 'use_clip': 1, 'clip_base': 0}"), BRIDGED, "TRAIN", 8,
        "param_str: clip_base must be a number over 0, not 0",
    ),
    "unknown": (
        (*BRIDGE, "{'feat_stride': 16, 'colour': 1}"), BRIDGED, "TRAIN", 8,
        "param_str: colour is unknown; known are feat_stride, use_clip, clip_base",
    ),
    "masks of the bridge": (
        (*BRIDGE, "{'feat_stride': 16, 'use_clip': 1}"), [*BRIDGED[:4], (2, 31), *BRIDGED[5:]], "TRAIN", 8,
        "needs true boxes G×5, masks G×H×W and their sizes G×2, not [2, 5], [2, 31] and [2, 2]",
    ),
    "anchors": (
        ("proposal_layer", "ProposalLayer", "{'feat_stride': 16, 'scales': [4]}"),
        [(1, 18, 3, 4), (1, 36, 3, 4), (1, 3)], "TEST", 1, "param_str: scales is not read by MNC's layer; remove it",
    ),
    "no index": (
        ("proposal_layer", "ProposalLayer", "'feat_stride': 16"), [(1, 18, 3, 4), (1, 36, 3, 4), (1, 3)], "TRAIN", 1,
        "has 1 tops; in phase TRAIN give it 2",
    ),
    "regions": (
        TARGETS, [(3, 5), *SHAPES[1:5], (1, 4)], "TRAIN", 10,
        "needs regions R×5 and their anchors 1×R, not [3, 5] and [1, 4]",
    ),
    "lists of anchors": (
        ("anchor_target_layer", "AnchorTargetLayer", "'feat_stride': 16"),
        [(1, 18, 3, 4), (2, 5), (1, 3), (1, 4), (3,)], "TRAIN", 4, "bottom [1, 4] must be a list of anchors",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "shapes", "phase", "tops", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(text, shapes, phase, tops, message):
    with pytest.raises(IlgnetError) as caught:
        layer(*text, shapes, phase, tops)
    assert str(caught.value) == f"op (Python): {message}"


ROIS, INDEX = F32([[0, 18, 12, 83, 75], [0, 1, 1, 9, 9]]), F32([[4, 5]])
VALUES = {
    "another image": (
        TARGETS, [ROIS + F32([[1, 0, 0, 0, 0]]), TRUE, INFO, MASKS, SIZES, INDEX], 10,
        "a region is of another image than 0; give one image at a time",
    ),
    "no true boxes": (
        TARGETS, [ROIS, TRUE[:0], INFO, MASKS[:0], SIZES[:0], INDEX], 10,
        "has no true boxes; give each image at least one",
    ),
    "label": (
        ("proposal_target_layer", "ProposalTargetLayer", "'num_classes': 7"), [ROIS, TRUE, INFO, MASKS, SIZES, INDEX], 10,
        "a true box's label 7 is out of range; it must be from 0 to 6",
    ),
    "short mask": (
        TARGETS, [ROIS, TRUE, INFO, MASKS, SIZES - F32([[5, 0], [0, 0]]), INDEX], 10,
        "a mask of 26×31 pixels does not cover its true box of 31×31; correct gt_masks, mask_info or gt_boxes",
    ),
    "mask's number": (
        ("mask_layer", "MaskLayer", ""), [np.ones((1, 441), F32), MASKS, np.full((1, 12), 2, F32)], 2,
        "a true mask's number 2 is out of range; it must be from 0 to 1",
    ),
    "no pixels": (
        ("mask_layer", "MaskLayer", ""),
        [np.ones((1, 441), F32), MASKS, F32([[0, 31, 31, 3, 5, 5, 4, 9, 5, 5, 9, 9]])], 2,
        "region [5, 5, 4, 9] of a mask has no pixels; correct gt_masks_info",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "arrays", "tops", "message"), VALUES.values(), ids=VALUES)
def test_refused_values(text, arrays, tops, message):
    net = built(text, arrays, tops=tops)
    with pytest.raises(IlgnetError) as caught:
        run(net, arrays)
    assert str(caught.value) == f"op (Python): {message}"
