"""The Python layers that train Faster R-CNN: targets against a slow formula where nothing is drawn, and refusals."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError


def net(module: str, layer: str, param_str: str, shapes: list[tuple[int, ...]], tops: int) -> str:
    lines = []
    for index, shape in enumerate(shapes):
        dims = " ".join(f"dim: {length}" for length in shape)
        lines.append(
            f'layer {{ name: "i{index}" type: "Input" top: "i{index}" input_param {{ shape {{ {dims} }} }} }}'
        )
    bottoms = " ".join(f'bottom: "i{index}"' for index in range(len(shapes)))
    names = " ".join(f'top: "t{index}"' for index in range(tops))
    param = f'python_param {{ module: "{module}" layer: "{layer}" param_str: "{param_str}" }}'
    lines.append(f'layer {{ name: "op" type: "Python" {bottoms} {names} {param} }}')
    return "\n".join(lines)


def overlap(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def offsets(box, true) -> list[float]:
    w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
    tw, th = true[2] - true[0] + 1, true[3] - true[1] + 1
    dx = (true[0] + 0.5 * tw - box[0] - 0.5 * w) / w
    dy = (true[1] + 0.5 * th - box[1] - 0.5 * h) / h
    return [dx, dy, log(tw / w), log(th / h)]


def test_anchor_targets():
    height, width, stride = 5, 7, 16
    text = net(
        *("rpn.anchor_target_layer", "AnchorTargetLayer", "{'feat_stride': 16, 'scales': [1, 2]}"),
        [(1, 12, height, width), (2, 5), (1, 3), (1, 3, 80, 112)],
        4,
    )
    true = [(8.0, 6.0, 40.0, 30.0), (60.0, 20.0, 90.0, 55.0)]
    given = [
        np.zeros((1, 12, height, width)),
        [(*box, 3.0) for box in true],
        [(80, 112, 1)],
        np.zeros((1, 3, 80, 112)),
    ]
    arrays = {f"i{index}": torch.tensor(np.array(value, np.float32)) for index, value in enumerate(given)}
    found = ir.load_net(parse_net(text), phase="TRAIN")(arrays)

    # Anchors of base 16: widths and heights rounded, then scaled, around (7.5, 7.5).
    anchors = []
    for w, h in ((23, 12), (16, 16), (11, 22)):
        for scale in (1, 2):
            sides = ((w * scale - 1) / 2, (h * scale - 1) / 2)
            anchors.append((7.5 - sides[0], 7.5 - sides[1], 7.5 + sides[0], 7.5 + sides[1]))
    labels = np.full((6, height, width), -1.0)
    targets, inner = np.zeros((6, 4, height, width)), np.zeros((6, 4, height, width))
    table = {}
    for a, anchor in enumerate(anchors):
        for y in range(height):
            for x in range(width):
                box = [edge + shift * stride for edge, shift in zip(anchor, (x, y, x, y), strict=True)]
                if min(box) >= 0 and box[2] < 112 and box[3] < 80:
                    table[a, y, x] = (box, [overlap(box, other) for other in true])
    most = [max(values[index] for _, values in table.values()) for index in (0, 1)]
    for place, (box, values) in table.items():
        best = int(np.argmax(values))
        if max(values) < 0.3:
            labels[place] = 0
        if max(values) >= 0.7 or any(value == top for value, top in zip(values, most, strict=True)):
            labels[place] = 1
            inner[place[0], :, place[1], place[2]] = 1
        targets[place[0], :, place[1], place[2]] = offsets(box, true[best])
    counted = (labels >= 0).sum()
    assert 0 < (labels == 1).sum() < 128
    assert counted < 256  # so that nothing is drawn
    np.testing.assert_array_equal(found["t0"][0, 0], labels.reshape(6 * height, width))
    np.testing.assert_allclose(found["t1"][0], targets.reshape(24, height, width), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["t2"][0], inner.reshape(24, height, width))
    outer = np.repeat((labels >= 0)[:, None] / counted, 4, 1).reshape(24, height, width)
    np.testing.assert_allclose(found["t3"][0], outer, rtol=1e-5)


def test_proposal_targets():
    text = net(*("rpn.proposal_target_layer", "ProposalTargetLayer", "'num_classes': 4"), [(3, 5), (2, 5)], 5)
    rois = [(0, 0, 0, 30, 20), (0, 50, 50, 70, 80), (0, 5, 5, 12, 9)]
    true = [(2, 1, 30, 22, 3), (52, 48, 70, 79, 1)]
    arrays = {"i0": torch.tensor(rois, dtype=torch.float32), "i1": torch.tensor(true, dtype=torch.float32)}
    found = [top.numpy() for top in ir.load_net(parse_net(text), phase="TRAIN")(arrays).values()]
    # Two regions and the true boxes overlap one by a half or more; the third region is the background.
    kept = [rois[0], rois[1], (0, *true[0][:4]), (0, *true[1][:4]), rois[2]]
    labels = [3, 1, 3, 1, 0]
    np.testing.assert_array_equal(found[0], np.array(kept, np.float32))
    np.testing.assert_array_equal(found[1], labels)
    wanted, weights = np.zeros((5, 16)), np.zeros((5, 16))
    for row, (roi, label) in enumerate(zip(kept, labels, strict=True)):
        if label:
            box = true[0] if label == 3 else true[1]
            weights[row, 4 * label : 4 * label + 4] = 1
            wanted[row, 4 * label : 4 * label + 4] = np.array(offsets(roi[1:], box)) / (0.1, 0.1, 0.2, 0.2)
    np.testing.assert_allclose(found[2], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[3], weights)
    np.testing.assert_array_equal(found[4], weights)


@pytest.mark.parametrize("mined", [False, True], ids=["drawn", "mined"])
def test_ssh_anchor_targets(mined):
    """Positive from an overlap of 0.5 and 64 at most; scores of a fifth bottom select the hardest."""
    height, width = 40, 60
    shapes = [(1, 4, height, width), (1, 5), (1, 3), (1, 3, 80, 120), *[(1, 4, height, width)] * mined]
    text = net(
        "SSH.layers.anchor_target_layer",
        *(
            "AnchorTargetLayer",
            "{'feat_stride': 2, 'scales': [2, 3], 'ratios': [1,], 'allowed_border': 512}",
            shapes,
        ),
        4,
    )
    true = (20.0, 20.0, 75.0, 68.0)
    scores = np.random.default_rng(3).uniform(0, 1, shapes[0]).astype(np.float32)
    given = [np.zeros(shapes[0]), [(*true, 1.0)], [(80, 120, 1)], np.zeros(shapes[3]), scores]
    arrays = {
        f"i{index}": torch.tensor(np.array(value, np.float32))
        for index, value in enumerate(given[: len(shapes)])
    }
    found = [top.numpy() for top in ir.load_net(parse_net(text), phase="TRAIN")(arrays).values()]
    positive, negative = {}, {}
    for a, side in enumerate((32, 48)):
        for y in range(height):
            for x in range(width):
                low, high = 7.5 - (side - 1) / 2, 7.5 + (side - 1) / 2
                value = overlap((low + 2 * x, low + 2 * y, high + 2 * x, high + 2 * y), true)
                hard = scores[0, 2 + a, y, x]
                if value >= 0.5:
                    positive[a, y, x] = hard
                elif value < 0.3:
                    negative[a, y, x] = -hard
    labels = found[0].reshape(2, height, width)
    assert len(positive) > 64 and len(negative) > 192
    assert ((labels == 1).sum(), (labels == 0).sum()) == (64, 192)
    for label, candidates, count in ((1, positive, 64), (0, negative, 192)):
        chosen = set(zip(*np.nonzero(labels == label), strict=True))
        if mined:
            assert chosen == set(sorted(candidates, key=candidates.get)[:count])
        else:
            assert chosen < set(candidates)
    np.testing.assert_allclose(found[3].max(), 1 / 256)


def test_ssh_takes_all_anchors_where_none_lies_inside():
    shapes = [(1, 2, 1, 2), (1, 5), (1, 3), (1, 3, 16, 32)]
    text = net(
        "SSH.layers.anchor_target_layer",
        "AnchorTargetLayer",
        "{'feat_stride': 16, 'scales': [4], 'ratios': [1]}",
        shapes,
        4,
    )
    given = [np.zeros(shapes[0]), [(0, 0, 15, 15, 1)], [(16, 32, 1)], np.zeros(shapes[3])]
    arrays = {f"i{index}": torch.tensor(np.array(value, np.float32)) for index, value in enumerate(given)}
    labels = ir.load_net(parse_net(text), phase="TRAIN")(arrays)["t0"]
    assert labels.flatten().tolist() == [0, 0]


@pytest.mark.parametrize("phase", ["TEST", "TRAIN"])
def test_ssh_proposals(phase):
    """TEST keeps the 1000 best of any size; TRAIN keeps those of 4 pixels or more that overlap none by over 0.3."""
    shapes = [(1, 4, 20, 30), (1, 8, 20, 30), (1, 3)]
    settings = "{'feat_stride': 8, 'scales': [1, 2], 'ratios': [1,]}"
    text = net("SSH.layers.proposal_layer", "ProposalLayer", settings, shapes, 2)
    random = np.random.default_rng(5)
    scores, deltas = random.uniform(0, 1, shapes[0]), random.normal(0, 0.3, shapes[1])
    deltas[0, 2, :4] = -3  # boxes of 16 pixels get less than one wide
    given = [scores, deltas, [(160, 240, 1)]]
    arrays = {f"i{index}": torch.tensor(np.array(value, np.float32)) for index, value in enumerate(given)}
    rois, kept_scores = (top.numpy() for top in ir.load_net(parse_net(text), phase=phase)(arrays).values())
    boxes = []
    for y in range(20):
        for x in range(30):
            for a, side in enumerate((16, 32)):
                dx, dy, dw, dh = deltas[0, 4 * a : 4 * a + 4, y, x]
                cx, cy = 8 * x + 8 + dx * side, 8 * y + 8 + dy * side
                w, h = side * np.exp(dw), side * np.exp(dh)
                box = np.clip([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 0, [239, 159, 239, 159])
                boxes.append((scores[0, 2 + a, y, x], box))
    if phase == "TRAIN":
        boxes = [(s, box) for s, box in boxes if min(box[2:] - box[:2] + 1) >= 4]
    boxes = sorted(boxes, key=lambda pair: -pair[0])[:1000]
    if phase == "TRAIN":
        kept = []
        for score, box in boxes:
            if all(overlap(box, other) <= 0.3 for _, other in kept):
                kept.append((score, box))
        boxes = kept[:300]
    assert rois.shape == (len(boxes), 5) and kept_scores.shape == (len(boxes), 1)
    np.testing.assert_allclose(kept_scores[:, 0], [score for score, _ in boxes], rtol=1e-6)
    np.testing.assert_allclose(rois[:, 1:], [box for _, box in boxes], rtol=1e-4, atol=1e-3)


def test_many_candidates_are_sampled():
    text = net(
        *("rpn.proposal_target_layer", "ProposalTargetLayer", "'num_classes': 4"), [(400, 5), (1, 5)], 5
    )
    random = np.random.default_rng(1)
    low = random.uniform(0, 90, (400, 2))
    rois = np.concatenate([np.zeros((400, 1)), low, low + random.uniform(5, 60, (400, 2))], 1).astype(
        np.float32
    )
    rois[:60, 1:] = (10, 10, 60, 50)
    arrays = {"i0": torch.from_numpy(rois), "i1": torch.tensor([[10.0, 10, 60, 50, 2]])}
    loaded = ir.load_net(parse_net(text), phase="TRAIN")
    labels = loaded(arrays)["t1"].numpy()
    assert labels.shape == loaded.shapes["t1"] == (128,)
    assert labels.tolist() == [2] * 32 + [0] * 96


TRAINING = """
layer { name: "d" type: "Python" top: "data" top: "im_info" top: "gt_boxes" python_param {
  module: "roi_data_layer.layer" layer: "RoIDataLayer" param_str: "'num_classes': 21" } }
layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { kernel_size: 16 stride: 16 } }
"""


def test_the_data_layer_feeds_the_net():
    found = audit(parse_net(TRAINING), phase="TRAIN")
    assert not found.problems
    assert found.inputs == {"data": (1, 3, 600, 1000), "im_info": (1, 3), "gt_boxes": (1, 5)}
    assert found.layers[0].note == "the data layer of py-faster-rcnn: its tops are inputs"
    loaded = ir.load_net(parse_net(TRAINING), phase="TRAIN", input_shapes={"data": (1, 3, 64, 80)})
    assert loaded.shapes["p"] == (1, 3, 4, 5)


SCORES, TRUTH, INFO, IMAGE = (1, 18, 3, 4), (2, 5), (1, 3), (1, 3, 48, 64)
ANCHORS = ("rpn.anchor_target_layer", "AnchorTargetLayer")
REGIONS = ("rpn.proposal_target_layer", "ProposalTargetLayer")
MINED = [SCORES, TRUTH, INFO, IMAGE]
SSH_SETTING = ("AnchorTargetLayer", "{'feat_stride': 16, 'colour': 1}")
REFUSED = {
    "stride": (
        net(*ANCHORS, "'feat_stride': 0", [SCORES, TRUTH, INFO, IMAGE], 4),
        "op (Python): param_str: feat_stride must be an integer over 0, as in 'feat_stride': 16",
    ),
    "scales": (
        net(*ANCHORS, "{'feat_stride': 16, 'scales': 8}", [SCORES, TRUTH, INFO, IMAGE], 4),
        "op (Python): param_str: scales must be a list of numbers over 0, not 8",
    ),
    "unknown setting": (
        net(*ANCHORS, "{'feat_stride': 16, 'ratios': [1]}", [SCORES, TRUTH, INFO, IMAGE], 4),
        "op (Python): param_str: ratios is unknown; known are feat_stride, scales, allowed_border",
    ),
    "unknown setting of SSH": (
        net("SSH.layers.anchor_target_layer", *SSH_SETTING, [SCORES, TRUTH, INFO, IMAGE], 4),
        "op (Python): param_str: colour is unknown; known are feat_stride, scales, allowed_border, ratios, base_size, "
        "positive_overlap",
    ),
    "SSH's scores": (
        net("SSH.layers.anchor_target_layer", *ANCHORS[1:], "'feat_stride': 16", [*MINED, (1, 4, 3, 4)], 4),
        "op (Python): the fifth bottom [1, 4, 3, 4] must hold two scores for each of 9 anchors",
    ),
    "SSH's overlap": (
        net(
            *("SSH.layers.anchor_target_layer", "AnchorTargetLayer"),
            *("{'feat_stride': 16, 'positive_overlap': 'x'}", MINED, 4),
        ),
        "op (Python): param_str: positive_overlap must be a number, not x",
    ),
    "two images": (
        net(*ANCHORS, "'feat_stride': 16", [(2, 18, 3, 4), TRUTH, INFO, IMAGE], 4),
        "op (Python): scores [2, 18, 3, 4] must be 1×C×H×W: one image at a time",
    ),
    "true boxes": (
        net(*REGIONS, "'num_classes': 4", [(3, 5), (2, 4)], 5),
        "op (Python): true boxes [2, 4] must have five values each",
    ),
    "no classes": (
        net(*REGIONS, "", [(3, 5), (2, 5)], 5),
        "op (Python): param_str: num_classes must be an integer over 0, as in 'num_classes': 16",
    ),
    "unknown top": (
        TRAINING.replace("im_info", "size"),
        "d (Python): top 'size' is not one of data, im_info, gt_boxes, rois, labels, bbox_targets, bbox_inside_weights, "
        "bbox_outside_weights; give its shape (input_shapes={'size': (N, C, H, W)})",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(text, message):
    with pytest.raises(IlgnetError) as caught:
        ir.load_net(parse_net(text), phase="TRAIN")
    assert str(caught.value) == message
