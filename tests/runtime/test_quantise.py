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
    # Half a step when rounded to nearest, three more with the errors of the neighbours before it.
    steps = (found.dequantize() - given).abs() / found.scale[:, None]
    assert steps.max() <= (0.501 if plane is None else 2.001)


def diffused(plane: np.ndarray) -> np.ndarray:
    """A plane in steps, rounded one weight at a time, so that every corner's sum is within half a step."""
    found = np.zeros_like(plane)
    for row, column in np.ndindex(plane.shape):
        corner = (slice(row + 1), slice(column + 1))
        found[row, column] = np.clip(np.round(plane[corner].sum() - found[corner].sum()), -127, 127)
    return found


def test_each_channel_has_a_scale_and_errors_are_diffused_in_it() -> None:
    given = weights(7) * torch.logspace(0, 2, 5).repeat_interleave(77)
    found = quantize_rows(given, "int8", PLANE, by_channel=True)
    planes = given.view(7, 5, 7, 11).double().numpy()
    scale = np.abs(planes).max((2, 3)) / 127
    assert found.scale is not None
    np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
    steps = planes / scale[..., None, None]
    expected = np.array([[diffused(plane) for plane in row] for row in steps])
    # Past the largest value an error is cut, which the sums of corners do not show.
    alike = (found.values.view(7, 5, 7, 11).numpy() == expected).all((2, 3))
    assert alike.mean() > 0.9
    restored = found.values.view(7, 5, 77).double() * torch.from_numpy(scale)[..., None]
    np.testing.assert_allclose(found.dequantize(), restored.view(7, 385), rtol=1e-5)


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
