"""R-FCN's losses per region and its choice of hard regions, against loops over regions, and their refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from layer_nets import draw
from one_layer import assert_all_uses, build, gradients

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError

F32 = np.float32
ONE = np.array(1, F32)


# ---------------------------------------------------------------------- losses

MODES = {
    "default": ("", lambda counted, all_, batch: counted),
    "valid": ("normalization: VALID", lambda counted, all_, batch: counted),
    "full": ("normalization: FULL", lambda counted, all_, batch: all_),
    "batch": ("normalization: BATCH_SIZE", lambda counted, all_, batch: batch),
    "none": ("normalization: NONE", lambda counted, all_, batch: 1),
    "fixed": ("normalization: PRE_FIXED pre_fixed_normalizer: 7", lambda counted, all_, batch: 7),
    "fixed under 1": ("normalization: PRE_FIXED pre_fixed_normalizer: 0.25", lambda counted, all_, batch: 1),
    "normalize": ("normalize: false", lambda counted, all_, batch: batch),
}
SHAPES = {
    "flat": ((5, 3), (5,)),
    "four axes": ((5, 3, 1, 1), (5, 1, 1, 1)),
    "maps": ((2, 3, 4, 5), (2, 1, 4, 5)),
}


@pytest.mark.parametrize(("text", "divisor"), MODES.values(), ids=MODES)
@pytest.mark.parametrize(("scores", "labels"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("tops", [1, 2, 3])
def test_softmax_loss(text, divisor, scores, labels, tops):
    x, y = draw(*scores), (np.arange(np.prod(labels)) % 3).astype(F32).reshape(labels)
    y.flat[1] = -1
    each, probabilities = np.zeros(labels), np.zeros(scores)
    n, _, *rest = scores
    for image in range(n):
        for place in np.ndindex(*rest):
            row = x[(image, slice(None), *place)].astype(np.float64)
            row = np.exp(row) / np.exp(row).sum()
            probabilities[(image, slice(None), *place)] = row
            at = np.ravel_multi_index((image, *place), (n, *rest))
            if y.flat[at] >= 0:
                each.flat[at] = -np.log(row[int(y.flat[at])])
    loss = each.sum() / divisor(y.size - 1, y.size, n)
    net = build("SoftmaxWithLossOHEM", [scores, labels], f"loss_param {{ ignore_label: -1 {text} }}", tops)
    expected = [np.asarray(loss, F32), probabilities.astype(F32), each.astype(F32)]
    assert_all_uses(net, [x, y], expected[:tops])


@pytest.mark.parametrize(("text", "divisor"), MODES.values(), ids=MODES)
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 1, 1), (2, 3, 4, 5)], ids=["flat", "four axes", "maps"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("tops", [1, 2])
def test_smooth_l1_loss(text, divisor, shape, weighted, tops):
    given = [draw(*shape, seed=seed) for seed in range(2)]
    weight = np.ones(shape)
    if weighted:
        given.append(draw(*shape, seed=3))
        weight = given[2].astype(np.float64)
    difference = weight * (given[0].astype(np.float64) - given[1])
    size = np.abs(difference)
    losses = np.where(size < 1, 0.5 * size**2, size - 0.5).sum(1, keepdims=True)
    normalizer = divisor(losses.size, losses.size, shape[0])
    four = (shape[0], 1, *shape[2:], 1, 1)[:4]
    expected = [np.asarray(losses.sum() / normalizer, F32), losses.reshape(four).astype(F32)]
    net = build("SmoothL1LossOHEM", [shape] * len(given), f"loss_param {{ {text} }}", tops)
    assert_all_uses(net, given, expected[:tops])
    if tops == 1:
        # The fork does not multiply by the weight a second time.
        slope = np.clip(difference, -1, 1) / normalizer
        found = gradients(net, given, ONE)
        np.testing.assert_allclose(found[0], slope, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[1], -slope, rtol=1e-4, atol=1e-6)


def test_smooth_l1_loss_takes_bottoms_without_the_trailing_axes():
    net = build("SmoothL1LossOHEM", [(5, 3, 1, 1), (5, 3), (5, 3)], tops=2)
    given = [draw(5, 3, 1, 1), draw(5, 3, seed=1), np.ones((5, 3), F32)]
    size = np.abs(given[0].reshape(5, 3) - given[1])
    losses = np.where(size < 1, 0.5 * size**2, size - 0.5).sum(1)
    assert_all_uses(net, given, [np.asarray(losses.sum() / 5, F32), losses.reshape(5, 1, 1, 1)])


# ---------------------------------------------------------------------- hard regions


def hard(images, losses, count):
    """Return whether each region is among the ``count`` largest losses of its image."""
    kept = np.zeros(len(losses), bool)
    for region in sorted(range(len(losses)), key=lambda region: -losses[region]):
        if sum(kept[other] and images[other] == images[region] for other in range(len(losses))) < count:
            kept[region] = True
    return kept


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("ignore", [-1, 255])
@pytest.mark.parametrize("axes", [(), (1, 1), (2, 3)], ids=["flat", "four axes", "maps"])
def test_hard_regions(count, ignore, axes):
    n, (h, w) = 7, axes or (1, 1)
    rng = np.random.default_rng(4)
    rois, weights = draw(n, 5, *axes), draw(n, 8, *axes, seed=1)
    losses, labels = draw(n, 1, *axes, seed=2), rng.integers(0, 4, (n, 1, *axes)).astype(F32)
    losses.flat[3] = losses.flat[0]  # of equal ones the first is kept
    rois[:, 0] = rng.integers(0, 3, (n, *axes))
    kept = hard(rois[:, 0].flatten(), losses.flatten(), count).reshape(n, 1, h, w)
    expected = [
        np.where(kept, labels.reshape(n, 1, h, w), ignore).astype(F32),
        np.where(kept, weights.reshape(n, 8, h, w), 0).astype(F32),
    ]
    text = f"box_annotator_ohem_param {{ roi_per_img: {count} ignore_label: {ignore} }}"
    given = [rois, losses if axes else losses[:, 0], labels if axes else labels[:, 0], weights]
    net = build("BoxAnnotatorOHEM", [array.shape for array in given], text, 2)
    assert_all_uses(net, given, expected)


HARD = "box_annotator_ohem_param { roi_per_img: 2 }"
FOUR = [(6, 5), (6,), (6,), (6, 8)]
REFUSED = {
    "no count": (
        "BoxAnnotatorOHEM",
        FOUR,
        "",
        2,
        "roi_per_img must be stated and over 0, as in roi_per_img: 128",
    ),
    "regions": (
        *("BoxAnnotatorOHEM", [(6, 4), *FOUR[1:]], HARD, 2),
        "regions [6, 4] must have five values each: their image and corners",
    ),
    "losses": (
        "BoxAnnotatorOHEM",
        [FOUR[0], (5,), *FOUR[2:]],
        HARD,
        2,
        "losses [5] do not fit the regions [6, 5]",
    ),
    "labels": (
        *("BoxAnnotatorOHEM", [*FOUR[:2], (6, 2), FOUR[3]], HARD, 2),
        "labels [6, 2] do not fit the regions [6, 5]",
    ),
    "weights": (
        *("BoxAnnotatorOHEM", [*FOUR[:3], (6, 8, 2)], HARD, 2),
        "weights [6, 8, 2] do not fit the regions [6, 5]",
    ),
    "targets": (
        *("SmoothL1LossOHEM", [(6, 4), (6, 8)], "", 1),
        "bottoms [6, 4] and [6, 8] differ; they take 1 to 4 axes, equally long",
    ),
    "label count": (
        *("SoftmaxWithLossOHEM", [(6, 4, 2), (6, 3)], "", 1),
        "has 18 labels [6, 3] for 12 predictions [6, 4, 2] along axis 1; give one label per prediction",
    ),
    "class weights": (
        *("SoftmaxWithLossOHEM", [(6, 4), (6,)], "loss_param { weight_by_label_freqs: true }", 1),
        "loss_param.weight_by_label_freqs is not supported; remove it if it does not matter",
    ),
}


@pytest.mark.parametrize(("type_", "shapes", "text", "tops", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(type_, shapes, text, tops, message):
    with pytest.raises(LayerError, match=re.escape(f"op ({type_}): {message}")):
        build(type_, shapes, text, tops)


# ---------------------------------------------------------------------- the end of R-FCN's training net

MINING = """
layer { name: "in" type: "Input" top: "maps" top: "boxes" top: "found" top: "true" input_param {
  shape { dim: 1 dim: 27 dim: 6 dim: 8 } shape { dim: 1 dim: 72 dim: 6 dim: 8 }
  shape { dim: 9 dim: 5 } shape { dim: 2 dim: 5 } } }
