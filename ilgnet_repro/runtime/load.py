"""Loading a net: the prototxt gives the structure, the weights file the numbers; kinds are detected by content."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ..about import About, about_net
from ..caffe.blob import read_blob
from ..caffe.caffemodel import open_caffemodel
from ..caffe.dummy_inputs import DUMMY_NOTE
from ..caffe.expected_kind import expect_or_named
from ..caffe.graph import Graph
from ..caffe.graph_build import Choices, choose_graph
from ..caffe.kinds import Kind
from ..caffe.named_files import NamedFiles
from ..caffe.upgrade import upgrade_net
from ..errors import GraphError, IlgnetError, WeightsError
from ..known import assumed, find_model, identify
from ..layers.loss import InfogainLoss
from ..layers.support.base import Layer, Shape
from ..layers.support.registry import layer_types, resolve_kinds
from ..reading.net_preprocessing import preprocessing_of
from ..schema import caffe_pb2 as pb
from .calls import shapes_by_name
from .drawn import about_now, drawn_layers
from .find import Found, find_net, read_net_text
from .model import Model
from .model_file import load_model
from .net import CaffeNet, float_arrays
from .net_file import MODEL, NET, read_net_file
from .open_channels import channels_of_weights
from .origin import Origin
from .plan import NetPlan, plan_net
from .runnable import FileNet
from .safetensors_file import read_metadata
from .weights import (
    DRAW_SEED,
    ArrayBlob,
    ArrayFile,
    ArrayLayer,
    FileLayer,
    WeightsFile,
    blob_counts,
    fit_weights,
    take_weights,
)

PathLike = str | os.PathLike[str]
_ONE_PIXEL = (3, 1, 1)  # channels, height, width of images whose size a text leaves to its user
LONGEST_NAME = 200  # characters kept of the net's name in the weights file


class LoadOptions(TypedDict, total=False):
    """The options of `load` and `score`, by keyword."""

    prototxt: PathLike | pb.NetParameter | None
    phase: str | None
    level: int
    stages: Iterable[str]
    input_shapes: Mapping[str, Shape] | None
    ignore_fields: Iterable[str]
    allow_missing: Collection[str]
    crop: str | None
    carry_state: bool
    sha256: bool


def load(
    path: PathLike,
    prototxt: PathLike | pb.NetParameter | None = None,
    *,
    phase: str | None = None,
    level: int = 0,
    stages: Iterable[str] = (),
    input_shapes: Mapping[str, Shape] | None = None,
    ignore_fields: Iterable[str] = (),
    allow_missing: Collection[str] = (),
    crop: str | None = None,
    carry_state: bool = False,
    sha256: bool = False,
) -> CaffeNet | FileNet | Model:
    """Load a net from a file, whose kind is detected by its content, whatever its suffix.

    ``.caffemodel`` and ``.caffemodel.h5`` with their ``prototxt`` (default: found as `find_net` says) and the
    ``.safetensors`` files of this package become a `CaffeNet`, ``.onnx`` and ``.pt2`` files a `FileNet` with the same call,
    and a ``.safetensors`` file of a model that is not a Caffe net that `Model`.
    Weights are memory-mapped, not copied.  ``net.about`` holds what is known of the net.

    ``phase`` is TEST unless the file says otherwise.  ``input_shapes`` overrides or supplies the shapes of inputs, by
    top name.  ``ignore_fields``, ``crop``, ``carry_state`` and ``allow_missing`` are those of `load_net`.  With
    ``sha256`` the file is hashed even if no known file has its size.  Raises IlgnetError.
    """
    kind = expect_or_named(path, *_LOADED, what="a net with its weights")
    chosen: LoadOptions = {
        "prototxt": prototxt, "phase": phase, "level": level, "stages": tuple(stages), "input_shapes": input_shapes,
        "ignore_fields": tuple(ignore_fields), "allow_missing": allow_missing, "crop": crop,
        "carry_state": carry_state, "sha256": sha256,
    }  # fmt: skip
    if kind is Kind.SAFETENSORS and is_model_file(path):
        return load_model_file(path, **chosen)
    if kind in _OTHER_ENGINES:
        _refuse_all(path, kind.value, chosen)
        net: FileNet = import_module(f"{__package__}.{_OTHER_ENGINES[kind]}").open_net(Path(path))
        return net
    return _load_caffe(path, kind, **chosen)


def is_model_file(path: PathLike) -> bool:
    """Return whether a file holds a model that is not a Caffe net; False for one that cannot be read."""
    try:
        if expect_or_named(path, *_LOADED, what="a net with its weights") is not Kind.SAFETENSORS:
            return False
        metadata = read_metadata(path)
    except IlgnetError:
        return False
    return MODEL in metadata and NET not in metadata


def load_model_file(path: PathLike, **options: Unpack[LoadOptions]) -> Model:
    """Load a model that is not a Caffe net like `load`; no option applies to it."""
    _refuse_all(path, "a model and no Caffe net", options)
    return load_model(path)


def _refuse_all(path: PathLike, what: str, chosen: LoadOptions) -> None:
    for name, value in chosen.items():
        if value:
            raise GraphError(f"{path}: is {what}, to which {name}= does not apply; leave it out", option=name)


# Imported when used: importing onnx takes a third of a second.
_OTHER_ENGINES = {Kind.ONNX: "onnx_net", Kind.PT2: "pt2_file"}
_CAFFE_KINDS = (Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5, Kind.SAFETENSORS)
_LOADED = (*_CAFFE_KINDS, *_OTHER_ENGINES)


def load_caffe(path: PathLike, **options: Unpack[LoadOptions]) -> CaffeNet:
    """Load a Caffe net like `load`; refuse files of other engines (ONNX, pt2)."""
    return _load_caffe(path, expect_or_named(path, *_CAFFE_KINDS, what="Caffe weights"), **options)


def _load_caffe(
    path: PathLike,
    kind: Kind,
    prototxt: PathLike | pb.NetParameter | None = None,
    *,
    phase: str | None = None,
    level: int = 0,
    stages: Iterable[str] = (),
    input_shapes: Mapping[str, Shape] | None = None,
    ignore_fields: Iterable[str] = (),
    allow_missing: Collection[str] = (),
    crop: str | None = None,
    carry_state: bool = False,
    sha256: bool = False,
) -> CaffeNet:
    stages, ignored = tuple(stages), tuple(ignore_fields)
    if kind is Kind.SAFETENSORS and prototxt is None:
        _refuse_unused(path, allow_missing=allow_missing, ignore_fields=ignored)
        return _load_net_file(path, Choices(phase or "", level, stages, input_shapes, (), crop), carry_state)
    choices = Choices(phase or "TEST", level, stages, input_shapes, ignored, crop)
    model = _open_kind(path, kind)
    found = find_net(model, prototxt)
    return _assemble(
        found,
        model,
        choices,
        allow_missing=allow_missing,
        carry_state=carry_state,
        sha256=sha256,
        seed=DRAW_SEED,
    )


def _refuse_unused(path: PathLike, **options: Iterable[str]) -> None:
    for name, value in options.items():
        if tuple(value):
            raise GraphError(
                f"{path}: holds its own net, to which {name}= does not apply; leave it out, or give a prototxt",
                option=name,
            )


def load_net(
    prototxt: PathLike | pb.NetParameter,
    weights: PathLike | None = None,
    phase: str = "TEST",
    *,
    level: int = 0,
    stages: Iterable[str] = (),
    ignore_fields: Iterable[str] = (),
    input_shapes: Mapping[str, Shape] | None = None,
    allow_missing: Collection[str] = (),
    seed: int | None = None,
    carry_state: bool = False,
    crop: str | None = None,
) -> CaffeNet:
    """Build a net from a prototxt and a weights file; without one its fillers draw the weights.

    ``input_shapes`` overrides or supplies the shapes of inputs, by top name.  ``ignore_fields`` and ``crop`` are as in
    `load_graph`; ``allow_missing`` names layers that their fillers draw where the file lacks them.  With
    ``carry_state`` RNN and LSTM start each pass from the state of the one before it, as in Caffe;
    `net.reset_state()` clears it.  Raises ParseError, GraphError, LayerError, FormatError or WeightsError.
    """
    choices = Choices(phase, level, tuple(stages), input_shapes, tuple(ignore_fields), crop)
    model = None if weights is None else open_weights(weights)
    if model is not None:
        found = find_net(model, prototxt)
    else:
        notes: list[str] = []
        text = upgrade_net(_text(prototxt), notes)
        found = Found(resolve_kinds(text, {}), _origin(prototxt), tuple(notes))
    return _assemble(found, model, choices, allow_missing=allow_missing, carry_state=carry_state, seed=seed)


def load_graph(
    prototxt: PathLike | pb.NetParameter,
    *,
    phase: str = "TEST",
    level: int = 0,
    stages: Iterable[str] = (),
    ignore_fields: Iterable[str] = (),
    input_shapes: Mapping[str, Shape] | None = None,
    crop: str | None = None,
    held: Iterable[FileLayer] = (),
) -> Graph:
    """Read a prototxt of any generation and return its graph.

    ``ignore_fields`` are dotted paths (``convolution_param.foo``) of fields unknown to Caffe that do not
    change the result; the path of an unknown message includes all its fields.  A DummyData top with a
    shape in ``input_shapes`` becomes an input.  ``crop`` is the rule for Crop layers that state no offset where the
    text leaves it open: "bvlc" (0) or "geometry" (forks: from the layers).
    ``held`` are the layers of the weights file: their blob counts determine the kind of a layer whose text leaves it open.
    """
    choices = Choices(phase, level, tuple(stages), input_shapes, tuple(ignore_fields), crop)
    return choose_graph(resolve_kinds(upgrade_net(_text(prototxt)), blob_counts(held)), choices)


def _text(prototxt: PathLike | pb.NetParameter) -> pb.NetParameter:
    return prototxt if isinstance(prototxt, pb.NetParameter) else read_net_text(prototxt)


def _origin(prototxt: PathLike | pb.NetParameter) -> str:
    return "" if isinstance(prototxt, pb.NetParameter) else os.fspath(prototxt)


def open_weights(path: PathLike) -> WeightsFile:
    """Open a weights file: a caffemodel, Caffe's HDF5 form, or a safetensors file of this package."""
    return _open_kind(path, expect_or_named(path, *_CAFFE_KINDS, what="weights"))


