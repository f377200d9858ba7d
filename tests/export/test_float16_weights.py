"""float16 for the weights of a whole net: sizes, values, and which layers keep float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from golden_cases import NAMES, read_case
from small_nets import FULLY_CONVOLUTIONAL, SHARED_TEXT, SMALL_TEXT, net_of
from zoo_weights import drawn_net, narrow_text

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.export.half_precision import LIMIT, halve, logit_blobs
from ilgnet_repro.export.saving import Options, dense_notes, make_saving
from ilgnet_repro.export.verify import seeded_inputs
from ilgnet_repro.runtime.net import float_arrays


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors"])
@pytest.mark.parametrize("name", ["squeezenet", "alexnet", "mobilenet"])
def test_the_file_is_half_as_large_and_its_logits_are_the_same(name: str, suffix: str, tmp_path) -> None:
    net = drawn_net(narrow_text(name))
    whole, half = tmp_path / f"whole{suffix}", tmp_path / f"half{suffix}"
    ir.save(net, whole)
    ir.save(net, half, precision="float16")
    assert half.stat().st_size < 0.62 * whole.stat().st_size
    inputs = seeded_inputs(net)
    (expected,), (found,) = net(inputs).values(), ir.load(half)(inputs).values()
    assert 0 < (found - expected).abs().max() <= 2 * LIMIT * expected.abs().max()


def test_every_layer_of_a_net_is_rounded_and_says_so() -> None:
    net = net_of(FULLY_CONVOLUTIONAL)
    saving = make_saving(net, Options(precision="float16"))
    assert set(halve(net, float_arrays(net)).weights) == {"conv", "up", "ip"}
    for name in ("conv", "up", "ip"):
        own, other = net.layer(name), saving.net.layer(name)
        torch.testing.assert_close(
            other.blob("weight"), own.blob("weight").detach().half().float(), rtol=0, atol=0
        )
        torch.testing.assert_close(other.blob("bias"), own.blob("bias"), rtol=0, atol=0)
    assert dense_notes(saving)[0].startswith(
        "float16: the weights of 3 layers; biases and statistics stay float32; the logits change by 0.000"
    )


# A layer whose large weights cancel: y = (a + 1) x - a x is lost in the rounding of a.
CANCELS = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }
layer { name: "good" type: "Convolution" bottom: "x" top: "good" convolution_param { num_output: 2 kernel_size: 1
  weight_filler { type: "xavier" } } }
layer { name: "bad" type: "Convolution" bottom: "good" top: "bad" convolution_param { num_output: 4 kernel_size: 1 } }
layer { name: "join" type: "Convolution" bottom: "bad" top: "join" convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "prob" type: "Softmax" bottom: "join" top: "prob" }
"""


def test_a_layer_whose_rounding_changes_the_logits_keeps_float32(tmp_path, capsys) -> None:
    net = net_of(CANCELS)
    with torch.no_grad():
        net.params["bad"][0].view(4, 2).copy_(torch.tensor([[4001.0, 0], [4000, 0], [0, 1], [1, 0]]))
        net.params["join"][0].view(3, 4).copy_(torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert logit_blobs(net) == ("join",)
    halved = halve(net, float_arrays(net))
    assert list(halved.kept) == ["bad"]
    assert set(halved.weights) == {"good", "join"}
    assert halved.apart <= LIMIT
    ir.save(net, tmp_path / "n.caffemodel")
    assert (
        main(
            [
                "convert",
                str(tmp_path / "n.caffemodel"),
                "--to",
                "onnx,safetensors",
                "--precision",
                "float16",
                "--verify",
            ]
        )
        == 0
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert "float32 is kept: bad: alone it changes the logits by " in shown
    kinds = {entry.name: entry.data_type for entry in onnx.load(str(tmp_path / "n.onnx")).graph.initializer}
    assert {name: kinds[f"{name}.weight"] for name in ("good", "bad", "join")} == {
        "good": 10,
        "bad": 1,
        "join": 10,
    }


def test_a_weight_past_the_range_keeps_float32() -> None:
    net = net_of(SMALL_TEXT)
    with torch.no_grad():
        net.params["conv"][0].view(-1)[3] = -70_000
    halved = halve(net, float_arrays(net))
    assert halved.kept == {"conv": "a weight of 7e+04 is past the range of float16"}
    assert set(halved.weights) == {"ip"}


def test_shared_weights_stay_float32(tmp_path) -> None:
    saving = make_saving(net_of(SHARED_TEXT), Options(precision="float16"))
    assert not saving.is_quantized
    ir.save(net_of(SHARED_TEXT), tmp_path / "s.safetensors", precision="float16")
    assert ir.load(tmp_path / "s.safetensors").params["a"][0].dtype == torch.float32


def test_logits_are_what_precedes_probabilities_and_detections() -> None:
    assert logit_blobs(drawn_net(narrow_text("alexnet"))) == ("fc8",)
    assert "mbox_conf_softmax" not in logit_blobs(drawn_net(narrow_text("ssd300")))
    assert logit_blobs(net_of(SMALL_TEXT)) == ("ip",)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in NAMES
        if name.split("-")[0] in ("Convolution", "Deconvolution", "InnerProduct", "Embed", "LSTM", "RNN")
    ][::4],
)
def test_recorded_layers_in_float16(name: str, tmp_path) -> None:
    """What is written is what the package computes with the rounded weights."""
    case = read_case(name)
    net = case.net(tmp_path)
    inputs = {key: torch.from_numpy(value) for key, value in case.inputs.items()}
    rounded = make_saving(net, Options(precision="float16")).net
    with torch.no_grad():
        expected = rounded(inputs)
    for suffix in (".onnx", ".safetensors"):
        ir.save(net, tmp_path / f"h{suffix}", precision="float16")
        with torch.no_grad():
            found = ir.load(tmp_path / f"h{suffix}")(inputs)
        for blob, value in expected.items():
            np.testing.assert_allclose(found[blob], value, rtol=1e-4, atol=1e-5)


def test_a_loaded_net_trains_runs_fast_and_is_saved_again(tmp_path) -> None:
    net = drawn_net(parse_net(FULLY_CONVOLUTIONAL))
    ir.save(net, tmp_path / "h.safetensors", precision="float16")
    back = ir.load(tmp_path / "h.safetensors")
    inputs = seeded_inputs(net)
    with torch.no_grad():
        expected, fast = back(inputs), ir.fast(back)(inputs)
    for blob, value in expected.items():
        np.testing.assert_allclose(fast[blob], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))
    ir.save(back, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").stat().st_size == (tmp_path / "h.safetensors").stat().st_size
    ir.save(back, tmp_path / "whole.safetensors", precision="float32")
    assert ir.load(tmp_path / "whole.safetensors").params["conv"][0].requires_grad
