"""Cascade R-CNN's proposals against loops over single boxes, and what its layers refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, run

from ilgnet_repro.errors import LayerError

F32 = np.float32
SMALL = {"fields": [(12, 20), (24, 16)], "stride": 4}
LARGE = {"fields": [(40, 30), (32, 48), (20, 20)], "stride": 8}


def groups(*maps):
    return " ".join(
        "box_group_param { "
        + " ".join(f"field_w: {w} field_h: {h}" for w, h in own["fields"])
        + f" stride: {own['stride']} }}"
        for own in maps
    )


def overlap(a, b, mode):
    """Return how much a worse box b overlaps a."""
    if a[2] < a[0] or a[3] < a[1] or b[2] < b[0] or b[3] < b[1]:
        return 0
    x1, y1, x2, y2 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    common = 0 if x1 > x2 or y1 >= y2 else (x2 - x1 + 1) * (y2 - y1 + 1)
    areas = [(v[2] - v[0] + 1) * (v[3] - v[1] + 1) for v in (a, b)]
    return common / {"IOU": sum(areas) - common, "IOMU": min(areas), "IOFU": areas[0]}[mode]


def proposals(
    maps, arrays, *, score=0.3, iou=0.5, mode="IOU", top=(0, 0), least=15, mean=(0,) * 4, std=(1,) * 4
):
    """Return rows (image, corners, score) with field_whr 3 and field_xyr 2."""
    images = len(arrays[0]) // len(maps[0]["fields"])
    rows = []
    for n in range(images):
        boxes = []
        for own, scores, offsets in zip(maps, arrays[::2], arrays[1::2], strict=True):
            h, w = scores.shape[2:]
            for k, (field_w, field_h) in enumerate(own["fields"]):
                at = n * len(own["fields"]) + k
                for i, j in np.ndindex(h, w):
                    foreground = F32(1) - scores[at, 0, i, j]
                    x, y, log_w, log_h = (offsets[at, :, i, j].astype(float) * std) + mean
                    x, y = (min(max(v, -0.5), 0.5) for v in (x, y))
                    log_w, log_h = (min(max(v, -math.log(3)), math.log(3)) for v in (log_w, log_h))
                    width, height = field_w * math.exp(log_w), field_h * math.exp(log_h)
                    left = x * field_w + (j + 0.5) * own["stride"] - width / 2
                    upper = y * field_h + (i + 0.5) * own["stride"] - height / 2
                    box = [max(left, 0), max(upper, 0), left + width - 1, upper + height - 1]
                    box[2:] = min(box[2], w * own["stride"]), min(box[3], h * own["stride"])
                    if foreground >= score and box[2] - box[0] + 1 >= least and box[3] - box[1] + 1 >= least:
                        boxes.append((foreground, box))
        boxes.sort(key=lambda one: -one[0])
        kept = []
        for foreground, box in boxes[: top[0] or None]:
            if all(overlap(better, box, mode) <= iou for _, better in kept):
                kept.append((foreground, box))
        rows += [[n, *box, foreground] for foreground, box in kept[: top[1] or None]]
    return rows


def bottoms(*maps, images=2):
    arrays = []
    for index, own in enumerate(maps):
        count, side = images * len(own["fields"]), (5, 7) if own is SMALL else (3, 4)
        arrays.append(1 / (1 + np.exp(draw(count, 3, *side, seed=index))).astype(F32))
        arrays.append(draw(count, 4, *side, seed=index + 9))
    return arrays


OUTPUT = "fg_thr: 0.3 field_whr: 3 field_xyr: 2"
CASES = {
    "one map": ((SMALL,), "", {}),
    "two maps": (
        (SMALL, LARGE),
        "nms_type: 'IOMU' iou_thr: 0.9 min_size: 20",
        {"mode": "IOMU", "iou": 0.9, "least": 20},
    ),
    "limits": ((LARGE,), "max_nms_num: 9 max_post_nms_num: 4", {"top": (9, 4)}),
    "of the better box": ((SMALL,), "nms_type: 'IOFU' iou_thr: 0.8", {"mode": "IOFU", "iou": 0.8}),
}


@pytest.mark.parametrize("case", CASES)
def test_box_group_output(case):
    maps, text, options = CASES[case]
    arrays = bottoms(*maps)
    body = f'type: "BoxGroupOutput" box_group_output_param {{ {OUTPUT} {text} {groups(*maps)} }}'
    net = one_layer(body, *(array.shape for array in arrays), tops=2)
    plain, scored = run(net, arrays)
    wanted = np.array(proposals(maps, arrays, **options))
    assert len(wanted) > 1
    np.testing.assert_allclose(scored[:, :, 0, 0], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(plain[:, :, 0, 0], wanted[:, :5], rtol=1e-4, atol=1e-4)
    assert len(plain) <= net.shapes["top0"][0]


MEANS, DEVIATIONS = (0.1, -0.1, 0.2, 0), (0.5, 0.4, 0.3, 0.2)
STATISTICS = {"mean": np.array(MEANS), "std": np.array(DEVIATIONS)}
STATED = [f"bbox_mean: {m} bbox_std: {d}" for m, d in zip(MEANS, DEVIATIONS, strict=True)]
REG = f"bbox_reg_param {{ {' '.join(STATED)} }}"


def test_offsets_have_a_mean_and_a_deviation():
    arrays = bottoms(SMALL)
    body = f'type: "BoxGroupOutput" box_group_output_param {{ {OUTPUT} {groups(SMALL)} }} {REG}'
    net = one_layer(body, *(array.shape for array in arrays))
    wanted = np.array(proposals([SMALL], arrays, **STATISTICS))[:, :5]
    np.testing.assert_allclose(run(net, arrays)[0][:, :, 0, 0], wanted, rtol=1e-4, atol=1e-4)


def test_no_proposal():
    arrays = bottoms(SMALL)
    body = f'type: "BoxGroupOutput" box_group_output_param {{ fg_thr: 1.5 {groups(SMALL)} }}'
    plain, scored = run(one_layer(body, *(array.shape for array in arrays), tops=2), arrays)
    assert plain[:, :, 0, 0].tolist() == [[0, 1, 1, 10, 10]]
    assert scored[:, :, 0, 0].tolist() == [[0] * 6]


BOXES = F32([[0, 3, 5, 20, 12], [1, 0, 2, 9, 30], [0, 30, 1, 38, 22], [1, 5, 5, 12, 9]])


def decoded(offsets, boxes, mean, std):
    rows = []
    for own, (image, x1, y1, x2, y2) in zip(offsets.astype(float), boxes.astype(float), strict=True):
        x, y, w, h = own[4:] * std + mean
        width, height = (x2 - x1 + 1) * math.exp(w), (y2 - y1 + 1) * math.exp(h)
        left = x * (x2 - x1 + 1) + (x1 + x2) / 2 - (width - 1) / 2
        upper = y * (y2 - y1 + 1) + (y1 + y2) / 2 - (height - 1) / 2
        rows.append([image, left, upper, left + width - 1, upper + height - 1])
    return np.array(rows)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1, 1)], ids=str)
def test_decode_bbox(shape):
    offsets = draw(4, 8)
    net = one_layer(f'type: "DecodeBBox" {REG}', offsets.shape, shape)
    wanted = decoded(offsets, BOXES, **STATISTICS).reshape(shape)
    assert_all_uses(net, [offsets, BOXES.reshape(shape)], [F32(wanted)])


def test_decode_bbox_leaves_out_boxes_in_training():
    offsets = draw(4, 8)
    offsets[1, 6:] = -9  # less than a pixel wide: turned inside out
    true = np.zeros((4, 6), F32)
    true[:, 5] = 0.2, 0.3, 0.99, 0.949
    net = one_layer('type: "DecodeBBox"', offsets.shape, BOXES.shape, true.shape, phase="TRAIN")
    wanted = decoded(offsets, BOXES, np.zeros(4), np.ones(4))[[0, 3]]
    np.testing.assert_allclose(run(net, [offsets, BOXES, true])[0][:, :, 0, 0], wanted, rtol=1e-4, atol=1e-4)
    true[:, 5] = 1
    with pytest.raises(LayerError, match="no box is left"):
        run(net, [offsets, BOXES, true])


PAIR, OTHER = [(4, 2, 5, 7), (4, 4, 5, 7)], [(3, 2, 5, 7), (3, 4, 5, 7)]
ONE = groups(SMALL)
REFUSED = {
    "bottoms": (PAIR, groups(SMALL, LARGE), "has 2 bottoms for 2 box_group_param"),
    "anchors": (OTHER, ONE, r"scores \[3, 2, 5, 7\] and offsets .* must be N·2 × classes"),
    "fields": (PAIR, "box_group_param { field_w: 2 stride: 4 }", "as many field_w as field_h"),
    "nms": (PAIR, f"nms_type: 'SOFT' {ONE}", "nms_type 'SOFT' is not supported; use IOU, IOMU or IOFU"),
    "ratio": (PAIR, f"field_whr: 0.5 {ONE}", "field_whr 0.5 must be at least 1"),
}
DECODED = {
    "means": ([(4, 8), (4, 5)], "bbox_reg_param { bbox_mean: 1 bbox_std: 1 }", "must have 4 values each"),
    "offsets": ([(4, 4), (4, 5)], "", r"needs offsets R×8 and boxes R×5, not \[4, 4\] and \[4, 5\]"),
    "counts": ([(4, 8), (3, 5)], "", "differ in their number of boxes"),
    "third": ([(4, 8), (4, 5), (4, 6)], "", "a third bottom is for phase TRAIN; remove it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_output_refused(case):
    shapes, params, message = REFUSED[case]
    with pytest.raises(LayerError, match=message):
        one_layer(f'type: "BoxGroupOutput" box_group_output_param {{ {params} }}', *shapes)


@pytest.mark.parametrize("case", DECODED)
def test_decoding_refused(case):
    shapes, params, message = DECODED[case]
    with pytest.raises(LayerError, match=message):
        one_layer(f'type: "DecodeBBox" {params}', *shapes)