layer { name: "roi-data" type: "Python" bottom: "found" bottom: "true" top: "rois" top: "labels" top: "targets"
  top: "inside" top: "outside" python_param { module: "rpn.proposal_target_layer" layer: "ProposalTargetLayer"
  param_str: "'num_classes': 2" } }
layer { name: "cls" type: "PSROIPooling" bottom: "maps" bottom: "rois" top: "cls"
  psroi_pooling_param { spatial_scale: 0.0625 output_dim: 3 group_size: 3 } }
layer { name: "score" type: "Pooling" bottom: "cls" top: "score" pooling_param { pool: AVE kernel_size: 3 stride: 3 } }
layer { name: "loc" type: "PSROIPooling" bottom: "boxes" bottom: "rois" top: "loc"
  psroi_pooling_param { spatial_scale: 0.0625 output_dim: 8 group_size: 3 } }
layer { name: "box" type: "Pooling" bottom: "loc" top: "box" pooling_param { pool: AVE kernel_size: 3 stride: 3 } }
layer { name: "each_cls" type: "SoftmaxWithLossOHEM" bottom: "score" bottom: "labels" top: "t0" top: "t1"
  top: "each_cls" loss_weight: 0 loss_weight: 0 loss_weight: 0 propagate_down: false propagate_down: false }
