"""Recipes of fine-tuning as options: frozen layers, rates by layer, warm-up; and the prototxts that they stand for."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from ..caffe.fork_fields import without_marks
from ..caffe.graph_build import build_graph
from ..caffe.prototxt import format_message
from ..errors import SolverError, excerpt
from ..files import atomic_file, check_output
from ..reading.data_layer_batches import Feed
from ..runtime.plan import NetPlan, plan_net
from ..schema import caffe_pb2 as pb
from .observe import Observer, Run
from .policies import WarmUp
from .solver import Settings

NET, SOLVER, WARM_UP = "recipe_net.prototxt", "recipe_solver.prototxt", "recipe_warm_up.prototxt"
_START = 0.1  # the rate at the start of a warm-up, as a factor of base_lr


@dataclass(frozen=True)
class Recipe:
    """What `ilgnet train` adds to a solver and its net.

    ``freeze`` are regular expressions for names of layers, ``lr_mult`` such with a factor (``fc.*=10``); ``warm_up`` is
    a number of iterations, with the factor of `base_lr` at their start after a colon.
    """

    freeze: tuple[str, ...] = ()
    lr_mult: tuple[str, ...] = ()
    warm_up: str = ""

    def __bool__(self) -> bool:
        return bool(self.freeze or self.lr_mult or self.warm_up)


@dataclass(frozen=True)
class Changed:
    """A run with its recipe: the settings, and what a user of Caffe would write instead."""

    settings: Settings
    layers: tuple[pb.LayerParameter, ...]  # those of the train net that differ
    net: pb.NetParameter | None
    solver: pb.SolverParameter
    warm_up: pb.SolverParameter | None

    def lines(self, folder: Path) -> list[str]:
        """What is different, and the commands of the same run in Caffe, from the folder that the solver's paths are of."""
        root = self.settings.root
        if root != Path():
            folder = Path(os.path.relpath(folder, root))
        place = "in Caffe" if root == Path() else f"in Caffe, from {root}"
        names = {NET: self.net, WARM_UP: self.warm_up}
        lines = [f"recipe: {folder / name}" for name, text in names.items() if text is not None]
        lines += [f"  {layer.name}: {_rows(layer)}" for layer in self.layers]
        solver, warm = folder / SOLVER, self.warm_up
        if warm is not None:
            suffix = ".h5" if self.settings.snapshot_hdf5 else ""
            state = f"{warm.snapshot_prefix}_iter_{warm.max_iter}.solverstate{suffix}"
            lines += [
                f"recipe: {place}, `caffe train -solver {folder / WARM_UP}`, then "
                f"`caffe train -solver {solver} -snapshot {state}`, which starts at the first row of the data again",
                *("  " + line for line in format_message(warm).splitlines()),
            ]
        else:
            lines.append(f"recipe: {place}, `caffe train -solver {solver}`")
        return [
            *lines,
            f"recipe: {solver}",
            *("  " + line for line in format_message(self.solver).splitlines()),
        ]


class RecipeFiles(Observer):
    """Writes the prototxts of a recipe into the folder of a run, where Caffe can take them."""

    def __init__(self, changed: Changed, folder: str | os.PathLike[str]) -> None:
        self.changed, self.folder = changed, Path(folder)

    def on_start(self, trainer: Run) -> None:
        texts = {NET: self.changed.net, SOLVER: self.changed.solver, WARM_UP: self.changed.warm_up}
        for name, text in texts.items():
            if text is None:
                continue
            check_output(self.folder / name, trainer.settings.weights)
            with atomic_file(self.folder / name, "w") as file:
                file.write(format_message(text))


def apply_recipe(settings: Settings, recipe: Recipe, folder: str | os.PathLike[str]) -> Changed:
    """Return the run of a solver with a recipe; its prototxts will be in ``folder``.

    Raises SolverError for a pattern that matches no layer with parameters, and for numbers that make no sense.
    """
    text = pb.NetParameter()
    text.CopyFrom(settings.train_net.graph.text)
    names = _change_layers(settings, recipe, text)
    solver = pb.SolverParameter()
    solver.CopyFrom(settings.message)
    if names:
        source = settings.train_net
        graph = build_graph(text, source.graph.phase, level=source.state.level, stages=source.state.stage)
        settings = replace(settings, train_net=replace(source, graph=graph))
        field = next(name for name in ("train_net", "net") if name in _alternatives(settings.message))
        for name in ("net_param", "train_net_param"):
            solver.ClearField(name)
        setattr(solver, field, os.path.relpath(Path(folder) / NET, settings.root))
    warm_up = _warm_up(settings, recipe.warm_up)
    warm_solver = None
    if warm_up is not None:
        settings = replace(settings, policy=replace(settings.policy, warm_up=warm_up))
        warm_solver = _warm_up_solver(solver, warm_up)
    changed = tuple(layer for layer in text.layer if layer.name in names)
    return Changed(settings, changed, without_marks(text) if names else None, solver, warm_solver)


def _alternatives(message: pb.SolverParameter) -> tuple[str, ...]:
    """The fields in which the net with the recipe may be named: that of the train net alone, where it is so named."""
    alone = message.HasField("train_net") or message.HasField("train_net_param")
    return ("train_net",) if alone else ("net",)


