"""Snapshots in Caffe's format: written, restored and pruned; a weights file and a solver state each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..caffe.caffemodel import open_caffemodel, write_caffemodel
from ..caffe.expected_kind import expect
from ..caffe.hdf5_model import write_hdf5_model
from ..caffe.kinds import Kind
from ..caffe.named_files import READ_INSTEAD, NamedFiles
from ..caffe.solverstate import SolverState, read_solverstate, write_solverstate
from ..errors import DivergedError, FormatError, IlgnetError, SolverError
from ..files import check_output, real_path, staged_results, writing
from ..runtime.net import CaffeNet
from ..runtime.weights import take_weights
from ..staging import claimed, note_in_claim, note_of_killed
from . import snapshot_hdf5
from .trained_net import net_message

HDF5_SUFFIX = ".h5"
_NOTE = re.compile(rb"(\d{1,10}\n)+")


@dataclass(frozen=True)
class Snapshots:
    """The snapshot files of a run: ``prefix_iter_N.caffemodel`` and ``.solverstate``, or both with ``.h5``.

    ``prefix`` is written into the solver states unchanged, and is relative to ``root``.  ``keep`` is the
    number of snapshots to keep (0: all): `prune` removes older ones.  ``nonfinite`` are the iterations whose
    snapshots are of a diverged net; they are never preferred to a finite one.  ``written`` are those of this
    run and of the run that it resumed: no others are removed.  ``continued`` are those of a killed run that this one
    continues.
    """

    prefix: str
    root: Path
    hdf5: bool = False
    keep: int = 0
    nonfinite: set[int] = field(default_factory=set)
    written: set[int] = field(default_factory=set)
    continued: set[int] = field(default_factory=set)

    def name(self, iteration: int, kind: str) -> str:
        """Return the name of a file of the snapshot at ``iteration``; ``kind`` is ``caffemodel`` or ``solverstate``."""
        return f"{self.prefix}_iter_{iteration}.{kind}{HDF5_SUFFIX if self.hdf5 else ''}"

    def path(self, iteration: int, kind: str) -> Path:
        """Return the path of that file."""
        return Path(self.root, self.name(iteration, kind))

    def check(self) -> None:
        """Raise SolverError unless files can be written there, before any training."""
        if "\0" in self.prefix:
            raise SolverError(f"snapshot_prefix {self.prefix!r}: a file name cannot have a zero byte")
        folder = self._start.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise SolverError(
                f"snapshot_prefix {self.prefix!r}: its folder is missing or read-only; make {folder}"
            )

    def check_inputs(
        self, inputs: Iterable[str | os.PathLike[str]], iterations: Callable[[int], bool]
    ) -> None:
        """Raise IlgnetError if a snapshot of the run would replace one of its input files.

        ``iterations`` returns whether there will be a snapshot at an iteration.
        """
        pattern = re.compile(re.escape(self._start.name) + r"_(\d+)\..*")
        folder = self._start.parent
        for path in folder.iterdir() if folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match and iterations(int(match[1])):
                check_output(path, inputs, "snapshot")

    @contextmanager
    def claimed(self, rows_from: int = 0) -> Iterator[None]:
        """Claim the prefix for a run.  Raises IlgnetError if a run of another process has it.

        ``rows_from`` is the iteration at which the run reads the first row of its data.  It stands in the claim with
        the iterations of the snapshots, for `rows_from` of a run that is killed.
        """
        with claimed(self._start):
            self._note(rows_from, *sorted(self.continued))
            yield

    def rows_from(self, state: Path, iteration: int) -> int | None:
        """Return where the killed run that wrote a solver state read the first row; None if no such run did."""
        note = note_of_killed(self._start)
        if not _NOTE.fullmatch(note) or real_path(state) != real_path(self.path(iteration, "solverstate")):
            return None
        first, *written = map(int, note.split())
        if iteration not in written or first > iteration:
            return None
        self.continued.update(number for number in written if number <= iteration)
        return first

    def _note(self, *numbers: int) -> None:
        with writing(self._start.parent, SolverError):
            note_in_claim(self._start, "".join(f"{number}\n" for number in numbers).encode())

    @property
    def _start(self) -> Path:
        """The beginning of every file's path; a prefix that ends in a slash is a folder."""
        return Path(self.root, f"{self.prefix}_iter")

    def resume(self, iteration: int) -> None:
        """Count the snapshots up to that of ``iteration`` as written by this run, which resumes there."""
        self.written.update(number for number in self.iterations() if number <= iteration)

    def check_names(self, net: CaffeNet) -> list[str]:
        """Raise SolverError for layer names that the format cannot store; return notes for the user."""
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
        self,
        net: CaffeNet,
        iteration: int,
        history: Sequence[Tensor],
        current_step: int,
        updates: Sequence[Tensor] | None = None,
    ) -> tuple[str, str]:
        """Write a snapshot, both files or none, and return their names.

        ``updates`` are the diffs of the learned parameters, for snapshot_diff.  The weights get their name first, so
        that a solver state on disk always has its weights beside it.
        """
        model, state = self.name(iteration, "caffemodel"), self.name(iteration, "solverstate")
        self.written.add(iteration)
        arrays = [_array(each) for each in history]
        write_state = snapshot_hdf5.write_state if self.hdf5 else write_solverstate
        start = self._start
        with staged_results(start.parent, start.name, SolverError) as stage:
            files = [stage / Path(name).name for name in (model, state)]
            save_weights(net, files[0], updates)
            write_state(files[1], iteration, model, arrays, current_step)
            self._note(iteration)
            for file in files:
                os.replace(file, start.with_name(file.name))
        if not (all_finite(net.parameters()) and all_finite(history)):
            self.nonfinite.add(iteration)
        else:
            self.nonfinite.discard(iteration)
        return model, state

    def prune(self, iteration: int) -> None:
        """Remove snapshots before ``iteration`` that are not among the newest ``keep`` of their kind.

        Finite and nonfinite snapshots are counted separately: a diverged one never displaces a finite one.
        """
        if not self.keep:
            return
        for nonfinite in (False, True):
            written = [number for number in self.iterations() if number in self.written]
            kind = [number for number in written if (number in self.nonfinite) is nonfinite]
            for older in kind[: -self.keep]:
                if older < iteration:
                    for ending in ("solverstate", "caffemodel"):
                        (self.root / self.name(older, ending)).unlink(missing_ok=True)

    def iterations(self) -> list[int]:
        """Return the iterations that have a complete snapshot on disk, in order."""
        ending = re.escape(f".solverstate{HDF5_SUFFIX if self.hdf5 else ''}")
        pattern = re.compile(re.escape(self._start.name) + r"_(\d+)" + ending)
        folder = self._start.parent
        matches = [pattern.fullmatch(path.name) for path in folder.glob("*")] if folder.is_dir() else []
        numbers = sorted(int(match[1]) for match in matches if match)
        return [number for number in numbers if (self.root / self.name(number, "caffemodel")).is_file()]

    def latest(self, *, own: bool = False) -> Path | None:
        """Return the solver state of the newest complete snapshot that is not known to be nonfinite, or None.

        With ``own`` only of those that this run wrote, or the run that it resumed.
        """
        numbers = [number for number in self.iterations() if number not in self.nonfinite]
        if own:
            numbers = [number for number in numbers if number in self.written]
        return Path(self.root, self.name(numbers[-1], "solverstate")) if numbers else None


