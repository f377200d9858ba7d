"""Writes weights files (`.caffemodel`) field by field, without a second copy of the weights."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import IO, Any

import numpy as np
from google.protobuf.message import Message

from ..errors import WeightsError, excerpt
from ..files import atomic_file
from ..schema import caffe_pb2
from . import wire
from .blob import blob_chunks

Layer = caffe_pb2.LayerParameter | caffe_pb2.V1LayerParameter

_FIRST_FORK_NUMBER = 20_000


def write_caffemodel(
    path: str | os.PathLike[str],
    net: caffe_pb2.NetParameter,
    blobs: Mapping[str, Sequence[np.ndarray]],
    *,
    legacy: bool = False,
    half: Collection[str] = (),
    diffs: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> None:
    """Write ``net`` with ``blobs`` (arrays by layer name) as Caffe serialises it; the file is complete or absent.

    Fields of forks are left out, because their field numbers are private to this package. A layer that is not in
    ``blobs`` is written with the blobs that it has in ``net``.  ``legacy`` writes shapes as num/channels/height/width,
    and ``half`` names the layers whose blobs are written as float16 (`blob_chunks`).  The same net and arrays give the
    same bytes.  ``diffs`` are written beside the blobs of the same layers.  Raises WeightsError for a name that no
    layer of ``net`` has, and for a net without a required field.
    """
    where = Path(path).name
    layers: list[tuple[int, int, Layer]] = [
        *((100, 7, layer) for layer in net.layer),
        *((2, 6, layer) for layer in net.layers),
    ]
    check_layers(net, blobs, where)
    if not net.IsInitialized():
        raise WeightsError(f"{where}: the net lacks {missing_field(net)}; set it")
    outside = caffe_pb2.NetParameter()
    outside.CopyFrom(net)
    outside.ClearField("layer")
    outside.ClearField("layers")
    strip_fork_fields(outside)
    with atomic_file(path) as file:
        # In number order: name (1), layers (2), the other net fields (3 to 8), layer (100).
        head, tail = split_after(outside.SerializeToString(deterministic=True), 2)
        file.write(head)
        _write_layers(file, [entry for entry in layers if entry[0] == 2], blobs, legacy, where, half, diffs)
        file.write(tail)
        _write_layers(file, [entry for entry in layers if entry[0] == 100], blobs, legacy, where, half, diffs)


def check_layers(net: caffe_pb2.NetParameter, blobs: Mapping[str, Sequence[np.ndarray]], where: str) -> None:
    """Raise WeightsError for blobs of a layer that is not in ``net``, or that match two of its layers.

    Layers of the same name are distinguished by their include and exclude rules.
    """
    layers: list[Layer] = [*net.layer, *net.layers]
    missing = sorted(set(blobs) - {layer.name for layer in layers})
    if missing:
        raise WeightsError(
            f"{where}: weights for layer {excerpt(missing[0])}, which is not in the net; rename or remove them"
        )
    seen: set[tuple[str, bytes]] = set()
    for layer in layers:
        if not blobs.get(layer.name):
            continue
        rules = caffe_pb2.LayerParameter(include=layer.include, exclude=layer.exclude)
        key = layer.name, rules.SerializeToString(deterministic=True)
        if key in seen:
            what = f"are named {excerpt(layer.name)}" if layer.name else "have no name"
            raise WeightsError(
                f"{where}: two layers {what}; weights are stored by layer name, so give each layer a "
                "unique name"
            )
        seen.add(key)


def _write_layers(
    file: IO[bytes],
    layers: Iterable[tuple[int, int, Layer]],
    blobs: Mapping[str, Sequence[np.ndarray]],
    legacy: bool,
    where: str,
    half: Collection[str],
    diffs: Mapping[str, Sequence[np.ndarray]] | None,
) -> None:
    for number, blob_number, layer in layers:
        copy = deepcopy(layer)
        strip_fork_fields(copy)
        arrays = blobs.get(layer.name, ())
        if layer.name in blobs:
            copy.ClearField("blobs")
        head, tail = split_after(copy.SerializeToString(deterministic=True), blob_number)
        pieces = [
            blob_chunks(
                np.asarray(array), legacy, f"{where}: layer {excerpt(layer.name)}, blob {index}",
                half=layer.name in half, diff=diffs[layer.name][index] if diffs else None,
            )
            for index, array in enumerate(arrays)
        ]  # fmt: skip
        size = len(head) + len(tail)
        size += sum(len(wire.encode_header(blob_number, length)) + length for length, _ in pieces)
        file.write(wire.encode_header(number, size) + head)
        for length, chunks in pieces:
            write_blob_field(file, blob_number, length, chunks)
        file.write(tail)


def write_blob_field(file: IO[bytes], number: int, length: int, chunks: Iterator[bytes | memoryview]) -> None:
    """Write one BlobProto field from the length and chunks of `blob_chunks`."""
    file.write(wire.encode_header(number, length))
    for chunk in chunks:
        file.write(chunk)


def split_after(data: bytes, number: int) -> tuple[bytes, bytes]:
    """Split a serialised message after its fields with numbers up to ``number``."""
    for item in wire.fields(data, 0, len(data), "message"):
        if item.number > number:
            return data[: item.tag], data[item.tag :]
    return data, b""


def missing_field(message: Any) -> str:
    """Return the path of the first required field that a message lacks."""
    return str(message.FindInitializationErrors()[0])


def strip_fork_fields(message: Message) -> None:
    """Clear every field with one of this package's private numbers, at any depth, in place."""
    for descriptor, value in message.ListFields():
        if descriptor.number >= _FIRST_FORK_NUMBER:
            message.ClearField(descriptor.name)
        elif descriptor.message_type is not None:
            for inner in (value,) if isinstance(value, Message) else value:
                strip_fork_fields(inner)
