"""Writing an ONNX file field by field: weights go from their memory map to the file, not through protobuf."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO

import onnx
import torch
from onnx import TensorProto

from ..caffe.wire import encode_header
from ..errors import IlgnetError
from ..files import atomic_file
from ..runtime.safetensors_file import tensor_bytes
from .onnx_graph import OnnxModel, tensor_header

# protobuf cannot read messages of 2 GiB or more.
SINGLE_FILE_LIMIT = (1 << 31) - 1
# External tensors are page-aligned, so that a runtime can memory-map them.
PAGE = 4096
PIECE = 1 << 20  # fits the processor caches

# Field numbers of onnx.proto.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9

Progress = Callable[[int], None] | None


def write_onnx(
    path: str | os.PathLike[str],
    model: OnnxModel,
    *,
    progress: Progress = None,
) -> list[Path]:
    """Write a model and return its files: one, or past 2 GB a second, ``NAME.data``, with the weights.

    The same model gives the same bytes.
    """
    target = Path(path)
    fields = [_initializer_head(name, tensor) for name, tensor in model.weights.items()]
    if _whole_size(model, fields) > SINGLE_FILE_LIMIT:
        return _write_external(target, model, progress)
    with atomic_file(target) as file:
        _write_single(file, model, fields, progress)
    return [target]


def onnx_bytes(model: OnnxModel) -> bytes | None:
    """Return a model as the bytes of its file, or None past 2 GB."""
    fields = [_initializer_head(name, tensor) for name, tensor in model.weights.items()]
    if _whole_size(model, fields) > SINGLE_FILE_LIMIT:
        return None
    file = BytesIO()
    _write_single(file, model, fields, None)
    return file.getvalue()


def _whole_size(model: OnnxModel, fields: Sequence[bytes]) -> int:
    return int(model.skeleton.ByteSize()) + _weights_size(model, fields)


def _weights_size(model: OnnxModel, fields: Sequence[bytes]) -> int:
    return sum(tensor.nbytes for tensor in model.weights.values()) + sum(map(len, fields))


def _write_single(file: IO[bytes], model: OnnxModel, fields: Sequence[bytes], progress: Progress) -> None:
    """Write one file; ``fields`` are the heads of its initializers."""
    head, graph, tail = _parts(model.skeleton)
    file.write(head + encode_header(_GRAPH, len(graph) + _weights_size(model, fields)) + graph)
    done = 0
    for start, tensor in zip(fields, model.weights.values(), strict=True):
        file.write(start)
        done = _write_values(file, tensor, done, progress)
    file.write(tail)


def _parts(skeleton: onnx.ModelProto) -> tuple[bytes, bytes, bytes]:
    """Split a model into the bytes before the graph, the graph, and the metadata after it."""
    head, tail = onnx.ModelProto(), onnx.ModelProto()
    head.CopyFrom(skeleton)
    head.ClearField("graph")
    tail.metadata_props.extend(head.metadata_props)
    head.ClearField("metadata_props")
    return _bytes(head), _bytes(skeleton.graph), _bytes(tail)


def _initializer_head(name: str, tensor: torch.Tensor) -> bytes:
    """Return the bytes of an initializer field that precede its values."""
    start = _bytes(tensor_header(name, tensor)) + encode_header(_RAW_DATA, tensor.nbytes)
    return encode_header(_INITIALIZER, len(start) + tensor.nbytes) + start


def _write_values(file: IO[bytes], tensor: torch.Tensor, done: int, progress: Progress) -> int:
    for piece in _pieces(tensor):
        done += file.write(piece)
        if progress:
            progress(done)
    return done


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    view = tensor_bytes(tensor)
    return (view[start : start + PIECE] for start in range(0, len(view), PIECE))


def _write_external(target: Path, model: OnnxModel, progress: Progress) -> list[Path]:
    data = target.with_name(f"{target.name}.data")
    try:
        data.name.encode()
    except UnicodeEncodeError as error:
        raise IlgnetError(f"{data}: ONNX holds the name of this file as UTF-8; rename the weights") from error
    whole = onnx.ModelProto()
    whole.CopyFrom(model.skeleton)
    done = offset = 0
    with atomic_file(data) as file:
        for name, tensor in model.weights.items():
            offset += -offset % PAGE
            file.seek(offset)
            done = _write_values(file, tensor, done, progress)
            entry = tensor_header(name, tensor)
            entry.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", offset), ("length", tensor.nbytes)):
                entry.external_data.add(key=key, value=str(value))
            whole.graph.initializer.append(entry)
            offset += tensor.nbytes
    head, graph, tail = _parts(whole)
    with atomic_file(target) as file:
        file.write(head + encode_header(_GRAPH, len(graph)) + graph + tail)
    return [target, data]


def _bytes(message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto) -> bytes:
    return message.SerializeToString(deterministic=True)
