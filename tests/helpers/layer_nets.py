"""Nets of one layer given as text, in either phase and with given blobs; tests/one_layer.py runs them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from one_layer import layer_text, run, run_onnx, run_source

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet


def one_layer(
    body: str,
    *shapes: tuple[int, ...],
    phase: str = "TEST",
    tops: int = 1,
    blobs: Sequence[np.ndarray] | None = None,
) -> CaffeNet:
    """Build a net whose layer ``op`` reads in0, in1, ... and writes top0, ...; ``body`` is its other text."""
    type_, rest = body.removeprefix('type: "').split('"', 1)
    graph = load_graph(parse_net(layer_text(type_, shapes, rest, tops)), phase=phase)
    return CaffeNet(graph, None if blobs is None else {"op": list(blobs)}, seed=3)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    """Draw a float32 blob from a normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(net, x, expected, rtol=1e-5, atol=1e-6):
    """Compare all three ways of running with what is expected."""
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, [x])[0], expected, rtol=rtol, atol=atol, err_msg=use.__name__)


def by_channel(values, rank):
    """Shape one value per channel so that it broadcasts over a blob."""
    return np.asarray(values).reshape(1, -1, *[1] * (rank - 2))


def statistics(x):
    """Return each channel's mean and biased variance, in double precision."""
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    return x.astype(np.float64).mean(axes), x.astype(np.float64).var(axes)
