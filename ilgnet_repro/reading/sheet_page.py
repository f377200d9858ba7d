"""The summary of a list or database as a page: HTML that needs no other file, or PNG."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import numpy as np

from ..errors import DataError, html_text, printable
from ..files import atomic_file, atomic_path
from .images import encode_picture
from .sheet import THUMBNAIL, Sheet, histogram

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
:root { color-scheme: light dark; --bar: #3b7dd8; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; } h2 { font-size: 1rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; } td, th { padding: .1rem 1rem .1rem 0; text-align: right; }
td.bar { width: 24rem; text-align: left; } td.bar i { display: block; height: .8rem; background: var(--bar); }
.samples { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; width: 7rem; text-align: center; }
figcaption { font-size: .7rem; overflow-wrap: anywhere; }
.charts { display: flex; flex-wrap: wrap; gap: 2rem; } svg { fill: var(--bar); overflow: visible; }
svg text { fill: currentColor; font-size: 11px; }
"""


def check_page(path: str | os.PathLike[str]) -> None:
    """Raise DataError unless the suffix is one that `write_sheet` knows."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".html", ".htm"):
        raise DataError(f"{path}: suffix {suffix!r} is no kind of page; use .html or .png")


def write_sheet(sheet: Sheet, path: str | os.PathLike[str]) -> None:
    """Write the page; the suffix says which kind, ``.html`` or ``.png``. Raises DataError for another."""
    check_page(path)
    if Path(path).suffix.lower() == ".png":
        _write_png(sheet, path)
    else:
        with atomic_file(path, "w") as file:
            file.write(html_page(sheet))


def html_page(sheet: Sheet) -> str:
    """The page as HTML."""
    title = html_text(sheet.title)
    most = max(sheet.labels.values())
    rows = "".join(
        f"<tr><td>{label}</td><td>{count:,}</td><td>{count / sheet.rows:.2%}</td>"
        f'<td class="bar"><i style="width:{count / most:.2%}"></i></td></tr>'
        for label, count in sheet.labels.items()
    )
    charts = samples = ""
    if sheet.sizes:
        charts = "".join(
            _svg_histogram(name, np.array(sheet.sizes)[:, axis])
            for axis, name in enumerate(("width", "height"))
        )
    for label, chosen in sheet.samples.items():
        figures = "".join(
            f'<figure><img alt="" src="data:image/jpeg;base64,{_base64(sample.thumbnail)}">'
            f"<figcaption>{html_text(sample.name)}<br>{sample.size[0]}×{sample.size[1]}</figcaption></figure>"
            for sample in chosen
        )
        samples += f'<h2>Label {label}</h2><div class="samples">{figures}</div>'
    bad = "".join(f"<li>{html_text(reason)}</li>" for reason in sheet.unreadable)
    return (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>{sheet.rows:,} rows, {len(sheet.labels)} labels</p>"
        f"<table><tr><th>label</th><th>rows</th><th>share</th><th></th></tr>{rows}</table>"
        f'<h2>Sizes of {len(sheet.sizes):,} pictures</h2><div class="charts">{charts}</div>{samples}'
        + (f"<h2>{len(sheet.unreadable)} could not be read</h2><ul>{bad}</ul>" if bad else "")
        + "</html>\n"
    )


def _base64(picture: np.ndarray) -> str:
    return base64.b64encode(encode_picture(picture, "jpg")).decode("ascii")


def _svg_histogram(name: str, values: np.ndarray) -> str:
    """One histogram, its bars told by tooltips."""
    steps = list(histogram(values))
    most = max(count for _, _, count in steps)
    width, height = 360, 120
    each = width / len(steps)
    bars = "".join(
        f'<rect x="{index * each:.1f}" y="{height - count / most * height:.1f}" width="{each * 0.9:.1f}" '
        f'height="{count / most * height:.1f}"><title>{low}–{high}: {count}</title></rect>'
        for index, (low, high, count) in enumerate(steps)
    )
    return (
        f'<svg width="{width}" height="{height + 18}" role="img" aria-label="{name} of the pictures">{bars}'
        f'<text x="0" y="{height + 14}">{name} {values.min()}</text>'
        f'<text x="{width}" y="{height + 14}" text-anchor="end">{values.max()} px</text></svg>'
    )


def _write_png(sheet: Sheet, path: str | os.PathLike[str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = max([len(chosen) for chosen in sheet.samples.values()] + [6])
    figure = Figure(figsize=(across * 1.2, 3 + 1.25 * len(sheet.samples)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [2.4, *[1.0] * len(sheet.samples)]
    grid = figure.add_gridspec(1 + len(sheet.samples), 1, height_ratios=ratios)
    figure.suptitle(f"{printable(sheet.title)}: {sheet.rows:,} rows", parse_math=False)
    across_top = grid[0].subgridspec(1, 3)
    charts = [figure.add_subplot(across_top[column]) for column in range(3)]
    names = [str(label) for label in sheet.labels]
    charts[0].bar(names, list(sheet.labels.values()))
    charts[0].set_title("rows by label", fontsize=9)
    for axis, name in enumerate(("width", "height")):
        if sheet.sizes:
            charts[axis + 1].hist(np.array(sheet.sizes)[:, axis], bins=24)
        charts[axis + 1].set_title(f"{name} of {len(sheet.sizes):,} pictures, px", fontsize=9)
    for line, (label, chosen) in enumerate(sheet.samples.items(), 1):
        axes = figure.add_subplot(grid[line])
        axes.imshow(_strip([sample.thumbnail for sample in chosen], across)[:, :, ::-1])
        axes.set_title(f"label {label}", fontsize=9, loc="left")
        axes.set_axis_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _strip(thumbnails: list[np.ndarray], across: int) -> np.ndarray:
    """Thumbnails side by side, each centred on a white square."""
    strip = np.full((THUMBNAIL, THUMBNAIL * across, 3), 255, np.uint8)
    for index, picture in enumerate(thumbnails):
        top = (THUMBNAIL - picture.shape[0]) // 2
        left = THUMBNAIL * index + (THUMBNAIL - picture.shape[1]) // 2
        strip[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return strip
