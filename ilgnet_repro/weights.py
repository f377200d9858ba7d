"""Weights onto a net: each layer's blobs found by name and held against the shapes the net needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from .errors import WeightsError
from .graph.sharing import Owner, show_shape
from .layers.base import BlobSpec, Shape

Owners = Mapping[tuple[str, int], Owner]


class FileBlob(Protocol):
    """A blob in a weights file (formats/caffemodel.py)."""

    @property
    def shape(self) -> Shape: ...
    @property
    def legacy(self) -> bool: ...
    def array(self) -> np.ndarray: ...


class FileLayer(Protocol):
    """A layer in a weights file."""

    @property
    def name(self) -> str: ...
    @property
    def blobs(self) -> Sequence[FileBlob]: ...


@dataclass(frozen=True)
class Fit:
    """How a weights file fits a net: what can be copied, and what stands in the way, by name."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]  # layers of the net without weights in the file
    extra: tuple[str, ...]  # layers of the file that the net lacks; Caffe ignores them, and says so
    misshapen: tuple[str, ...]  # one line each

    @property
    def is_whole(self) -> bool:
        """Whether every layer of the net finds its weights."""
        return not self.missing and not self.misshapen


def blob_counts(layers: Iterable[FileLayer]) -> dict[str, int]:
    """Return how many blobs a file holds for each of its layers."""
    return {layer.name: len(layer.blobs) for layer in layers}


def fit_weights(
    specs: Mapping[str, Sequence[BlobSpec]], layers: Iterable[FileLayer], owners: Owners | None = None
) -> Fit:
    """Compare the blobs a net needs with those a file holds; reads no values.

    With ``owners`` (`NetPlan.owners`) a layer that the file lacks is matched where other layers of the file hold
    every blob it shares with them.
    """
    held = {layer.name: layer for layer in layers if layer.blobs}
    needed = {name: blobs for name, blobs in specs.items() if blobs}
    misshapen = []
    matched = []
    for name, blobs in needed.items():
        if name not in held:
            continue
        complaint = _misfit(name, blobs, held[name].blobs)
        if complaint:
            misshapen.append(complaint)
        else:
            matched.append(name)
    known = {_owner(owners, name, index) for name in matched for index in range(len(needed[name]))}
    for name, blobs in needed.items():
        if name not in held and all(_owner(owners, name, index) in known for index in range(len(blobs))):
            matched.append(name)
    return Fit(
        matched=tuple(name for name in needed if name in matched),
        missing=tuple(name for name in needed if name not in held and name not in matched),
        extra=tuple(name for name in held if name not in needed),
        misshapen=tuple(misshapen),
    )


def take_weights(
    specs: Mapping[str, Sequence[BlobSpec]],
    layers: Sequence[FileLayer],
    *,
    source: str = "weights",
    allow_missing: bool = False,
    owners: Owners | None = None,
) -> dict[str, list[np.ndarray]]:
    """Return the arrays of every matched layer, shaped as the net needs them (views, no copies).

    Blobs that layers share (``owners``) are one array: of several copies in a file Caffe takes the last, as it
    copies each of them into the same memory.

    Raises WeightsError, by layer name, where a layer's blobs have another shape and, unless
    ``allow_missing`` (fine-tuning), where the file lacks a layer.
    """
    fit = fit_weights(specs, layers, owners)
    counts = Counter(layer.name for layer in layers if layer.blobs)
    repeated = [name for name, count in counts.items() if count > 1]
    remedy = "use the prototxt these weights were made with"
    if repeated:
        remedy = (
            f"the file holds {counts[repeated[0]]} layers named {repeated[0] or '(nothing)'}, which are found by "
            "name: give each a name of its own, in the prototxt and in the file"
        )
    if fit.misshapen:
        raise WeightsError(f"{source}: {_some(fit.misshapen, '; ')}; {remedy}")
    if fit.missing and not allow_missing:
        extra = f" (the file has {_some(fit.extra)}, which the net lacks)" if fit.extra else ""
        raise WeightsError(f"{source}: holds no weights for {_some(fit.missing)}{extra}; {remedy}")
    matched = set(fit.matched)
    last: dict[tuple[str, int], FileBlob] = {}
    for layer in layers:  # where one name stands twice, or a shared blob does, Caffe copies the last
        if layer.name not in matched or len(layer.blobs) != len(specs[layer.name]):
            continue
        for index, blob in enumerate(layer.blobs):
            last[_owner(owners, layer.name, index)] = blob
    return {
        name: [
            last[_owner(owners, name, index)].array().reshape(spec.shape)
            for index, spec in enumerate(specs[name])
        ]
        for name in fit.matched
    }


def _owner(owners: Owners | None, name: str, index: int) -> tuple[str, int]:
    """The layer and blob index under which a blob's values are kept: its own unless it is shared."""
    owner = (owners or {}).get((name, index))
    return (owner.layer, owner.index) if owner else (name, index)


def _misfit(name: str, wanted: Sequence[BlobSpec], held: Sequence[FileBlob]) -> str | None:
    if len(wanted) != len(held):
        return f"layer {name} has {len(held)} blobs in the file and {len(wanted)} in the net"
    for index, (spec, blob) in enumerate(zip(wanted, held, strict=True)):
        if not _same_shape(spec, blob):
            return (
                f"layer {name}, blob {index} is {show_shape(blob.shape)} in the file "
                f"and {show_shape(spec.shape)} in the net"
            )
    return None


def _same_shape(spec: BlobSpec, blob: FileBlob) -> bool:
    wanted = spec.shape
    if spec.any_ones:
        return [size for size in wanted if size != 1] == [size for size in blob.shape if size != 1]
    if not blob.legacy:
        return wanted == tuple(blob.shape)
    # Files before 2014 hold four dimensions whatever the blob: Caffe's ShapeEquals pads the net's
    # shape with leading ones.
    return len(wanted) <= 4 and (1,) * (4 - len(wanted)) + wanted == tuple(blob.shape)


def _some(names: Sequence[str], separator: str = ", ", limit: int = 6) -> str:
    shown = separator.join(names[:limit])
    return shown if len(names) <= limit else f"{shown}{separator}and {len(names) - limit} more"


def count_parameters(specs: Mapping[str, Sequence[BlobSpec]]) -> int:
    """Return the number of values in all blobs."""
    return sum(prod(spec.shape) for blobs in specs.values() for spec in blobs)
