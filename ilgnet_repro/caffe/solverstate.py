"""Reads and writes solver states (`.solverstate`): iteration, history arrays (momentum) and step of a training run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FormatError
from ..files import atomic_file, map_file
from ..schema import caffe_pb2
from . import wire
from .blob import Blob, blob_chunks, scan_blob
from .caffemodel_writer import write_blob_field
from .expected_kind import expect
from .kinds import Kind

_ITER, _LEARNED_NET, _HISTORY, _CURRENT_STEP = 1, 2, 3, 4
_MAX_HISTORY = 1_000_000


@dataclass(frozen=True)
class SolverState:
    """What Caffe needs to resume: ``history`` has the solver's arrays, one or two per parameter."""

    iter: int
    learned_net: str
    history: tuple[Blob, ...]
    current_step: int


def read_solverstate(path: str | os.PathLike[str]) -> SolverState:
    """Open a solver state; the arrays are read from disk on first access.

    Raises FormatError if a length or shape is wrong, or the file is not a solver state.
    """
    where = Path(path).name
    expect(path, Kind.SOLVERSTATE, Kind.UNKNOWN, what="a solver state")
    buffer = map_file(path)
    iteration, learned_net, current_step = -1, "", 0
    history: list[Blob] = []
    for item in wire.fields(buffer, 0, len(buffer), where):
        if item.wire == wire.VARINT and item.number == _ITER:
            iteration = wire.signed(item.value, 32)
        elif item.wire == wire.VARINT and item.number == _CURRENT_STEP:
            current_step = wire.signed(item.value, 32)
        elif item.wire == wire.BYTES and item.number == _LEARNED_NET:
            learned_net = wire.text(buffer, item)
        elif item.wire == wire.BYTES and item.number == _HISTORY:
            history.append(scan_blob(buffer, item.start, item.stop, f"{where}: history {len(history)}"))
            if len(history) > _MAX_HISTORY:
                raise FormatError(f"{where}: over {_MAX_HISTORY:,} arrays; the file is damaged")
    if iteration < 0 or current_step < 0:
        raise FormatError(f"{where}: has no iteration, so it is not a solverstate; give the snapshot")
    return SolverState(iteration, learned_net, tuple(history), current_step)


def write_solverstate(
    path: str | os.PathLike[str],
    iter: int,
    learned_net: str,
    history: Sequence[np.ndarray],
    current_step: int,
) -> None:
    """Write a solver state byte for byte as Caffe does; the file is complete or absent."""
    head = caffe_pb2.SolverState(iter=iter, learned_net=learned_net).SerializeToString()
    tail = caffe_pb2.SolverState(current_step=current_step).SerializeToString()
    with atomic_file(path) as file:
        file.write(head)
        for index, array in enumerate(history):
            length, chunks = blob_chunks(np.asarray(array), False, f"{Path(path).name}: history {index}")
            write_blob_field(file, _HISTORY, length, chunks)
        file.write(tail)
