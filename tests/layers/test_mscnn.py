"""MS-CNN's layers against loops over single cells, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from layer_nets import draw, one_layer
from one_layer import gradients, run

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet

F32 = np.float32


def sized_overlap(a, b, mode="IOU"):
    """Return how much a box (x, y, w, h) overlaps another, whose last pixels are x + w - 1."""
    if min(*a[2:], *b[2:]) <= 0:
        return 0
    x1, y1 = max(a[0], b[0]), max(a[1], b[1])
    x2, y2 = min(a[0] + a[2] - 1, b[0] + b[2] - 1), min(a[1] + a[3] - 1, b[1] + b[3] - 1)
    common = 0 if x1 > x2 or y1 > y2 else (x2 - x1 + 1) * (y2 - y1 + 1)
    areas = a[2] * a[3], b[2] * b[3]
    return common / {"IOU": sum(areas) - common, "IOMU": min(areas), "IOFU": areas[0]}[mode]


# ---------------------------------------------------------------------- BoxOutput

# Fields and strides of maps; the second map has half the cells of the first.
FIELDS = [(24, 16, 4), (40, 30, 8)]
STATED = " ".join(f"field_w: {w} field_h: {h} downsample_rate: {rate}" for w, h, rate in FIELDS)


def maps(classes=3, images=2):
    return [draw(images, classes + 4, *side, seed=n) for n, side in enumerate([(5, 7), (3, 4)])]


def proposals(arrays, *, score=0.3, iou=0.5, mode="IOU", top=(0, 0), least=15, mean=(0,) * 4, std=(1,) * 4):
    """Return rows (image, corners, score) with field_whr 3 and field_xyr 2."""
    rows = []
    for n in range(len(arrays[0])):
        boxes = []
        for values, (field_w, field_h, rate) in zip(arrays, FIELDS, strict=True):
            h, w = values.shape[2:]
            for i, j in np.ndindex(h, w):
                scores, offsets = values[n, :-4, i, j], values[n, -4:, i, j].astype(float) * std + mean
                x, y = (min(max(v, -0.5), 0.5) for v in offsets[:2])
                width, height = (
                    side * math.exp(min(max(v, -math.log(3)), math.log(3)))
                    for side, v in zip((field_w, field_h), offsets[2:], strict=True)
                )
                left = max(x * field_w + (j + 0.5) * rate - width / 2, 0)
                upper = max(y * field_h + (i + 0.5) * rate - height / 2, 0)
                box = left, upper, min(width, w * rate - left), min(height, h * rate - upper)
                foreground = max(scores[1:]) - scores[0]
                if foreground >= score and min(box[2:]) >= least:
                    boxes.append((foreground, len(boxes), box))
        kept = []
        for foreground, _, box in sorted(boxes, reverse=True)[: top[0] or None]:
            if all(sized_overlap(better, box, mode) <= iou for _, better in kept):
                kept.append((foreground, box))
        rows += [[n, x, y, x + w, y + h, own] for own, (x, y, w, h) in kept[: top[1] or None]]
    return np.array(rows)


OUTPUT = f"fg_thr: 0.3 field_whr: 3 field_xyr: 2 {STATED}"
MEANS, DEVIATIONS = (0.1, -0.1, 0.2, 0), (0.5, 0.4, 0.3, 0.2)
REG = " ".join(f"bbox_mean: {m} bbox_std: {d}" for m, d in zip(MEANS, DEVIATIONS, strict=True))
REG = f"bbox_reg_param {{ {REG} }}"
CASES = {
    "plain": ("", "", {}),
    "of the smaller box": ("nms_type: 'IOMU' iou_thr: 0.9 min_size: 9", "", {"mode": "IOMU", "iou": 0.9, "least": 9}),
    "of the better box": ("nms_type: 'IOFU' iou_thr: 0.8", "", {"mode": "IOFU", "iou": 0.8}),
    "limits": ("max_nms_num: 9 max_post_nms_num: 4", "", {"top": (9, 4)}),
    "mean and deviation": ("", REG, {"mean": np.array(MEANS), "std": np.array(DEVIATIONS)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_box_output(case):
    text, more, options = CASES[case]
    arrays = maps()
    body = f'type: "BoxOutput" box_output_param {{ {OUTPUT} {text} }} {more}'
    net = one_layer(body, *(array.shape for array in arrays), tops=2)
    plain, scored = run(net, arrays)
    wanted = proposals(arrays, **options)
    assert len(wanted) > 3
    np.testing.assert_allclose(scored[:, :, 0, 0], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(plain[:, :, 0, 0], wanted[:, :5], rtol=1e-4, atol=1e-4)
    assert len(plain) <= net.shapes["top0"][0]


def test_of_equal_scores_the_later_cell_is_better():
    arrays = [np.zeros_like(array) for array in maps(images=1)]
    body = f'type: "BoxOutput" box_output_param {{ iou_thr: 0.2 max_nms_num: 3 min_size: 4 {STATED} }}'
    (plain,) = run(one_layer(body, *(array.shape for array in arrays)), arrays)
    assert plain[0, :, 0, 0].tolist() == [0, 8, 5, 32, 24]  # the last cell of the second map, clipped


def test_no_proposal():
    arrays = maps()
    body = f'type: "BoxOutput" box_output_param {{ fg_thr: 99 {STATED} }}'
    plain, scored = run(one_layer(body, *(array.shape for array in arrays), tops=2), arrays)
    assert plain[:, :, 0, 0].tolist() == [[0, 1, 1, 10, 10]]
    assert scored[:, :, 0, 0].tolist() == [[0] * 6]


# ---------------------------------------------------------------------- DetectionLoss and DetectionAccuracy

RATE, FIELD = 4, (12, 20)  # width and height
MAP = f"cls_num: 3 field_w: {FIELD[0]} field_h: {FIELD[1]} downsample_rate: {RATE}"
SHAPE = (2, 7, 4, 5)


def labels(classes=3):
    """Return labels with two cells of a class per image, some background of every overlap, and boxes beside the cells."""
    n, _, h, w = SHAPE
    rng = np.random.default_rng(5)
    found = np.zeros((n, 6, h, w), F32)
    found[:, 0, 1, 2], found[:, 0, 3, 0] = 1, classes - 1
    found[:, 0, 0, 4] = 2
    found[:, 5] = rng.uniform(0, 0.8, (n, h, w))
    i, j = np.mgrid[:h, :w]
    found[:, 1], found[:, 2] = (j + 0.5) * RATE + 2, (i + 0.5) * RATE - 3
    found[:, 3] = rng.uniform(1, 20, (n, h, w))
    found[:, 4] = rng.uniform(1, 30, (n, h, w))
    return found


def detection_loss(
    values, truth, *, classes=3, mode="bootstrap", multiple=4, below=0.5, smooth=True, by_overlap=False,
    balanced=False, agnostic=False, ignore=None, scale=1.0, mean=(0,) * 4, std=(1,) * 4,
):  # fmt: skip
    """Return both values of the top, and the bottom's gradient of the first, cell by cell."""
    n, _, h, w = values.shape
    cells = [(b, i, j) for b in range(n) for i in range(h) for j in range(w)]
    raw = {c: int(truth[c[0], 0, c[1], c[2]]) for c in cells}
    label = {c: min(raw[c], 1) if agnostic else raw[c] for c in cells}
    overlap = {c: float(truth[c[0], 5, c[1], c[2]]) for c in cells}
    taken = set()
    for b in range(n):
        free = [c for c in cells if c[0] == b and raw[c] == 0 and overlap[c] < below]
        if mode == "all":
            taken |= set(free)
            continue
        for k in range(1, classes):
            many = max(sum(label[c] == k for c in cells if c[0] == b) * multiple, 4)
            taken |= set(
                sorted(free, key=lambda c, k=k: (values[c[0], k, c[1], c[2]], c), reverse=True)[:many]
            )
    weight = {c: overlap[c] if by_overlap and raw[c] else 1.0 for c in cells}
    if balanced:
        true_sum, rest_sum = sum(weight[c] for c in cells if raw[c]), len(taken)
        count, share = sum(raw[c] > 0 for c in cells) + len(taken), 1 / (1 + multiple)
        for c in cells:
            weight[c] *= share * count / true_sum if raw[c] else (1 - share) * count / rest_sum
    gradient, score_loss, box_loss, scored, placed = np.zeros(values.shape), 0.0, 0.0, [], []
    for c in cells:
        b, i, j = c
        if (raw[c] or c in taken) and label[c] != ignore:
            scored.append(c)
            p = np.exp(values[b, :classes, i, j].astype(float))
            p /= p.sum()
            score_loss -= math.log(p[label[c]]) * weight[c]
            p[label[c]] -= 1
            gradient[b, :classes, i, j] = p * weight[c]
        if raw[c] and raw[c] != ignore:
            placed.append(c)
            x, y, width, height = truth[b, 1:5, i, j].astype(float)
            wanted = [
                (x - (j + 0.5) * RATE) / FIELD[0],
                (y - (i + 0.5) * RATE) / FIELD[1],
                math.log(max(width, 2) / FIELD[0]),
                math.log(max(height, 2) / FIELD[1]),
            ]
            for k in range(4):
                pair = slice(0, 2) if k < 2 else slice(2, 4)
                middle, spread = np.mean(mean[pair]), math.sqrt(np.prod(std[pair]))
                reach = 1 / 2 if k < 2 else math.log(2)
                own = min(
                    max(values[b, classes + k, i, j], (-reach - middle) / spread), (reach - middle) / spread
                )
                d = own - (wanted[k] - mean[k]) / std[k]
                linear = smooth and abs(d) >= 1
                box_loss += abs(d) - 0.5 if linear else d * d / 2
                gradient[b, classes + k, i, j] = math.copysign(1, d) if linear else d
    score_loss, box_loss = score_loss / max(len(scored), 1), scale * box_loss / max(4 * len(placed), 1)
    gradient[:, :classes] /= max(len(scored), 1)
    gradient[:, classes:] *= scale / max(4 * len(placed), 1)
    return [score_loss + box_loss, box_loss], gradient


