"""Crop, BatchReindex, Filter and ArgMax against slow formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import assert_all_uses, build, draw, gradients, run, run_onnx, run_source

from ilgnet_repro.errors import LayerError

PROPERTY = settings(max_examples=examples(60), deadline=None)


@PROPERTY
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple), data=st.data())
def test_crop(shape, data) -> None:
    rank = len(shape)
    axis = data.draw(st.integers(0, rank - 1))
    wanted = [data.draw(st.integers(1, length)) for length in shape]
    offsets = [data.draw(st.integers(0, shape[i] - wanted[i])) for i in range(axis, rank)]
    if data.draw(st.booleans()):  # one offset for all axes
        offsets = [min(offsets)]
    text = " ".join(f"offset: {offset}" for offset in offsets if len(offsets) > 1 or offset)
    x, like = draw(1, *shape), draw(2, *wanted)
    stated = data.draw(st.sampled_from([axis, axis - rank]))
    net = build("Crop", [shape, like.shape], f"crop_param {{ axis: {stated} {text} }}")

    expected = np.empty(shape[:axis] + like.shape[axis:], np.float32)
    origins = np.zeros_like(x)
    for place in np.ndindex(*expected.shape):
        origin = list(place)
        for i in range(axis, rank):
            origin[i] += offsets[(i - axis) % len(offsets)]
        expected[place] = x[tuple(origin)]
        origins[tuple(origin)] = place[0] + 1
    assert_all_uses(net, [x, like], [expected])
    # The gradient flows only to the elements that were selected.
    diff = np.broadcast_to(np.arange(1, len(expected) + 1).reshape(-1, *[1] * (rank - 1)), expected.shape)
    found, none = gradients(net, [x, like], np.ascontiguousarray(diff, np.float32))
    np.testing.assert_array_equal(found, origins)
    assert none is None


@PROPERTY
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple),
    along=st.booleans(),
    with_values=st.booleans(),
    levels=st.integers(1, 6),
    data=st.data(),
)
def test_arg_max_prefers_the_last_of_equal_values(shape, along, with_values, levels, data) -> None:
    rank = len(shape)
    axis = data.draw(st.integers(0, rank - 1))
    x = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, levels, shape).astype(np.float32)
    rows = np.moveaxis(x, axis, -1) if along else x.reshape(shape[0], -1)
    count = data.draw(st.integers(1, rows.shape[-1]))
    values = np.empty((*rows.shape[:-1], count), np.float32)
    indices = np.empty_like(values)
    for place in np.ndindex(*rows.shape[:-1]):
        best = sorted(((value, index) for index, value in enumerate(rows[place])), reverse=True)[:count]
        values[place] = [value for value, _ in best]
        indices[place] = [index for _, index in best]
    if along:
        expected = np.moveaxis(values if with_values else indices, -1, axis)
    else:
        layout = np.stack([indices, values], 1) if with_values else indices[:, None]
        expected = layout.reshape(*layout.shape, *(1,) * (max(rank, 3) - 3))
    field = f"axis: {data.draw(st.sampled_from([axis, axis - rank]))}" if along else ""
    params = f"argmax_param {{ {field} top_k: {count} out_max_val: {str(with_values).lower()} }}"
    assert_all_uses(build("ArgMax", [shape], params), [x], [expected])


def test_batch_reindex_repeats_and_sums_gradients() -> None:
    x, order = draw(1, 4, 3, 2), np.array([3, 0, 3, 3, 1, 0, 1], np.float32)
    net = build("BatchReindex", [x.shape, order.shape])
    assert_all_uses(net, [x, order], [np.stack([x[int(i)] for i in order])])
    diff = draw(2, 7, 3, 2)
    expected = np.zeros_like(x)
    for row, i in enumerate(order):
        expected[int(i)] += diff[row]
    np.testing.assert_allclose(gradients(net, [x, order], diff)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("wrong", [-1, 4], ids=["below", "above"])
def test_batch_reindex_refuses_an_index_out_of_range(wrong) -> None:
    net = build("BatchReindex", [(4, 3), (2,)])
    with pytest.raises(
        LayerError, match=rf"op \(BatchReindex\): image number {wrong} is out of range.* 0 to 3"
    ):
        run(net, [draw(1, 4, 3), np.array([1, wrong], np.float32)])


@pytest.mark.parametrize("use", [run, run_onnx, run_source])
@pytest.mark.parametrize(
    "selector", [[1, 0, -2, 0, 0.5], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], ids=["some", "none", "all"]
)
def test_filter_keeps_images_whose_selector_is_not_zero(selector, use) -> None:
    x, y = draw(1, 5, 3, 2), draw(2, 5, 4)
    chosen = np.array(selector, np.float32).reshape(5, 1, 1)
    net = build("Filter", [x.shape, y.shape, chosen.shape], tops=2)
    kept = [i for i, value in enumerate(selector) if value]
    assert net.shapes["top0"] == (5, 3, 2), "the most it can be"
    for found, whole in zip(use(net, [x, y, chosen]), (x, y), strict=True):
        assert found.shape == (len(kept), *whole.shape[1:])
        np.testing.assert_array_equal(found, whole[kept])


X = (2, 6, 5, 7)
REFUSED = {
    "Crop other rank": (
        "Crop",
        [X, (2, 6, 5)],
        "",
        1,
        r"bottoms \[2, 6, 5, 7\] and \[2, 6, 5\] differ in their number of axes",
    ),
    "Crop axis outside": ("Crop", [X, X], "crop_param { axis: 4 }", 1, "axis 4 is outside a blob of 4 axes"),
    "Crop offsets count": (
        "Crop",
        [X, X],
        "crop_param { axis: 1 offset: 1 offset: 1 }",
        1,
        "offset is stated 2 times for 3 axes; state 1 or 3",
    ),
    "Crop past the end": (
        "Crop",
        [X, (2, 6, 4, 4)],
        "crop_param { offset: 2 }",
        1,
        "axis 2 of length 5 has no 4 values from 2 on",
    ),
    "Crop one bottom": ("Crop", [X], "", 1, "has 1 bottoms; it takes 2"),
    "BatchReindex order of two axes": ("BatchReindex", [X, (2, 1)], "", 1, r"\[2, 1\] must have one axis"),
    "Filter tops": (
        "Filter",
        [X, (2,)],
        "",
        2,
        "has 1 bottoms to filter and 2 tops; the numbers must be equal",
    ),
    "Filter wide selector": (
        "Filter",
        [X, (2, 3)],
        "",
        1,
        r"selector \[2, 3\] must hold one value per image",
    ),
    "Filter other batch": (
        "Filter",
        [X, (3,)],
        "",
        1,
        r"\[2, 6, 5, 7\] and the selector \[3\] differ in their number of images",
    ),
    "ArgMax top_k 0": (
        "ArgMax",
        [X],
        "argmax_param { top_k: 0 }",
        1,
        "top_k 0 must be from 1 to the 210 values",
    ),
    "ArgMax top_k over the axis": (
        "ArgMax",
        [X],
        "argmax_param { top_k: 7 axis: 1 }",
        1,
        "top_k 7 must be from 1 to the 6 values compared",
    ),
    "ArgMax axis outside": (
        "ArgMax",
        [X],
        "argmax_param { axis: -5 }",
        1,
        "axis -5 is outside a blob of 4 axes",
    ),
}


@pytest.mark.parametrize(("type_", "shapes", "params", "tops", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(type_, shapes, params, tops, message) -> None:
    with pytest.raises(LayerError, match=message) as caught:
        build(type_, shapes, params, tops)
    assert str(caught.value).startswith(f"op ({type_}): ") and "\n" not in str(caught.value)
