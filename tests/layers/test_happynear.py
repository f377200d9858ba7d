"""Losses over distances and layers around landmarks of happynear's Caffe, against loops, and what they refuse."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from one_layer import assert_all_uses, build, draw, run

from ilgnet_repro.errors import LayerError

F32 = np.float32
LABELS = F32([2, 0, 3, 0, 1])


def contrastive(x, labels, p):
    """The fork's loop: loss, distances and gradient times the number of rows."""
    get = {"pm": 0, "nm": 1, "pw": 1, "nw": 1, "most": 4, "upper": 1, **p}.__getitem__
    rows, classes = x.shape
    diff, grad = np.zeros(x.shape), np.zeros(x.shape)
    near = far = 0.0
    for i in range(rows):
        label, best = int(labels[i]), 0
        for j in range(classes):
            if j == label:
                kept = min(get("most"), max(0, x[i, j] - get("pm")))
                diff[i, j], near = kept * get("pw"), near + kept
            elif x[i, j] < get("nm"):
                short = get("nm") - x[i, j]
                diff[i, j] = (math.exp(-x[i, j]) if p.get("exp") else short) * get("nw")
                far += short
                if diff[i, j] > diff[i, best]:
                    best = j
        is_far = p.get("first") and x[i, label] > get("upper")
        for j in range(classes):
            if j == label:
                grad[i, j] = get("pw") * (is_far or get("pm") < x[i, j] < get("most"))
            elif is_far or (p.get("hardest") and j != best):
                diff[i, j] = 0
            elif x[i, j] < get("nm"):
                grad[i, j] = -get("nw") * (math.exp(-x[i, j]) if p.get("exp") else 1)
    return np.abs(diff).sum() / rows, [near / rows, far / rows / (classes - 1)], grad


def triplet(x, labels, p):
    get = {"margin": 0.2, "pw": 1, "nw": 1, "upper": 1, **p}.__getitem__
    rows, classes = x.shape
    diff, grad = np.zeros(x.shape), np.zeros(x.shape)
    near = far = 0.0
    for i in range(rows):
        label = int(labels[i])
        same, best = x[i, label], -1
        near += same
        for j in range(classes):
            if j != label:
                diff[i, j] = max(0, same + get("margin") - x[i, j]) * get("nw")
                far += x[i, j]
                if diff[i, j] > 0 and (best < 0 or diff[i, j] > diff[i, best]):
                    best = j
        is_far = p.get("first") and same > get("upper")
        count = 0
        for j in range(classes):
            if j != label and (is_far or (p.get("hardest") and best >= 0 and j != best)):
                diff[i, j] = 0
            if j != label and not is_far:
                if p.get("hardest"):
                    chosen = j == best and x[i, j] != 0
                    left = diff[i, j] if j == best else 0
                else:
                    chosen, left = same + get("margin") > x[i, j], 0
                grad[i, j] = -get("nw") if chosen else left
                count += chosen
        grad[i, label] = get("pw") * (is_far or p.get("always", True) or count > 0)
    return np.abs(diff).sum() / rows, [near / rows, far / rows / (classes - 1)], grad