def _open_kind(path: PathLike, kind: Kind) -> WeightsFile:
    if kind is not Kind.SAFETENSORS:
        return open_caffemodel(path)
    net = _load_net_file(path, Choices(""))
    return ArrayFile(Path(path), net.name, layers_of(net))


def _load_net_file(path: PathLike, choices: Choices, carry_state: bool = False) -> CaffeNet:
    """Load a net from a file that includes its text; an empty phase means the file's own."""
    origin = Origin.of(path)
    file = read_net_file(path)
    shapes = {**file.input_shapes, **(choices.input_shapes or {})}
    choices = replace(choices, phase=choices.phase or file.phase)
    notes: list[str] = []
    graph = with_outputs(choose_graph(file.text, choices, notes), notes)
    plan = plan_net(graph, shapes_by_name(shapes, graph))
    files = NamedFiles().beside(path)
    net = read_matrices(CaffeNet(plan, file.arrays(plan), carry_state=carry_state), files)
    notes += files.notes
    file.attach_quantized(net)
    about = _with_score(file.about, file.text, graph.outputs)
    if about.drawn is not None:
        net.drawn = drawn_layers(net, about.drawn.layers, about.drawn.of)
    net.about = replace(about, prototxt=os.fspath(path), notes=(*notes, *layer_notes(plan), *about.notes))
    net.origin = origin
    return net


