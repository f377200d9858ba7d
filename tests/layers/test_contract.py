"""The layer contract: fields are read once, and no later call changes a layer."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import NAMES, Case, read_case

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError, LayerError
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.layers.support.base import BlobSpec, Layer, LayerPlan
from ilgnet_repro.layers.support.registry import layer_types
from ilgnet_repro.runtime import schedule
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.plan import plan_net

# What a pass may change: BatchNorm's statistics and the state that RNN and LSTM carry are in these two.
TENSORS = ("_buffers", "_parameters")


def state(net: CaffeNet) -> dict[str, dict[str, str]]:
    """Every layer's attributes except tensors."""
    return {
        node.name: {key: repr(value) for key, value in vars(layer).items() if key not in TENSORS}
        for node, layer in net.steps(tuple(net.outputs), with_loss=True)
    }


def changed(before: dict[str, dict[str, str]], net: CaffeNet) -> dict[str, list[str]]:
    """The attributes that changed, by layer."""
    after = state(net)
    return {
        name: [key for key in {*values, *after[name]} if values.get(key) != after[name].get(key)]
        for name, values in before.items()
        if values != after[name]
    }


@pytest.mark.parametrize("name", NAMES)
def test_no_call_changes_a_layer(name: str, tmp_path) -> None:
    case: Case = read_case(name)
    net = case.net(tmp_path)
    before = state(net)
    for axis, more in ((0, 1), (2, 3), (3, 5)):
        shapes = {
            key: tuple(size + more * (place == axis) for place, size in enumerate(net.shapes[key]))
            for key in net.inputs
        }
        with contextlib.suppress(IlgnetError):  # some take one size only
            net.plan.at(shapes)
    assert not changed(before, net), "plan.at"
    net({key: torch.from_numpy(value) for key, value in case.inputs.items()})
    assert not changed(before, net), "a pass"
    for write in (build_onnx, build_source):
        with contextlib.suppress(LayerError):
            write(net)
        assert not changed(before, net), write.__name__


@pytest.mark.parametrize("name", NAMES)
def test_the_same_layers_run_at_other_sizes(name: str) -> None:
    case = read_case(name)
    graph = load_graph(parse_net(case.text), phase=case.phase)
    plan = plan_net(graph)
    for axis, more in ((0, 1), (0, 3), (2, 4)):
        shapes = {
            key: tuple(size + more * (place == axis) for place, size in enumerate(plan.shapes[key]))
            for key in plan.inputs
        }
        found: list[Any] = []
        for make in (lambda: plan.at(shapes), lambda: plan_net(graph, shapes)):  # noqa: B023 — called at once
            try:
                made = make()
                found.append((dict(made.shapes), dict(made.blobs), dict(made.multiply_adds)))
            except IlgnetError as error:
                found.append(str(error))
        assert found[0] == found[1]


def test_no_class_uses_the_old_contract() -> None:
    for type_, cls in layer_types().items():
        for rule in ("top_shapes", "multiply_adds", "refresh_borrowed"):
            assert not hasattr(cls, rule), f"{type_} has {rule}"


TWO_FAULTS = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 7 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c"
  convolution_param { num_output: 4 kernel_size: 9 weight_filler { type: "xavier" } } }
layer { name: "after" type: "ReLU" bottom: "c" top: "r" }
layer { name: "p" type: "Pooling" bottom: "x" top: "p" pooling_param { kernel_size: 2 pad: 2 } }
layer { name: "sound" type: "Sigmoid" bottom: "x" top: "s" }
"""


def test_faults_are_collected_and_the_layers_after_them_skipped() -> None:
    graph = load_graph(parse_net(TWO_FAULTS))
    faults: list[LayerError] = []
    plan = plan_net(graph, faults=faults)
    assert [error.layer for error in faults] == ["c", "p"]
    assert list(plan.layers) == ["in", "sound"]
    with pytest.raises(
        LayerError, match=r"^c \(Convolution\): bottom \[2, 3, 5, 7\] is too small for kernel \[9, 9\]"
    ):
        plan_net(graph)


def test_a_plan_is_frozen_and_its_layers_hold_no_parameters() -> None:
    graph = load_graph(
        parse_net(TWO_FAULTS.replace("kernel_size: 9", "kernel_size: 2").replace("pad: 2", ""))
    )
    plan = plan_net(graph)
    with pytest.raises(AttributeError):
        plan.graph = graph  # type: ignore[misc]
    first, second = CaffeNet(plan, seed=1), CaffeNet(plan, seed=2)
    assert not list(plan.layers["c"].parameters())
    assert first.layer("c") is not second.layer("c") is not plan.layers["c"]
    assert first.layer("c").node is plan.layers["c"].node
    x = np.ones((2, 3, 5, 7), np.float32)
    assert not torch.equal(first(x, blobs=["c"])["c"], second(x, blobs=["c"])["c"])


def test_another_number_of_axes_is_refused_by_name() -> None:
    plan = plan_net(
        load_graph(parse_net(TWO_FAULTS.replace("kernel_size: 9", "kernel_size: 2").replace("pad: 2", "")))
    )
    with pytest.raises(
        IlgnetError,
        match=r"^input 'x' of net '' is 3x5x7, of 3 axes; it was planned for 2x3x5x7: load",
    ):
        plan.at({"x": (3, 5, 7)})


def test_by_default_tops_have_the_shapes_of_the_bottoms() -> None:
    made = Layer.plan(None, (2, 3), (4,))
    assert made == LayerPlan(((2, 3), (4,)))
    assert BlobSpec("w", (1,)).learned


def test_a_schedule_is_built_once_per_set_of_blobs(monkeypatch) -> None:
    net = CaffeNet(
        load_graph(parse_net(TWO_FAULTS.replace("kernel_size: 9", "kernel_size: 2").replace("pad: 2", "")))
    )
    made = []
    make = schedule.make_schedule
    monkeypatch.setattr(
        "ilgnet_repro.runtime.net.make_schedule", lambda *given: made.append(given[3:]) or make(*given)
    )
    x = np.ones((2, 3, 5, 7), np.float32)
    for blobs in (["s"], ["s"], ["r"], ["s"], ["r"]):
        net(x, blobs=blobs)
    assert made == [(("s",), False), (("r",), False)]
