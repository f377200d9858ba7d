"""Builds a `Graph` from a modern NetParameter: selects layers by state, and gives in-place tops unique values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import GraphError, LayerError
from ..schema import caffe_pb2 as pb
from .crops import resolve_crops
from .dummy_inputs import given_to_inputs, unwritten_bottoms
from .fed_bottoms import without_feeders
from .fork_fields import check_net_fields, check_rule_fields, drop_fields, without_marks
from .graph import Graph, Node, Value, unused_name
from .implementation_fields import drop_test_fields
from .phase_rules import is_included, net_state, settle_rules
from .prototxt import format_message
from .shared_memory import (
    Blob,
    Memory,
    gives_gradient_memory,
    guarded_top,
    in_place_tops,
    shares_memory,
    takes_gradient_memory,
    writes,
)


def build_graph(
    net: pb.NetParameter,
    phase: str = "TEST",
    *,
    level: int = 0,
    stages: Iterable[str] = (),
    crop: str | None = None,
) -> Graph:
    """Build the graph of ``net`` (modern form, see upgrade.py) in a phase, level and stages.

    Raises GraphError for a bottom that no layer writes, a cycle, a top that two layers write, or an unknown field
    outside the layers; the rules are those of Caffe's `Net::Init`.  ``crop`` is the rule for Crop
    layers without an offset (crops.py).
    """
    stages = tuple(stages)
    check_net_fields(net)
    for layer in net.layer:
        check_rule_fields(layer)
    net = resolve_crops(net, phase, level=level, stages=stages, crop=crop)
    # Caffe's `Net` takes phase and level from its caller, and adds the caller's stages to those of the text.
    state = net_state(phase, level, (*net.state.stage, *stages))
    layers = [layer for layer in net.layer if is_included(layer, state)]
    if not layers:
        raise _empty(net, phase, level, stages)
    for layer in layers:
        if not layer.type:
            raise GraphError(f'{layer.name or "(unnamed)"}: has no type; write type: "..."')
    layers = without_feeders(layers)
    walk = _Walk(layers, phase, [layer for layer in net.layer if not is_included(layer, state)])
    for index in range(len(layers)):
        walk.add_layer(index)
    walk.finish()
    nodes = tuple(draft.node(phase) for draft in walk.drafts)
    # Caffe keeps unread blobs in a std::set, so its outputs are in byte order of their names.
    outputs = tuple(sorted(walk.unread, key=lambda blob: blob.encode()))
    return Graph(net.name, phase, nodes, outputs, _value_names(nodes), net)


def _empty(net: pb.NetParameter, phase: str, level: int, stages: Sequence[str]) -> GraphError:
    if not net.layer:
        return GraphError(f"net {net.name!r} has no layers; check that the text is whole")
    what = f"net {net.name!r} has no layer in phase {phase}"
    other = {"TEST": "TRAIN", "TRAIN": "TEST"}[phase]
    count = sum(
        is_included(layer, net_state(other, level, (*net.state.stage, *stages))) for layer in net.layer
    )
    if not count:
        return GraphError(f"{what}; check include rules, phase, level and stages")
    return GraphError(f"{what}; it has {count} in {other}: choose phase={other!r}", option="phase")


@dataclass
class _Draft:
    """A node under construction: its tops, and what the layers after it decide, are set later."""

    name: str
    layer: pb.LayerParameter
    bottoms: list[Value]
    tops: list[Value] = field(default_factory=list)
    is_inserted: bool = False
    loses_gradient: bool = False
    feeds_mask: bool = False

    def node(self, phase: str) -> Node:
        return Node(
            self.name, self.layer.type, tuple(self.bottoms), tuple(self.tops),
            phase, self.layer, self.is_inserted, self.loses_gradient, self.feeds_mask,
        )  # fmt: skip


class _Walk:
    """Adds the layers in order, as Caffe's `Net::Init`, and tracks the current value of each blob."""

    def __init__(
        self, layers: list[pb.LayerParameter], phase: str, excluded: list[pb.LayerParameter]
    ) -> None:
        self._layers, self._phase, self._excluded = layers, phase, excluded
        self._names = _unique_names(layers)
        self._params = Counter(param.name for layer in layers for param in layer.param if param.name)
        self._blobs: dict[str, Blob] = {}
        self._readers: dict[Value, list[_Draft]] = {}
        self.drafts: list[_Draft] = []
        self.unread: dict[str, None] = {}  # blobs that no layer has read yet

    def add_layer(self, index: int) -> None:
        layer = self._layers[index]
        for blob in layer.bottom:
            if blob not in self._blobs:
                raise _missing_bottom(self._layers, index, blob, self._excluded)
        draft = _Draft(self._names[index], layer, [self._refreshed(blob) for blob in layer.bottom])
        self.drafts.append(draft)
        for blob, value in zip(layer.bottom, draft.bottoms, strict=True):
            self._readers.setdefault(value, []).append(draft)
            self.unread.pop(blob, None)
        in_place = in_place_tops(layer)
        self._check_tops(draft, in_place)
        shared = shares_memory(layer)
        for position, blob in enumerate(layer.top):
            self.unread[blob] = None
            if position in in_place:
                memory = self._blobs[blob].memory
                if writes(layer, self._phase):
                    self._check_write(draft, blob)
                    memory.written += 1
                    memory.last = Value(blob, draft.name)
            elif shared:
                memory = self._blobs[layer.bottom[0]].memory
            else:
                shared_name = any(self._params[param.name] > 1 for param in layer.param)
                memory = Memory(guarded_top(layer, position, self._phase, shared_name))
            draft.tops.append(self._write(blob, draft.name, memory))

    def finish(self) -> None:
        """Set every blob to the last value of its memory, and mark the layers whose gradient Caffe loses."""
        for blob in list(self._blobs):
            self._refreshed(blob)
        for draft in self.drafts:
            if takes_gradient_memory(draft.layer) and not draft.is_inserted:
                self._cut_gradient(draft.bottoms[0])
        self._mark_masks()

    def _mark_masks(self) -> None:
        before: set[Value] = set()
        for draft in reversed(self.drafts):
            draft.feeds_mask = not before.isdisjoint(draft.tops)
            if draft.feeds_mask or (draft.layer.type == "Pooling" and len(draft.tops) == 2):
                before.update(draft.bottoms)

    # ------------------------------------------------------------------ blobs and their memory

    def _write(self, blob: str, writer: str, memory: Memory) -> Value:
        value = Value(blob, writer)
        self._blobs[blob] = Blob(memory, value, memory.written)
        return value

    def _refreshed(self, blob: str) -> Value:
        """Return the current value of a blob; add a node if its memory was written under another name."""
        known = self._blobs[blob]
        if known.written == known.memory.written or known.memory.last is None:
            return known.value
        last, memory = known.memory.last, known.memory
        name = unused_name(f"{blob}@{last.writer}", self._names)
        self._names.append(name)
        layer = pb.LayerParameter(name=name, type="Reshape", bottom=[last.blob, blob], top=[blob])
        self.drafts.append(_Draft(name, layer, [last, known.value], is_inserted=True))
        self.drafts[-1].tops.append(self._write(blob, name, memory))
        return self._blobs[blob].value

    def _check_tops(self, draft: _Draft, in_place: list[int]) -> None:
        layer = draft.layer
        if len(set(layer.top)) < len(layer.top):
            raise LayerError(
                draft.name, layer.type, f"top {_repeated(layer.top)!r} is written twice by one layer"
            )
        for position, blob in enumerate(layer.top):
            if blob not in self._blobs or position in in_place:
                continue
            if blob in layer.bottom:
                raise LayerError(
                    draft.name, layer.type,
                    f"top {position} and bottom {list(layer.bottom).index(blob)} are both {blob!r}; Caffe writes in "
                    "place only where both have the same position, so give the top another name",
                )  # fmt: skip
            raise GraphError(
                f"{draft.name} ({layer.type}): top {blob!r} is already written by another layer; "
                "give it another name, or name it as bottom too to write in place"
            )

    def _check_write(self, draft: _Draft, blob: str) -> None:
        """Refuse to write a blob in place where Caffe refuses it, or where its result would be undefined."""
        layer, memory = draft.layer, self._blobs[blob].memory
        where = f"top {blob!r} is written in place"
        if memory.guard:
            raise LayerError(
                draft.name, layer.type, f"{where}, but it is {memory.guard}; give the top another name"
            )
        same = [other for other in layer.bottom if self._blobs[other].memory is memory]
        if len(same) > 1:
            raise LayerError(
                draft.name, layer.type,
                f"{where}, but bottoms {', '.join(map(repr, same))} share memory; give the top another name",
            )  # fmt: skip
        # Caffe inserts a Split before two readers, so that the top's name differs from the bottom's. That does not
        # change the numbers unless other blobs share the memory.
        others = [reader.name for reader in self._readers[self._blobs[blob].value] if reader is not draft]
        if not others:
            return
        sharers = [name for name, known in self._blobs.items() if known.memory is memory and name != blob]
        if sharers:
            raise LayerError(
                draft.name, layer.type,
                f"{where}, but {others[0]} reads it too and {sharers[0]!r} shares its memory; Caffe refuses this "
                "(produced by multiple sources), so give the top another name",
            )  # fmt: skip

    def _cut_gradient(self, value: Value) -> None:
        """Mark the layer whose gradient Caffe loses because a reader of ``value`` replaces its gradient memory.

        The top of a Reshape (Concat of one bottom, Slice to one top) shares its bottom's gradient memory, so such
        a layer does nothing in the backward pass. A Flatten replaces the gradient memory of its bottom by that of
        its own top: the gradient never reaches the Reshape's bottom.
        """
        makers = {top: draft for draft in self.drafts for top in draft.tops}
        draft = makers[value]
        while len(self._readers.get(value, ())) == 1:  # otherwise a Split is between, which copies
            if not draft.is_inserted and value.blob in [
                draft.layer.top[i] for i in in_place_tops(draft.layer)
            ]:
                value = draft.bottoms[list(draft.layer.top).index(value.blob)]
                draft = makers[value]
                continue
            draft.loses_gradient = draft.loses_gradient or gives_gradient_memory(draft.layer)
            return


