"""Fast nets in ONNX Runtime and OpenVINO: Caffe's records, any blob, batch and size; choosing one; refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import NAMES, read_case, tolerance

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.engines import choice, onnx_engines
from ilgnet_repro.engines.device_runner import DeviceRunner
from ilgnet_repro.engines.fast import FastNet, fast
from ilgnet_repro.engines.runners import fits

INSTALLED = [engine for engine in onnx_engines.EXTRAS if onnx_engines.is_installed(engine)]
ENGINES = [
    pytest.param(engine, marks=[] if engine in INSTALLED else pytest.mark.skip(f"{engine} is not installed"))
    for engine in onnx_engines.EXTRAS
]
ALL = [pytest.param("torch"), *ENGINES]
quiet = partial(fast, log=lambda message: None)

# A net with branches, in place layers, no-ops, a dense layer of more than 2^20 weights, and two outputs.
TEXT = """
name: "two"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 36 dim: 40 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 24 kernel_size: 3 pad: 1 weight_filler { type: "msra" } bias_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "lrn" type: "LRN" bottom: "conv" top: "lrn" lrn_param { local_size: 5 alpha: 2 beta: 0.75 k: 2 } }
layer { name: "pool" type: "Pooling" bottom: "lrn" top: "pool" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "side" type: "Pooling" bottom: "pool" top: "side" pooling_param { pool: AVE global_pooling: true } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 128
  weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "ip_relu" type: "ReLU" bottom: "ip" top: "ip" }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" }
layer { name: "out" type: "InnerProduct" bottom: "ip" top: "out" inner_product_param { num_output: 7
  weight_filler { type: "xavier" } } }
"""


@pytest.fixture(scope="module")
def net() -> ir.CaffeNet:
    made = ir.load_net(parse_net(TEXT), seed=3)
    with torch.no_grad():
        for blob, value in zip(made.params["norm"], (0.1, 0.9, 1.0), strict=True):
            blob.fill_(value)
    return made


def images(count: int, height: int = 36, width: int = 40) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))


# LRN and a twelfth of the other recorded cases; `make engines`, of `make check-all`, runs all.
EVERY = 1 if os.environ.get("ALL_ENGINE_CASES") else 12
CASES = [
    name
    for index, name in enumerate(name for name in NAMES if read_case(name).phase == "TEST")
    if index % EVERY == 0 or "LRN" in name
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_recorded_layers(name: str, engine: str, tmp_path: Path) -> None:
    case = read_case(name)
    made = quiet(case.net(tmp_path), engine=engine)
    found = made({key: torch.from_numpy(value) for key, value in case.inputs.items()})
    assert list(found) == list(case.outputs)
    for blob, expected in case.outputs.items():
        assert found[blob].shape == expected.shape
        np.testing.assert_allclose(found[blob].numpy(), expected, **tolerance(name), err_msg=blob)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("count", [0, 1, 2, 5], ids="{} images".format)
def test_any_batch(net: ir.CaffeNet, engine: str, count: int) -> None:
    made = quiet(net, engine=engine)
    with torch.no_grad():
        exact = net(images(count))
    found = made(images(count))
    assert list(found) == list(exact) == ["out", "side"]
    for name, blob in exact.items():
        torch.testing.assert_close(found[name], blob, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize(
    "blobs", [["pool"], ["conv", "out"], ["conv@conv", "conv"], ["ip"], ["data"], []], ids=str
)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_any_blob(net: ir.CaffeNet, engine: str, blobs: list[str], precision: str) -> None:
    made = quiet(net, precision, engine=engine)
    with torch.no_grad():
        exact = net(images(3), blobs=blobs)
    for _ in range(2):  # prepared, and prepared already
        found = made(images(3), blobs=blobs)
        assert list(found) == blobs
        for name, blob in exact.items():
            torch.testing.assert_close(found[name], blob, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("engine", ALL)
def test_any_size_that_the_weights_take(engine: str) -> None:
    text = TEXT[: TEXT.index('layer { name: "ip"')]
    open_net = ir.load_net(parse_net(text), seed=3)
    made = quiet(open_net, engine=engine)
    for size in ((36, 40), (17, 23), (36, 40), (50, 9)):
        with torch.no_grad():
            exact = open_net(images(2, *size))
        torch.testing.assert_close(made(images(2, *size))["side"], exact["side"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-5), ("float16", 2**-10), ("int8", 0.02)])
def test_precision_is_that_of_large_dense_weights(
    net: ir.CaffeNet, engine: str, precision: str, most: float
) -> None:
    made = quiet(net, precision, engine=engine)
    assert (made.engine, made.precision) == (engine, precision)
    apart = made.deviation(images(4))
    assert apart["side"] < 1e-5
    assert apart["out"] < most * net(images(4))["out"].abs().max().item()
    assert (apart["out"] > 1e-6) == (precision != "float32")


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_net_of_one_dense_layer(engine: str, precision: str) -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 1100 } } }
    layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
      inner_product_param { num_output: 1000 weight_filler { type: "xavier" } } }"""
    net = ir.load_net(parse_net(text), seed=4)
    x = torch.rand(3, 1100, generator=torch.Generator().manual_seed(1))
    made = quiet(net, precision, engine=engine)
    for _ in range(2):
        torch.testing.assert_close(made(x)["ip"], net(x)["ip"], rtol=0.02, atol=0.02)
    assert list(made(x, blobs=["ip", "x"])) == ["ip", "x"]