LOSSES = {
    "bootstrap": (
        "sample_mode: 'bootstrap' bg_threshold: 0.4 bg_multiple: 2",
        "",
        {"below": 0.4, "multiple": 2},
    ),
    "all": (
        "sample_mode: 'all' bb_smooth: false lambda: 0.5",
        "",
        {"mode": "all", "smooth": False, "scale": 0.5},
    ),
    "by overlap": ("sample_mode: 'all' iou_weighted: true", "", {"mode": "all", "by_overlap": True}),
    "balanced": (
        "sample_mode: 'bootstrap' pos_neg_weighted: true iou_weighted: true",
        "",
        {"balanced": True, "by_overlap": True},
    ),
    "ignored": ("sample_mode: 'all'", "loss_param { ignore_label: 2 }", {"mode": "all", "ignore": 2}),
    "mean and deviation": (
        "sample_mode: 'all'",
        REG,
        {"mode": "all", "mean": np.array(MEANS), "std": np.array(DEVIATIONS)},
    ),
}


@pytest.mark.parametrize("case", LOSSES)
def test_detection_loss(case):
    text, more, options = LOSSES[case]
    values, truth = draw(*SHAPE) * 2, labels()
    body = f'type: "DetectionLoss" detection_loss_param {{ {MAP} {text} }} {more}'
    net = one_layer(body, SHAPE, truth.shape)
    wanted, slope = detection_loss(values, truth, **options)
    np.testing.assert_allclose(run(net, [values, truth])[0], np.reshape(wanted, (1, 1, 1, 2)), rtol=1e-5)
    # Caffe scales by the first value of the top's gradient; both are the loss weight.
    given = np.full((1, 1, 1, 2), 3, F32)
    np.testing.assert_allclose(gradients(net, [values, truth], given)[0], 3 * slope, rtol=1e-4, atol=1e-6)