def layers_of(net: CaffeNet) -> tuple[ArrayLayer, ...]:
    """Return a net's layers in the form of a weights file."""
    arrays = float_arrays(net)
    return tuple(
        ArrayLayer(node.name, node.type, tuple(map(ArrayBlob, arrays[node.name])))
        for node in net.graph
        if node.name in arrays
    )


def _assemble(
    found: Found, model: WeightsFile | None, choices: Choices, *, allow_missing: Collection[str] = (),
    carry_state: bool = False, seed: int | None = None, sha256: bool = False,
) -> CaffeNet:  # fmt: skip
    notes = list(found.notes)
    graph = with_outputs(choose_graph(found.net, choices, notes), notes)
    shapes = shapes_by_name(choices.input_shapes or {}, graph)
    if model is not None:
        shapes |= channels_of_weights(graph, shapes, model, notes)
    plan = plan_net(graph, shapes)
    arrays = None
    extra: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    if model is not None:
        fit = fit_weights(plan.blobs, model.layers, plan.owners)
        arrays = take_weights(
            plan.blobs, model.layers, source=str(model.path), owners=plan.owners, allow_missing=allow_missing,
            seed=seed, fit=fit,
        )  # fmt: skip
        extra, filled, missing = fit.extra, fit.notes, fit.missing
        notes += filled
    elif allow_missing:
        raise WeightsError("allow_missing goes with a weights file; without one the fillers draw every layer")
    notes += layer_notes(plan)
    files = NamedFiles().beside(found.origin)
    net = read_matrices(CaffeNet(plan, arrays, seed=seed, carry_state=carry_state), files)
    notes += files.notes
    if missing:
        net.drawn = drawn_layers(net, missing)
    about = _about(found, model, plan, choices, sha256)
    net.origin = None if model is None else Origin.of(model.path)
    net.about = replace(
        about,
        prototxt=found.origin,
        extra_layers=extra,
        filled=filled,
        notes=(*notes, *about.notes),
    )
    net.about = about_now(net)
    return net