def _unique_names(layers: list[pb.LayerParameter]) -> list[str]:
    """Return the layers' names, made unique: the second layer of a name gets ``#2``, or the next unused number."""
    own = {layer.name for layer in layers}
    names: dict[str, None] = {}
    for layer in layers:
        name, count = layer.name, 1
        while name in names or (count > 1 and name in own):
            count += 1
            name = f"{layer.name}#{count}"
        names[name] = None
    return list(names)


def _value_names(nodes: Iterable[Node]) -> dict[Value, str]:
    """Return the name of every value (`Graph.names`)."""
    nodes = list(nodes)
    plain = {top.blob: top for node in nodes for top in node.tops}
    plain |= {top.blob: top for node in nodes if not node.bottoms for top in node.tops}
    taken = set(plain)
    names = {}
    for top in (top for node in nodes for top in node.tops):
        names[top] = top.blob if plain[top.blob] == top else unused_name(f"{top.blob}@{top.writer}", taken)
        taken.add(names[top])
    return names


def _repeated(names: Iterable[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            break
        seen.add(name)
    return name


def _missing_bottom(
    layers: list[pb.LayerParameter], index: int, blob: str, excluded: list[pb.LayerParameter]
) -> GraphError:
    layer = layers[index]
    where = f"{layer.name} ({layer.type}): bottom {blob!r}"
    writers = [other for other in layers[index:] if blob in other.top]
    if writers and writers[0] is layer:
        return GraphError(
            f"{where} is written only by this layer itself; an in-place layer needs a writer before it"
        )
    if writers:
        return GraphError(
            f"{where} is first written later, by {writers[0].name} ({writers[0].type}); "
            "put that layer before this one, or break the cycle"
        )
    for other in excluded:
        stages = [stage for rule in other.include for stage in rule.stage]
        if blob in other.top and stages:
            return GraphError(
                f"{where} is written by no layer of this phase, level and stages; {other.name} ({other.type}) writes it in "
                f"stage {stages[0]!r}: give stages=[{','.join(map(repr, stages))}]",
                option="stages",
            )
    others = [repr(other) for other in unwritten_bottoms(layers) if other != blob]
    also = f" (nor {'are' if others[1:] else 'is'} {', '.join(others[:5])})" if others else ""
    axes = "N, C, H, W" if blob == layer.bottom[0] else "N, ..."  # others are labels and the like
    return GraphError(
        f"{where} is written by no layer of this phase{also}; check the name and the include rules, or, if its data "
        f"layer was cut off, give its shape (input_shapes={{{blob!r}: ({axes})}})",
        option="input_shapes",
    )


@dataclass(frozen=True)
class Choices:
    """The caller's options for building a graph from a text.

    ``ignore_fields`` are dotted paths (``convolution_param.foo``) of unknown fields to ignore; the path of an unknown
    message includes all its fields. A DummyData top, or a bottom that no layer writes, with a shape in ``input_shapes``
    becomes an input. ``crop`` is the rule for Crop layers without an offset: "bvlc" (0) or "geometry" (computed from
    the layers, as in forks).
    """

    phase: str = "TEST"
    level: int = 0
    stages: tuple[str, ...] = ()
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    ignore_fields: tuple[str, ...] = ()
    crop: str | None = None


def choose_graph(text: pb.NetParameter, choices: Choices, notes: list[str] | None = None) -> Graph:
    """Return the graph of an upgraded text; `Graph.text` is that text with the options applied.

    Changes are listed in ``notes``. Raises GraphError and LayerError, as `build_graph`.
    """
    phase, level, stages = choices.phase, choices.level, choices.stages
    text = drop_test_fields(drop_fields(text, choices.ignore_fields, notes), phase, notes)
    if level or stages:
        text = settle_rules(text, level, stages)
    text = resolve_crops(text, phase, level=level, stages=stages, crop=choices.crop, notes=notes)
    text = given_to_inputs(text, choices.input_shapes or {}, phase, level=level, stages=stages, notes=notes)
    return build_graph(text, phase, level=level, stages=stages)


def graph_text(graph: Graph, state: pb.NetState) -> str:
    """Return a net as Caffe prints it when it builds one: its state and the layers of its phase."""
    layers = [node.layer for node in graph.layers]
    return format_message(without_marks(pb.NetParameter(name=graph.name, state=state, layer=layers))).rstrip()