def test_objectness_has_one_class():
    values, truth = draw(2, 6, 4, 5), labels()
    text = (
        MAP.replace("cls_num: 3", "cls_num: 2") + " objectness: true sample_mode: 'bootstrap' bg_multiple: 1"
    )
    net = one_layer(f'type: "DetectionLoss" detection_loss_param {{ {text} }}', values.shape, truth.shape)
    wanted, _ = detection_loss(values, truth, classes=2, multiple=1, agnostic=True)
    np.testing.assert_allclose(run(net, [values, truth])[0].flatten(), wanted, rtol=1e-5)


@pytest.mark.parametrize("mode", ["random", "mixture"])
def test_drawn_negatives(mode):
    """Each draw takes some of the background, of which none has an overlap from the threshold on."""
    values, truth = draw(*SHAPE), labels()
    values[:, :3] = 0  # each cell costs log 3, so that only the number of cells differs, which the mean hides
    net = one_layer(
        f'type: "DetectionLoss" detection_loss_param {{ {MAP} sample_mode: "{mode}" }}', SHAPE, truth.shape
    )
    wanted, _ = detection_loss(values, truth, mode="all")
    np.testing.assert_allclose(run(net, [values, truth])[0].flatten(), wanted, rtol=1e-5)
    values[:, 0][truth[:, 5] >= 0.5] = 50  # of no cell that may be drawn
    values[:, 0][truth[:, 0] > 0] = 0
    np.testing.assert_allclose(run(net, [values, truth])[0].flatten(), wanted, rtol=1e-5)


