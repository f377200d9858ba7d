"""Matching a weights file to a net: blobs are found by layer name and compared with the shapes the net needs.

Missing blobs are handled one by one, as in Caffe: a shared blob is present if any of its layers has it; one
whose stated filler is not random (constant, bilinear) is filled and reported; anything else is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Generator

from ..caffe.param_sharing import Owner, show_shape
from ..errors import WeightsError, did_you_mean
from ..layers.support.base import BlobSpec, Shape
from ..layers.support.fillers import draws, fill, machine_memory

DRAW_SEED = 0  # with which commands draw layers that the weights file lacks, so that every run is the same
Key = tuple[str, int]  # a layer and the index of its blob
Owners = Mapping[Key, Owner]
Specs = Mapping[str, Sequence[BlobSpec]]


class FileBlob(Protocol):
    """A blob in a weights file (caffe/caffemodel.py)."""

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


@runtime_checkable
class NumberedLayer(FileLayer, Protocol):
    """A layer of a file that numbers its blobs and may lack some: HDF5 stores a shared blob with its owner only."""

    @property
    def numbers(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Fit:
    """How a weights file fits a net: which layers match, and which do not, by name."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]  # layers of the net without weights in the file
    extra: tuple[str, ...]  # layers of the file that the net lacks; Caffe ignores them with a log message
    misshapen: tuple[str, ...]  # one line each
    # Layers without weights in the file whose stated fillers are not random, with those fillers; Caffe fills them.
    filled: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether every layer of the net gets its weights, from the file or from fillers that are not random."""
        return not self.missing and not self.misshapen

    @property
    def notes(self) -> tuple[str, ...]:
        """The layers of the net that were not loaded from the file, one line each."""
        filled = [
            f"{name}: not in the weights file; filled as its text says ({how})"
            for name, how in self.filled.items()
        ]
        return (
            *filled,
            *(f"{name}: not in the weights file; drawn by its fillers, as allowed" for name in self.missing),
        )


def blob_counts(layers: Iterable[FileLayer]) -> dict[str, int]:
    """Return the number of blobs of each layer in a file, including those stored only with their owner."""
    return {layer.name: max(_numbers(layer), default=-1) + 1 for layer in layers}


def fit_weights(specs: Specs, layers: Iterable[FileLayer], owners: Owners | None = None) -> Fit:
    """Compare the blobs a net needs with those in a file; reads no values.

    With ``owners`` (`NetPlan.owners`) a blob that a layer lacks is found where another layer of the file holds it.
    """
    layers = list(layers)
    held = {layer.name: layer for layer in layers if layer.blobs}
    needed = {name: blobs for name, blobs in specs.items() if blobs}
    misfits = {
        name: _misfit(name, blobs, held[name], owners) for name, blobs in needed.items() if name in held
    }
    misshapen = [misfit for misfit in misfits.values() if misfit]
    known = {
        _owner(owners, name, index)
        for name, misfit in misfits.items() if not misfit for index in _numbers(held[name])
    }  # fmt: skip
    present = {layer.name for layer in layers}
    lacking = {
        name: [key for key in (_owner(owners, name, index) for index in range(len(blobs))) if key not in known]
        for name, blobs in needed.items() if not misfits.get(name)
    }  # fmt: skip
    # Caffe fills a layer that the file does not name; one that it names must have its blobs.
    filled = {
        name: how for name, keys in lacking.items()
        if keys and present.isdisjoint(key[0] for key in keys) and (how := _filling(specs, keys))
    }  # fmt: skip
    return Fit(
        matched=tuple(name for name, keys in lacking.items() if not keys),
        missing=tuple(name for name, keys in lacking.items() if keys and name not in filled),
        extra=tuple(name for name in held if name not in needed),
        misshapen=tuple(misshapen),
        filled=filled,
    )


def _filling(specs: Specs, keys: Sequence[Key]) -> str:
    """Return the fillers of blobs if they are stated and not random; otherwise an empty text.

    A deploy prototxt often states no fillers, which in Caffe means zeros.  Filling weights with such zeros would
    hide a renamed layer, so only biases are filled with them.
    """
    fillers = []
    for position, (name, index) in enumerate(keys):
        spec = specs[name][index]
        if draws(spec) or not (spec.has_filler or (position and spec.learned)):
            return ""
        fillers.append(spec.filler_text)
    return ", ".join(dict.fromkeys(fillers))


def take_weights(
    specs: Specs,
    layers: Sequence[FileLayer],
    *,
    source: str = "weights",
    allow_missing: bool | Collection[str] = (),
    owners: Owners | None = None,
    seed: int | None = None,
    fit: Fit | None = None,
) -> dict[str, list[np.ndarray]]:
    """Return the arrays of every layer in the shapes the net needs; those of the file are views, not copies.

    Blobs that layers share (``owners``) are one array: of several copies in a file Caffe takes the last, as it
    copies each of them into the same memory.  Missing blobs are filled where the filler is not random (`Fit.filled`),
    and drawn from ``seed`` for the layers that ``allow_missing`` names.  With True (fine-tuning) the layers that the
    file lacks are left out.  ``fit`` is what `fit_weights` returned, where the caller has it.

    Raises WeightsError, by layer name, where a layer's blobs have another shape and where the file lacks a layer that
    is not allowed to be missing.
    """
    fit = fit or fit_weights(specs, layers, owners)
    by_name = () if isinstance(allow_missing, bool) else check_allowed(specs, allow_missing)
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
    missing = [name for name in fit.missing if name not in by_name]
    if missing and allow_missing is not True:
        extra = f" (the file has {_some(fit.extra)}, which the net lacks)" if fit.extra else ""
        if any(spec.has_filler for name in missing for spec in specs[name]):
            remedy += f", or have them drawn with allow_missing={missing[:3]!r}"
        raise WeightsError(
            f"{source}: holds no weights for {_some(missing)}{extra}; {remedy}", option="allow_missing"
        )
    taken = {layer.name for layer in layers if layer.blobs} & set(specs)
    half = [name for name in (*fit.missing, *fit.filled) if name in taken]
    if half and allow_missing is True:
        raise WeightsError(
            f"{source}: layer {half[0]} shares a blob with a layer of which the file holds none; {remedy}"
        )
    last: dict[Key, FileBlob] = {}
    for layer in layers:  # of two layers of one name, or two copies of a shared blob, Caffe uses the last
        if (
            layer.name not in taken
            or not layer.blobs
            or _misfit(layer.name, specs[layer.name], layer, owners)
        ):
            continue
        for index, blob in zip(_numbers(layer), layer.blobs, strict=True):
            last[_owner(owners, layer.name, index)] = blob
    wanted = set(fit.matched) if allow_missing is True else set(fit.matched).union(fit.filled, fit.missing)
    keys = {
        name: [_owner(owners, name, index) for index in range(len(specs[name]))]
        for name in specs
        if name in wanted
    }
    values = {key: last[key].array() for own in keys.values() for key in own if key in last}
    values |= _fill(specs, {key for own in keys.values() for key in own if key not in last}, source, seed)
    return {
        name: [values[key].reshape(spec.shape) for key, spec in zip(own, specs[name], strict=True)]
        for name, own in keys.items()
    }


def check_allowed(specs: Specs, names: Collection[str]) -> Collection[str]:
    """Return the layers that may be missing.  Raises WeightsError for a name that is not a layer with weights."""
    if isinstance(names, (str, bytes)) or not isinstance(names, Collection):
        raise WeightsError(f"allow_missing is {names!r}; give the names of layers, as ['fc8']")
    known = [name for name, blobs in specs.items() if blobs]
    for name in names:
        if name not in known:
            raise WeightsError(
                f"allow_missing: {name!r} is not a layer of the net with weights{did_you_mean(str(name), known)}; "
                f"it has {_some(known) or 'none'}"
            )
    return names


def _fill(specs: Specs, keys: set[Key], source: str, seed: int | None) -> dict[Key, np.ndarray]:
    """Return blobs filled by their fillers, drawn in the net's order."""
    ordered = [
        (name, index) for name, blobs in specs.items() for index in range(len(blobs)) if (name, index) in keys
    ]
    needed, memory = sum(4 * prod(specs[name][index].shape) for name, index in ordered), machine_memory()
    if memory is not None and needed > memory:
        raise WeightsError(
            f"{source}: the blobs that it lacks need {needed / 2**30:,.1f} GiB and the machine has "
            f"{memory / 2**30:,.1f}; check num_output and the input's shape"
        )
    generator = Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    filled = {}
    for name, index in ordered:

        def error(message: str, *, option: str = "", name: str = name) -> WeightsError:
            return WeightsError(f"{source}: layer {name}: {message}", option=option)

        filled[name, index] = fill(specs[name][index], generator, error).numpy()
    return filled


