"""Upgrades nets and solvers of any generation to the current format, step by step as Caffe's upgrade_proto.cpp does.

Every step takes a message and returns a new one, and adds a line to ``notes`` for each change.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from ..errors import FormatError, excerpt
from ..schema import caffe_pb2
from .evaluation import leave_out_evaluation
from .implementation_fields import drop_implementation_fields
from .layer_types import SOLVER_TYPES
from .limited_relu import rewrite_limited_relus
from .upgrade_v0 import upgrade_v0
from .upgrade_v1 import upgrade_transforms, upgrade_v1

M = TypeVar("M", bound=Message)

_LEGACY_AXES = 4
_VIDEO_TYPES = ("Convolution3D", "Deconvolution3D", "Pooling3D")  # C3D, whose blobs have five axes


def upgrade_net(net: caffe_pb2.NetParameter, notes: list[str] | None = None) -> caffe_pb2.NetParameter:
    """Return the net with modern `layer`s only, and its `input:` as an Input layer; ``net`` is not changed.

    Raises FormatError for a net that mixes `layer` and `layers` or whose input shapes are ambiguous, and
    LayerError for a layer that has no modern form.
    """
    notes = [] if notes is None else notes
    net = upgrade_net_as_caffe(net, notes)
    for step in (drop_implementation_fields, rewrite_limited_relus, leave_out_evaluation):
        net = step(net, notes)
    return net


def upgrade_net_as_caffe(
    net: caffe_pb2.NetParameter, notes: list[str] | None = None
) -> caffe_pb2.NetParameter:
    """Return the net with the changes that Caffe's own tools make, forks' layers and fields as they are."""
    notes = [] if notes is None else notes
    if net.layer and net.layers:
        raise FormatError(
            f"net {excerpt(net.name)}: has both `layer` {excerpt(net.layer[0].name)} and `layers` "
            f"{excerpt(net.layers[0].name or net.layers[0].layer.name)}; use only one of the two"
        )
    for step in (upgrade_v0, upgrade_transforms, upgrade_v1, _upgrade_inputs, _upgrade_batch_norm):
        net = step(net, notes)
    return net


def upgrade_solver(
    solver: caffe_pb2.SolverParameter, notes: list[str] | None = None
) -> caffe_pb2.SolverParameter:
    """Return the solver with its `type` as a name and its nets upgraded; ``solver`` is not changed.

    Raises FormatError where `type` and the older `solver_type` are both given.
    """
    notes = [] if notes is None else notes
    solver = _copy(solver)
    if solver.HasField("solver_type"):
        if solver.HasField("type"):
            raise FormatError(
                f"solver: type {excerpt(solver.type)} and solver_type are both given; keep only type"
            )
        old = caffe_pb2.SolverParameter.SolverType.Name(solver.solver_type)
        solver.type = SOLVER_TYPES[old]
        solver.ClearField("solver_type")
        notes.append(f'solver: solver_type {old} became type "{solver.type}"')
    for name in ("net_param", "train_net_param"):
        if solver.HasField(name):
            getattr(solver, name).CopyFrom(upgrade_net(getattr(solver, name), notes))
    for inner in solver.test_net_param:
        inner.CopyFrom(upgrade_net(inner, notes))
    return solver


def _upgrade_inputs(net: caffe_pb2.NetParameter, notes: list[str]) -> caffe_pb2.NetParameter:
    """Turn net-level inputs into one Input layer at the front, as Caffe does: one top and one shape per input.

    Of ``input_shape`` and ``input_dim`` Caffe reads the first, and neither without ``input``.  It drops an ``input``
    without a shape; here it becomes an input whose shape the caller gives, unless a layer writes that blob.
    """
    net = _copy(net)
    if not net.input:
        fed = next((layer.name for layer in net.layer if layer.top and not layer.bottom), None)
        for field in ("input_dim", "input_shape"):
            if not getattr(net, field):
                continue
            if fed is None:
                raise FormatError(f"net {excerpt(net.name)}: {field} without input; name the input it is for")
            net.ClearField(field)
            notes.append(f"net-level {field} without input is not read; {excerpt(fed)} states its own shape")
        return net
    if net.input_shape and net.input_dim:
        net.ClearField("input_dim")
        notes.append("net-level input_shape and input_dim are both given; Caffe reads input_shape")
    if not net.input_shape and not net.input_dim:
        written = {top for layer in net.layer if not layer.bottom for top in layer.top}
        twice = [name for name in net.input if name in written]
        if twice:
            kept = [name for name in net.input if name not in written]
            del net.input[:]
            net.input.extend(kept)
            notes.append(
                f"net-level input {', '.join(map(excerpt, twice))} has no shape and a layer writes it; left out, as in Caffe"
            )
            if not kept:
                return net
    count, shapes, dims = len(net.input), len(net.input_shape), len(net.input_dim)
    if shapes and shapes != count:
        raise FormatError(f"net {excerpt(net.name)}: {shapes} input_shape for {count} input; give one each")
    is_video = any(layer.type in _VIDEO_TYPES for layer in net.layer)
    axes = _LEGACY_AXES + 1 if is_video and dims == (_LEGACY_AXES + 1) * count else _LEGACY_AXES
    if dims and dims != axes * count:
        raise FormatError(f"net {excerpt(net.name)}: {dims} input_dim for {count} input; give four each")
    name = "input"
    while any(other.name == name for other in net.layer):  # unique, because weights are matched by name
        name += "'"
    layer = caffe_pb2.LayerParameter(name=name, type="Input", top=net.input)
    for index in range(count if shapes or dims else 0):
        shape = layer.input_param.shape.add()
        if shapes:
            shape.CopyFrom(net.input_shape[index])
        else:
            shape.dim.extend(net.input_dim[axes * index : axes * (index + 1)])
    out = caffe_pb2.NetParameter()
    out.layer.add().CopyFrom(layer)
    out.MergeFrom(net)
    for field in ("input", "input_shape", "input_dim"):
        out.ClearField(field)
    notes.append(f"net-level input {', '.join(map(excerpt, net.input))} became the Input layer {name}")
    return out


def _upgrade_batch_norm(net: caffe_pb2.NetParameter, notes: list[str]) -> caffe_pb2.NetParameter:
    """Set lr_mult and decay_mult of BatchNorm's three `param` to 0, as Caffe does: its blobs are statistics, not learned.

    Their names stay, because layers can share statistics by name (`UpgradeNetBatchNorm`).
    """
    out = _copy(net)
    for layer in out.layer:
        if layer.type == "BatchNorm" and len(layer.param) == 3:
            rows = [row for row in layer.param if row.lr_mult or row.decay_mult]
            for row in layer.param:
                row.lr_mult = row.decay_mult = 0
            if rows:
                notes.append(
                    f"{excerpt(layer.name)} (BatchNorm): its three param have lr_mult 0 and decay_mult 0, as in Caffe"
                )
    return out


def _copy(message: M) -> M:
    out = type(message)()
    out.CopyFrom(message)
    return out