def accuracies(values, truth, top=1, below=0.5, ignore=None):
    right, right_true, shared = [], [], []
    for b, i, j in np.ndindex(*values.shape[:1], *values.shape[2:]):
        label = int(truth[b, 0, i, j])
        order = sorted(
            range(3), key=lambda k, at=(b, i, j): (values[at[0], k, at[1], at[2]], k), reverse=True
        )
        if label != ignore and (label or truth[b, 5, i, j] < below):
            right.append(label in order[:top])
            right_true += [label in order[:top]] if label else []
        if label and label != ignore:
            x, y = (min(max(v, -0.25), 0.25) for v in values[b, 3:5, i, j].astype(float))
            w, h = (
                math.exp(min(max(v, -math.log(2)), math.log(2))) for v in values[b, 5:7, i, j].astype(float)
            )
            w, h = w * FIELD[0], h * FIELD[1]
            x, y = x * FIELD[0] + (j + 0.5) * RATE, y * FIELD[1] + (i + 0.5) * RATE
            own = truth[b, 1:5, i, j].astype(float)
            true = own[0] - own[2] / 2, own[1] - own[3] / 2, *own[2:]
            shared.append(sized_overlap((x - w / 2, y - h / 2, w, h), true))
    return [np.mean(v) if v else -1 for v in (right, right_true, shared)]


ACCURACIES = {
    "plain": ("", "", {}),
    "top": ("top_k: 2 bg_threshold: 0.3", "", {"top": 2, "below": 0.3}),
    "ignored": ("", "loss_param { ignore_label: 1 }", {"ignore": 1}),
}


@pytest.mark.parametrize("case", ACCURACIES)
def test_detection_accuracy(case):
    text, more, options = ACCURACIES[case]
    values, truth = draw(*SHAPE, seed=2), labels()
    values[0, :3, 1, 2] = 0.5  # equal scores: the last class is the best
    body = f'type: "DetectionAccuracy" detection_accuracy_param {{ {MAP} {text} }} {more}'
    first, second = run(one_layer(body, SHAPE, truth.shape, tops=2), [values, truth])
    wanted = accuracies(values, truth, **options)
    np.testing.assert_allclose(first.flatten(), wanted[:2], rtol=1e-5)
    np.testing.assert_allclose(second.flatten(), wanted[2:], rtol=1e-4)


def test_accuracy_without_a_true_class():
    body = f'type: "DetectionAccuracy" detection_accuracy_param {{ {MAP} bg_threshold: 0 }}'
    tops = run(one_layer(body, SHAPE, (2, 6, 4, 5), tops=2), [draw(*SHAPE), np.zeros((2, 6, 4, 5), F32)])
    assert [top.flatten().tolist() for top in tops] == [[-1, -1], [-1]]


# ---------------------------------------------------------------------- ProposalTarget and BboxAccuracy

REGIONS = F32(
    [
        [0, 10, 10, 49, 59],
        [0, 12, 8, 47, 60],
        [1, 100, 20, 160, 90],
        [1, 0, 0, 30, 30],
        [0, 80, 80, 99, 99],
        [0, 30, 30, 69, 79],
    ]
)
TRUTH = F32(
    [
        [0, 11, 9, 50, 61, 2, 0],
        [1, 101, 22, 158, 92, 1, 0],
        [0, 82, 78, 100, 98, 1, 1],
        [-1, 0, 0, 9, 9, 9, 0],
    ]
)


def as_sized(rows):
    return [(x1, y1, x2 - x1 + 1, y2 - y1 + 1) for x1, y1, x2, y2 in np.asarray(rows, float)]


