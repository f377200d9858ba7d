"""Whether a net of a recorded case gives the recorded outputs and gradients, on any device."""

from __future__ import annotations

import numpy as np
import torch
from golden_cases import Case, tolerance

from ilgnet_repro.runtime.float32_products import float32_products
from ilgnet_repro.runtime.net import CaffeNet


def assert_outputs_and_gradients(case: Case, net: CaffeNet, device: str = "cpu") -> None:
    """Run a case's net, which is on ``device``, forward and backward, and compare with what was recorded."""
    inputs = {
        name: torch.from_numpy(value).to(device).requires_grad_(case.has_gradient)
        for name, value in case.inputs.items()
    }
    done = net.run(inputs, tuple(case.outputs))
    assert set(net.outputs) == set(case.outputs)
    by_values = {
        top for node, layer in net.steps(net.outputs) if layer.sized_by_values for top in node.top_names
    }
    for blob, expected in case.outputs.items():
        assert done.blobs[blob].device.type == device
        assert tuple(done.blobs[blob].shape) == expected.shape
        if blob in by_values:  # the plan gives the most it can be
            assert all(np.less_equal(expected.shape, net.shapes[blob]))
        else:
            assert net.shapes[blob] == expected.shape
        _assert_close(case, done.blobs[blob], expected, blob)
    if not case.has_gradient:
        return

    seeds = [done.blobs[blob] for blob in case.top_diff]
    with float32_products():  # torch's own setting for a backward pass on a GPU is TF32
        if seeds:
            given = [torch.from_numpy(diff).to(device) for diff in case.top_diff.values()]
            torch.autograd.backward(seeds, given)
        else:
            done.loss.backward()
    for blob, expected in case.grad_in.items():
        found = inputs[blob].grad
        if found is None and not expected.any():
            continue  # Caffe leaves zeros where torch leaves no gradient, as for Crop's second bottom
        assert found is not None, f"no gradient reached {blob}"
        _assert_close(case, found, expected, f"gradient of {blob}")
    for (layer, index), expected in case.grad_param.items():
        found = net.params[layer][index].grad
        if found is None and not expected.any():
            continue  # a blob that is not learned (BN with frozen, statistics)
        assert found is not None, f"no gradient reached {layer}, blob {index}"
        if net.plan.blobs[layer][index].any_ones:  # the forks store them with more or fewer axes of size 1
            found = found.view(expected.shape)
        _assert_close(case, found, expected, f"gradient of {layer}, blob {index}")


def _assert_close(case: Case, found: torch.Tensor, expected: np.ndarray, what: str) -> None:
    np.testing.assert_allclose(found.detach().cpu().numpy(), expected, **tolerance(case.name), err_msg=what)
