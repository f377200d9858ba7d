"""The fast path against Caffe's records and the exact net: the same outputs, stated errors, and refusals."""

from __future__ import annotations

import shutil
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from golden_cases import NAMES, read_case, tolerance
from small_nets import SMALL_TEXT

from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.engines.fast import fast
from ilgnet_repro.engines.torch_layers import Int8Dense
from ilgnet_repro.errors import GraphError, IlgnetError, LayerError
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.quantize import attach_quantized, quantize_weights

fast_net = partial(fast, engine="torch")


def build(text: str, phase: str = "TEST") -> CaffeNet:
    return CaffeNet(build_graph(parse_net(text), phase), seed=5)


# Every layer that may be fused, folded, dropped, sliced or left unchanged, in one net; every size differs.
MIXED_TEXT = """
name: "mixed"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 19 dim: 23 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 8 kernel_size: 3 pad: 1 stride: 2 weight_filler { type: "xavier" }
  bias_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true
  filler { type: "uniform" min: 0.5 max: 2 } bias_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "lrn" type: "LRN" bottom: "conv" top: "lrn" lrn_param { local_size: 5 alpha: 2 beta: 0.75 k: 2 } }
layer { name: "pool" type: "Pooling" bottom: "lrn" top: "pool" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "group" type: "Convolution" bottom: "pool" top: "group" convolution_param { num_output: 6 group: 2
  kernel_h: 1 kernel_w: 3 dilation: 2 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "leaky" type: "ReLU" bottom: "group" top: "group" relu_param { negative_slope: 0.1 } }
layer { name: "two" type: "Slice" bottom: "group" top: "left" top: "right" }
layer { name: "sum" type: "Eltwise" bottom: "left" bottom: "right" top: "sum" }
layer { name: "again" type: "Split" bottom: "sum" top: "one" top: "other" }
layer { name: "squash" type: "Sigmoid" bottom: "one" top: "squash" }
layer { name: "join" type: "Concat" bottom: "squash" bottom: "other" bottom: "group" top: "join" }
layer { name: "drop" type: "Dropout" bottom: "join" top: "join" }
layer { name: "ip" type: "InnerProduct" bottom: "join" top: "ip"
  inner_product_param { num_output: 7 transpose: true weight_filler { type: "gaussian" } } }
layer { name: "ip_relu" type: "ReLU" bottom: "ip" top: "ip" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip" top: "ip2"
  inner_product_param { num_output: 5 bias_term: false weight_filler { type: "gaussian" } } }
layer { name: "prob" type: "Softmax" bottom: "ip2" top: "prob" }
layer { name: "kept" type: "Dropout" bottom: "ip" top: "kept" }
"""


@pytest.fixture(scope="module")
def mixed() -> CaffeNet:
    text = MIXED_TEXT.replace('"Slice" bottom: "group"', '"Slice" slice_param { axis: 1 } bottom: "group"')
    return build(text)


@pytest.fixture
def all_packed(monkeypatch) -> None:
    """Nets of small convolutions are packed as those with a large one are."""
    monkeypatch.setattr("ilgnet_repro.layers.conv.SMALL", 0)


@pytest.mark.parametrize("name", [name for name in NAMES if read_case(name).phase == "TEST"])
@pytest.mark.usefixtures("all_packed")
def test_recorded_layers(name: str, tmp_path) -> None:
    case = read_case(name)
    found = fast_net(case.net(tmp_path))({key: torch.from_numpy(value) for key, value in case.inputs.items()})
    assert list(found) == list(case.outputs)
    for blob, expected in case.outputs.items():
        assert found[blob].shape == expected.shape
        np.testing.assert_allclose(found[blob].numpy(), expected, **tolerance(name), err_msg=blob)


