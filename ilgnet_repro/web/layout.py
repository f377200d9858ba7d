"""A layered layout of a directed graph without cycles: ranks by the longest path, few crossings, straight long edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import GraphError

SWEEPS = 8  # of the order within ranks, then of the positions; more change little
MOST_POINTS = 100_000  # boxes, and bends of the edges between them


@dataclass(frozen=True)
class Layout:
    """The centre of each box, each edge's points from box to box, and the size of the whole."""

    centres: tuple[tuple[float, float], ...]
    paths: tuple[tuple[tuple[float, float], ...], ...]
    width: float
    height: float


def place_boxes(
    sizes: Sequence[tuple[float, float]],
    edges: Sequence[tuple[int, int]],
    gap: tuple[float, float] = (24, 36),
) -> Layout:
    """Place boxes of ``sizes`` (width, height) so that every edge, from a box to a later one, goes down.

    Raises GraphError for a graph that is too large.
    """
    ranks = [0] * len(sizes)
    for start, end in sorted(edges, key=lambda edge: edge[1]):
        ranks[end] = max(ranks[end], ranks[start] + 1)
    if len(sizes) + sum(max(ranks[end] - ranks[start] - 1, 0) for start, end in edges) > MOST_POINTS:
        raise GraphError(f"the net is too large to draw: over {MOST_POINTS:,} boxes and bends")
    # A long edge passes through a point in each rank between its ends.
    widths, heights, levels = [w for w, _ in sizes], [h for _, h in sizes], list(ranks)
    chains = []
    for start, end in edges:
        chain = [start]
        for rank in range(ranks[start] + 1, ranks[end]):
            chain.append(len(widths))
            widths.append(0.0)
            heights.append(0.0)
            levels.append(rank)
        chains.append([*chain, end])
    above: list[list[int]] = [[] for _ in widths]
    below: list[list[int]] = [[] for _ in widths]
    for chain in chains:
        for first, second in pairwise(chain):
            below[first].append(second)
            above[second].append(first)
    rows: list[list[int]] = [[] for _ in range(max(levels, default=-1) + 1)]
    for point, level in enumerate(levels):
        rows[level].append(point)
    _order(rows, above, below)
    across = _positions(rows, widths, above, below, gap[0])
    down, tops, talls = 0.0, [], []
    for row in rows:
        tall = max(heights[point] for point in row)
        talls.append(tall)
        tops.append(down + tall / 2)
        down += tall + gap[1]
    places = [(across[point], tops[levels[point]]) for point in range(len(widths))]
    paths = []
    for chain in chains:
        (x1, y1), (x2, y2) = places[chain[0]], places[chain[-1]]
        # Vertical beside the boxes of a rank.
        middle = [
            (places[point][0], places[point][1] + side * talls[levels[point]] / 2)
            for point in chain[1:-1]
            for side in (-1, 1)
        ]
        paths.append(((x1, y1 + heights[chain[0]] / 2), *middle, (x2, y2 - heights[chain[-1]] / 2)))
    width = max((across[point] + widths[point] / 2 for point in range(len(widths))), default=0.0)
    return Layout(tuple(places[: len(sizes)]), tuple(paths), width, max(down - gap[1], 0.0))


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Sort each row by the mean position of its neighbours in the row before, downwards and upwards in turn."""
    position = {point: float(index) for row in rows for index, point in enumerate(row)}
    for sweep in range(SWEEPS):
        near = below if sweep % 2 else above
        for row in reversed(rows) if sweep % 2 else rows:
            means = {
                point: sum(position[one] for one in near[point]) / len(near[point])
                if near[point]
                else position[point]
                for point in row
            }
            row.sort(key=means.__getitem__)
            position.update((point, float(index)) for index, point in enumerate(row))


def _positions(
    rows: list[list[int]], widths: list[float], above: list[list[int]], below: list[list[int]], gap: float
) -> list[float]:
    """Return each point's x: near its neighbours' mean, in the order of its row, without overlap."""
    across = [0.0] * len(widths)
    for row in rows:
        at = 0.0
        for point in row:
            across[point] = at + widths[point] / 2
            at += widths[point] + gap
    for sweep in range(SWEEPS):
        near = below if sweep % 2 else above
        for row in reversed(rows) if sweep % 2 else rows:
            wanted = [
                sum(across[one] for one in near[point]) / len(near[point]) if near[point] else across[point]
                for point in row
            ]
            for point, x in zip(row, _spread(wanted, [widths[point] for point in row], gap), strict=True):
                across[point] = x
    left = min((across[point] - widths[point] / 2 for point in range(len(widths))), default=0.0)
    return [x - left for x in across]


def _spread(wanted: list[float], widths: list[float], gap: float) -> list[float]:
    """Return the positions nearest to ``wanted`` (least squares) that keep order and gaps: pool adjacent violators."""
    offsets, at = [], 0.0
    for index, width in enumerate(widths):
        at += width / 2 if index else 0.0
        offsets.append(at)
        at += width / 2 + gap
    blocks: list[tuple[float, int]] = []  # the sum of a block's shifts, and its count
    for want, offset in zip(wanted, offsets, strict=True):
        total, count = want - offset, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            more, others = blocks.pop()
            total, count = total + more, count + others
        blocks.append((total, count))
    shifts = [total / count for total, count in blocks for _ in range(count)]
    return [shift + offset for shift, offset in zip(shifts, offsets, strict=True)]
