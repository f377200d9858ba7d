"""A net of any form as rows, one per layer or operator: what is drawn, listed and shown beside the graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from ..audit import Audit
from ..caffe.text_writer import format_message

OpenShape = tuple[int | None, ...]  # None where the length is open
MOST_FIELDS = 20_000  # characters of a layer's text that are kept


@dataclass(frozen=True)
class Blob:
    """A weight of a layer, or a value that it reads or writes."""

    name: str
    shape: OpenShape | None = None


@dataclass(frozen=True)
class Row:
    """One layer of a Caffe net, operator of an ONNX graph, or module of a torch model.

    ``reads`` and ``writes`` name values; ``fields`` is the layer's text as it is written in the file.  ``problem``, ``need``
    and ``note`` are those of `audit.LayerAudit`.
    """

    name: str
    type: str
    tops: tuple[OpenShape, ...] = ()
    parameters: int = 0
    multiply_adds: int = 0
    problem: str = ""
    note: str = ""
    need: str = ""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    in_place: bool = False
    fields: str = ""
    bottoms: tuple[OpenShape | None, ...] = ()
    blobs: tuple[Blob, ...] = ()


@dataclass(frozen=True)
class Rows:
    """A net's rows in order; ``multiply_adds`` is per image, that of a row of the whole batch."""

    net: str
    form: str
    layers: tuple[Row, ...]
    parameters: int
    multiply_adds: int
    inputs: tuple[Blob, ...] = ()
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def of_audit(audit: Audit, form: str = "Caffe net", notes: Iterable[str] = ()) -> Rows:
    """Return the rows of an audited Caffe net."""
    plan = audit.plan
    nodes = plan.graph.layers if plan is not None else ()
    rows = []
    for layer, node in zip(audit.layers, nodes, strict=True):
        shapes = plan.value_shapes if plan is not None else {}
        specs = plan.blobs.get(node.name, ()) if plan is not None else ()
        rows.append(
            Row(
                layer.name, layer.type, layer.tops, layer.parameters, layer.multiply_adds, layer.problem,
                layer.note, layer.need, layer.reads, layer.writes, layer.in_place,
                shorten(format_message(node.layer)), tuple(shapes.get(value) for value in node.bottoms),
                tuple(Blob(spec.name, spec.shape) for spec in specs),
            )
        )  # fmt: skip
    return Rows(
        audit.net, form, tuple(rows), audit.parameters, audit.multiply_adds,
        tuple(Blob(name, shape) for name, shape in audit.inputs.items()), audit.outputs,
        (*notes, *audit.upgrades, *audit.problems, *audit.needs),
    )  # fmt: skip


def shorten(text: str) -> str:
    """Return a layer's text, cut where it is longer than a page needs."""
    if len(text) <= MOST_FIELDS:
        return text
    return f"{text[:MOST_FIELDS]}\n... ({len(text) - MOST_FIELDS:,} more characters)"


def show_shape(shape: Iterable[int | None]) -> str:
    """Return a shape as it is drawn; an open length is ?."""
    return "x".join("?" if length is None else str(length) for length in shape) or "(scalar)"


def count(shape: OpenShape | None) -> int:
    """Return the number of values of a shape, an open length as 1."""
    return prod(1 if length is None else length for length in shape or ())
