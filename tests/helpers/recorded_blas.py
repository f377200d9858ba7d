"""Matrix products summed in the order of the BLAS that Caffe ran on when the solver runs were recorded.

Slow and independent of any BLAS, so that the same near-ties fall the same way on every machine. The order is
that of OpenBLAS 0.3 on AVX-512 for small matrices, and was found by comparing bits: a fused multiply-add for
each k in turn; where the second matrix is a transpose, sixteen of them side by side, added up in pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 16


def fused(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total + a·b, rounded once: float64 holds the product of two float32 numbers exactly."""
    return (total.double() + a.double() * b.double()).float()


def in_turn(a: Tensor, b: Tensor) -> Tensor:
    """Each sum from its first product to its last."""
    total = torch.zeros(a.shape[0], b.shape[1])
    for k in range(a.shape[1]):
        total = fused(total, a[:, k, None], b[k])
    return total


def side_by_side(a: Tensor, b: Tensor) -> Tensor:
    """Sixteen sums side by side, added up in pairs of neighbours."""
    rest = -a.shape[1] % LANES
    a, b = torch.nn.functional.pad(a, (0, rest)), torch.nn.functional.pad(b, (0, 0, 0, rest))
    lanes = torch.zeros(a.shape[0], b.shape[1], LANES)
    for k in range(0, a.shape[1], LANES):
        lanes = fused(lanes, a[:, None, k : k + LANES], b[k : k + LANES].T)
    while lanes.shape[-1] > 1:
        lanes = lanes[..., 0::2] + lanes[..., 1::2]
    return lanes[..., 0]


def recorded_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a·b of (M, K) and (K, N) in float32."""
    if a.shape[1] < LANES:
        return in_turn(a, b)
    whole = b.shape[1] // LANES * LANES if b.is_contiguous() else 0
    return torch.cat([in_turn(a, b[:, :whole]), side_by_side(a, b[:, whole:])], 1)