def sampled(regions, truth, *, lower=0.0, upper=0.5, classes=3, reg=(0, 1), most=None, more=False):
    """Return the tops but the weights of samples, where nothing is drawn."""
    mean, std = reg
    truth = [row for row in truth if row[0] >= 0]
    boxes = [*regions.tolist(), *(list(row[:5]) for row in truth)]
    found, background, rest = [], [], []
    for box in boxes:
        own = as_sized([box[1:5]])[0]
        pairs = [
            (sized_overlap(own, as_sized([t[1:5]])[0]), -g) for g, t in enumerate(truth) if t[0] == box[0]
        ]
        best, g = max(pairs, default=(0, 1))
        if best >= 0.5:
            found += [(box, own, -g, best)] if not truth[-g][6] else []
        else:
            (background if lower <= best < upper else rest).append((box, own, -g, best))
    fill = rest[: most - len(found) - len(background)] if more else []
    tops = [[], [], [], [], []]
    for n, (box, own, g, best) in enumerate([*found, *background, *fill]):
        label = int(truth[g][5]) if n < len(found) else 0
        target, weight, matched = np.zeros((classes, 4)), np.zeros((classes, 4)), [0] * 6
        if label:
            x, y, w, h = as_sized([truth[g][1:5]])[0]
            moved = [
                (x + w / 2 - own[0] - own[2] / 2) / own[2],
                (y + h / 2 - own[1] - own[3] / 2) / own[3],
                math.log(w / own[2]),
                math.log(h / own[3]),
            ]
            target[min(label, classes - 1)], weight[min(label, classes - 1)] = (
                (np.array(moved) - mean) / std,
                1,
            )
            matched = [label, *truth[g][1:5], best]
        values = box, [label], target.flatten(), weight.flatten(), matched
        for top, value in zip(tops, values, strict=True):
            top.append(value)
    return [np.array(top) for top in tops]


TARGET = "cls_num: 3 num_img_per_batch: 2 img_width: 200 img_height: 100"
STATISTICS = (np.array(MEANS), np.array(DEVIATIONS))
TARGETS = {
    "all": ("batch_size: -1 bg_thr_lw: 0", "", {}),
    "of some overlap": ("batch_size: -1 bg_thr_lw: 0.1 bg_thr_hg: 0.4", "", {"lower": 0.1, "upper": 0.4}),
    "filled up": ("batch_size: 7 fg_fraction: 1", "", {"lower": 0.1, "most": 7, "more": True}),
    "not filled up": ("batch_size: 7 fg_fraction: 1 pickup_discard: false", "", {"lower": 0.1}),
    "mean and deviation": ("batch_size: -1 bg_thr_lw: 0", REG, {"reg": STATISTICS}),
    "two classes": ("batch_size: -1 bg_thr_lw: 0", "bbox_reg_param { cls_aware: false }", {"classes": 2}),
}


