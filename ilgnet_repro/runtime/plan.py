"""`NetPlan`: the layers, shapes and shared blobs of a net for inputs of given shapes; allocates no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from ..caffe.fork_fields import filler_of
from ..caffe.graph import Graph, Node, Value
from ..caffe.param_sharing import Owner, find_owners, show_shape
from ..errors import ARITHMETIC, GraphError, LayerError, did_you_mean, unusable
from ..layers.support.base import BlobSpec, Layer, LayerPlan, Shape
from ..layers.support.registry import class_of, make_layer
from ..schema import caffe_pb2 as pb

# Caffe counts a blob's elements in a signed 32-bit integer and refuses more.
LARGEST_BLOB = 2**31 - 1


@dataclass(frozen=True)
class NetPlan:
    """A net's layers, the shape of every blob and the owner of every shared one; layers and values by unique name.

    The layers have no parameters: a net copies them (`Layer.fresh`), so that several nets can use one plan.
    """

    graph: Graph
    inputs: tuple[str, ...]  # what the caller feeds
    layers: Mapping[str, Layer]
    value_shapes: Mapping[Value, Shape]
    blobs: Mapping[str, tuple[BlobSpec, ...]]
    owners: Mapping[tuple[str, int], Owner]  # blobs that are another layer's, shared by name
    multiply_adds: Mapping[str, int]  # of one pass

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shapes by blob name (`Graph.names`)."""
        return {self.graph.names[value]: shape for value, shape in self.value_shapes.items()}

    def at(self, input_shapes: Mapping[str, Shape], counts: int = 1) -> NetPlan:
        """Return the plan of the same layers for inputs of other shapes; inputs not named keep their own.

        ``counts`` multiplies the lengths that depend on values, to see which other lengths follow from them.  Raises
        GraphError for another number of axes, since the layers were set up for theirs, and LayerError where a layer
        cannot take a size.
        """
        given = by_input(self.graph, input_shapes)
        for name, shape in given.items():
            own = self.shapes.get(name)
            if own is not None and len(own) != len(shape):
                raise GraphError(
                    f"input {name!r} of net {self.graph.name!r} is {show_shape(shape)}, of {len(shape)} axes; it was "
                    f"planned for {show_shape(own)}: load the net with input_shapes={{{name!r}: {tuple(shape)}}}"
                )
        own_shapes = {name: self.shapes[name] for name in self.inputs}
        return plan_net(self.graph, {**own_shapes, **given}, self.layers, counts=counts)

    def part(self, nodes: Sequence[Node]) -> NetPlan:
        """Return the plan of some of the nodes, which must include those that they depend on."""
        graph = replace(self.graph, nodes=tuple(nodes), outputs=())
        fed = {top for node in nodes for top in node.top_names}
        return replace(self, graph=graph, inputs=tuple(name for name in self.inputs if name in fed))


def plan_net(
    graph: Graph,
    input_shapes: Mapping[str, Shape] | None = None,
    known: Mapping[str, Layer] | None = None,
    faults: list[LayerError] | None = None,
    *,
    counts: int = 1,
) -> NetPlan:
    """Plan a net: make every layer, or take it from ``known``, and compute all shapes.

    With ``faults``, errors are collected there, as `audit` needs: the layer is left out, and layers that read it are
    checked only as far as possible without shapes.  Raises LayerError, by layer, and GraphError for a name that is
    not an input.
    """
    given = by_input(graph, input_shapes or {})
    layers: dict[str, Layer] = {}
    shapes: dict[Value, Shape] = {}
    blobs: dict[str, tuple[BlobSpec, ...]] = {}
    work: dict[str, int] = {}
    inputs: list[str] = []
    for node in graph:
        try:
            if any(value not in shapes for value in node.bottoms):  # after a layer with an error
                make_layer(node, None)
                continue
            bottoms = [shapes[value] for value in node.bottoms]
            layer = known[node.name] if known else make_layer(node, [len(shape) for shape in bottoms])
            made = _plan_layer(layer, bottoms, given)
            tops = _multiply_counts(layer, made.tops, counts)
            _check_tops(node, tops)
            _check_blobs(node, made.blobs)
        except LayerError as error:
            if faults is None:
                raise
            faults.append(error)
            continue
        except ARITHMETIC as error:
            if node.type == "Python":  # the user's own code
                raise
            sizes = ", ".join(str(list(shapes[value])) for value in node.bottoms if value in shapes)
            unforeseen = unusable(
                node.name, node.type, f"cannot be planned for bottoms {sizes or 'none'}", error
            )
            if faults is None:
                raise unforeseen from error
            faults.append(unforeseen)
            continue
        layers[node.name], blobs[node.name] = layer, tuple(made.blobs)
        work[node.name] = made.multiply_adds
        shapes.update(zip(node.tops, tops, strict=False))
        inputs += node.top_names if layer.is_input else ()
    try:
        owners = find_owners(graph, {name: [spec.shape for spec in specs] for name, specs in blobs.items()})
    except LayerError as error:
        if faults is None:
            raise
        faults.append(error)
        owners = {}
    return NetPlan(graph, tuple(inputs), layers, shapes, blobs, owners, work)


