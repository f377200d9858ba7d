"""TF32 is off while the exact net computes on a CUDA device, and the caller's settings are restored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.runtime.float32_products import float32_products

PARTS: tuple[Any, ...] = (
    torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn,
)  # fmt: skip
TEXT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4 } }
"""


def settings() -> list[str]:
    return [part.fp32_precision for part in PARTS]


@pytest.fixture(params=["tf32", "ieee"], autouse=True)
def before(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    own = settings()
    for part in PARTS[:2]:
        part.fp32_precision = request.param
    yield settings()
    for part, value in zip(PARTS, own, strict=True):
        part.fp32_precision = value


def test_products_are_float32_within(before: list[str]) -> None:
    with pytest.raises(KeyError), float32_products():
        assert settings() == ["ieee"] * 3
        raise KeyError
    assert settings() == before


class Card:
    """A stand-in for a CUDA device: the CPU's, by another name."""

    type = "cuda"

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("device", [Card(), torch.device("cpu")], ids=["cuda", "cpu"])
@pytest.mark.parametrize("hooked", [False, True], ids=["direct", "with a hook"])
@pytest.mark.parametrize("with_loss", [False, True], ids=["outputs", "losses"])
def test_a_pass_on_a_device(
    device: Any, hooked: bool, with_loss: bool, before: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = ir.CaffeNet(build_graph(parse_net(TEXT)))
    layer = net.layer("ip")
    seen: list[list[str]] = []
    forward = type(layer).forward

    def watched(self: Any, x: torch.Tensor) -> Any:
        seen.append(settings())
        return forward(self, x)

    monkeypatch.setattr(type(layer), "forward", watched)
    monkeypatch.setattr(type(net), "computes_in", property(lambda self: (torch.float32, device)))
    if hooked:
        layer.register_forward_hook(lambda *values: None)
    net.run({"data": torch.ones(2, 3)}, with_loss=with_loss)
    assert seen == [["ieee"] * 3 if device.type == "cuda" else before]
    assert settings() == before
