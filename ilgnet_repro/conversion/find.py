"""Which prototxt goes with a weights file: the one given, one beside it, or a built-in net that fits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import IlgnetError, WeightsError
from ..formats.caffemodel import CaffeModel
from ..formats.prototxt import read_net
from ..formats.upgrade import upgrade_net
from ..graph.build import build_graph
from ..layers.registry import tell_kinds
from ..plan import plan_net
from ..schema import caffe_pb2 as pb
from ..weights import blob_counts, fit_weights
from ..zoo.catalogue import BUILDERS, build


@dataclass(frozen=True)
class Found:
    """A net's text and how it was come by; ``built_in`` is the zoo's name for it, or None."""

    net: pb.NetParameter
    origin: str
    built_in: str | None = None


def find_net(model: CaffeModel, prototxt: str | os.PathLike[str] | None = None) -> Found:
    """Return the net for a weights file.

    Tried in turn: ``prototxt``; a sibling named like the weights or deploy.prototxt; a built-in net whose
    layer names and shapes are the file's.  Raises WeightsError if none fits.
    """
    if prototxt is not None:
        net = upgrade_net(read_net(prototxt))
        return Found(tell_kinds(net, blob_counts(model.layers)), str(prototxt), _name_of_twin(net))
    for sibling in _siblings(model.path):
        if sibling.is_file() and not sibling.samefile(model.path):
            net = upgrade_net(read_net(sibling))
            return Found(tell_kinds(net, blob_counts(model.layers)), str(sibling), _name_of_twin(net))
    matches = match_built_in(model)
    if matches:
        return Found(build(matches[0]), f"built in ({matches[0]})", matches[0])
    raise WeightsError(
        f"{model.path}: no prototxt beside it and no built-in net fits its layers; "
        "give the deploy prototxt with --prototxt"
    )


def _siblings(weights: Path) -> tuple[Path, Path]:
    stem = weights.with_suffix("") if weights.suffix == ".h5" else weights  # x.caffemodel.h5
    return stem.with_suffix(".prototxt"), weights.with_name("deploy.prototxt")


def match_built_in(model: CaffeModel) -> list[str]:
    """Return the names of built-in deploy nets that the file's layers fit wholly, by name and shape."""
    held = {layer.name for layer in model.layers if layer.blobs}
    matches = []
    for name in BUILDERS:
        net = build(name)
        # Cheap first: most nets share no names at all, and training nets are no deployment.
        if net.layer[0].type != "Input" or not held <= {layer.name for layer in net.layer}:
            continue
        plan = plan_net(build_graph(net))
        fit = fit_weights(plan.blobs, model.layers, plan.owners)
        if fit.is_whole and fit.matched and not fit.extra and not fit.filled:
            matches.append(name)
    return matches


def deploy_candidates(model: CaffeModel, prototxts: Sequence[Path]) -> list[tuple[Path, str]]:
    """Say for each prototxt how it fits the file: ``fits``, or the first thing that does not."""
    rows = []
    for path in prototxts:
        try:
            plan = plan_net(build_graph(tell_kinds(upgrade_net(read_net(path)), blob_counts(model.layers))))
            fit = fit_weights(plan.blobs, model.layers, plan.owners)
            rows.append((path, "fits" if fit.is_whole else (fit.misshapen or fit.missing)[0]))
        except IlgnetError as error:
            rows.append((path, str(error)))
    return rows


def _name_of_twin(net: pb.NetParameter) -> str | None:
    """The zoo's name of a net whose layers are the very same, so that what is known of one holds for the other."""
    wanted = [(layer.name, layer.type) for layer in upgrade_net(net).layer]
    for name in BUILDERS:
        if name.startswith("ilgnet") and [(layer.name, layer.type) for layer in build(name).layer] == wanted:
            return name
    return None
