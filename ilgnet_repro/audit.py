"""`audit`: a net's layers, what is supported, its cost, and how a weights file fits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, TypedDict, Unpack

from .caffe.crops import resolve_crops
from .caffe.dummy_inputs import given_to_inputs, unwritten_to_inputs
from .caffe.fork_fields import drop_fields, net_refusals
from .caffe.graph import Graph, Node, Value
from .caffe.graph_build import build_graph
from .caffe.implementation_fields import drop_test_fields
from .caffe.net_states import State, states_of
from .caffe.upgrade import upgrade_net
from .errors import IlgnetError, LayerError, WeightsError
from .known import identify
from .layers.support.base import Shape
from .layers.support.registry import resolve_kinds
from .runtime.assumed_shapes import errors_of_any_shape
from .runtime.calls import shapes_by_name
from .runtime.find import INSIDE_NOTE, Found, find_net, found_inside
from .runtime.load import one_pixel_notes, open_weights
from .runtime.net_file import read_net_file
from .runtime.open_channels import channels_of_weights
from .runtime.plan import NetPlan, plan_net
from .runtime.weights import ArrayFile, Fit, WeightsFile, blob_counts, fit_weights
from .schema import caffe_pb2 as pb

FLOAT_BYTES = 4
STATE_NOTE = (
    "its state is carried from pass to pass in Caffe and in the commands; in Python with carry_state=True"
)


@dataclass(frozen=True)
class LayerAudit:
    """One layer: ``problem`` is empty where it is supported; ``note`` lists what Caffe ignores too.

    ``need`` says which shapes the caller has to give, because the text does not state them.  ``reads`` and ``writes`` are
    the names of its bottoms and tops: the last value of a blob has the blob's name, an earlier one is ``blob@layer``.
    """

    name: str
    type: str
    tops: tuple[Shape, ...]
    parameters: int
    multiply_adds: int
    problem: str = ""
    note: str = ""
    no_onnx: str = ""
    need: str = ""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    in_place: bool = False


@dataclass(frozen=True)
class StateAudit:
    """What another phase, or another stage, of the same text needs."""

    phase: str
    stages: tuple[str, ...]
    layers: int
    problems: tuple[str, ...]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """The result of `audit`; ``multiply_adds`` and ``blob_bytes`` are per image.

    ``others`` are the other states of the text, where the caller chose none.
    """

    net: str
    phase: str
    layers: tuple[LayerAudit, ...]
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]
    parameters: int
    multiply_adds: int
    blob_bytes: int
    upgrades: tuple[str, ...]
    unknown: tuple[str, ...] = ()  # unsupported fields outside the layers, one line each
    fit: Fit | None = None
    release: str | None = None
    sha256: str | None = None
    stages: tuple[str, ...] = ()
    others: tuple[StateAudit, ...] = ()
    plan: NetPlan | None = dataclasses.field(
        default=None, repr=False, compare=False
    )  # of the layers without errors

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that prevents a conversion, one line each."""
        lines = [*self.unknown, *(layer.problem for layer in self.layers if layer.problem)]
        if self.fit:
            lines += [f"{name}: the weights file has no blobs for it" for name in self.fit.missing]
            lines += list(self.fit.misshapen)
        return tuple(lines)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the caller has to give besides, one line each: shapes that the text does not state."""
        return tuple(layer.need for layer in self.layers if layer.need)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain = asdict(replace(self, plan=None))
        del plain["plan"]
        return {**plain, "problems": self.problems, "needs": self.needs}


class AuditOptions(TypedDict, total=False):
    """The options that `audit_files` passes on to `audit`."""

    level: int
    stages: Iterable[str]
    ignore_fields: Iterable[str]
    crop: str | None
    hashed: bool
    others: bool


def audit(
    net: pb.NetParameter,
    weights: WeightsFile | None = None,
    *,
    phase: str | None = None,
    level: int = 0,
    stages: Iterable[str] = (),
    input_shapes: Mapping[str, Shape] | None = None,
    ignore_fields: Iterable[str] = (),
    crop: str | None = None,
    hashed: bool = True,
    others: bool = True,
) -> Audit:
    """Check every layer of a net, continuing after layers with errors.

    The phase is TEST, or TRAIN where only that one has layers, or only that one feeds the net.  Where the layers of a
    phase need a stage and none is given, it is ``deploy``, or else the first in the text that gives a net; the notes name
    it.  With ``others`` the other phases and stages that the text distinguishes are audited too.  Shapes that depend on the
    source of a data layer, or on a layer that was cut off, are listed as `Audit.needs`; what does not depend on them is
    checked all the same.  The shapes of a layer after an unsupported one are unknown; its fields are still checked.  Without
    ``hashed`` the weights file is not identified.  Raises IlgnetError only where the layers do not form a net.
    """
    notes: list[str] = []
    net = drop_fields(net, ignore_fields, notes)
    net = upgrade_net(net, notes)
    unknown = tuple(net_refusals(net))
    net.ClearField("fork_field")  # a copy of the caller's
    net = resolve_kinds(net, {} if weights is None else blob_counts(weights.layers))
    given = dict(input_shapes or {})
    stages = tuple(stages)
    states = states_of(net, [phase] if phase else ["TEST", "TRAIN"], level, stages)
    chosen = _chosen(states, phase, stages, given, notes)
    if chosen:
        phase, stages = chosen.phase, chosen.stages
    phase = phase or "TEST"
    rest = tuple(
        _other(net, state, given, level=level, crop=crop)
        for state in (states if others else [])
        if state is not chosen and not state.lacks
    )
    faults: list[LayerError] = []
    crop_faults: list[LayerError] = []
    state: dict[str, Any] = {"level": level, "stages": stages}
    net = drop_test_fields(net, phase, notes)
    net = resolve_crops(net, phase, crop=crop, notes=notes, faults=crop_faults, **state)
    net = given_to_inputs(net, given, phase, notes=notes, **state)
    net, cut_off = unwritten_to_inputs(net, phase, **state)
    graph = build_graph(net, phase, **state)
    shapes = shapes_by_name(given, graph)
    if weights is not None:
        shapes |= channels_of_weights(graph, shapes, weights, notes)
    plan = plan_net(graph, shapes, faults=faults)
    needs = _needs(graph, faults, cut_off)
    # What does not depend on the shapes is wrong whatever they are.
    own = errors_of_any_shape(graph, shapes, needs) if needs else {}
    for node in graph:
        for line in one_pixel_notes(plan.layers[node.name], plan) if node.name in plan.layers else ():
            needs[node.name] = f"{node.name} ({node.type}): {line}"
    # The first error of each layer.
    problems = {**own, **{error.layer: str(error) for error in reversed(faults) if error.layer not in needs}}
    # Found before layers of the same name get unique names.
    crops = {error.layer: str(error) for error in reversed(crop_faults)}
    read = _names_read(graph)
    rows = tuple(
        _row(
            plan,
            node,
            read,
            (crops.get(node.layer.name) if node.type == "Crop" else None) or problems.get(node.name, ""),
            needs.get(node.name, ""),
            "give those that are needed" if needs else "a layer before it has an error",
        )
        for node in graph.layers
    )
    inputs = {
        top.blob: plan.value_shapes[top]
        for node in graph
        for top in node.tops
        if not node.bottoms and not plan.blobs.get(node.name)
        if top in plan.value_shapes
    }
    batch = max((shape[0] for shape in inputs.values() if shape), default=1) or 1
    known = _release_of(weights if hashed else None)
    held = {layer.name for layer in weights.layers if layer.blobs} if weights else ()
    is_open = needs and any(node.layer.name in held for node in graph if node.name not in plan.layers)
    return Audit(
        net=graph.name, phase=phase, layers=rows, inputs=inputs, outputs=graph.outputs,
        parameters=sum(row.parameters for row in rows),
        multiply_adds=sum(row.multiply_adds for row in rows) // batch,
        blob_bytes=FLOAT_BYTES * sum(prod(shape) for shape in plan.value_shapes.values()) // batch,
        upgrades=tuple(notes), unknown=unknown,
        fit=fit_weights(plan.blobs, weights.layers, plan.owners) if weights and not is_open else None,
        release=known[0], sha256=known[1], stages=stages, others=rest, plan=plan,
    )  # fmt: skip


def audit_files(
    prototxt: pb.NetParameter | None, weights: str | Path | None, *, phase: str | None = None,
    input_shapes: Mapping[str, Shape] | None = None, **options: Unpack[AuditOptions],
) -> Audit:  # fmt: skip
    """Audit a net with a weights file; without a net, the one that `find_net` returns, or else that in the file.

    ``phase`` is that of `audit` unless the file states one.
    """
    model = open_weights(weights) if weights is not None else None
    notes: tuple[str, ...] = ()
    if prototxt is None:
        if model is None:
            raise IlgnetError("give a prototxt, a weights file, or both")
        if isinstance(model, ArrayFile):
            file = read_net_file(model.path)
            prototxt, phase = file.text, phase or file.phase
            input_shapes = {**file.input_shapes, **(input_shapes or {})}
        else:
            found = _found(model)
            prototxt, notes = found.net, tuple(note for note in found.notes if note == INSIDE_NOTE)
    made = audit(prototxt, model, phase=phase, input_shapes=input_shapes, **options)
    return replace(made, upgrades=(*notes, *made.upgrades))


def _found(model: WeightsFile) -> Found:
    """Return the net of a weights file, or else the one inside it."""
    try:
        return find_net(model)
    except WeightsError as error:
        try:
            return found_inside(model)
        except IlgnetError:
            raise error from None


def _chosen(
    states: list[State], phase: str | None, stages: tuple[str, ...], given: Mapping[str, Shape], notes: list[str]
) -> State | None:  # fmt: skip
    """Return the first phase's first state that reads nothing of another state, or else its first; say why."""
    if not states:
        return None
    fed = _fed_by_another(states, given)
    if fed is not None:
        notes.append(f"no layer of phase {states[0].phase} feeds the net; the layers are those of {fed}")
        return fed
    of_phase = [state for state in states if state.phase == states[0].phase]
    chosen = next((state for state in of_phase if not state.lacks), of_phase[0])
    if chosen.stages != stages:
        named = dict.fromkeys(stage for state in states for stage in state.stages)
        left = [repr(stage) for stage in named if stage not in chosen.stages]
        also = f"; the text also names {', '.join(left)}" if left else ""
        notes.append(f"no stage is given: the layers are those of {chosen}{also}")
    elif chosen.phase == "TRAIN" and phase is None:
        notes.append("no layer is in phase TEST; the layers are those of phase TRAIN")
    return chosen


