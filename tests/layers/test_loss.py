"""Losses and Accuracy against slow sums over single labels, Caffe's own gradients, and their refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import one_layer
from one_layer import assert_all_uses, build, draw, dynamic_shapes, gradients, layer_text, run

from ilgnet_repro.caffe.blob import write_blob
from ilgnet_repro.errors import LayerError
from ilgnet_repro.runtime.load import load_net

F32 = np.float32


def whole(seed: int, count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, shape).astype(F32)


def positions(shape, axis):
    """Each label's index and, in the scores, the index of its classes."""
    for index in np.ndindex(*shape[:axis], *shape[axis + 1 :]):
        yield index, (*index[:axis], slice(None), *index[axis:])


def softmax(row):
    power = np.exp(row.astype(np.float64) - row.max())
    return power / power.sum()


def divisor(mode, labels, counted, batch):
    return max({"FULL": labels.size, "VALID": counted, "BATCH_SIZE": batch, "NONE": 1}[mode], 1)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.integers(0, 3),
    st.sampled_from(["FULL", "VALID", "BATCH_SIZE", "NONE"]),
    st.one_of(st.none(), st.integers(0, 3)),
    st.integers(0, 99),
)
def test_softmax_loss_is_the_sum_over_single_labels(shape, axis, mode, ignore, seed):
    axis %= len(shape)
    left = shape[:axis] + shape[axis + 1 :]
    if not axis and left[0] != shape[0]:
        axis = 1  # Caffe requires the same number of images in both bottoms
        left = [shape[0], *shape[2:]]
    x, labels = draw(seed, *shape), whole(seed, shape[axis], *left)
    total, counted = 0.0, 0
    for index, classes in positions(shape, axis):
        if labels[index] != ignore:
            total -= np.log(softmax(x[classes])[int(labels[index])])
            counted += 1
    expected = total / divisor(mode, labels, counted, int(np.prod(shape[:axis])))
    rules = f"normalization: {mode}" + ("" if ignore is None else f" ignore_label: {ignore}")
    params = f"softmax_param {{ axis: {axis} }} loss_param {{ {rules} }}"
    probabilities = np.empty_like(x)
    for _, classes in positions(shape, axis):
        probabilities[classes] = softmax(x[classes])
    net = build("SoftmaxWithLoss", [tuple(shape), tuple(left)], params, tops=2)
    for found, wanted in zip(run(net, [x, labels]), [np.asarray(expected), probabilities], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


SCORES = (3, 5, 2, 4)
LABELS = whole(2, 5, 3, 2, 4)
MATRIX = np.abs(draw(7, 5, 5))


def infogain(x, matrix, ignore):
    total, counted = 0.0, 0
    for index, classes in positions(x.shape, 1):
        if LABELS[index] != ignore:
            total -= (matrix[int(LABELS[index])] * np.log(softmax(x[classes]))).sum()
            counted += 1
    return total, counted


@pytest.mark.parametrize("mode", ["FULL", "VALID", "BATCH_SIZE", "NONE"])
def test_infogain_weighs_every_class(mode):
    x = draw(1, *SCORES)
    total, counted = infogain(x, MATRIX, 2)
    expected = np.asarray(total / divisor(mode, LABELS, counted, 3), F32)
    params = f"loss_param {{ normalization: {mode} ignore_label: 2 }}"
    net = build("InfogainLoss", [SCORES, LABELS.shape, (5, 5)], params)
    assert_all_uses(net, [x, LABELS, MATRIX], [expected])


def test_infogain_gradient_is_that_of_the_formula():
    x = draw(1, *SCORES)
    found = gradients(
        build("InfogainLoss", [SCORES, LABELS.shape, (5, 5)]), [x, LABELS, MATRIX], np.array(1, F32)
    )
    for index, classes in positions(SCORES, 1):
        row = MATRIX[int(LABELS[index])]
        np.testing.assert_allclose(
            found[0][classes], (softmax(x[classes]) * row.sum() - row) / LABELS.size, rtol=1e-4, atol=1e-6
        )
    assert found[1] is None and found[2] is None


def test_infogain_matrix_from_its_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_blob("gain.binaryproto", MATRIX)
    text = layer_text(
        "InfogainLoss", [SCORES, LABELS.shape], 'infogain_loss_param { source: "gain.binaryproto" }'
    )
    (tmp_path / "net.prototxt").write_text(text)
    x = draw(1, *SCORES)
    total, counted = infogain(x, MATRIX, None)
    assert_all_uses(load_net("net.prototxt"), [x, LABELS], [np.asarray(total / counted, F32)])


@pytest.mark.parametrize(
    ("type_", "lowest"), [("SoftmaxWithLoss", 2.0**-126), ("InfogainLoss", 1e-20)], ids=["FLT_MIN", "1e-20"]
)
def test_the_logarithm_is_clamped_and_the_gradient_is_not(type_, lowest):
    x, labels = np.array([[-300, 0, 0], [1, 2, 3]], F32), np.array([0, 2], F32)
    given = [x, labels] + ([np.eye(3, dtype=F32)] if type_ == "InfogainLoss" else [])
    net = build(type_, [array.shape for array in given])
    expected = (-np.log(lowest) - np.log(softmax(x[1])[2])) / 2
    assert_all_uses(net, given, [np.asarray(expected, F32)])
    slope = (np.stack([softmax(row) for row in x]) - np.eye(3)[[0, 2]]) / 2
    np.testing.assert_allclose(gradients(net, given, np.array(1, F32))[0], slope, rtol=1e-5, atol=1e-7)


def test_the_clamped_multinomial_loss_keeps_its_slope():
    x, labels = np.array([[0, 1], [0.5, 0.5]], F32), np.array([0, 1], F32)
    net = build("MultinomialLogisticLoss", [(2, 2), (2,)])
    assert_all_uses(net, [x, labels], [np.asarray((20 * np.log(10) + np.log(2)) / 2, F32)])
    slope = gradients(net, [x, labels], np.array(1, F32))[0]
    np.testing.assert_allclose(slope, np.array([[-0.5e20, 0], [0, -1]]), rtol=1e-5)


def test_contrastive_gradient_of_an_equal_pair():
    a = np.array([[1, 2, 3], [0, 0, 0]], F32)
    b = np.array([[1, 2, 3.0], [0.3, 0, 0.4]], F32)
    net = build("ContrastiveLoss", [(2, 3), (2, 3), (2,)], "contrastive_loss_param { margin: 2 }")
    found = gradients(net, [a, b, np.zeros(2, F32)], np.array(1, F32))[0]
    distance = 0.5
    slope = np.zeros((2, 3))
    slope[1] = -(2 - distance) / (distance + 1e-4) * (a[1] - b[1]) / 2
    np.testing.assert_allclose(found, slope, rtol=1e-5)


@pytest.mark.parametrize("bottoms", [2, 3, 4])
@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_smooth_l1(bottoms, sigma):
    shape = (3, 4, 2, 5)
    arrays = [draw(seed, *shape) for seed in range(bottoms)]
    inside, outside = [*arrays[2:], 1, 1][:2]
    if bottoms == 3:
        outside = 1
    difference = inside * (arrays[0] - arrays[1])
    bend = np.abs(difference) < 1 / sigma**2
    losses = np.where(bend, 0.5 * sigma**2 * difference**2, np.abs(difference) - 0.5 / sigma**2)
    net = build("SmoothL1Loss", [shape] * bottoms, f"smooth_l1_loss_param {{ sigma: {sigma} }}")
    assert_all_uses(net, arrays, [np.asarray((outside * losses).sum() / 3, F32)])
    slope = outside * inside * np.where(bend, sigma**2 * difference, np.sign(difference)) / 3
    found = gradients(net, arrays, np.array(1, F32))
    np.testing.assert_allclose(found[0], slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1], -slope, rtol=1e-4, atol=1e-6)


