"""Open axes of pt2 files: they hold at other lengths, or are refused by the layer that fixes one, with what to do."""

from __future__ import annotations

import os

import pytest
import torch
from small_nets import net_of

from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.to_pt2 import export


def inputs(**shapes: tuple[int, ...]) -> str:
    return "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        f"{' '.join(f'dim: {length}' for length in shape)} }} }} }}\n"
        for name, shape in shapes.items()
    )


CONV = (
    'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 2 kernel_size: 3 stride: 2'
    ' pad: 1 weight_filler { type: "gaussian" } } }\n'
)
IMAGE = inputs(x=(1, 3, 6, 7)) + CONV
# Nets, whether the size is open, other input shapes.
OPEN = {
    "a batch of one": (IMAGE, True, {"x": (1, 3, 13, 20)}),
    "two inputs of different lengths": (
        inputs(x=(1, 5), y=(4, 5))
        + 'layer { name: "a" type: "ReLU" bottom: "x" top: "a" }\nlayer { name: "b" type: "ReLU" bottom: "y" top: "b" }\n',
        False, {"x": (3, 5), "y": (7, 5)},
    ),
    "six rows for each two": (
        inputs(x=(2, 12), y=(6, 4))
        + 'layer { name: "r" type: "Reshape" bottom: "x" top: "r" reshape_param { shape { dim: -1 dim: 4 } } }\n'
        'layer { name: "s" type: "Eltwise" bottom: "r" bottom: "y" top: "s" }\n',
        False, {"x": (3, 12), "y": (9, 4)},
    ),
    "what torch cannot prove of a named axis": (
        inputs(x=(2, 4, 5, 3))
        + 'layer { name: "t" type: "Transpose" bottom: "x" top: "t" transpose_param { dim: 3 dim: 2 dim: 0 dim: 1 } }\n'
        'layer { name: "r" type: "Reshape" bottom: "t" top: "r" reshape_param { shape { dim: 0 dim: -1 dim: 4 } } }\n'
        'layer { name: "l" type: "Lstm" bottom: "r" top: "l" lstm_param { num_output: 3'
        ' weight_filler { type: "gaussian" } bias_filler { type: "gaussian" } } }\n',
        False, {"x": (5, 4, 5, 3)},
    ),
}  # fmt: skip


# The others take longer than `make test` has; `make pt2-axes`, a part of `make check-all`, runs all.
QUICK = ("six rows for each two", "what torch cannot prove of a named axis")


@pytest.mark.parametrize(
    ("text", "size", "shapes"),
    [case for name, case in OPEN.items() if name in QUICK or os.environ.get("SLOW_PT2")],
    ids=[name for name in OPEN if name in QUICK or os.environ.get("SLOW_PT2")],
)
def test_open_axes_hold_at_other_lengths(text, size, shapes) -> None:
    net = net_of(text)
    module = export(net, dynamic_size=size).module()
    given = {name: torch.randn(shape) for name, shape in shapes.items()}
    for name, value in net(given).items():
        torch.testing.assert_close(module(**given)[name], value, rtol=1e-4, atol=1e-5)


SPP = 'layer { name: "g" type: "SPP" bottom: "c" top: "g" spp_param { pyramid_height: 2 pool: AVE } }\n'
SIZE = "what torch.export records of it holds for some lengths only; export without dynamic_size=True, or use to='onnx'"
REFUSED = {
    "SPP": (IMAGE + SPP, True, f"g (SPP): {SIZE}"),
    "UnPooling": (
        inputs(x=(1, 2, 5, 7))
        + 'layer { name: "u" type: "UnPooling" bottom: "x" top: "u"'
        " unpooling_param { unpool: FIXED out_kernel_size: 3 } }\n",
        True, f"u (UnPooling): {SIZE}",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "size", "message"), REFUSED.values(), ids=REFUSED)
def test_a_layer_that_fixes_a_length_is_refused(text, size, message) -> None:
    with pytest.raises(IlgnetError) as error:
        export(net_of(text), dynamic_size=size)
    assert str(error.value) == message


def test_the_same_net_is_exported_at_its_own_size() -> None:
    net = net_of(IMAGE + SPP)
    x = torch.randn(4, 3, 6, 7)
    torch.testing.assert_close(export(net).module()(x=x)["g"], net(x)["g"])