@pytest.mark.parametrize("case", TARGETS)
def test_proposal_target(case):
    text, more, options = TARGETS[case]
    body = f'type: "ProposalTarget" proposal_target_param {{ {TARGET} {text} }} {more}'
    net = one_layer(body, REGIONS.shape, TRUTH.shape, tops=7, phase="TRAIN")
    rois, label, target, inside, outside, matched, weights = (
        top[:, :, 0, 0] for top in run(net, [REGIONS, TRUTH])
    )
    wanted = sampled(REGIONS, TRUTH, **options)
    assert 0 < (wanted[1] > 0).sum() < len(wanted[1])
    for found, expected in zip((rois, label, target, inside, matched), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(inside, outside)
    assert len(rois) <= net.shapes["top0"][0]
    share, true = (
        1.0 if "fraction" in text else 0.25,
        label[:, 0] > 0,
    )  # the samples' weights: of both kinds a share
    np.testing.assert_allclose(weights[true].sum(), share * len(label), rtol=1e-5)
    np.testing.assert_allclose(weights[~true].sum(), (1 - share) * len(label), rtol=1e-5, atol=1e-6)


def test_drawn_regions():
    """With too many regions a part is drawn: at most the share of those with a label, and the background."""
    text = f"{TARGET} batch_size: 4 fg_fraction: 0.5 bg_thr_lw: 0"
    net = one_layer(
        f'type: "ProposalTarget" proposal_target_param {{ {text} }}', REGIONS.shape, TRUTH.shape, tops=6
    )
    every = sampled(REGIONS, TRUTH)
    drawn = set()
    for _ in range(8):
        rois, label = run(net, [REGIONS, TRUTH])[:2]
        assert (label[:, 0, 0, 0] > 0).tolist() == [True, True, False, False]
        rows = [tuple(row) for row in rois[:, :, 0, 0].tolist()]
        assert set(rows) <= {tuple(row) for row in every[0].tolist()}
        drawn |= set(rows[:2])
    assert len(drawn) > 2


def test_a_region_is_drawn_where_none_is_left():
    text = f"{TARGET} batch_size: -1 append_gtbox: false bg_thr_lw: 0.4"
    regions = F32([[0, 0, 0, 3, 3]])
    net = one_layer(f'type: "ProposalTarget" proposal_target_param {{ {text} }}', (1, 5), TRUTH.shape, tops=6)
    rois, label = run(net, [regions, TRUTH])[:2]
    image, x1, y1, x2, y2 = rois[0, :, 0, 0]
    assert rois.shape == (1, 5, 1, 1)
    assert label.flatten().tolist() == [0]
    assert image in (0, 1)
    assert 0 <= x1 < x2
    assert 0 <= y1 < y2
    assert min(x2 - x1, y2 - y1) >= 31


def test_bbox_accuracy():
    _, _, _, _, matched = sampled(REGIONS, TRUTH)
    regions = sampled(REGIONS, TRUTH)[0]
    offsets = draw(len(regions), 12) / 4
    net = one_layer(f'type: "BboxAccuracy" {REG}', offsets.shape, regions.shape, matched.shape, tops=2)
    after, before = run(net, [offsets, F32(regions), F32(matched)])
    pairs = []
    for own, region, true in zip(offsets.astype(float), regions, matched, strict=True):
        if true[0] > 0 and true[5] <= 0.975:
            x, y, w, h = own[4 * int(true[0]) :][:4] * STATISTICS[1] + STATISTICS[0]
            box, wanted = as_sized([region[1:]])[0], as_sized([true[1:5]])[0]
            size = box[2] * math.exp(w), box[3] * math.exp(h)
            low = (
                x * box[2] + box[0] + box[2] / 2 - size[0] / 2,
                y * box[3] + box[1] + box[3] / 2 - size[1] / 2,
            )
            pairs.append((sized_overlap((*low, *size), wanted), sized_overlap(box, wanted)))
    assert len(pairs) == 3
    np.testing.assert_allclose([after.item(), before.item()], np.mean(pairs, 0), rtol=1e-4)
    tops = run(net, [offsets, F32(regions), np.zeros_like(matched, F32)])
    assert [top.item() for top in tops] == [-1, -1]


# ---------------------------------------------------------------------- the data layer, and a training net's phases

DATA = """layer { name: "data" type: "ImageGtData" top: "data" top: "near" top: "far" top: "gt_boxes"
  transform_param { mirror: true mean_value: 104 }
  image_gt_data_param { source: "train.txt" batch_size: 2 coord_num: 4 resize_width: 640 resize_height: 480
    crop_width: 512 crop_height: 480 downsample_rate: 8 downsample_rate: 64 field_w: 40 field_w: 320
    field_h: 40 field_h: 320 fg_threshold: 0.5 min_scale: 40 shuffle: true output_gt_boxes: true } }
layer { name: "s" type: "Silence" bottom: "data" bottom: "near" bottom: "far" bottom: "gt_boxes" }"""


def test_image_gt_data():
    net = CaffeNet(load_graph(parse_net(DATA), phase="TRAIN"))
    shapes = [net.shapes[name] for name in ("data", "near", "far", "gt_boxes")]
    # 480 / 64 = 7.5 is rounded, as the poolings round up.
    assert shapes == [(2, 3, 480, 512), (2, 6, 60, 64), (2, 6, 8, 8), (1, 7, 1, 1)]
    with pytest.raises(LayerError, match=r"the size of 'data' is known only from its source; give its shape"):
        CaffeNet(load_graph(parse_net(DATA.replace("batch_size: 2", "")), phase="TRAIN"))


PAIR = [SHAPE, (2, 6, 4, 5)]
ROWS = [(6, 5), (4, 7)]
REFUSED = {
    "output count": (
        "BoxOutput",
        [SHAPE],
        f"box_output_param {{ {STATED} }}",
        "states 2 field_w for 1 bottoms",
    ),
    "output channels": (
        "BoxOutput",
        [(2, 5, 4, 3)] * 2,
        f"box_output_param {{ {STATED} }}",
        "at least 2 classes",
    ),
    "output mode": (
        "BoxOutput",
        [SHAPE] * 2,
        f"box_output_param {{ {STATED} nms_type: 'SOFT' }}",
        "'SOFT' is not supported; use IOU, IOMU, IOFU",
    ),
    "output ratio": (
        "BoxOutput",
        [SHAPE] * 2,
        f"box_output_param {{ {STATED} field_whr: 0.5 }}",
        "field_whr 0.5 must be at least 1",
    ),
    "yolo": (
        "DetectionLoss",
        PAIR,
        "detection_loss_param { side: 7 num_class: 20 }",
        r"side is that of YOLO 1's loss \(yeahkun/caffe-yolo\), which is not implemented",
    ),
    "field": (
        "DetectionLoss",
        PAIR,
        "detection_loss_param { cls_num: 3 }",
        "field_w is 0 or absent; state it",
    ),
    "weight": (
        "DetectionLoss",
        PAIR,
        f"detection_loss_param {{ {MAP} lambda: much }}",
        "detection_loss_param.lambda 'much' is not a number",
    ),
    "coordinates": (
        "DetectionLoss",
        PAIR,
        f"detection_loss_param {{ {MAP} coord_num: 5 }}",
        "coord_num 5 must be 4",
    ),
    "channels": (
        "DetectionLoss",
        [(2, 8, 4, 5), (2, 6, 4, 5)],
        f"detection_loss_param {{ {MAP} }}",
        r"must be N×7×H×W and N×6×H×W",
    ),
    "one class": (
        "DetectionLoss",
        PAIR,
        f"detection_loss_param {{ {MAP} objectness: true }}",
        "objectness takes cls_num 2, not 3",
    ),
    "top": (
        "DetectionAccuracy",
        PAIR,
        f"detection_accuracy_param {{ {MAP} top_k: 4 }}",
        "top_k 4 must be 1 to cls_num, 3",
    ),
    "labels": (
        "DetectionAccuracy",
        [SHAPE, (2, 5, 4, 5)],
        f"detection_accuracy_param {{ {MAP} }}",
        "must be N×7×H×W and N×6×H×W",
    ),
    "thresholds": (
        "ProposalTarget",
        ROWS,
        f"proposal_target_param {{ {TARGET} fg_thr: 0.4 }}",
        "fg_thr 0.4 must not be under bg_thr_hg 0.5",
    ),
    "batch": (
        "ProposalTarget",
        ROWS,
        f"proposal_target_param {{ {TARGET} batch_size: 0 }}",
        "batch_size 0 must be over 0, or -1",
    ),
    "size": (
        "ProposalTarget",
        ROWS,
        "proposal_target_param { cls_num: 2 }",
        "img_width 0 and img_height 0 must be over 32",
    ),
    "regions": (
        "ProposalTarget",
        [(6, 4), (4, 7)],
        f"proposal_target_param {{ {TARGET} }}",
        r"regions \[6, 4\] must be R×5",
    ),
    "accuracy": ("BboxAccuracy", [(6, 12), (6, 5), (5, 6)], "", r"true boxes \[5, 6\] must be R×6"),
}
TOPS = {"BoxOutput": 1, "DetectionLoss": 1, "DetectionAccuracy": 1, "ProposalTarget": 6, "BboxAccuracy": 1}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    type_, shapes, params, message = REFUSED[case]
    with pytest.raises(LayerError, match=message):
        one_layer(f'type: "{type_}" {params}', *shapes, tops=TOPS[type_])


def test_refused_values():
    net = one_layer(f'type: "DetectionLoss" detection_loss_param {{ {MAP} }}', *PAIR)
    truth = labels()
    truth[0, 0, 0, 0] = 3
    with pytest.raises(LayerError, match="label 3 is out of range; it must be from 0 to 2"):
        run(net, [draw(*SHAPE), truth])
    net = one_layer(f'type: "ProposalTarget" proposal_target_param {{ {TARGET} }}', *ROWS, tops=6)
    wrong = TRUTH.copy()
    wrong[0, 5] = 3
    with pytest.raises(LayerError, match=r"a true box's label . is out of range; it must be from 1 to 2"):
        run(net, [REGIONS, wrong])
    wrong = REGIONS.copy()
    wrong[0, 0] = 2
    with pytest.raises(LayerError, match=r"an image's number .* is out of range; it must be from 0 to 1"):
        run(net, [wrong, TRUTH])
