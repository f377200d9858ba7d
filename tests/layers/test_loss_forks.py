"""Losses and Accuracy of forks against loops over single rows, with the gradients of the forks, and their refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, build, gradients, run

from ilgnet_repro.errors import LayerError

F32 = np.float32
ONE = np.array(1, F32)


def softmax(row):
    power = np.exp(row.astype(np.float64) - row.max())
    return power / power.sum()


# ---------------------------------------------------------------------- metric learning


@pytest.mark.parametrize(
    "distance", ["", 'distance_type: "L2"', 'distance_type: "L1"'], ids=["none", "l2", "l1"]
)
@pytest.mark.parametrize("shape", [(6, 5), (6, 2, 3)], ids=["2d", "3d"])
def test_center_loss(distance, shape):
    x, labels = draw(*shape), F32([0, 2, 2, 1, 2, 0])
    centers = draw(4, int(np.prod(shape[1:])), seed=1)
    body = f'type: "CenterLoss" center_loss_param {{ num_output: 4 {distance} }} loss_weight: 0.5'
    net = one_layer(body, shape, (6,), blobs=[centers])
    apart = x.reshape(6, -1) - centers[labels.astype(int)]
    absolute = "L1" in distance
    total = np.abs(apart).sum() / 6 if absolute else (apart**2).sum() / 12
    assert_all_uses(net, [x, labels], [np.asarray(total, F32)])
    leaf = torch.from_numpy(x).requires_grad_()
    net.loss({"in0": leaf, "in1": torch.from_numpy(labels)}).backward()
    slope = np.sign(apart) if absolute else apart
    np.testing.assert_allclose(leaf.grad.numpy().reshape(6, -1), 0.5 * slope / 6, rtol=1e-5)
    move = np.zeros_like(centers)
    for center in range(4):
        rows = slope[labels == center]
        # happynear's layer adds the class's gradient once per row; the weight of the loss does not count.
        move[center] = -rows.sum(0) / (len(rows) + 1) * (len(rows) if distance else 1)
    np.testing.assert_allclose(net.params["op"][0].grad.numpy(), move, rtol=1e-5, atol=1e-6)


def test_center_loss_has_no_default_weight():
    net = one_layer('type: "CenterLoss" center_loss_param { num_output: 4 }', (6, 5), (6,))
    assert net.layer("op").loss_weights() == ()
    assert net.layer("op").note == "CenterLoss has no default loss weight: state loss_weight to learn from it"


@pytest.mark.parametrize("margin", [0.5, 4])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 1, 1)], ids=["2d", "4d"])
def test_triplet_loss(margin, shape):
    given = [draw(*shape, seed=seed) for seed in range(3)]
    net = build("TripletLoss", [shape] * 3, f"triplet_loss_param {{ margin: {margin} }}")
    anchor, positive, negative = (blob.reshape(5, 3).astype(np.float64) for blob in given)
    each = margin + ((anchor - positive) ** 2).sum(1) - ((anchor - negative) ** 2).sum(1)
    assert_all_uses(net, given, [np.asarray(np.maximum(each, 0).sum() / 10, F32)])
    active = (each > 0)[:, None] / 5
    expected = [active * (negative - positive), active * (positive - anchor), active * (anchor - negative)]
    for found, wanted in zip(gradients(net, given, ONE), expected, strict=True):
        np.testing.assert_allclose(found.reshape(5, 3), wanted, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------- losses with a softmax

SCORES = (3, 4, 2, 5)
LABELS = np.random.default_rng(2).integers(0, 4, (3, 2, 5)).astype(F32)


def summed(x, function, ignore=None):
    """Sum a function of a label's probability over all positions; returns it and how many there are."""
    total, count = 0.0, 0
    for place in np.ndindex(*LABELS.shape):
        label = int(LABELS[place])
        if label != ignore:
            total += function(softmax(x[place[0], :, place[1], place[2]])[label], label)
            count += 1
    return total, count


