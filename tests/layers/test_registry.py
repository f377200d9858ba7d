"""Custom layer types: written with public names only, each registered once."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from one_layer import assert_all_uses, build, draw, gradients

import ilgnet_repro as ir
from ilgnet_repro.errors import IlgnetError, LayerError
from ilgnet_repro.layers.support import base, registry

PUBLIC = ("BlobSpec", "Layer", "LayerPlan", "OnnxGraph", "SourceCode")

pytestmark = pytest.mark.usefixtures("own_layer_types")


def make_gain() -> type[ir.Layer]:
    """A type that no fork has: its bottom times a learned factor per channel and a stated one."""

    class ChannelGain(ir.Layer):
        fork_fields = ("gain_param.factor",)

        def setup(self, rank: int) -> None:
            self.factor = float(self.fork_field("gain_param.factor") or 1)
            if self.factor == 0:
                raise self.error("factor must not be 0")

        def plan(self, x: base.Shape) -> ir.LayerPlan:
            return ir.LayerPlan([x], [ir.BlobSpec("gain", (x[1], 1, 1))])

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x * self.blob("gain") * self.factor,)

        def onnx(self, graph: ir.OnnxGraph, x: str) -> list[str]:
            scaled = graph.node("Mul", [x, graph.parameter("gain")])
            return [graph.node("Mul", [scaled, graph.constant(np.float32(self.factor))])]

        def source(self, code: ir.SourceCode, x: str) -> list[str]:
            return [f"{x} * {code.parameter('gain', self.blob('gain'))} * {self.factor!r}"]

    return ChannelGain


@pytest.mark.parametrize("name", PUBLIC)
def test_the_names_are_public(name: str) -> None:
    assert name in ir.__all__ and getattr(ir, name) is getattr(base, name)
    assert "register_layer" in ir.__all__ and ir.register_layer is registry.register_layer


def test_a_custom_type_runs_learns_and_exports() -> None:
    made = make_gain()
    assert ir.register_layer("ChannelGain", "Gain")(made) is made
    x, gain = draw(1, 2, 3, 4, 5), draw(2, 3, 1, 1)
    for type_ in ("ChannelGain", "Gain"):
        net = build(type_, [x.shape], "gain_param { factor: 2.5 }")
        with torch.no_grad():
            net.layer("op").blob("gain").copy_(torch.from_numpy(gain))
        assert_all_uses(net, [x], [x * gain * np.float32(2.5)])
        diff = draw(3, 2, 3, 4, 5)
        (slope,) = gradients(net, [x], diff)
        np.testing.assert_allclose(slope, diff * gain * np.float32(2.5), rtol=1e-6)
        slopes = net.layer("op").blob("gain").grad
        np.testing.assert_allclose(slopes[:, 0, 0], 2.5 * (diff * x).sum((0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("gain_param { factor: 0 }", "op (ChannelGain): factor must not be 0"),
        ("gain_param { factors: 2 }", "gain_param.factors"),
        ("param { lr_mult: 1 } param { lr_mult: 2 }", "has 2 param rows for 1 blobs; remove the extra rows"),
    ],
)
def test_a_custom_type_refuses_what_it_does_not_read(params: str, message: str) -> None:
    ir.register_layer("ChannelGain")(make_gain())
    with pytest.raises(LayerError) as caught:
        build("ChannelGain", [(2, 3, 4, 5)], params)
    assert message in str(caught.value)


@pytest.mark.parametrize("type_", ["Convolution", "Python", "ChannelGain"])
def test_a_type_is_registered_once(type_: str) -> None:
    first = make_gain()
    ir.register_layer("ChannelGain")(first)
    ir.register_layer("ChannelGain")(first)  # the same class again changes nothing
    before = registry.layer_types()
    with pytest.raises(IlgnetError) as caught:
        ir.register_layer("New", type_)(make_gain())
    assert f"layer type {type_!r} is registered twice: by {before[type_].__qualname__} and by " in str(
        caught.value
    )
    assert str(caught.value).endswith("; give one of them another name")
    assert registry.layer_types() == before  # "New" is not registered


def test_names_are_imported_on_first_use_and_built_in_types_known_before_any_net_is_loaded() -> None:
    code = """
import sys
import ilgnet_repro as ir
assert "torch" not in sys.modules
ir.Layer
assert "torch" in sys.modules
try:
    @ir.register_layer("ReLU")
    class Own(ir.Layer): pass
except ir.errors.IlgnetError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (
        done.stdout
        == "layer type 'ReLU' is registered twice: by ReLU and by Own; give one of them another name\n"
    )


@pytest.mark.parametrize(
    "value", [torch.nn.ReLU, make_gain, "Gain", None], ids=["a module", "a function", "a text", "nothing"]
)
def test_only_subclasses_of_layer_are_registered(value: object) -> None:
    with pytest.raises(IlgnetError) as caught:
        ir.register_layer("Gain")(value)
    assert str(caught.value) == f"{value!r} cannot be registered as a layer type; derive it from Layer"
    assert "Gain" not in registry.layer_types()
