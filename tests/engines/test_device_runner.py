"""What `fast` does on a GPU, as far as a CPU shows it: layers in 16 bits, graphs and what keeps them away, bound memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import read_case

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.engines import device_runner
from ilgnet_repro.engines.cuda_graphs import MOST_GRAPHS, Graph, Replays, watched
from ilgnet_repro.engines.device_runner import DeviceOptions, DeviceRunner
from ilgnet_repro.engines.device_steps import DeviceLayer
from ilgnet_repro.engines.onnx_engines import bound, open_onnxruntime
from ilgnet_repro.engines.runners import Settings, make_runner
from ilgnet_repro.engines.torch_steps import Step
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.onnx_graph import build_onnx

TEXT = """
name: "mixed"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 12 dim: 13 } } }
layer { name: "shift" type: "Power" bottom: "data" top: "shift" power_param { shift: 0.3 } }
layer { name: "both" type: "Concat" bottom: "data" bottom: "shift" top: "both" }
layer { name: "conv" type: "Convolution" bottom: "both" top: "conv" convolution_param {
  num_output: 8 kernel_size: 3 weight_filler { type: "msra" } bias_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "lrn" type: "LRN" bottom: "conv" top: "lrn" }
layer { name: "pool" type: "Pooling" bottom: "lrn" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 7
  weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


@pytest.fixture(scope="module")
def net() -> ir.CaffeNet:
    return ir.load_net(parse_net(TEXT), seed=3)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 12, 13, generator=torch.Generator().manual_seed(count))


def runner(net: ir.CaffeNet, precision: str = "float32", **options: Any) -> DeviceRunner:
    messages = options.pop("messages", [])
    return DeviceRunner(net, net.outputs, "cpu", precision, messages.append, DeviceOptions(**options))


# ---------------------------------------------------------------------- precision

TYPES = {
    "shift": "float32",
    "both": "float32",
    "conv": "16",
    "lrn": "float32",
    "pool": "float32",
    "ip": "16",
    "prob": "float32",
}


@pytest.mark.parametrize(("precision", "most"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_layers_that_multiply_compute_in_16_bits(net: ir.CaffeNet, precision: str, most: float) -> None:
    made = runner(net, precision)
    computed: dict[str, str] = {}

    def see(module: Any, given: Any, tops: Sequence[torch.Tensor]) -> None:
        computed[module.layer.node.name] = str(tops[0].dtype).removeprefix("torch.")

    for module in made.modules:
        if isinstance(module, DeviceLayer):
            module.register_forward_hook(see)
    found = made({"data": images(5)})["prob"]
    assert computed == {name: precision if kind == "16" else kind for name, kind in TYPES.items()}
    exact = net(images(5))["prob"].detach()
    assert found.dtype == torch.float32
    assert 0 < float((found - exact).abs().max()) < most


def test_without_products_nothing_is_rounded() -> None:
    moved = ir.load_net(parse_net(TEXT[: TEXT.index('layer { name: "conv"')]))
    found = runner(moved, "float16")({"data": images(2)})["both"]
    assert torch.equal(found, moved(images(2))["both"])


@pytest.mark.parametrize("channels_last", [False, True, None])
@pytest.mark.parametrize("fused", [False, True])
def test_order_in_memory_and_fused_relu_change_rounding_only(
    net: ir.CaffeNet, channels_last: bool | None, fused: bool
) -> None:
    made = runner(net, channels_last=channels_last, fused=fused)
    for count in (1, 4):
        found = made({"data": images(count)})["prob"]
        assert found.is_contiguous()
        torch.testing.assert_close(found, net(images(count))["prob"].detach(), rtol=1e-5, atol=1e-6)
    names = [module.layer.node.name for module in made.modules]
    assert ("relu" in names) is not fused


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_compute_in_float32_on_a_gpu(net: ir.CaffeNet, engine: str) -> None:
    with pytest.raises(IlgnetError) as caught:
        make_runner(net, net.outputs, Settings(engine, "float16", 1, device="cuda:0"), print)
    assert str(caught.value) == (
        f"engine='{engine}': computes in float32 on cuda:0; leave out precision='float16', or use engine='torch'"
    )


# ---------------------------------------------------------------------- graphs


class Recorder:
    """Stands for CUDA: counts what is recorded, and replays a function into the same memory."""

    def __init__(self, run: Any) -> None:
        self.run, self.recorded, self.replayed = run, [], 0

    def __call__(self, given: Sequence[torch.Tensor]) -> Graph:
        self.recorded.append(tuple(given[0].shape))
        inputs = [value.clone() for value in given]
        outputs = [value.clone() for value in self.run(inputs)]

        def replay() -> None:
            self.replayed += 1
            for place, value in zip(outputs, self.run(inputs), strict=True):
                place.copy_(value)

        return Graph(replay, inputs, outputs)


def doubled(given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [2 * value for value in given]


def test_a_size_is_recorded_at_its_second_call() -> None:
    recorder = Recorder(doubled)
    replays = Replays(doubled, recorder)
    every = []
    for call, (recorded, replayed) in enumerate([(0, 0), (1, 1), (1, 2)]):
        every.append(replays([torch.full((2, 3), float(call))])[0])
        assert (len(recorder.recorded), recorder.replayed) == (recorded, replayed)
    assert [float(value[0, 0]) for value in every] == [0, 2, 4]  # no call changes what one before it returned
    replays([torch.zeros(4, 3)])
    assert recorder.recorded == [(2, 3)]


def test_the_size_used_longest_ago_is_dropped() -> None:
    recorder = Recorder(doubled)
    replays = Replays(doubled, recorder)
    for count in [*range(1, MOST_GRAPHS + 2), 2, 2, 1, 1]:
        replays([torch.zeros(count)])
    assert recorder.recorded == [(2,), (1,)]


def test_calls_of_several_threads_take_turns() -> None:
    replays = Replays(doubled, Recorder(doubled))
    for _ in range(2):
        replays([torch.zeros(1000)])
    right: list[bool] = []

    def work(number: int) -> None:
        for _ in range(50):
            right.append(bool((replays([torch.full((1000,), float(number))])[0] == 2 * number).all()))

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 200


def test_a_net_is_recorded(net: ir.CaffeNet, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Recorder] = []

    def record(run: Any, given: Any) -> Graph:
        recorded.append(Recorder(run))
        return recorded[-1](given)

    monkeypatch.setattr(device_runner, "record_graph", record)
    made = runner(net)
    for call in range(3):
        x = images(3) + call
        torch.testing.assert_close(made({"data": x})["prob"], net(x)["prob"].detach(), rtol=1e-5, atol=1e-6)
    assert [one.replayed for one in recorded] == [2]
    plain = runner(net, graphs=False)
    for _ in range(3):
        plain({"data": images(3)})
    assert len(recorded) == 1


def test_a_net_that_cannot_be_recorded_is_launched(net: ir.CaffeNet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Any, given: Any) -> Graph:
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(device_runner, "record_graph", refuse)
    messages: list[str] = []
    made = runner(net, messages=messages)
    every = [made({"data": images(3)})["prob"] for _ in range(3)]
    assert all(torch.equal(one, every[0]) for one in every)
    assert messages == [
        "no CUDA graph, so each layer is launched by itself: operation not permitted when stream is capturing"
    ]


# Recorded nets, and the layers that keep them from a graph.
READ: dict[str, list[str]] = {
    "AbsVal-0": [],
    "BatchNorm-test": [],
    "LSTM-basic": [],
    "Embed-basic": ["op (Embed)"],
    "Filter-basic": ["op (Filter)"],
    "DetectionOutput-batch3": ["op (DetectionOutput)"],
}


@pytest.mark.parametrize(("name", "layers"), READ.items(), ids=READ)
def test_layers_that_read_values(name: str, layers: list[str], tmp_path: Path) -> None:
    case = read_case(name)
    messages: list[str] = []
    made = runner(case.net(tmp_path), messages=messages)
    found = made({key: torch.from_numpy(value) for key, value in case.inputs.items()})
    assert [
        message.partition("itself: ")[2].removesuffix(" reads values on the CPU") for message in messages
    ] == layers
    for blob, expected in case.outputs.items():
        np.testing.assert_allclose(found[blob].numpy(), expected, rtol=1e-4, atol=1e-5)


class Indexing(torch.nn.Module):
    def __init__(self, work: Any) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.work(x),)


# What a layer may do, and whether a graph can record it.
OPERATORS: dict[str, tuple[Any, bool]] = {
    "a product": (lambda x: x * 2.5, True),
    "indexes": (lambda x: x[torch.zeros(3).long()], True),
    "a maximum": (lambda x: x + x.max(), True),
    "a number on the CPU": (lambda x: x + float(x.max()), False),
    "a comparison": (lambda x: x if torch.equal(x, x) else x + 1, False),
    "positions": (lambda x: x.nonzero(), False),
    "a mask as index": (lambda x: x[x > 0], False),
    "writing by a mask": (lambda x: x.clone().index_put_((x > 0,), torch.zeros(())), False),
    "numbers of Python": (lambda x: x + torch.tensor([1.0, 2.0]), False),
    "a list": (lambda x: x.new_tensor(x.tolist()), False),
}


@pytest.mark.parametrize(("work", "can"), OPERATORS.values(), ids=OPERATORS)
def test_operators_that_read_values(work: Any, can: bool) -> None:
    (step,), reasons = watched([Step(Indexing(work), (), ())])
    step.module(torch.tensor([[1.0, -1.0], [2.0, 3.0], [0.0, 1.0]]))
    assert (not reasons) is can


# ---------------------------------------------------------------------- ONNX Runtime


def test_a_session_on_bound_memory(net: ir.CaffeNet) -> None:
    """As on a GPU, where memory is bound by its address too."""
    pytest.importorskip("onnxruntime")
    session = open_onnxruntime(build_onnx(net).SerializeToString(), 1, "cpu", is_whole=True)
    run = bound(session, ("prob",), "cpu")
    with torch.no_grad():
        for count in (1, 4):
            given = {
                "data": images(count).transpose(2, 3).contiguous().transpose(2, 3)
            }  # copied where it is read
            (found,) = run(given)
            torch.testing.assert_close(found, net(given)["prob"], rtol=1e-5, atol=1e-6)
    first, second = run({"data": images(2)}), run({"data": images(2) + 1})
    assert first[0].data_ptr() != second[0].data_ptr()


def test_memory_is_given_back_without_the_collector(net: ir.CaffeNet) -> None:
    made = runner(net)
    made({"data": images(2)})
    fast = ir.fast(net, engine="torch")
    fast(images(2))
    held = [weakref.ref(made), weakref.ref(fast), weakref.ref(made.modules[0])]
    gc.disable()
    try:
        del made, fast
        assert [ref() for ref in held] == [None] * 3
    finally:
        gc.enable()
