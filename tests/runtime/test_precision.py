"""Dense weights in fewer bits: how they are rounded, stored, loaded, run and reported."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
import torch
from small_nets import SHARED_TEXT, SMALL_TEXT, write_weights

import ilgnet_repro as ir
from ilgnet_repro.errors import IlgnetError, WeightsError
from ilgnet_repro.reading.preprocessing import Preprocessing
from ilgnet_repro.runtime.quantize import quantize_rows, quantize_weights

WEIGHTS = np.random.default_rng(3).standard_normal((5, 24)).astype(np.float32)
# The largest relative error of a rounding: half a unit in the last of 8 or 11 bits.
FLOAT_ERROR = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
TRANSPOSED = SMALL_TEXT.replace("num_output: 5 weight", "num_output: 5 transpose: true weight")
X = torch.randn(3, 3, 9, 7, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("precision", FLOAT_ERROR)
def test_floats_are_rounded_to_the_nearest(precision: str) -> None:
    found = quantize_weights(WEIGHTS, precision).dequantize().numpy()
    assert (np.abs(found - WEIGHTS) <= FLOAT_ERROR[precision] * np.abs(WEIGHTS)).all()
    assert (found != WEIGHTS).any()


@pytest.mark.parametrize("axis", [0, 1], ids=["a row per output", "a column per output"])
def test_int8_is_symmetric_with_a_scale_per_output(axis: int, monkeypatch) -> None:
    monkeypatch.setattr("ilgnet_repro.runtime.quantize.ROWS_AT_ONCE", 48)  # two rows at a time
    weights = WEIGHTS if axis == 0 else WEIGHTS.T.copy()
    weights[(2, slice(None)) if axis == 0 else (slice(None), 2)] = 0
    found = quantize_weights(weights, "int8", axis)
    largest = np.abs(weights).max(1 - axis)
    expected = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    np.testing.assert_allclose(found.scale.numpy(), expected, rtol=1e-6)
    steps = np.expand_dims(expected, 1 - axis)
    np.testing.assert_array_equal(found.values.numpy(), np.rint(weights / steps))
    np.testing.assert_allclose(found.dequantize().numpy(), np.rint(weights / steps) * steps, rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "precision", "message"),
    [
        (WEIGHTS * 1e6, "float16", "precision='float16': a weight of"),
        (WEIGHTS, "int4", "precision='int4': choose one of float32, float16, bfloat16, int8"),
    ],
    ids=["past the range", "unknown"],
)
def test_a_precision_that_cannot_hold_them_is_refused(weights, precision, message) -> None:
    with pytest.raises(IlgnetError) as caught:
        quantize_weights(weights, precision)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("text", [SMALL_TEXT, TRANSPOSED], ids=["rows", "columns"])
def test_stored_loaded_and_run_quantized(tmp_path, text: str, precision: str) -> None:
    write_weights(tmp_path / "s.caffemodel", text)
    (tmp_path / "s.prototxt").write_text(text)
    report = ir.convert(
        tmp_path / "s.caffemodel",
        to=("safetensors", "onnx"),
        verify=True,
        precision=precision,
    )
    original = ir.load_net(tmp_path / "s.prototxt", tmp_path / "s.caffemodel")
    net = ir.load(tmp_path / "s.safetensors")
    held = net.layer("ip").parametrizations["weight"].original
    assert held.dtype == getattr(torch, precision)
    axis = int(text is TRANSPOSED)
    expected = quantize_weights(original.params["ip"][0].detach().numpy(), precision, axis).dequantize()
    torch.testing.assert_close(net.params["ip"][0], expected, rtol=0, atol=0)
    conv = original.params["conv"][0].detach()  # float16 is for the weights of every layer
    conv = conv.half().float() if precision == "float16" else conv
    torch.testing.assert_close(net.params["conv"][0].detach(), conv, rtol=0, atol=0)

    with torch.no_grad():
        original.params["ip"][0].copy_(expected)
        original.params["conv"][0].copy_(conv)
        torch.testing.assert_close(net(data=X, blobs=["ip"]), original(data=X, blobs=["ip"]))
    assert report.is_verified
    model = onnx.load(str(tmp_path / "s.onnx"))
    onnx.checker.check_model(model, full_check=True)
    node_type = "DequantizeLinear" if precision == "int8" else "Cast"
    count = 2 if precision == "float16" else 1
    assert [node.op_type for node in model.graph.node].count(node_type) == count
    (cost,) = report.deviations
    assert (cost.blob, cost.precision, cost.rows, cost.inputs) == (
        "prob",
        precision,
        8,
        "seed 7, not images",
    )


def test_the_deviation_is_measured_on_given_images(tmp_path) -> None:
    write_weights(tmp_path / "s.caffemodel")
    (tmp_path / "s.prototxt").write_text(SMALL_TEXT.replace('"Softmax"', '"Sigmoid"'))
    names = [str(tmp_path / f"{index}.png") for index in range(3)]
    for index, name in enumerate(names):
        cv2.imwrite(name, np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    how = Preprocessing(size=(9, 7), mean_value=(100.0,), scale=0.01)
    report = ir.convert(tmp_path / "s.caffemodel", precision="int8", preprocessing=how, pictures=names)
    assert "int8: the weights of 1 InnerProduct layer; those of 1 other stay float32" in report.notes
    (cost,) = report.deviations
    original = ir.load_net(tmp_path / "s.prototxt", tmp_path / "s.caffemodel")
    net = ir.load(tmp_path / "s.safetensors")
    x = torch.from_numpy(np.stack([how(name) for name in names]))
    difference = (net(data=x)["prob"] - original(data=x)["prob"]).detach().abs()
    assert cost.inputs == "3 images"
    assert cost.largest == pytest.approx(float(difference.max()), abs=1e-6)
    assert cost.mean == pytest.approx(float(difference.mean()), abs=1e-6)
    assert 0 < cost.largest < 0.05
    assert report.to_json()["deviations"][0]["rows"] == 3


def test_images_without_preprocessing_are_refused(folder) -> None:
    with pytest.raises(IlgnetError, match="images cannot be prepared, its preprocessing is unknown"):
        ir.convert(folder / "small.caffemodel", precision="int8", pictures=["a.png"])
    assert not (folder / "small.safetensors").exists()


def test_shared_weights_stay_float32(tmp_path) -> None:
    write_weights(tmp_path / "s.caffemodel", SHARED_TEXT)
    (tmp_path / "s.prototxt").write_text(SHARED_TEXT)
    report = ir.convert(tmp_path / "s.caffemodel", precision="int8", verify=True)
    assert report.deviations == ()
    assert "no dense weights to keep in int8: every blob is float32" in report.notes
    assert ir.load(tmp_path / "s.safetensors").params["a"][0].dtype == torch.float32


DAMAGED = [
    (
        "no scales",
        b'"ip.weight_scale"',
        b'"ip.weight_scalf"',
        "holds no scales ip.weight_scale for its 5 outputs",
    ),
    (
        "another layer's",
        b'"conv.weight":{"dtype":"F32"',
        b'"conv.weight":{"dtype":"I32"',
        "tensor conv.weight is int32",
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "message"), [row[1:] for row in DAMAGED], ids=[row[0] for row in DAMAGED]
)
def test_a_damaged_file_is_refused(folder, old, new, message) -> None:
    ir.convert(folder / "small.caffemodel", precision="int8")
    path = folder / "small.safetensors"
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(WeightsError, match=message):
        ir.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("plane", [None, (2, 3, 1)], ids=["rows", "a plane"])
def test_int8_holds_finite_weights_only(value, plane) -> None:
    weights = np.ones((4, 6), np.float32)
    weights[2, 5] = value
    with pytest.raises(IlgnetError) as raised:
        quantize_rows(torch.from_numpy(weights), "int8", plane)
    assert str(raised.value) == (
        "precision='int8': a weight is not finite; use another precision, or finite weights"
    )
    if np.isnan(value):  # float16 has NaN itself
        assert np.isnan(quantize_weights(weights, "float16").values.numpy()[2, 5])