# ---------------------------------------------------------------------- layers


def _change_layers(settings: Settings, recipe: Recipe, text: pb.NetParameter) -> set[str]:
    """Change the `param` rows of the layers that the patterns match; return the names of these layers."""
    if not recipe.freeze and not recipe.lr_mult:
        return set()
    source = settings.train_net
    plan = plan_net(source.graph, Feed(source.graph, source.files, 0).shapes())
    frozen = {name for pattern in recipe.freeze for name in _matched("freeze", pattern, plan)}
    factors: dict[str, float] = {}
    for stated in recipe.lr_mult:
        pattern, factor = _factor(stated)
        for name in _matched("lr_mult", pattern, plan):
            if name in factors or name in frozen:
                raise SolverError(
                    f"lr_mult {stated!r}: layer {name} is matched by two patterns; match it once"
                )
            factors[name] = factor
    for layer in text.layer:
        specs = plan.blobs.get(layer.name, ()) if layer.name in frozen or layer.name in factors else ()
        for index, spec in enumerate(specs):
            if not spec.learned:
                continue
            while len(layer.param) <= index:
                layer.param.add()
            row = layer.param[index]
            if layer.name in frozen:
                row.lr_mult, row.decay_mult = 0, 0
            else:
                row.lr_mult *= factors[layer.name]
        if layer.name in frozen and layer.type == "BatchNorm":
            layer.batch_norm_param.use_global_stats = True  # its statistics are trained by every pass
    return frozen | set(factors)


def _matched(option: str, pattern: str, plan: NetPlan) -> list[str]:
    """The layers with parameters whose whole name matches; BatchNorm has statistics, which freezing keeps."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SolverError(
            f"{option} {excerpt(pattern)!r}: is not a regular expression ({error}); correct it", option=option
        ) from error
    able = [
        node.name
        for node in plan.graph.layers
        if any(spec.learned for spec in plan.blobs[node.name])
        or (option == "freeze" and node.type == "BatchNorm")
    ]
    found = [name for name in able if expression.fullmatch(name)]
    if found:
        return found
    others = [node.name for node in plan.graph.layers if expression.fullmatch(node.name)]
    if others:
        raise SolverError(
            f"{option} {excerpt(pattern)!r}: matches only layers without parameters ({', '.join(others[:3])}); "
            f"layers with parameters are {_listed(able)}",
            option=option,
        )
    close = get_close_matches(re.sub(r"[^\w/-]", "", pattern), able, n=3, cutoff=0) or able
    raise SolverError(
        f"{option} {excerpt(pattern)!r}: matches no layer, by its whole name; the closest are {_listed(close)}",
        option=option,
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(excerpt, names[:8])) + (", ..." if len(names) > 8 else "") if names else "none"


def _factor(stated: str) -> tuple[str, float]:
    pattern, equals, value = stated.rpartition("=")
    try:
        factor = float(value)
    except ValueError:
        factor = math.nan
    if not equals or not pattern or not 0 <= factor < math.inf:
        raise SolverError(
            f"lr_mult {excerpt(stated)!r}: give PATTERN=FACTOR with a factor of 0 or more, such as fc.*=10",
            option="lr_mult",
        )
    return pattern, factor


def _rows(layer: pb.LayerParameter) -> str:
    rows = [" ".join(format_message(row).split()) for row in layer.param]
    stated = [f"param {{ {row} }}" if row else "param { }" for row in rows]
    if layer.type == "BatchNorm" and layer.batch_norm_param.use_global_stats:
        stated.append("batch_norm_param { use_global_stats: true }")
    return " ".join(stated)


# ---------------------------------------------------------------------- warm-up


def _warm_up(settings: Settings, stated: str) -> WarmUp | None:
    """A rate that rises by a line to base_lr: Caffe's policy `inv` of power -1, rounded as its float32."""
    if not stated:
        return None
    count, colon, factor = stated.partition(":")
    try:
        iterations, start = int(count), float(factor) if colon else _START
    except ValueError:
        iterations, start = 0, 0.0
    if iterations < 1 or not 0 < start < 1:
        raise SolverError(
            f"warm_up {excerpt(stated)!r}: give the number of iterations, and after a colon the factor of base_lr at "
            "their start, between 0 and 1: 1000 or 1000:0.01",
            option="warm_up",
        )
    if iterations >= settings.max_iter:
        raise SolverError(
            f"warm_up {iterations}: the run has {settings.max_iter} iterations; warm up for fewer",
            option="warm_up",
        )
    first = np.float32(settings.policy.base_lr * start)
    return WarmUp(iterations, float(first), float(np.float32((1 / start - 1) / iterations)))


def _warm_up_solver(solver: pb.SolverParameter, warm_up: WarmUp) -> pb.SolverParameter:
    """The solver of the warm-up alone; the run continues from its last snapshot."""
    text = pb.SolverParameter()
    text.CopyFrom(solver)
    for name in ("stepsize", "stepvalue", "snapshot_after_train"):
        text.ClearField(name)
    text.lr_policy, text.base_lr, text.gamma, text.power = "inv", warm_up.base_lr, warm_up.gamma, -1
    text.max_iter = warm_up.iterations
    return text