def _fed_by_another(states: list[State], given: Mapping[str, Shape]) -> State | None:
    """Return the other phase's state that feeds what the first phase reads, where no layer of the first feeds anything."""
    first = states[0].phase
    reads = {blob for state in states if state.phase == first for blob in state.reads} - set(given)
    if not reads or any(state.feeds for state in states if state.phase == first):
        return None
    return next((s for s in states if s.phase != first and not s.lacks and reads & set(s.feeds)), None)


def _other(net: pb.NetParameter, state: State, given: Mapping[str, Shape], **options: Any) -> StateAudit:
    """Audit another state of a net, with the shapes of its own blobs; an error of its own is a problem there."""
    layers = [net.layer[index] for index in state.layers]
    blobs = {blob for layer in layers for blob in (*layer.bottom, *layer.top)}
    own = {name: shape for name, shape in given.items() if name in blobs}
    try:
        found = audit(net, phase=state.phase, stages=state.stages, input_shapes=own, others=False, **options)
        problems, needs = found.problems, found.needs
    except IlgnetError as error:
        problems, needs = (str(error),), ()
    return StateAudit(state.phase, state.stages, len(state.layers), problems, needs)


def _needs(graph: Graph, faults: Iterable[LayerError], cut_off: Iterable[str]) -> dict[str, str]:
    """Return the layers whose shapes the caller has to give, with what is missing and where it was known from."""
    nodes = {node.name: node for node in graph}
    found = {}
    for error in faults:
        node = nodes.get(error.layer)
        if node is None or node.bottoms or error.option != "input_shapes":
            continue
        blobs = ", ".join(map(repr, node.top_names))
        if any(blob in cut_off for blob in node.top_names):
            why = f"no layer of phase {graph.phase} writes it"
        else:
            source = _source(node.layer)
            why = f"it is known only from {source}" if source else "the text does not state it"
        shape = f"input_shapes={{{node.top_names[0]!r}: (N, C, H, W)}}"
        found[node.name] = f"{node.name} ({node.type}): give the shape of {blobs}; {why} ({shape})"
    return found