def test_smooth_l1_of_intel_divides_by_one():
    arrays = [draw(seed, 3, 4, 2) for seed in range(4)]
    size = np.abs(arrays[2] * (arrays[0] - arrays[1]))
    losses = arrays[3] * np.where(size < 1, 0.5 * size**2, size - 0.5)
    net = build("SmoothL1Loss", [(3, 4, 2)] * 4, "loss_param { normalization: NONE }")
    assert_all_uses(net, arrays, [np.asarray(losses.sum(), F32)])


@pytest.mark.parametrize(
    ("bottoms", "fields", "weights"),
    [
        (2, "", (1.0,)),
        (3, "", (1.0,)),
        (2, "smooth_l1_loss_param { sigma: 3 }", ()),
        (2, "smooth_l1_loss_param { }", ()),
        (4, "", ()),
        (4, "loss_weight: 1", (1.0,)),
        (2, "smooth_l1_loss_param { sigma: 3 } loss_weight: 0.5", (0.5,)),
    ],
    ids=["ssd", "ssd_weighted", "sigma", "message", "four", "four_stated", "sigma_stated"],
)
def test_fast_rcnns_smooth_l1_has_no_weight_of_its_own(bottoms, fields, weights):
    layer = build("SmoothL1Loss", [(3, 4)] * bottoms, fields).layer("op")
    assert layer.loss_weights() == weights
    note = "Fast R-CNN's layer has no default loss weight: state loss_weight to learn from it"
    assert layer.note == ("" if weights else note)


