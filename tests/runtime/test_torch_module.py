"""What users of torch do with a module, on every kind of net: it works, or is refused in one line by name."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_nets import SMALL_TEXT
from torch import Tensor, nn

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.runtime.quantize import attach_quantized, quantize_weights

# The second layer has the first one's weights, transposed in shape.
PERMISSIVE = """name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 7 } } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" }
  inner_product_param { num_output: 4 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "a" top: "ip" param { name: "w" share_mode: PERMISSIVE }
  inner_product_param { num_output: 189 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }"""


def exact(text: str = SMALL_TEXT) -> ir.CaffeNet:
    return ir.load_net(parse_net(text), seed=3)


def quantized(precision: str) -> ir.CaffeNet:
    net = exact()
    layer = net.layer("ip")
    attach_quantized(layer, quantize_weights(layer.weight.detach().numpy(), precision))
    return net


NETS: dict[str, Callable[[], Any]] = {
    "exact": exact,
    "int8": lambda: quantized("int8"),
    "float16 weights": lambda: quantized("float16"),
    "PERMISSIVE": lambda: exact(PERMISSIVE),
    "fast": lambda: ir.fast(exact()),
    "fast, float16": lambda: ir.fast(exact(), precision="float16"),
}
CAFFE_NETS = [kind for kind in NETS if "fast" not in kind]
FAST_NETS = [kind for kind in NETS if "fast" in kind]
X = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def through_a_state_dict(net: Any) -> Any:
    held = io.BytesIO()
    torch.save(net.state_dict(), held)
    held.seek(0)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for value in other.state_dict().values():
            value.zero_()
    assert (
        str(other.load_state_dict(torch.load(held, weights_only=True))) == "<All keys matched successfully>"
    )
    return other


def through_torch_save(net: Any) -> Any:
    held = io.BytesIO()
    torch.save(net, held)
    held.seek(0)
    return torch.load(held, weights_only=False)


def with_hook(net: Any) -> Any:
    """A net whose hooks, on itself and on each layer that computes, must have run."""
    parts = [module for module in net.modules() if module is net or not getattr(module, "is_input", True)]
    seen: list[nn.Module] = []
    for part in parts:
        part.register_forward_hook(lambda module, given, found: seen.append(module))

    def run(x: Tensor) -> dict[str, Tensor]:
        found = net(x)
        assert {id(module) for module in seen} == {id(part) for part in parts}
        return found

    return run


def under_autocast(net: Any) -> Any:
    def run(x: Tensor) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(x)

    return run


def in_threads(net: Any) -> Any:
    def run(x: Tensor) -> dict[str, Tensor]:
        found: dict[int, Any] = {}
        threads = [
            threading.Thread(target=lambda index=index: found.update({index: net(x)})) for index in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert all(torch.equal(one["prob"], found[0]["prob"]) for one in found.values())
        return found[0]

    return run


def compiled(net: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(net, backend="eager")


# Operation: the net it returns, and how far its output may be from the original's.
WORKS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "float and cpu": (lambda net: net.float().cpu().to("cpu"), 0),
    "channels last": (lambda net: net.to(memory_format=torch.channels_last), 1e-6),
    "eval": (lambda net: net.eval(), 0),
    "requires_grad_": (lambda net: net.requires_grad_(False), 0),
    "hooks": (with_hook, 0),
    "autocast": (under_autocast, 1e-2),
    "threads": (in_threads, 0),
    "torch.compile": (compiled, 1e-6),
    "DataParallel": (nn.DataParallel, 0),
    "torch.save": (through_torch_save, 0),
    "copy": (copy.copy, 0),
    "deepcopy": (copy.deepcopy, 0),
    "pickle": (lambda net: pickle.loads(pickle.dumps(net)), 0),  # noqa: S301 (made here)
    "AveragedModel": (torch.optim.swa_utils.AveragedModel, 0),
    "in Sequential": (nn.Sequential, 0),
    "as_tensor": (lambda net: lambda x: {"prob": net.as_tensor()(x)}, 0),
    "as_tensor of a blob, compiled": (
        lambda net: lambda x: {"prob": compiled(net.as_tensor("prob"))(x)},
        1e-6,
    ),
}
# What packed weights cannot do: the words of the refusal.
CHANGES: dict[str, tuple[Callable[[Any], Any], float, str]] = {
    "state_dict": (through_a_state_dict, 0, "saved as a state_dict"),
    "load_state_dict": (lambda net: (net.load_state_dict({}, strict=False), net)[1], 0, "given a state_dict"),
    "half": (lambda net: net.half(), 1e-3, "converted, moved or shared"),
    "double": (lambda net: net.double(), 1e-6, "converted, moved or shared"),
    "to bfloat16": (lambda net: net.to(torch.bfloat16), 1e-2, "converted, moved or shared"),
    "share_memory": (lambda net: net.share_memory(), 0, "converted, moved or shared"),
    "train and eval": (lambda net: net.train().eval(), 0, "put into training mode"),
    "jit.trace": (lambda net: torch.jit.trace(net, X, strict=False), 0, "exported or traced"),
    "export": (
        lambda net: lambda x: {"prob": torch.export.export(net.as_tensor(), (x,)).module()(x)}, 1e-6,
        "exported or traced",
    ),
    "gradients": (lambda net: lambda x: net(x.clone().requires_grad_()), 0, "differentiated"),
    "a backward hook": (
        lambda net: (net.register_full_backward_hook(lambda module, given, found: None), net)[1], 0,
        "given backward hooks",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.parametrize("kind", NETS)
def test_works(kind: str, name: str) -> None:
    use, atol = WORKS[name]
    wanted = NETS[kind]()(X)["prob"]
    found = use(NETS[kind]())(X)["prob"]
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=atol)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*module output should be a Tensor")
@pytest.mark.filterwarnings("ignore:.*jit.trace.* is deprecated")
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", CAFFE_NETS)
def test_changes(kind: str, name: str) -> None:
    use, atol, _ = CHANGES[name]
    wanted = NETS[kind]()(X)["prob"]
    found = use(NETS[kind]())(X)["prob"]
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", FAST_NETS)
def test_a_fast_net_refuses_by_name(kind: str, name: str) -> None:
    use, _, words = CHANGES[name]
    with pytest.raises(ir.GraphError) as caught:
        use(NETS[kind]())(X)
    assert str(caught.value) == (
        f"net 'small': a fast net cannot be {words}; do it with the exact net, and make that fast"
    )


# ---------------------------------------------------------------------- files that another engine runs

FILES = {"onnx": ("net.onnx", "ONNX Runtime"), "pt2": ("net.pt2", "torch.export")}
LOAD_CAFFE = "load the Caffe net (prototxt and weights) for it"
FILE_REFUSES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "state_dict": (lambda net: net.state_dict(), f"has no 'state_dict'; {LOAD_CAFFE}"),
    "half": (lambda net: net.half(), f"has no 'half'; {LOAD_CAFFE}"),
    "to": (lambda net: net.to("cpu"), f"has no 'to'; {LOAD_CAFFE}"),
    "train": (lambda net: net.train(), f"has no 'train'; {LOAD_CAFFE}"),
    "params": (lambda net: net.params, f"has no 'params'; {LOAD_CAFFE}"),
    "loss": (lambda net: net.loss(X), f"has no 'loss'; {LOAD_CAFFE}"),
    "pickle": (pickle.dumps, "cannot be pickled; load its file in each process"),
    "gradients": (
        lambda net: net(X.clone().requires_grad_()),
        "has no gradients; load the Caffe net (prototxt and weights) for them, or call it under torch.no_grad()",
    ),
    "export": (
        lambda net: torch.export.export(net.as_tensor(), (X,)), "cannot be exported; save the Caffe net",
    ),
}  # fmt: skip
FILE_WORKS = {
    name: WORKS[name] for name in ("threads", "torch.compile", "as_tensor", "as_tensor of a blob, compiled")
} | {"deepcopy": (copy.deepcopy, 0), "copy": (copy.copy, 0)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("files")
    for name, _ in FILES.values():
        ir.save(exact(), folder / name)
    return {kind: ir.load(folder / name) for kind, (name, _) in FILES.items()}


@pytest.mark.parametrize("name", FILE_WORKS)
@pytest.mark.parametrize("kind", FILES)
def test_a_file_works(files: dict[str, Any], kind: str, name: str) -> None:
    use, atol = FILE_WORKS[name]
    torch.testing.assert_close(use(files[kind])(X)["prob"], files[kind](X)["prob"], rtol=0, atol=atol)


@pytest.mark.parametrize("name", FILE_REFUSES)
@pytest.mark.parametrize("kind", FILES)
def test_a_file_refuses_by_name(files: dict[str, Any], kind: str, name: str) -> None:
    use, words = FILE_REFUSES[name]
    file, engine = FILES[kind]
    with pytest.raises(ir.GraphError) as caught:
        use(files[kind])
    assert str(caught.value) == f"{file}: a net that {engine} runs {words}"


def test_a_missing_attribute_of_a_file_is_one_for_python_too(files: dict[str, Any]) -> None:
    assert not hasattr(files["onnx"], "params")
    assert repr(files["onnx"]).startswith("FileNet(name='net.onnx', form='ONNX Runtime'")


class Scores(torch.utils.data.Dataset):
    """Each kind of net run in a worker."""

    def __init__(self, nets: dict[str, Any]) -> None:
        self.nets = list(nets.values())

    def __len__(self) -> int:
        return len(self.nets)

    def __getitem__(self, index: int) -> Tensor:
        with torch.inference_mode():
            return self.nets[index](X)["prob"].clone()


@pytest.mark.parametrize(("start", "kinds"), [("fork", list(NETS)), ("spawn", list(NETS))])
def test_workers_of_a_loader(start: str, kinds: list[str]) -> None:
    nets = {kind: NETS[kind]() for kind in kinds}
    wanted = list(Scores(nets))
    loader = torch.utils.data.DataLoader(
        Scores(nets), batch_size=None, num_workers=1, multiprocessing_context=start, timeout=100
    )
    for found, expected in zip(loader, wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


ERRORS = {
    "plain": ir.GraphError("net 'x': no; yes"),
    "of a layer": ir.LayerError("conv", "Convolution", "kernel_size 0; give 1 or more", option="kernel"),
    "of a text": ir.ParseError("never closed; add }", file="a.prototxt", line=3, column=7),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_reaches_the_caller_from_another_process(error: ir.IlgnetError) -> None:
    for found in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 (made here)
        assert type(found) is type(error)
        assert (str(found), vars(found)) == (str(error), vars(error))
        assert (found.where, found.what, found.remedy) == (error.where, error.what, error.remedy)
