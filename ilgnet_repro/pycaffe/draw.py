"""pycaffe's `caffe.draw`: a net as an image, by Graphviz through `pydot` (the extra ``draw``), or by matplotlib."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..caffe.upgrade import upgrade_net
from ..errors import IlgnetError, one_of, printable
from ..files import atomic_file
from ..schema import caffe_pb2
from . import plain_drawing
from .failures import WrongValue
from .plain_drawing import Edge, Node

LAYER_STYLE_DEFAULT = {"shape": "record", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE = {"shape": "record", "fillcolor": "#90EE90", "style": "filled"}
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}
_COLOURS = {
    "Convolution": "#FF5050",
    "Deconvolution": "#FF5050",
    "Pooling": "#FF9900",
    "InnerProduct": "#CC33FF",
}
_RANKDIRS = ("LR", "RL", "TB", "BT")
# The programs that place the nodes: Graphviz's own, and a port of it that pip installs.
_PROGRAMS = ("dot", "graphviz-pure")


def get_pooling_types_dict() -> dict[int, str]:
    """Return the names of Pooling's methods by their numbers."""
    return {value.number: value.name for value in caffe_pb2.PoolingParameter.PoolMethod.DESCRIPTOR.values}


def get_layer_lr_mult(layer: caffe_pb2.LayerParameter) -> tuple[float, float]:
    """Return the learning rate multipliers of a layer's weights and bias, 1 where they are not stated."""
    if layer.type not in ("Convolution", "Deconvolution", "InnerProduct"):
        return 0.0, 0.0
    rates = [param.lr_mult for param in layer.param[:2]]
    first, second = (*rates, 1.0, 1.0)[:2]
    return first, second


def get_edge_label(layer: caffe_pb2.LayerParameter) -> str:
    """Return what an edge from a layer shows: the outputs of a convolution or dense layer, a Data layer's batch."""
    if layer.type == "Data":
        return f"Batch {layer.data_param.batch_size}"
    if layer.type in ("Convolution", "Deconvolution"):
        return str(layer.convolution_param.num_output)
    return str(layer.inner_product_param.num_output) if layer.type == "InnerProduct" else ""


def get_layer_label(layer: caffe_pb2.LayerParameter, rankdir: str, display_lrm: bool = False) -> str:
    """Return what a layer's node shows: name, type, the window of a spatial layer, and multipliers on request."""
    kind = layer.type
    if kind == "Pooling":
        kind += f" {get_pooling_types_dict()[layer.pooling_param.pool]}"
    parts = [printable(layer.name), f"({printable(kind)})", *_window(layer)]
    if display_lrm and any(rates := get_layer_lr_mult(layer)):
        parts.append(f"lr mult: {rates[0]:.1f}, {rates[1]:.1f}")
    # Across, nodes are stacked and a line each costs nothing; down the page, width is free.
    return (" " if rankdir in ("TB", "BT") else "\n").join(parts)


def _window(layer: caffe_pb2.LayerParameter) -> Iterator[str]:
    if layer.type == "Pooling":
        pool = layer.pooling_param
        sides: dict[str, Any] = {"kernel size": pool.kernel_size, "stride": pool.stride, "pad": pool.pad}
        pairs = {"kernel size": "kernel", "stride": "stride", "pad": "pad"}
        message: Any = pool
    elif layer.type in ("Convolution", "Deconvolution"):
        conv = layer.convolution_param
        sides = {
            name: "x".join(map(str, values)) or default
            for name, values, default in (
                ("kernel size", conv.kernel_size, "1"), ("stride", conv.stride, "1"), ("pad", conv.pad, "0")
            )
        }  # fmt: skip
        pairs = {"kernel size": "kernel", "stride": "stride", "pad": "pad"}
        message = conv
    else:
        return
    for name, value in sides.items():
        height, width = f"{pairs[name]}_h", f"{pairs[name]}_w"
        if message.HasField(height) or message.HasField(width):
            value = f"{getattr(message, height)}x{getattr(message, width)}"
        yield f"{name}: {value}"


def choose_color_by_layertype(layertype: str) -> str:
    """Return the colour of a layer type's nodes."""
    return _COLOURS.get(layertype, LAYER_STYLE_DEFAULT["fillcolor"])


def get_pydot_graph(
    caffe_net: caffe_pb2.NetParameter,
    rankdir: str,
    label_edges: bool = True,
    phase: int | None = None,
    display_lrm: bool = False,
) -> Any:
    """Return a net as a graph of `pydot`: its layers, the blobs between them, and what connects them.

    ``phase`` leaves out the layers of the other one.  Nets of any generation are taken, upgraded as Caffe does.
    """
    nodes, edges = _parts(caffe_net, rankdir, label_edges, phase, display_lrm)
    pydot = _pydot()
    graph = pydot.Dot(_quoted(_plain(caffe_net.name or "Net")), graph_type="digraph", rankdir=rankdir)
    for number, node in enumerate(nodes):
        label = _record(node.label) if node.is_layer else _plain(node.label)
        style = {**(LAYER_STYLE_DEFAULT if node.is_layer else BLOB_STYLE), "fillcolor": node.colour}
        graph.add_node(pydot.Node(f"node{number}", label=_quoted(label), **_styled(style)))
    for edge in edges:
        graph.add_edge(pydot.Edge(f"node{edge.start}", f"node{edge.end}", label=_quoted(edge.label)))
    return graph


