"""The fast path's three forms of LRN against the formula, channel by channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ilgnet_repro.layers.lrn import divided_by_window, lrn_by_product, lrn_in_place


def slow_lrn(x: np.ndarray, size: int, factor: float, beta: float, k: float) -> np.ndarray:
    result = np.empty_like(x)
    for channel in range(x.shape[1]):
        window = x[:, max(0, channel - size // 2) : channel + size // 2 + 1]
        result[:, channel] = x[:, channel] / (k + factor * (window**2).sum(1)) ** beta
    return result


@pytest.mark.parametrize("channels", [1, 2, 6, 9], ids="{} channels".format)
@pytest.mark.parametrize(
    ("size", "factor", "beta", "k"),
    [(5, 2e-5, 0.75, 1.0), (5, 0.4, 0.75, 2.0), (3, 0.5, 1.5, 1.0), (1, 2.0, 0.75, 1.0), (7, 0.3, 0.25, 3.0)],
    ids=["GoogLeNet's", "strong", "another beta", "one channel", "wide"],
)
def test_every_form(channels: int, size: int, factor: float, beta: float, k: float) -> None:
    x = np.random.default_rng(2).normal(scale=20, size=(2, channels, 3, 4))
    expected = slow_lrn(x, size, factor, beta, k)
    blob = torch.from_numpy(x).float().contiguous(memory_format=torch.channels_last)
    in_place = lrn_in_place(blob, size, factor, beta, k)
    np.testing.assert_allclose(in_place.numpy(), expected, rtol=1e-5, atol=1e-6)
    product = lrn_by_product(blob, size, factor, beta, k)
    np.testing.assert_allclose(product.numpy(), expected, rtol=1e-5, atol=1e-6)
    padded = F.pad(blob.permute(0, 2, 3, 1), (size // 2, size // 2))
    window = divided_by_window(padded, size, factor, beta, k).permute(0, 3, 1, 2)
    np.testing.assert_allclose(window.numpy(), expected, rtol=1e-5, atol=1e-6)
