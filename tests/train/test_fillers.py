"""Each filler's distribution: mean, variance, bounds, sparse counts, sums, exact values, and its seed."""

from __future__ import annotations

import math

import pytest
import torch

from ilgnet_repro.caffe.prototxt import parse_message
from ilgnet_repro.errors import LayerError
from ilgnet_repro.layers.support.base import BlobSpec
from ilgnet_repro.layers.support.fillers import fill
from ilgnet_repro.schema import caffe_pb2 as pb

SHAPE = (40, 30, 9, 7)  # fan_in 1,890, fan_out 40·63 = 2,520
FAN_IN, FAN_OUT = 30 * 63, 40 * 63


def filled(text: str, shape: tuple[int, ...] = SHAPE, seed: int = 5) -> torch.Tensor:
    spec = BlobSpec("weight", shape, parse_message(text, pb.FillerParameter))
    return fill(
        spec, torch.Generator().manual_seed(seed), lambda text: LayerError("conv", "Convolution", text)
    )


def check_moments(values: torch.Tensor, mean: float, variance: float) -> None:
    """Within five standard errors of a sample of this size."""
    values, count = values.double(), values.numel()
    assert abs(values.mean() - mean) < 5 * math.sqrt(variance / count)
    assert abs(values.var() / variance - 1) < 5 * math.sqrt(2 / count)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ('type: "uniform" min: -0.5 max: 2', -0.5, 2.0),
        ('type: "uniform"', 0.0, 1.0),
        ('type: "xavier"', -math.sqrt(3 / FAN_IN), math.sqrt(3 / FAN_IN)),
        ('type: "xavier" variance_norm: FAN_IN', -math.sqrt(3 / FAN_IN), math.sqrt(3 / FAN_IN)),
        ('type: "xavier" variance_norm: FAN_OUT', -math.sqrt(3 / FAN_OUT), math.sqrt(3 / FAN_OUT)),
        (
            'type: "xavier" variance_norm: AVERAGE',
            -math.sqrt(6 / (FAN_IN + FAN_OUT)),
            math.sqrt(6 / (FAN_IN + FAN_OUT)),
        ),
    ],
    ids=["uniform", "uniform-default", "xavier", "xavier-in", "xavier-out", "xavier-average"],
)
def test_uniform_families(text, low, high):
    values = filled(text)
    width = high - low
    assert low <= values.min() < low + 0.001 * width
    assert high - 0.001 * width < values.max() <= high
    check_moments(values, (low + high) / 2, width**2 / 12)


@pytest.mark.parametrize(
    ("text", "mean", "variance"),
    [
        ('type: "gaussian" mean: 0.25 std: 0.5', 0.25, 0.25),
        ('type: "gaussian"', 0.0, 1.0),
        ('type: "msra"', 0.0, 2 / FAN_IN),
        ('type: "msra" variance_norm: FAN_OUT', 0.0, 2 / FAN_OUT),
        ('type: "msra" variance_norm: AVERAGE', 0.0, 4 / (FAN_IN + FAN_OUT)),
    ],
    ids=["gaussian", "gaussian-default", "msra", "msra-out", "msra-average"],
)
def test_normal_families(text, mean, variance):
    values = filled(text).double()
    check_moments(values, mean, variance)
    # A normal distribution has 68.27 % within one standard deviation; a uniform one has 57.7 %.
    inside = ((values - mean).abs() < math.sqrt(variance)).double().mean()
    assert abs(inside - 0.6827) < 0.006


def test_sparse_gaussian_keeps_the_stated_inputs_per_output():
    values = filled('type: "gaussian" std: 2 sparse: 12', (50, 800))
    kept = values[values != 0]
    # Each value stays with probability 12 / 50.
    assert abs(kept.numel() / values.numel() - 12 / 50) < 5 * math.sqrt(0.24 * 0.76 / values.numel())
    check_moments(kept, 0.0, 4.0)


def test_positive_unitball_sums_to_one_per_output():
    values = filled('type: "positive_unitball"', (6, 5, 4, 3))
    assert (values >= 0).all() and values.unique().numel() > 300
    torch.testing.assert_close(values.reshape(6, -1).sum(1), torch.ones(6))


def bilinear_weight(x: float, y: float, size: int) -> float:
    """The weight at a position of a kernel that upsamples by ceil(size / 2), one value at a time."""
    factor = math.ceil(size / 2)
    centre = (2 * factor - 1 - factor % 2) / (2.0 * factor)
    return (1 - abs(x / factor - centre)) * (1 - abs(y / factor - centre))


# An even kernel's weights are known without a formula: 1/4, 3/4, 3/4, 1/4 of a step of two pixels.
KNOWN = {4: [0.25, 0.75, 0.75, 0.25]}


@pytest.mark.parametrize("size", [2, 3, 4, 6, 7])
def test_bilinear_values(size):
    expected = torch.tensor([[bilinear_weight(x, y, size) for x in range(size)] for y in range(size)])
    if size in KNOWN:
        line = torch.tensor(KNOWN[size])
        torch.testing.assert_close(expected, torch.outer(line, line))
    values = filled('type: "bilinear"', (3, 2, size, size))
    torch.testing.assert_close(values, expected.expand(3, 2, size, size))


@pytest.mark.parametrize(
    ("text", "value"), [('type: "constant" value: 0.2', 0.2), ('type: "constant"', 0.0), ("", 0.0)]
)
def test_constants(text, value):
    assert filled(text).unique().tolist() == [pytest.approx(value)]


@pytest.mark.parametrize("type_", ["gaussian", "msra", "positive_unitball", "uniform", "xavier"])
def test_same_seed_same_values(type_):
    text = f'type: "{type_}"'
    assert torch.equal(filled(text, seed=3), filled(text, seed=3))
    assert not torch.equal(filled(text, seed=3), filled(text, seed=4))


def test_one_axis_blobs_fill():
    """A bias has no second axis: fan_out is its whole count."""
    assert filled('type: "xavier" variance_norm: FAN_OUT', (300,)).abs().max() <= math.sqrt(3 / 300)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        (
            'type: "glorot"',
            SHAPE,
            "conv (Convolution): weight filler 'glorot' is unknown; use one of bilinear",
        ),
        ('type: "xavier" sparse: 3', SHAPE, "sparse goes with type gaussian only, not xavier"),
        ('type: "bilinear"', (3, 2, 4, 5), "bilinear filler needs a blob of 4 axes with a square window"),
        ('type: "bilinear"', (3, 4), "bilinear filler needs a blob of 4 axes with a square window"),
    ],
    ids=["unknown", "sparse", "oblong", "flat"],
)
def test_refused_by_name(text, shape, message):
    with pytest.raises(LayerError) as raised:
        filled(text, shape)
    assert message in str(raised.value)
