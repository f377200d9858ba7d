"""The report of a run as files: one HTML page that needs no other file, and the same figures as JSON."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from .. import opencv as cv2
from ..errors import DataError, FormatError
from ..files import atomic_file, json_text, open_input, parse_json, read_input
from ..pages import fill_template
from ..reading.image_list import find_image
from ..reading.images import decode_file
from . import charts
from .caffe_shuffle import SeedSearch
from .labelled_images import StoredImages
from .proportions import McNemar
from .published import AVA2_VAL_IN_AVA1_TRAIN
from .report_data import RANDOM_WEIGHTS, Report, accuracy_rows, confusion_rows, figure_rows, report_values
from .results import Source
from .verdict import Verdict

ImageLoader = Callable[[str], "np.ndarray | None"]
"""Returns a listed image as (H, W, 3) BGR uint8, or None if there is none."""

THUMBNAIL_SIDE = 160

_GENERATOR = Markup('<meta name="generator" content="ilgnet_repro report">')
_VALUES = {"run", "warnings", "protocol_accuracy", "metrics", "verdicts"}  # keys of `report_values`


def is_report_page(path: Path) -> bool:
    """Whether a file is a page that `write_report` wrote."""
    with open_input(path) as file:
        return _GENERATOR.encode() in file.read(1000)


def is_report_values(path: Path) -> bool:
    """Whether a file is a JSON that `write_report` wrote."""
    values = parse_json(read_input(path))
    return isinstance(values, dict) and values.keys() >= _VALUES


def write_report(
    report: Report,
    page: str | os.PathLike[str],
    values: str | os.PathLike[str] | None = None,
    images: ImageLoader | None = None,
) -> None:
    """Write the HTML page, and the JSON to ``values`` (default: the page's name with .json)."""
    html = render(report, thumbnails(report, images) if images else ())
    target = Path(values) if values else Path(page).with_suffix(".json")
    if target == Path(page):
        raise FormatError(f"{page}: the page and the JSON would be one file; end the page's name in .html")
    with atomic_file(page, "w") as file:
        file.write(html)
    with atomic_file(target, "w") as file:
        file.write(json_text(report_values(report), indent=1))


def folder(root: str | os.PathLike[str]) -> ImageLoader:
    """Listed images as files under ``root``."""

    def read(name: str) -> np.ndarray | None:
        return decode_file(find_image(root, name), cv2.IMREAD_COLOR)

    return read


def stored(database: StoredImages) -> ImageLoader:
    """Listed images as rows of an LMDB."""
    rows = {name: row for row, name in enumerate(database.names)}

    def read(name: str) -> np.ndarray | None:
        try:
            return np.ascontiguousarray(database.image(rows[name]))
        except (KeyError, DataError):
            return None

    return read


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """One image of the page; ``data`` is a base64 JPEG, empty where the image could not be read."""

    name: str
    label: int
    probability: float
    data: str


def thumbnails(
    report: Report, images: ImageLoader, each: int = 8
) -> tuple[tuple[str, tuple[Thumbnail, ...]], ...]:
    """The images scored highest and lowest, and the worst mistakes, with a title for each row."""
    rows = report.run.images
    order = np.argsort(-rows.probability, kind="stable")
    wrong = np.flatnonzero(~rows.correct)
    worst = wrong[np.argsort(-np.abs(rows.probability[wrong] - 0.5), kind="stable")]
    groups: Sequence[tuple[str, np.ndarray]] = (
        ("Scored highest", order[:each]),
        ("Scored lowest", order[::-1][:each]),
        ("Worst mistakes", worst[:each]),
    )
    return tuple(
        (
            title,
            tuple(
                Thumbnail(
                    str(rows.names[k]),
                    int(rows.labels[k]),
                    float(rows.probability[k]),
                    _jpeg(images(str(rows.names[k]))),
                )
                for k in chosen
            ),
        )
        for title, chosen in groups
    )


def _jpeg(image: np.ndarray | None) -> str:
    if image is None:
        return ""
    scale = THUMBNAIL_SIDE / max(image.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return base64.b64encode(encoded.tobytes()).decode()


def render(report: Report, images: Sequence[tuple[str, Sequence[Thumbnail]]] = ()) -> str:
    """The whole page; ``images`` are rows of thumbnails with their titles."""
    run = report.run
    return fill_template(
        "ilgnet_repro.aesthetics",
        "report_page.html.j2",
        title=f"{run.dataset.upper()}, protocol “{run.protocol}”",
        generator=_GENERATOR,
        report=report,
        run=run,
        random_weights=(RANDOM_WEIGHTS,) if run.random_weights else (),
        seen=AVA2_VAL_IN_AVA1_TRAIN,
        accuracy=accuracy_rows(report),
        figures=figure_rows(report.metrics),
        confusion=confusion_rows(report.metrics),
        charts=_charts(report),
        verdicts=[(verdict, _verdict_rows(verdict)) for verdict in report.verdicts],
        mcnemar=_mcnemar_rows(report.mcnemar) if report.mcnemar else (),
        seeds=seed_rows(report.seeds) if report.seeds else (),
        images=images,
        provenance=_provenance(report),
    )


def _charts(report: Report) -> dict[str, charts.Chart | None]:
    images, size = report.run.images, report.log.batch_size if report.log else None
    theirs = [count / (size or report.run.batch_size) for count in report.log_counts]
    ours = [batch.accuracy for batch in report.run.batches]
    return {
        "roc": charts.roc(report.metrics, images.probability, images.labels),
        "calibration": charts.calibration(report.metrics),
        "confusion": charts.confusion(report.metrics),
        "histogram": charts.histogram(images.probability, images.labels),
        "batches": charts.batches(ours[: len(theirs) or None], theirs),
    }


def _verdict_rows(verdict: Verdict) -> list[tuple[str, str]]:
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


def _mcnemar_rows(test: McNemar) -> list[tuple[str, str]]:
    chi2 = "–" if test.chi2 is None else f"{test.chi2:.4g}, p = {test.chi2_p:.3g}"
    return [
        ("images that both read", f"{test.images:,}"),
        ("right only here", f"{test.only_first:,}"),
        ("right only there", f"{test.only_second:,}"),
        ("exact p", f"{test.exact_p:.3g}"),
        ("χ² with continuity correction", chi2),
    ]


def seed_rows(search: SeedSearch) -> list[tuple[str, str, str]]:
    """The best seeds of a search: seed, correlation, and total difference of the counts."""
    return [(str(one.seed), f"{one.correlation:.3f}", f"{one.difference:,}") for one in search.best]


def _provenance(report: Report) -> list[tuple[str, str]]:
    run = report.run

    def described(source: Source | None) -> str:
        if source is None:
            return "none"
        known = f"known: {source.known_as}" if source.known_as else "not a released file"
        return f"{source.name}; SHA-256 {source.sha256 or 'not taken'}; {known}"

    return [
        ("weights", "seeded random weights" if run.random_weights else described(run.weights)),
        ("partition", described(run.partition)),
        ("mean", described(run.mean)),
        ("preprocessing", run.preprocessing),
        ("computed by", run.computed),
        ("order of the list", run.list_order),
        ("batches", f"{len(run.batches):,} of {run.batch_size}"),
        ("images", f"{len(run.images):,}"),
        ("time", f"{run.elapsed:.1f} s"),
        *((f"version of {name}", version) for name, version in sorted(run.versions.items())),
    ]