@pytest.mark.parametrize("field", ["normalization: VALID", "normalization: FULL", "normalize: false"])
def test_smooth_l1_refuses_what_forks_read_differently(field):
    with pytest.raises(LayerError) as caught:
        build("SmoothL1Loss", [(3, 4), (3, 4)], f"loss_param {{ {field} }}")
    assert str(caught.value) == (
        "op (SmoothL1Loss): loss_param is read by one fork's layer only; state normalization: NONE, which divides by "
        "1, or remove it"
    )


def test_euclidean_accepts_other_shapes_with_the_same_count():
    a, b = draw(1, 3, 4, 2), draw(2, 3, 8)
    expected = ((a.reshape(3, 8) - b) ** 2).sum() / 6
    assert_all_uses(build("EuclideanLoss", [a.shape, b.shape]), [a, b], [np.asarray(expected, F32)])


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("ignore", [None, 3])
@pytest.mark.parametrize("ties", [False, True])
def test_accuracy_counts_higher_scores(top_k, ignore, ties):
    x = whole(4, 3, *SCORES) if ties else draw(4, *SCORES)
    hits, seen = np.zeros(5), np.zeros(5)
    for index, classes in positions(SCORES, 1):
        label = int(LABELS[index])
        if label != ignore:
            rivals = sum(x[classes][other] >= x[classes][label] for other in range(5) if other != label)
            hits[label] += rivals < top_k
            seen[label] += 1
    rules = f"top_k: {top_k}" + ("" if ignore is None else f" ignore_label: {ignore}")
    net = build("Accuracy", [SCORES, LABELS.shape], f"accuracy_param {{ {rules} }}", tops=2)
    expected = [np.asarray(hits.sum() / seen.sum(), F32), (hits / np.maximum(seen, 1)).astype(F32)]
    assert_all_uses(net, [x, LABELS], expected)


def test_no_counted_label_gives_zero():
    x, labels = draw(1, 3, 4), np.full(3, 2, F32)
    assert run(build("Accuracy", [(3, 4), (3,)], "accuracy_param { ignore_label: 2 }"), [x, labels])[0] == 0
    assert (
        run(build("SoftmaxWithLoss", [(3, 4), (3,)], "loss_param { ignore_label: 2 }"), [x, labels])[0] == 0
    )


def test_loss_weights_and_unnamed_tops():
    net = one_layer('type: "EuclideanLoss" loss_weight: 3', (2, 3), (2, 3))
    bare = one_layer('type: "EuclideanLoss"', (2, 3), (2, 3), tops=0)
    arrays = {"in0": torch.ones(2, 3), "in1": torch.zeros(2, 3)}
    assert float(net.loss(arrays)) == 3 * 1.5
    assert float(bare.loss(arrays)) == 1.5


