"""What was published for the models of scores, and the table of docs/model_results.md with ours beside it.

    python -m ilgnet_repro.aesthetics.model_results --write

Ours are read from docs/model_results.json, a list of what `ilgnet test --model` writes as figures.json on the real data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..files import atomic_file, parse_json

FIGURES = ("SRCC", "LCC", "EMD", "MSE", "accuracy")
_ROOT = Path(__file__).parents[2] / "docs"
PAGE, OURS = _ROOT / "model_results.md", _ROOT / "model_results.json"


@dataclass(frozen=True)
class PublishedScores:
    """Published figures of a model on a dataset's test set; ``options`` are those that it was made with."""

    model: str
    data: str
    figures: Mapping[str, float]
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def title(self) -> str:
        """The model as a reader knows it."""
        names = {"nima": "NIMA", "tanet": "TANet", "attributes": "attributes network", "gsfl": "GSFL-Net"}
        parts = [
            "+".join(value) if isinstance(value, (tuple, list)) else str(value)
            for name, value in self.options.items()
            if name != "data"
        ]
        return f"{names.get(self.model, self.model)}{' (' + ', '.join(parts) + ')' if parts else ''}"


_NIMA = "Talebi and Milanfar, 2018; as others quote it"
_TANET = "He et al., IJCAI 2022"
_ABLATION = f"{_TANET}, ablation"
PUBLISHED = (
    PublishedScores("nima", "ava", {"SRCC": 0.510, "LCC": 0.518, "accuracy": 0.8036}, {"backbone": "mobilenet_v1"}, _NIMA),
    PublishedScores("nima", "ava", {"SRCC": 0.592, "LCC": 0.610, "accuracy": 0.8060}, {"backbone": "vgg16"}, _NIMA),
    PublishedScores("nima", "ava", {"SRCC": 0.612, "LCC": 0.638, "accuracy": 0.8151}, {"backbone": "inception_v2"}, _NIMA),
    PublishedScores(
        "tanet", "ava", {"SRCC": 0.758, "LCC": 0.765, "EMD": 0.047, "accuracy": 0.806}, {"data": "ava"}, _TANET
    ),
    PublishedScores("tanet", "tad66k", {"SRCC": 0.513, "LCC": 0.531, "MSE": 0.016}, {"data": "tad66k"}, _TANET),
    PublishedScores(
        "tanet", "tad66k", {"SRCC": 0.440}, {"data": "tad66k", "branches": ("aesthetics",)}, _ABLATION
    ),
    PublishedScores(
        "tanet", "tad66k", {"SRCC": 0.483}, {"data": "tad66k", "branches": ("aesthetics", "theme")}, _ABLATION
    ),
    PublishedScores(
        "tanet", "tad66k", {"SRCC": 0.462}, {"data": "tad66k", "branches": ("aesthetics", "colour")}, _ABLATION
    ),
)  # fmt: skip
_ALL_BRANCHES = ("aesthetics", "theme", "colour")


def find_published(model: str, options: Mapping[str, Any], data: str) -> PublishedScores | None:
    """Return what was published for a model with these options on this data, or None."""
    mine = _key(model, options)
    return next((one for one in PUBLISHED if one.data == data and _key(one.model, one.options) == mine), None)


def _key(model: str, options: Mapping[str, Any]) -> tuple[Any, ...]:
    if model == "nima":
        return model, options.get("backbone", "mobilenet_v1")
    if model == "tanet":
        return model, options.get("data", "tad66k"), tuple(sorted(options.get("branches") or _ALL_BRANCHES))
    return model, tuple(sorted((name, repr(value)) for name, value in options.items()))


# ---------------------------------------------------------------------- the page

_HEAD = """# Models of scores on real data

The published figures of NIMA and TANet beside ours: SRCC and LCC of the scores, EMD with r = 1, MSE of a tenth of the
score, accuracy at a score of 5. Each row of ours is what `ilgnet test --model` measured on the whole published test
set, with 95 % bootstrap intervals; "not run" where nobody has run it on the real data yet. The data sets and the
published weights are not part of this package. GSFL-Net and the attributes network have no row: their published figures
are of other data, or are not stated in what this package was written from. Made by
`python -m ilgnet_repro.aesthetics.model_results --write`.

"""


def results_page(ours: Sequence[Mapping[str, Any]]) -> str:
    """Return the page, from what `ilgnet test --model` wrote."""
    lines = [
        "| model | data | whose | " + " | ".join(FIGURES) + " | images | source |",
        "|---" * (5 + len(FIGURES)) + "|",
    ]
    for published in PUBLISHED:
        cells = [f"{published.figures[name]:.3f}" if name in published.figures else "" for name in FIGURES]
        lines.append(_row(published.title, published.data, "published", *cells, "", published.source))
        mine = [one for one in ours if find_published(one["model"], one["options"], one["data"]) is published]
        if not mine:
            lines.append(_row(published.title, published.data, "ours", *["not run"] * len(FIGURES), "", ""))
        for one in mine:
            measured = [_measured(one["figures"].get(name)) for name in FIGURES]
            lines.append(_row(published.title, published.data, "ours", *measured, f"{one['images']:,}", ""))
    return _HEAD + "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _measured(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return ""
    interval = f" ({figure['low']:.3f} to {figure['high']:.3f})" if figure["low"] is not None else ""
    return f"{figure['value']:.3f}{interval}"


def read_ours(path: Path) -> list[dict[str, Any]]:
    """Return our results; raises FormatError for a file that has another form."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read ({error}); write a list of figures.json") from error
    fields = {"model", "options", "data", "split", "images", "figures"}
    if not isinstance(values, list) or not all(
        isinstance(one, dict) and fields <= one.keys() for one in values
    ):
        raise FormatError(f"{path}: is not a list of what `ilgnet test --model` wrote as figures.json")
    return [one for one in values if one["split"] == "test"]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    page = results_page(read_ours(OURS))
    if parser.parse_args(argv).write:
        with atomic_file(PAGE, "w") as file:
            file.write(page)
    else:
        print(page, end="")
    return 0


__all__ = ["PUBLISHED", "PublishedScores", "find_published", "read_ours", "results_page"]

if __name__ == "__main__":
    sys.exit(main())