def assert_is_exact(mixed: CaffeNet) -> None:
    fast = fast_net(mixed)
    for images in (1, 2, 9, 2):  # weights are packed for each size
        data = torch.randn(images, 3, 19, 23, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            exact = mixed(data=data)
        found = fast(data=data)
        assert list(found) == list(exact) == ["kept", "prob"]  # Caffe lists outputs by name
        for name, blob in exact.items():
            assert found[name].is_contiguous()
            torch.testing.assert_close(found[name], blob, rtol=1e-5, atol=1e-6)
            assert torch.equal(found[name], fast_net(mixed)(data=data)[name])  # whatever was computed before


def test_float32_is_the_exact_net(mixed: CaffeNet) -> None:
    assert_is_exact(mixed)


@pytest.mark.usefixtures("all_packed")
def test_packed_convolutions_are_the_exact_net(mixed: CaffeNet) -> None:
    assert_is_exact(mixed)


# A dense layer of more than 2^20 weights after 32 channels of 32 × 40, which loses bits; with 37 columns
# its rows are not a multiple of the int8 kernel's vectors.
LARGE_TEXT = """
name: "large"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 2 dim: 3 dim: 32 dim: {columns} }} }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {{
  num_output: 32 kernel_size: 1 weight_filler {{ type: "msra" }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param {{
  num_output: 48 weight_filler {{ type: "xavier" }} bias_filler {{ type: "uniform" min: -1 max: 1 }} }} }}
"""


@pytest.mark.usefixtures("all_packed")
@pytest.mark.parametrize("images", [1, 2, 7], ids="{} images".format)
@pytest.mark.parametrize("columns", [40, 37], ids=["whole vectors", "no whole vectors"])
@pytest.mark.parametrize(
    ("precision", "most"), [("float32", 1e-5), ("float16", 2**-10), ("bfloat16", 0.0125), ("int8", 0.0125)]
)
def test_precisions(precision: str, most: float, columns: int, images: int) -> None:
    net = build(LARGE_TEXT.format(columns=columns))
    fast = fast_net(net, precision)
    data = torch.rand(images, 3, 32, columns, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        exact = net(data=data)["ip"]
    spread = exact.std().item()
    assert fast.deviation(data=data)["ip"] < most * spread
    assert fast.deviation(data=data)["ip"] == pytest.approx(
        (fast(data=data)["ip"] - exact).abs().max().item()
    )


@pytest.mark.parametrize("engine", ["x86", "qnnpack"])
@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9], ids="weights of {:g}".format)
def test_float16_holds_weights_of_any_size(engine: str, factor: float, monkeypatch) -> None:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"torch has no engine {engine} here")
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    net = build(LARGE_TEXT.format(columns=40))
    with torch.no_grad():
        net.layer("ip").weight.mul_(factor)
        net.layer("ip").bias.zero_()
    data = torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(4))
    spread = net(data=data)["ip"].std().item()
    assert 0 < fast_net(net, "float16").deviation(data=data)["ip"] < 2**-11 * spread


@pytest.mark.parametrize("packs", [True, False], ids=["channels-last", "contiguous"])
def test_weights_stored_as_int8_are_used_unchanged(packs: bool, request: pytest.FixtureRequest) -> None:
    if packs:
        request.getfixturevalue("all_packed")
    net = build(LARGE_TEXT.format(columns=40))
    layer = net.layer("ip")
    stored = quantize_weights(layer.weight.detach().numpy(), "int8")
    attach_quantized(layer, stored)
    data = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(4))
    # Only activations and sums are rounded to bfloat16 now: no second loss of bits in the weights.
    assert fast_net(net, "int8").deviation(data=data)["ip"] < 0.004 * net(data=data)["ip"].abs().max().item()
    (dense,) = (part for part in fast_net(net, "int8").parts if isinstance(part, Int8Dense))
    weight = dense.weight.view(48, 32 * 40, 32).transpose(1, 2).reshape(48, -1) if packs else dense.weight
    assert torch.equal(weight, stored.values)