def _parts(
    caffe_net: caffe_pb2.NetParameter, rankdir: str, label_edges: bool, phase: int | None, display_lrm: bool
) -> tuple[list[Node], list[Edge]]:
    """Return what is drawn: layers and blobs, in the order of the net, and what connects them."""
    if rankdir not in _RANKDIRS:
        raise WrongValue(f"rankdir {rankdir!r} is not {one_of(_RANKDIRS)}")
    nodes: list[Node] = []
    edges: list[Edge] = []
    blobs: dict[str, int] = {}

    def add(node: Node) -> int:
        nodes.append(node)
        return len(nodes) - 1

    def blob(name: str) -> int:
        if name not in blobs:
            blobs[name] = add(Node(name, BLOB_STYLE["fillcolor"], False))
        return blobs[name]

    for layer in upgrade_net(caffe_net).layer:
        if phase is not None and not _is_in(layer, phase):
            continue
        in_place = len(layer.bottom) == 1 and list(layer.top) == list(layer.bottom)
        colour = NEURON_LAYER_STYLE["fillcolor"] if in_place else choose_color_by_layertype(layer.type)
        number = add(Node(get_layer_label(layer, rankdir, display_lrm), colour, True))
        edges += [Edge(blob(name), number, "") for name in layer.bottom]
        label = get_edge_label(layer) if label_edges else ""
        edges += [Edge(number, blob(name), label) for name in layer.top]
    return nodes, edges


def _is_in(layer: caffe_pb2.LayerParameter, phase: int) -> bool:
    included = not layer.include or any(rule.phase == phase for rule in layer.include)
    return included and all(rule.phase != phase for rule in layer.exclude)


def _styled(style: dict[str, str]) -> dict[str, str]:
    return {name: _quoted(value) for name, value in style.items()}


def _record(label: str) -> str:
    """Escape what has a meaning in the label of a record."""
    return "".join(f"\\{char}" if char in "{}|<>\\" else char for char in label)


def _quoted(text: str) -> str:
    """Return text, `_record`'s escapes included, as a quoted string of Graphviz that shows it line by line."""
    lines = (printable(line).replace('"', '\\"') for line in text.split("\n"))
    return '"' + "\\n".join(lines) + '"'


def _plain(text: str) -> str:
    """Return text without line breaks, its backslashes doubled: Graphviz reads one as the start of an escape."""
    return printable(text).replace("\\", "\\\\")


def draw_net(
    caffe_net: caffe_pb2.NetParameter,
    rankdir: str,
    ext: str = "png",
    phase: int | None = None,
    display_lrm: bool = False,
) -> bytes:
    """Return a net as the bytes of an image: ``ext`` is a format of Graphviz, ``raw`` its own text.

    Where Graphviz or pydot is not installed, matplotlib draws a plainer image.
    """
    if not ext.isalnum():
        raise WrongValue(f"image format {ext!r} is not the name of one; give png, svg, jpg or raw")
    program = None if find_spec("pydot") is None else _program()
    if program is None and ext != "raw":
        return plain_drawing.draw(*_parts(caffe_net, rankdir, True, phase, display_lrm), rankdir, ext)
    graph = get_pydot_graph(caffe_net, rankdir, phase=phase, display_lrm=display_lrm)
    if ext == "raw":
        text: str = graph.to_string()
        return text.encode()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pydot prints what Graphviz says of an error
            image: bytes = graph.create(prog=program, format=ext)
    except (OSError, AssertionError) as error:
        reason = f" ({error})" if isinstance(error, OSError) else ""
        raise IlgnetError(f"Graphviz cannot write {ext}{reason}; give png or svg") from error
    return image


def draw_net_to_file(
    caffe_net: caffe_pb2.NetParameter,
    filename: str | os.PathLike[str],
    rankdir: str = "LR",
    phase: int | None = None,
    display_lrm: bool = False,
) -> None:
    """Draw a net into a file, in the format that its suffix names; ``.raw`` is Graphviz's own text."""
    ext = Path(filename).suffix[1:]
    image = draw_net(caffe_net, rankdir, ext, phase, display_lrm)
    with atomic_file(filename) as file:
        file.write(image)


def _pydot() -> Any:
    try:
        return import_module("pydot")
    except ImportError as error:
        raise IlgnetError(
            f"get_pydot_graph needs pydot ({error}); pip install 'ilgnet_repro[draw]'"
        ) from error


def _program() -> str | None:
    """The program that draws graphs, in the PATH or beside this Python, where pip puts it."""
    beside = str(Path(sys.executable).parent)
    return next(
        filter(None, (shutil.which(name) or shutil.which(name, path=beside) for name in _PROGRAMS)), None
    )
