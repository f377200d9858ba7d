"""The summary of a list or database as a page: self-contained HTML, or PNG."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import numpy as np

from ..errors import DataError, printable
from ..files import atomic_file, atomic_path
from ..pages import fill_template
from .images import encode_image
from .sheet import THUMBNAIL, Sample, Sheet, histogram


def check_page(path: str | os.PathLike[str]) -> None:
    """Raise DataError unless the suffix is one that `write_sheet` knows."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".html", ".htm"):
        raise DataError(f"{path}: suffix {suffix!r} is not supported; use .html or .png")


def write_sheet(sheet: Sheet, path: str | os.PathLike[str]) -> None:
    """Write the page as ``.html`` or ``.png``, by the suffix. Raises DataError for another."""
    check_page(path)
    if Path(path).suffix.lower() == ".png":
        _write_png(sheet, path)
    else:
        with atomic_file(path, "w") as file:
            file.write(html_page(sheet))


def html_page(sheet: Sheet) -> str:
    """The page as HTML."""
    sizes = np.array(sheet.sizes).reshape(-1, 2)
    sides = dict(zip(("width", "height"), sizes.T, strict=True)) if len(sizes) else {}
    return fill_template(
        "ilgnet_repro.reading",
        "sheet_page.html.j2",
        sheet=sheet,
        histograms={name: list(histogram(values)) for name, values in sides.items()},
        limits={name: (values.min(), values.max()) for name, values in sides.items()},
        jpeg=_jpeg,
    )


def _jpeg(sample: Sample) -> str:
    return base64.b64encode(encode_image(sample.thumbnail, "jpg")).decode("ascii")


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
        charts[axis + 1].set_title(f"{name} of {len(sheet.sizes):,} images, px", fontsize=9)
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
    for index, image in enumerate(thumbnails):
        top = (THUMBNAIL - image.shape[0]) // 2
        left = THUMBNAIL * index + (THUMBNAIL - image.shape[1]) // 2
        strip[top : top + image.shape[0], left : left + image.shape[1]] = image
    return strip
