"""Rounding with error diffusion: its bounds, and its effect on smooth features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilgnet_repro.runtime.quantize import quantize_rows

PLANE = (5, 7, 11)


def weights(outputs: int = 37) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(outputs, 5 * 7 * 11, generator=generator) * torch.logspace(-3, 1, outputs)[:, None]


@pytest.mark.parametrize("plane", [None, PLANE], ids=["flat", "plane"])
def test_int8_spans_each_output(plane) -> None:
    given = weights()
    found = quantize_rows(given, "int8", plane)
    assert found.values.dtype == torch.int8
    assert found.values.shape == given.shape
    np.testing.assert_allclose(found.scale, np.abs(given.numpy()).max(1) / 127, rtol=1e-6)
    # Half a step when rounded to nearest, one step with the error of the previous weight.
    steps = (found.dequantize() - given).abs() / found.scale[:, None]
    assert steps.max() <= (0.501 if plane is None else 1.001)


def test_rounding_errors_of_a_channel_cancel() -> None:
    given = weights()
    found = quantize_rows(given, "int8", PLANE)
    left = (found.dequantize() - given).view(37, 5, 77).double().sum(2) / found.scale[:, None]
    assert left.abs().max() <= 0.51  # half a step in total, for any number of weights


def test_flat_bfloat16_rounds_to_nearest() -> None:
    given = weights()
    assert torch.equal(quantize_rows(given, "bfloat16").values, given.bfloat16())


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_smooth_features_have_smaller_errors(precision: str) -> None:
    given = weights()
    rows, columns = np.mgrid[0:7, 0:11]
    features = torch.from_numpy(
        np.stack([1 + np.sin(rows / 5 + channel) * np.cos(columns / 7) for channel in range(5)])
    )

    def error(plane) -> float:
        restored = quantize_rows(given, precision, plane).dequantize()
        return (
            (((restored - given).double() @ features.flatten()) / given.norm(dim=1))
            .square()
            .mean()
            .sqrt()
            .item()
        )

    assert error(PLANE) < error(None) / 3


def test_zero_weights_stay_zero() -> None:
    found = quantize_rows(torch.zeros(3, 6), "int8", (1, 2, 3))
    assert not found.dequantize().any()
