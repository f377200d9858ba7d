"""SPP against slow loops, and what it refuses."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import draw, one_layer
from one_layer import run, run_onnx, run_source
from slow_pooling import slow_pool

from ilgnet_repro.errors import LayerError


def slow_pyramid(x, levels, method):
    parts = []
    for level in range(levels):
        bins = 2**level
        kernel = [ceil(size / bins) for size in x.shape[2:]]
        pad = [(k * bins - size + 1) // 2 for k, size in zip(kernel, x.shape[2:], strict=True)]
        parts.append(slow_pool(x, method, kernel, kernel, pad, ceil_mode=True)[0].reshape(len(x), -1))
    return np.concatenate(parts, 1)


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(1, 3), st.sampled_from(["MAX", "AVE"]), st.integers(1, 17), st.integers(1, 17))
def test_pyramid_equals_slow_loops(levels, method, height, width):
    x = draw(2, 3, height, width)
    body = f'type: "SPP" spp_param {{ pyramid_height: {levels} pool: {method} }}'
    try:
        net = one_layer(body, x.shape)
    except LayerError as error:
        assert "must be smaller than the kernel" in str(error)
        # Refused exactly where Caffe's pooling would refuse a level.
        assert any(
            (k * 2**v - size + 1) // 2 >= k for v in range(levels) for size in (height, width)
            for k in [ceil(size / 2**v)]
        )  # fmt: skip
        return
    expected = slow_pyramid(x, levels, method)
    if levels == 1:
        expected = expected.reshape(2, 3, 1, 1)
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, [x])[0], expected, rtol=1e-5, atol=1e-6, err_msg=use.__name__)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", r"pyramid_height 0 must be 1 to 15"),
        ("pyramid_height: 4000000000", r"pyramid_height 4000000000 must be 1 to 15"),
        ("pyramid_height: 3", r"pad \[2, 1\] must be smaller than the kernel \[2, 2\]"),
        ("pyramid_height: 2 pool: STOCHASTIC", r"goes with MAX and AVE only, not STOCHASTIC"),
    ],
    ids=["none", "huge", "too_fine", "stochastic"],
)
def test_pyramid_refuses(fields, message):
    with pytest.raises(LayerError, match=message):
        one_layer(f'type: "SPP" spp_param {{ {fields} }}', (2, 3, 5, 7))
