"""The layers of text recognizers: options that no recorded case covers, by slow formulas, and refusals."""

from __future__ import annotations

from itertools import pairwise, product
from math import exp, inf, log

import numpy as np
import pytest
from one_layer import assert_all_uses, build, draw, gradients, run, run_onnx, run_source

from ilgnet_repro.errors import LayerError
from ilgnet_repro.layers.ctc_decoder import edit_distance


def softmax(row) -> np.ndarray:
    shifted = np.exp(row - row.max())
    return shifted / shifted.sum()


def path_labels(path, blank: int, merge: bool) -> tuple[int, ...]:
    """What a path of one class per step reads as; without merging a label lasts one step."""
    kept = [path[0], *(b for a, b in pairwise(path) if a != b)] if merge else list(path)
    return tuple(value for value in kept if value != blank)


def cost(x, labels, blank: int, merge: bool = True) -> float:
    """-log p of a label sequence: the sum over all paths that read as it."""
    probabilities = [softmax(row) for row in x]
    total = 0.0
    for path in product(range(x.shape[1]), repeat=len(x)):
        if path_labels(path, blank, merge) == tuple(labels):
            total += exp(sum(log(p[value]) for p, value in zip(probabilities, path, strict=True)))
    return -log(total) if total else inf


STEPS, ITEMS, CLASSES = 5, 2, 4
X = draw(3, STEPS, ITEMS, CLASSES)
INDICATORS = np.array([[0, 0], [1, 1], [1, 1], [1, 1], [1, 0]], np.float32)  # the second item has 4 steps
TARGETS = np.array([[1, 2], [1, 0], [-1, 2], [-1, -1], [-1, -1]], np.float32)
SHAPES = [(STEPS, ITEMS, CLASSES), (STEPS, ITEMS), (STEPS, ITEMS)]
LOSSES = {
    "blank last": ("", [cost(X[:, 0], (1, 1), 3), cost(X[:4, 1], (2, 0, 2), 3)]),
    "collapsed": (
        "preprocess_collapse_repeated: true",
        [cost(X[:, 0], (1,), 3), cost(X[:4, 1], (2, 0, 2), 3)],
    ),
    "not merged": (
        "ctc_merge_repeated: false",
        [cost(X[:, 0], (1, 1), 3, False), cost(X[:4, 1], (2, 0, 2), 3, False)],
    ),
    "delayed": ("output_delay: 1", [cost(X[1:, 0], (1, 1), 3), cost(X[1:4, 1], (2, 0, 2), 3)]),
}


@pytest.mark.parametrize(("fields", "costs"), LOSSES.values(), ids=LOSSES)
def test_ctc_loss(fields, costs):
    net = build("CTCLoss", SHAPES, f"ctc_loss_param {{ {fields} }}")
    np.testing.assert_allclose(run(net, [X, INDICATORS, TARGETS])[0], np.mean(costs), rtol=1e-5)
    # The gradient is that of the sum over the batch, whatever the gradient of the top.
    found = gradients(net, [X, INDICATORS, TARGETS], np.array(7, np.float32))[0]
    moved = X.astype(np.float64).copy()
    for place in ((2, 0, 1), (3, 1, 2)):
        values = []
        for step in (1e-3, -1e-3):
            shifted = moved.copy()
            shifted[place] += step
            values.append(sum_of_costs(shifted, fields))
        np.testing.assert_allclose(found[place], (values[0] - values[1]) / 2e-3, rtol=1e-3, atol=1e-5)


def sum_of_costs(x, fields: str) -> float:
    first, merge = int("delay" in fields), "merge" not in fields
    labels = (1,) if "collapse" in fields else (1, 1)
    return cost(x[first:, 0], labels, 3, merge) + cost(x[first:4, 1], (2, 0, 2), 3, merge)


def test_warp_ctc_by_lengths_and_by_indicators():
    labels = np.array([[1, 2], [1, 3], [9, 2]], np.float32)
    shapes = [(STEPS, ITEMS, CLASSES), (ITEMS,), (ITEMS,), (3, ITEMS)]
    net = build("WarpCTCLoss", shapes, "ctc_loss_param { blank_index: 0 }")
    wanted = (cost(X[:, 0], (1, 1), 0) + cost(X[:4, 1], (2, 3, 2), 0)) / 2
    steps, counts = np.array([5, 4], np.float32), np.array([2, 3], np.float32)
    np.testing.assert_allclose(run(net, [X, steps, counts, labels])[0], wanted, rtol=1e-5)
    net = build("WarpCTCLoss", SHAPES, "ctc_loss_param { blank_index: 3 }")
    wanted = (cost(X[:, 0], (1, 1), 3) + cost(X[:4, 1], (2, 0, 2), 3)) / 2
    np.testing.assert_allclose(run(net, [X, INDICATORS, TARGETS])[0], wanted, rtol=1e-5)