def _numbers(layer: FileLayer) -> Sequence[int]:
    """Return the indices of a layer's blobs in a file: all of them in order, unless it numbers them."""
    return layer.numbers if isinstance(layer, NumberedLayer) else range(len(layer.blobs))


def _owner(owners: Owners | None, name: str, index: int) -> Key:
    """Return the layer and blob index that own a blob's values: its own unless it is shared."""
    owner = (owners or {}).get((name, index))
    return (owner.layer, owner.index) if owner else (name, index)


def _misfit(name: str, wanted: Sequence[BlobSpec], held: FileLayer, owners: Owners | None) -> str | None:
    numbers = _numbers(held)
    most = max(numbers, default=-1) + 1
    if isinstance(held, NumberedLayer) and most <= len(wanted):
        for index in range(len(wanted)):
            if index not in numbers and (name, index) not in (owners or {}):
                return f"layer {name}, blob {index} is not in the file, and no other layer of the net owns it"
    elif most != len(wanted):
        return f"layer {name} has {most} blobs in the file and {len(wanted)} in the net"
    for index, blob in zip(numbers, held.blobs, strict=True):
        if not _same_shape(wanted[index], blob):
            return (
                f"layer {name}, blob {index} is {show_shape(blob.shape)} in the file "
                f"and {show_shape(wanted[index].shape)} in the net"
            )
    return None


