"""Every recorded layer on a GPU: outputs and gradients of the exact net, and outputs of `fast`; skipped without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import FORK_NAMES, NAMES, read_case, tolerance
from golden_check import assert_outputs_and_gradients

import ilgnet_repro as ir

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
EVERY = [*NAMES, *FORK_NAMES]
TEST = [name for name in EVERY if read_case(name).phase == "TEST"] if torch.cuda.is_available() else ["none"]


@pytest.mark.parametrize("name", EVERY)
def test_outputs_and_gradients(name: str, tmp_path) -> None:
    case = read_case(name)
    assert_outputs_and_gradients(case, case.net(tmp_path).to("cuda"), "cuda")


@pytest.mark.parametrize("name", TEST)
def test_fast(name: str, tmp_path) -> None:
    """By launched kernels, recorded, and replayed: the same outputs, each call's its own."""
    case = read_case(name)
    made = ir.fast(case.net(tmp_path), engine="torch", device="cuda")
    inputs = {key: torch.from_numpy(value).to("cuda") for key, value in case.inputs.items()}
    every = [made(inputs) for _ in range(3)]
    for found in every:
        for blob, expected in case.outputs.items():
            assert found[blob].device.type == "cuda"
            assert found[blob].dtype == torch.float32
            np.testing.assert_allclose(found[blob].cpu().numpy(), expected, **tolerance(name), err_msg=blob)
