"""`cut`: the part of a net between some blobs, as a smaller Caffe net.

The result is a net that Caffe itself runs, so that every format can store it: an Input layer stands for each blob
where the front is cut off, a Split keeps an output that another layer reads too (in Caffe a blob that is read is no
output), and a Silence layer reads the tops that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import GraphError, IlgnetError, did_you_mean
from ..schema import caffe_pb2 as pb
from .graph import Graph, Node, Value, unused_name
from .graph_build import build_graph
from .graph_sources import Source, reads_the_same, sources

LISTED = 20  # names in a message


@dataclass(frozen=True)
class Cut:
    """A graph that was cut, and the names of the layers and inputs that it lacks."""

    graph: Graph
    dropped: tuple[str, ...]
    remaining_inputs: tuple[str, ...]  # blobs of Input layers that are still needed besides the new ones


def cut(
    graph: Graph,
    outputs: Sequence[str] = (),
    inputs: Iterable[str] = (),
    shapes: Mapping[Value, tuple[int, ...]] | None = None,
) -> Cut:
    """Return the part of ``graph`` that computes ``outputs``, with the blobs ``inputs`` fed instead of computed.

    A blob is named as in `Graph.names`: its own name is its last value, after all layers that write it in place, and
    ``blob@layer`` an earlier one; the name of an existing input is that input.  Without ``outputs`` they are the
    graph's own that depend on ``inputs``.  ``shapes`` are those of the values that become inputs.  The outputs are in
    Caffe's order.  Raises GraphError for an unknown name, an input that no output depends on, an output that is an
    input, and where the part is not a Caffe net.
    """
    fed = {_input_value(graph, name): name for name in inputs}
    wanted = {name: _value(graph, name, "outputs") for name in outputs} or _own_outputs(graph, fed)
    for name, value in wanted.items():
        if value in fed:
            raise GraphError(
                f"blob {name!r} is an input and an output, so that nothing is left between; name a later output",
                option="outputs",
            )
    draft = _Draft(graph, fed, wanted)
    text = draft.text(shapes or {})
    after = _build(graph, text)
    if after is not None:
        unread = [blob for blob in after.outputs if blob not in wanted]
        if unread:
            text.layer.add(name=draft.fresh_layer("unread_tops"), type="Silence", bottom=unread)
            after = _build(graph, text)
    if after is None or not draft.computes_the_same(after):
        raise GraphError(
            f"net {graph.name!r}: its layers share memory or a name across this cut, so that the part would compute other "
            "values; cut it at other blobs",
            option="outputs",
        )
    kept = {node.name for node in draft.nodes}
    return Cut(
        after,
        tuple(node.name for node in graph.layers if node.name not in kept),
        tuple(
            top.blob for node in draft.nodes if node.type == "Input" for top in node.tops
            if top in draft.needed and top not in fed
        ),
    )  # fmt: skip


def _value(graph: Graph, name: str, option: str) -> Value:
    """Return the value of that name.  Raises GraphError, with the closest names, where there is none."""
    known = list(dict.fromkeys(graph.names.values()))
    if name not in known:
        shown = ", ".join(known[:LISTED]) + (
            f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
        )
        raise GraphError(
            f"blob {name!r} is not in net {graph.name!r}{did_you_mean(name, known)}; it has {shown}",
            option=option,
        )
    return graph.value(name)


def _input_value(graph: Graph, name: str) -> Value:
    value = _value(graph, name, "inputs")
    first = graph.input_value(value.blob)
    node = graph.node(first.writer)
    return first if name == first.blob and node is not None and node.type == "Input" else value


def _own_outputs(graph: Graph, fed: Mapping[Value, str]) -> dict[str, Value]:
    """Return the graph's outputs that depend on ``fed`` (all, where nothing is)."""
    own = {name: graph.value(name) for name in graph.outputs}
    if not fed:
        return own
    reached = set(fed)
    for node in graph:
        if not reached.isdisjoint(node.bottoms):
            reached.update(node.tops)
    kept = {name: value for name, value in own.items() if value in reached and value not in fed}
    if not kept:
        raise GraphError(
            f"net {graph.name!r}: no output depends on {' and '.join(map(repr, fed.values()))}; name an earlier blob",
            option="inputs",
        )
    return kept


