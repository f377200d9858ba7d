"""NormL2, L2Norm, ChannelNorm and ChannelScale against loops, with the gradients of the forks, and their refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, gradients

from ilgnet_repro.errors import LayerError

F32 = np.float32
SHAPES = [(4, 3), (3, 2, 5), (2, 3, 4, 5)]


def wide(shape):
    return (*shape, *[1] * (4 - len(shape)))


@pytest.mark.parametrize("shape", [(4,), *SHAPES], ids=str)
@pytest.mark.parametrize(
    ("type_", "squares"),
    [("NormL2", lambda s: s + 1e-7), ("L2Norm", lambda s: max(s, 1e-12))],
    ids=["eps", "least"],
)
def test_unit_length(type_, squares, shape):
    x, diff = draw(*shape), draw(*wide(shape), seed=5)
    x[0] = 0
    x[1] *= 1e-4
    expected, slope = np.zeros(shape), np.zeros(shape)
    for index, image in enumerate(x.astype(np.float64)):
        length = np.sqrt(squares((image**2).sum()))
        expected[index] = image / length
        given = diff[index].reshape(image.shape)
        slope[index] = (given - expected[index] * (expected[index] * given).sum()) / length
    net = one_layer(f'type: "{type_}"', shape)
    assert_all_uses(net, [x], [expected.reshape(wide(shape)).astype(F32)])
    np.testing.assert_allclose(gradients(net, [x], diff)[0], slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channel_norm(shape):
    x, top = draw(*shape), wide((shape[0], 1, *shape[2:]))
    x[0, :, ...] = 0
    diff = draw(*top, seed=5)
    length = np.sqrt((x.astype(np.float64) ** 2).sum(1, keepdims=True))
    net = one_layer('type: "ChannelNorm"', shape)
    assert_all_uses(net, [x], [length.reshape(top).astype(F32)])
    expected = diff.reshape(length.shape) * x / (length + 1e-9)
    np.testing.assert_allclose(gradients(net, [x], diff)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("flags", range(8))
@pytest.mark.parametrize(
    ("shape", "given"), [((3, 4, 2, 5), (3, 1, 2, 5)), ((3, 4), (3,))], ids=["map", "rows"]
)
def test_channel_scale(shape, given, flags):
    forward, to_x, to_scale = (bool(flags >> bit & 1) for bit in range(3))
    names = ("do_forward", "do_backward_feature", "do_backward_scale")
    fields = " ".join(
        f"{name}: {str(flag).lower()}" for name, flag in zip(names, (forward, to_x, to_scale), strict=True)
    )
    x, scale, diff = draw(*shape), draw(*given, seed=1), draw(*shape, seed=5)
    net = one_layer(f'type: "ChannelScale" channel_scale_param {{ {fields} }}', shape, given)
    factor = scale.reshape(shape[0], 1, *shape[2:])
    assert_all_uses(net, [x, scale], [x * factor if forward else x])
    found = gradients(net, [x, scale], diff)
    np.testing.assert_allclose(found[0], diff * factor if to_x else diff, rtol=1e-5)
    if to_scale:
        np.testing.assert_allclose(found[1], (x * diff).sum(1).reshape(given), rtol=1e-4, atol=1e-5)
    else:
        assert found[1] is None or not found[1].any()


@pytest.mark.parametrize(
    ("body", "shapes", "message"),
    [
        (
            'type: "NormL2"',
            [(1, 2, 3, 4, 5)],
            "op (NormL2): bottom [1, 2, 3, 4, 5] has 5 axes; it takes 1 to 4",
        ),
        ('type: "ChannelNorm"', [(4,)], "op (ChannelNorm): bottom [4] has 1 axes; it takes 2 to 4"),
        (
            'type: "ChannelScale"',
            [(3, 4, 2), (3, 4)],
            "op (ChannelScale): needs one factor for each image and position of [3, 4, 2], not [3, 4]",
        ),
        (
            'type: "ChannelScale" channel_scale_param { global_scale: true }',
            [(3, 4), (3,)],
            "op (ChannelScale): channel_scale_param.global_scale is not supported; remove it if it does not matter",
        ),
    ],
    ids=["axes", "channel_axes", "factors", "global"],
)
def test_refused(body, shapes, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        one_layer(body, *shapes)
