"""Caffe's tools that rewrite files of older generations: nets as text or binary, and solvers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..caffe.caffemodel import open_caffemodel, write_caffemodel
from ..caffe.kinds import Kind, kind_of
from ..caffe.prototxt import format_message, read_net, read_solver
from ..caffe.upgrade import upgrade_net_as_caffe, upgrade_solver
from ..errors import FormatError, excerpt
from ..files import atomic_file
from .log import Log

Upgrade = Callable[[str, str, Log], None]


def upgrade_net_text(source: str, target: str, log: Log) -> None:
    """Rewrite a prototxt in the form of Caffe 1.0."""
    _expect_other_than(source, Kind.CAFFEMODEL, "upgrade_net_proto_binary")
    net, notes = read_net(source), list[str]()
    upgraded = upgrade_net_as_caffe(net, notes)
    _say(source, notes, log)
    _write_text(target, format_message(upgraded))
    log("upgrade_net_proto_text.cpp:49", f"Wrote upgraded NetParameter text proto to {target}")


def upgrade_net_binary(source: str, target: str, log: Log) -> None:
    """Rewrite a caffemodel in the form of Caffe 1.0, its weights unchanged."""
    _expect_other_than(source, Kind.PROTOTXT, "upgrade_net_proto_text")
    model, notes = open_caffemodel(source), list[str]()
    upgraded = upgrade_net_as_caffe(model.structure(), notes)
    _say(source, notes, log)
    blobs = {layer.name: [blob.array() for blob in layer.blobs] for layer in model.layers if layer.blobs}
    kept = {layer.name for layer in upgraded.layer}
    lost = [name for name in blobs if name not in kept]
    if lost:
        raise FormatError(
            f"{Path(source).name}: layer {excerpt(lost[0])} has weights and no place in the upgraded net; "
            "convert the file with its prototxt"
        )
    is_legacy = all(blob.legacy for layer in model.layers for blob in layer.blobs)
    write_caffemodel(target, upgraded, blobs, legacy=is_legacy and bool(blobs))
    log("upgrade_net_proto_binary.cpp:47", f"Wrote upgraded NetParameter binary proto to {target}")


def upgrade_solver_text(source: str, target: str, log: Log) -> None:
    """Rewrite a solver in the form of Caffe 1.0; the nets that it names are not touched."""
    notes: list[str] = []
    upgraded = upgrade_solver(read_solver(source), notes)
    _say(source, notes, log)
    _write_text(target, format_message(upgraded))
    log("upgrade_solver_proto_text.cpp:48", f"Wrote upgraded SolverParameter text proto to {target}")


def _say(source: str, notes: list[str], log: Log) -> None:
    if not notes:
        log("upgrade_proto.cpp:32", f"File already in latest proto format: {source}")
    for note in notes:
        log("upgrade_proto.cpp:28", note)


def _expect_other_than(source: str, kind: Kind, tool: str) -> None:
    """Raise FormatError for the file of another of the tools, and name that tool."""
    if kind_of(source) is kind:
        raise FormatError(f"{Path(source).name}: is {kind.value}; upgrade it by `ilgnet caffe {tool}`")


def _write_text(target: str, text: str) -> None:
    with atomic_file(target, "w") as file:
        file.write(text)