LOSSES = {
    "contrastive": (contrastive, "", {}),
    "contrastive_fields": (
        contrastive,
        "positive_margin: 0.25 negative_margin: 1.5 positive_weight: 2 negative_weight: 0.5 positive_outlier_thresh: 1.75",
        {"pm": 0.25, "nm": 1.5, "pw": 2, "nw": 0.5, "most": 1.75},
    ),
    "contrastive_hardest": (contrastive, "negative_margin: 2 max_negative_only: true", {"nm": 2, "hardest": True}),
    "contrastive_exp": (contrastive, "exp_negative_weight: true", {"exp": True}),
    "contrastive_first": (
        contrastive,
        "positive_first: true positive_upper_bound: 1.25 negative_margin: 2",
        {"first": True, "upper": 1.25, "nm": 2},
    ),
    "triplet": (triplet, "", {}),
    "triplet_fields": (
        triplet,
        "margin: 0.5 positive_weight: 2 negative_weight: 0.5 add_center_loss: false",
        {"margin": 0.5, "pw": 2, "nw": 0.5, "always": False},
    ),
    "triplet_hardest": (
        triplet,
        "margin: 0.5 hardest_only: true add_center_loss: false",
        {"margin": 0.5, "hardest": True, "always": False},
    ),
    "triplet_first": (triplet, "positive_first: true hardest_only: true", {"first": True, "hardest": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", LOSSES)
def test_losses_over_distances(case):
    function, fields, settings = LOSSES[case]
    kind = function.__name__
    x = np.abs(draw(4, 5, 4)) * 2
    x[1, 2] = 0  # the nearest class at the distance 0
    loss, means, grad = function(x.astype(float), LABELS, settings)
    params = f"general_{kind}_loss_param {{ {fields} }} loss_weight: 3 loss_weight: 1"
    net = build(f"General{kind.title()}Loss", [x.shape, LABELS.shape], params, tops=2)
    assert_all_uses(net, [x, LABELS], [F32(loss), F32(means)])
    leaf = torch.from_numpy(x).requires_grad_()
    net.loss({"in0": leaf, "in1": torch.from_numpy(LABELS)}).backward()
    np.testing.assert_allclose(leaf.grad.numpy(), 3 * grad / len(x), rtol=1e-5, atol=1e-7)


REFUSED = {
    "two_versions": (
        "GeneralContrastiveLoss",
        "general_contrastive_loss_param { negative_margin: 2 }",
        [(5, 4), (5,)],
        "two versions of happynear's layer fit this text: the first divides by all distances, the last by the rows; "
        "state negative_weight: 1 for the last",
    ),
    "running_mean": (
        "GeneralContrastiveLoss",
        "general_contrastive_loss_param { negative_weight: 1 add_intra_mae: true }",
        [(5, 4), (5,)],
        "add_intra_mae: true is not supported; use false",
    ),
    "two_tops": (
        "SubRegion",
        "sub_region_param { data_height: 5 data_width: 6 region_height: 2 region_width: 3 }",
        [(2, 3, 6, 7), (2, 4), (2, 4)],
        "has 2 tops; give it the regions, or also both offsets",
    ),
    "third_bottom": ("GeneralTripletLoss", "", [(5, 4), (5,), (5,)], "has 3 bottoms; it takes 2"),
    "negative_weight": (
        "GeneralTripletLoss",
        "general_triplet_loss_param { negative_weight: -1 }",
        [(5, 4), (5,)],
        "positive_weight 1 and negative_weight -1 must be 0 or over",
    ),
    "labels": ("GeneralTripletLoss", "", [(5, 4), (3,)], "has 3 labels [3] for 5 rows; give one per row"),
    "one_class": ("GeneralTripletLoss", "", [(5, 1), (5,)], "distances [5, 1] must be N×classes, of 2 classes or more"),
    "no_size": (
        "Hotspot",
        "hotspot_param { data_height: 5 data_width: 6 }",
        [(2, 6)],
        "output_height or output_width is 0; state both, or give a second bottom of that size",
    ),
    "no_data_size": ("Hotspot", "", [(2, 6)], "data_height 0 and data_width 0 must be over 0"),
    "odd": (
        "Hotspot",
        "hotspot_param { data_height: 5 data_width: 6 output_height: 2 output_width: 3 }",
        [(2, 5)],
        "points [2, 5] must be N×2P: x and y of each point",
    ),
    "images": (
        "SubRegion",
        "sub_region_param { data_height: 5 data_width: 6 region_height: 2 region_width: 3 }",
        [(2, 3, 7, 5), (3, 4), (3, 4)],
        "needs as many points [3, 4] and true points [3, 4] as images [2, 3, 7, 5]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    type_, params, shapes, message = REFUSED[case]
    with pytest.raises(LayerError, match=re.escape(message)) as error:
        build(type_, shapes, params, tops=2 if case == "two_tops" else 1)
    assert str(error.value).startswith(f"op ({type_}): ")


def test_labels_beyond_the_classes_are_refused():
    net = build("GeneralTripletLoss", [(5, 4), (5,)])
    with pytest.raises(LayerError, match="label 4 is out of range; it must be from 0 to 3"):
        run(net, [draw(1, 5, 4), F32([0, 1, 2, 3, 4])])


@pytest.mark.parametrize("removed", [True, False], ids=["from_the_middle", "from_the_corner"])
@pytest.mark.parametrize("stated", [True, False], ids=["stated", "second_bottom"])
def test_hotspot(removed, stated):
    points = draw(3, 2, 6) * 6 + (0 if removed else 5)
    std, data, size = 0.75, (11, 13), (5, 7)
    expected = np.zeros((2, 3, *size))
    for n, p, h, w in np.ndindex(expected.shape):
        x = (points[n, 2 * p] / data[1] + 0.5 * removed) * size[1]
        y = (points[n, 2 * p + 1] / data[0] + 0.5 * removed) * size[0]
        value = 0.5 / std**2 / math.pi * math.exp(-0.5 * ((x - w) ** 2 + (y - h) ** 2) / std**2)
        expected[n, p, h, w] = value if value > 1e-4 else 0
    fields = f"gaussian_std: {std} data_height: 11 data_width: 13 mean_removed: {str(removed).lower()}"
    given = [points] if stated else [points, draw(1, 2, 1, *size)]
    fields += " output_height: 5 output_width: 7" if stated else ""
    net = build("Hotspot", [array.shape for array in given], f"hotspot_param {{ {fields} }}")
    assert_all_uses(net, given, [expected.astype(F32)])
    assert not net.layer("op").has_gradient


@pytest.mark.parametrize("as_dim", [0, 1])
def test_sub_region(as_dim):
    """Regions inside, over the border and outside x."""
    x, points, truth = draw(5, 2, 3, 7, 9), draw(6, 2, 4) * 5, draw(7, 2, 4) * 5
    points[1, 2:] = 40
    data, region = (11, 13), (3, 4)
    top = np.zeros((2, 6, *region) if as_dim else (4, 3, *region))
    offsets, middles, slope = np.zeros((2, 4)), np.zeros((2, 4)), np.zeros(x.shape)
    weights = draw(8, *top.shape)
    for n, p in np.ndindex(2, 2):
        x0 = math.floor((points[n, 2 * p] / data[1] + 0.5) * 9 - region[1] // 2)
        y0 = math.floor((points[n, 2 * p + 1] / data[0] + 0.5) * 7 - region[0] // 2)
        middles[n, 2 * p] = (x0 + region[1] / 2 + 0.5) / 9 * data[1]
        middles[n, 2 * p + 1] = (y0 + region[0] / 2 + 0.5) / 7 * data[0]
        offsets[n, 2 * p : 2 * p + 2] = (
            truth[n, 2 * p : 2 * p + 2] + F32([6, 5]) - middles[n, 2 * p : 2 * p + 2]
        )
        for c, h, w in np.ndindex(3, *region):
            place = (n, 3 * p + c, h, w) if as_dim else (2 * p + n, c, h, w)
            if 0 <= y0 + h < 7 and 0 <= x0 + w < 9:
                top[place] = x[n, c, y0 + h, x0 + w]
                slope[n, c, y0 + h, x0 + w] += weights[place]
    fields = f"region_height: 3 region_width: 4 data_height: 11 data_width: 13 as_dim: {as_dim}"
    shapes = [array.shape for array in (x, points, truth)]
    net = build("SubRegion", shapes, f"sub_region_param {{ {fields} }}", tops=3)
    assert_all_uses(net, [x, points, truth], [value.astype(F32) for value in (top, offsets, middles)])
    leaf = torch.from_numpy(x).requires_grad_()
    net({"in0": leaf, "in1": torch.from_numpy(points), "in2": torch.from_numpy(truth)})["top0"].backward(
        torch.from_numpy(weights)
    )
    np.testing.assert_allclose(leaf.grad.numpy(), slope, rtol=1e-5, atol=1e-6)
