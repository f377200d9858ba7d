"""ONNX Runtime and OpenVINO: an ONNX model made in memory becomes a function from arrays to arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import IlgnetError
from ..export.onnx_file import onnx_bytes, write_onnx
from ..export.onnx_graph import OnnxModel
from ..process import openvino_core

# Each engine and the extra that installs it.
EXTRAS = {"onnxruntime": "runtime", "openvino": "openvino"}
_Given = TypeVar("_Given")
_Found = TypeVar("_Found")
_CUDA = "CUDAExecutionProvider"
Arrays = Mapping[str, np.ndarray]
OnDevice = Callable[[Mapping[str, Tensor]], list[Tensor]]
Dims = tuple[int | str, ...]  # a symbol stands for any length, the same wherever it is used


@dataclass(frozen=True, eq=False)
class CompiledModel:
    """A model in an engine: the dims of its inputs, its outputs, and the functions that run it."""

    inputs: Mapping[str, Dims]
    outputs: tuple[str, ...]
    run: Callable[[Arrays], list[np.ndarray]]
    on_device: OnDevice | None = None  # the same for tensors on a GPU, which stay there


def is_installed(engine: str) -> bool:
    """Return whether an engine can be imported."""
    return find_spec(engine) is not None


def engine_version(engine: str) -> str:
    """Return the version of an engine's package; empty where its metadata are missing."""
    try:
        return version(engine)
    except PackageNotFoundError:
        return ""


def has_cuda(engine: str) -> bool:
    """Return whether an installed engine computes on CUDA devices."""
    if engine != "onnxruntime" or not is_installed(engine):
        return False
    import onnxruntime

    return _CUDA in onnxruntime.get_available_providers()


def compile_model(
    engine: str, model: OnnxModel, threads: int, device: str = "cpu", *, is_whole: bool = True
) -> CompiledModel:
    """Compile a model; ``is_whole``: torch computes nothing after it, and its threads may wait in a loop for the next call.

    Raises IlgnetError where the engine is not installed or does not take the model or device.
    """
    if not is_installed(engine):
        raise IlgnetError(
            f"engine={engine!r}: it is not installed; pip install 'ilgnet_repro[{EXTRAS[engine]}]'",
            option="engine",
        )
    if device != "cpu" and not has_cuda(engine):
        remedy = (
            "pip install onnxruntime-gpu in its place, or use engine='torch'"
            if engine == "onnxruntime"
            else "use engine='torch'"
        )
        raise IlgnetError(
            f"engine={engine!r}: it has no CUDA provider for {device}; {remedy}", option="engine"
        )
    inputs = {
        entry.name: tuple(dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim)
        for entry in model.skeleton.graph.input
    }
    outputs = tuple(entry.name for entry in model.skeleton.graph.output)
    on_device = None
    with _as_file(model) as source:
        try:
            if engine == "openvino":
                run = _open_openvino(source, threads, outputs)
            else:
                session = open_onnxruntime(source, threads, device, is_whole=is_whole)
                run = _on_cpu(session, outputs)
                on_device = None if device == "cpu" else bound(session, outputs, device)
        except Exception as error:  # the engines' own share no base class
            raise _explanation(engine, "open", error) from error
    return CompiledModel(
        inputs, outputs, _explained(engine, run), on_device and _explained(engine, on_device)
    )


def _explained(engine: str, run: Callable[[_Given], _Found]) -> Callable[[_Given], _Found]:
    def explained(given: _Given) -> _Found:
        try:
            return run(given)
        except Exception as error:  # the engines' own share no base class
            raise _explanation(engine, "run", error) from error

    return explained


def _explanation(engine: str, what: str, error: Exception) -> IlgnetError:
    """Return an engine's own error as one line."""
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    return IlgnetError(f"{engine} cannot {what} the net ({reason}); use another engine", option="engine")


@contextmanager
def _as_file(model: OnnxModel) -> Iterator[bytes | str]:
    """Yield the bytes of a model; past 2 GB, which no protobuf message holds, the path of temporary files."""
    whole = onnx_bytes(model)
    if whole is not None:
        yield whole
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        write_onnx(path, model)
        yield str(path)


