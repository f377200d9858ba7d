"""`readNetFromCaffe` and `readNet`, from files or from memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .. import opencv as cv2
from ..caffe.kinds import Kind, kind_of
from ..caffe.prototxt import parse_net
from ..errors import FormatError, IlgnetError
from ..runtime.load import load_net
from ..schema import caffe_pb2
from .images import one_line
from .net import Net

_CAFFE = (Kind.PROTOTXT, Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5)


def readNetFromCaffe(*given: Any, **options: Any) -> Net:
    """Read a net: ``readNetFromCaffe(prototxt, caffeModel)``, each a path or, both alike, bytes or arrays of them.

    All text and weights that `ilgnet_repro.load_net` takes are taken.  Without weights a net can be inspected, and run
    if no layer needs any.  ``crop``, "bvlc" (OpenCV's rule) or "geometry", is for Crop layers that state no offset where
    forks differ.  Raises IlgnetError for a file that cannot be read.
    """
    crop = options.pop("crop", None)
    by_path = "prototxt" in options or "caffeModel" in options
    names = ("prototxt", "caffeModel") if by_path else ("bufferProto", "bufferModel")
    stated = [*given, *(options.pop(name) for name in names[len(given) :] if name in options)]
    if options or not 1 <= len(stated) <= 2:
        raise IlgnetError(
            f"readNetFromCaffe: takes prototxt and caffeModel, or bufferProto and bufferModel, not {len(stated)} arguments"
            + "".join(f", {name}" for name in options)
        )
    text, weights = (*stated, None)[:2]
    net = _text(text) if _is_buffer(text) else os.fspath(text)
    if weights is None or len(weights if _is_buffer(weights) else os.fspath(weights)) == 0:
        return Net(load_net(net, seed=0, crop=crop), has_weights=False)
    if not _is_buffer(weights):
        return Net(load_net(net, os.fspath(weights), crop=crop))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "buffer.caffemodel")  # its arrays stay mapped when the name is gone
        path.write_bytes(_bytes(weights))
        try:
            return Net(load_net(net, path, crop=crop))
        except IlgnetError as error:
            error.args = (str(error).replace(f"{folder}{os.sep}", ""),)  # a name that the caller has not seen
            raise


def readNet(*given: Any, **options: Any) -> Any:
    """Read a net of any format: ``readNet(model, config)`` in any order, or ``readNet("caffe", model, config)`` from memory.

    Caffe's files are read here, and other formats by the `cv2.dnn.readNet` that is installed.
    """
    framework = str(options.get("framework", ""))
    if given and isinstance(given[0], str) and len(given) > 1 and _is_buffer(given[1]):
        framework, *buffers = given
        if framework.lower() == "caffe":
            return readNetFromCaffe(*reversed(buffers))
    stated = (*given[:2], options.get("model"), options.get("config"))
    paths = [os.fsdecode(one) for one in stated if isinstance(one, str | os.PathLike) and os.fspath(one)]
    kinds = {path: _kind(path) for path in paths}
    if framework.lower() == "caffe" or any(kind in _CAFFE for kind in kinds.values()):
        texts = [path for path in paths if kinds[path] in (Kind.PROTOTXT, Kind.TEXT)]
        weights = [path for path in paths if path not in texts]
        if len(texts) != 1:
            raise IlgnetError(f"readNet: {', '.join(paths)}: give one prototxt and one caffemodel")
        return readNetFromCaffe(*texts, *weights)
    try:
        return cv2.dnn.readNet(*given, **options)
    except (cv2.error, TypeError) as error:
        raise IlgnetError(f"readNet: {one_line(error)}") from error


def _kind(path: str) -> Kind | None:
    try:
        return kind_of(path)
    except FormatError:
        return None


def _is_buffer(value: Any) -> bool:
    return isinstance(value, bytes | bytearray | memoryview | np.ndarray)


def _bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray) and value.dtype not in (np.uint8, np.int8):
        raise FormatError(f"buffer of {value.dtype}; give bytes, or an array of uint8")
    return value.tobytes() if isinstance(value, np.ndarray) else bytes(value)


def _text(value: Any) -> caffe_pb2.NetParameter:
    return parse_net(_bytes(value).decode("utf-8", errors="surrogateescape"), "<buffer>")
