"""Caffe's order of summation: the same convolutions and dense layers as torch's, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from recorded_blas import recorded_product

from ilgnet_repro.errors import SolverError
from ilgnet_repro.train.caffe_sums import CaffeSums, blas_product
from ilgnet_repro.train.precision import Precision


def convolved(x, weight, bias, geometry):
    return F.conv2d(x, weight, bias, **geometry)


def dense(x, weight, bias, geometry):
    return F.linear(x, weight, bias)


ALL = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
CASES = {
    "plain": (convolved, (2, 3, 9, 11), (4, 3, 3, 2), {}),
    "single numbers": (convolved, (2, 3, 9, 11), (4, 3, 3, 2), {"stride": 2, "padding": 1, "dilation": 3}),
    "all": (convolved, (2, 6, 9, 11), (8, 3, 3, 2), ALL),
    "dense": (dense, (5, 7), (4, 7), {}),
    "dense, three axes": (dense, (2, 5, 7), (4, 7), {}),
}  # fmt: skip


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("function", "shape", "weights", "geometry"), CASES.values(), ids=CASES)
def test_same_values_and_gradients(function, shape, weights, geometry, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    given = [torch.randn(*size, generator=generator) for size in (shape, weights, weights[:1])]
    if not with_bias:
        given.pop()

    def results(kind: torch.dtype) -> list[torch.Tensor]:
        inputs = [one.to(kind).requires_grad_() for one in given]
        y = function(*inputs, *([] if with_bias else [None]), geometry)
        return [y, *torch.autograd.grad((y**3).sum(), inputs)]

    exact = results(torch.float64)
    with CaffeSums():
        found = results(torch.float32)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


def test_one_product_per_image(monkeypatch) -> None:
    shapes = []

    def product(a, b):
        shapes.append((*a.shape, *b.shape))
        return blas_product(a, b)

    monkeypatch.setattr("ilgnet_repro.train.caffe_sums.blas_product", product)
    weight = torch.ones(8, 3, 3, 2, requires_grad=True)
    with CaffeSums():
        y = F.conv2d(torch.ones(2, 6, 9, 11), weight, **ALL)
    y.sum().backward()
    # Outputs of a group × values of a window, times those × windows; then the gradient's way back.
    assert shapes == [(4, 18, 18, 65)] * 4 + [(4, 65, 65, 18)] * 4


@pytest.mark.parametrize("transposed", [False, True], ids=["whole", "transposed"])
def test_the_recorded_order_is_a_product(transposed: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(5, 37, generator=generator), torch.randn(37, 21, generator=generator)
    b = b.T.contiguous().T if transposed else b
    torch.testing.assert_close(recorded_product(a, b), a @ b, rtol=1e-5, atol=1e-5)


def test_only_on_the_cpu() -> None:
    with pytest.raises(SolverError, match="precision caffe is that of Caffe's CPU code; omit device='cuda'"):
        Precision("caffe", torch.device("cuda"))