def open_onnxruntime(source: bytes | str, threads: int, device: str, *, is_whole: bool) -> Any:
    """Return a session of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if not is_whole:  # threads that wait in a loop would take the cores from torch's
        options.add_session_config_entry("session.force_spinning_stop", "1")
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if device != "cpu":
        providers.insert(0, (_CUDA, {"device_id": str(_number(device)), "use_tf32": "0"}))
    session = onnxruntime.InferenceSession(source, options, providers=providers)
    # A provider that does not start is replaced by that of the CPU, with a message at most.
    if device != "cpu" and _CUDA not in session.get_providers():
        raise IlgnetError(f"its CUDA provider does not start on {device}; see its own message above")
    return session


def _on_cpu(session: Any, outputs: tuple[str, ...]) -> Callable[[Arrays], list[np.ndarray]]:
    """Return a function that runs a session on arrays.

    Without Python's checks of names and values, which take 5 of the 130 us of LeNet, where the session shows what it calls.
    """
    native = getattr(session, "_sess", None)
    names = list(outputs)
    if native is None:
        return partial(session.run, names)

    def run(arrays: Arrays) -> list[np.ndarray]:
        found: list[np.ndarray] = native.run(names, arrays, None)
        return found

    return run


def bound(session: Any, outputs: tuple[str, ...], device: str) -> OnDevice:
    """Return a function that runs a session on tensors where they are, and leaves its outputs on the device.

    ONNX Runtime computes on a stream of its own: the tensors are complete before it starts, and it before the function
    returns.
    """
    kind, number = device.partition(":")[0], _number(device)

    def run(given: Mapping[str, Tensor]) -> list[Tensor]:
        binding = session.io_binding()
        held = {name: value.detach().to(device).contiguous() for name, value in given.items()}
        for name, value in held.items():
            binding.bind_input(name, kind, number, np.float32, tuple(value.shape), value.data_ptr())
        for name in outputs:
            binding.bind_output(name, kind, number)
        if kind == "cuda":
            torch.cuda.current_stream(number).synchronize()
        session.run_with_iobinding(binding)
        return [_as_tensor(value, device) for value in binding.get_outputs()]

    return run


class _Foreign:
    """Memory of an OrtValue as torch reads it; torch keeps the object for as long as its tensor."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.__cuda_array_interface__ = {
            "shape": tuple(value.shape()),
            "typestr": "<f4",
            "data": (value.data_ptr(), False),
            "version": 3,
            "strides": None,
            "stream": None,
        }


def _as_tensor(value: Any, device: str) -> Tensor:
    """Return an output of a session as a tensor in the same memory."""
    if value.data_type() != "tensor(float)":
        raise IlgnetError(f"an output is a {value.data_type()}, not float32")
    if device == "cpu":
        return torch.from_numpy(value.numpy())
    if 0 in value.shape():  # no memory, so no address
        return torch.empty(value.shape(), device=device)
    return torch.as_tensor(_Foreign(value), device=device)


def _number(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _open_openvino(
    source: bytes | str, threads: int, outputs: tuple[str, ...]
) -> Callable[[Arrays], list[np.ndarray]]:
    import openvino

    core = openvino_core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 on processors that have it
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # activations of compressed layers stay float32
        "ENABLE_CPU_PINNING": False,  # the cores belong to the caller
    }
    compiled = core.compile_model(core.read_model(source), "CPU", settings)
    request = compiled.create_infer_request()
    places = {name: index for index, port in enumerate(compiled.inputs) for name in port.names}
    lock = Lock()  # a request computes one batch at a time

    def run(arrays: Arrays) -> list[np.ndarray]:
        with lock:
            for name, array in arrays.items():
                request.set_input_tensor(places[name], openvino.Tensor(array, shared_memory=True))
            request.infer()
            return [request.get_output_tensor(index).data.copy() for index in range(len(outputs))]

    return run


def as_float32(value: Tensor) -> np.ndarray:
    """Return a float32 tensor as a contiguous array that the engines may read."""
    if value.requires_grad:
        value = value.detach()
    array: np.ndarray = (value if value.is_contiguous() else value.contiguous()).numpy()
    return array
