"""Comparing two backends: same inputs, every common blob, and the first mismatch."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..caffe.expected_kind import expect
from ..caffe.graph import Graph
from ..caffe.kinds import Kind
from ..errors import IlgnetError
from ..layers.support.base import Shape
from ..reading.arrays import load_npz
from ..runtime.difference import differ
from ..runtime.plan import plan_net
from ..runtime.python_names import argument_name
from ..runtime.seeded_inputs import SEED, draw_inputs, draw_plain
from .backend import Backend, ReferenceToolError, TextChoices
from .openers import open_backend

TOLERANCE = 1e-4
BATCH = 2
MOST_DRAWN = 1 << 28  # values of an input, 1 GiB


@dataclass(frozen=True)
class BlobRow:
    """One blob of both backends; ``scale`` is its largest absolute value in the first.

    ``not_compared`` says which values could not be compared; a blob without a finite value never agrees.
    """

    blob: str
    shape: tuple[int, ...]
    other_shape: tuple[int, ...]
    largest: float
    mean: float
    scale: float
    agrees: bool
    not_compared: str = ""

    @property
    def differs(self) -> bool:
        """Whether it was compared and does not agree."""
        return not self.agrees and self.largest > 0


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two backends; where one failed there are no rows, and ``failed`` gives the reason."""

    first: str
    second: str
    inputs: str
    tolerance: float
    rows: tuple[BlobRow, ...]
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()
    failed: str | None = None

    @property
    def first_mismatch(self) -> BlobRow | None:
        """The first blob, in the order of computation, that differs by more than the tolerance."""
        return next((row for row in self.rows if row.differs), None)

    @property
    def agrees(self) -> bool:
        """Whether every blob was compared and agrees; False where a backend failed."""
        return self.failed is None and bool(self.rows) and all(row.agrees for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        mismatch = self.first_mismatch
        blob = mismatch.blob if mismatch else None
        # "parting" is the key's earlier name, which scripts may read.
        return {**asdict(self), "agrees": self.agrees, "first_mismatch": blob, "parting": blob}


def compare_files(
    first: str,
    second: str,
    *,
    prototxt: str | os.PathLike[str] | None = None,
    inputs: str | os.PathLike[str] | None = None,
    seed: int = SEED,
    tolerance: float = TOLERANCE,
    in_place: bool = False,
    allow_missing: Collection[str] = (),
    level: int = 0,
    stages: Iterable[str] = (),
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    ignore_fields: Iterable[str] = (),
    engine: str | None = None,
    device: str = "cpu",
) -> Comparison:
    """Open and run two files of a net (`open_backend`) and compare every blob that both can compute.

    ``inputs`` is an npz file with an array per input; by default they are drawn from ``seed``.  A blob agrees
    if no value differs by more than ``tolerance`` times the blob's largest absolute value (or 1, if that is less).
    ``in_place`` adds the blobs that in-place layers replace, as ``blob@layer``; folding changes those.
    ``allow_missing``, ``level``, ``stages``, ``input_shapes`` and ``ignore_fields`` are as in `load_net`, and refused
    where neither file is Caffe weights.  ``engine`` computes the second, Caffe weights, on ``device``, as in `fast`.
    Raises IlgnetError where a file cannot be used, or the two have no blob in common.
    """
    shown = f"{Path(inputs).name}" if inputs is not None else f"seed {seed}"
    text = Path(prototxt) if prototxt is not None else None
    try:
        choices = TextChoices(text, allow_missing, level, tuple(stages), input_shapes, tuple(ignore_fields))
        if device != "cpu" and engine is None:
            raise IlgnetError(f"device={device!r}: goes with engine=; give one", option="device")
        one = open_backend(first, choices)
        other = open_backend(second, replace(choices, engine=engine, device=device if engine else ""))
        if not (one.reads_text or other.reads_text):
            choices.refuse(f"{first} and {second}: neither is Caffe weights")
        _check_same_inputs(one, other)
        given = _read_inputs(inputs, one) if inputs is not None else _draw(one, other, seed)
        if inputs is None:
            shown += ": " + ", ".join(f"{name} {'x'.join(map(str, v.shape))}" for name, v in given.items())
        replaced = _replaced(one, other)
        common = _common(one, other, frozenset() if in_place else replaced)
        found = [backend.run(given, common) for backend in (one, other)]
    except ReferenceToolError as error:
        return Comparison(first, second, shown, tolerance, (), failed=str(error))
    rows = tuple(_row(blob, found[0][blob], found[1][blob], tolerance) for blob in common)
    only = [
        tuple(blob for blob in backend.blobs if blob not in common and blob not in replaced)
        for backend in (one, other)
    ]
    return Comparison(first, second, shown, tolerance, rows, only[0], only[1])


def _replaced(first: Backend, second: Backend) -> frozenset[str]:
    """Return the blobs that in-place layers replace, as far as the backends' nets are known."""
    graphs = [one.graph for one in (first, second) if one.graph is not None]
    return frozenset().union(*(graph.replaced for graph in graphs))


def _common(first: Backend, second: Backend, hidden: frozenset[str]) -> list[str]:
    common = [blob for blob in first.blobs if blob in set(second.blobs) and blob not in hidden]
    if not common:
        raise IlgnetError(f"{first.spec} and {second.spec}: have no blob of the same name; are they one net?")
    return common


def _check_same_inputs(first: Backend, second: Backend) -> None:
    names = [sorted(argument_name(entry.name) for entry in backend.inputs) for backend in (first, second)]
    if names[0] != names[1]:
        shown = [", ".join(one) or "none" for one in names]
        raise IlgnetError(
            f"{first.spec} takes {shown[0]} and {second.spec} takes {shown[1]}; their inputs must be the same"
        )


def _read_inputs(path: str | os.PathLike[str], backend: Backend) -> dict[str, np.ndarray]:
    expect(path, Kind.NPZ, what="an npz file")
    arrays = load_npz(path)
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise IlgnetError(f"{path}: {name} is {array.dtype}; give arrays of numbers")
    missing = [entry.name for entry in backend.inputs if entry.name not in arrays]
    if missing:
        raise IlgnetError(f"{path}: holds no array {missing[0]!r}; it has {', '.join(arrays) or 'none'}")
    return {
        entry.name: np.ascontiguousarray(arrays[entry.name], np.uint8 if entry.is_bytes else np.float32)
        for entry in backend.inputs
    }


def _draw(first: Backend, second: Backend, seed: int) -> dict[str, np.ndarray]:
    """Draw inputs in the range that their readers accept, with the lengths that either states and `BATCH` samples."""
    others = {argument_name(entry.name): entry for entry in second.inputs}
    same = {entry.name: entry for entry in second.inputs}
    shapes: dict[str, Shape] = {}
    is_bytes: dict[str, bool] = {}
    stated = _stated_shapes(first.graph or second.graph)
    for entry in first.inputs:
        # The original name is used where the other is an argument name derived from it.
        other = same.get(entry.name) or others[argument_name(entry.name)]
        name = entry.name if entry.name != argument_name(entry.name) else other.name
        lengths: list[int] = []
        if len(entry.dims) != len(other.dims):
            raise IlgnetError(
                f"input {name!r}: has {len(entry.dims)} axes in {first.spec} and {len(other.dims)} in {second.spec}; "
                "compare files of one net"
            )
        for axis, pair in enumerate(zip(entry.dims, other.dims, strict=True)):
            length = next((size for size in pair if size is not None), BATCH if axis == 0 else None)
            if length is None and len(stated.get(name, ())) == len(entry.dims):
                length = stated[name][axis]
            if length is None:
                raise IlgnetError(
                    f"input {name!r}: axis {axis} may have any length; give arrays as inputs=",
                    option="inputs",
                )
            lengths.append(length)
        if min(lengths, default=1) < 0 or math.prod(lengths) > MOST_DRAWN:
            raise IlgnetError(
                f"input {name!r}: its shape {tuple(lengths)} holds no values or too many; give arrays as inputs=",
                option="inputs",
            )
        shapes[name], is_bytes[name] = tuple(lengths), entry.is_bytes
    known = _drawn_by_readers(first.graph or second.graph, shapes, seed)
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if is_bytes[name]:
            drawn[name] = torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()
        else:
            drawn[name] = (known[name] if name in known else draw_plain(shape, generator)).numpy()
    return drawn


def _stated_shapes(graph: Graph | None) -> Mapping[str, Shape]:
    """The shapes in the net's text, for axes that both files leave open, such as a recurrent net's streams."""
    if graph is None:
        return {}
    try:
        return plan_net(graph).shapes
    except IlgnetError:  # the text leaves them open too
        return {}


def _drawn_by_readers(
    graph: Graph | None, shapes: Mapping[str, Shape], seed: int
) -> Mapping[str, torch.Tensor]:
    """Draw inputs by the net's readers (labels, sizes and the like); none where the net is not known."""
    if graph is None:
        return {}
    try:
        plan = plan_net(graph, shapes)
    except IlgnetError:  # the other backend was made for other sizes; running it will raise the error
        return {}
    return draw_inputs(plan, graph, [name for name in shapes if name in plan.shapes], seed)


def _row(blob: str, first: np.ndarray, second: np.ndarray, tolerance: float) -> BlobRow:
    difference = differ(first, second)
    agrees = difference.is_compared and difference.largest <= tolerance * max(1.0, difference.scale)
    return BlobRow(
        blob,
        first.shape,
        second.shape,
        difference.largest,
        difference.mean,
        difference.scale,
        agrees,
        difference.left_out,
    )
