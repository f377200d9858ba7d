"""A net as a drawing: a box per layer, with the in-place layers after it, and an edge per blob between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..pages import fill_template
from .layout import place_boxes
from .rows import OpenShape, show_shape

LINE, CHARACTER, PADDING, MARGIN = 16.0, 7.4, 8.0, 16.0  # of 12 px text
WIDEST = 44  # characters of a line; longer ones are cut, and whole in the title


class Drawn(Protocol):
    """A layer that can be drawn: `audit.LayerAudit`, or a `Row`."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def tops(self) -> Sequence[OpenShape]: ...
    @property
    def parameters(self) -> int: ...
    @property
    def multiply_adds(self) -> int: ...
    @property
    def problem(self) -> str: ...
    @property
    def need(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def writes(self) -> tuple[str, ...]: ...
    @property
    def in_place(self) -> bool: ...


class DrawnNet(Protocol):
    """A net that can be drawn: an `Audit`, or `Rows`."""

    @property
    def net(self) -> str: ...
    @property
    def layers(self) -> Sequence[Drawn]: ...
    @property
    def parameters(self) -> int: ...
    @property
    def multiply_adds(self) -> int: ...


@dataclass(frozen=True)
class Box:
    """One layer and the in-place layers on its top: their lines of text, and what they cost.

    ``index`` is the position of the first of them in the net.
    """

    layers: tuple[Drawn, ...]
    lines: tuple[str, ...]
    index: int = 0
    x: float = 0.0  # of its left upper corner
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0

    @property
    def blob(self) -> str:
        """The last value that the box writes, or "" where it writes none."""
        return self.layers[-1].writes[0] if self.layers[-1].writes else ""

    @property
    def kind(self) -> str:
        """The CSS class: what kind of layer it is."""
        return "problem" if any(layer.problem for layer in self.layers) else (
            "weights" if self.layers[0].parameters else "input" if not self.layers[0].reads else "plain"
        )  # fmt: skip

    @property
    def title(self) -> str:
        """The whole text of its layers."""
        return " + ".join(describe(layer) for layer in self.layers)


@dataclass(frozen=True)
class Edge:
    """A blob that one box reads from another, as the points of a line; ``start`` and ``end`` are their positions."""

    blob: str
    path: str
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Drawing:
    """A net's boxes and edges, in pixels."""

    net: DrawnNet
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    width: float
    height: float
    rows: tuple[tuple[int, ...], ...] = ()  # of each box, the positions of its layers in the net


def describe(layer: Drawn) -> str:
    """Return a layer's name, type, shapes, parameters, multiply-adds, and what is wrong with it."""
    parts = [f"{layer.name} ({layer.type})"]
    if layer.tops:
        parts.append("shape " + ", ".join(map(show_shape, layer.tops)))
    if layer.parameters:
        parts.append(f"{layer.parameters:,} parameters")
    if layer.multiply_adds:
        parts.append(f"{layer.multiply_adds:,} multiply-adds")
    return "; ".join([*parts, *filter(None, (layer.problem, layer.need, layer.note))])


def draw(net: DrawnNet) -> Drawing:
    """Place a net's layers.  Raises GraphError for a net that is too large to draw."""
    rows = _groups(net)
    groups = [[net.layers[row] for row in box] for box in rows]
    boxes = [Box(tuple(layers), _lines(layers), box[0]) for layers, box in zip(groups, rows, strict=True)]
    sizes = [
        (max(map(len, box.lines)) * CHARACTER + 2 * PADDING, len(box.lines) * LINE + 2 * PADDING)
        for box in boxes
    ]
    writer: dict[str, int] = {}
    edges: dict[tuple[int, int, str], None] = {}
    for index, layers in enumerate(groups):
        for layer in layers:
            for name in layer.reads:
                if writer.get(name, index) != index:
                    edges[writer[name], index, name] = None
            for name in layer.writes:
                writer[name] = index
    layout = place_boxes(sizes, [(start, end) for start, end, _ in edges])
    placed = [
        Box(box.layers, box.lines, box.index, x - width / 2 + MARGIN, y - height / 2 + MARGIN, width, height)
        for box, (x, y), (width, height) in zip(boxes, layout.centres, sizes, strict=True)
    ]
    lines = [
        Edge(name, _path(points), start, end)
        for (start, end, name), points in zip(edges, layout.paths, strict=True)
    ]
    return Drawing(
        net, tuple(placed), tuple(lines), layout.width + 2 * MARGIN, layout.height + 2 * MARGIN, tuple(rows)
    )


def svg(drawing: Drawing, *, standalone: bool = True) -> str:
    """Return the drawing as SVG; ``standalone`` is a file of its own, with its styles."""
    return fill_template(
        __package__, "net_graph.svg.j2", drawing=drawing, standalone=standalone, line=LINE, padding=PADDING
    )


def _groups(net: DrawnNet) -> list[tuple[int, ...]]:
    """Group each layer with the in-place layers that replace its top; layers are their positions."""
    groups: list[list[int]] = []
    last: dict[str, int] = {}  # value -> its box
    for row, layer in enumerate(net.layers):
        is_on_top = layer.in_place and len(layer.reads) == 1 and layer.reads[0] in last
        if is_on_top:
            index = last[layer.reads[0]]
            groups[index].append(row)
        else:
            index = len(groups)
            groups.append([row])
        last.update((name, index) for name in layer.writes)
    return [tuple(group) for group in groups]


def _lines(layers: list[Drawn]) -> tuple[str, ...]:
    first = layers[0]
    lines = [f"{first.name} ({first.type})"]
    lines += [f"+ {layer.name} ({layer.type})" for layer in layers[1:]]
    lines += [show_shape(shape) for shape in first.tops[:3]]
    parameters = sum(layer.parameters for layer in layers)
    products = sum(layer.multiply_adds for layer in layers)
    costs = [f"{_short(parameters)} parameters"] * bool(parameters)
    costs += [f"{_short(products)} multiply-adds"] * bool(products)
    lines += [", ".join(costs)] * bool(costs)
    if any(layer.problem for layer in layers):
        lines.append("not supported")
    elif any(layer.need for layer in layers):
        lines.append("shape needed")
    return tuple(line if len(line) <= WIDEST else line[: WIDEST - 1] + "…" for line in lines)


def _short(number: float) -> str:
    """Return a count in at most four digits, such as 60.97M."""
    units = ["T", "G", "M", "k", ""]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        units.pop()
    return f"{number:.4g}{units[-1]}"


def _path(points: tuple[tuple[float, float], ...]) -> str:
    """Return an edge as SVG: curves that leave and arrive vertically, straight at its bends."""
    (x, y), *rest = ((x + MARGIN, y + MARGIN) for x, y in points)
    parts = [f"M{x:.1f},{y:.1f}"]
    for next_x, next_y in rest:
        middle = (y + next_y) / 2
        parts.append(f"C{x:.1f},{middle:.1f} {next_x:.1f},{middle:.1f} {next_x:.1f},{next_y:.1f}")
        x, y = next_x, next_y
    return " ".join(parts)
