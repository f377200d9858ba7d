"""One run for one snapshot prefix: `ilgnet train` never writes over the files of another run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..caffe.graph_build import graph_text
from ..errors import SolverError
from ..files import atomic_file, json_text, parse_json
from .curves import TRAIN
from .observe import Observer, Run
from .snapshot import Snapshots

MARK = "run.json"


class OneRun(Observer):
    """Refuses to start where another run has left its files, and marks the folder as this run's.

    A run is the same if its training net, solver type and snapshot prefix are: rates, iterations and tests may change
    when it is resumed.  Comes before the observers that write files.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resumes: bool) -> None:
        self.folder, self.resumes = Path(folder), resumes

    def on_start(self, trainer: Run) -> None:
        settings = trainer.settings
        own = {
            "net": hashlib.sha256(
                graph_text(settings.train_net.graph, settings.train_net.state).encode()
            ).hexdigest(),
            "solver": settings.type,
            "snapshot_prefix": settings.snapshot_prefix,
        }
        differing = [name for name, value in self._marked().items() if own.get(name) != value]
        if differing:
            raise SolverError(
                f"{self.folder}: has the files of another run, of another {differing[0]}; give another "
                "snapshot_prefix, or another folder as out=",
                option="out",
            )
        if not self.resumes:
            left = next(self._left(trainer), None)
            if left is not None:
                raise SolverError(
                    f"{left}: is of an earlier run; resume that one with resume=latest, or give another snapshot_prefix",
                    option="resume",
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SolverError(
                f"{self.folder}: cannot be created ({error.strerror}); give another folder"
            ) from error
        with atomic_file(self.folder / MARK, "w") as file:
            file.write(json_text(own))

    def _marked(self) -> dict[str, str]:
        """What the folder says of its run; nothing where no run of this version has been there."""
        try:
            values = parse_json((self.folder / MARK).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise SolverError(
                f"{self.folder / MARK}: was not written by `ilgnet train`; give another folder as out=",
                option="out",
            ) from error
        if not isinstance(values, dict) or set(values) != {"net", "solver", "snapshot_prefix"}:
            raise SolverError(
                f"{self.folder / MARK}: was not written by `ilgnet train`; give another folder as out=",
                option="out",
            )
        return values

    def _left(self, trainer: Run) -> Iterator[Path]:
        """Yield the files of a run that a new one would write over."""
        settings = trainer.settings
        snapshots = Snapshots(settings.snapshot_prefix, settings.root, settings.snapshot_hdf5)
        for number in snapshots.iterations():
            yield Path(settings.root, snapshots.name(number, "solverstate"))
        best = Path(settings.root, f"{settings.snapshot_prefix}_best.json")
        if best.is_file() and best.stat().st_size:
            yield best
        table = self.folder / TRAIN
        if table.is_file() and table.read_bytes().count(b"\n") > 1:  # more than its head
            yield table
