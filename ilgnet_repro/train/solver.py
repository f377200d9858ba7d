"""A solver prototxt as frozen settings, with the graphs of its nets: every field is honoured, or refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..caffe.fork_fields import describe_field, drop_fields, is_of_a_net, refusal
from ..caffe.graph import Graph
from ..caffe.graph_build import build_graph
from ..caffe.implementation_fields import drop_test_fields
from ..caffe.named_files import NamedFiles
from ..caffe.prototxt import read_net, read_solver
from ..caffe.upgrade import upgrade_net, upgrade_solver
from ..errors import GraphError, SolverError
from ..layers.support.registry import resolve_kinds
from ..schema import caffe_pb2 as pb
from .policies import Policy, make_policy, unused_fields

NetText = tuple[pb.NetParameter, NamedFiles]  # a net, and what finds the files that it names
ReadNet = Callable[[str], NetText]

TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
_TRAIN_NETS = ("net", "net_param", "train_net", "train_net_param")
_MINIMUM = {"max_iter": 0, "iter_size": 1, "average_loss": 1, "display": 0, "test_interval": 0, "snapshot": 0}
# Caffe refuses momentum for these update rules.
_WITHOUT_MOMENTUM = ("AdaGrad", "RMSProp")


@dataclass(frozen=True)
class NetSource:
    """A net as the solver refers to it (``net file: x.prototxt``), and its graph in the solver's state.

    ``files`` finds the files that the net names.
    """

    label: str
    graph: Graph
    state: pb.NetState
    files: NamedFiles


@dataclass(frozen=True)
class TestNet:
    """A test net, and the number of batches of one test."""

    source: NetSource
    test_iter: int


@dataclass(frozen=True)
class Settings:
    """A solver.  ``root`` is the base of its paths, ``files`` finds those that it and its nets name.

    ``notes`` are the fields without effect, and the files found elsewhere, one line each.
    """

    train_net: NetSource
    test_nets: tuple[TestNet, ...]
    policy: Policy
    type: str
    momentum: float
    momentum2: float
    rms_decay: float
    delta: float
    weight_decay: float
    regularization: str
    clip_gradients: float
    iter_size: int
    max_iter: int
    display: int
    average_loss: int
    test_interval: int
    test_initialization: bool
    test_compute_loss: bool
    snapshot: int
    snapshot_prefix: str
    snapshot_hdf5: bool
    snapshot_after_train: bool
    snapshot_diff: bool
    debug_info: bool
    random_seed: int
    gpu: int | None
    weights: tuple[str, ...]
    root: Path
    files: NamedFiles
    message: pb.SolverParameter
    notes: tuple[str, ...] = ()

    def with_(self, **changes: Any) -> Settings:
        """Return the settings with some fields replaced, also in the message that is logged."""
        message = pb.SolverParameter()
        message.CopyFrom(self.message)
        for name, value in changes.items():
            if name in message.DESCRIPTOR.fields_by_name and isinstance(value, (int, float, str)):
                setattr(message, name, value)
        policy = self.policy
        if "max_iter" in changes:
            policy = replace(policy, max_iter=int(changes["max_iter"]))
        return replace(self, message=message, policy=policy, **changes)


def read_settings(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] = ".",
    *,
    level: int = 0,
    stages: Iterable[str] = ("",),
    weights: Iterable[str] = (),
    ignore_fields: Iterable[str] = (),
) -> Settings:
    """Read a solver prototxt.

    ``root`` is the folder that its paths are relative to, in Caffe the current one.  ``level``, ``stages``
    and ``weights`` (paths relative to the current folder) are added to those of the file, as Caffe's command
    line does.  ``ignore_fields`` are the dotted paths of unknown fields, of the solver or its nets,
    that do not change the result.  Raises SolverError, ParseError, FormatError, GraphError or LayerError, each in one line.
    """
    notes: list[str] = []
    ignore_fields = tuple(ignore_fields)
    param = upgrade_solver(drop_fields(read_solver(path), ignore_fields, notes), notes)
    if not param.snapshot_prefix:
        # As in Caffe: the solver's path without its suffix; for a folder, the solver's name in it.
        param.snapshot_prefix = os.fspath(Path(path).with_suffix(""))
    elif Path(root, param.snapshot_prefix).is_dir():
        param.snapshot_prefix = os.path.join(param.snapshot_prefix, Path(path).stem)
    param.train_state.level = level
    param.train_state.stage.extend(stages)
    here = Path(root) == Path(".")
    if not here and Path(root) == Path(path).parent:
        named = param.net or param.train_net
        notes.append(
            f"{named} is not in the current folder; paths are relative to {root}, the solver's folder"
        )
    param.weights.extend(name if here else os.path.abspath(name) for name in weights)
    return make_settings(param, NamedFiles(root).beside(path), notes, ignore_fields)


def solver_root(path: str | os.PathLike[str]) -> Path:
    """Return the base of a solver's paths: the current folder, as in Caffe, or its own if its net is only there."""
    param = read_solver(path)
    nets = [name for name in (param.net, param.train_net) if name]
    own = Path(path).parent
    beside = bool(nets) and not Path(nets[0]).is_file() and (own / nets[0]).is_file()
    return own if beside else Path(".")


