"""Flatten, Reshape, Tile, Permute and ShuffleChannel against slow formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import assert_all_uses, build, draw

from ilgnet_repro.errors import LayerError

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)
PROPERTY = settings(max_examples=examples(60), deadline=None)


def axis_text(data: st.DataObject, axis: int, rank: int) -> int:
    """The axis counted from the front or from the back."""
    return data.draw(st.sampled_from([axis, axis - rank]))


@PROPERTY
@given(shape=SHAPES, data=st.data())
def test_flatten(shape, data) -> None:
    start = data.draw(st.integers(0, len(shape) - 1))
    end = data.draw(st.integers(start, len(shape) - 1))
    x = draw(1, *shape)
    first, last = axis_text(data, start, len(shape)), axis_text(data, end, len(shape))
    net = build("Flatten", [shape], f"flatten_param {{ axis: {first} end_axis: {last} }}")
    count = 1
    for length in shape[start : end + 1]:
        count *= length
    expected = np.array(list(x.flat)).reshape((*shape[:start], count, *shape[end + 1 :]))
    assert_all_uses(net, [x], [expected])


@pytest.mark.parametrize("axis", [1, 2])
def test_flatten_of_no_axis_inserts_one(axis) -> None:
    x = draw(1, 2, 3, 4)
    net = build("Flatten", [x.shape], f"flatten_param {{ axis: {axis} end_axis: {axis - 1} }}")
    assert_all_uses(net, [x], [np.expand_dims(x, axis)])


@PROPERTY
@given(shape=SHAPES, data=st.data())
def test_reshape(shape, data) -> None:
    rank = len(shape)
    start = data.draw(st.integers(0, rank))
    end = data.draw(st.integers(start, rank))
    # Any way to write the replaced part: its own lengths, some as 0 and one as -1, with ones inserted.
    middle = list(shape[start:end])
    stated = [data.draw(st.sampled_from([length, 0])) for length in middle]
    if stated and data.draw(st.booleans()):
        stated[data.draw(st.integers(0, len(stated) - 1))] = -1
    ones = data.draw(st.integers(0, 2))
    stated += [1] * ones
    if len(middle) > 1 and data.draw(st.booleans()):  # or merge all of it
        stated, middle, ones = [-1], [int(np.prod(middle))], 0
    dims = " ".join(f"dim: {length}" for length in stated)
    axis = data.draw(st.sampled_from([start, start - rank - 1]))
    count = -1 if end == rank and data.draw(st.booleans()) else end - start
    net = build("Reshape", [shape], f"reshape_param {{ shape {{ {dims} }} axis: {axis} num_axes: {count} }}")
    x = draw(2, *shape)
    top = shape[:start] + tuple(middle) + (1,) * ones + shape[end:]
    assert_all_uses(net, [x], [np.array(list(x.flat)).reshape(top)])


@PROPERTY
@given(shape=SHAPES, tiles=st.integers(1, 3), data=st.data())
def test_tile(shape, tiles, data) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = draw(3, *shape)
    net = build("Tile", [shape], f"tile_param {{ axis: {axis_text(data, axis, len(shape))} tiles: {tiles} }}")
    top = (*shape[:axis], tiles * shape[axis], *shape[axis + 1 :])
    expected = np.empty(top, np.float32)
    for place in np.ndindex(*top):
        expected[place] = x[(*place[:axis], place[axis] % shape[axis], *place[axis + 1 :])]
    assert_all_uses(net, [x], [expected])


@PROPERTY
@given(shape=SHAPES, data=st.data())
def test_permute(shape, data) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    stated = order[: data.draw(st.integers(0, len(order)))]
    order = stated + [axis for axis in range(len(shape)) if axis not in stated]
    x = draw(4, *shape)
    net = build("Permute", [shape], f"permute_param {{ {' '.join(f'order: {axis}' for axis in stated)} }}")
    expected = np.empty([shape[axis] for axis in order], np.float32)
    for place in np.ndindex(*expected.shape):
        origin = [0] * len(shape)
        for index, axis in zip(place, order, strict=True):
            origin[axis] = index
        expected[place] = x[tuple(origin)]
    assert_all_uses(net, [x], [expected])


@PROPERTY
@given(group=st.integers(1, 4), each=st.integers(1, 3), rest=st.lists(st.integers(1, 4), max_size=2))
def test_shuffle_channel(group, each, rest) -> None:
    shape = (2, group * each, *rest)
    x = draw(5, *shape)
    expected = np.empty_like(x)
    for row in range(group):
        for column in range(each):
            expected[:, column * group + row] = x[:, row * each + column]
    net = build("ShuffleChannel", [shape], f"shuffle_channel_param {{ group: {group} }}")
    # The forks shape the top num x channels x height x width.
    assert_all_uses(net, [x], [expected.reshape(*shape, *[1] * (2 - len(rest)))])


def test_a_length_stated_for_the_batch_is_kept_as_in_caffe() -> None:
    net = build("Reshape", [(2, 6)], "reshape_param { shape { dim: 2 dim: -1 dim: 3 } }")
    assert net.blob_shapes(in0=(4, 6))["top0"] == (2, 4, 3)


X = [(2, 6, 5, 7)]
REFUSED = {
    "Flatten axis outside": (
        "Flatten",
        X,
        "flatten_param { axis: 4 }",
        1,
        "axis 4 is outside a blob of 4 axes",
    ),
    "Flatten end outside": (
        "Flatten",
        X,
        "flatten_param { end_axis: -5 }",
        1,
        "end_axis -5 is outside a blob",
    ),
    "Flatten backwards": (
        "Flatten",
        X,
        "flatten_param { axis: 3 end_axis: 1 }",
        1,
        "end_axis 1 is before axis 3",
    ),
    "Reshape below -1": (
        "Reshape",
        X,
        "reshape_param { shape { dim: -2 } }",
        1,
        r"shape \[-2\] holds a length below -1",
    ),
    "Reshape two inferred": (
        "Reshape",
        X,
        "reshape_param { shape { dim: -1 dim: -1 } }",
        1,
        r"shape \[-1, -1\] has several lengths to infer",
    ),
    "Reshape num_axes": ("Reshape", X, "reshape_param { num_axes: -2 }", 1, "num_axes -2 must be at least 0"),
    "Reshape axis outside": (
        "Reshape",
        X,
        "reshape_param { axis: -6 }",
        1,
        "axis -6 is outside a blob of 4 axes",
    ),
    "Reshape past the end": (
        "Reshape",
        X,
        "reshape_param { axis: 2 num_axes: 3 }",
        1,
        "axis 2 and num_axes 3 exceed 4 axes",
    ),
    "Reshape copies no axis": (
        "Reshape",
        X,
        "reshape_param { shape { dim: 0 dim: 0 } axis: 3 }",
        1,
        "copies axis 4 of a blob of 4 axes",
    ),
    "Reshape no multiple": (
        "Reshape",
        X,
        "reshape_param { shape { dim: 4 dim: -1 dim: 11 } }",
        1,
        r"bottom \[2, 6, 5, 7\] is not a multiple of the stated lengths \[4, -1, 11\]",
    ),
    "Reshape other count": (
        "Reshape",
        X,
        "reshape_param { shape { dim: 2 dim: 7 } }",
        1,
        r"bottom \[2, 6, 5, 7\] has 420 values, shape \[2, 7\] has 14",
    ),
    "Tile without tiles": ("Tile", X, "", 1, "tiles 0 must be stated and over 0"),
    "Tile axis": ("Tile", X, "tile_param { tiles: 2 axis: 4 }", 1, "axis 4 is outside"),
    "Permute twice": (
        "Permute",
        X,
        "permute_param { order: 1 order: 1 }",
        1,
        r"order \[1, 1\] names an axis twice",
    ),
    "Permute outside": ("Permute", X, "permute_param { order: 4 }", 1, "that a blob of 4 axes does not have"),
    "ShuffleChannel group": (
        "ShuffleChannel",
        X,
        "shuffle_channel_param { group: 4 }",
        1,
        "6 channels are not a multiple of group 4",
    ),
    "ShuffleChannel group 0": (
        "ShuffleChannel",
        X,
        "shuffle_channel_param { group: 0 }",
        1,
        "multiple of group 0",
    ),
    "ShuffleChannel five axes": (
        "ShuffleChannel",
        [(2, 3, 4, 5, 1)],
        "shuffle_channel_param { group: 3 }",
        1,
        r"bottom \[2, 3, 4, 5, 1\] has 5 axes; it takes 2 to 4",
    ),
    "ShuffleChannel no channels": ("ShuffleChannel", [(3,)], "", 1, "has no channels; it needs 2 axes"),
}


@pytest.mark.parametrize(("type_", "shapes", "params", "tops", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(type_, shapes, params, tops, message) -> None:
    with pytest.raises(LayerError, match=message) as caught:
        build(type_, shapes, params, tops)
    assert str(caught.value).startswith(f"op ({type_}): ") and "\n" not in str(caught.value)