def test_a_sequence_that_cannot_fit_costs_nothing():
    net = build(
        "CtcLoss", [(3, 2, 4), (2, 2)], "ctc_loss_param { alphabet_size: 4 time_step: 2 blank_label: 0 }"
    )
    x, labels = draw(5, 3, 2, 4), np.array([[1, 1], [2, 0]], np.float32)  # 1, 1 needs three steps
    np.testing.assert_allclose(run(net, [x, labels])[0], cost(x[:2, 1], (2,), 0) / 2, rtol=1e-5)
    np.testing.assert_allclose(run_source(net, [x, labels])[0], cost(x[:2, 1], (2,), 0) / 2, rtol=1e-5)
    found = gradients(net, [x, labels], np.array(2, np.float32))[0]
    assert not found[:, 0].any()
    assert not found[2].any()


def test_greedy_decoder_keeps_repetitions():
    x = np.zeros((4, 2, 3), np.float32)
    for step, (first, second) in enumerate([(1, 2), (1, 0), (0, 2), (2, 2)]):
        x[step, 0, first], x[step, 1, second] = 1, 2
    net = build("CTCGreedyDecoder", [(4, 2, 3)], "ctc_decoder_param { ctc_merge_repeated: false }")
    wanted = np.array([[1, 1, 2, -1], [2, 2, 2, -1]], np.float32)[:, :, None, None]
    assert_all_uses(net, [x], [wanted])
    net = build("CTCGreedyDecoder", [(4, 2, 3)], "ctc_decoder_param { blank_index: -1 }")
    assert_all_uses(net, [x], [np.array([[1, 0, -1, -1], [0, -1, -1, -1]], np.float32)[:, :, None, None]])


def test_edit_distance_is_that_of_the_table():
    rng = np.random.default_rng(5)
    for size in (0, 1, 2, 7, 70, 130):  # also beyond the bits of a machine word
        for kinds in (1, 2, 5):
            found, wanted = (
                rng.integers(0, kinds, max(0, size - cut)).tolist() for cut in rng.permutation(4)[:2]
            )
            table = np.add.outer(np.arange(len(found) + 1), np.arange(len(wanted) + 1))
            for i, j in np.ndindex(len(found), len(wanted)):
                table[i + 1, j + 1] = min(
                    table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (found[i] != wanted[j])
                )
            assert edit_distance(found, wanted) == table[-1, -1]


def test_decoder_of_many_steps_without_an_accuracy_and_of_as_many_as_fit():
    shape = (50_001, 4, 3)
    assert build("CTCGreedyDecoder", [shape, shape[:2], shape[:2]], "", 1)
    assert build("CTCGreedyDecoder", [(50_000, 4, 3), (50_000, 4), (50_000, 4)], "", 2)


def test_lstm_of_several_streams_takes_the_hidden_term_of_the_first():
    net = build(
        "Lstm", [(6, 3)], 'lstm_param { num_output: 2 batch_size: 3 weight_filler { type: "xavier" } }'
    )
    weight, hidden, _ = (blob.detach().numpy() for blob in net.params["op"])
    x = draw(8, 6, 3)
    h, c, wanted = np.zeros((3, 2)), np.zeros((3, 2)), []
    for step in range(2):
        gates = x[3 * step : 3 * step + 3] @ weight.T + h[:1] @ hidden.T
        i, f, o, g = (1 / (1 + np.exp(-gates[:, 2 * k : 2 * k + 2])) for k in range(4))
        g = np.tanh(gates[:, 6:])
        c = f * c + i * g
        h = o * np.tanh(c)
        wanted.append(h)
    assert_all_uses(net, [x], [np.concatenate(wanted).astype(np.float32)])


def test_reverse_of_two_axes():
    net = build("Reverse", [(2, 3, 4)], "reverse_param { axis: -1 axis: 0 }")
    x = draw(1, 2, 3, 4)
    assert_all_uses(net, [x], [x[::-1, :, ::-1]])


