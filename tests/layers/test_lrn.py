"""LRN against slow loops, and what it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import check, draw, one_layer

from ilgnet_repro.errors import LayerError
from ilgnet_repro.export.onnx_graph import build_onnx


def slow_lrn(x, size, alpha, beta, *, k, within):
    x = x.astype(np.float64)
    result = np.empty_like(x)
    half = size // 2
    for n, c, i, j in np.ndindex(*x.shape):
        if within:
            window = x[n, c, max(i - half, 0) : i + half + 1, max(j - half, 0) : j + half + 1]
            scale = 1 + alpha / size**2 * (window**2).sum()
        else:
            scale = k + alpha / size * (x[n, max(c - half, 0) : c + half + 1, i, j] ** 2).sum()
        result[n, c, i, j] = x[n, c, i, j] / scale**beta
    return result


@settings(max_examples=examples(60), deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 6), st.integers(1, 5)),
    size=st.sampled_from([1, 3, 5, 7]),
    alpha=st.floats(0.0, 2.0, width=16),
    beta=st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.75, 0.875, 1.25]),
    k=st.sampled_from([1.0, 2.0, 0.5]),
    within=st.booleans(),
)
def test_lrn_equals_slow_loops(*, shape, size, alpha, beta, k, within):
    region = "WITHIN_CHANNEL" if within else "ACROSS_CHANNELS"
    fields = f"local_size: {size} alpha: {alpha} beta: {beta} k: {k} norm_region: {region}"
    x = 3 * draw(*shape)
    net = one_layer(f'type: "LRN" lrn_param {{ {fields} }}', shape)
    check(net, x, slow_lrn(x, size, alpha, beta, k=k, within=within))


def test_lrn_is_one_onnx_node_and_handles_large_values():
    net = one_layer('type: "LRN" lrn_param { alpha: 1e-4 }', (2, 9, 4, 5))
    assert [node.op_type for node in build_onnx(net).graph.node] == ["LRN"]
    x = 5000 * draw(2, 9, 4, 5)
    check(net, x, slow_lrn(x, 5, 1e-4, 0.75, k=1.0, within=False))


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ("local_size: 4", (2, 3, 5, 7), "local_size 4 must be odd"),
        ("local_size: 0", (2, 3, 5, 7), "local_size 0 must be odd"),
        ("", (2, 3, 5), "bottom [2, 3, 5] has 3 axes; it takes 4 (N, C, H, W)"),
    ],
    ids=["even", "zero", "rank"],
)
def test_lrn_refuses(fields, shape, message):
    with pytest.raises(LayerError, match=re.escape(f"op (LRN): {message}")):
        one_layer(f'type: "LRN" lrn_param {{ {fields} }}', shape)