def with_outputs(graph: Graph, notes: list[str]) -> Graph:
    """Return a graph with outputs: where all losses are read or have no top, the outputs are what the losses read."""
    if graph.outputs:
        return graph
    types = layer_types()
    losses = [
        node for node in graph.layers if node.type in types and types[node.type].is_loss and node.bottoms
    ]
    if not losses:
        return graph
    outputs = tuple(dict.fromkeys(node.layer.bottom[0] for node in losses))
    notes.append(
        f"the net has no outputs in phase {graph.phase}: what its losses read is returned instead ({', '.join(outputs)})"
    )
    return replace(graph, outputs=outputs)


def layer_notes(plan: NetPlan) -> list[str]:
    """Return what users should know about a net's layers, one line each."""
    notes = []
    for layer in plan.layers.values():
        where = f"{layer.node.name} ({layer.node.type})"
        if layer.idle_note:
            notes.append(f"{where}: {layer.idle_note}")
        notes += [f"{where}: {text}" for text in one_pixel_notes(layer, plan)]
        if layer.node.type == "DummyData":
            notes.append(f"{where}: {DUMMY_NOTE}")
    return notes


def one_pixel_notes(layer: Layer, plan: NetPlan) -> list[str]:
    """Say that images of 1 x 1 stand for a size that the caller gives, as in OpenPose's text."""
    tops = [top for top in layer.node.tops if layer.is_input and plan.value_shapes[top][1:] == _ONE_PIXEL]
    return [
        f"images of {top.blob!r} are 1x1 in the text; give their size (input_shapes={{{top.blob!r}: (N, C, H, W)}})"
        for top in tops
    ]


def _about(found: Found, model: WeightsFile | None, plan: NetPlan, choices: Choices, sha256: bool) -> About:
    """Return what is known of a net by its text, by its file's digest, or (with a note) only by its layers."""
    images = [plan.shapes[name] for name in plan.inputs if len(plan.shapes[name]) == 4]
    stated: dict[str, Any] = {
        "phase": plan.graph.phase, "level": choices.level, "stages": choices.stages,
        "folder": Path(found.origin).parent if found.origin else None,
    }  # fmt: skip
    shape = images[0] if len(images) == 1 else None
    if model is None:  # drawn weights belong to no known model
        size = (shape[2], shape[3]) if shape else None
        how, notes = preprocessing_of(plan.graph.text, size=size, **stated)
        return About(how, notes=notes)
    known = identify(model.path, sha256=sha256)
    return about_net(
        plan.graph.text,
        known,
        net=model.name[:LONGEST_NAME],
        shape=shape,
        outputs=plan.graph.outputs,
        **stated,
    )


def _with_score(about: About, text: pb.NetParameter, outputs: Iterable[str]) -> About:
    """Return ``about`` with the score of the model with the same layers, which earlier versions did not write to files."""
    if about.score is not None or about.model:
        return about
    release = about.source and about.source.release
    known = find_model(release) if release else None
    model = known or assumed(text)
    if model is None or model.score is None or model.score.output not in outputs:
        return about
    about = replace(about, labels=model.labels, score=model.score)
    if known:
        return replace(about, model=known.name)
    return replace(about, notes=(*about.notes, f"labels and score are assumed from those of {model.name}"))


def read_matrices(net: CaffeNet, files: NamedFiles | None = None) -> CaffeNet:
    """Read the matrix that each InfogainLoss names as `source`: in the working directory, or as ``files`` finds it."""
    files = files or NamedFiles()
    layers = net.layers_by_name()
    for node in net.graph:
        layer = layers[node.name]
        if isinstance(layer, InfogainLoss) and layer.matrix_file:
            layer.set_matrix(read_blob(files.find(layer.matrix_file)), net.plan.value_shapes[node.bottoms[0]])
    return net