def _source(layer: pb.LayerParameter) -> str:
    """Return the file or database that a data layer names."""
    for field, value in layer.ListFields():
        source = getattr(value, "source", "") if field.name.endswith("data_param") else ""
        if source:
            return str(source)
    return ""


def _row(
    plan: NetPlan, node: Node, read: Mapping[Value, str], problem: str, need: str, why_unknown: str
) -> LayerAudit:
    layer = plan.layers.get(node.name)
    ends: dict[str, Any] = {
        "reads": tuple(read[value] for value in node.bottoms),
        "writes": tuple(plan.graph.names[value] for value in node.tops),
        "in_place": node.is_in_place,
    }  # fmt: skip
    if layer is None:
        note = "" if problem or need else f"shapes unknown: {why_unknown}"
        return LayerAudit(node.name, node.type, (), 0, 0, problem=problem, note=note, need=need, **ends)
    tops = tuple(plan.value_shapes[top] for top in node.tops)
    parameters = sum(prod(spec.shape) for spec in plan.blobs[node.name])
    notes = (layer.idle_note, layer.note, STATE_NOTE if layer.has_state else "")
    return LayerAudit(
        node.name, node.type, tops, parameters, plan.multiply_adds[node.name], problem=problem,
        note="; ".join(filter(None, notes)), no_onnx=layer.no_onnx, need=need, **ends,
    )  # fmt: skip


def _names_read(graph: Graph) -> dict[Value, str]:
    """Return the name of each value; of what an inserted node passes on, that of the layer's own value."""
    names = dict(graph.names)
    for node in graph:
        if node.is_inserted:
            names[node.tops[0]] = names[node.bottoms[0]]
    return names


def _release_of(weights: WeightsFile | None) -> tuple[str | None, str | None]:
    if weights is None:
        return None, None
    identity = identify(weights.path, sha256=True)
    return (identity.model.name if identity.model else None), identity.sha256
