"""Every layer against Caffe itself: outputs, gradients, and the same outputs through ONNX and source."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from golden_cases import (
    FORK_NAMES,
    NAMES,
    NOT_AS_ONNX,
    ROWS_IN_OTHER_ORDER_IN_ONNX,
    Case,
    read_case,
    tolerance,
)
from golden_check import assert_outputs_and_gradients

from ilgnet_repro.engines.fast import fast
from ilgnet_repro.errors import LayerError
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.runtime.fold import fold
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.schema import caffe_pb2 as pb


@pytest.fixture(params=[*NAMES, *FORK_NAMES])
def case(request: pytest.FixtureRequest) -> Case:
    return read_case(request.param)


def test_there_are_284_cases_and_309_of_forks() -> None:
    assert len(NAMES) == 284
    assert len(FORK_NAMES) == 309
    assert sum(read_case(name).has_gradient for name in NAMES) == 264


def test_outputs_and_gradients(case: Case, tmp_path) -> None:
    assert_outputs_and_gradients(case, case.net(tmp_path))


def first_refusal(net: CaffeNet, use: str) -> str:
    """Why a form is impossible, as the layer classes of the net state; empty if it is possible."""
    return next((reason for _, layer in net.steps(net.outputs) if (reason := getattr(layer, use))), "")


def test_onnx(case: Case, tmp_path) -> None:
    net = case.net(tmp_path)
    reason = first_refusal(net, "no_onnx") or NOT_AS_ONNX.get(case.name, "")
    if reason:
        with pytest.raises(LayerError, match="cannot be written as ONNX"):
            build_onnx(net)
        return
    model = build_onnx(net)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {entry.name: case.inputs[entry.name] for entry in session.get_inputs()})
    for entry, value in zip(session.get_outputs(), found, strict=True):
        expected = case.outputs[entry.name]
        if case.name in ROWS_IN_OTHER_ORDER_IN_ONNX:
            value, expected = (np.array(sorted(rows.tolist())) for rows in (value, expected))
        np.testing.assert_allclose(value, expected, **tolerance(case.name), err_msg=entry.name)


def test_fast_and_folded(case: Case, tmp_path) -> None:
    """What `fast` and `fold` leave out or join changes no number, whatever the fields."""
    net = case.net(tmp_path)
    if case.phase != "TEST":
        pytest.skip("only nets in phase TEST are made fast or folded")
    arrays = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    result = fold(net, pb.NetParameter(name=net.graph.name), arrays)
    folded = CaffeNet(result.graph, result.arrays)
    inputs = {name: torch.from_numpy(value) for name, value in case.inputs.items()}
    for form, made in (("fast", fast(net, engine="torch")), ("folded", folded)):
        with torch.inference_mode():
            found = made(inputs)
        for blob, expected in case.outputs.items():
            np.testing.assert_allclose(
                found[blob].numpy(), expected, **tolerance(case.name), err_msg=f"{form}: {blob}"
            )


def test_source(case: Case, tmp_path) -> None:
    net = case.net(tmp_path)
    reason = first_refusal(net, "no_source")
    if reason:
        with pytest.raises(LayerError, match="cannot be written as Python"):
            build_source(net)
        return
    source = build_source(net, class_name="Recorded")
    path = tmp_path / "recorded.py"
    path.write_text(source.text)
    spec = importlib.util.spec_from_file_location("recorded", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = module.Recorded()
    written.load_state_dict(source.state)
    with torch.no_grad():
        found = written(**{
            argument: torch.from_numpy(case.inputs[name]) for name, argument in source.arguments.items()
        })  # fmt: skip
    for blob, expected in case.outputs.items():
        np.testing.assert_allclose(found[blob].numpy(), expected, **tolerance(case.name), err_msg=blob)
