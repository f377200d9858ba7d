"""Parameters shared by name: `param { name: "w" }` in two layers is one blob, as in Caffe's `AppendParam`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ..errors import LayerError
from ..schema import caffe_pb2 as pb
from .graph import Graph, Node

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Owner:
    """The owner of a shared parameter: the first layer that names it, and the index of its blob."""

    layer: str
    index: int


def param_spec(node: Node, index: int) -> pb.ParamSpec:
    """Return the `param` of a layer's blob, or an empty one if the prototxt has none."""
    return node.layer.param[index] if index < len(node.layer.param) else pb.ParamSpec()


def find_owners(graph: Graph, blob_shapes: Mapping[str, list[Shape]]) -> dict[tuple[str, int], Owner]:
    """Map each (layer, blob index) that shares another layer's parameter to the owner.

    STRICT sharing (the default) requires equal shapes, PERMISSIVE equal counts. Raises LayerError if they
    differ, or if both layers state different lr_mult or decay_mult.
    """
    first: dict[str, tuple[Node, int]] = {}
    owners = {}
    for node in graph:
        for index, shape in enumerate(blob_shapes.get(node.name, [])):
            spec = param_spec(node, index)
            if not spec.name:
                continue
            if spec.name not in first:
                first[spec.name] = (node, index)
                continue
            owner, owner_index = first[spec.name]
            owner_shape = blob_shapes[owner.name][owner_index]
            _check_shapes(node, index, spec, shape, owner, owner_shape)
            _check_multipliers(node, spec, owner, param_spec(owner, owner_index))
            owners[node.name, index] = Owner(owner.name, owner_index)
    return owners


def _check_shapes(
    node: Node, index: int, spec: pb.ParamSpec, shape: Shape, owner: Node, owner_shape: Shape
) -> None:
    permissive = spec.share_mode == pb.ParamSpec.PERMISSIVE
    fits = prod(shape) == prod(owner_shape) if permissive else shape == owner_shape
    if not fits:
        what = "count" if permissive else "shape"
        raise LayerError(
            node.name,
            node.type,
            f"blob {index} shares {spec.name!r} with {owner.name} but its {what} differs "
            f"({show_shape(shape)} here, {show_shape(owner_shape)} there)"
            + ("" if permissive else "; share_mode: PERMISSIVE compares only counts"),
        )


def _check_multipliers(node: Node, spec: pb.ParamSpec, owner: Node, owner_spec: pb.ParamSpec) -> None:
    for field in ("lr_mult", "decay_mult"):
        if spec.HasField(field) and owner_spec.HasField(field):
            mine, theirs = getattr(spec, field), getattr(owner_spec, field)
            if mine != theirs:
                raise LayerError(
                    node.name,
                    node.type,
                    f"shared parameter {spec.name!r} has {field} {mine:g} here and {theirs:g} in {owner.name}; "
                    "state it once, or the same in both",
                )


def show_shape(shape: Shape) -> str:
    """Return a shape as Caffe users write it: 64x3x7x7, or (scalar)."""
    return "x".join(map(str, shape)) if shape else "(scalar)"