FOCAL = {
    "paper": ("", lambda p: -0.25 * (1 - p) ** 2 * np.log(p)),
    "fields": (
        "focal_loss_param { gamma: 1.5 alpha: 0.75 beta: 2 }",
        lambda p: -0.75 * (1 - p) ** 1.5 * np.log(p),
    ),
    "gamma_0": ("focal_loss_param { gamma: 0 alpha: 1 }", lambda p: -np.log(p)),
    "added": ("focal_loss_param { type: ONEADDP gamma: 3 }", lambda p: -((1 + p) ** 3) * np.log(p)),
    "added_alpha": (
        "focal_loss_param { type: ONEADDP alpha: 0.5 }",
        lambda p: -((0.5 + p) ** 2) * np.log(p),
    ),
    "alpha_over_1": ("focal_loss_param { alpha: 1.5 }", lambda p: -((1.5 - p) ** 2) * np.log(p)),
}


@pytest.mark.parametrize("case", FOCAL)
def test_focal_loss(case):
    params, function = FOCAL[case]
    x = draw(*SCORES) * 2
    total, count = summed(x, lambda p, label: function(p), ignore=2)
    net = build("FocalLoss", [SCORES, LABELS.shape], f"{params} loss_param {{ ignore_label: 2 }}", tops=2)
    probabilities = np.exp(x - x.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    assert_all_uses(net, [x, LABELS], [np.asarray(total / count, F32), probabilities])


def test_focal_loss_gradient_is_that_of_the_formula():
    x, step = draw(*SCORES) * 2, 1e-4
    net = build("FocalLoss", [SCORES, LABELS.shape], "focal_loss_param { gamma: 1.5 alpha: 0.75 axis: 1 }")
    found = gradients(net, [x, LABELS], ONE)[0]
    function = FOCAL["fields"][1]
    for place in [(0, 0, 0, 0), (1, 2, 1, 3), (2, 3, 0, 4)]:
        ends = []
        for sign in (1, -1):
            moved = x.astype(np.float64)
            moved[place] += sign * step
            ends.append(summed(moved, lambda p, label: function(p))[0] / LABELS.size)
        np.testing.assert_allclose(found[place], (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-6)


WEIGHTS = [0.25, 1.5, 0, 2]
CLASSES = " ".join(f"class_weighting: {weight}" for weight in WEIGHTS)


@pytest.mark.parametrize(
    ("rules", "divisor"),
    [
        ("", "VALID"),
        ("normalize: false", "BATCH_SIZE"),
        ("normalization: FULL", "FULL"),
        ("normalization: NONE", "NONE"),
    ],
    ids=["valid", "batch", "full", "none"],
)
def test_class_weights_of_the_softmax_loss(rules, divisor):
    x = draw(*SCORES)
    params = f"loss_param {{ weight_by_label_freqs: true {CLASSES} ignore_label: 3 {rules} }}"
    net = build("SoftmaxWithLoss", [SCORES, LABELS.shape], params)
    total, count = summed(x, lambda p, label: -WEIGHTS[label] * np.log(p), ignore=3)
    by = {"VALID": count, "BATCH_SIZE": 3, "FULL": LABELS.size, "NONE": 1}[divisor]
    assert_all_uses(net, [x, LABELS], [np.asarray(total / by, F32)])


def test_class_weights_without_the_flag_are_not_read():
    x = draw(*SCORES)
    net = build("SoftmaxWithLoss", [SCORES, LABELS.shape], f"loss_param {{ {CLASSES} }}")
    total, count = summed(x, lambda p, label: -np.log(p))
    assert_all_uses(net, [x, LABELS], [np.asarray(total / count, F32)])
    assert net.layer("op").note == "class_weighting is not read without weight_by_label_freqs: true"


@pytest.mark.parametrize(
    ("stated", "by"), [("pre_fixed_normalizer: 8", 8), ("", 1), ("pre_fixed_normalizer: 0.5", 1)]
)
@pytest.mark.parametrize("type_", ["SoftmaxWithLoss", "SigmoidCrossEntropyLoss"])
def test_a_fixed_normalizer(type_, stated, by):
    x = draw(*SCORES)
    params = f"loss_param {{ normalization: PRE_FIXED {stated} }}"
    if type_ == "SoftmaxWithLoss":
        given = [x, LABELS]
        total, _ = summed(x, lambda p, label: -np.log(p))
    else:
        given = [x, (draw(*SCORES, seed=1) > 0).astype(F32)]
        total = (np.logaddexp(0, x.astype(np.float64)) - x * given[1]).sum()
    net = build(type_, [blob.shape for blob in given], params)
    assert_all_uses(net, given, [np.asarray(total / by, F32)])


# ---------------------------------------------------------------------- losses of two blobs


@pytest.mark.parametrize("sign", [1, 0, -1], ids=["weights", "no_weights", "negative_sum"])
def test_weights_of_sigmoid_cross_entropy(sign):
    """The third bottom of the multi-task network cascades: each value's weight, over the sum of all."""
    x, target, weights = (
        draw(2, 3, 1, 4),
        np.abs(draw(2, 3, 1, 4, seed=2)) % 1,
        sign * np.abs(draw(2, 12, seed=3)),
    )
    flat = weights.reshape(x.shape).astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-x.astype(np.float64)))
    each = -target * np.log(sigmoid) - (1 - target) * np.log(1 - sigmoid)
    loss = (each * flat).sum() / flat.sum() if sign > 0 else 0
    net = build("SigmoidCrossEntropyLoss", [x.shape, target.shape, weights.shape])
    assert_all_uses(net, [x, target, weights], [np.asarray(loss, F32)])
    slope = flat * (sigmoid - target) / flat.sum() if sign > 0 else 0 * x
    np.testing.assert_allclose(gradients(net, [x, target, weights], ONE)[0], slope, rtol=1e-4, atol=1e-6)


