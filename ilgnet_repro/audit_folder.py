"""`audit_folders`: every net in folders of old models, the weights that fit it, and what it lacks to run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Unpack

from .audit import Audit, AuditOptions, audit, audit_files
from .caffe.expected_kind import refusal
from .caffe.kinds import Kind, kind_of
from .caffe.prototxt import read_net
from .errors import IlgnetError
from .layers.support.base import Shape
from .runtime.find import found_inside, match_built_in
from .runtime.load import open_weights
from .runtime.weights import WeightsFile
from .schema import caffe_pb2 as pb

RUNS, NEEDS, BLOCKED = "runs", "needs", "blocked"
WEIGHTS = (".caffemodel", ".caffemodel.h5")
_SHARED = 0.5  # the share of a net's layers with weights that a file must name to be that net's, though it does not fit


@dataclass(frozen=True)
class NetRow:
    """One net: its text, the weights files that fit it, and whether it runs.

    ``status`` is ``runs``; ``needs`` where the caller has to give a shape or weights; or ``blocked``, by an unsupported
    layer, a text or file that cannot be read, or weights without a text.  ``missing`` has a line for each reason.
    """

    prototxt: str  # empty for weights to which no text belongs
    net: str
    weights: tuple[str, ...]
    status: str
    missing: tuple[str, ...] = ()
    layers: int = 0
    parameters: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass
class _Weights:
    path: Path
    model: WeightsFile
    names: set[str]  # of layers with blobs
    is_used: bool = field(default=False)


def audit_folders(
    folders: Iterable[str | Path], *, phase: str | None = None, input_shapes: Mapping[str, Shape] | None = None,
    progress: Callable[[Path], None] = lambda path: None, **options: Unpack[AuditOptions],
) -> list[NetRow]:  # fmt: skip
    """Audit every net in folders and their subfolders; files are recognized by content, hidden ones are left out.

    A weights file goes with every text whose layers it fits: those beside the text, or else those elsewhere.
    ``input_shapes`` apply to the inputs of those names.  Solvers and files of other kinds are passed over.  The rows are in
    the order of the paths.
    """
    rows: list[tuple[Path, NetRow]] = []
    texts: list[tuple[Path, pb.NetParameter]] = []
    files: list[_Weights] = []
    for path in _files(folders):
        progress(path)
        try:
            _sort(path, texts, files, rows)
        except IlgnetError as error:
            rows.append((path, _unreadable(path, error)))
    chosen = _Chosen(phase, dict(input_shapes or {}), options)
    for path, text in texts:
        progress(path)
        rows.append((path, _row(path, text, files, chosen)))
    rows += [(file.path, _without_text(file)) for file in files if not file.is_used]
    return [row for _, row in sorted(rows, key=lambda entry: str(entry[0]))]


def _files(folders: Iterable[str | Path]) -> Iterator[Path]:
    for folder in folders:
        if not os.path.isdir(folder):
            raise IlgnetError(
                f"{folder}: is not a folder; give folders only, or one prototxt and one weights file"
            )
        for place, inside, names in os.walk(folder):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            yield from (
                path for name in sorted(names) if not name.startswith(".")
                if (path := Path(place, name)).is_file()
            )  # fmt: skip


def _sort(
    path: Path, texts: list[tuple[Path, pb.NetParameter]], files: list[_Weights], rows: list[tuple[Path, NetRow]]
) -> None:  # fmt: skip
    """Add a file to those of its kind; what is no net's file is passed over."""
    is_named = path.name.lower().endswith(WEIGHTS)
    kind = kind_of(path)
    if kind is Kind.PROTOTXT:
        text = read_net(path)
        if text.layer or text.layers:
            texts.append((path, text))
    elif kind in (Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5):
        model = open_weights(path)
        files.append(_Weights(path, model, {layer.name for layer in model.layers if layer.blobs}))
    elif kind is Kind.SAFETENSORS:
        try:
            found = audit_files(None, path)
        except IlgnetError:  # another program's: a net of Caffe is not in it
            return
        rows.append((path, _result(str(path), found, (str(path),))))
    elif is_named:
        raise refusal(path, kind)


