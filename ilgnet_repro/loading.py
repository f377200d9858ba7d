"""From files to a net: the prototxt gives the structure, the caffemodel the numbers."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping

from .calls import shapes_by_name
from .errors import FormatError, WeightsError
from .formats.binaryproto import read_blob
from .formats.caffemodel import open_caffemodel
from .formats.prototxt import read_net
from .formats.upgrade import upgrade_net
from .graph.build import build_graph
from .graph.feeds import feed_dummies
from .graph.fork_fields import describe_field, drop_fields
from .graph.node import Graph
from .layers.base import Shape
from .layers.loss import InfogainLoss
from .layers.registry import tell_kinds
from .net import CaffeNet
from .plan import plan_net
from .schema import caffe_pb2 as pb
from .weights import FileLayer, blob_counts, fit_weights, take_weights

PathLike = str | os.PathLike[str]


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

    ``ignore_fields`` are dotted paths (``convolution_param.foo``) of fields unknown to Caffe that the
    caller knows not to matter; that of an unknown message stands for all that is in it.  A DummyData top with a
    shape in ``input_shapes`` becomes an input.  ``crop`` is the rule for Crop layers that state no offset where the
    text leaves it open: "bvlc" (0) or "geometry" (forks: from the layers).
    ``held`` are the layers of the weights file: their blobs tell the kind of a layer whose text leaves it open.
    """
    if isinstance(prototxt, pb.NetParameter):
        net = prototxt
    else:
        net = read_net(prototxt)
        if not net.layer and not net.layers:
            first = f" but {describe_field(net.fork_field[0])}" if net.fork_field else ""
            raise FormatError(f"{prototxt}: holds no layers{first}; is it a solver or another kind of text?")
    stages = tuple(stages)
    text = tell_kinds(upgrade_net(drop_fields(net, ignore_fields)), blob_counts(held))
    text = feed_dummies(text, input_shapes or {}, phase, level=level, stages=stages)
    return build_graph(text, phase, level=level, stages=stages, crop=crop)


def load_net(
    prototxt: PathLike | pb.NetParameter,
    weights: PathLike | None = None,
    phase: str = "TEST",
    *,
    level: int = 0,
    stages: Iterable[str] = (),
    ignore_fields: Iterable[str] = (),
    input_shapes: Mapping[str, Shape] | None = None,
    seed: int | None = None,
    carry_state: bool = False,
    crop: str | None = None,
    allow_missing: Collection[str] = (),
) -> CaffeNet:
    """Build a net from a prototxt and, where given, a caffemodel (or its HDF5 form); else its fillers draw the weights.

    ``input_shapes`` overrides or supplies the shapes of inputs, by top name.  With ``carry_state`` RNN and LSTM
    start each pass from the state of the one before it, as in Caffe; `net.reset_state()` forgets it.  ``crop`` is as
    in `load_graph`.  A layer that the file lacks is filled where its text states a filler that draws nothing (constant,
    bilinear), and stops the load otherwise unless ``allow_missing`` names it: then its fillers draw it, from ``seed``.
    `net.load_notes` says which layers these are.  Raises ParseError, GraphError, LayerError, FormatError or
    WeightsError, each in one line.
    """
    model = None if weights is None else open_caffemodel(weights)
    graph = load_graph(
        prototxt, phase=phase, level=level, stages=stages, ignore_fields=ignore_fields,
        input_shapes=input_shapes, crop=crop, held=model.layers if model else (),
    )  # fmt: skip
    plan = plan_net(graph, shapes_by_name(input_shapes or {}, graph))
    if model is None:
        if allow_missing:
            raise WeightsError(
                "allow_missing goes with a weights file; without one the fillers draw every layer"
            )
        return read_matrices(CaffeNet(plan, seed=seed, carry_state=carry_state))
    arrays = take_weights(
        plan.blobs,
        model.layers,
        source=str(weights),
        owners=plan.owners,
        allow_missing=allow_missing,
        seed=seed,
    )
    net = read_matrices(CaffeNet(plan, arrays, carry_state=carry_state))
    net.load_notes = fit_weights(plan.blobs, model.layers, plan.owners).notes
    return net


def read_matrices(net: CaffeNet) -> CaffeNet:
    """Give each InfogainLoss the matrix that its `source` names, as Caffe from the working directory."""
    for node in net.graph:
        layer = net.layer(node.name)
        if isinstance(layer, InfogainLoss) and layer.matrix_file:
            layer.set_matrix(read_blob(layer.matrix_file), net.plan.value_shapes[node.bottoms[0]])
    return net