def test_int8_in_openvino_keeps_float32_activations(net: ir.CaffeNet) -> None:
    if "openvino" not in INSTALLED:
        pytest.skip("openvino is not installed")
    rounded = quiet(net, "int8", engine="torch").deviation(images(4))["out"]
    assert quiet(net, "int8", engine="openvino").deviation(images(4))["out"] < rounded


# SIGCHLD with a handler comes to every process that reads through workers. The first net's OpenVINO is the first dropped.
DROPPED = """
import faulthandler, gc, os, signal, sys
import ilgnet_repro as ir
faulthandler.enable()
net = ir.load_net(sys.argv[1], seed=1)
nets = [ir.fast(net, engine="openvino"), ir.fast(net, engine="openvino")]
for _ in range(2):
    nets[0].deviation()
    del nets[0]
    gc.collect()
signal.signal(signal.SIGCHLD, lambda *arguments: print("a signal"))
os.kill(os.getpid(), signal.SIGCHLD)
"""


@pytest.mark.skipif("openvino" not in INSTALLED, reason="openvino is not installed")
def test_a_signal_after_nets_in_openvino_were_dropped(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(TEXT)
    command = [sys.executable, "-c", DROPPED, str(tmp_path / "net.prototxt")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "a signal\n"), ended.stderr


@pytest.mark.parametrize("engine", ALL)
def test_deviation_on_seeded_inputs(net: ir.CaffeNet, engine: str) -> None:
    assert max(quiet(net, engine=engine).deviation().values()) < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_reports_its_deviation(net: ir.CaffeNet, engine: str) -> None:
    logged: list[str] = []
    fast(net, engine=engine, log=logged.append)
    (line,) = logged
    assert line.startswith(f"fast path in {engine}, large dense weights in float32: at most ")
    assert line.endswith(" from the exact net on seeded inputs")


def test_the_callers_inputs_are_measured(net: ir.CaffeNet, kept: Path) -> None:
    logged: list[str] = []
    made = fast(net, "int8", inputs=images(5), batch=2, log=logged.append)
    assert logged[0].startswith("engine: ")
    if made.engine != "torch":
        assert logged[-1].endswith(" from the exact net on the given inputs")
    again: list[str] = []
    fast(net, "int8", inputs=images(5), batch=2, log=again.append)
    assert again[0] == f"{logged[-2 if made.engine != 'torch' else -1]}, as measured before"
    fast(net, "int8", inputs=images(4), batch=2, log=again.append)
    assert len(list(kept.iterdir())) == 2


@pytest.mark.skipif("openvino" not in INSTALLED, reason="openvino is not installed")
def test_int8_that_changes_the_numbers_is_left_out(
    net: ir.CaffeNet, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(choice.MOST, "int8", 1e-5)
    logged: list[str] = []
    assert fast(net, "int8", inputs=images(3), log=logged.append).precision == "float16"
    assert logged[0].startswith("engine: openvino int8 is left out: it differs from the exact net by ")


def test_precisions_that_all_change_the_numbers_end_in_float32(
    net: ir.CaffeNet, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(choice.MOST, "int8", 0.0)
    monkeypatch.setitem(choice.MOST, "float16", 0.0)
    logged: list[str] = []
    made = fast(net, "int8", inputs=images(3), log=logged.append)
    assert made.precision == "float32"
    assert "engine: int8 and float16 move the values too far; float32 is measured" in logged
    again: list[str] = []
    assert fast(net, "int8", inputs=images(3), log=again.append).precision == "float32"
    assert again[0].endswith(", as measured before")


INPUTS = {
    "another name": ({"x": torch.zeros(1, 3, 36, 40)}, "'x' is not an input of net 'two'"),
    "another size": (torch.zeros(1, 3, 30, 40), "ip (InnerProduct): weight would be 128x"),
    "no rows": (
        torch.zeros(0, 3, 36, 40),
        "inputs=: give the same number of rows, one or more, for each input",
    ),
}


@pytest.mark.parametrize(("inputs", "message"), INPUTS.values(), ids=INPUTS)
def test_inputs_are_checked(net: ir.CaffeNet, inputs: Any, message: str) -> None:
    with pytest.raises(ir.IlgnetError) as caught:
        fast(net, engine="auto", inputs=inputs, batch=2)
    assert message in str(caught.value)


def test_torch_says_nothing(net: ir.CaffeNet, capsys: pytest.CaptureFixture[str]) -> None:
    fast(net, engine="torch")
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------- choosing


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ILGNET_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ilgnet_repro" / "engines"


def pretend(monkeypatch: pytest.MonkeyPatch, installed: list[str]) -> None:
    for module in (onnx_engines, choice):
        monkeypatch.setattr(module, "is_installed", lambda engine: engine in installed)


@pytest.mark.skipif(not INSTALLED, reason="no engine is installed")
def test_a_choice_is_measured_once(net: ir.CaffeNet, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ir.fast(net, batch=3)
    first = capsys.readouterr().err.splitlines()
    assert first[0].startswith(f"engine: {made.engine}, ")
    assert " ms per batch (" in first[0]
    (path,) = kept.iterdir()
    held = json.loads(path.read_text())
    assert held["engine"] == made.engine
    assert set(held["milliseconds"]) == {"torch", *INSTALLED}
    again = ir.fast(net, batch=3)
    assert again.engine == made.engine
    assert capsys.readouterr().err.splitlines()[0] == f"{first[0]}, as measured before"
    ir.fast(net, batch=2)
    assert len(list(kept.iterdir())) == 2


@pytest.mark.skipif("onnxruntime" not in INSTALLED, reason="onnxruntime is not installed")
@pytest.mark.parametrize(
    "change",
    [
        lambda held: {**held, "engine": "opencv"},
        lambda held: {**held, "format": 0},
        lambda held: {**held, "milliseconds": {}},
        lambda held: {**held, "milliseconds": {"torch": -1}},
        lambda held: {**held, "milliseconds": {"torch": 1, "\x1b[31m": 1}},
        lambda held: {**held, "milliseconds": {"torch": True}},
        lambda held: {**held, "milliseconds": {"torch": 10**400}},
        lambda held: {**held, "milliseconds": {"torch": float("inf")}},
        lambda held: [held],
        lambda held: "torch",
    ],
    ids=[
        "engine",
        "format",
        "no times",
        "negative",
        "unknown name",
        "no number",
        "too large",
        "infinite",
        "a list",
        "a text",
    ],
)
def test_a_kept_choice_is_checked(change: Any, tmp_path: Path) -> None:
    able = [choice.Candidate("torch", "float32"), choice.Candidate("onnxruntime", "float32")]
    held = {
        "format": 1,
        "engine": "torch",
        "precision": "float32",
        "milliseconds": {"torch": 2, "onnxruntime": 3.5},
    }
    path = tmp_path / "choice.json"
    path.write_text(json.dumps(held))
    assert choice.read_choice(path, able) == choice.Choice(able[0], {"torch": 2.0, "onnxruntime": 3.5})
    path.write_text(json.dumps(change(held)))
    assert choice.read_choice(path, able) is None


def test_a_broken_file_is_no_choice(tmp_path: Path) -> None:
    able = [choice.Candidate("torch", "float32")]
    for content in (b"", b"{", b"\xff\xfe", b'"' + b"x" * (1 << 17)):
        (tmp_path / "choice.json").write_bytes(content)
        assert choice.read_choice(tmp_path / "choice.json", able) is None
    assert choice.read_choice(tmp_path / "none.json", able) is None


def test_without_engines_torch_and_the_extras(
    net: ir.CaffeNet, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, [])
    assert ir.fast(net).engine == "torch"
    assert capsys.readouterr().err == (
        "engine: torch; faster ones come with pip install 'ilgnet_repro[openvino]' or 'ilgnet_repro[runtime]'\n"
    )
    assert not kept.exists()


@pytest.mark.skipif("onnxruntime" not in INSTALLED, reason="onnxruntime is not installed")
def test_an_engine_that_computes_another_number_is_left_out(
    net: ir.CaffeNet, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, ["onnxruntime"])
    compiled = onnx_engines.compile_model

    def wrong(*arguments: Any, **options: Any) -> Any:
        model = compiled(*arguments, **options)
        run = model.run
        object.__setattr__(model, "run", lambda arrays: [value * 1.01 for value in run(arrays)])
        return model

    monkeypatch.setattr("ilgnet_repro.engines.runners.compile_model", wrong)
    logged: list[str] = []
    assert fast(net, log=logged.append).engine == "torch"
    assert logged[0].startswith("engine: onnxruntime is left out: it differs from the exact net by 0.0")


@pytest.mark.parametrize(("precision", "installed", "expected"), [
    ("float32", [], ["torch"]),
    ("float16", ["onnxruntime"], ["torch float16", "onnxruntime float16"]),
    ("int8", ["onnxruntime"], ["torch int8", "onnxruntime int8", "torch float16", "onnxruntime float16"]),
    ("int8", ["onnxruntime", "openvino"],
     ["openvino int8", "torch float16", "onnxruntime float16", "openvino float16"]),
])  # fmt: skip
def test_candidates(
    precision: str, installed: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, installed)
    assert [str(one) for one in choice.candidates(precision)] == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ILGNET_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/engines"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/ilgnet_repro/engines"),
        ({"HOME": "/u"}, "/u/.cache/ilgnet_repro/engines"),
    ],
    ids=["ILGNET_HOME", "XDG_CACHE_HOME", "home"],
)
def test_choice_folder(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ILGNET_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(choice.choice_folder()) == expected


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize("engine", ALL)
def test_threads_are_the_callers(net: ir.CaffeNet, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    made = quiet(net, engine=engine, threads=2)
    monkeypatch.setenv("ILGNET_THREADS", "3")
    stated = quiet(net, engine=engine)
    assert (made.settings.threads, stated.settings.threads) == (2, 3)
    for one in (made, stated):
        assert max(one.deviation(images(2)).values()) < 1e-4
    assert torch.get_num_threads() == before


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "engine": ({"engine": "opencv"}, "engine='opencv': choose one of auto, torch, onnxruntime, openvino"),
    "no threads": ({"threads": 0}, "threads=0: give a number from 1 to 1024"),
    "threads as text": ({"threads": "2"}, "threads='2': give a number from 1 to 1024"),
    "no images": ({"batch": 0}, "batch=0: give an integer from 1 to 65536"),
    "a device's name": ({"device": "gpu"}, "device='gpu': give cpu, cuda or cuda:N"),
    "a device's number": ({"device": "cuda:-1"}, "device='cuda:-1': give cpu, cuda or cuda:N"),
    "a device of torch": (
        {"device": torch.device("cpu")},
        "device=device(type='cpu'): give cpu, cuda or cuda:N",
    ),
    "compile elsewhere": (
        {"compile": True, "engine": "openvino"},
        "compile=True: goes with the engine torch, not openvino; leave one out",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_arguments(net: ir.CaffeNet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ir.IlgnetError) as caught:
        fast(net, **{"engine": "openvino", **options})
    assert str(caught.value) == message


# What torch is made to say of CUDA, the options, and the refusal.
REFUSED_DEVICES: dict[str, tuple[tuple[bool, bool, int], dict[str, Any], str]] = {
    "built without": (
        (False, False, 0), {},
        f"device='cuda:1': torch is built without CUDA ({torch.__version__}); use device='cpu'",
    ),
    "no card": ((True, False, 0), {}, "device='cuda:1': torch finds no CUDA device; use device='cpu'"),
    "one card": ((True, True, 1), {}, "device='cuda:1': torch finds 1, numbered from 0"),
    "int8": (
        (True, True, 2), {"precision": "int8"},
        "device='cuda:1': computes in float32, float16 or bfloat16; give one of them, or leave out device",
    ),
    "compiled": (
        (True, True, 2), {"compile": True, "engine": "torch"},
        "device='cuda:1': computes uncompiled; leave out compile=True",
    ),
    "in OpenVINO": (
        (True, True, 2), {"engine": "openvino"},
        "engine='openvino': it has no CUDA provider for cuda:1; use engine='torch'",
    ),
    "in ONNX Runtime for the CPU": (
        (True, True, 2), {"engine": "onnxruntime"},
        "engine='onnxruntime': it has no CUDA provider for cuda:1; pip install onnxruntime-gpu in its place, or use "
        "engine='torch'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("cuda", "options", "message"), REFUSED_DEVICES.values(), ids=REFUSED_DEVICES)
def test_refused_devices(
    net: ir.CaffeNet, cuda: tuple[bool, bool, int], options: dict[str, Any], message: str, monkeypatch
) -> None:
    engine = options.get("engine", "torch")
    if engine != "torch" and (engine not in INSTALLED or onnx_engines.has_cuda(engine)):
        pytest.skip(f"{engine} is not installed, or has CUDA")
    built, available, count = cuda
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ir.IlgnetError) as caught:
        fast(net, device="cuda:1", **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("blobs", [("out", "side"), ("pool", "ip")], ids=["outputs", "blobs"])
def test_the_net_of_a_device_computes_the_same(net: ir.CaffeNet, blobs: tuple[str, ...]) -> None:
    """On the CPU, as no other device is at hand; the layout and the settings are those of any device."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    inputs = {"data": torch.randn(3, 3, 36, 40, generator=torch.Generator().manual_seed(4))}
    found = DeviceRunner(net, blobs, "cpu", "float32", print)(inputs)
    expected = net(inputs, blobs=blobs)
    assert tuple(found) == blobs
    for name in blobs:
        assert found[name].is_contiguous()
        np.testing.assert_allclose(found[name].numpy(), expected[name].detach().numpy(), rtol=1e-4, atol=1e-5)
    assert flags == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


def test_threads_of_the_environment_are_checked(net: ir.CaffeNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ILGNET_THREADS", "many")
    with pytest.raises(ir.IlgnetError, match=r"^\$ILGNET_THREADS is 'many': give a number from 1 to 1024$"):
        fast(net)


@pytest.mark.parametrize("engine", onnx_engines.EXTRAS)
def test_an_engine_that_is_not_installed(
    net: ir.CaffeNet, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, [])
    with pytest.raises(ir.IlgnetError) as caught:
        fast(net, engine=engine)
    extra = onnx_engines.EXTRAS[engine]
    assert str(caught.value) == f"engine='{engine}': it is not installed; pip install 'ilgnet_repro[{extra}]'"


@pytest.mark.parametrize("engine", ALL)
def test_a_forked_process_prepares_again(net: ir.CaffeNet, engine: str) -> None:
    made: FastNet = quiet(net, engine=engine, threads=2)
    wanted = made(images(2))["out"]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no assertion may leave the child
        found = made(images(2))["out"]
        os.write(writer, b"1" if torch.allclose(found, wanted, atol=1e-5) else b"0")
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    os.waitpid(child, 0)
    os.close(reader)


@pytest.mark.parametrize(
    ("stated", "shapes", "expected"),
    [
        ({"x": ("N", 3)}, {"x": (5, 3)}, True),
        ({"x": ("N", 3)}, {"x": (5, 4)}, False),
        ({"x": ("N", 3)}, {"x": (5, 3, 1)}, False),
        ({"x": ("N", 3), "y": ("N",)}, {"x": (5, 3), "y": (5,)}, True),
        ({"x": ("N", 3), "y": ("N",)}, {"x": (5, 3), "y": (4,)}, False),
    ],
    ids=["fits", "another length", "more axes", "one symbol", "one symbol, two lengths"],
)
def test_fits(stated: Any, shapes: Any, expected: bool) -> None:
    assert fits(stated, shapes) == expected