@pytest.mark.parametrize(
    ("shape", "labels"),
    [((3, 2, 2, 2), (3,)), ((3, 2, 2), (3, 4)), ((3,), (3, 1, 1, 1)), ((3, 4), (3, 2, 2))],
    ids=["planes", "more labels than images", "one score each", "planes of labels"],
)
@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_hinge_takes_all_values_of_an_image_and_the_first_labels(shape, labels, norm):
    x, classes = draw(1, *shape), int(np.prod(shape[1:]))
    values = np.arange(int(np.prod(labels))).reshape(labels) % classes
    rows = x.reshape(3, -1)
    sign = np.ones_like(rows)
    for image in range(3):
        sign[image, values.flat[image]] = -1
    margins = np.maximum(1 + sign * rows, 0)
    expected = (margins if norm == "L1" else margins**2).sum() / 3
    net = build("HingeLoss", [shape, labels], f"hinge_loss_param {{ norm: {norm} }}")
    assert_all_uses(net, [x, values.astype(F32)], [np.asarray(expected, F32)])


def test_multinomial_loss_of_planes():
    x, labels = np.abs(draw(1, 3, 2, 2, 2)) + 0.1, np.array([7, 0, 3], F32)
    expected = -np.log(x.reshape(3, -1)[range(3), labels.astype(int)]).mean()
    net = build("MultinomialLogisticLoss", [x.shape, (3, 1)])
    assert_all_uses(net, [x, labels[:, None]], [np.asarray(expected, F32)])


@pytest.mark.parametrize(
    ("first", "second", "labels"),
    [((3,), (3,), (3,)), ((3, 4), (3, 4, 1, 1), (3, 1)), ((3, 4, 1), (3, 4), (5,))],
    ids=["one value each", "axes of one", "more labels than pairs"],
)
def test_contrastive_loss_by_legacy_axes(first, second, labels):
    a, b = draw(1, *first), draw(2, *second)
    similar = (np.arange(int(np.prod(labels))) % 2).reshape(labels).astype(F32)
    squared = ((a.reshape(3, -1) - b.reshape(3, -1)) ** 2).sum(1)
    apart = np.maximum(1 - np.sqrt(squared), 0) ** 2
    expected = np.where(similar.ravel()[:3] != 0, squared, apart).sum() / 6
    net = build("ContrastiveLoss", [first, second, labels])
    assert_all_uses(net, [a, b, similar], [np.asarray(expected, F32)])


FLAT = (3, 5)
REFUSED = {
    "labels short": ("SoftmaxWithLoss", [SCORES, (3, 2, 3)], "", "op (SoftmaxWithLoss): has 18 labels"),
    "images differ": ("SoftmaxWithLoss", [FLAT, (5,)], "", "differ in their first axis"),
    "axis outside": ("SoftmaxWithLoss", [FLAT, (3,)], "softmax_param { axis: 2 }", "axis 2 is outside"),
    "top_k": ("Accuracy", [FLAT, (3,)], "accuracy_param { top_k: 6 }", "top_k 6 must be from 1 to the 5"),
    "accuracy labels": ("Accuracy", [FLAT, (4,)], "", "has 4 labels [4] for 3 predictions"),
    "infogain without matrix": ("InfogainLoss", [FLAT, (3,)], "", "has no matrix; give it as third bottom"),
    "infogain matrix": ("InfogainLoss", [FLAT, (3,), (5, 4)], "", "has 20 values; 5 classes need 25"),
    "infogain normalize": (
        *("InfogainLoss", [FLAT, (3,), (5, 5)]),
        *("loss_param { normalize: true }", "normalize is deprecated and Caffe refuses it"),
    ),
    "hinge axes": ("HingeLoss", [(3, 1, 2, 1, 5), (3,)], "", "has 5 axes; it takes 1 to 4"),
    "hinge label axes": ("HingeLoss", [FLAT, (3, 1, 2, 1, 5)], "", "has 5 axes; it takes 1 to 4"),
    "multinomial labels": ("MultinomialLogisticLoss", [FLAT, FLAT], "", "one label per image"),
    "euclidean": ("EuclideanLoss", [FLAT, (3, 4)], "", "differ in their number of values"),
    "sigmoid": ("SigmoidCrossEntropyLoss", [FLAT, (4, 5)], "", "differ in their first axis"),
    "contrastive": ("ContrastiveLoss", [FLAT, (3, 4), (3,)], "", "two blobs N×C of one shape"),
    "contrastive axes": (
        "ContrastiveLoss",
        [(3, 2, 1, 4), (3, 2, 1, 4), (3,)],
        "",
        "two blobs N×C of one shape",
    ),
    "contrastive too few": (
        "ContrastiveLoss",
        [FLAT, FLAT, (2,)],
        "",
        "label index 2 is out of range; there are 2 labels [2] for 3 pairs; give one per pair",
    ),
    "contrastive labels": ("ContrastiveLoss", [FLAT, FLAT, (3, 2)], "", "has 6 labels [3, 2] for 3 pairs"),
    "sigma": ("SmoothL1Loss", [FLAT, FLAT], "smooth_l1_loss_param { sigma: 0 }", "sigma 0.0 must be over 0"),
    "softmax axis": ("Softmax", [FLAT], "softmax_param { axis: -3 }", "axis -3 is outside a blob of 2 axes"),
}