SCORES = (5, 2, 4)
REFUSED = {
    "Transpose": ("Transpose", [(2, 3, 4)], "transpose_param { dim: 0 dim: 1 }", 1,
                  "dim [0, 1] must list each axis of a blob of 3 axes once"),
    "Reverse twice": ("Reverse", [(2, 3, 4)], "reverse_param { axis: 0 axis: -3 }", 1,
                      "axis [0, -3] names an axis twice"),
    "Reverse axis": ("Reverse", [(2, 3)], "reverse_param { axis: 2 }", 1, "axis 2 is outside a blob of 2 axes"),
    "ReverseTime": ("ReverseTime", [(4, 2, 3), (3,)], "", 1,
                    "needs values time × stream and one length per stream, not [4, 2, 3] and [3]"),
    "Lstm outputs": ("Lstm", [(4, 2, 3)], "", 1, "num_output is 0 or absent; state the number of outputs per step"),
    "Lstm rows": ("Lstm", [(5, 3)], "lstm_param { num_output: 2 batch_size: 2 }", 1,
                  "5 rows are not a multiple of batch_size 2"),
    "Lstm markers": ("Lstm", [(4, 2, 3), (4, 2)], "lstm_param { num_output: 2 }", 1,
                     "markers go with one stream, not 2: the layer would read those of other steps"),
    "WarpCTCLoss labels": ("WarpCTCLoss", [SCORES, (3, 2)], "", 1, "labels [3, 2] must hold a row for each of 2 streams"),
    "WarpCTCLoss blank": ("WarpCTCLoss", [SCORES, (5, 2), (5, 2)], "", 1,
                          "blank_index 0 with indicators has two meanings: caffe_ocr adds 1 to each label, ChWick's fork "
                          "does not; use another blank_index, or labels N×L"),
    "WarpCTCLoss class": ("WarpCTCLoss", [SCORES, (2, 3)], "ctc_loss_param { blank_index: 4 }", 1,
                          "blank_index 4 is not one of the 4 classes"),
    "CtcLoss alphabet": ("CtcLoss", [SCORES, (2, 3)], "ctc_loss_param { alphabet_size: 5 time_step: 5 }", 1,
                         "scores [5, 2, 4] have 4 classes; alphabet_size states 5"),
    "CtcLoss steps": ("CtcLoss", [SCORES, (2, 3)], "ctc_loss_param { alphabet_size: 4 time_step: 6 }", 1,
                      "time_step 6 is out of range; scores [5, 2, 4] have 5 steps"),
    "CtcLoss nothing": ("CtcLoss", [SCORES, (2, 3)], "", 1, "alphabet_size and time_step must be stated and over 0"),
    "CTCLoss targets": ("CTCLoss", [SCORES, (5, 2), (4, 2)], "", 1, "labels [4, 2] must be 5×2"),
    "CTCLoss delay": ("CTCLoss", [SCORES, (5, 2), (5, 2)], "ctc_loss_param { output_delay: -1 }", 1,
                      "output_delay -1 must be at least 0"),
    "decoder tops": ("CTCGreedyDecoder", [SCORES], "", 2, "has 2 tops for 1 bottoms; it takes 1"),
    "decoder either": ("CTCGreedyDecoder", [(2, 2, 4), (2, 2)], "", 1,
                       "the second bottom [2, 2] may be caffe_ocr's labels N×L or ChWick's indicators T×N; use another "
                       "batch size than the 2 steps"),
    "decoder pairs": ("CTCGreedyDecoder", [(50_001, 4, 3), (50_001, 4), (50_001, 4)], "", 2,
                      "the accuracy compares 50,001 steps with 50,001 labels in each of 4 items; at most "
                      "10,000,000,000 pairs are supported"),
    "decoder labels": ("CTCGreedyDecoder", [(50_001, 2, 3), (2, 100_000)], "", 1,
                       "the accuracy compares 50,001 steps with 100,000 labels in each of 2 items; at most "
                       "10,000,000,000 pairs are supported"),
}  # fmt: skip


@pytest.mark.parametrize(("type_", "shapes", "params", "tops", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(type_, shapes, params, tops, message):
    with pytest.raises(LayerError) as caught:
        build(type_, shapes, params, tops)
    assert str(caught.value) == f"op ({type_}): {message}"


WRONG_VALUES = {
    "label": ("WarpCTCLoss", "", [X, np.array([[1, 4], [2, 0]], np.float32)],
              "label 4 is out of range; it must be from 0 to 3"),
    "too many labels": ("CTCLoss", "", [X, INDICATORS * [[1, 0]], TARGETS],
                        "3 labels are more than the 1 steps left by output_delay 0"),
    "no label": ("CTCLoss", "", [X, INDICATORS, np.full((STEPS, ITEMS), -1, np.float32)],
                 "labels [] of a sequence hold none but the blank label 3"),
    "length": ("ReverseTime", "", [X, np.array([2, 6], np.float32)],
               "a sequence's length 6 is out of range; it must be from 0 to 5"),
}  # fmt: skip


@pytest.mark.parametrize(("type_", "params", "arrays", "message"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_wrong_values(type_, params, arrays, message):
    net = build(type_, [array.shape for array in arrays], params)
    with pytest.raises(LayerError) as caught:
        run(net, [array.astype(np.float32) for array in arrays])
    assert str(caught.value) == f"op ({type_}): {message}"


def test_onnx_of_a_decoder_with_indicators_runs_for_another_batch():
    net = build("CTCGreedyDecoder", [(5, 2, 4), (5, 2)], "", tops=2)
    x, marks = draw(2, 5, 2, 4), INDICATORS
    for found, wanted in zip(run_onnx(net, [x, marks]), run(net, [x, marks]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