def _unreadable(path: Path, error: IlgnetError) -> NetRow:
    is_text = not path.name.lower().endswith(WEIGHTS)
    shown = str(path)
    return NetRow(shown if is_text else "", "", () if is_text else (shown,), BLOCKED, (str(error),))


@dataclass(frozen=True)
class _Chosen:
    phase: str | None
    shapes: Mapping[str, Shape]
    options: AuditOptions

    def audit(self, text: pb.NetParameter, model: WeightsFile | None = None) -> Audit:
        """Audit a net with the given shapes of its own inputs."""
        options: dict[str, Any] = {**self.options, "phase": self.phase, "hashed": False, "others": False}
        found = audit(text, model, **options)
        unstated = {
            blob for row in found.layers if row.need for blob in self.shapes if repr(blob) in row.need
        }
        own = {name: shape for name, shape in self.shapes.items() if name in {*found.inputs, *unstated}}
        return audit(text, model, input_shapes=own, **options) if own else found


def _row(path: Path, text: pb.NetParameter, files: list[_Weights], chosen: _Chosen) -> NetRow:
    shown = str(path)
    try:
        plain = chosen.audit(text)
        fitting: list[tuple[_Weights, Audit]] = []
        misfit: tuple[_Weights, Audit] | None = None
        wanted = {layer.name for layer in text.layer}
        wanted |= {layer.name or layer.layer.name for layer in text.layers}
        for file in files:
            shared = len(file.names & wanted)
            if not shared or shared < _SHARED * len(file.names):
                continue
            found = chosen.audit(text, file.model)
            if found.fit is None or found.fit.is_whole:
                file.is_used = True
                fitting.append((file, found))
            elif file.path.parent == path.parent and misfit is None:
                file.is_used = True
                misfit = file, found
    except IlgnetError as error:
        return NetRow(shown, text.name, (), BLOCKED, (str(error),))
    if fitting:
        # Files of other folders count where this one has none that fits.
        fitting = [one for one in fitting if one[0].path.parent == path.parent] or fitting
        # The file also shows which fork's layers some are; the first that runs stands for all.
        found = min((one for _, one in fitting), key=lambda one: len(one.problems))
        return _result(shown, found, tuple(str(file.path) for file, _ in fitting))
    if misfit is not None:
        file, found = misfit
        assert found.fit is not None
        why = (*found.fit.misshapen, *(f"no blobs for {name}" for name in found.fit.missing))
        lacking: tuple[str, ...] = (f"{file.path.name} does not fit: {why[0]}",)
    else:
        lacking = ("no weights fit",) if plain.parameters or plain.needs else ()
    return _result(shown, plain, (), lacking)


def _result(prototxt: str, found: Audit, weights: tuple[str, ...], lacking: tuple[str, ...] = ()) -> NetRow:
    missing = (*found.problems, *found.needs, *lacking)
    status = BLOCKED if found.problems else NEEDS if missing else RUNS
    return NetRow(prototxt, found.net, weights, status, missing, len(found.layers), found.parameters)


def _without_text(file: _Weights) -> NetRow:
    built_in = match_built_in(file.model)
    if built_in:
        return NetRow(f"built in ({built_in[0]})", file.model.name, (str(file.path),), RUNS)
    shown = (str(file.path),)
    try:
        found = audit(found_inside(file.model).net, file.model, hashed=False, others=False)
    except IlgnetError:
        layers = len([layer for layer in file.model.layers if layer.blobs])
        return NetRow("", file.model.name, shown, BLOCKED, ("no prototxt fits",), layers)
    return _result("", found, shown, ("no prototxt fits; the file holds a net (prototxt='inside')",))