def make_settings(
    param: pb.SolverParameter,
    root: str | os.PathLike[str] | NamedFiles = ".",
    notes: Iterable[str] = (),
    ignore_fields: Iterable[str] = (),
) -> Settings:
    """Check an upgraded solver message and return its settings."""
    _check(param)
    files = NamedFiles.of(root)
    ignored: list[str] = []

    def read(name: str) -> NetText:
        path = files.find(name)
        return drop_fields(read_net(path), ignore_fields, ignored), files.beside(path)

    unused = [f"{name} is not used by lr_policy {param.lr_policy}" for name in unused_fields(param)]
    if not param.layer_wise_reduce:
        unused.append("layer_wise_reduce: torch chooses how gradients are exchanged; the result is the same")
    gpu = param.device_id if param.solver_mode == pb.SolverParameter.GPU else None
    return Settings(
        train_net=_train_net(param, read, files),
        test_nets=_test_nets(param, read, files),
        policy=make_policy(param),
        type=param.type,
        momentum=param.momentum,
        momentum2=param.momentum2,
        rms_decay=param.rms_decay,
        delta=param.delta,
        weight_decay=param.weight_decay,
        regularization=param.regularization_type,
        clip_gradients=param.clip_gradients,
        iter_size=param.iter_size,
        max_iter=param.max_iter,
        display=param.display,
        average_loss=param.average_loss,
        test_interval=param.test_interval,
        test_initialization=param.test_initialization,
        test_compute_loss=param.test_compute_loss,
        snapshot=param.snapshot,
        snapshot_prefix=param.snapshot_prefix,
        snapshot_hdf5=param.snapshot_format == pb.SolverParameter.HDF5,
        snapshot_after_train=param.snapshot_after_train,
        snapshot_diff=param.snapshot_diff,
        debug_info=param.debug_info,
        random_seed=param.random_seed,
        gpu=gpu,
        weights=tuple(name for names in param.weights for name in names.split(",") if name),
        root=files.root,
        files=files,
        message=param,
        notes=(*notes, *dict.fromkeys(ignored), *unused, *files.notes),
    )