layer { name: "each_box" type: "SmoothL1LossOHEM" bottom: "box" bottom: "targets" bottom: "inside" top: "t2"
  top: "each_box" loss_weight: 0 loss_weight: 0 }
layer { name: "each" type: "Eltwise" bottom: "each_cls" bottom: "each_box" top: "each" }
layer { name: "hard" type: "BoxAnnotatorOHEM" bottom: "rois" bottom: "each" bottom: "labels" bottom: "inside"
  top: "hard_labels" top: "hard_weights" box_annotator_ohem_param { roi_per_img: 4 ignore_label: -1 } }
layer { name: "silence" type: "Silence" bottom: "outside" bottom: "t0" bottom: "t1" bottom: "t2" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "hard_labels" top: "loss"
  loss_param { ignore_label: -1 } propagate_down: true propagate_down: false }
layer { name: "loss_box" type: "SmoothL1LossOHEM" bottom: "box" bottom: "targets" bottom: "hard_weights"
  top: "loss_box" loss_weight: 1 loss_param { normalization: PRE_FIXED pre_fixed_normalizer: 128 } }
"""


def test_a_training_net_mines_its_regions():
    assert not audit(parse_net(MINING), phase="TRAIN").problems
    net = ir.load_net(parse_net(MINING), phase="TRAIN")
    # Every region is taken, and the true boxes are regions too.
    assert net.shapes["labels"] == net.shapes["hard_labels"] == (11, 1, 1, 1)
    low = np.random.default_rng(0).uniform(0, 50, (9, 2))
    found = np.concatenate([np.zeros((9, 1)), low, low + 40], 1).astype(F32)
    true = F32([(2, 3, 40, 50, 2), (50, 20, 90, 60, 1)])
    given = {"maps": draw(1, 27, 6, 8), "boxes": draw(1, 72, 6, 8, seed=1), "found": found, "true": true}
    tops = net({name: torch.from_numpy(value) for name, value in given.items()})
    assert np.isfinite(tops["loss"].item()) and np.isfinite(tops["loss_box"].item())


def test_pooled_regions_are_mined_as_well():
    """A net with ROIPooling, whose scores have two axes, and R-FCN's layers, whose labels have four."""
    sizes = (("score", 3), ("box", 8))
    head = "".join(
        f'layer {{ name: "{top}" type: "InnerProduct" bottom: "pooled" top: "{top}" '
        f"inner_product_param {{ num_output: {count} }} }}"
        for top, count in sizes
    )
    pooled = (
        'layer { name: "pool" type: "ROIPooling" bottom: "maps" bottom: "rois" top: "pooled" '
        "roi_pooling_param { pooled_w: 3 pooled_h: 2 spatial_scale: 0.0625 } }"
    )
    start, end = MINING.index('layer { name: "cls"'), MINING.index('layer { name: "each_cls"')
    text = MINING[:start] + pooled + head + MINING[end:]
    assert not audit(parse_net(text), phase="TRAIN").problems
    net = ir.load_net(parse_net(text), phase="TRAIN")
    assert net.shapes["each_cls"] == net.shapes["each_box"] == net.shapes["hard_labels"] == (11, 1, 1, 1)


def test_two_classes_of_boxes_stand_for_all_objects():
    regions = MINING[: MINING.index('layer { name: "score"')]
    net = ir.load_net(parse_net(regions), phase="TRAIN")
    found = F32([(0, 0, 0, 30, 20), (0, 50, 50, 70, 80)])
    given = {
        "maps": draw(1, 27, 6, 8),
        "boxes": draw(1, 72, 6, 8),
        "true": F32([(2, 1, 30, 22, 20), (0, 0, 9, 9, 1)]),
    }
    tops = net({name: torch.from_numpy(value) for name, value in {**given, "found": found}.items()})
    inside = tops["inside"].numpy()
    assert inside.shape[1:] == (8, 1, 1)
    np.testing.assert_array_equal(inside[0, :, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1])
    assert tops["labels"].flatten().tolist().count(20) == 2
