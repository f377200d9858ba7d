"""Fast nets on a GPU: graphs, precisions, streams and threads, ONNX Runtime's CUDA provider; skipped without one."""

from __future__ import annotations

import os
from functools import partial
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.engines import onnx_engines
from ilgnet_repro.zoo.catalogue import build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
HAS_CUDA = onnx_engines.has_cuda("onnxruntime")
ONNX = pytest.param(
    "onnxruntime", marks=pytest.mark.skipif(not HAS_CUDA, reason="ONNX Runtime has no CUDA provider here")
)
ENGINES = [pytest.param("torch"), ONNX]
fast = partial(ir.fast, device="cuda")
quiet = partial(fast, log=lambda message: None)


def drawn() -> ir.CaffeNet:
    """SqueezeNet, whose text has no fillers, with weights that keep the values of all layers at similar magnitudes."""
    net, generator = ir.load_net(build("squeezenet"), seed=1), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight, bias in net.params.values():
            weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator)
            bias.uniform_(-0.1, 0.1, generator=generator)
        net.params["conv10"][1].normal_(0, 2, generator=generator)
    return net


@pytest.fixture(scope="module")
def net() -> ir.CaffeNet:
    net = drawn()
    with torch.inference_mode():
        first, second = net(images(2))["prob"].flatten(1)
    assert 0.01 < float(first.max()) < 0.9
    assert float((first - second).abs().max()) > 0.003
    return net


def images(count: int, size: int = 227) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def assert_near(found: dict[str, Tensor], net: ir.CaffeNet, given: Any, most: float = 1e-4) -> None:
    with torch.inference_mode():
        exact = net(given)
    assert list(found) == list(exact)
    for name, blob in exact.items():
        assert found[name].device.type == "cuda"
        assert found[name].is_contiguous()
        assert found[name].dtype == torch.float32
        np.testing.assert_allclose(found[name].cpu().numpy(), blob.numpy(), rtol=0, atol=most)


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_sizes_and_blobs(net: ir.CaffeNet, engine: str) -> None:
    made = quiet(net, engine=engine)
    for _ in range(3):  # launched, recorded, replayed
        for count, size in ((1, 227), (3, 227), (2, 259), (0, 227)):
            for place in ("cpu", "cuda"):
                x = images(count, size)
                assert_near(made(x.to(place)), net, x)
    x = images(2)
    found = made(x, blobs=["pool1", "prob", "data"])
    with torch.inference_mode():
        exact = net(x, blobs=["pool1", "prob", "data"])
    for name, blob in exact.items():
        torch.testing.assert_close(found[name].cpu(), blob, rtol=1e-4, atol=1e-3)


def test_a_graph_is_replayed(net: ir.CaffeNet) -> None:
    made = quiet(net, engine="torch")
    every = [made(images(2))["prob"] for _ in range(5)]
    assert made._runner._can_record
    (graph,) = made._runner._replays._kept.values()
    assert graph is not None
    assert len({value.data_ptr() for value in every}) == 5
    for value in every[1:]:
        torch.testing.assert_close(value, every[0], rtol=1e-4, atol=1e-6)


def test_products_are_float32(net: ir.CaffeNet) -> None:
    """TF32 keeps 10 bits: the logits would be off by about 1e-3 of the largest."""
    made = quiet(net, engine="torch")
    double = drawn().double()
    x = images(4)
    with torch.inference_mode():
        exact = double(x.double(), blobs=["pool10"])["pool10"]
        for found in (
            made(x, blobs=["pool10"])["pool10"],
            drawn().to("cuda")(x, blobs=["pool10"])["pool10"],
        ):
            assert float((found.cpu().double() - exact).abs().max() / exact.abs().max()) < 2e-5


@pytest.mark.parametrize(("precision", "most"), [("float16", 5e-3), ("bfloat16", 5e-2)])
def test_layers_in_16_bits(net: ir.CaffeNet, precision: str, most: float) -> None:
    messages: list[str] = []
    made = fast(net, precision, engine="auto", log=messages.append)
    assert (made.engine, made.precision) == ("torch", precision)
    assert any(f"layers in {precision}: at most" in message for message in messages), messages
    for _ in range(3):
        assert_near(made(images(3)), net, images(3), most)


def test_the_engine_is_chosen(net: ir.CaffeNet) -> None:
    messages: list[str] = []
    made = fast(net, engine="auto", batch=2, log=messages.append)
    assert_near(made(images(2)), net, images(2))
    assert not [message for message in messages if "left out" in message]


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_and_streams(net: ir.CaffeNet, engine: str) -> None:
    made = quiet(net, engine=engine)
    given = {number: images(2) + 10 * number for number in range(4)}
    with torch.inference_mode():
        exact = {number: net(x)["prob"] for number, x in given.items()}
    for _ in range(3):
        made(given[0])
    apart: list[float] = []  # a thread that fails adds fewer

    def work(number: int) -> None:
        stream = torch.cuda.Stream()
        x = given[number].to("cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(30):
                found = made(x)["prob"]
                apart.append(float((found.cpu() - exact[number]).abs().max()))

    threads = [Thread(target=work, args=(number,)) for number in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(apart) == 4 * 30
    assert max(apart) < 1e-4


DENSE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 5 dim: 48 dim: 9 dim: 11 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 1000
  weight_filler { type: "xavier" } } }
layer { name: "ip2" type: "InnerProduct" bottom: "ip" top: "ip2" inner_product_param { num_output: 300
  weight_filler { type: "xavier" } } }
"""


def test_graphs_keep_their_workspaces() -> None:
    """torch.compile with graphs frees cuBLAS's: a graph that reads them accesses memory that is not there."""
    made_for = ir.load_net(parse_net(DENSE), seed=2)
    made = quiet(made_for, engine="torch")
    x = torch.randn(5, 48, 9, 11, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        made(x)
    assert made._runner._can_record
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    other = [torch.full((1 << 22,), 7.0, device="cuda") for _ in range(8)]
    assert_near(made(x), made_for, x)
    assert all(bool((value == 7).all()) for value in other)


DETECTION = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 11 } } }
layer { name: "rows" type: "ArgMax" bottom: "data" top: "rows" argmax_param { axis: 1 } }
layer { name: "embed" type: "Embed" bottom: "rows" top: "out" embed_param { input_dim: 3 num_output: 5
  weight_filler { type: "uniform" min: -1 max: 1 } bias_term: false } }
"""


def test_a_layer_that_reads_values_is_launched() -> None:
    made_for = ir.load_net(parse_net(DETECTION), seed=2)
    messages: list[str] = []
    made = fast(made_for, engine="torch", log=messages.append)
    x = images(2)[:, :, :9, :11].contiguous()
    for _ in range(3):
        assert_near(made(x), made_for, x)
    assert messages == [
        "no CUDA graph, so each layer is launched by itself: embed (Embed) reads values on the CPU"
    ]


def test_memory_is_given_back(net: ir.CaffeNet) -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    made = quiet(net, engine="torch")
    for _ in range(3):
        made(images(8))
    del made
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 1 << 20


def test_a_forked_process_is_refused(net: ir.CaffeNet) -> None:
    made = quiet(net, engine="torch")
    made(images(1))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no assertion may leave the child
        try:
            made(images(1))
            os.write(writer, b"none")
        except ir.IlgnetError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    assert "a fast net cannot be used in a process forked after it was made" in os.read(reader, 4096).decode()
    os.waitpid(child, 0)
    os.close(reader)
