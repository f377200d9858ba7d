"""Hooks of torch modules run at each pass, although a net without hooks runs its layers directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.runtime.net import CaffeNet

TEXT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3
    weight_filler { type: "xavier" } } }
layer { name: "twice" type: "Power" bottom: "conv" top: "twice" power_param { scale: 2 } }
"""
LAYERS = ["conv", "twice"]
Seen = list[str]


@pytest.fixture
def net() -> CaffeNet:
    made = CaffeNet(build_graph(parse_net(TEXT)), seed=1)
    made(torch.zeros(2, 3, 5, 7))  # the schedule is made and kept
    return made


def x() -> Tensor:
    return (torch.arange(210, dtype=torch.float32).view(2, 3, 5, 7) / 210).requires_grad_()


def _note(seen: Seen, layer: nn.Module) -> None:
    if layer is not None and hasattr(layer, "node"):
        seen.append(layer.node.name)


@contextmanager
def _removed(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_each(register: str) -> Callable[[CaffeNet, Seen], Any]:
    def hang(net: CaffeNet, seen: Seen) -> Any:
        layers = [net.layer(name) for name in LAYERS]
        return _removed(*[getattr(layer, register)(lambda m, *_: _note(seen, m)) for layer in layers])

    return hang


def _everywhere(register: str) -> Callable[[CaffeNet, Seen], Any]:
    return lambda net, seen: _removed(getattr(torch_module, register)(lambda m, *_: _note(seen, m)))


@contextmanager
def _call_of_a_tracer(net: CaffeNet, seen: Seen) -> Iterator[None]:
    """As torch.fx and the exporters find which module they are in."""
    original = nn.Module.__call__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _note(seen, self)
        return original(self, *args, **kwargs)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


@contextmanager
def _forward_of_an_instance(net: CaffeNet, seen: Seen) -> Iterator[None]:
    for name in LAYERS:
        layer = net.layer(name)

        def forward(*bottoms: Tensor, layer: Any = layer) -> Any:
            _note(seen, layer)
            return type(layer).forward(layer, *bottoms)

        layer.forward = forward
    try:
        yield
    finally:
        for name in LAYERS:
            del net.layer(name).forward


@contextmanager
def _compiled_separately(net: CaffeNet, seen: Seen) -> Iterator[None]:
    for name in LAYERS:
        layer = net.layer(name)
        layer._compiled_call_impl = lambda *b, layer=layer: _note(seen, layer) or layer._call_impl(*b)
    try:
        yield
    finally:
        for name in LAYERS:
            net.layer(name)._compiled_call_impl = None


WAYS: dict[str, Callable[[CaffeNet, Seen], Any]] = {
    "forward hook": _on_each("register_forward_hook"),
    "forward pre-hook": _on_each("register_forward_pre_hook"),
    "backward hook": _on_each("register_full_backward_hook"),
    "backward pre-hook": _on_each("register_full_backward_pre_hook"),
    "global forward hook": _everywhere("register_module_forward_hook"),
    "global forward pre-hook": _everywhere("register_module_forward_pre_hook"),
    "global backward hook": _everywhere("register_module_full_backward_hook"),
    "global backward pre-hook": _everywhere("register_module_full_backward_pre_hook"),
    "call of a tracer": _call_of_a_tracer,
    "forward of an instance": _forward_of_an_instance,
    "compiled separately": _compiled_separately,
}


@pytest.mark.filterwarnings("ignore:For backward hooks to be called")  # the net itself gives a dict
@pytest.mark.parametrize("way", WAYS)
def test_hooks_see_every_layer_of_each_pass_until_removed(way: str, net: CaffeNet) -> None:
    seen: Seen = []
    plain = net(x())["twice"]
    with WAYS[way](net, seen):
        for count in (1, 2):
            found = net(x())["twice"]
            found.sum().backward()
            assert sorted(seen) == sorted(LAYERS * count)
            assert torch.equal(found, plain)
    net(x())["twice"].sum().backward()
    assert len(seen) == 2 * len(LAYERS)


def test_a_hooks_return_value_replaces_the_tops(net: CaffeNet) -> None:
    plain = net(x())["twice"]
    with _removed(net.layers.conv.register_forward_hook(lambda m, bottoms, tops: (tops[0] + 1,))):
        torch.testing.assert_close(net(x())["twice"], plain + 2)
    assert torch.equal(net(x())["twice"], plain)


def test_a_hook_added_by_another_layers_hook_is_called_in_the_same_pass(net: CaffeNet) -> None:
    seen: Seen = []
    handles: list[Any] = []

    def add(layer: nn.Module, *_: Any) -> None:
        handles.append(net.layers.twice.register_forward_hook(lambda m, *_: _note(seen, m)))

    with _removed(net.layers.conv.register_forward_hook(add)):
        net(x())
    assert seen == ["twice"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_names_the_layers(net: CaffeNet) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, data: Tensor) -> Tensor:
            return self.net(data)["twice"]

    traced = torch.jit.trace(Plain(), x(), check_trace=False)
    assert "layers.conv" in {name.removeprefix("net.") for name, _ in traced.named_modules()}
    assert torch.equal(traced(x()), net(x())["twice"])
    assert "conv" in str(traced.net.graph)


def test_a_parameter_that_a_hook_or_user_replaces_is_used(net: CaffeNet) -> None:
    plain = net(x())["twice"]
    net.layers.conv.weight = nn.Parameter(net.layers.conv.weight.detach() * 3)
    torch.testing.assert_close(net(x())["twice"], plain * 3)
    weight = net.layers.conv._parameters.pop("weight").detach()
    net.layers.conv.weight = weight / 3  # as torch's pruning keeps what it computes
    torch.testing.assert_close(net(x())["twice"], plain)
