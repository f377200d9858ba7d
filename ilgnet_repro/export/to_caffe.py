"""The formats caffemodel and hdf5: Caffe's own files, each with its prototxt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..caffe.caffemodel import open_caffemodel, write_caffemodel
from ..caffe.fork_fields import without_marks
from ..caffe.hdf5_model import write_hdf5_model
from ..caffe.prototxt import format_message
from ..errors import IlgnetError
from ..files import atomic_file
from ..layers.support.base import Layer, Shape
from ..layers.support.registry import make_layer
from ..runtime.find import text_beside
from ..runtime.net import CaffeNet, float_arrays
from ..runtime.runnable import Runnable
from ..runtime.weights import take_weights
from ..schema import caffe_pb2 as pb
from .formats import Format
from .saving import Saving

# Types whose weights and biases are most of a net; the first two are those of OpenCV's shrinkCaffeModel.
_HALF_TYPES = ("Convolution", "InnerProduct", "Deconvolution", "DepthwiseConvolution", "ConvolutionDepthwise")
_HALF_NOTE = (
    "float16 weights in a caffemodel are read by OpenCV, NVIDIA's Caffe and this package; Caffe 1.0 cannot"
)


def write(saving: Saving, path: Path) -> list[Path]:
    """Write the weights as Caffe 1.0 does, whatever generation was read, and the net's text beside them."""
    text, arrays = stated_text(saving.net), float_arrays(saving.net)
    write_caffemodel(path, text, arrays, half=_half_layers(saving))
    return [path, _write_text(saving, path)]


def _half_layers(saving: Saving) -> set[str]:
    """Return the layers that are written in float16; one that shares a blob with a layer in float32 stays so too."""
    if saving.options.precision != "float16":
        return set()
    names = {node.name for node in saving.graph.layers if node.type in _HALF_TYPES}
    owners = saving.net.plan.owners.items()
    while mixed := {
        layer for key, owner in owners for layer in (key[0], owner.layer)
        if (key[0] in names) != (owner.layer in names) and layer in names
    }:  # fmt: skip
        names -= mixed
    return names


def reduced(saving: Saving) -> CaffeNet:
    """Return the net with the weights that the file holds."""
    half, arrays = _half_layers(saving), float_arrays(saving.net)
    if not half:
        return saving.original
    rounded = {
        name: [array.astype(np.float16).astype(np.float32) if name in half else array for array in blobs]
        for name, blobs in arrays.items()
    }
    return saving.with_arrays(rounded)


def write_hdf5(saving: Saving, path: Path) -> list[Path]:
    """Write the weights in Caffe's HDF5 form, shared blobs once, and the net's text beside them."""
    write_hdf5_model(path, stated_text(saving.net), float_arrays(saving.net), owners=saving.net.plan.owners)
    return [path, _write_text(saving, path)]


def _write_text(saving: Saving, path: Path) -> Path:
    text = text_beside(path)
    with atomic_file(text, "w") as file:
        file.write(format_message(without_marks(stated_text(saving.net))))
    return text


def reopen(paths: Sequence[Path], saving: Saving) -> Runnable:
    """Return the written net with the arrays of the file."""
    plan = saving.net.plan
    layers = open_caffemodel(paths[0]).layers
    return saving.with_arrays(take_weights(plan.blobs, layers, source=paths[0].name, owners=plan.owners))


def notes(saving: Saving) -> tuple[str, ...]:
    """Return how the prototxt differs from the net's text, and what Caffe cannot read."""
    return (*shape_notes(saving.net), *([_HALF_NOTE] if _half_layers(saving) else []))


FORMAT = Format(
    "caffemodel", ".caffemodel", write, reopen, options=("precision",), notes=notes,
    precisions=("float32", "float16"), reduced=reduced,
)  # fmt: skip
HDF5 = Format("hdf5", ".caffemodel.h5", write_hdf5, reopen, notes=lambda saving: shape_notes(saving.net))


def stated_text(net: CaffeNet) -> pb.NetParameter:
    """Return the net's text with the shapes of its present inputs; layers of other phases are unchanged."""
    return _state_shapes(net)[0]


def shape_notes(net: CaffeNet) -> tuple[str, ...]:
    """Return what `stated_text` changed besides shapes, one line each."""
    return _state_shapes(net)[1]


def _state_shapes(net: CaffeNet) -> tuple[pb.NetParameter, tuple[str, ...]]:
    text, notes = pb.NetParameter(), []
    text.CopyFrom(net.graph.text)
    nodes = list(net.graph.layers)
    for stated in text.layer:
        if not nodes or stated != nodes[0].layer:
            continue  # of another phase
        node = nodes.pop(0)
        layer = net.plan.layers[node.name]
        shapes = [net.plan.value_shapes[top] for top in node.tops]
        if not layer.is_input or _own_shapes(layer) == shapes:
            continue
        if stated.type != "Input":
            if _takes_batch(layer, stated, shapes):
                continue
            notes.append(
                f"{node.name} ({node.type}): its text does not state the shapes it was given, so an Input layer replaces "
                "it in the prototxt"
            )
            _become_input(stated)
        stated.input_param.ClearField("shape")
        for shape in shapes:
            stated.input_param.shape.add(dim=shape)
    return text, tuple(notes)


def _own_shapes(layer: Layer) -> list[Shape] | None:
    """Return the shapes that a layer's text states, or None."""
    try:
        return [tuple(shape) for shape in layer.plan().tops]
    except IlgnetError:
        return None


def _takes_batch(layer: Layer, stated: pb.LayerParameter, shapes: Sequence[Shape]) -> bool:
    """Whether the shapes differ from the layer's own only in the batch, which is then written into the text."""
    other = pb.LayerParameter()
    other.CopyFrom(stated)
    getattr(other, layer.message).batch_size = shapes[0][0]
    if _own_shapes(make_layer(replace(layer.node, layer=other))) != list(shapes):
        return False
    stated.CopyFrom(other)
    return True


def _become_input(stated: pb.LayerParameter) -> None:
    """Turn a layer that reads a source into an Input layer; a Data layer keeps its transform_param."""
    kept = [
        "name",
        "type",
        "top",
        "include",
        "exclude",
        *(["transform_param"] if stated.type == "Data" else []),
    ]
    for field, _ in stated.ListFields():
        if field.name not in kept:
            stated.ClearField(field.name)
    stated.type = "Input"
