"""Snapshots that Caffe can resume, and resuming from Caffe's: a weights file and a solver state."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..caffe.caffemodel import open_caffemodel, write_caffemodel
from ..caffe.hdf5_model import write_hdf5_model
from ..caffe.kinds import Kind, expect
from ..caffe.solverstate import SolverState, read_solverstate, write_solverstate
from ..errors import DivergedError, FormatError, IlgnetError, SolverError
from ..files import check_output
from ..runtime.net import CaffeNet
from ..runtime.weights import take_weights
from . import snapshot_hdf5
from .trained_net import net_message

HDF5_ENDING = ".h5"


@dataclass(frozen=True)
class Snapshots:
    """Where snapshots go: ``prefix_iter_N.caffemodel`` and ``.solverstate``, or both with ``.h5``.

    ``prefix`` is written into the solver states as it stands, and looked up from ``root``.  ``keep`` is
    how many snapshots stay (0: all): `prune` removes older ones of the same prefix.  ``unsound`` are the
    iterations whose snapshots hold a net that has diverged; they never count as newer than a sound one.
    ``made`` are those of this run, and of the run that it resumed: no others are removed.
    """

    prefix: str
    root: Path
    hdf5: bool = False
    keep: int = 0
    unsound: set[int] = field(default_factory=set)
    made: set[int] = field(default_factory=set)

    def name(self, iteration: int, kind: str) -> str:
        """Return the name of a file of the snapshot at ``iteration``; ``kind`` is its ending."""
        return f"{self.prefix}_iter_{iteration}.{kind}{HDF5_ENDING if self.hdf5 else ''}"

    def check(self) -> None:
        """Raise SolverError unless files can be written there: better now than hours later."""
        if "\0" in self.prefix:
            raise SolverError(f"snapshot_prefix {self.prefix!r}: no file can have a zero byte in its name")
        folder = Path(self.root, self.prefix).parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise SolverError(
                f"snapshot_prefix {self.prefix!r}: its folder is missing or read-only; make {folder}"
            )

    def check_inputs(
        self, inputs: Iterable[str | os.PathLike[str]], iterations: Callable[[int], bool]
    ) -> None:
        """Raise IlgnetError where a snapshot of the run would replace one of the files it starts from.

        ``iterations`` tells whether there will be a snapshot at an iteration.
        """
        pattern = re.compile(re.escape(Path(self.prefix).name) + r"_iter_(\d+)\..*")
        folder = Path(self.root, self.prefix).parent
        for path in folder.iterdir() if folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match and iterations(int(match[1])):
                check_output(path, inputs, "snapshot")

    def resume(self, iteration: int) -> None:
        """Count the snapshots up to that of ``iteration`` as made by the run that goes on."""
        self.made.update(number for number in self.iterations() if number <= iteration)

    def check_names(self, net: CaffeNet) -> list[str]:
        """Raise SolverError for layers whose names the format cannot hold; return what is worth a note."""
        if not self.hdf5:
            return []
        counts = {name: len(blobs) for name, blobs in net.params.items()}
        snapshot_hdf5.check_names([layer.name for layer in net_message(net).layer], counts)
        nested = [name for name in counts if "/" in name]
        if not nested:
            return []
        return [
            f"snapshot_format HDF5: layer {nested[0]} has a slash in its name; such snapshots resume here, but "
            "Caffe neither writes nor reads them"
        ]

    def save(
        self, net: CaffeNet, iteration: int, history: Sequence[Tensor], current_step: int
    ) -> tuple[str, str]:
        """Write a snapshot and return the names of its two files.

        The weights go first, so that a solver state on disk always has its weights beside it.
        """
        model, state = self.name(iteration, "caffemodel"), self.name(iteration, "solverstate")
        self.made.add(iteration)
        arrays = [_array(each) for each in history]
        save_weights(net, self.root / model)
        if self.hdf5:
            snapshot_hdf5.write_state(self.root / state, iteration, model, arrays, current_step)
        else:
            write_solverstate(self.root / state, iteration, model, arrays, current_step)
        if not (all_finite(net.parameters()) and all_finite(history)):
            self.unsound.add(iteration)
        else:
            self.unsound.discard(iteration)
        return model, state

    def prune(self, iteration: int) -> None:
        """Remove what is older than the snapshot at ``iteration`` and beyond the newest ``keep`` of its kind.

        Sound and unsound snapshots are counted apart, so that no diverged one takes the place of a sound one.
        """
        if not self.keep:
            return
        for unsound in (False, True):
            made = [number for number in self.iterations() if number in self.made]
            kind = [number for number in made if (number in self.unsound) is unsound]
            for older in kind[: -self.keep]:
                if older < iteration:
                    for ending in ("solverstate", "caffemodel"):
                        (self.root / self.name(older, ending)).unlink(missing_ok=True)

    def iterations(self) -> list[int]:
        """Return the iterations that have a whole snapshot on disk, rising."""
        ending = re.escape(f".solverstate{HDF5_ENDING if self.hdf5 else ''}")
        pattern = re.compile(re.escape(Path(self.prefix).name) + r"_iter_(\d+)" + ending)
        folder = Path(self.root, self.prefix).parent
        matches = [pattern.fullmatch(path.name) for path in folder.glob("*")] if folder.is_dir() else []
        numbers = sorted(int(match[1]) for match in matches if match)
        return [number for number in numbers if (self.root / self.name(number, "caffemodel")).is_file()]

    def latest(self) -> Path | None:
        """Return the solver state of the newest whole snapshot that is not known to be unsound, or None."""
        numbers = [number for number in self.iterations() if number not in self.unsound]
        return Path(self.root, self.name(numbers[-1], "solverstate")) if numbers else None


def save_weights(net: CaffeNet, path: Path) -> None:
    """Write a net's weights, as a caffemodel or, where the name ends in ``.h5``, as HDF5."""
    blobs = {name: [_array(blob) for blob in own] for name, own in net.params.items()}
    message = net_message(net)
    if path.suffix == HDF5_ENDING:
        write_hdf5_model(path, message, blobs, owners=net.plan.owners)
    else:
        write_caffemodel(path, message, blobs)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()