@dataclass
class _Draft:
    """The layers that a cut keeps, and the names that their blobs get."""

    graph: Graph
    fed: Mapping[Value, str]
    wanted: Mapping[str, Value]
    nodes: list[Node] = field(default_factory=list)  # in order, inserted ones included
    needed: set[Value] = field(default_factory=set)
    _blobs: dict[Value, str] = field(default_factory=dict)
    _splits: dict[Value, str] = field(default_factory=dict)  # value -> the output that a Split makes of it
    _added: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._find_needed()
        for value, name in self.fed.items():
            if value not in self.needed:
                raise GraphError(
                    f"blob {name!r} is not needed: no output depends on it; omit it from the inputs",
                    option="inputs",
                )
        self._replaced = {
            value for value in self.fed if self._makers[value].type != "Input"
        }  # an input stays as it is
        self._name_blobs()

    # ------------------------------------------------------------------ what is kept

    def _find_needed(self) -> None:
        self._makers = {top: node for node in self.graph for top in node.tops}
        needed, kept = self.needed, set()
        open_values = list(self.wanted.values())
        while open_values:
            value = open_values.pop()
            if value in needed:
                continue
            needed.add(value)
            if value not in self.fed or self._makers[value].type == "Input":
                kept.add(self._makers[value].name)
                open_values += self._makers[value].bottoms
        self.nodes = [node for node in self.graph if node.name in kept]
        self._readers: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.bottoms:
                self._readers.setdefault(value, []).append(node)

    # ------------------------------------------------------------------ names

    def _name_blobs(self) -> None:
        """Give each run of values that stay in one blob its name: an output has the name that was asked for."""
        present = [top for node in self.nodes for top in node.tops if top not in self._replaced]
        present += self._replaced
        order = {value: index for index, value in enumerate(self.graph.names)}
        chains: dict[str, list[Value]] = {}
        for value in sorted(present, key=order.__getitem__):
            chains.setdefault(value.blob, []).append(value)
        named = {value: name for name, value in self.wanted.items()}
        taken = {*self.graph.names.values(), *chains}
        for blob, chain in chains.items():
            for run in self._runs(chain, named):
                last = run[-1]
                if last in self._replaced:
                    name = self.fed[last]
                elif last in named and self._is_read(last):
                    name = unused_name(f"{named[last]}_inner", taken)
                    self._splits[last] = named[last]
                    self._refuse_input_name(run, named[last])
                elif last in named:
                    name = named[last]
                else:
                    name = blob if last == chain[-1] else f"{blob}@{last.writer}"
                taken.add(name)
                self._blobs.update(dict.fromkeys(run, name))

    def _is_read(self, value: Value) -> bool:
        """Whether a layer reads the blob at this value, so that Caffe counts it to no output."""
        if any(not node.is_inserted or node.bottoms[1] == value for node in self._readers.get(value, ())):
            return True
        maker = self._makers[value]
        return maker.is_inserted and self._is_read(maker.bottoms[1])

    def _runs(self, chain: Sequence[Value], named: Mapping[Value, str]) -> list[list[Value]]:
        """Split the values of one blob after each output that is read further, and around each new input."""
        runs: list[list[Value]] = [[]]
        for value in chain:
            if runs[-1] and (
                value in self._replaced or runs[-1][-1] in self._replaced or runs[-1][-1] in named
            ):
                runs.append([])
            runs[-1].append(value)
        return runs

    def _refuse_input_name(self, run: Sequence[Value], name: str) -> None:
        if any(not self._makers[value].bottoms for value in run):
            raise GraphError(
                f"blob {name!r} is what the net is fed, which no layer computes; name another output",
                option="outputs",
            )

    def fresh_layer(self, name: str) -> str:
        """Return a new layer's name, and remember that it is new."""
        made = unused_name(name, {*(node.name for node in self.graph), *self._added})
        self._added.add(made)
        return made

    # ------------------------------------------------------------------ the text

    def text(self, shapes: Mapping[Value, tuple[int, ...]]) -> pb.NetParameter:
        """Return the part as a net's text; layers keep their order."""
        text = pb.NetParameter()
        text.CopyFrom(self.graph.text)
        text.ClearField("layer")
        for value in sorted(self._replaced, key=list(self.fed).index):
            name = self._blobs[value]
            layer = text.layer.add(name=self.fresh_layer(f"{name}_input"), type="Input", top=[name])
            layer.input_param.shape.add(dim=shapes.get(value, ()))
        for node in self.nodes:
            if not node.is_inserted:
                self._add_layer(text, node)
            for top in node.tops:
                if top in self._splits:
                    output = self._splits[top]
                    text.layer.add(
                        name=self.fresh_layer(f"{output}_output"),
                        type="Split",
                        bottom=[self._blobs[top]],
                        top=[output],
                    )
        return text

    def _add_layer(self, text: pb.NetParameter, node: Node) -> None:
        layer = text.layer.add()
        layer.CopyFrom(node.layer)
        layer.name = node.name
        for rules in ("include", "exclude"):  # the phase rules have been applied
            layer.ClearField(rules)
        layer.bottom[:] = [self._blobs[value] for value in node.bottoms]
        layer.top[:] = [self._top_name(value) for value in node.tops]
        if node.type == "Input":
            _drop_tops(layer, [index for index, top in enumerate(node.tops) if top not in self.needed])

    def _top_name(self, value: Value) -> str:
        """Return the name of a kept layer's top; the new input has the name where this layer's value is not used."""
        if value not in self._replaced:
            return self._blobs[value]
        return unused_name(value.blob, {*self.graph.names.values(), *self._blobs.values()})

    def computes_the_same(self, after: Graph) -> bool:
        """Return whether the layers and outputs of the part read the same values as in the whole net."""
        inputs = {
            top for node in self.nodes if node.type == "Input" for top in node.tops if top in self.needed
        }
        given: dict[Value, Source] = {
            value: ("given", self._blobs[value]) for value in inputs | self._replaced
        }
        was = sources(self.graph, given=given)
        now = sources(after, self._added, {after.input_value(source[1]): source for source in given.values()})
        return set(after.outputs) == set(self.wanted) and reads_the_same(
            self.graph, after, was, now, self.wanted, self._added
        )


def _drop_tops(layer: pb.LayerParameter, unneeded: Iterable[int]) -> None:
    """Remove tops of an Input layer, each with its shape."""
    has_own_shapes = len(layer.input_param.shape) == len(layer.top) > 1
    for index in reversed(list(unneeded)):
        del layer.top[index]
        if has_own_shapes:
            del layer.input_param.shape[index]


def _build(graph: Graph, text: pb.NetParameter) -> Graph | None:
    try:
        return build_graph(text, graph.phase)
    except IlgnetError:  # a blob's name would be written twice, or memory that is shared in place
        return None
