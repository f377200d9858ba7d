"""Finding the prototxt of a weights file: the one given, one beside it, or a built-in net that fits."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ..caffe.caffemodel import CaffeModel
from ..caffe.fork_fields import describe_field
from ..caffe.graph_build import build_graph
from ..caffe.inside import net_inside
from ..caffe.prototxt import read_net
from ..caffe.upgrade import upgrade_net
from ..errors import FormatError, IlgnetError, WeightsError
from ..layers.support.registry import resolve_kinds
from ..schema import caffe_pb2 as pb
from ..zoo.catalogue import build, builders
from .plan import plan_net
from .weights import WeightsFile, blob_counts, fit_weights

INSIDE = "inside"
INSIDE_NOTE = (
    "the net is the one in the weights file: that of the training, which may have data and loss layers; a deploy prototxt "
    "is preferable"
)


@dataclass(frozen=True)
class Found:
    """A net's text in modern form and where it came from; ``notes`` list what the upgrade changed."""

    net: pb.NetParameter
    origin: str
    notes: tuple[str, ...] = ()


def find_net(model: WeightsFile, prototxt: str | os.PathLike[str] | pb.NetParameter | None = None) -> Found:
    """Return the net for a weights file.

    Tried in turn: ``prototxt``; a sibling named like the weights or deploy.prototxt; a built-in net whose
    layer names and shapes are the file's.  "inside" as ``prototxt`` is the net that the file itself holds.  Raises
    WeightsError if none fits, and says where the file holds one.
    """
    if isinstance(prototxt, pb.NetParameter):
        return _upgraded(prototxt, "", model)
    if prototxt is not None and os.fspath(prototxt) == INSIDE and not os.path.exists(INSIDE):
        return found_inside(model)
    if prototxt is not None:
        return _upgraded(read_net_text(prototxt), os.fspath(prototxt), model)
    for sibling in _siblings(model.path):
        if sibling.is_file() and not sibling.samefile(model.path):
            return _upgraded(read_net_text(sibling), str(sibling), model)
    matches = match_built_in(model)
    if matches:
        return Found(build(matches[0]), f"built in ({matches[0]})")
    try:
        held = f", or take the net of {len(found_inside(model).net.layer)} layers in the file (prototxt={INSIDE!r})"
    except IlgnetError:
        held = ""
    raise WeightsError(
        f"{model.path}: no prototxt beside it and no built-in net fits its layers; "
        f"give the deploy prototxt as prototxt={held}",
        option="prototxt",
    )


def found_inside(model: WeightsFile) -> Found:
    """Return the net that a weights file holds.  Raises FormatError where it holds none that can be read."""
    if not isinstance(model, CaffeModel):
        raise FormatError(f"{model.path}: only a .caffemodel holds a net; give the prototxt")
    found = _upgraded(net_inside(model), f"inside {model.path.name}", model)
    return replace(found, notes=(INSIDE_NOTE, *found.notes))


def _siblings(weights: Path) -> list[Path]:
    return [text_beside(weights), weights.with_name("deploy.prototxt")]


def text_beside(weights: Path) -> Path:
    """Return the path of the prototxt that goes with a weights file: x.prototxt for x.caffemodel and x.caffemodel.h5."""
    return weights.with_name(f"{stem_of(weights)}.prototxt")


def stem_of(weights: Path) -> str:
    """Return a weights file's name without its suffix, from which the names of its prototxt and results are made."""
    name = weights.name
    for suffix in (".caffemodel.h5", ".weights.safetensors"):
        if name.lower().endswith(suffix) and name.lower() != suffix:
            return name[: -len(suffix)]
    return weights.stem


def _upgraded(text: pb.NetParameter, origin: str, model: WeightsFile) -> Found:
    notes: list[str] = []
    net = resolve_kinds(upgrade_net(text, notes), blob_counts(model.layers))
    return Found(net, origin, tuple(notes))


def read_net_text(path: str | os.PathLike[str]) -> pb.NetParameter:
    """Read a prototxt of any generation.  Raises FormatError where it has no layers."""
    net = read_net(path)
    if not net.layer and not net.layers:
        first = f" but {describe_field(net.fork_field[0])}" if net.fork_field else ""
        raise FormatError(f"{path}: has no layers{first}; is it a solver or another kind of text?")
    return net


def match_built_in(model: WeightsFile) -> list[str]:
    """Return the names of built-in deploy nets whose layers all match the file's by name and shape."""
    held = {layer.name for layer in model.layers if layer.blobs}
    matches = []
    for name in builders():
        net = build(name)
        # The cheap test first: most nets share no layer names, and training nets do not count.
        if net.layer[0].type != "Input" or not held <= {layer.name for layer in net.layer}:
            continue
        plan = plan_net(build_graph(net))
        fit = fit_weights(plan.blobs, model.layers, plan.owners)
        if fit.is_whole and fit.matched and not fit.extra and not fit.filled:
            matches.append(name)
    return matches
