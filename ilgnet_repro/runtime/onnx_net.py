"""An ONNX file as a net: ONNX Runtime runs it, for load, score, test and verification."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from ..about import About
from ..caffe.expected_kind import expect
from ..caffe.kinds import Kind
from ..errors import FormatError, IlgnetError
from ..files import parse_json, real_path, utf8_path
from .runnable import FileNet, OpenShape

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def open_net(path: Path) -> FileNet:
    """Open an ONNX file, this package's or another's.

    Raises IlgnetError where it is not an ONNX file, its weights are not in a file beside it, or ONNX Runtime is
    not installed or cannot open it.
    """
    read_model(path)
    session = open_session(path)
    inputs = {entry.name: entry for entry in session.get_inputs()}
    outputs = tuple(entry.name for entry in session.get_outputs())

    def run(given: dict[str, Tensor]) -> Mapping[str, Tensor]:
        arrays = {name: _as_typed(name, value, inputs[name].type) for name, value in given.items()}
        try:
            found = session.run(None, arrays)
        except Exception as error:  # its exceptions share no base class but Exception
            reason = str(error).strip().splitlines()[0]
            raise IlgnetError(f"{path}: ONNX Runtime cannot run it ({reason})") from error
        return dict(zip(outputs, map(torch.from_numpy, found), strict=True))

    shapes = {name: _shape(entry.shape) for name, entry in inputs.items()}
    shapes |= {entry.name: _shape(entry.shape) for entry in session.get_outputs()}
    metadata = session.get_modelmeta().custom_metadata_map
    about = About() if "ilgnet_repro.format" not in metadata else _about(metadata, path)
    return FileNet(path.name, "ONNX Runtime", about, tuple(inputs), outputs, shapes, run)


_KINDS = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}  # fmt: skip


def _as_typed(name: str, value: Tensor, kind: str) -> np.ndarray:
    """Return an input in the type that the file states.  Raises IlgnetError for an unsupported type."""
    if kind not in _KINDS:
        raise IlgnetError(f"input {name!r} is {kind}, which cannot be fed from here")
    value = value.detach().cpu()
    array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16
    wanted = np.dtype(_KINDS[kind])
    if wanted == np.uint8 and array.dtype != wanted:
        raise IlgnetError(
            f"input {name!r} takes uint8; what is given is {array.dtype}: give integers from 0 to 255"
        )
    return np.ascontiguousarray(array, wanted)


def _shape(dims: list[Any]) -> OpenShape:
    """Return the lengths that a file states; None for symbols."""
    return tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in dims)


def _about(metadata: Mapping[str, str], path: Path) -> About:
    """Return what the metadata of this package's file say."""
    stated = dict(metadata)
    try:
        order = parse_json(stated["picture"])["order"] if "picture" in stated else ""
        how = parse_json(stated.get("preprocessing", "{}"))
        if order or how.get(
            "has_mean_image"
        ):  # the graph prepares images itself, or the mean image is not stored in the file
            del stated["preprocessing"]
        return replace(About.from_metadata(stated), image_order=order)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: its metadata are not as this package writes them ({error})") from error


def read_model(path: Path) -> onnx.ModelProto:
    """Parse a model without its external weights.  Raises IlgnetError if the file is not an ONNX model."""
    expect(path, Kind.ONNX, Kind.UNKNOWN, what="an ONNX model")
    try:
        # The format is given: onnx would choose it by the suffix.
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise IlgnetError(f"{path}: is not an ONNX file ({str(error).splitlines()[0]})") from error
    if not model.graph.node:
        raise IlgnetError(f"{path}: is not an ONNX file (it holds no nodes)")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_location(path, tensor)
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _check_location(path: Path, tensor: onnx.TensorProto) -> None:
    """Refuse weights that are not in a file beside the model: older runtimes read any file, or any memory."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    folder = real_path(path.parent)
    try:
        target = real_path(folder / location)
        is_beside = target.is_relative_to(folder) and target.is_file()
    except (OSError, ValueError):
        is_beside = False
    if not is_beside or Path(location).is_absolute():
        raise IlgnetError(f"{path}: keeps {tensor.name!r} in {location!r}, which is not a file beside it")


def open_session(model: Path | bytes, folder: Path | None = None) -> InferenceSession:
    """Return an ONNX Runtime session on the CPU.  Raises IlgnetError where it cannot be opened."""
    try:
        import onnxruntime
    except ImportError as error:
        raise IlgnetError(
            "ONNX Runtime is not installed, so an ONNX file cannot be run; pip install 'ilgnet_repro[runtime]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        with ExitStack() as stack:
            if folder is not None:
                place = stack.enter_context(utf8_path(real_path(folder)))
                options.add_session_config_entry(
                    "session.model_external_initializers_file_folder_path", place
                )
            given: str | bytes
            if isinstance(model, bytes):
                given = model
            else:
                # Through the folder: a model over 2 GB has its weights in a file beside it.
                given = os.path.join(stack.enter_context(utf8_path(model.parent)), model.name)
                given = stack.enter_context(utf8_path(given))
            return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class but Exception
        reason = str(error).strip().splitlines()[0]
        where = model if isinstance(model, Path) else "model"
        raise IlgnetError(f"{where}: ONNX Runtime cannot open it ({reason})") from error
