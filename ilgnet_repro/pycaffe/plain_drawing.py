"""A net drawn by matplotlib, where Graphviz is not installed: plainer, its nodes in rows by their depth."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import one_of, printable
from .failures import WrongValue

FORMATS = ("jpg", "jpeg", "pdf", "png", "svg")
_ALONG, _ACROSS = (
    {True: (1.9, 0.85), False: (1.1, 2.3)},
    {True: 1, False: 0},
)  # inches of a node, by direction
_DPI, _LONGEST = 72, 60_000  # pixels: Agg draws no side of 2**16


class Node(NamedTuple):
    """A layer or a blob: what it shows, and its colour."""

    label: str
    colour: str
    is_layer: bool


class Edge(NamedTuple):
    """A connection between two nodes, by their numbers."""

    start: int
    end: int
    label: str


def draw(nodes: Sequence[Node], edges: Sequence[Edge], rankdir: str, ext: str) -> bytes:
    """Return the image of a graph whose edges are in the order of the net."""
    if ext not in FORMATS:
        raise WrongValue(f"image format {ext!r} needs Graphviz; without it give {one_of(FORMATS)}")
    places = _places(nodes, edges)
    is_across = rankdir in ("LR", "RL")
    along, beside = _ALONG[is_across]
    depth = 1 + max((rank for rank, _ in places), default=0)
    breadth = 1 + max((row for _, row in places), default=0)
    sides = (depth * along, breadth * beside) if is_across else (breadth * beside, depth * along)
    dpi = min(_DPI, int(_LONGEST / max(sides)))
    figure = Figure(figsize=sides, dpi=dpi)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.5, (depth if is_across else breadth) - 0.5)
    axes.set_ylim(-0.5, (breadth if is_across else depth) - 0.5)
    if rankdir in ("RL",):
        axes.invert_xaxis()
    if rankdir == "TB":
        axes.invert_yaxis()
    at = [(rank, row) if is_across else (row, rank) for rank, row in places]
    for edge in edges:
        arrow = {"arrowstyle": "->", "shrinkA": 22, "shrinkB": 22, "connectionstyle": "arc3,rad=0.12"}
        axes.annotate("", at[edge.end], at[edge.start], arrowprops=arrow)
        if edge.label:
            (x, y), (x2, y2) = at[edge.start], at[edge.end]
            axes.text((x + x2) / 2, (y + y2) / 2, edge.label, fontsize=7, color="#555555", parse_math=False)
    for node, place in zip(nodes, at, strict=True):
        box = {
            "boxstyle": "square" if node.is_layer else "round",
            "facecolor": node.colour,
            "edgecolor": "black",
        }
        label = "\n".join(map(printable, node.label.split("\n")))
        axes.text(*place, label, ha="center", va="center", fontsize=7, bbox=box, parse_math=False)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "net"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        figure.savefig(file, format=ext)
    return file.getvalue()


def _places(nodes: Sequence[Node], edges: Sequence[Edge]) -> list[tuple[int, int]]:
    """Give each node its depth and its row there; an in-place layer follows the blob that it writes."""
    ranks = [0] * len(nodes)
    seen = [False] * len(nodes)
    for edge in edges:
        if not seen[edge.end] or nodes[edge.end].is_layer:
            ranks[edge.end] = max(ranks[edge.end], ranks[edge.start] + 1)
        seen[edge.start] = seen[edge.end] = True
    used: dict[int, int] = {}
    places = []
    for rank in ranks:
        row = used.get(rank, 0)
        used[rank] = row + 1
        places.append((rank, row))
    return places
