"""No layer mixes devices: recorded nets on a device that torch only pretends to have, forward and backward.

A layer that reads values there stops its pass: no value is computed.  A twelfth of the recorded nets is run; all of
them with ALL_DEVICE_CASES=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from golden_cases import FORK_NAMES, NAMES, read_case
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

import ilgnet_repro as ir
from ilgnet_repro.errors import LayerError
from ilgnet_repro.zoo.catalogue import build

DEVICE = "lazy:0"  # known to every build of torch, and never the CPU
CASES = [*NAMES, *FORK_NAMES][:: 1 if os.environ.get("ALL_DEVICE_CASES") else 12]


@pytest.fixture
def pretended() -> Iterator[None]:
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    future.set_overwrite_module_params_on_conversion(before)


@pytest.mark.parametrize("name", CASES)
def test_recorded_nets(name: str, tmp_path, pretended: None) -> None:
    case = read_case(name)
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        net = case.net(tmp_path)
    net.to(DEVICE)
    inputs = {
        key: torch.from_numpy(value).to(DEVICE).requires_grad_(case.has_gradient)
        for key, value in case.inputs.items()
    }
    try:
        done = net.run(inputs, tuple(case.outputs))
    except LayerError as error:
        if not isinstance(error.__cause__, (DataDependentOutputException, DynamicOutputShapeException)):
            raise
        return
    assert {value.device.type for value in done.blobs.values()} == {"lazy"}
    if case.top_diff:
        seeds = [torch.from_numpy(diff).to(DEVICE) for diff in case.top_diff.values()]
        torch.autograd.backward([done.blobs[blob] for blob in case.top_diff], seeds)
    elif case.has_gradient:
        done.loss.backward()


@pytest.mark.parametrize("name", ["googlenet", "squeezenet", "mobilenet_v2"])
def test_a_classifier_reads_no_value(name: str, pretended: None) -> None:
    """A GPU's work is launched without waiting for it, and can be recorded as a CUDA graph."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        net = ir.load_net(build(name), seed=1)
    net.to(DEVICE)
    with torch.inference_mode():
        found = net(torch.zeros(2, *net.shapes[net.image_input()][1:]).to(DEVICE))
    assert {value.device.type for value in found.values()} == {"lazy"}
