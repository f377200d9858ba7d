"""Reads weights files (`.caffemodel`): layers and their arrays, memory-mapped and without a copy.

Forks of Caffe use the same field numbers with different meanings, so only name, type and blobs of a layer are
read. The structure comes from the prototxt; without one, `CaffeModel.structure` reads it with the field numbers
of BVLC Caffe.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message

from ..errors import FormatError, excerpt
from ..files import map_file
from ..schema import caffe_pb2
from . import wire
from .blob import Blob, LayerBlobs, scan_blob
from .caffemodel_writer import missing_field, strip_fork_fields, write_caffemodel
from .expected_kind import expect
from .hdf5_model import hdf5_layers
from .kinds import Kind
from .layer_types import C3D_V1_NUMBERS, modern_type_of_v0, modern_type_of_v1

__all__ = ["Blob", "CaffeModel", "LayerBlobs", "open_caffemodel", "write_caffemodel"]

_MAX_LAYERS = 100_000
_MAX_BLOBS = 1_000_000
_MAX_STRUCTURE = 8 << 20

_NET_LAYER, _NET_LAYERS, _NET_NAME = 100, 2, 1


@dataclass(frozen=True)
class _Generation:
    """Field numbers of name, type and blobs in one generation of layer messages."""

    name: int
    type: int
    blobs: int
    nested: int | None = None  # a V1 layer has the V0 layer in a field


_V2 = _Generation(name=1, type=2, blobs=7)
_V1 = _Generation(name=4, type=5, blobs=6, nested=1)
_V0 = _Generation(name=1, type=2, blobs=50)


@dataclass(frozen=True)
class CaffeModel:
    """An open weights file: arrays are read from disk on first access."""

    path: Path
    name: str
    layers: tuple[LayerBlobs, ...]
    buffer: memoryview | None = field(repr=False, compare=False)

    def structure(self) -> caffe_pb2.NetParameter:
        """Return the net in the file, without blobs and not upgraded, read with BVLC Caffe's field numbers.

        Raises FormatError if that fails (a fork's file), and for HDF5, which has arrays only.
        """
        if self.buffer is None:
            raise FormatError(f"{self.path.name}: HDF5 weights have no structure; give the prototxt too")
        where = self.path.name
        if any(blob.c3d for layer in self.layers for blob in layer.blobs):
            raise FormatError(
                f"{where}: was written by C3D 1.0, whose numbers of layer types BVLC Caffe uses for others; "
                "give the prototxt too"
            )
        pieces, size = [], 0
        for piece in _structure_pieces(self.buffer, where):
            size += len(piece)
            if size > _MAX_STRUCTURE:
                raise FormatError(f"{where}: a structure of over 8 MiB; give the prototxt too")
            pieces.append(piece)
        try:
            net = caffe_pb2.NetParameter.FromString(b"".join(pieces))
        except (DecodeError, ValueError) as error:
            raise FormatError(
                f"{where}: its structure is not BVLC Caffe's (a fork's file?); give the prototxt too"
            ) from error
        strip_fork_fields(net)  # in a file these numbers are some fork's, not this package's
        _check_strings(net, where)
        if not net.IsInitialized():
            lacking = missing_field(net)
            raise FormatError(f"{where}: its structure lacks {lacking}; give the prototxt too")
        return net


def open_caffemodel(path: str | os.PathLike[str]) -> CaffeModel:
    """Open a weights file of any generation, or Caffe's HDF5 form (`.caffemodel.h5`).

    Only headers are read, whatever the size. Raises FormatError, with the layer and blob, if a length, shape
    or count is wrong, and for files that are not weights.
    """
    path = Path(path)
    # The readers have more specific errors for damaged files and for HDF5 without weights.
    kind = expect(path, Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5, Kind.HDF5, Kind.UNKNOWN)
    buffer = map_file(path)
    if kind in (Kind.CAFFEMODEL_H5, Kind.HDF5):
        return CaffeModel(path, "", tuple(hdf5_layers(path, buffer)), None)
    name, layers = _scan_net(buffer, path.name)
    return CaffeModel(path, name, layers, buffer)


def _scan_net(buffer: memoryview, where: str) -> tuple[str, tuple[LayerBlobs, ...]]:
    name = ""
    layers: list[LayerBlobs] = []
    blobs = 0
    for item in wire.fields(buffer, 0, len(buffer), where):
        if item.wire != wire.BYTES:
            continue
        if item.number == _NET_NAME:
            name = wire.text(buffer, item)
        elif item.number in (_NET_LAYER, _NET_LAYERS):
            generation = _V2 if item.number == _NET_LAYER else _V1
            layers.append(_scan_layer(buffer, item, generation, where))
            blobs += len(layers[-1].blobs)
            if len(layers) > _MAX_LAYERS or blobs > _MAX_BLOBS:
                raise FormatError(f"{where}: over {_MAX_LAYERS:,} layers or {_MAX_BLOBS:,} blobs; not a net")
    if not layers:
        raise FormatError(f"{where}: has no layers, so it is not a caffemodel; give the weights file")
    return name, tuple(layers)


def _scan_layer(buffer: memoryview, layer: wire.Field, generation: _Generation, where: str) -> LayerBlobs:
    # Blobs may precede the name in the file; errors need the name, so blobs are scanned last.
    name, kind, number = "", "", 0
    blobs: list[wire.Field] = []
    nested: LayerBlobs | None = None
    for item in wire.fields(buffer, layer.start, layer.stop, where):
        if item.wire == wire.BYTES:
            if item.number == generation.name:
                name = wire.text(buffer, item)
            elif item.number == generation.type:
                kind = wire.text(buffer, item)
                kind = modern_type_of_v0(kind) if generation is _V0 else kind
            elif item.number == generation.blobs:
                blobs.append(item)
                if len(blobs) > _MAX_BLOBS:
                    raise FormatError(f"{where}: layer {excerpt(name)}: over {_MAX_BLOBS:,} blobs; not a net")
            elif item.number == generation.nested:
                nested = _scan_layer(buffer, item, _V0, where)
        elif generation is _V1 and item.number == generation.type and item.wire == wire.VARINT:
            number = wire.signed(item.value, 32)
            kind = modern_type_of_v1(number)
    if nested is not None:
        name, kind = name or nested.name, kind or nested.type
    found = tuple(
        scan_blob(buffer, blob.start, blob.stop, f"{where}: layer {excerpt(name)}, blob {index}")
        for index, blob in enumerate(blobs)
    )
    if any(blob.c3d for blob in found):
        kind = C3D_V1_NUMBERS.get(number, kind)
    return LayerBlobs(name, kind, _reordered(kind, found) + (nested.blobs if nested else ()))


def _reordered(kind: str, blobs: tuple[Blob, ...]) -> tuple[Blob, ...]:
    """Return the blobs of a BatchNorm of NVIDIA's Caffe 0.15 (DIGITS) in the order and shapes that it has since 0.16.

    It wrote scale, bias, mean, variance as 1 x C x 1 x 1, and a reserved blob; NVIDIA's Caffe reorders them on load.
    """
    if kind != "BatchNorm" or len(blobs) != 5:
        return blobs
    shape = blobs[0].shape
    if len(shape) != 4 or shape != (1, shape[1], 1, 1) or any(blob.shape != shape for blob in blobs[:4]):
        return blobs
    scale, bias, mean, variance = (replace(blob, shape=(shape[1],), legacy=False) for blob in blobs[:4])
    return mean, variance, blobs[4].first(), scale, bias


def _structure_pieces(buffer: memoryview, where: str) -> Iterator[bytes]:
    for item in wire.fields(buffer, 0, len(buffer), where):
        if item.wire == wire.BYTES and item.number in (_NET_LAYER, _NET_LAYERS):
            layer = _without_blobs(buffer, item, _V2 if item.number == _NET_LAYER else _V1, where)
            yield wire.encode_header(item.number, len(layer)) + layer
        elif item.stop - item.tag > _MAX_STRUCTURE:
            raise FormatError(f"{where}: a structure of over 8 MiB; give the prototxt too")
        else:
            yield bytes(buffer[item.tag : item.stop])


def _without_blobs(buffer: memoryview, layer: wire.Field, generation: _Generation, where: str) -> bytes:
    out = bytearray()
    for item in wire.fields(buffer, layer.start, layer.stop, where):
        if item.wire == wire.BYTES and item.number == generation.blobs:
            continue
        if item.wire == wire.BYTES and item.number == generation.nested:
            inner = _without_blobs(buffer, item, _V0, where)
            out += wire.encode_header(item.number, len(inner)) + inner
        else:
            out += buffer[item.tag : item.stop]
        if len(out) > _MAX_STRUCTURE:
            raise FormatError(f"{where}: a structure of over 8 MiB; give the prototxt too")
    return bytes(out)


def _check_strings(message: Message, where: str) -> None:
    """Raise FormatError for strings that are not UTF-8, which protobuf returns as bytes."""
    for descriptor, value in message.ListFields():
        values: Any = (value,) if isinstance(value, (Message, str, bytes)) else value
        if descriptor.message_type is not None:
            for inner in values:
                _check_strings(inner, where)
        elif descriptor.type == descriptor.TYPE_STRING and any(isinstance(v, bytes) for v in values):
            raise FormatError(f"{where}: {descriptor.name} is not UTF-8 text; give the prototxt too")
