"""Recorded nets through pycaffe's interface: what Caffe computed, forward and backward, on blobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_cases import NAMES, Case, read_case, tolerance

import ilgnet_repro.pycaffe as caffe


def open_case(case: Case, folder: Path) -> caffe.Net:
    prototxt, model = folder / "net.prototxt", folder / "net.caffemodel"
    prototxt.write_text(case.text)
    if case.caffemodel is None:
        return caffe.Net(str(prototxt), getattr(caffe, case.phase))
    model.write_bytes(case.caffemodel)
    return caffe.Net(str(prototxt), getattr(caffe, case.phase), weights=str(model))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(name: str, tmp_path: Path) -> None:
    case = read_case(name)
    net = open_case(case, tmp_path)
    for blob, value in case.inputs.items():
        net.blobs[blob].data[...] = value
    found = net.forward()
    assert list(found) == net.outputs
    for blob, expected in case.outputs.items():
        assert found[blob].shape == expected.shape
        np.testing.assert_allclose(found[blob], expected, **tolerance(name), err_msg=blob)
    if not case.has_gradient:
        return
    for blob, diff in case.top_diff.items():
        net.blobs[blob].diff[...] = diff
    net.backward()
    for blob, expected in case.grad_in.items():
        np.testing.assert_allclose(
            net.blobs[blob].diff, expected, **tolerance(name), err_msg=f"diff of {blob}"
        )
    for (layer, index), expected in case.grad_param.items():
        np.testing.assert_allclose(
            net.params[layer][index].diff, expected, **tolerance(name), err_msg=f"diff of {layer}[{index}]"
        )


@pytest.mark.parametrize("name", NAMES[::4])
def test_views_handed_out_before_the_pass_show_the_same(name: str, tmp_path: Path) -> None:
    """With an array of every blob held, passes compute into that memory; twice gives the same."""
    case = read_case(name)
    net = open_case(case, tmp_path)
    data = {blob: held.data for blob, held in net.blobs.items()}
    diff = {blob: held.diff for blob, held in net.blobs.items()}
    is_repeatable = case.phase == "TEST" and not name.startswith(
        ("LSTM", "RNN")
    )  # these carry their state on
    for _ in range(2 if is_repeatable else 1):
        for blob, value in case.inputs.items():
            net.blobs[blob].data[...] = value
        net.forward()
        for blob, top in case.top_diff.items():
            net.blobs[blob].diff[...] = top
        net.clear_param_diffs()
        if case.has_gradient:
            net.backward()
    for blob, expected in case.outputs.items():
        if data[blob].shape == expected.shape:  # not one whose length depends on values
            np.testing.assert_allclose(data[blob], expected, **tolerance(name), err_msg=blob)
    for blob, expected in case.grad_in.items():
        if name.startswith("Flatten"):  # its backward pass replaces the memory, as in Caffe
            diff[blob] = net.blobs[blob].diff
        np.testing.assert_allclose(diff[blob], expected, **tolerance(name), err_msg=f"diff of {blob}")
    for (layer, index), expected in case.grad_param.items():
        np.testing.assert_allclose(net.params[layer][index].diff, expected, **tolerance(name))