def _check(param: pb.SolverParameter) -> None:
    for fork in param.fork_field:
        if is_of_a_net(fork):
            raise SolverError(f"solver: {describe_field(fork)} belongs to a net; give the solver's prototxt")
        raise SolverError(f"solver: {refusal(fork, pb.SolverParameter.DESCRIPTOR)}", option="ignore_fields")
    for name, minimum in _MINIMUM.items():
        if getattr(param, name) < minimum:
            raise SolverError(f"solver: {name} {getattr(param, name)} must be {minimum} or more")
    if param.type not in TYPES:
        raise SolverError(f"solver: type {param.type!r} is unknown; use one of {', '.join(TYPES)}")
    if param.regularization_type not in ("L1", "L2"):
        raise SolverError(
            f"solver: regularization_type {param.regularization_type!r} is unknown; use L1 or L2"
        )
    if param.momentum and param.type in _WITHOUT_MOMENTUM:
        raise SolverError(f"solver: momentum {param.momentum:g} cannot be used with {param.type}; remove it")
    if not 0 <= param.rms_decay < 1:
        raise SolverError(f"solver: rms_decay {param.rms_decay:g} must be at least 0 and below 1")
    if param.type == "Adam" and not (0 <= param.momentum < 1 and 0 <= param.momentum2 < 1):
        raise SolverError("solver: momentum and momentum2 of Adam must be at least 0 and below 1")


def _train_net(param: pb.SolverParameter, read: ReadNet, files: NamedFiles) -> NetSource:
    given = [name for name in _TRAIN_NETS if param.HasField(name)]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "has no train net"
        raise SolverError(f"solver: {found}; give exactly one of {', '.join(_TRAIN_NETS)}")
    name = given[0]
    if name.endswith("_param"):
        text = getattr(param, name), files
        return _source(f"specified in {name}", text, "TRAIN", param.train_state)
    path = getattr(param, name)
    return _source(f"from {name} file: {path}", read(path), "TRAIN", param.train_state)


def _test_nets(param: pb.SolverParameter, read: ReadNet, files: NamedFiles) -> tuple[TestNet, ...]:
    """In Caffe's order: test_net_param, test_net, then net or net_param once for each remaining test_iter."""
    nets = [("test_net_param", (net, files)) for net in param.test_net_param]
    nets += [(f"test_net file: {path}", read(path)) for path in param.test_net]
    shared = [name for name in ("net", "net_param") if param.HasField(name)]
    remaining = len(param.test_iter) - len(nets)
    if remaining < 0 or (remaining and not shared):
        raise SolverError(
            f"solver: test_iter is stated {len(param.test_iter)} times for {len(nets)} test nets; "
            "state it once per net"
        )
    if shared == ["net"]:
        nets += [(f"net file: {param.net}", read(param.net))] * remaining
    elif shared:
        nets += [("net_param", (param.net_param, files))] * remaining
    if nets and not param.test_interval:
        raise SolverError(
            "solver: test_interval is 0 with a test net; set it, or remove test_iter and the net"
        )
    if param.test_state and len(param.test_state) != len(nets):
        raise SolverError(
            f"solver: {len(param.test_state)} test_state for {len(nets)} test nets; give one per net"
        )
    if any(count < 0 for count in param.test_iter):
        raise SolverError("solver: test_iter must be 0 or more for each test net")
    states = list(param.test_state) or [pb.NetState()] * len(nets)
    return tuple(
        TestNet(_source(label, net, "TEST", state), count)
        for (label, net), state, count in zip(nets, states, param.test_iter, strict=True)
    )


def _source(label: str, read: NetText, phase: str, state: pb.NetState) -> NetSource:
    """Merge the net's own state and the solver's, which takes precedence; the phase is the solver's unless stated."""
    net, files = read
    merged = pb.NetState(phase=pb.TRAIN if phase == "TRAIN" else pb.TEST)
    merged.MergeFrom(net.state)
    merged.MergeFrom(state)
    phase = pb.Phase.Name(merged.phase)
    text = drop_test_fields(resolve_kinds(upgrade_net(net), {}), phase)
    try:
        graph = build_graph(text, phase, level=merged.level, stages=merged.stage)
    except GraphError as error:
        if error.option != "input_shapes":
            raise
        raise SolverError(
            f"{error.where}: {error.what}; a net that is trained reads its data itself, so give it a data layer"
        ) from error
    return NetSource(label, graph, merged, files)