def test_heds_balance():
    x, target = (
        draw(2, 1, 3, 4),
        F32([[0, 1, 1, 0, 0, 0, 2, 0, 1, 0, 0.5, 1], [0] * 11 + [1]]).reshape(2, 1, 3, 4),
    )
    net = build("SigmoidCrossEntropyLoss", [x.shape, x.shape], "loss_param { balance: HED }")
    total, slope = 0.0, np.zeros(x.shape)
    for image in range(2):
        positives, negatives = (target[image] == 1).sum(), (target[image] == 0).sum()
        for place in np.ndindex(1, 3, 4):
            value, wanted = float(x[image][place]), float(target[image][place])
            weight = {1: negatives, 0: positives}.get(wanted, 0) / (positives + negatives)
            total += weight * (np.logaddexp(0, value) - value * wanted)
            difference = 1 / (1 + np.exp(-value)) - wanted
            slope[image][place] = difference * (weight if wanted in (0, 1) else 1) / 2
    assert_all_uses(net, [x, target], [np.asarray(total / 2, F32)])
    np.testing.assert_allclose(gradients(net, [x, target], ONE)[0], slope, rtol=1e-5, atol=1e-7)


FLOW = {
    "difference": ("", [0]),
    "absolute": ("l1_loss_param { }", [0, 1]),
    "entries": ("l1_loss_param { normalize_by_num_entries: true plateau: 0.5 }", [0, 1]),
    "length": ("l1_loss_param { l2_per_location: true }", [0, 1]),
    "length_entries": (
        "l1_loss_param { l2_per_location: true normalize_by_num_entries: true epsilon: 0.25 plateau: 1.5 }",
        [0, 1],
    ),
    "prescaled": ("l1_loss_param { l2_per_location: true l2_prescale_by_channels: true }", [0]),
}


