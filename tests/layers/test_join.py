"""Concat, Slice and Split against slow formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import assert_all_uses, build, draw, gradients

from ilgnet_repro.errors import LayerError

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)
PROPERTY = settings(max_examples=examples(60), deadline=None)


def axis_text(data: st.DataObject, axis: int, rank: int) -> int:
    """The axis counted from the front or from the back."""
    return data.draw(st.sampled_from([axis, axis - rank]))


@PROPERTY
@given(shape=SHAPES, lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_concat(shape, lengths, data) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    shapes = [(*shape[:axis], length, *shape[axis + 1 :]) for length in lengths]
    arrays = [draw(6 + index, *each) for index, each in enumerate(shapes)]
    expected = np.empty((*shape[:axis], sum(lengths), *shape[axis + 1 :]), np.float32)
    for place in np.ndindex(*expected.shape):
        which, offset = 0, place[axis]
        while offset >= lengths[which]:
            offset, which = offset - lengths[which], which + 1
        expected[place] = arrays[which][(*place[:axis], offset, *place[axis + 1 :])]
    field = data.draw(st.sampled_from([f"axis: {axis_text(data, axis, len(shape))}", f"concat_dim: {axis}"]))
    assert_all_uses(build("Concat", shapes, f"concat_param {{ {field} }}"), arrays, [expected])


@PROPERTY
@given(shape=SHAPES, lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_slice(shape, lengths, data) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    even = data.draw(st.booleans())
    lengths = [lengths[0]] * len(lengths) if even else lengths
    shape = (*shape[:axis], sum(lengths), *shape[axis + 1 :])
    x = draw(7, *shape)
    expected = []
    for index, length in enumerate(lengths):
        part = np.empty((*shape[:axis], length, *shape[axis + 1 :]), np.float32)
        for place in np.ndindex(*part.shape):
            part[place] = x[(*place[:axis], sum(lengths[:index]) + place[axis], *place[axis + 1 :])]
        expected.append(part)
    points = "" if even else " ".join(f"slice_point: {sum(lengths[:n])}" for n in range(1, len(lengths)))
    field = data.draw(st.sampled_from([f"axis: {axis_text(data, axis, len(shape))}", f"slice_dim: {axis}"]))
    net = build("Slice", [shape], f"slice_param {{ {field} {points} }}", tops=len(lengths))
    assert_all_uses(net, [x], expected)


def test_split_sums_the_gradients_of_its_tops() -> None:
    x, first, second = draw(1, 2, 3), draw(2, 2, 3), draw(3, 2, 3)
    net = build("Split", [(2, 3)], tops=2)
    assert_all_uses(net, [x], [x, x])
    np.testing.assert_allclose(gradients(net, [x], first, second)[0], first + second, rtol=1e-6)


X = [(2, 6, 5, 7)]
REFUSED = {
    "Concat other axes": (
        "Concat",
        [(2, 3, 5), (2, 4, 7)],
        "",
        1,
        r"bottoms \[2, 3, 5\] and \[2, 4, 7\] differ outside axis 1",
    ),
    "Concat other rank": (
        "Concat",
        [(2, 3, 5), (2, 3)],
        "concat_param { axis: 0 }",
        1,
        "differ outside axis 0",
    ),
    "Concat both axes": (
        "Concat",
        X,
        "concat_param { axis: 1 concat_dim: 1 }",
        1,
        "states both axis and concat_dim; state one of them",
    ),
    "Concat concat_dim outside": (
        "Concat",
        X,
        "concat_param { concat_dim: 4 }",
        1,
        "concat_dim 4 is outside",
    ),
    "Slice uneven": ("Slice", X, "", 4, "axis 1 of length 6 cannot be divided evenly into 4 tops"),
    "Slice points count": (
        "Slice",
        X,
        "slice_param { slice_point: 1 }",
        3,
        "has 1 slice_points for 3 tops; state 2",
    ),
    "Slice falling points": (
        "Slice",
        X,
        "slice_param { slice_point: 3 slice_point: 3 }",
        3,
        r"slice_points \[3, 3\] must increase from 1 to 6",
    ),
    "Slice point 0": ("Slice", X, "slice_param { slice_point: 0 }", 2, r"slice_points \[0\] must increase"),
    "Slice point outside": (
        "Slice",
        X,
        "slice_param { slice_point: 7 }",
        2,
        r"slice_points \[7\] must increase",
    ),
    "Slice both axes": (
        "Slice",
        X,
        "slice_param { axis: 1 slice_dim: 1 }",
        2,
        "states both axis and slice_dim",
    ),
}


@pytest.mark.parametrize(("type_", "shapes", "params", "tops", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(type_, shapes, params, tops, message) -> None:
    with pytest.raises(LayerError, match=message) as caught:
        build(type_, shapes, params, tops)
    assert str(caught.value).startswith(f"op ({type_}): ") and "\n" not in str(caught.value)