def _plan_layer(layer: Layer, bottoms: Sequence[Shape], given: Mapping[str, Shape]) -> LayerPlan:
    if layer.is_input or layer.may_be_fed:
        return LayerPlan(layer.input_shapes(given))
    made = layer.plan(*bottoms)
    layer.check_param_rows(len(made.blobs))
    return replace(made, blobs=_with_foreign_fillers(made.blobs, layer.node.layer))


def _with_foreign_fillers(blobs: Sequence[BlobSpec], text: pb.LayerParameter) -> list[BlobSpec]:
    """Return the blobs with the fields of their fillers that only a fork knows."""
    marked = list(blobs)
    for field in text.fork_field:
        message, _, name = filler_of(field).partition(".")
        filler = getattr(getattr(text, message), name) if name else None
        for index, spec in enumerate(marked):
            if filler is not None and spec.filler is filler:
                marked[index] = replace(spec, foreign=field.path)
    return marked


def _multiply_counts(layer: Layer, tops: Sequence[Shape], counts: int) -> list[Shape]:
    if counts == 1 or not layer.sized_by_values:
        return [tuple(top) for top in tops]
    axis = layer.counted_axis
    return [(*top[:axis], top[axis] * counts, *top[axis + 1 :]) for top in tops]


def _check_blobs(node: Node, blobs: Sequence[BlobSpec]) -> None:
    """Raise LayerError for a learned blob with a negative length or over Caffe's limit, before memory is taken."""
    for spec in blobs:
        if any(size < 0 for size in spec.shape):
            raise LayerError(node.name, node.type, f"{spec.name} would have shape {list(spec.shape)}")
        if prod(spec.shape) > LARGEST_BLOB:
            raise LayerError(
                node.name, node.type,
                f"{spec.name} would hold {prod(spec.shape):,} values, more than Caffe's limit of {LARGEST_BLOB:,}",
            )  # fmt: skip


def _check_tops(node: Node, tops: Sequence[Shape]) -> None:
    """Raise LayerError for a negative length or a blob over Caffe's limit."""
    for value, shape in zip(node.top_names, tops, strict=False):
        if any(size < 0 for size in shape):
            raise LayerError(node.name, node.type, f"top {value!r} would have shape {list(shape)}")
        if prod(shape) > LARGEST_BLOB:
            raise LayerError(
                node.name, node.type,
                f"top {value!r} would hold {prod(shape):,} values, more than Caffe's limit of {LARGEST_BLOB:,}",
            )  # fmt: skip


def by_input(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return shapes by input.  Raises GraphError for a name that is not the top of an input or DummyData layer."""
    inputs: list[str] = []
    for node in graph:
        cls = class_of(node)
        if cls and (cls.is_input or cls.may_be_fed):
            inputs += node.top_names
    for name in shapes:
        if name not in inputs:
            listed = ", ".join(map(repr, inputs)) or "none"
            raise GraphError(
                f"{name!r} is not an input of net {graph.name!r}{did_you_mean(str(name), inputs)}; it has {listed}"
            )
    return dict(shapes)
