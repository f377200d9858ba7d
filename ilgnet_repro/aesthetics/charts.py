"""The report's charts, as SVG in the page's text colour."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import Metrics

# Drawn in these, then replaced by the page's CSS colours, so that one chart suits light and dark.
_TEXT, _FIRST, _SECOND, _GRID = "#010203", "#010204", "#010205", "#010206"
_CSS = {
    _TEXT: "currentColor",
    _FIRST: "var(--first)",
    _SECOND: "var(--second)",
    _GRID: "var(--rule)",
}


@dataclass(frozen=True)
class Chart:
    """An ``<svg>`` element, from the attributes of its start tag on, and its text for screen readers."""

    rest_of_svg: str
    description: str


def _draw(name: str, description: str, size: tuple[float, float], paint: Callable[[Any], None]) -> Chart:
    """The chart that ``paint`` draws on one pair of axes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # the same ids in every run, so that equal results have equal reports
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _GRID,
        "grid.linewidth": 0.8,
        "legend.frameon": False,
    }
    for part in ("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "text.color"):
        style[part] = _TEXT
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") + len("<svg ") :]
    for drawn, css in _CSS.items():
        svg = svg.replace(drawn, css)
    # Several charts share one page, so ids must be unique.
    for mark in ('id="', 'href="#', "url(#"):
        svg = svg.replace(mark, f"{mark}{name}-")
    return Chart(svg, description)


def _unit_axes(axes: Any, across: str, up: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=across, ylabel=up, aspect="equal")
    axes.plot([0, 1], [0, 1], color=_TEXT, linewidth=0.8, linestyle=":")


def roc(metrics: Metrics, probability: np.ndarray, labels: np.ndarray) -> Chart | None:
    """The ROC curve, or None where one class is missing."""
    if metrics.roc_auc.value is None:
        return None
    from sklearn.metrics import roc_curve

    false_high, true_high, _ = roc_curve(labels, probability)

    def paint(axes: Any) -> None:
        _unit_axes(axes, "low images called high", "high images called high")
        axes.plot(false_high, true_high, color=_FIRST, linewidth=2)

    return _draw("roc", f"ROC curve, area {metrics.roc_auc.value:.4f}", (4.2, 4), paint)


def calibration(metrics: Metrics) -> Chart | None:
    """The reliability diagram, dots sized by their number of images; None without any image."""
    filled = [bin_ for bin_ in metrics.bins if bin_.count]
    if not filled:
        return None
    sizes = [20 + 280 * bin_.count / metrics.count for bin_ in filled]
    across, up = [bin_.mean_probability for bin_ in filled], [bin_.share_high for bin_ in filled]

    def paint(axes: Any) -> None:
        _unit_axes(axes, "mean probability of high", "share of label 1")
        axes.plot(across, up, color=_FIRST, linewidth=1)
        axes.scatter(across, up, s=sizes, color=_FIRST, alpha=0.75, linewidths=0)

    text = f"Reliability diagram, expected calibration error {metrics.calibration_error.value:.4f}"
    return _draw("calibration", text, (4.2, 4), paint)


def histogram(probability: np.ndarray, labels: np.ndarray) -> Chart | None:
    """Histograms of the probabilities of the two labels; None without any image."""
    if not len(labels):
        return None
    edges = np.linspace(0, 1, 41)

    def paint(axes: Any) -> None:
        for label, colour, name in ((0, _SECOND, "label 0, low"), (1, _FIRST, "label 1, high")):
            axes.hist(probability[labels == label], edges, color=colour, alpha=0.6, label=name)
        axes.axvline(0.5, color=_TEXT, linewidth=0.8, linestyle=":")
        axes.set(xlim=(0, 1), xlabel="probability of high", ylabel="images")
        axes.legend()

    return _draw("histogram", "Histogram of the probability of high, by label", (8.6, 3.2), paint)


def confusion(metrics: Metrics) -> Chart | None:
    """The confusion matrix, shaded by share of its label; None without any image."""
    if not metrics.count:
        return None
    from matplotlib.patches import Rectangle

    def paint(axes: Any) -> None:
        axes.grid(False)
        axes.set(
            xlim=(0, 2), ylim=(2, 0), xticks=(0.5, 1.5), yticks=(0.5, 1.5), aspect="equal",
            xticklabels=("low", "high"), yticklabels=("low", "high"), xlabel="answer", ylabel="label",
        )  # fmt: skip
        for label, row in enumerate(metrics.confusion):
            for answer, count in enumerate(row):
                share = count / sum(row) if sum(row) else 0.0
                colour = _FIRST if label == answer else _SECOND
                axes.add_patch(
                    Rectangle((answer, label), 1, 1, facecolor=colour, alpha=0.08 + 0.5 * share, linewidth=0)
                )
                text = f"{count:,}\n{share:.1%}"
                axes.text(answer + 0.5, label + 0.5, text, ha="center", va="center", fontsize=12)

    (low, wrong_low), (wrong_high, high) = metrics.confusion
    text = f"Confusion matrix: low {low} right, {wrong_low} wrong; high {high} right, {wrong_high} wrong"
    return _draw("confusion", text, (4.2, 4), paint)


def batches(ours: Sequence[float], theirs: Sequence[float] | None = None) -> Chart | None:
    """Accuracy of each batch, and of the authors' log where given; None without any batch."""
    if not ours:
        return None

    def paint(axes: Any) -> None:
        axes.plot(range(len(ours)), ours, color=_FIRST, marker="o", markersize=4, label="this run")
        if theirs:
            axes.plot(
                range(len(theirs)), theirs, color=_SECOND, marker="s", markersize=4, linestyle="--",
                label="the authors' log",
            )  # fmt: skip
        axes.set(xlabel="batch", ylabel="accuracy")
        axes.legend()

    text = "Accuracy of each batch" + (", this run and the authors' log" if theirs else "")
    return _draw("batches", text, (8.6, 3.2), paint)