def read_state(path: Path) -> SolverState:
    """Read a solver state in either form."""
    if not path.is_file():
        raise SolverError(f"{path}: no such snapshot; give a .solverstate file")
    kind = expect(path, Kind.SOLVERSTATE, Kind.SOLVERSTATE_H5, Kind.HDF5, Kind.UNKNOWN, what="a solver state")
    return (
        snapshot_hdf5.read_state(path) if kind in (Kind.SOLVERSTATE_H5, Kind.HDF5) else read_solverstate(path)
    )


@torch.no_grad()
def restore(
    path: Path, root: Path, net: CaffeNet, history: Sequence[Tensor], *, allow_nonfinite: bool = False
) -> SolverState:
    """Set a net and the solver's arrays to a snapshot, ours or Caffe's, and return its state.

    The weights are those the state names, looked up from ``root`` and then beside the state.  Raises
    SolverError where state and net do not belong together and, unless ``allow_nonfinite``, where the
    snapshot holds NaN or infinite values; then nothing has changed.
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
        net.plan.blobs,
        open_caffemodel(_weights_of(state, path, root)).layers,
        source=state.learned_net,
        allow_missing=True,
        owners=net.plan.owners,
    )
    if not allow_nonfinite:
        _check_finite(path, weights, state)
    for name, arrays in weights.items():
        for own, array in zip(net.params[name], arrays, strict=True):
            own.copy_(torch.from_numpy(array))
    for own, blob in zip(history, state.history, strict=True):
        own.copy_(torch.from_numpy(blob.array()).view(own.shape))
    return state


def _check_finite(path: Path, weights: Mapping[str, Sequence[np.ndarray]], state: SolverState) -> None:
    places = [(f"layer {name}", array) for name, arrays in weights.items() for array in arrays]
    places += [(f"array {index}", blob.array()) for index, blob in enumerate(state.history)]
    for place, array in places:
        if not np.isfinite(array).all():
            raise DivergedError(
                f"{path}: the run had diverged, {place} is not finite; resume from an earlier snapshot, "
                "or go on with allow_nonfinite=True",
                option="allow_nonfinite",
            )


def _weights_of(state: SolverState, path: Path, root: Path) -> Path:
    if not state.learned_net:
        raise FormatError(f"{path}: names no weights file; give a snapshot of a whole run")
    for place in (root / state.learned_net, path.parent / Path(state.learned_net).name):
        if place.is_file():
            return place
    raise IlgnetError(
        f"{path}: its weights {state.learned_net} are missing; put them beside the solver state"
    )
