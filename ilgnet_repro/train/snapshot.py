"""Snapshots that Caffe can resume, and resuming from Caffe's: a weights file and a solver state."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import FormatError, IlgnetError, SolverError
from ..formats.caffemodel import open_caffemodel, write_caffemodel
from ..formats.solverstate import SolverState, read_solverstate, write_solverstate
from ..net import CaffeNet
from ..weights import take_weights
from . import snapshot_hdf5
from .trained_net import net_message

HDF5_ENDING = ".h5"


@dataclass(frozen=True)
class Snapshots:
    """Where snapshots go: ``prefix_iter_N.caffemodel`` and ``.solverstate``, or both with ``.h5``.

    ``prefix`` is written into the solver states as it stands, and looked up from ``root``.  ``keep`` is
    how many snapshots stay (0: all); older ones of the same prefix are removed once a newer is whole.
    """

    prefix: str
    root: Path
    hdf5: bool = False
    keep: int = 0

    def name(self, iteration: int, kind: str) -> str:
        """Return the name of a file of the snapshot at ``iteration``; ``kind`` is its ending."""
        return f"{self.prefix}_iter_{iteration}.{kind}{HDF5_ENDING if self.hdf5 else ''}"

    def check(self) -> None:
        """Raise SolverError unless files can be written there: better now than hours later."""
        folder = Path(self.root, self.prefix).parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise SolverError(
                f"snapshot_prefix {self.prefix!r}: its folder is missing or read-only; make {folder}"
            )

    def save(
        self, net: CaffeNet, iteration: int, history: Sequence[Tensor], current_step: int
    ) -> tuple[str, str]:
        """Write a snapshot and return the names of its two files.

        The weights go first, so that a solver state on disk always has its weights beside it.
        """
        model, state = self.name(iteration, "caffemodel"), self.name(iteration, "solverstate")
        arrays = [_array(each) for each in history]
        save_weights(net, self.root / model)
        if self.hdf5:
            snapshot_hdf5.write_state(self.root / state, iteration, model, arrays, current_step)
        else:
            write_solverstate(self.root / state, iteration, model, arrays, current_step)
        if self.keep:
            for older in self.iterations()[: -self.keep]:
                if older < iteration:
                    for kind in ("solverstate", "caffemodel"):
                        (self.root / self.name(older, kind)).unlink(missing_ok=True)
        return model, state

    def iterations(self) -> list[int]:
        """Return the iterations that have a whole snapshot on disk, rising."""
        ending = re.escape(f".solverstate{HDF5_ENDING if self.hdf5 else ''}")
        pattern = re.compile(re.escape(Path(self.prefix).name) + r"_iter_(\d+)" + ending)
        folder = Path(self.root, self.prefix).parent
        matches = [pattern.fullmatch(path.name) for path in folder.glob("*")] if folder.is_dir() else []
        numbers = sorted(int(match[1]) for match in matches if match)
        return [number for number in numbers if (self.root / self.name(number, "caffemodel")).is_file()]

    def latest(self) -> Path | None:
        """Return the solver state of the newest whole snapshot, or None."""
        numbers = self.iterations()
        return Path(self.root, self.name(numbers[-1], "solverstate")) if numbers else None


def save_weights(net: CaffeNet, path: Path) -> None:
    """Write a net's weights, as a caffemodel or, where the name ends in ``.h5``, as HDF5."""
    blobs = {name: [_array(blob) for blob in own] for name, own in net.params.items()}
    if path.suffix == HDF5_ENDING:
        snapshot_hdf5.write_weights(path, [node.name for node in net.graph], blobs)
    else:
        write_caffemodel(path, net_message(net), blobs)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()


def read_state(path: Path) -> SolverState:
    """Read a solver state in either form."""
    if not path.is_file():
        raise SolverError(f"{path}: no such snapshot; give a .solverstate file")
    return snapshot_hdf5.read_state(path) if path.suffix == HDF5_ENDING else read_solverstate(path)


@torch.no_grad()
def restore(path: Path, root: Path, net: CaffeNet, history: Sequence[Tensor]) -> SolverState:
    """Set a net and the solver's arrays to a snapshot, ours or Caffe's, and return its state.

    The weights are those the state names, looked up from ``root`` and then beside the state.  Raises
    SolverError where state and net do not belong together; then nothing has changed.
    """
    state = read_state(path)
    if len(state.history) != len(history):
        raise SolverError(
            f"{path}: holds {len(state.history)} arrays and this solver {len(history)}; "
            "resume with the net and the solver type that made it"
        )
    for index, (blob, own) in enumerate(zip(state.history, history, strict=True)):
        if tuple(blob.shape) != tuple(own.shape) and not (blob.legacy and blob.array().size == own.numel()):
            raise SolverError(
                f"{path}: array {index} has shape {list(blob.shape)}, this net's has {list(own.shape)}"
            )
    # Layers that the weights lack keep what they have, as in Caffe.
    weights = take_weights(
        net.blob_specs,
        open_caffemodel(_weights_of(state, path, root)).layers,
        source=state.learned_net,
        allow_missing=True,
    )
    for name, arrays in weights.items():
        for own, array in zip(net.params[name], arrays, strict=True):
            own.copy_(torch.from_numpy(array))
    for own, blob in zip(history, state.history, strict=True):
        own.copy_(torch.from_numpy(blob.array()).view(own.shape))
    return state


def _weights_of(state: SolverState, path: Path, root: Path) -> Path:
    if not state.learned_net:
        raise FormatError(f"{path}: names no weights file; give a snapshot of a whole run")
    for place in (root / state.learned_net, path.parent / Path(state.learned_net).name):
        if place.is_file():
            return place
    raise IlgnetError(
        f"{path}: its weights {state.learned_net} are missing; put them beside the solver state"
    )
