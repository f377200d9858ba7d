"""docs/zoo.md is what benchmarks/zoo_agreement.py measured: every net, every form, no difference left out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import zoo_agreement  # noqa: E402

FIGURES = json.loads(zoo_agreement.FIGURES.read_text())


def test_the_page_shows_the_figures() -> None:
    assert zoo_agreement.PAGE.read_text() == zoo_agreement.page(FIGURES)


def test_every_net_of_the_zoo_was_measured() -> None:
    assert {name for name, row in FIGURES.items() if row["group"] == "zoo"} == set(zoo_agreement.zoo_names())
    assert all(
        row["forms"].keys() == zoo_agreement.FORMS.keys() for row in FIGURES.values() if row["group"] == "zoo"
    )


@pytest.mark.parametrize("name", FIGURES)
def test_each_form_agrees_or_is_refused_in_one_line(name: str) -> None:
    for form, value in FIGURES[name]["forms"].items():
        if isinstance(value, str):
            assert "\n" not in value and "(" in value, form  # the layer and its type
        else:
            assert value <= 1e-3, form