def _same_shape(spec: BlobSpec, blob: FileBlob) -> bool:
    wanted = spec.shape
    if spec.any_ones:
        return [size for size in wanted if size != 1] == [size for size in blob.shape if size != 1]
    if not blob.legacy:
        return wanted == tuple(blob.shape)
    # Files before 2014 hold four dimensions whatever the blob (C3D's five): Caffe's ShapeEquals pads the net's
    # shape with leading ones.
    return (1,) * (len(blob.shape) - len(wanted)) + wanted == tuple(blob.shape)


def _some(names: Sequence[str], separator: str = ", ", limit: int = 6) -> str:
    shown = separator.join(names[:limit])
    return shown if len(names) <= limit else f"{shown}{separator}and {len(names) - limit} more"


def count_parameters(specs: Mapping[str, Sequence[BlobSpec]]) -> int:
    """Return the number of values in all blobs."""
    return sum(prod(spec.shape) for blobs in specs.values() for spec in blobs)


class WeightsFile(Protocol):
    """An open weights file (`CaffeModel`, `ArrayFile`)."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def layers(self) -> Sequence[FileLayer]: ...


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """Layers in memory with the interface of a weights file."""

    path: Path
    name: str
    layers: tuple[ArrayLayer, ...]


@dataclass(frozen=True, eq=False)
class ArrayBlob:
    """A blob in memory with the interface of a blob in a weights file."""

    values: np.ndarray
    legacy: bool = False

    @property
    def shape(self) -> Shape:
        """Its lengths."""
        return tuple(self.values.shape)

    def array(self) -> np.ndarray:
        """Its values."""
        return self.values


@dataclass(frozen=True, eq=False)
class ArrayLayer:
    """A layer in memory with the interface of a layer in a weights file."""

    name: str
    type: str
    blobs: tuple[ArrayBlob, ...]
