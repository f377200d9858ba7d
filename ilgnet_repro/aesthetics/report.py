"""The report of a run as files: one HTML page that needs nothing beside it, and the same as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import files as strict_json
from ..errors import FormatError, html_text
from ..files import atomic_file
from . import charts
from .intervals import Interval, Measured, wilson
from .metrics import FIGURES, Metrics
from .published import AVA2_VAL_IN_AVA1_TRAIN
from .results import Source
from .style import STYLE
from .summary import RANDOM_WEIGHTS, Pictures, Report, Thumbnail, report_values, thumbnails
from .verdict import Verdict

_GENERATOR = '<meta name="generator" content="ilgnet_repro report">'
_VALUES = {"run", "warnings", "protocol_accuracy", "metrics", "verdicts"}  # keys of `report_values`


def is_report_page(path: Path) -> bool:
    """Whether a file is a page that `write_report` wrote."""
    with open(path, "rb") as file:
        return _GENERATOR.encode() in file.read(1000)


def is_report_values(path: Path) -> bool:
    """Whether a file is a JSON that `write_report` wrote."""
    values = json.loads(path.read_bytes())
    return isinstance(values, dict) and values.keys() >= _VALUES


def write_report(
    report: Report,
    page: str | os.PathLike[str],
    values: str | os.PathLike[str] | None = None,
    pictures: Pictures | None = None,
) -> None:
    """Write the HTML page, and the JSON to ``values`` (default: the page's name with .json)."""
    html = render(report, thumbnails(report, pictures) if pictures else ())
    target = Path(values) if values else Path(page).with_suffix(".json")
    if target == Path(page):
        raise FormatError(f"{page}: the page and the JSON would be one file; end the page's name in .html")
    with atomic_file(page, "w") as file:
        file.write(html)
    with atomic_file(target, "w") as file:
        file.write(strict_json.dumps(report_values(report), indent=1))


def render(report: Report, pictures: Sequence[tuple[str, Sequence[Thumbnail]]] = ()) -> str:
    """The whole page; ``pictures`` are rows of thumbnails with their titles."""
    run = report.run
    title = f"{run.dataset.upper()}, protocol “{run.protocol}”"
    sections = [
        _section("Accuracy", _headline(report), report, bare=True),
        _section("All figures", _figures(report.metrics), report),
        _section("Charts", _charts(report), report),
    ]
    if report.verdicts:
        sections.append(_section("Beside the authors' log", _verdicts(report), report))
    if report.mcnemar:
        sections.append(_section(f"Beside {report.other_name}", _other(report), report))
    if pictures:
        sections.append(_section("Pictures", "".join(_row(*row) for row in pictures), report))
    sections.append(_section("How it was made", _provenance(report), report))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{_GENERATOR}<title>{html_text(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>{html_text(title)}</h1><p class="soft">Weights: {html_text(run.weights.name)}</p></header>'
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, content: str, report: Report, bare: bool = False) -> str:
    """A section; where the weights are random each one says so, for it may be read or printed alone."""
    notes = list(report.warnings) if bare else [RANDOM_WEIGHTS] if report.run.random_weights else []
    banners = "".join(f'<p class="banner" role="note">{html_text(note)}</p>' for note in notes)
    return f"<section><h2>{html_text(title)}</h2>{banners}{content}</section>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, escaped here; the first cell of each row is its header."""
    head = "".join(f'<th scope="col">{html_text(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{html_text(first)}</th>'
        + "".join(f"<td>{html_text(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f"<table><caption>{html_text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _range(interval: Interval | None) -> str:
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f} %" if interval else ""


def _headline(report: Report) -> str:
    run, figure = report.run, report.figure
    interval = wilson(run.correct, run.count)
    value = _percent(run.correct / run.count) if run.count else "no picture"
    parts = [
        f'<p class="headline">{value}</p><p>{run.correct:,} of {run.count:,} right as the protocol counts'
        f" them; 95 % Wilson interval {_range(interval)}.</p>"
    ]
    if figure:
        rows = [
            ("this run", value, f"{run.correct:,} / {run.count:,}", _range(interval)),
            ("published", _percent(figure.accuracy), f"{figure.correct:,} / {figure.count:,}",
             _range(figure.interval)),
            ("always “high”, whole val list", _percent(figure.always_high),
             f"{figure.high_rows:,} / {figure.rows:,}", ""),
        ]  # fmt: skip
        parts.append(_table(f"Source: {figure.source}", ("", "accuracy", "pictures", "95 %"), rows))
    if report.compatibility:
        test = report.compatibility
        word = "compatible" if test.compatible else "not compatible"
        parts.append(
            f"<p>This run is <strong>{word}</strong> with the published figure: {100 * test.difference:+.2f}"
            f" points, Fisher's exact p = {test.p_value:.3g}.</p>"
        )
    if run.dataset == "ava2":
        parts.append(
            f"<p class=\"soft\">{AVA2_VAL_IN_AVA1_TRAIN:,} of AVA2's val pictures are in AVA1's train list:"
            " weights trained on AVA1 have seen them.</p>"
        )
    return "".join(parts)


def _figures(metrics: Metrics) -> str:
    def row(name: str, measured: Measured, percent: bool = False) -> tuple[str, str, str]:
        if measured.value is None:
            return name, "–", measured.reason
        text = _percent(measured.value) if percent else f"{measured.value:.6g}"
        return name, text, _range(measured.interval)

    rows = [row(name, getattr(metrics, field), percent) for name, field, percent in FIGURES]
    (low, wrong_low), (wrong_high, high) = metrics.confusion
    return (
        _table(f"Over {metrics.count:,} pictures", ("figure", "value", "95 % interval, or why none"), rows)
        + "<h3>Confusion matrix</h3>"
        + _table(
            f"Pictures by label and answer; {metrics.ties} at exactly one half, counted wrong as Caffe does",
            ("label", "answered low", "answered high"),
            [("0, low", f"{low:,}", f"{wrong_low:,}"), ("1, high", f"{wrong_high:,}", f"{high:,}")],
        )
    )


def _charts(report: Report) -> str:
    pictures, size = report.run.pictures, report.log.batch_size if report.log else None
    theirs = [count / (size or report.run.batch_size) for count in report.log_counts]
    ours = [batch.accuracy for batch in report.run.batches]
    small = (
        (charts.roc(report.metrics, pictures.probability, pictures.labels), "ROC curve"),
        (charts.calibration(report.metrics), "Calibration"),
        (charts.confusion(report.metrics), "Confusion"),
    )
    wide = (
        (charts.histogram(pictures.probability, pictures.labels), "Scores by label"),
        (charts.batches(ours[: len(theirs) or None], theirs), "Accuracy batch by batch, as read"),
    )
    return f'<div class="charts">{_drawn(small)}</div>{_drawn(wide)}'


def _drawn(drawings: Iterable[tuple[str | None, str]]) -> str:
    return "".join(
        f"<figure>{svg}<figcaption>{html_text(name)}</figcaption></figure>" for svg, name in drawings if svg
    )


def _verdicts(report: Report) -> str:
    def rows(verdict: Verdict) -> list[tuple[str, str]]:
        chi2 = "–" if verdict.chi2 is None else f"{verdict.chi2:.4g}, p = {verdict.batches_p:.3g}"
        correlation = "–" if verdict.correlation is None else f"{verdict.correlation:.3f}"
        equal = f"{verdict.equal} of {verdict.batches}; {verdict.expected_equal:.1f} by chance"
        return [
            ("verdict", verdict.verdict),
            ("right in all", f"{verdict.ours:,} against {verdict.theirs:,} of {verdict.count:,}"),
            ("equal batches", equal),
            ("total: Fisher's exact p", f"{verdict.total_p:.3g}"),
            ("batches: χ² and p", chi2),
            ("correlation over batches", correlation),
            ("rows in the log's order", "yes" if verdict.same_rows else "not seen"),
        ]

    file = report.log.file if report.log else ""
    return "".join(
        _table(f"Rows {verdict.order}; log {file}", ("statistic", "value"), rows(verdict))
        + "".join(f"<p>{html_text(text)}</p>" for text in verdict.explanations)
        for verdict in report.verdicts
    )


def _other(report: Report) -> str:
    test = report.mcnemar
    assert test is not None
    chi2 = "–" if test.chi2 is None else f"{test.chi2:.4g}, p = {test.chi2_p:.3g}"
    rows = [
        ("right only here", f"{test.only_first:,}"),
        ("right only there", f"{test.only_second:,}"),
        ("exact p", f"{test.exact_p:.3g}"),
        ("χ² with continuity correction", chi2),
    ]
    return _table("McNemar's test on the pictures both runs read", ("statistic", "value"), rows)


def _row(title: str, pictures: Sequence[Thumbnail]) -> str:
    def one(picture: Thumbnail) -> str:
        text = f"{picture.name}, label {picture.label}, probability of high {picture.probability:.4f}"
        image = (
            f'<img src="data:image/jpeg;base64,{picture.data}" alt="{html_text(text)}">'
            if picture.data
            else f'<div class="none" role="img" aria-label="{html_text(text)}">no picture</div>'
        )
        caption = f"{html_text(picture.name)}<br>{picture.probability:.4f}, label {picture.label}"
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"

    if not pictures:
        return f'<h3>{html_text(title)}</h3><p class="soft">None.</p>'
    return f'<h3>{html_text(title)}</h3><div class="pictures">{"".join(one(p) for p in pictures)}</div>'


def _provenance(report: Report) -> str:
    run = report.run

    def described(source: Source | None) -> str:
        if source is None:
            return "none"
        known = f"known: {source.known_as}" if source.known_as else "not a released file"
        return f"{source.name}; SHA-256 {source.sha256 or 'not taken'}; {known}"

    rows = [
        ("weights", "seeded random weights" if run.random_weights else described(run.weights)),
        ("partition", described(run.partition)),
        ("mean", described(run.mean)),
        ("preprocessing", run.preprocessing),
        ("computed by", run.computed),
        ("order of the list", run.list_order),
        ("batches", f"{len(run.batches):,} of {run.batch_size}"),
        ("pictures", f"{len(run.pictures):,}"),
        ("time", f"{run.elapsed:.1f} s"),
        *((f"version of {name}", version) for name, version in sorted(run.versions.items())),
    ]
    return (
        _table("Inputs and versions", ("what", "value"), rows)
        + f"<h3>Command</h3><pre>{html_text(run.command)}</pre>"
    )
