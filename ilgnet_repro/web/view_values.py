"""The values of a drawn net: a blob for an image or for seeded inputs, the weights of a layer, and their statistics."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from ..about import About
from ..errors import GraphError, IlgnetError, excerpt, printable
from ..prepare_images import prepare
from ..reading.preprocessing import Preprocessing
from ..runtime.model import Model
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from ..runtime.onnx_net import open_net, open_session
from ..runtime.seeded_inputs import SEED, draw_inputs, draw_plain
from .module_rows import record
from .rows import OpenShape, Row

BINS = 24  # of a histogram
PIECE = 1 << 20  # values of an array at a time
CHANNELS = 12  # shown as images
SIDE = 64  # pixels of such an image at most
OPEN_SIDE = 224  # pixels of a side that a file leaves open
IMAGE_AXES = 4


class Values(Protocol):
    """What computes the values of a net; ``notes`` say how its inputs are chosen."""

    def blob(self, row: Row, name: str, image: np.ndarray | None) -> tuple[np.ndarray, str]:
        """Return a value that a row writes, for an image (uint8, BGR) or seeded inputs, and what it was computed from."""

    def weights(self, row: Row) -> dict[str, np.ndarray]:
        """Return the weights of a row by name."""


@dataclass(frozen=True, eq=False)
class CaffeValues:
    """The blobs of a Caffe net."""

    net: CaffeNet

    def blob(self, row: Row, name: str, image: np.ndarray | None) -> tuple[np.ndarray, str]:
        net = self.net
        if name not in net.shapes:
            raise GraphError(f"net {net.name!r}: has no blob {name!r}")
        needed = net.inputs_for((name,))
        given = draw_inputs(net.plan, net.graph, needed)
        how = f"inputs drawn from seed {SEED}" if needed else "what its own layers generate"
        if image is not None:
            images = {one: net.shapes[one] for one in needed if _takes_image(net.shapes[one])}
            taken, pixels, how = _prepared(net.about, image, images, net.name)
            given[taken] = torch.from_numpy(pixels)
        dtype, device = net.computes_in
        with torch.inference_mode(), as_loaded(net):
            inputs = {key: value.to(device, dtype) for key, value in given.items()}
            found = net.run(inputs, (name,), with_loss=False).blobs[name]
        return found.float().cpu().numpy(), how

    def weights(self, row: Row) -> dict[str, np.ndarray]:
        blobs = self.net.params.get(row.name, [])
        names = [blob.name for blob in row.blobs]
        return {name: blob.detach().float().cpu().numpy() for name, blob in zip(names, blobs, strict=False)}


@dataclass(frozen=True, eq=False)
class ModelValues:
    """The values of a torch model, by the modules and operators that compute them."""

    model: Model

    def blob(self, row: Row, name: str, image: np.ndarray | None) -> tuple[np.ndarray, str]:
        model = self.model
        shape = tuple(length or 1 for length in model.shapes[model.input_name])
        value = draw_plain(shape, torch.Generator().manual_seed(SEED))
        how = f"an input drawn from seed {SEED}"
        if image is not None:
            images = {model.input_name: shape} if _takes_image(shape) else {}
            _, pixels, how = _prepared(model.about, image, images, model.name)
            value = torch.from_numpy(pixels)
        if row.name == model.input_name:
            return value.numpy(), how
        kept = next(
            (
                step.value
                for step in record(model, model.input_name, value, row.name).steps
                if step.name == row.name
            ),
            None,
        )
        if kept is None:
            raise GraphError(f"{row.name} ({row.type}): computes nothing for this input")
        return kept.float().numpy(), how

    def weights(self, row: Row) -> dict[str, np.ndarray]:
        module = dict(self.model.named_modules()).get(row.name.partition("#")[0])
        if module is None or not row.blobs:
            return {}
        held: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return {name: value.detach().float().numpy() for name, value in held.items()}


class OnnxValues:
    """The values of an ONNX file: ONNX Runtime computes them in one session of which every value is an output."""

    def __init__(self, path: Path, model: onnx.ModelProto, shapes: Mapping[str, OpenShape]) -> None:
        """``shapes`` are those of the inputs where they are known better than by the file."""
        self.net = open_net(path)
        self._shapes = {**self.net.shapes, **shapes}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._folder = path.parent
        self._made = {name for node in model.graph.node for name in node.output if name}
        more = onnx.ModelProto()
        present = {entry.name for entry in model.graph.output}
        more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(self._made - present))
        try:
            # Messages that follow each other are merged.
            data = model.SerializeToString() + more.SerializeToString()
        except ValueError as error:
            raise IlgnetError(f"{path}: is over 2 GB, so its values are not shown") from error
        self._session = open_session(data, path.parent)
        self._kinds = {entry.name: entry.type for entry in self._session.get_inputs()}

    def blob(self, row: Row, name: str, image: np.ndarray | None) -> tuple[np.ndarray, str]:
        if name not in self._made and name not in self.net.inputs:
            raise GraphError(
                f"{name}: the file does not compute it: what does nothing was left out when it was written"
            )
        given, how = self._seeded(), f"inputs drawn from seed {SEED}"
        if image is not None:
            about = self.net.about
            images = {
                one: _closed(self._shapes[one]) for one in self.net.inputs
                if about.image_order or _takes_image(_closed(self._shapes[one]))
            }  # fmt: skip
            taken, pixels, how = _prepared(about, image, images, self.net.name)
            given[taken] = pixels.astype(given[taken].dtype)
        if name in given and name not in self._made:
            return np.asarray(given[name], np.float32), how
        try:
            (found,) = self._session.run([name], given)
        except Exception as error:  # its exceptions share no base class but Exception
            raise IlgnetError(
                f"{self.net.name}: ONNX Runtime cannot compute {name!r} ({excerpt(str(error).strip(), 200)})"
            ) from error
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub":
            raise GraphError(f"{name}: is not an array of numbers")
        return found, how

    def _seeded(self) -> dict[str, np.ndarray]:
        generator = torch.Generator().manual_seed(SEED)
        drawn = {}
        for name in self.net.inputs:
            shape = _closed(self._shapes[name])
            kind = self._kinds[name]
            value = draw_plain(shape, generator).numpy()
            if kind == "tensor(uint8)":
                drawn[name] = np.clip(np.abs(value), 0, 255).astype(np.uint8)
            elif kind in _FLOATS:
                drawn[name] = value.astype(_FLOATS[kind])
            else:
                drawn[name] = np.zeros(shape, _INTEGERS.get(kind, np.int64))
        return drawn

    def weights(self, row: Row) -> dict[str, np.ndarray]:
        found = {}
        for blob in row.blobs:
            tensor = self._weights.get(blob.name) or self._weights.get(f"{row.name}.{blob.name}")
            if tensor is None:
                continue
            try:
                found[blob.name] = np.asarray(numpy_helper.to_array(tensor, str(self._folder)), np.float32)
            except Exception as error:  # a damaged tensor can raise anything
                raise IlgnetError(f"{blob.name}: cannot be read ({excerpt(str(error), 200)})") from error
        return found


_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
_INTEGERS = {
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int8)": np.int8, "tensor(bool)": np.bool_,
}  # fmt: skip


def _closed(shape: OpenShape) -> tuple[int, ...]:
    """Return a shape with a batch of 1 and images of 224 x 224 where the file leaves them open."""
    return tuple(
        length or (OPEN_SIDE if axis >= 2 and len(shape) == IMAGE_AXES else 1)
        for axis, length in enumerate(shape)
    )


def _takes_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == IMAGE_AXES and shape[1] in (1, 3)


def _prepared(
    about: About, image: np.ndarray, inputs: Mapping[str, tuple[int, ...]], net: str
) -> tuple[str, np.ndarray, str]:
    """Return the one input that takes an image, the image prepared for it, and how that was done."""
    if len(inputs) != 1:
        count = len(inputs) or "no"
        raise GraphError(f"net {net!r}: {count} inputs of this value take images; look at it without one")
    ((name, shape),) = inputs.items()
    how = "your image, prepared as the net's"
    if about.preprocessing is None and not about.image_order:
        plain = Preprocessing(size=(shape[2], shape[3]), order="GRAY" if shape[1] == 1 else "BGR")
        about = replace(about, preprocessing=plain)
        how = "your image, resized and not prepared otherwise: nothing says how the net's images are prepared"
    return name, prepare(about, [image], net=net), how


# ---------------------------------------------------------------------------------------- statistics


def statistics(values: np.ndarray) -> dict[str, Any]:
    """Return the statistics of an array as plain values; those of no finite value are None.

    In double precision, `PIECE` values at a time: a dense layer may hold 100 million.
    """
    pieces = [values.reshape(-1)[start : start + PIECE] for start in range(0, values.size, PIECE)]
    finite = (
        [piece[np.isfinite(piece)].astype(np.float64) for piece in pieces[:1]] if len(pieces) == 1 else None
    )

    def parts() -> Iterator[np.ndarray]:
        if finite is not None:
            yield from finite
            return
        for piece in pieces:
            yield piece[np.isfinite(piece)].astype(np.float64)

    count = sum(part.size for part in parts())
    low = min((float(part.min()) for part in parts() if part.size), default=None)
    high = max((float(part.max()) for part in parts() if part.size), default=None)
    mean = sum(float(part.sum()) for part in parts()) / count if count else None
    squares = sum(float(np.square(part - mean).sum()) for part in parts()) if mean is not None else 0.0
    found: dict[str, Any] = {
        "shape": list(values.shape), "count": int(values.size), "nan": sum(int(np.isnan(one).sum()) for one in pieces),
        "infinite": sum(int(np.isinf(one).sum()) for one in pieces),
        "zeros": sum(int((one == 0).sum()) for one in pieces) / values.size if values.size else None,
        "min": low, "max": high, "mean": mean, "deviation": sqrt(squares / count) if count else None,
        "histogram": [],
    }  # fmt: skip
    for key in ("mean", "deviation"):  # beyond double precision
        if found[key] is not None and not isfinite(found[key]):
            found[key] = None
    if low is not None and high is not None and isfinite(high - low):
        ends = (low, high) if low < high else (low - 0.5, low + 0.5)
        counts = sum((np.histogram(part, BINS, ends)[0] for part in parts()), np.zeros(BINS, np.int64))
        found["histogram"] = counts.tolist()
    return found


def channel_images(values: np.ndarray) -> list[dict[str, Any]]:
    """Return the first channels of the first image as grey images of at most `SIDE` pixels, from their least value to the
    largest of all of them; none where the array is not 1 x channels x height x width."""
    if values.ndim != IMAGE_AXES or 0 in values.shape or max(values.shape[2:]) < 2:
        return []
    planes = values[0, :CHANNELS].astype(np.float64)
    planes = planes[:, :: -(-planes.shape[1] // SIDE), :: -(-planes.shape[2] // SIDE)]
    finite = np.isfinite(planes)
    low, high = (planes[finite].min(), planes[finite].max()) if finite.any() else (0.0, 0.0)
    scale = 255.0 / (high - low) if high > low else 0.0
    grey = np.where(finite, (np.where(finite, planes, low) - low) * scale, 0.0).round().astype(np.uint8)
    return [
        {
            "height": plane.shape[0],
            "width": plane.shape[1],
            "pixels": base64.b64encode(plane.tobytes()).decode(),
        }
        for plane in grey
    ]


def show_blob(values: Values, row: Row, name: str, image: np.ndarray | None) -> dict[str, Any]:
    """Return the statistics of a value, its first channels, and what it was computed from."""
    found, how = values.blob(row, name, image)
    return {"blob": printable(name), "from": how, **statistics(found), "channels": channel_images(found)}


def show_weights(values: Values, row: Row) -> list[dict[str, Any]]:
    """Return the statistics of a row's weights."""
    return [{"blob": printable(name), **statistics(one)} for name, one in values.weights(row).items()]