@pytest.mark.parametrize("case", FLOW)
def test_flownets_l1_loss(case):
    params, bottoms = FLOW[case]
    given = [draw(3, 2, 4, 5, seed=seed) for seed in bottoms]
    given[0][1, 0, 2, 3] = np.nan
    apart = (given[0] - given[1] if len(given) == 2 else given[0]).astype(np.float64)
    counted = ~np.isnan(apart)
    by = counted.sum() / 2 if "entries" in case else 3
    apart = np.where(counted, apart, 0)
    if "l2_per_location" in params:
        squares = (apart**2).sum(1) / (2 if "prescale" in params else 1)
        squares = np.where(squares < 1.5**2, 0, squares) if "plateau" in params else squares
        total = np.sqrt(squares + (0.25 if "epsilon" in params else 0.01)).sum()
    else:
        total = np.where(np.abs(apart) < (0.5 if "plateau" in params else 0), 0, np.abs(apart)).sum()
    net = build("L1Loss", [blob.shape for blob in given], params)
    assert_all_uses(net, given, [np.asarray(total / by, F32)])
    slope = gradients(net, given, ONE)[0]
    assert np.isfinite(slope).all() and slope[1, 0, 2, 3] == 0


def test_l1_losses_differ_in_the_gradient_of_equal_values():
    a, b = F32([[1, 2, 3]]), F32([[1, 1, 4]])
    assert gradients(build("L1Loss", [(1, 3)] * 2), [a, b], ONE)[0].tolist() == [[0, 1, -1]]
    assert gradients(build("L1Loss", [(1, 3)] * 2, "l1_loss_param { }"), [a, b], ONE)[0].tolist() == [
        [-1, 1, -1]
    ]


# ---------------------------------------------------------------------- CTPN's Accuracy


def ctpn(scores, labels, top_k, ignored):
    right, count, predicted = 0, 0, 0
    hits, labelled = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for row, label in zip(scores, labels.astype(int), strict=True):
        if label in ignored:
            continue
        order = sorted(range(len(row)), key=lambda index: (row[index], index), reverse=True)
        count, labelled[label] = count + 1, labelled[label] + 1
        right, hits[label] = right + (label in order[:top_k]), hits[label] + (label in order[:top_k])
        predicted += order[0] == 1
    precision, recall = hits[1] / max(predicted, 1), hits[1] / max(labelled[1], 1)
    f1 = 2 * precision * recall / (precision + recall) if hits[1] else 0
    return [F32(right / max(count, 1)), (hits / np.maximum(labelled, 1)).astype(F32), F32(f1)]


@pytest.mark.parametrize(
    ("ignored", "tops"), [([], 3), ([2], 3), ([0, 3], 1), ([-1, 3], 2), ([0, 1, 2, 3], 3)]
)
@pytest.mark.parametrize("top_k", [1, 2])
def test_accuracy_of_ctpn(ignored, tops, top_k):
    generator = np.random.default_rng(4)
    scores = generator.integers(0, 3, (40, 4)).astype(F32)  # many ties
    labels = generator.integers(0, 4, 40).astype(F32)
    if -1 in ignored:
        labels[::7] = -1
    fields = " ".join(f"ignore_label: {label}" for label in ignored)
    net = build("Accuracy", [(40, 4), (40,)], f"accuracy_param {{ top_k: {top_k} {fields} }}", tops=tops)
    expected = [np.asarray(value) for value in ctpn(scores, labels, top_k, ignored)]
    assert_all_uses(net, [scores, labels], expected[:tops])


# ---------------------------------------------------------------------- refusals