@pytest.mark.parametrize(("type_", "shapes", "params", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(type_, shapes, params, message):
    with pytest.raises(LayerError) as raised:
        build(type_, shapes, params)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("type_", ["SoftmaxWithLoss", "Accuracy", "HingeLoss", "MultinomialLogisticLoss"])
@pytest.mark.parametrize("label", [-1, 5])
def test_labels_out_of_range(type_, label):
    net = build(type_, [(3, 5), (3,)])
    with pytest.raises(
        LayerError, match=rf"op \({type_}\): label {label} is out of range; it must be from 0 to 4"
    ):
        run(net, [np.abs(draw(1, 3, 5)), np.array([0, label, 1], F32)])


def test_an_unread_matrix_is_refused_with_the_remedy():
    net = build("InfogainLoss", [(3, 5), (3,)], 'infogain_loss_param { source: "gain" }')
    with pytest.raises(LayerError, match=r"matrix gain was not read; use load_net, or set_matrix"):
        run(net, [draw(1, 3, 5), np.zeros(3, F32)])
    with pytest.raises(LayerError, match="has 24 values; 5 classes need 25"):
        net.layer("op").set_matrix(np.zeros((4, 6), F32), net.shapes["in0"])


TRACED: dict[str, list[tuple[int, ...]]] = {
    "SoftmaxWithLoss": [(3, 5, 2), (3, 2)],
    "MultinomialLogisticLoss": [(3, 5), (3,)],
    "EuclideanLoss": [(3, 5), (3, 5)],
    "HingeLoss": [(3, 5), (3,)],
    "SigmoidCrossEntropyLoss": [(3, 5), (3, 5)],
    "ContrastiveLoss": [(3, 5), (3, 5), (3,)],
    "SmoothL1Loss": [(3, 5), (3, 5)],
    "Accuracy": [(3, 5), (3,)],
}


@pytest.mark.parametrize("type_", TRACED)
def test_exports_with_an_open_batch(type_):
    layer = build(type_, TRACED[type_]).layer("op")
    batch = torch.export.Dim("batch", min=2)
    example = tuple(torch.zeros(shape) for shape in TRACED[type_])
    exported = torch.export.export(
        layer, example, dynamic_shapes=dynamic_shapes(layer, [{0: batch}] * len(example))
    ).module()
    given = [torch.from_numpy(draw(seed, 7, *shape[1:])) for seed, shape in enumerate(TRACED[type_])]
    given[1:] = [value.abs().floor().clamp(max=4) for value in given[1:]]
    assert torch.allclose(exported(*given)[0], layer(*given)[0])