def save_weights(net: CaffeNet, path: Path, updates: Sequence[Tensor] | None = None) -> None:
    """Write a net's weights, as a caffemodel or, if the name ends in ``.h5``, as HDF5.

    ``updates``, one per learnable parameter, are written as the diffs of the blobs.
    """
    blobs = {name: [_array(blob) for blob in params] for name, params in net.params.items()}
    diffs = None if updates is None else _diffs(net, blobs, updates)
    message = net_message(net)
    if path.suffix == HDF5_SUFFIX:
        write_hdf5_model(path, message, blobs, owners=net.plan.owners, diffs=diffs)
    else:
        write_caffemodel(path, message, blobs, diffs=diffs)


def _diffs(
    net: CaffeNet, blobs: Mapping[str, Sequence[np.ndarray]], updates: Sequence[Tensor]
) -> dict[str, list[np.ndarray]]:
    """The diff of each blob: shared blobs have that of their owner."""
    by_name = {one.name: _array(update) for one, update in zip(net.learnables(), updates, strict=True)}
    diffs: dict[str, list[np.ndarray]] = {}
    for layer, arrays in blobs.items():
        owners = [net.plan.owners.get((layer, index)) for index in range(len(arrays))]
        names = [
            f"{owner.layer}[{owner.index}]" if owner else f"{layer}[{index}]"
            for index, owner in enumerate(owners)
        ]
        diffs[layer] = [by_name[name].reshape(array.shape) for name, array in zip(names, arrays, strict=True)]
    return diffs


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()


def read_state(path: Path) -> SolverState:
    """Read a solver state in either format."""
    if not path.is_file():
        raise SolverError(f"{path}: no such snapshot; give a .solverstate file")
    kind = expect(path, Kind.SOLVERSTATE, Kind.SOLVERSTATE_H5, Kind.HDF5, Kind.UNKNOWN, what="a solver state")
    return (
        snapshot_hdf5.read_state(path) if kind in (Kind.SOLVERSTATE_H5, Kind.HDF5) else read_solverstate(path)
    )


@torch.no_grad()
def restore(
    path: Path, files: NamedFiles, net: CaffeNet, history: Sequence[Tensor], *, allow_nonfinite: bool = False
) -> SolverState:
    """Load a snapshot, ours or Caffe's, into a net and the solver's history, and return its state.

    The weights file is the one that the state names, looked up by ``files`` and then beside the state.  Raises
    SolverError if state and net do not match and, unless ``allow_nonfinite``, if the snapshot has NaN or
    infinite values; nothing is changed then.
    """
    state = read_state(path)
    if len(state.history) != len(history):
        raise SolverError(
            f"{path}: has {len(state.history)} arrays and this solver {len(history)}; "
            "resume with the net and the solver type that made it"
        )
    for index, (blob, own) in enumerate(zip(state.history, history, strict=True)):
        if tuple(blob.shape) != tuple(own.shape) and not (blob.legacy and blob.array().size == own.numel()):
            raise SolverError(
                f"{path}: array {index} has shape {list(blob.shape)}, this net's has {list(own.shape)}"
            )
    # Layers that the weights file lacks keep their values, as in Caffe.
    weights = take_weights(
        net.plan.blobs,
        open_caffemodel(_weights_of(state, path, files)).layers,
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
                "or continue with allow_nonfinite=True",
                option="allow_nonfinite",
            )


def _weights_of(state: SolverState, path: Path, files: NamedFiles) -> Path:
    if not state.learned_net:
        raise FormatError(f"{path}: names no weights file; give a complete snapshot")
    found = files.beside(path).first(state.learned_net, Path.is_file)
    if found.is_file():
        if found != files.root / state.learned_net:
            files.note(f"{state.learned_net} does not exist; {found} {READ_INSTEAD}")
        return found
    raise IlgnetError(
        f"{path}: its weights {state.learned_net} are missing; put them beside the solver state"
    )