REFUSED = {
    "center outputs": (
        "CenterLoss", [(2, 3), (2,)], "", 1, "num_output is 0 or absent; state the number of classes",
    ),
    "center distance": (
        "CenterLoss", [(2, 3), (2,)], 'center_loss_param { num_output: 3 distance_type: "L3" }', 1,
        "distance_type 'L3' must be L1 or L2",
    ),
    "center axis": (
        "CenterLoss", [(2, 3), (2,)], "center_loss_param { num_output: 3 axis: 0 }", 1,
        "axis 0 is not supported; one center per image needs axis 1",
    ),
    "center labels": (
        "CenterLoss", [(2, 3), (3,)], "center_loss_param { num_output: 3 }", 1,
        "has 3 labels [3] for 2 images; give one per image",
    ),
    "triplet": (
        "TripletLoss", [(2, 3), (2, 3), (2, 4)], "", 1,
        "needs three blobs N×C of one shape, not [2, 3], [2, 3], [2, 4]",
    ),
    "focal linear": (
        "FocalLoss", [(2, 3), (2,)], "focal_loss_param { type: LINEAR }", 1,
        "type LINEAR is not supported; use ORIGIN or ONEADDP",
    ),
    "focal sigmoid": (
        "FocalLoss", [(2, 3), (2,)], "focal_loss_param { activate: SIGMOID }", 1,
        "activate SIGMOID is not supported; use SOFTMAX",
    ),
    "focal gamma": (
        "FocalLoss", [(2, 3), (2,)], "focal_loss_param { gamma: -1 }", 1,
        "gamma -1 must be at least 0 and alpha 0 over 0",
    ),
    "weights missing": (
        "SoftmaxWithLoss", [(2, 3), (2,)], "loss_param { weight_by_label_freqs: true }", 1,
        "weight_by_label_freqs has no class_weighting; state one weight per class, or remove the flag",
    ),
    "weights too few": (
        "SoftmaxWithLoss", [(2, 3), (2,)], "loss_param { weight_by_label_freqs: true class_weighting: 2 }", 1,
        "class_weighting is stated 1 times for 3 classes; state one per class",
    ),
    "weights elsewhere": (
        "SigmoidCrossEntropyLoss", [(2, 3), (2, 3)],
        "loss_param { weight_by_label_freqs: true class_weighting: 1 class_weighting: 2 }", 1,
        "loss_param.weight_by_label_freqs is not supported; remove it if it does not matter",
    ),
    "balance": (
        "SigmoidCrossEntropyLoss", [(2, 3), (2, 3)], "loss_param { balance: BOTH }", 1,
        "loss_param.balance BOTH must be HED; remove it for Caffe's own layer",
    ),
    "weights and more": (
        "SigmoidCrossEntropyLoss", [(2, 3), (2, 3), (2, 3)], "loss_param { normalize: true }", 1,
        "a third bottom of weights goes with no field of loss_param; MNC's layer reads none",
    ),
    "fewer weights": (
        "SigmoidCrossEntropyLoss", [(2, 3), (2, 3), (2, 4)], "", 1,
        "bottoms [2, 3] and [2, 4] differ in their number of values",
    ),
    "balance and more": (
        "SigmoidCrossEntropyLoss", [(2, 3), (2, 3)], "loss_param { balance: HED ignore_label: 2 }", 1,
        "loss_param.balance: HED goes with no other field of loss_param; HED's layer reads none",
    ),
    "flow axes": (
        "L1Loss", [(2,), (2,)], "l1_loss_param { }", 1, "bottom [2] has no channel axis; it takes 2 axes or more",
    ),
    "flow plateau": (
        "L1Loss", [(2, 3)], "l1_loss_param { plateau: -1 }", 1,
        "plateau -1 and epsilon 0.01 must be at least 0",
    ),
    "f1": (
        "Accuracy", [(2, 1), (2,)], "", 3, "the third top, the F1 of class 1, needs 2 classes or more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    type_, shapes, params, tops, message = REFUSED[case]
    with pytest.raises(LayerError, match=re.escape(f"op ({type_}): {message}")):
        build(type_, shapes, params, tops=tops)


@pytest.mark.parametrize(
    ("type_", "params"), [("CenterLoss", "center_loss_param { num_output: 3 }"), ("FocalLoss", "")]
)
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(type_, params, label):
    net = build(type_, [(2, 3), (2,)], params)
    with pytest.raises(LayerError, match=f"label {label} is out of range; it must be from 0 to 2"):
        run(net, [draw(2, 3), F32([0, label])])
