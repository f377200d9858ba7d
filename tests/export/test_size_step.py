"""`dynamic_size` of nets that take only sizes of some step: the step is found, and said."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from small_nets import FULLY_CONVOLUTIONAL, net_of

import ilgnet_repro as ir
from ilgnet_repro.export.open_shapes import size_step


def pool(name: str, bottom: str) -> str:
    return (
        f'layer {{ name: "{name}" type: "Pooling" bottom: "{bottom}" top: "{name}" '
        "pooling_param { kernel_size: 2 stride: 2 } }\n"
    )


def end(name: str, type_: str, bottoms: str, more: str = "") -> str:
    named = " ".join(f'bottom: "{blob}"' for blob in bottoms.split())
    return f'layer {{ name: "{name}" type: "{type_}" {named} top: "{name}" {more} }}\n'


def data(height: int, width: int) -> str:
    shape = f"shape {{ dim: 1 dim: 3 dim: {height} dim: {width} }}"
    return f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}\n'


UP = "convolution_param { num_output: 3 kernel_size: 4 stride: 4 }"
# Two poolings and an enlargement by four, added to the input: sizes of 4 k, and of 4 k + 1.
UNET = (
    data(8, 12)
    + pool("a", "data")
    + pool("b", "a")
    + end("c", "Deconvolution", "b", UP)
    + end("o", "Eltwise", "c data")
)
INTERP = (
    data(17, 21) + pool("a", "data") + pool("b", "a") + end("c", "Interp", "b", "interp_param { zoom_factor: 4 }")
    + end("o", "Eltwise", "c data")
)  # fmt: skip
STEPS = {"any": (FULLY_CONVOLUTIONAL, 1), "4 k": (UNET, 4), "4 k + 1": (INTERP, 4)}


@pytest.mark.parametrize(("text", "step"), STEPS.values(), ids=STEPS)
def test_the_step_is_found(text: str, step: int) -> None:
    net = net_of(text)
    assert size_step(net, net.outputs) == step


@pytest.mark.parametrize(
    ("text", "shape"), [(UNET, (2, 3, 20, 8)), (INTERP, (2, 3, 25, 13))], ids=["4 k", "4 k + 1"]
)
def test_other_sizes_of_the_step_run(tmp_path, text, shape) -> None:
    (tmp_path / "n.prototxt").write_text(text)
    net = net_of(text)
    ir.save(net, tmp_path / "n.caffemodel")
    report = ir.convert(
        tmp_path / "n.caffemodel", tmp_path / "n.prototxt", ["onnx"], tmp_path / "o", dynamic_size=True
    )
    height, width = net.shapes["data"][2:]
    note = (
        f"height and width are open: the net takes sizes that differ from {height}x{width} by multiples of 4"
    )
    assert note in report.notes
    session = onnxruntime.InferenceSession(tmp_path / "o" / "n.onnx")
    assert session.get_inputs()[0].shape == ["N", 3, "H", "W"]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    found = session.run(None, {"data": x})[0]
    np.testing.assert_allclose(
        found, net(data=torch.from_numpy(x))["o"].detach().numpy(), rtol=1e-4, atol=1e-5
    )