def test_unknown_blobs(mixed: CaffeNet) -> None:
    with pytest.raises(
        GraphError, match="blob 'pol' is not in net 'mixed' \\(did you mean pool\\?\\); it has"
    ):
        fast_net(mixed)(data=torch.zeros(1, 3, 19, 23), blobs=["pol"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fast_net(build(SMALL_TEXT), "float17"), IlgnetError,
         "precision='float17': choose one of float32, float16, bfloat16, int8"),
        (lambda: fast_net(build(SMALL_TEXT, "TRAIN")), GraphError,
         "net 'small' is in phase TRAIN; only phase TEST can be made fast"),
        (lambda: fast_net(build(SMALL_TEXT).double()), GraphError,
         "net 'small': blobs of conv are torch.float64 on cpu; the fast path takes float32 on the CPU"),
        (fast_net(build(SMALL_TEXT)), IlgnetError, "input 'data' is missing; the net takes 'data'"),
        (lambda: fast_net(build(SMALL_TEXT))(data=torch.zeros(1, 3, 12, 7)), LayerError,
         r"ip \(InnerProduct\): weight would be"),
    ],
    ids=["precision", "train", "float64", "no input", "another size"],
)  # fmt: skip
def test_refusals(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


COMPILED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 19 dim: 23 } } }
layer { name: "shift" type: "Power" bottom: "data" top: "shift" power_param { shift: 0.3 scale: 2 } }
layer { name: "sigmoid" type: "Sigmoid" bottom: "shift" top: "sigmoid" }
layer { name: "lrn" type: "LRN" bottom: "sigmoid" top: "lrn" lrn_param { alpha: 0.5 } }
"""


def test_compiling_changes_nothing(tmp_path, monkeypatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    logged: list[str] = []
    fast = fast_net(build(COMPILED), compile=True, log=logged.append)
    assert fast.compile_seconds > 0
    assert logged[0] == "compiling 2 groups of elementwise layers and LRN ..."
    assert logged[1] == f"compiled 2 groups in {fast.compile_seconds:.1f} s; kept in {tmp_path}"
    assert any(tmp_path.iterdir())
    data = torch.randn(5, 3, 19, 23, generator=torch.Generator().manual_seed(2))
    assert max(fast.deviation(data=data).values()) < 1e-5


def test_without_a_compiler_it_logs_that_and_runs(mixed: CaffeNet, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(
        RuntimeWarning, match="runs uncompiled: no C\\+\\+ compiler 'no-such-compiler' on the PATH"
    ):
        fast = fast_net(mixed, compile=True)
    assert fast.compile_seconds == 0
    assert max(fast.deviation(data=torch.ones(2, 3, 19, 23)).values()) < 1e-5


def test_a_compiler_failure_is_reported(mixed: CaffeNet, monkeypatch) -> None:
    def compiled(module):
        def fail(*values):
            raise RuntimeError("first line\nsecond line")

        result = torch.nn.Module()
        result.forward = fail
        return result

    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.warns(RuntimeWarning, match="runs uncompiled: RuntimeError: first line$"):
        fast = fast_net(mixed, compile=True)
    assert max(fast.deviation(data=torch.ones(2, 3, 19, 23)).values()) < 1e-5


def test_nothing_to_compile() -> None:
    logged: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = fast_net(build(SMALL_TEXT), compile=True, log=logged.append)
    assert logged == ["nothing in this net gains by being compiled"]
    assert fast.compile_seconds == 0


@pytest.mark.parametrize(
    ("value", "found"),
    [(float("nan"), np.nan), (float("inf"), np.nan), (0.5, 0.0)],
    ids=["NaN", "infinite", "finite"],
)
def test_a_deviation_covers_only_compared_values(value, found) -> None:
    """Where no value is finite nothing was compared: no deviation of 0."""
    text = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4 } }"""
    net = CaffeNet(build_graph(parse_net(text)), seed=1)
    with torch.no_grad():
        net.params["ip"][1].fill_(value)
    (deviation,) = fast_net(net).deviation(data=torch.zeros(2, 3)).values()
    assert np.isnan(deviation) if np.isnan(found) else deviation == found
